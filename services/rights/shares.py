"""Variant B: the rights server computes what an event brings, by a table of its own. Pure, integers only.

The contract checks what is computed here against the campaign's rule, or against what the user has. Without a
table the share of every event is 0, and the contract computes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from consensus.ledger.errors import LocalError
from services.rights.events import AMOUNT_MAX, Event, Kind

BASIS = 10_000
"""Basis points in a whole."""


@dataclass(frozen=True, slots=True)
class ShareRule:
    """What of an order's amount a campaign gives: ``basis_points`` of 10,000, and ``cap`` at the most."""

    basis_points: int
    cap: int


@dataclass(frozen=True, slots=True)
class ShareTable:
    """Rules by campaign, and prices of items in smallest units; what is not in it is left to the contract.

    Raises:
        LocalError: ``bad_shares`` for a rule or a price out of range.
    """

    rules: Mapping[str, ShareRule] = field(default_factory=dict)
    prices: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for campaign, rule in self.rules.items():
            if not (0 < rule.basis_points <= BASIS and 0 < rule.cap <= AMOUNT_MAX):
                raise LocalError("bad_shares", f"{campaign}: 1 to {BASIS} basis points, a cap of 1 to {AMOUNT_MAX}")
        for item, price in self.prices.items():
            if not 0 < price <= AMOUNT_MAX:
                raise LocalError("bad_shares", f"{item}: a price of 1 to {AMOUNT_MAX}")

    def share_of(self, event: Event) -> int:
        """Return what an event brings or costs, 0 where the contract is to say it.

        Of a creation that is the rule's part of the amount, rounded down; of a redemption the sum of its items,
        where all of them have prices and it is no more than an amount may be.
        """
        if event.kind == Kind.CREATE and (rule := self.rules.get(event.campaign)) is not None:
            return min(event.amount * rule.basis_points // BASIS, rule.cap)
        if event.kind == Kind.REDEEM and event.items and all(item in self.prices for item, _ in event.items):
            cost = sum(count * self.prices[item] for item, count in event.items)
            return cost if cost <= AMOUNT_MAX else 0
        return 0
