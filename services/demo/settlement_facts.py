"""What must hold at the end of the settlement demo, judged on facts alone. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.demo.settlement_script import NO_FUNDS, PAID, REVERSED, Deal, Wanted
from services.settlement.states import State

LIFTED, GIVEN_BACK, NO_LIEN = "LIFTED", "GIVEN_BACK", ""


@dataclass(frozen=True, slots=True)
class End:
    """How a trade ended, by all three who know of it.

    Args:
        state, outcome, code: the event system's.
        steps: states that its history went through, in order.
        lien: status of its lien in the proven state, "" where there is none.
        lien_units: units under it.
        is_paid, is_held: what the account system has done and not undone.
        paid: money that its postings moved from buyer to seller, 1/100 CNY.
    """

    state: str
    outcome: str
    code: str
    steps: tuple[str, ...]
    lien: str
    lien_units: int
    is_paid: bool
    is_held: bool
    paid: int


@dataclass(frozen=True, slots=True)
class Holding:
    """What somebody holds of a thing: free, and set aside (reserved units, held money)."""

    free: int
    aside: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.free + self.aside


@dataclass(frozen=True, slots=True)
class Accident:
    """What was done to the system, and how many trades ended in spite of it."""

    name: str
    ended: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the invariants look at.

    Args:
        deals: the trades that were asked for.
        ends: how each ended, by event.
        units_before, units_after: proven balances by identity; ``supply`` before and after.
        money_before, money_after: accounts of the account system by id.
        answers: what bad input was answered with, and what it had to be: name → (got, wanted).
        repeated: how many answers one trade asked for at once had, and how many different ones.
        accidents: what was done.
        silent_states: states of the trades made while relay and scan were off, before the scan came back.
        flagged: how many events waited flagged for an operator while the account was frozen.
        reversals: reverse events that came about, by their state.
        breaks: what reconciliation found.
        reconciled: how many events it compared.
        seals: each node's newest sealed state.
    """

    deals: Sequence[Deal]
    ends: Mapping[str, End]
    supply: tuple[int, int]
    units_before: Mapping[str, Holding]
    units_after: Mapping[str, Holding]
    money_before: Mapping[str, Holding]
    money_after: Mapping[str, Holding]
    answers: Mapping[str, tuple[str, str]]
    repeated: tuple[int, int]
    accidents: Sequence[Accident]
    silent_states: Sequence[str]
    flagged: int
    reversals: Mapping[str, int]
    breaks: Sequence[str]
    reconciled: int
    seals: Mapping[str, tuple[int, bytes]]

    def count(self, wanted: Wanted) -> int:
        """Return how many trades must end so."""
        return sum(1 for deal in self.deals if deal.wanted == wanted)


def judge(facts: Facts) -> dict[str, bool]:
    """Return for every invariant whether it holds."""
    return {
        "every_trade_ended_as_it_must": _ended(facts),
        "asset_and_money_moved_together": all(
            both_or_neither(deal, facts.ends.get(deal.event)) for deal in facts.deals
        ),
        "registered_before_anything_else": all(end.steps[:1] == (State.REGISTERED,) for end in facts.ends.values()),
        "exactly_four_states": {step for end in facts.ends.values() for step in end.steps} == set(State),
        "units_conserved": _units_conserved(facts),
        "money_conserved": _money_conserved(facts),
        "nothing_left_aside": _nothing_aside(facts),
        "paid_once": _paid_once(facts),
        "a_trade_asked_for_many_times_is_one": facts.repeated[0] > 1 and facts.repeated[1] == 1,
        "bad_input_refused": bool(facts.answers) and all(got == wanted for got, wanted in facts.answers.values()),
        "scan_alone_repairs": _scan_repairs(facts),
        "operator_resolves_what_cannot_be_paid": _resolved(facts),
        "ended_whatever_died": bool(facts.accidents) and all(accident.ended for accident in facts.accidents),
        "reconciled_without_breaks": not facts.breaks and facts.reconciled >= len(_moved(facts)) > 0,
        "state_roots_agree": len(set(facts.seals.values())) == 1,
    }


def _moved(facts: Facts) -> list[Deal]:
    """Return the trades that must have moved units and money for good."""
    return [deal for deal in facts.deals if deal.wanted == PAID]


def _ended(facts: Facts) -> bool:
    found = {event: (end.state, end.outcome, end.code if end.code else "") for event, end in facts.ends.items()}
    wanted = {deal.event: (deal.wanted.state, deal.wanted.outcome, deal.wanted.code) for deal in facts.deals}
    return bool(wanted) and all(
        found.get(event, ("", "", ""))[:2] == (state, outcome) and (not code or found[event][2] == code)
        for event, (state, outcome, code) in wanted.items()
    )


def both_or_neither(deal: Deal, end: End | None) -> bool:
    """Tell whether chain and account system agree on one trade with each other and with what is wanted."""
    if end is None or end.is_held:
        return False
    if deal.wanted == PAID:
        return (end.lien, end.lien_units, end.is_paid, end.paid) == (LIFTED, deal.units, True, deal.price)
    if deal.wanted == REVERSED:
        return (end.lien, end.is_paid, end.paid) == (GIVEN_BACK, False, 0)
    return (end.lien, end.is_paid, end.paid) == (NO_LIEN, False, 0)


def _units_conserved(facts: Facts) -> bool:
    """Tell whether each balance is what the paid trades make of it, and the supply is the sum."""
    moves = [(deal.seller, deal.buyer, deal.units) for deal in _moved(facts)]
    return moved_so(moves, facts.units_before, facts.units_after) and facts.supply[0] == facts.supply[1]


def _money_conserved(facts: Facts) -> bool:
    moves = [(deal.buyer, deal.seller, deal.price) for deal in _moved(facts)]
    return moved_so(moves, facts.money_before, facts.money_after)


def moved_so(
    moves: Iterable[tuple[str, str, int]], before: Mapping[str, Holding], after: Mapping[str, Holding]
) -> bool:
    """Tell whether everybody holds what it held, less what it gave and more what it got: from, to, how much."""
    expected: defaultdict[str, int] = defaultdict(int, {name: holding.total for name, holding in before.items()})
    for source, target, amount in moves:
        expected[source] -= amount
        expected[target] += amount
    return bool(after) and expected == {name: holding.total for name, holding in after.items()}


def _nothing_aside(facts: Facts) -> bool:
    """Tell whether no units stay under a lien and no money is held beyond what was before."""
    pairs = ((facts.units_before, facts.units_after), (facts.money_before, facts.money_after))
    return all(after[name].aside == before[name].aside for before, after in pairs for name in before)


def _paid_once(facts: Facts) -> bool:
    return sum(end.paid for end in facts.ends.values()) == sum(deal.price for deal in _moved(facts)) > 0


def _scan_repairs(facts: Facts) -> bool:
    """Tell whether nothing went on while relay and scan were off."""
    return bool(facts.silent_states) and set(facts.silent_states) == {State.REGISTERED.value}


def _resolved(facts: Facts) -> bool:
    reversed_count = facts.count(REVERSED)
    return facts.flagged > 0 < reversed_count == facts.reversals.get(State.COMPLETED.value, 0)


def cancelled(facts: Facts) -> int:
    """Return how many trades had to come to nothing."""
    return facts.count(NO_FUNDS)
