"""What a reconciliation finds wrong with one event, from what store, chain and accounts say of it. Pure.

Each of the three stands as it is now; ages are counted to ``now_ms``. What is younger than the tolerance is *open*:
near real time is not the same moment, and a report need not call for people while the programs are still at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from services.accounts.port import Standing
from services.settlement.states import Event, Kind, Outcome, State

HELD, LIFTED, GIVEN_BACK = "HELD", "LIFTED", "GIVEN_BACK"
"""How a lien stands, as ``tokens`` says it."""


class BreakKind(StrEnum):
    """What is wrong. The first six are found at any age, the others when older than the tolerance."""

    UNKNOWN_EVENT = "unknown_event"
    """Chain or account system know an event that the event store does not."""
    UNITS_DIFFER = "units_differ"
    """Other units were delivered than the terms name."""
    AMOUNT_DIFFERS = "amount_differs"
    """Another amount or currency stands in the account system than the terms name, or its postings make."""
    PARTIES_DIFFER = "parties_differ"
    """Units or money moved between others than the terms name."""
    PAID_TWICE = "paid_twice"
    """More was posted as paid than the event's amount."""
    LIEN_LIFTED_UNPAID = "lien_lifted_unpaid"
    """The buyer has the units free and has not paid."""
    ASSET_WITHOUT_PAYMENT = "asset_without_payment"
    """Units were delivered, and neither paid nor given back."""
    PAYMENT_WITHOUT_ASSET = "payment_without_asset"
    """Paid, and no units were delivered, or they were given back."""
    LIEN_NOT_LIFTED = "lien_not_lifted"
    """Delivered and paid, and the buyer's units are not free."""
    HOLD_LEFT = "hold_left"
    """The event is finished without a payment, and the buyer's money is still held for it."""
    STATE_DIFFERS = "state_differs"
    """Chain and account system agree, and the event's state says something else."""


class Verdict(StrEnum):
    """What is said of an event altogether."""

    MATCHED = "matched"
    OPEN = "open"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Lien:
    """A delivery as it stands on the chain; ``delivered_ms`` is 0 where its block is not of the day."""

    seller: bytes
    to: bytes
    unit: str
    amount: int
    status: str
    delivered_ms: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """All that is known of one event.

    Args:
        event: its id.
        record: what the event store says, None if it knows nothing.
        liens: deliveries under the event's id, one a seller; there are none under a reversal's.
        standing: what the account system says, None if it knows nothing.
        paid: the amounts of the day's postings to the payee, less those that went back.
        is_paid_today: the standing says that it was paid within the day, and not reversed within it.
        now_ms: block time that ages are counted to; ``tolerance_ms`` as said above.
        trade: of a reversal: the delivery of its trade.
    """

    event: str
    record: Event | None
    liens: Sequence[Lien]
    standing: Standing | None
    paid: Sequence[int]
    is_paid_today: bool
    now_ms: int
    tolerance_ms: int
    trade: Lien | None = None

    def is_late(self, since_ms: int) -> bool:
        """Tell whether something is older than the tolerance."""
        return self.now_ms - since_ms > self.tolerance_ms


@dataclass(frozen=True, slots=True)
class Break:
    """One thing that is wrong, in words too."""

    kind: BreakKind
    why: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is said of an event; there are breaks if and only if it is ``BROKEN``."""

    verdict: Verdict
    breaks: tuple[Break, ...] = ()


def judge(case: Case) -> Judgement:
    """Return what is wrong with an event."""
    if case.record is None:
        return Judgement(Verdict.BROKEN, (Break(BreakKind.UNKNOWN_EVENT, _known_to(case)),))
    record = case.record
    if record.kind is Kind.REVERSAL:
        return _reversal(case, record)
    own = next((lien for lien in case.liens if lien.seller == record.terms.seller), None)
    breaks = [*_terms_breaks(case, record, own), *_posting_breaks(case)]
    verdict, found = _sides(case, record, own)
    breaks += found
    return Judgement(Verdict.BROKEN if breaks else verdict, tuple(breaks))


def _known_to(case: Case) -> str:
    sides = ["the chain"] * bool(case.liens) + ["the account system"] * bool(case.standing or case.paid)
    return f"known to {' and '.join(sides) or 'nobody'}, not to the event store"


def _terms_breaks(case: Case, record: Event, own: Lien | None) -> list[Break]:
    """Return where chain or account system differ from the terms."""
    breaks: list[Break] = []
    terms, standing = record.terms, case.standing
    if any(lien is not own for lien in case.liens):
        breaks.append(Break(BreakKind.PARTIES_DIFFER, "somebody else than the seller delivered under the event's id"))
    if own is not None and (own.unit, own.amount) != (terms.asset, terms.units):
        why = f"{own.amount} of {own.unit} delivered, {terms.units} of {terms.asset} agreed"
        breaks.append(Break(BreakKind.UNITS_DIFFER, why))
    if own is not None and own.to != terms.buyer:
        breaks.append(Break(BreakKind.PARTIES_DIFFER, f"delivered to 0x{own.to.hex()}"))
    if standing is None or not standing.payer:
        return breaks
    if (standing.amount, standing.currency) != (terms.price, terms.currency):
        why = f"{standing.amount} {standing.currency} in the accounts, {terms.price} {terms.currency} agreed (1/100)"
        breaks.append(Break(BreakKind.AMOUNT_DIFFERS, why))
    if (standing.payer, standing.payee) != (terms.payer, terms.payee):
        why = f"{standing.payer} to {standing.payee} in the accounts, {terms.payer} to {terms.payee} agreed"
        breaks.append(Break(BreakKind.PARTIES_DIFFER, why))
    return breaks


def _posting_breaks(case: Case) -> list[Break]:
    """Return where the day's postings are not what the account system says of the event."""
    standing, posted = case.standing, sum(case.paid)
    amount = 0 if standing is None else standing.amount
    if posted > amount:
        why = f"{posted} posted as paid in {len(case.paid)} postings, for {amount} (1/100)"
        return [Break(BreakKind.PAID_TWICE, why)]
    if standing is not None and case.is_paid_today and posted != amount and case.is_late(standing.paid_ms):
        return [Break(BreakKind.AMOUNT_DIFFERS, f"{posted} posted as paid, for {amount} (1/100)")]
    return []


