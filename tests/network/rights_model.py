"""Orders and redemptions that a seed makes up, and what must come of each, whatever happens to the programs."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from services.messages.store import State

CAMPAIGN = "flash"
USERS = 40
FIGURES = ("created", "reserved", "available", "redeemed", "revoked", "clawedBack", "debt")

Post = dict[str, Any]
"""One event as ``POST /events`` takes it."""


@dataclass
class Model:
    """What must be true once everything that was posted has ended."""

    random: Random
    tag: str
    ends: dict[str, State] = field(default_factory=dict)
    """Each event's key → how it ends."""
    balances: dict[str, Counter[str]] = field(default_factory=dict)
    entries: Counter[str] = field(default_factory=Counter)
    """How many entries each user's history has: one for each event that took effect."""
    redemptions: list[tuple[str, str, int]] = field(default_factory=list)
    """Name, user and amount of this round's that can be reversed."""

    @property
    def totals(self) -> Counter[str]:
        """The sums over all users."""
        return sum(self.balances.values(), Counter())

    def begin(self, random: Random, tag: str) -> None:
        """Go on with other orders and redemptions of the same users."""
        self.random, self.tag = random, tag
        self.redemptions.clear()

    def orders(self, count: int) -> list[list[Post]]:
        """Make up orders; each is a list of events in the order in which its customer causes them."""
        return [list(self._order(f"{self.tag}-{number}")) for number in range(count)]

    def spending(self) -> list[list[Post]]:
        """Let users redeem a part of what they have available, in several redemptions."""
        made = []
        for user in sorted(self.balances):
            for number in range(3):
                amount = self.balances[user]["available"] // self.random.randrange(3, 9)
                if amount:
                    name = f"{self.tag}-{user}-{number}"
                    self.redemptions.append((name, user, amount))
                    body = {"kind": "redeem", "redemption": name, "user": user, "amount": amount}
                    made.append([self._effect(body, name, user, available=-amount, redeemed=amount)])
        return made

    def returns(self) -> list[list[Post]]:
        """Reverse some redemptions, in part."""
        made = []
        for name, user, amount in self.redemptions:
            part = amount // 2
            if part and self.random.random() < 0.5:
                body = {"kind": "reverse_redemption", "redemption": name, "amount": part}
                made.append([self._effect(body, name, user, available=part, redeemed=-part)])
        return made

    def _order(self, order: str) -> Iterator[Post]:
        user, amount = f"u{self.random.randrange(USERS)}", self.random.randrange(10, 500)
        part = self.random.randrange(1, amount)
        body = {"kind": "create", "order": order, "user": user, "campaign": CAMPAIGN, "amount": amount}
        create = self._effect(body, order, user, created=amount, reserved=amount)

        def event(kind: str, event_amount: int, **changes: int) -> Post:
            said = {"amount": event_amount} if event_amount else {}
            return self._effect({"kind": kind, "order": order, **said}, order, user, **changes)

        match self.random.randrange(8):
            case 0 | 1:
                yield create
                yield event("complete", 0, reserved=-amount, available=amount)
            case 2:
                yield create
                yield event("cancel", 0, reserved=-amount, revoked=amount)
            case 3:
                yield create
                yield event("complete", part, reserved=-part, available=part)
                yield event(
                    "cancel", 0, reserved=part - amount, revoked=amount - part, clawedBack=part, available=-part
                )
            case 4:  # the completion is faster than the creation
                yield event("complete", 0, reserved=-amount, available=amount)
                yield create
            case 5:
                yield create
                yield event("complete", 0, reserved=-amount, available=amount)
                yield event("refund", part, available=-part, clawedBack=part)
            case 6:  # more than there is
                yield create
                yield self._refused({"kind": "complete", "order": order, "amount": amount + 1}, order)
            case _:
                yield create

    def _effect(self, body: Post, reference: str, user: str, **changes: int) -> Post:
        self.ends[f"{body['kind']}/{reference}/1"] = State.DONE
        self.balances.setdefault(user, Counter()).update(changes)
        self.entries[user] += 1
        return body

    def _refused(self, body: Post, reference: str) -> Post:
        self.ends[f"{body['kind']}/{reference}/1"] = State.REFUSED
        return body
