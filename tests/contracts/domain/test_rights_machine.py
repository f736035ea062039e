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
ORDERS = ["o1", "o2", "o3", "o4"]
EVENTS = ["e1", "e2", "e3", "e4", "e5", "e6"]
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

    servers = st.sampled_from(sorted(SERVERS))
    campaigns = st.sampled_from(["sale", "fair", "own"])
    users = st.sampled_from(USERS)
    orders = st.sampled_from(ORDERS)
    events = st.sampled_from(EVENTS)
    amounts = st.integers(1, 70)
    some = st.none() | amounts

    def used(self, campaign: str) -> int:
        return sum(order.share - sum(order.revoked) for order in self.orders.values() if order.campaign == campaign)

    @rule(server=servers, campaign=campaigns, order=orders, user=users, amount=amounts, event=events)
    def create(self, server: str, campaign: str, order: str, user: str, amount: int, event: str) -> None:
        code = ""
        if (server, order) in self.orders:
            code = "order_state"
        elif campaign not in SERVERS[server]:
            code = "not_allowed"
        elif amount > CAP:
            code = "share_too_large"
        elif self.used(campaign) + amount > QUOTA:
            code = "quota_exceeded"
        arguments = {"campaign": campaign, "order": order, "user": user, "amount": amount, "event": event}
        if self.act(code, server, "create", order, arguments):
            self.orders[server, order] = Order(campaign, user, amount)

    def order_code(self, server: str, order: str, amount: int | None, left: int) -> str:
        if (server, order) not in self.orders:
            return "unknown_order"
        if left == 0:
            return "order_state"
        return "amount_exceeds_order" if amount is not None and amount > left else ""

    @rule(server=servers, order=orders, event=events, amount=some)
    def complete(self, server: str, order: str, event: str, amount: int | None) -> None:
        record = self.orders.get((server, order), Order("", "", 0))
        code = self.order_code(server, order, amount, record.reserved)
        arguments = {"order": order, "event": event, "amount": amount}
        if self.act(code, server, "complete", order, arguments):
            moved = amount or record.reserved
            record.granted.append(moved)
            self.wallets[server, record.user].movements.append(("granted", moved))

    @rule(server=servers, order=orders, event=events, amount=some)
    def cancel(self, server: str, order: str, event: str, amount: int | None) -> None:
        record = self.orders.get((server, order), Order("", "", 0))
        code = self.order_code(server, order, amount, record.reserved + record.refundable)
        arguments = {"order": order, "event": event, "amount": amount}
        if self.act(code, server, "cancel", order, arguments):
            moved = amount or record.reserved + record.refundable
            revoked = min(moved, record.reserved)
            record.revoked.append(revoked)
            self.ask_back(server, record, moved - revoked)

    @rule(server=servers, order=orders, event=events, amount=some)
    def refund(self, server: str, order: str, event: str, amount: int | None) -> None:
        record = self.orders.get((server, order), Order("", "", 0))
        code = self.order_code(server, order, amount, record.refundable)
        arguments = {"order": order, "event": event, "amount": amount}
        if self.act(code, server, "refund", order, arguments):
            self.ask_back(server, record, amount or record.refundable)

    def ask_back(self, server: str, record: Order, amount: int) -> None:
        record.refunded.append(amount)
        self.wallets[server, record.user].movements.append(("asked back", amount))

    @rule(server=servers, user=users, amount=amounts, redemption=orders, event=events)
    def redeem(self, server: str, user: str, amount: int, redemption: str, event: str) -> None:
        wallet = self.wallets[server, user]
        code = "" if wallet.figures()["available"] >= amount else "insufficient_rights"
        if (server, redemption) in self.redemptions:
            code = "redemption_exists"
        arguments = {"user": user, "amount": amount, "redemption": redemption, "event": event}
        if self.act(code, server, "redeem", redemption, arguments):
            self.redemptions[server, redemption] = (user, amount, [])
            wallet.movements.append(("redeemed", amount))

    @rule(server=servers, redemption=orders, event=events, amount=some)
    def reverse(self, server: str, redemption: str, event: str, amount: int | None) -> None:
        user, total, reversals = self.redemptions.get((server, redemption), ("", 0, []))
        left = total - sum(reversals)
        code = "amount_exceeds_redemption" if amount is not None and amount > left else ""
        code = code if left else "redemption_state"
        code = code if total else "unknown_redemption"
        arguments = {"redemption": redemption, "event": event, "amount": amount}
        if self.act(code, server, "reverse_redemption", redemption, arguments):
            reversals.append(amount or left)
            self.wallets[server, user].movements.append(("returned", amount or left))

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        server, name, method, _ = key = data.draw(st.sampled_from(sorted(self.done)))
        self.act("", server, method, name, self.done[key][0])

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
TestRightsMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=True)
