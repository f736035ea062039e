"""rights against an independent model: random orders, amounts, repeats and conflicts; conserved to the unit.

What happens comes to the contract directly from the server, or signed by it and relayed by a rights server, and again
by either way. The model keeps no running figures: it holds the list of what happened and adds it up anew each time, so
that it cannot share a mistake of bookkeeping with the contract.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consensus.ledger.keys import PrivateKey
from services.rights.events import Event, SignedEvent, apply_arguments, present_arguments, sign_events
from tests.contracts.domain.support import Door, address

SERVERS = {"shop": ["sale", "fair"], "shop-2": ["own"]}
QUOTA = 120
CAP = 60
BASIS_POINTS = 5_000
USERS = ["u1", "u2"]
ITEMS = ["cup", "tea", "hat"]
EVENT_KEY, OTHER_KEY = PrivateKey.from_secret(71), PrivateKey.from_secret(72)
FIGURES = ["available", "clawedBack", "created", "debt", "redeemed", "reserved", "revoked"]


@dataclass
class Order:
    campaign: str
    user: str
    share: int
    granted: list[int] = field(default_factory=list)
    revoked: list[int] = field(default_factory=list)
    refunded: list[int] = field(default_factory=list)

    @property
    def reserved(self) -> int:
        return self.share - sum(self.granted) - sum(self.revoked)

    @property
    def refundable(self) -> int:
        return sum(self.granted) - sum(self.refunded)


@dataclass
class Wallet:
    """What came to a user (+) and was asked back (−), in order; debt is what asking back could not reach."""

    movements: list[tuple[str, int]] = field(default_factory=list)

    def figures(self) -> dict[str, int]:
        """Replay the movements: a balance that may go below zero is available above it and debt below it."""
        net = asked_back = redeemed = 0
        for kind, amount in self.movements:
            if kind == "granted":
                net += amount
            elif kind == "asked back":
                net -= amount
                asked_back += amount
            elif kind == "redeemed":
                net -= amount
                redeemed += amount
            else:
                net += amount
                redeemed -= amount
        debt = max(-net, 0)
        return {"available": max(net, 0), "debt": debt, "redeemed": redeemed, "clawedBack": asked_back - debt}


@dataclass(frozen=True)
class Wish:
    """One event as its business server means it, whichever way it comes.

    ``amount`` is None for all that is left, and for what only a share is known of; ``share`` is what was computed
    off the chain. ``items`` are of a redemption.
    """

    kind: str
    name: str
    event: str
    user: str = ""
    campaign: str = ""
    amount: int | None = None
    share: int | None = None
    items: tuple[tuple[str, int], ...] = ()

    @property
    def has_direct_way(self) -> bool:
        """Whether the server itself can say it: then either what is computed or what from, but not both."""
        return self.share is None or (self.amount is None and not self.items)

    @property
    def can_be_signed(self) -> bool:
        """Whether an event can say it: one that begins something says what the share is computed from."""
        return self.kind not in ("create", "redeem") or self.amount is not None or bool(self.items)

    @property
    def source(self) -> tuple[Any, ...]:
        """What the share is computed from; empty where nothing says it."""
        if self.kind == "create":
            return () if self.amount is None else (self.amount,)
        return (self.amount, self.items) if self.items else ()

    @property
    def computed(self) -> int | None:
        """What a creation's or redemption's share is known to be."""
        return self.share if self.kind == "create" or self.items else self.amount

    def is_same_as(self, first: "Wish") -> bool:
        """Whether this is the event that came first: its facts are equal, or if not known both times, its share."""
        if (self.user, self.campaign) != (first.user, first.campaign):
            return False
        if self.kind not in ("create", "redeem"):
            return self.amount == first.amount
        if self.source and first.source:
            return self.source == first.source
        return self.computed is not None and self.computed == first.computed

    def direct(self) -> tuple[str, dict[str, Any]]:
        """Return the method and arguments with which the server itself says it."""
        if self.kind == "create":
            place = {"campaign": self.campaign, "order": self.name, "user": self.user, "event": self.event}
            if self.share is None:
                return "create_by_rule", {**place, "order_amount": self.amount}
            return "create", {**place, "amount": self.share}
        if self.kind == "redeem":
            place = {"user": self.user, "redemption": self.name, "event": self.event}
            if self.items:
                return "redeem_items", {**place, "items": dict(self.items), "amount_max": self.amount or 0}
            return "redeem", {**place, "amount": self.amount}
        subject = "redemption" if self.kind == "reverse_redemption" else "order"
        return self.kind, {subject: self.name, "event": self.event, "amount": self.amount}

    def signed(self) -> Event:
        """Return the event with which the server says it to its rights servers."""
        items = list(self.items)
        return Event(self.kind, self.name, self.event, self.user, self.campaign, self.amount or 0, items, 5)


class RightsMachine(RuleBasedStateMachine):
    @initialize()
    def open(self) -> None:
        self.rights = Door("rights")
        for server, campaigns in SERVERS.items():
            for campaign in campaigns:
                rule = {"quota": QUOTA, "order_max": CAP, "share_basis_points": BASIS_POINTS}
                self.rights.call(server, "open_campaign", campaign=campaign, **rule)
            keys = [EVENT_KEY.public.compressed]
            self.rights.call(server, "appoint", event_keys=keys, rights_servers=[address("alice"), address("bob")])
        self.forged = 0
        self.closed: set[str] = set()
        self.prices: dict[tuple[str, str], int] = {}
        self.orders: dict[tuple[str, str], Order] = {}
        self.wallets = {(server, user): Wallet() for server in SERVERS for user in USERS}
        self.redemptions: dict[tuple[str, str], tuple[str, int, list[int]]] = {}
        self.done: dict[tuple[str, str, str, str], tuple[Wish, Any]] = {}

    def sign(self, server: str, wish: Wish, key: PrivateKey = EVENT_KEY) -> SignedEvent:
        """Return the wish in a batch of two, signed by its server."""
        other = replace(wish, event="another").signed()
        return sign_events(key, self.rights.chain.chain_id, address(server), [other, wish.signed()])[1]

    def door(self, server: str, wish: Wish, relay: str) -> tuple[str, str, dict[str, Any]]:
        """Return who calls which method with what, to bring a wish by a rights server or, where "", directly."""
        if not wish.can_be_signed or (wish.has_direct_way and not relay):
            return server, *wish.direct()
        signed = self.sign(server, wish)
        relay = relay or "alice"
        self.rights.call(relay, "present", **present_arguments(signed))
        return relay, "apply", apply_arguments(signed, wish.share or 0)

    def act(self, code: str, server: str, wish: Wish, relay: str) -> bool:
        """Bring a wish; tell whether it took effect, after checking code, repeat and conflict as foretold."""
        key = (server, wish.name, wish.kind, wish.event)
        sender, method, arguments = self.door(server, wish, relay)
        if key in self.done:
            first_wish, first = self.done[key]
            if wish.is_same_as(first_wish):
                before = self.rights.records()
                assert self.rights.call(sender, method, **arguments) == first
                assert self.rights.records() == before
            else:
                self.rights.fails("event_conflict", sender, method, **arguments)
            return False
        if code:
            self.rights.fails(code, sender, method, **arguments)
            return False
        self.done[key] = (wish, self.rights.call(sender, method, **arguments))
        return True

    relays = st.sampled_from(["", "", "alice", "bob"])
    """Who brings an event: "" for the server itself."""
    campaigns = st.sampled_from([("shop", "sale"), ("shop", "sale"), ("shop", "fair"), ("shop-2", "own")])
    users = st.sampled_from(["u1", "u1", "u2"])
    amounts = st.sampled_from([1, 7, 30, CAP - 1, CAP, CAP + 1])
    some = st.none() | st.integers(1, 30)

    @property
    def event(self) -> str:
        """An event that was not there before; those that were come back in ``repeat`` and ``conflict``."""
        return f"e{len(self.done)}"

    def used(self, campaign: str) -> int:
        return sum(order.share - sum(order.revoked) for order in self.orders.values() if order.campaign == campaign)

    @rule(place=campaigns, user=users, amount=amounts, variant=st.sampled_from("ABC"), relay=relays)
    def create(self, place: tuple[str, str], user: str, amount: int, variant: str, relay: str) -> None:
        """By rule, by a share alone, or by a share computed from an amount that is known too."""
        server, campaign = place
        share = amount if variant != "A" else min(2 * amount * BASIS_POINTS // 10_000, CAP)
        code = "quota_exceeded" if self.used(campaign) + share > QUOTA else ""
        code = "share_too_large" if share > CAP else code
        code = "campaign_closed" if campaign in self.closed else code
        order = f"o{len(self.orders)}"
        wish = Wish("create", order, self.event, user, campaign)
        wish = replace(wish, amount=None if variant == "B" else 2 * amount, share=None if variant == "A" else share)
        if self.act(code, server, wish, relay):
            self.orders[server, order] = Order(campaign, user, share)

    def draw_order(self, data: st.DataObject) -> tuple[str, str, Order]:
        key = data.draw(st.sampled_from(sorted(self.orders)))
        return *key, self.orders[key]

    @staticmethod
    def order_code(amount: int | None, left: int) -> str:
        if left == 0:
            return "order_state"
        return "amount_exceeds_order" if amount is not None and amount > left else ""

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), amount=some, relay=relays)
    def complete(self, data: st.DataObject, amount: int | None, relay: str) -> None:
        self.complete_order(*self.draw_order(data), amount, relay)

    def complete_order(self, server: str, order: str, record: Order, amount: int | None, relay: str) -> None:
        moved = amount or record.reserved
        wish = Wish("complete", order, self.event, amount=amount)
        if self.act(self.order_code(amount, record.reserved), server, wish, relay):
            record.granted.append(moved)
            self.wallets[server, record.user].movements.append(("granted", moved))

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), amount=some, relay=relays)
    def cancel(self, data: st.DataObject, amount: int | None, relay: str) -> None:
        server, order, record = self.draw_order(data)
        left = record.reserved + record.refundable
        moved, revoked = amount or left, min(amount or left, record.reserved)
        wish = Wish("cancel", order, self.event, amount=amount)
        if self.act(self.order_code(amount, left), server, wish, relay):
            record.revoked.append(revoked)
            self.ask_back(server, record, moved - revoked)

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), amount=some, relay=relays)
    def refund(self, data: st.DataObject, amount: int | None, relay: str) -> None:
        self.refund_order(*self.draw_order(data), amount, relay)

    def refund_order(self, server: str, order: str, record: Order, amount: int | None, relay: str) -> None:
        moved = amount or record.refundable
        wish = Wish("refund", order, self.event, amount=amount)
        if self.act(self.order_code(amount, record.refundable), server, wish, relay):
            self.ask_back(server, record, moved)

    def ask_back(self, server: str, record: Order, amount: int) -> None:
        record.refunded.append(amount)
        self.wallets[server, record.user].movements.append(("asked back", amount))

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), surplus=st.sampled_from([0, 0, 0, -5, 1]), relay=relays)
    def redeem(self, data: st.DataObject, surplus: int, relay: str) -> None:
        self.redeem_user(*self.draw_order(data), surplus, relay)

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), relay=relays)
    def spend_and_be_asked_back(self, data: st.DataObject, relay: str) -> None:
        """The way into debt, which single steps rarely find."""
        server, order, record = self.draw_order(data)
        self.complete_order(server, order, record, None, relay)
        self.redeem_user(server, order, record, 0, relay)
        self.refund_order(server, order, record, None, relay)

    def redeem_user(self, server: str, _order: str, record: Order, surplus: int, relay: str) -> None:
        available = self.wallets[server, record.user].figures()["available"]
        amount = max(available + surplus, 1)
        wish = Wish("redeem", f"r{len(self.redemptions)}", self.event, record.user, amount=amount)
        self.redeem_wish(server, wish, amount, "", relay)

    def redeem_wish(self, server: str, wish: Wish, amount: int, code: str, relay: str) -> None:
        wallet = self.wallets[server, wish.user]
        code = code or ("" if wallet.figures()["available"] >= amount else "insufficient_rights")
        if self.act(code, server, wish, relay):
            self.redemptions[server, wish.name] = (wish.user, amount, [])
            wallet.movements.append(("redeemed", amount))

    @precondition(lambda self: self.orders)
    @rule(
        data=st.data(),
        wanted=st.dictionaries(st.sampled_from(ITEMS), st.integers(1, 2), min_size=1),
        most=st.sampled_from([None, None, 9, 30]),
        share=st.none() | st.integers(1, 12),
        relay=relays,
    )
    def redeem_items(
        self, data: st.DataObject, wanted: dict[str, int], most: int | None, share: int | None, relay: str
    ) -> None:
        """What items cost by the prices, or as the rights server computed, which knows other prices."""
        server, _, record = self.draw_order(data)
        costs = [count * self.prices.get((server, item), 0) for item, count in wanted.items()]
        amount = sum(costs) if share is None else share
        code = "price_exceeds_amount" if most is not None and amount > most else ""
        code = "unknown_item" if share is None and 0 in costs else code
        items = tuple(sorted(wanted.items()))
        wish = Wish("redeem", f"r{len(self.redemptions)}", self.event, record.user, "", most, share, items)
        self.redeem_wish(server, wish, amount, code, relay)

    @rule(server=st.sampled_from(sorted(SERVERS)), item=st.sampled_from(ITEMS), price=st.integers(0, 9))
    def set_price(self, server: str, item: str, price: int) -> None:
        self.rights.call(server, "set_price", item=item, price=price)
        self.prices[server, item] = price

    @precondition(lambda self: len(self.orders) > 4 and not self.closed)
    @rule(place=campaigns)
    def close(self, place: tuple[str, str]) -> None:
        server, campaign = place
        self.rights.call(server, "close_campaign", campaign=campaign)
        self.closed.add(campaign)

    @precondition(lambda self: self.redemptions)
    @rule(data=st.data(), amount=some, relay=relays)
    def reverse(self, data: st.DataObject, amount: int | None, relay: str) -> None:
        server, redemption = key = data.draw(st.sampled_from(sorted(self.redemptions)))
        user, total, reversals = self.redemptions[key]
        left = total - sum(reversals)
        code = "amount_exceeds_redemption" if amount is not None and amount > left else ""
        code = code if left else "redemption_state"
        wish = Wish("reverse_redemption", redemption, self.event, amount=amount)
        if self.act(code, server, wish, relay):
            reversals.append(amount or left)
            self.wallets[server, user].movements.append(("returned", amount or left))

    def draw_done(self, data: st.DataObject) -> tuple[str, Wish]:
        key = data.draw(st.sampled_from(sorted(self.done)))
        return key[0], self.done[key][0]

    @precondition(lambda self: self.done)
    @rule(data=st.data(), relay=relays)
    def repeat(self, data: st.DataObject, relay: str) -> None:
        server, wish = self.draw_done(data)
        self.act("", server, wish, relay)

    @precondition(lambda self: self.done)
    @rule(data=st.data(), share=st.none() | st.integers(1, CAP), relay=relays)
    def repeat_with_another_share(self, data: st.DataObject, share: int | None, relay: str) -> None:
        """As when two rights servers compute differently, or one leaves to the contract what the other computes."""
        server, wish = self.draw_done(data)
        if (wish.kind == "create" and wish.amount is not None) or wish.items:
            self.act("", server, replace(wish, share=share), relay)

    @precondition(lambda self: self.done)
    @rule(data=st.data(), amount=amounts, user=users, relay=relays)
    def conflict(self, data: st.DataObject, amount: int, user: str, relay: str) -> None:
        server, wish = self.draw_done(data)
        other = replace(wish, user=user if wish.user else "")
        known = "share" if wish.amount is None and wish.share is not None and not wish.items else "amount"
        self.act("", server, replace(other, **{known: amount}), relay)

    @precondition(lambda self: self.done)
    @rule(data=st.data(), relay=relays)
    def same_event_of_another_type(self, data: st.DataObject, relay: str) -> None:
        """A completion under a name that the same order's creation had."""
        server, first = self.draw_done(data)
        record = self.orders.get((server, first.name))
        if (
            first.kind == "create"
            and record is not None
            and (server, first.name, "complete", first.event) not in self.done
        ):
            moved = record.reserved
            wish = Wish("complete", first.name, first.event)
            if self.act("" if moved else "order_state", server, wish, relay):
                record.granted.append(moved)
                self.wallets[server, record.user].movements.append(("granted", moved))

    @rule(
        place=campaigns,
        fault=st.sampled_from(["signature", "server", "relay", "amount", "index", "path", "root", "unknown"]),
    )
    def forge(self, place: tuple[str, str], fault: str) -> None:
        """What nobody signed, or nobody who was appointed brings, has no effect."""
        server, campaign = place
        self.forged += 1
        wish = Wish("create", f"x{self.forged}", self.event, "u1", campaign, 2)
        signed = self.sign(server, wish)
        good = apply_arguments(signed)
        if fault == "signature":
            forged = present_arguments(self.sign(server, wish, OTHER_KEY))
            self.rights.fails("bad_signature", "alice", "present", **forged)
        elif fault == "server":
            (other,) = set(SERVERS) - {server}
            forged = {**present_arguments(signed), "server": address(other)}
            self.rights.fails("bad_signature", "alice", "present", **forged)
        elif fault == "unknown":
            self.rights.fails("unknown_root", "alice", "apply", **good)
        else:
            self.rights.call("carol", "present", **present_arguments(signed))
            changes: dict[str, dict[str, Any]] = {
                "relay": {},
                "amount": {"amount": 4},
                "index": {"index": 0},
                "path": {"path": [bytes(32)]},
                "root": {"root": bytes(32)},
            }
            sender = server if fault == "relay" else "alice"
            code = {"relay": "not_appointed", "root": "unknown_root"}.get(fault, "bad_proof")
            self.rights.fails(code, sender, "apply", **{**good, **changes[fault]})

    @invariant()
    def users_are_as_the_model_says(self) -> None:
        for (server, user), wallet in self.wallets.items():
            orders = [order for key, order in self.orders.items() if key[0] == server and order.user == user]
            expected = {
                **wallet.figures(),
                "created": sum(order.share for order in orders),
                "reserved": sum(order.reserved for order in orders),
                "revoked": sum(sum(order.revoked) for order in orders),
            }
            answer = self.rights.query("balance", user=user, server=address(server))
            figures = {name: answer[name] for name in FIGURES}
            assert figures == expected
            assert min(figures.values()) >= 0
            assert conserved(figures)
            assert len(self.rights.query("history", user=user, server=address(server))) == answer["count"]

    @invariant()
    def totals_are_conserved(self) -> None:
        for server, campaigns in SERVERS.items():
            totals = self.rights.query("totals", server=address(server))
            balances = [self.rights.query("balance", user=user, server=address(server)) for user in USERS]
            assert totals == {name: sum(balance[name] for balance in balances) for name in FIGURES}
            assert conserved(totals)
            records = [self.rights.query("campaign", campaign=campaign) for campaign in campaigns]
            granted, refunded = (sum(record[name] for record in records) for name in ("granted", "refunded"))
            assert granted == totals["available"] + totals["redeemed"] + totals["clawedBack"]
            assert refunded == totals["clawedBack"] + totals["debt"]

    @invariant()
    def no_campaign_is_oversold(self) -> None:
        for campaigns in SERVERS.values():
            for campaign in campaigns:
                record = self.rights.query("campaign", campaign=campaign)
                assert record["created"] == record["reserved"] + record["granted"] + record["revoked"]
                assert QUOTA - record["left"] == record["created"] - record["revoked"] == self.used(campaign)
                assert 0 <= record["left"] <= QUOTA
                assert record["refunded"] <= record["granted"]


def conserved(figures: dict[str, int]) -> bool:
    parts = ("reserved", "available", "redeemed", "revoked", "clawedBack")
    return figures["created"] == sum(figures[part] for part in parts)


TestRightsMachine = RightsMachine.TestCase
TestRightsMachine.settings = settings(max_examples=100, stateful_step_count=50, deadline=None, derandomize=True)
