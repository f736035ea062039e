"""The payer of a stream, rule by rule (P1–P4 of ``services/stream/payermachine.py``)."""

from typing import Any

import pytest
from msgspec.structs import replace

from consensus.ledger.streams import Mode, Terms, stream_id
from services.stream.payermachine import (
    AskClose,
    CloseTogether,
    Effect,
    Keep,
    Owed,
    PayerStream,
    Send,
    Sign,
    Stop,
)
from services.stream.wire import Challenge, Closed, Iterate, Refused, Standing, Stored, Supplied, Told
from tests.stream.examples import NOW_MS, TERMS, open_record

SIGNATURE = bytes(64)


class Party:
    """A machine with terms and a clock that a test moves; what it wants signed is signed at once."""

    def __init__(self, *, has_meter: bool = False, owed: Owed | None = None, **changes: Any) -> None:
        self.terms: Terms = replace(TERMS, **changes)
        self.stream = stream_id(self.terms.payer, self.terms.service, self.terms.number)
        self.now_ms = NOW_MS
        owed = owed or Owed(self.stream, self.terms, opened_ms=NOW_MS)
        self.machine = PayerStream(owed, open_record(self.terms).limit, has_meter=has_meter)

    def told(self, message: Told) -> tuple[Effect, ...]:
        return self.sign(self.machine.told(message, self.now_ms))

    def standing(self, due: int = 0, units: int = 0, status: str = "STREAMING") -> tuple[Effect, ...]:
        return self.told(Standing(self.stream, due, 0, units, status, ""))

    def supplied(self, units: int, due: int | None = None) -> tuple[Effect, ...]:
        return self.told(Supplied(self.stream, units, units * 5 if due is None else due))

    def stored(self, due: int) -> tuple[Effect, ...]:
        return self.told(Stored(self.stream, due))

    def closed(self, due: int) -> tuple[Effect, ...]:
        return self.told(Closed(self.stream, due, SIGNATURE))

    def wait(self, time_ms: int) -> tuple[Effect, ...]:
        self.now_ms += time_ms
        return self.sign(self.machine.ticked(self.now_ms))

    def metered(self, units: int) -> tuple[Effect, ...]:
        return self.sign(self.machine.metered(units, self.now_ms))

    def sign(self, effects: tuple[Effect, ...]) -> tuple[Effect, ...]:
        for effect in effects:
            if isinstance(effect, Sign):
                raw = b"iteration %d" % effect.due
                following = self.machine.signed(raw, self.now_ms + self.terms.validity_ms)
                assert following == (Keep(), Send(Iterate(self.stream, raw)))
        return effects


def signed(effects: tuple[Effect, ...]) -> list[int]:
    """Totals that were signed."""
    return [effect.due for effect in effects if isinstance(effect, Sign)]


def stopped(effects: tuple[Effect, ...]) -> list[str]:
    """Reasons why nothing more is paid."""
    return [effect.reason for effect in effects if isinstance(effect, Stop)]


# -- P1: what is signed --------------------------------------------------------------------------------------


def test_service_first_what_was_supplied_is_signed_and_nothing_before() -> None:
    """S4.12, S4.3: the total so far."""
    party = Party()
    assert party.standing() == ()
    assert signed(party.supplied(1)) == [5]
    assert signed(party.supplied(3)) == [15]
    assert party.supplied(3) == ()
    assert party.supplied(2) == ()


def test_payment_first_one_step_is_signed_ahead_and_no_more() -> None:
    """S4.13."""
    party = Party(mode=int(Mode.PAYMENT_FIRST), step_max=12)
    assert signed(party.standing()) == [10]
    assert party.stored(10) == ()
    assert signed(party.supplied(1)) == [15]
    assert party.machine.owed.signed_due == 15


def test_nothing_is_signed_before_it_is_known_where_the_other_side_stands() -> None:
    assert Party(mode=int(Mode.PAYMENT_FIRST)).wait(0) == ()


def test_the_own_meter_counts() -> None:
    """What it has not counted is not paid; what it denies for too long ends the stream."""
    party = Party(has_meter=True)
    party.standing()
    party.metered(1)
    assert signed(party.supplied(2)) == [5]
    assert party.wait(4_000) == ()
    assert signed(party.metered(2)) == [10]
    party.supplied(3)
    assert party.wait(4_999) == ()
    assert stopped(party.wait(1)) == ["meter"]
    assert party.machine.owed.signed_due == 10


def test_the_own_meter_alone_makes_nothing_due() -> None:
    party = Party(has_meter=True)
    party.standing()
    assert party.metered(5) == ()


