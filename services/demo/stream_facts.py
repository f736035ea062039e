"""What must hold at the end of the stream demo, judged on facts alone. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consensus.ledger.streams import StreamRecord

CLOSED = "CLOSED"


@dataclass(frozen=True, slots=True)
class Session:
    """What one stream came to. Amounts in smallest units of the stream's unit.

    Args:
        title: for people.
        mode: who goes first.
        price, step_max: of its terms.
        iterations: how many the service party has stored, as it says; ``due`` is what the last one pays in all.
        units: how many it has supplied, as its meter says.
        uploads: transactions of the stream's lane and claims that the service party brought to the chain.
        reason: why it ended, as the service party says.
        is_burned: the payer used the number otherwise.
        is_verified: its last iteration holds, checked offline with the genesis document alone.
        record: as the chain proves it in the end.
        escrow: what the contract still holds of its deposit, proven.
    """

    title: str
    mode: str
    price: int
    step_max: int
    iterations: int
    due: int
    units: int
    uploads: int
    reason: str
    is_burned: bool
    is_verified: bool
    record: StreamRecord
    escrow: int

    @property
    def fine(self) -> int:
        """What the payer lost beyond what was due."""
        return self.record.fine if self.record.is_fined else 0

    @property
    def service_lost(self) -> int:
        """Value that was supplied and never paid."""
        return max(0, self.units * self.price - self.record.paid)

    @property
    def payer_lost(self) -> int:
        """Money that was paid for nothing, the fine apart."""
        return max(0, self.record.paid - self.units * self.price)


@dataclass(frozen=True, slots=True)
class Accident:
    """What was done, and how many iterations were stored after it."""

    name: str
    stored: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the invariants look at.

    Args:
        sessions: the streams, in order.
        wanted_iterations: how many iterations the first had to have.
        payer, service: changes of their proven balances.
        others: the same of everybody else, added.
        supply: of the unit, before and after.
        answers: what bad input was answered with, and what it had to be: name → (got, wanted).
        accidents: what died.
        seals: each node's newest sealed state.
    """

    sessions: Sequence[Session]
    wanted_iterations: int
    payer: int
    service: int
    others: int
    supply: tuple[int, int]
    answers: Mapping[str, tuple[str, str]]
    accidents: Sequence[Accident]
    seals: Mapping[str, tuple[int, bytes]]


def judge(facts: Facts) -> dict[str, bool]:
    """Return for every invariant whether it holds."""
    sessions = facts.sessions
    total = sum(item.record.paid + item.fine for item in sessions)
    held = sum(item.escrow for item in sessions)
    return {
        "many_iterations_one_upload": bool(sessions)
        and sessions[0].iterations == facts.wanted_iterations
        and all(item.uploads == 1 for item in sessions if not item.is_burned),
        "every_session_is_paid_what_was_due": bool(sessions)
        and all(item.record.paid == item.due > 0 for item in sessions),
        "nobody_loses_more_than_a_step": bool(sessions)
        and all(max(item.service_lost, item.payer_lost) <= item.step_max for item in sessions),
        "fined_where_the_number_was_burned": {item.is_burned for item in sessions} == {True, False}
        and all(item.record.is_fined == item.is_burned for item in sessions),
        "iterations_hold_offline": bool(sessions) and all(item.is_verified for item in sessions),
        "deposits_are_accounted_for": all(_is_accounted(item) for item in sessions),
        "value_conserved": facts.supply[0] == facts.supply[1]
        and (facts.service, facts.payer, facts.others) == (total, -total - held, 0),
        "bad_input_refused": bool(facts.answers) and all(got == wanted for got, wanted in facts.answers.values()),
        "went_on_whatever_died": bool(facts.accidents) and all(item.stored for item in facts.accidents),
        "state_roots_agree": len(set(facts.seals.values())) == 1,
    }


def _is_accounted(session: Session) -> bool:
    """Tell whether an open stream holds just what its deposit still is, and a closed one nothing."""
    record = session.record
    left = 0 if record.status == CLOSED else record.deposit - record.taken - session.fine
    return session.escrow == left and record.taken <= record.deposit - record.fine
