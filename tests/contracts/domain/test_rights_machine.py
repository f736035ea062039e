"""rights against an independent model: random orders, amounts, repeats and conflicts; conserved to the unit.

The model keeps no running figures: it holds the list of what happened and adds it up anew each time, so
that it cannot share a mistake of bookkeeping with the contract.
"""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.contracts.domain.support import Door, address

SERVERS = {"shop": ["sale", "fair"], "shop-2": ["own"]}
QUOTA = 120
CAP = 60
USERS = ["u1", "u2"]
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


class RightsMachine(RuleBasedStateMachine):
    @initialize()
    def open(self) -> None:
        self.rights = Door("rights")
        for server, campaigns in SERVERS.items():
            for campaign in campaigns:
                self.rights.call(server, "open_campaign", campaign=campaign, quota=QUOTA, order_max=CAP)
        self.orders: dict[tuple[str, str], Order] = {}
        self.wallets = {(server, user): Wallet() for server in SERVERS for user in USERS}
        self.redemptions: dict[tuple[str, str], tuple[str, int, list[int]]] = {}
        self.done: dict[tuple[str, str, str, str], tuple[dict[str, Any], Any]] = {}

    def act(self, code: str, server: str, method: str, name: str, arguments: dict[str, Any]) -> bool:
        """Call; tell whether it took effect, after checking code, repeat and conflict as the model foretells them."""
        key = (server, name, method, arguments["event"])
        if key in self.done:
            first_arguments, first = self.done[key]
            if first_arguments == arguments:
                before = self.rights.records()
                assert self.rights.call(server, method, **arguments) == first
                assert self.rights.records() == before
            else:
                self.rights.fails("event_conflict", server, method, **arguments)
            return False
        if code:
            self.rights.fails(code, server, method, **arguments)
            return False
        self.done[key] = (arguments, self.rights.call(server, method, **arguments))
        return True

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

    @rule(place=campaigns, user=users, amount=amounts)
    def create(self, place: tuple[str, str], user: str, amount: int) -> None:
        server, campaign = place
        code = "quota_exceeded" if self.used(campaign) + amount > QUOTA else ""
        code = "share_too_large" if amount > CAP else code
        order = f"o{len(self.orders)}"
        arguments = {"campaign": campaign, "order": order, "user": user, "amount": amount, "event": self.event}
        if self.act(code, server, "create", order, arguments):
            self.orders[server, order] = Order(campaign, user, amount)

    def draw_order(self, data: st.DataObject) -> tuple[str, str, Order]:
        key = data.draw(st.sampled_from(sorted(self.orders)))
        return *key, self.orders[key]

    @staticmethod
    def order_code(amount: int | None, left: int) -> str:
        if left == 0:
            return "order_state"
        return "amount_exceeds_order" if amount is not None and amount > left else ""

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), amount=some)
    def complete(self, data: st.DataObject, amount: int | None) -> None:
        self.complete_order(*self.draw_order(data), amount)

    def complete_order(self, server: str, order: str, record: Order, amount: int | None) -> None:
        moved = amount or record.reserved
        arguments = {"order": order, "event": self.event, "amount": amount}
        if self.act(self.order_code(amount, record.reserved), server, "complete", order, arguments):
            record.granted.append(moved)
            self.wallets[server, record.user].movements.append(("granted", moved))

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), amount=some)
    def cancel(self, data: st.DataObject, amount: int | None) -> None:
        server, order, record = self.draw_order(data)
        left = record.reserved + record.refundable
        moved, revoked = amount or left, min(amount or left, record.reserved)
        arguments = {"order": order, "event": self.event, "amount": amount}
        if self.act(self.order_code(amount, left), server, "cancel", order, arguments):
            record.revoked.append(revoked)
            self.ask_back(server, record, moved - revoked)

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), amount=some)
    def refund(self, data: st.DataObject, amount: int | None) -> None:
        self.refund_order(*self.draw_order(data), amount)

    def refund_order(self, server: str, order: str, record: Order, amount: int | None) -> None:
        moved = amount or record.refundable
        arguments = {"order": order, "event": self.event, "amount": amount}
        if self.act(self.order_code(amount, record.refundable), server, "refund", order, arguments):
            self.ask_back(server, record, moved)

    def ask_back(self, server: str, record: Order, amount: int) -> None:
        record.refunded.append(amount)
        self.wallets[server, record.user].movements.append(("asked back", amount))

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), surplus=st.sampled_from([0, 0, 0, -5, 1]))
    def redeem(self, data: st.DataObject, surplus: int) -> None:
        self.redeem_user(*self.draw_order(data), surplus)

    @precondition(lambda self: self.orders)
    @rule(data=st.data())
    def spend_and_be_asked_back(self, data: st.DataObject) -> None:
        """The way into debt, which single steps rarely find."""
        server, order, record = self.draw_order(data)
        self.complete_order(server, order, record, None)
        self.redeem_user(server, order, record, 0)
        self.refund_order(server, order, record, None)

    def redeem_user(self, server: str, _order: str, record: Order, surplus: int) -> None:
        wallet = self.wallets[server, record.user]
        available = wallet.figures()["available"]
        amount = max(available + surplus, 1)
        redemption = f"r{len(self.redemptions)}"
        code = "" if available >= amount else "insufficient_rights"
        arguments = {"user": record.user, "amount": amount, "redemption": redemption, "event": self.event}
        if self.act(code, server, "redeem", redemption, arguments):
            self.redemptions[server, redemption] = (record.user, amount, [])
            wallet.movements.append(("redeemed", amount))

    @precondition(lambda self: self.redemptions)
    @rule(data=st.data(), amount=some)
    def reverse(self, data: st.DataObject, amount: int | None) -> None:
        server, redemption = key = data.draw(st.sampled_from(sorted(self.redemptions)))
        user, total, reversals = self.redemptions[key]
        left = total - sum(reversals)
        code = "amount_exceeds_redemption" if amount is not None and amount > left else ""
        code = code if left else "redemption_state"
        arguments = {"redemption": redemption, "event": self.event, "amount": amount}
        if self.act(code, server, "reverse_redemption", redemption, arguments):
            reversals.append(amount or left)
            self.wallets[server, user].movements.append(("returned", amount or left))

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        server, name, method, _ = key = data.draw(st.sampled_from(sorted(self.done)))
        self.act("", server, method, name, self.done[key][0])

    @precondition(lambda self: self.done)
    @rule(data=st.data(), amount=amounts)
    def conflict(self, data: st.DataObject, amount: int) -> None:
        server, name, method, _ = key = data.draw(st.sampled_from(sorted(self.done)))
        self.act("", server, method, name, {**self.done[key][0], "amount": amount})

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def same_event_of_another_type(self, data: st.DataObject) -> None:
        """A completion under a name that the same order's creation had."""
        server, name, method, event = data.draw(st.sampled_from(sorted(self.done)))
        record = self.orders.get((server, name))
        if method == "create" and record is not None and (server, name, "complete", event) not in self.done:
            code = "" if record.reserved else "order_state"
            if self.act(code, server, "complete", name, {"order": name, "event": event, "amount": None}):
                moved = record.reserved
                record.granted.append(moved)
                self.wallets[server, record.user].movements.append(("granted", moved))

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