# -- P2: bounds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "most"), [({"deposit": 108}, 5), ({"deposit": 108, "credit": 7}, 15), ({"amount_max": 12}, 10)]
)
def test_nothing_is_signed_above_deposit_credit_and_amount(changes: dict[str, int], most: int) -> None:
    party = Party(**changes)
    party.standing()
    for units in range(1, 5):
        party.supplied(units)
    assert party.machine.owed.signed_due == most


def test_a_top_up_lets_more_be_signed() -> None:
    party = Party(deposit=105)
    party.standing()
    assert signed(party.supplied(2)) == [5]
    party.machine.chain_seen(replace(open_record(party.terms), deposit=110))
    assert signed(party.wait(0)) == [10]


@pytest.mark.parametrize("changes", [{"count_max": 2}, {"duration_ms_max": 3_000}])
def test_at_an_agreed_end_nothing_is_signed_ahead(changes: dict[str, int]) -> None:
    party = Party(mode=int(Mode.PAYMENT_FIRST), **changes)
    assert signed(party.standing()) == [10]
    assert signed(party.supplied(1)) == [15]
    party.now_ms += 3_000
    assert party.supplied(2) == ()
    assert party.supplied(3) == ()


def test_service_first_what_was_supplied_is_paid_after_the_agreed_end_too() -> None:
    party = Party(duration_ms_max=1_000)
    party.standing()
    party.supplied(1)
    party.now_ms += 1_000
    assert signed(party.supplied(2)) == [10]


def test_service_first_what_comes_after_the_agreed_count_is_paid_by_a_close() -> None:
    party = Party(count_max=1)
    party.standing()
    assert signed(party.supplied(1)) == [5]
    assert party.supplied(2) == (Keep(), AskClose(10), Stop("count"))


def test_the_last_iteration_of_the_agreed_count_waits_for_the_payers_own_meter() -> None:
    party = Party(has_meter=True, count_max=2)
    party.standing()
    party.supplied(2)
    assert signed(party.machine.metered(1, NOW_MS)) == [5]
    party.supplied(3)
    assert party.machine.metered(2, NOW_MS) == ()
    assert signed(party.machine.metered(3, NOW_MS)) == [15]


def test_after_a_restart_what_the_other_side_lacks_is_sent_again_and_nothing_lower_is_signed() -> None:
    party = Party()
    party.standing()
    party.supplied(2)
    again = Party(owed=party.machine.owed)
    assert again.standing(due=5, units=1) == (Send(Iterate(again.stream, b"iteration 10")),)
    assert signed(again.supplied(3)) == [15]


def test_after_a_crash_before_it_was_kept_the_same_is_signed_again() -> None:
    party = Party()
    party.standing()
    assert party.machine.told(Supplied(party.stream, 1, 5), NOW_MS) == (Sign(5),)
    again = Party()
    assert signed(again.standing(units=1)) == [5]


# -- renewal -------------------------------------------------------------------------------------------------


def test_the_last_total_is_signed_again_before_it_expires() -> None:
    """Valid for 60 s with a margin of 10 s: renewed when less than a quarter of 50 s is left."""
    party = Party(step_ms=3_600_000)
    party.standing()
    party.supplied(1)
    assert party.wait(37_500) == ()
    assert signed(party.wait(1)) == [5]
    assert party.machine.owed.count == 1
    assert party.wait(37_500) == ()


def test_a_refused_validity_makes_the_same_total_be_signed_again() -> None:
    party = Party()
    party.standing()
    party.supplied(1)
    assert party.told(Refused(party.stream, "bad_validity", "")) == ()
    assert signed(party.wait(1)) == [5]
    assert party.wait(1) == ()


# -- P3: what makes it stop ----------------------------------------------------------------------------------


def test_a_due_that_is_not_price_times_units_stops() -> None:
    party = Party()
    party.standing()
    assert stopped(party.supplied(1, due=6)) == ["wrong_amount"]
    assert party.supplied(2) == ()
    assert party.machine.owed.signed_due == 0


@pytest.mark.parametrize(("mode", "units", "is_good"), [(0, 2, True), (0, 3, False), (1, 2, True), (1, 3, False)])
def test_units_beyond_a_step_or_beyond_what_was_paid_stop(mode: int, units: int, is_good: bool) -> None:
    party = Party(mode=mode)
    party.standing()
    effects = party.supplied(units)
    assert stopped(effects) == ([] if is_good else ["wrong_amount"])
    assert bool(signed(effects)) == is_good