def _sides(case: Case, record: Event, own: Lien | None) -> tuple[Verdict, list[Break]]:
    """Return how chain, account system and state stand to each other."""
    standing = case.standing
    is_paid = standing is not None and standing.paid_ms > 0 and standing.reversed_ms == 0
    is_moved = own is not None and own.status != GIVEN_BACK
    if is_moved and not is_paid and own is not None:
        if own.status == LIFTED:
            return Verdict.BROKEN, [Break(BreakKind.LIEN_LIFTED_UNPAID, "the units are free and nothing is paid")]
        since_ms = own.delivered_ms or record.registered_ms
        return _unless_young(case, since_ms, BreakKind.ASSET_WITHOUT_PAYMENT, "delivered, and nothing is paid")
    if is_paid and not is_moved and standing is not None:
        why = "paid, and nothing was delivered" if own is None else "paid, and the units were given back"
        return _unless_young(case, standing.paid_ms, BreakKind.PAYMENT_WITHOUT_ASSET, why)
    expected = _expected(own, is_paid=is_paid)
    if (record.state, record.outcome) not in expected:
        if record.state is State.REGISTERED and own is None:
            return Verdict.OPEN, []
        why = f"{record.state}{record.outcome and f' {record.outcome}'}, and {_said(own, is_paid=is_paid)}"
        since_ms = max(record.changed_ms, standing.paid_ms if is_paid and standing is not None else 0)
        return _unless_young(case, since_ms, BreakKind.STATE_DIFFERS, why)
    if is_moved and own is not None and own.status == HELD:
        since_ms = record.changed_ms
        return _unless_young(case, since_ms, BreakKind.LIEN_NOT_LIFTED, "delivered and paid, and the lien is held")
    if not is_paid and standing is not None and standing.reserved_ms and not standing.released_ms:
        return _unless_young(case, record.changed_ms, BreakKind.HOLD_LEFT, f"{record.state}, and the money is held")
    return Verdict.MATCHED, []


def _expected(own: Lien | None, *, is_paid: bool) -> list[tuple[State, Outcome]]:
    """Return how an event ends where chain and account system agree; units of a cancelled one may have come late."""
    if is_paid:
        return [(State.COMPLETED, Outcome.PAID)]
    cancelled = (State.CANCELLED, Outcome.NONE)
    return [cancelled] if own is None else [cancelled, (State.COMPLETED, Outcome.REVERSED)]


def _said(own: Lien | None, *, is_paid: bool) -> str:
    if is_paid:
        return "the units are delivered and paid"
    return "nothing was delivered or paid" if own is None else "the units were given back and nothing is paid"


def _reversal(case: Case, record: Event) -> Judgement:
    """A reversal is done exactly when the lien of its trade is given back; money has no part in it."""
    is_back = case.trade is not None and case.trade.status == GIVEN_BACK
    if case.liens:
        return Judgement(Verdict.BROKEN, (Break(BreakKind.PARTIES_DIFFER, "delivered under a reversal's id"),))
    if case.standing is not None:
        return Judgement(Verdict.BROKEN, (Break(BreakKind.AMOUNT_DIFFERS, "money moved for a reversal"),))
    if record.state is State.COMPLETED and not is_back:
        verdict, found = _unless_young(case, record.changed_ms, BreakKind.STATE_DIFFERS, "COMPLETED, not given back")
        return Judgement(verdict, tuple(found))
    return Judgement(Verdict.MATCHED if record.is_finished else Verdict.OPEN)


def _unless_young(case: Case, since_ms: int, kind: BreakKind, why: str) -> tuple[Verdict, list[Break]]:
    if not case.is_late(since_ms):
        return Verdict.OPEN, []
    age_s = (case.now_ms - since_ms) // 1_000
    return Verdict.BROKEN, [Break(kind, f"{why} for {age_s} s")]