@pytest.mark.parametrize("message", ["stored", "standing"])
def test_an_iteration_that_was_never_signed_stops(message: str) -> None:
    party = Party()
    party.standing()
    effects = party.stored(5) if message == "stored" else party.standing(due=5)
    assert stopped(effects) == ["wrong_amount"]


def test_silence_stops() -> None:
    party = Party()
    party.standing()
    party.wait(0)
    assert party.wait(4_999) == ()
    party.supplied(1)
    assert party.wait(4_999) == ()
    party.stored(5)
    assert party.wait(4_999) == ()
    party.stored(5)
    assert stopped(party.wait(1)) == ["timeout"]


def test_who_was_never_heard_of_ends_nothing() -> None:
    party = Party()
    assert party.wait(50_000) == ()
    party.standing()
    assert party.wait(4_999) == ()
    assert stopped(party.wait(1)) == ["timeout"]


def test_an_end_that_the_other_side_tells_of_stops_without_a_close() -> None:
    party = Party()
    party.standing()
    party.supplied(1)
    effects = party.told(Standing(party.stream, 5, 1, 1, "UPLOADED", "count"))
    assert effects == (Keep(), Stop("count"))


@pytest.mark.parametrize("code", ["wrong_amount", "stream_ended"])
def test_a_refusal_that_ends_the_stream_stops(code: str) -> None:
    party = Party()
    party.standing()
    assert stopped(party.told(Refused(party.stream, code, ""))) == [code]


def test_other_refusals_and_other_streams_messages_change_nothing() -> None:
    party = Party()
    party.standing()
    before = party.machine.owed
    other = bytes(32)
    messages: list[Told] = [Refused(party.stream, "old_iteration", ""), Challenge(bytes(32))]
    messages += [
        Stored(other, 5),
        Supplied(other, 1, 5),
        Closed(other, 5, SIGNATURE),
        Refused(other, "wrong_amount", ""),
    ]
    for message in messages:
        assert party.told(message) == ()
    assert party.machine.owed == before


def test_a_stream_that_was_settled_stops() -> None:
    party = Party()
    party.standing()
    settled = replace(open_record(party.terms), settled_by=bytes(32), paid=5)
    assert stopped(party.machine.chain_seen(settled)) == ["settled"]
    assert party.machine.chain_seen(settled) == ()


# -- P4: closing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "due"), [(Mode.SERVICE_FIRST, 10), (Mode.PAYMENT_FIRST, 10)])
def test_who_wants_to_end_signs_a_close_with_what_was_supplied(mode: Mode, due: int) -> None:
    """Payment first that is less than what was signed ahead."""
    party = Party(mode=int(mode))
    party.standing()
    party.supplied(1)
    party.supplied(2)
    assert party.machine.stop("user") == (Keep(), AskClose(due), Stop("user"))
    assert party.machine.owed.status == "STOPPED"
    assert party.machine.stop("user") == (Keep(), AskClose(due))
    assert party.supplied(3) == ()


def test_a_close_that_was_lost_is_asked_for_again_on_the_next_connection() -> None:
    party = Party()
    party.standing()
    party.supplied(2)
    party.machine.stop("user")
    again = Party(owed=party.machine.owed)
    assert again.standing(due=10, units=2) == (Keep(), AskClose(10))
    assert again.standing(due=10, units=2, status="UPLOADED") == ()


@pytest.mark.parametrize(("due", "is_good"), [(5, True), (10, True), (11, False)])
def test_a_close_that_the_other_side_agrees_to_is_taken_up_to_what_was_signed(due: int, is_good: bool) -> None:
    party = Party()
    party.standing()
    party.supplied(2)
    effects = party.closed(due)
    if is_good:
        assert effects == (Keep(), Stop("ended"), Keep(), CloseTogether(due, SIGNATURE))
        assert party.machine.owed.status == "CLOSING"
    else:
        assert effects == ()
        assert party.machine.owed.status == "PAYING"


def test_a_close_that_the_chain_refused_may_be_agreed_to_again() -> None:
    party = Party()
    party.standing()
    party.supplied(1)
    party.closed(0)
    assert party.machine.close_failed() == (Keep(),)
    assert party.closed(5) == (Keep(), CloseTogether(5, SIGNATURE))


def test_a_closed_stream_moves_no_more() -> None:
    party = Party()
    party.standing()
    party.supplied(1)
    assert party.machine.chain_seen(replace(open_record(party.terms), status="CLOSED", paid=5)) == (Keep(),)
    assert party.machine.owed.status == "CLOSED"
    assert party.supplied(2) == party.closed(5) == party.wait(60_000) == party.machine.stop("user") == ()
    assert party.machine.chain_seen(open_record(party.terms)) == ()
