"""The service party of a stream, rule by rule (V1–V7 of ``services/stream/servicemachine.py``)."""

from dataclasses import dataclass
from typing import Any

import pytest
from msgspec.structs import replace

from consensus.ledger.keys import PrivateKey
from consensus.ledger.streams import (
    OUTAGE_MS,
    Mode,
    StreamRecord,
    Terms,
    make_iteration,
    read_iteration_untrusted,
    stream_id,
    terms_hash,
)
from services.stream.servicemachine import (
    CLOSE_PAUSE_MS,
    AgreeToClose,
    Claim,
    CloseTogether,
    Effect,
    Keep,
    Kept,
    Outcome,
    ServiceStream,
    Tell,
    Upload,
)
from services.stream.wire import Refused, Standing, Stored, Supplied
from tests.stream.examples import CHAIN_ID, NOW_MS, PAYER_KEY, TERMS, open_record


@dataclass(frozen=True)
class Lane:
    """A used lane."""

    last_id: bytes


OTHER_ID = bytes([9]) * 32


class Party:
    """A machine with terms, a clock and a chain that a test moves."""

    def __init__(self, *, is_seen: bool = True, kept: Kept | None = None, **changes: Any) -> None:
        self.terms: Terms = replace(TERMS, **changes)
        self.stream = stream_id(self.terms.payer, self.terms.service, self.terms.number)
        self.now_ms = NOW_MS
        self.record: StreamRecord = open_record(self.terms)
        kept = kept or Kept(self.stream, self.terms, opened_ms=NOW_MS)
        self.machine = ServiceStream(kept, self.record.limit)
        if is_seen:
            self.see()

    def pay(self, due: int, *, valid_ms: int = 60_000, key: PrivateKey = PAYER_KEY) -> tuple[Effect, ...]:
        until_ms = self.now_ms + valid_ms
        made = make_iteration(key, CHAIN_ID, self.terms.payer, self.stream, due, until_ms)
        fields = {"chain_id": CHAIN_ID, "payer": self.terms.payer, "stream": self.stream, "key": key.public}
        return self.machine.iterated(read_iteration_untrusted(made.raw, **fields), self.now_ms)

    def supply(self, units: int, *, is_done: bool = False) -> tuple[Effect, ...]:
        return self.machine.metered(units, is_done, self.now_ms)

    def see(self, lane: Lane | None = None, *, time_ms: int | None = None, **changes: Any) -> tuple[Effect, ...]:
        """See the chain, with fields of the stream's record changed for good."""
        self.record = replace(self.record, **changes)
        return self.machine.chain_seen(self.record, lane, self.now_ms if time_ms is None else time_ms, 0)

    def wait(self, time_ms: int) -> tuple[Effect, ...]:
        self.now_ms += time_ms
        return self.machine.ticked(self.now_ms)

    def stream_units(self, units: int) -> None:
        """Supply and be paid, unit by unit, in either mode."""
        for count in range(1, units + 1):
            if self.terms.mode == Mode.PAYMENT_FIRST:
                self.pay(count * 5)
                self.supply(count)
            else:
                self.supply(count)
                self.pay(count * 5)


def codes(effects: tuple[Effect, ...]) -> list[str]:
    """Codes of what was refused."""
    return [each.message.code for each in effects if isinstance(each, Tell) and isinstance(each.message, Refused)]


def kinds(effects: tuple[Effect, ...]) -> list[str]:
    """Names of effects, and of what is told."""
    return [type(each.message).__name__ if isinstance(each, Tell) else type(each).__name__ for each in effects]


# -- V1, V2: what may be supplied ----------------------------------------------------------------------------


def test_nothing_is_supplied_or_taken_before_the_chain_shows_the_stream_with_these_terms() -> None:
    """R88: an opening is only a word before the chain's record is there."""
    party = Party(is_seen=False)
    assert party.machine.chain_seen(None, None, NOW_MS, 0) == ()
    assert party.see(terms_hash=OTHER_ID) == ()
    assert party.machine.allowed_units == 0
    assert codes(party.pay(5)) == ["chain_unseen"]
    assert kinds(party.see(terms_hash=terms_hash(party.terms))) == ["Standing"]
    assert party.machine.allowed_units == 2


def test_nothing_more_is_supplied_while_a_withdrawal_could_go_unnoticed() -> None:
    party = Party(window_ms=180_000, step_ms=3_600_000)
    party.machine.ticked(NOW_MS)
    blind_ms = 180_000 - 60_000 - 5_000 - OUTAGE_MS
    party.wait(blind_ms)
    assert party.machine.allowed_units == 2
    party.supply(2)
    party.wait(1)
    assert party.machine.allowed_units == 2
    assert codes(party.pay(10)) == ["chain_unseen"]
    assert kinds(party.see()) == ["Standing"]
    assert kinds(party.pay(10)) == ["Keep", "Stored"]
    assert party.machine.allowed_units == 4


@pytest.mark.parametrize(
    ("mode", "due", "allowed"),
    [
        (Mode.SERVICE_FIRST, 0, 2),
        (Mode.SERVICE_FIRST, 5, 3),
        (Mode.SERVICE_FIRST, 10, 4),
        (Mode.PAYMENT_FIRST, 0, 0),
        (Mode.PAYMENT_FIRST, 5, 1),
        (Mode.PAYMENT_FIRST, 10, 2),
    ],
)
def test_the_meter_is_allowed_what_is_paid_and_service_first_a_step_more(mode: Mode, due: int, allowed: int) -> None:
    party = Party(mode=int(mode))
    if mode == Mode.SERVICE_FIRST:
        party.supply(due // 5)
    if due:
        assert kinds(party.pay(due)) == ["Keep", "Stored"]
    assert party.machine.allowed_units == allowed


def test_no_unit_is_supplied_that_deposit_credit_and_amount_would_not_pay() -> None:
    assert Party(deposit=107).machine.allowed_units == 1
    assert Party(deposit=107, credit=3).machine.allowed_units == 2
    assert Party(amount_max=9).machine.allowed_units == 1
    topped_up = Party(deposit=107)
    topped_up.see(deposit=117)
    assert topped_up.machine.allowed_units == 2


# -- V3: which iterations are good ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "due", "code"),
    [
        (Mode.SERVICE_FIRST, 5, ""),
        (Mode.SERVICE_FIRST, 10, ""),
        (Mode.SERVICE_FIRST, 15, "wrong_amount"),
        (Mode.SERVICE_FIRST, 9, "wrong_amount"),
        (Mode.PAYMENT_FIRST, 20, ""),
        (Mode.PAYMENT_FIRST, 25, "wrong_amount"),
        (Mode.PAYMENT_FIRST, 19, "wrong_amount"),
    ],
)
def test_a_total_is_a_multiple_of_the_price_and_within_what_was_supplied(mode: Mode, due: int, code: str) -> None:
    """S4.7: a wrong amount ends the stream, and the last correct one is uploaded."""
    party = Party(mode=int(mode))
    if mode == Mode.PAYMENT_FIRST:
        party.pay(10)
    party.supply(2)
    before = party.machine.kept
    effects = party.pay(due)
    if not code:
        assert kinds(effects) == ["Keep", "Stored"]
        assert party.machine.kept.due == due
        return
    assert codes(effects) == [code]
    assert (party.machine.kept.due, party.machine.kept.raw) == (before.due, before.raw)
    assert party.machine.kept.reason == "wrong_amount"
    assert party.machine.allowed_units == 2
    assert [each for each in effects if isinstance(each, Upload)] == ([Upload(before.raw)] if before.raw else [])


def test_an_iteration_above_deposit_and_credit_is_wrong() -> None:
    party = Party(mode=int(Mode.PAYMENT_FIRST), deposit=106)
    assert codes(party.pay(10)) == ["wrong_amount"]
    assert kinds(Party(mode=int(Mode.PAYMENT_FIRST), deposit=106, credit=4).pay(10))[:2] == ["Keep", "Stored"]


def test_an_old_iteration_changes_nothing_and_the_same_is_acknowledged_again() -> None:
    """R87: whoever copied an iteration can neither end a stream with it nor lower what is due."""
    party = Party()
    party.stream_units(3)
    before = party.machine.kept
    assert codes(party.pay(10)) == ["old_iteration"]
    assert party.pay(15, valid_ms=59_000) == (Tell(Stored(party.stream, 15)),)
    assert party.machine.kept == before


def test_the_same_total_that_is_valid_for_longer_renews() -> None:
    party = Party(step_ms=3_600_000)
    party.stream_units(1)
    party.now_ms += 30_000
    assert kinds(party.pay(5)) == ["Keep", "Stored"]
    assert party.machine.kept.valid_until_ms == party.now_ms + 60_000
    assert party.machine.kept.count == 1


@pytest.mark.parametrize(("valid_ms", "is_good"), [(10_000, False), (10_001, True), (65_000, True), (65_001, False)])
def test_an_iteration_is_valid_for_the_margin_and_not_for_longer_than_agreed(valid_ms: int, is_good: bool) -> None:
    """Else it might expire before it is uploaded, or not before the window ends."""
    party = Party()
    party.supply(1)
    effects = party.pay(5, valid_ms=valid_ms)
    assert kinds(effects) == (["Keep", "Stored"] if is_good else ["Refused"])
    assert party.machine.kept.status == "STREAMING"


def test_what_is_told_is_kept_before() -> None:
    party = Party()
    assert party.supply(1) == (Keep(), Tell(Supplied(party.stream, 1, 5)))
    assert party.supply(1) == ()
    assert party.pay(5) == (Keep(), Tell(Stored(party.stream, 5)))


# -- V5: ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(
    ("reason", "changes", "units"),
    [
        ("count", {"count_max": 3}, 3),
        ("amount", {"amount_max": 19}, 3),
        ("deposit", {"deposit": 119}, 3),
    ],
)
def test_a_stream_ends_where_it_was_agreed(mode: Mode, reason: str, changes: dict[str, int], units: int) -> None:
    """S4.5: on the agreed end the last one is uploaded, once."""
    party = Party(mode=int(mode), **changes)
    party.stream_units(units - 1)
    assert party.machine.kept.status == "STREAMING"
    party.stream_units(units)
    kept = party.machine.kept
    assert (kept.status, kept.reason, kept.due, kept.units) == ("UPLOADED", reason, 15, units)
    assert party.machine.allowed_units == units


def test_service_first_no_more_is_supplied_than_the_agreed_count_can_pay() -> None:
    """A meter at full speed: each unit may come to be an iteration of its own."""
    party = Party(count_max=3, step_max=50)
    party.supply(2)
    assert party.machine.allowed_units == 10
    party.supply(3)
    assert party.machine.allowed_units == 3
    party.pay(5)
    assert party.machine.allowed_units == 3
    party.pay(15)
    assert party.machine.allowed_units == 13
    party.supply(4)
    assert party.machine.allowed_units == 4
    assert kinds(party.pay(20))[-1] == "Upload"
    assert party.machine.kept.count == 3


def test_the_last_step_is_paid_before_the_stream_ends_by_time() -> None:
    party = Party(duration_ms_max=30_000, step_ms=20_000)
    party.stream_units(1)
    party.now_ms += 20_000
    party.supply(2)
    assert party.wait(10_000) == ()
    assert party.machine.allowed_units == 2
    assert kinds(party.pay(10)) == ["Keep", "Stored", "Keep", "Standing", "Keep", "Upload"]
    assert party.machine.kept.reason == "time"


def test_what_was_paid_is_supplied_before_a_stream_ends() -> None:
    party = Party(mode=int(Mode.PAYMENT_FIRST), count_max=1)
    assert kinds(party.pay(10)) == ["Keep", "Stored"]
    assert party.machine.allowed_units == 2
    party.supply(1)
    assert party.machine.kept.status == "STREAMING"
    assert kinds(party.supply(2)) == ["Keep", "Supplied", "Keep", "Standing", "Keep", "Upload"]


def test_payment_first_and_ended_nothing_is_taken_that_would_not_be_supplied() -> None:
    party = Party(mode=int(Mode.PAYMENT_FIRST), count_max=1)
    party.pay(5)
    assert codes(party.pay(10)) == ["stream_ended"]
    assert party.machine.kept.due == 5


@pytest.mark.parametrize("mode", list(Mode))
def test_a_meter_that_is_done_ends_the_stream(mode: Mode) -> None:
    party = Party(mode=int(mode))
    party.stream_units(2)
    party.supply(2, is_done=True)
    assert (party.machine.kept.status, party.machine.kept.reason) == ("UPLOADED", "meter")


@pytest.mark.parametrize("mode", list(Mode))
def test_a_payer_that_is_silent_when_it_is_its_turn_ends_the_stream(mode: Mode) -> None:
    """S4.7: time-out; the last correct one is uploaded. Silence is right when it is not the payer's turn."""
    party = Party(mode=int(mode))
    party.stream_units(1)
    if mode == Mode.SERVICE_FIRST:
        assert party.wait(20_000) == ()
        party.supply(2)
    else:
        party.pay(10)
        assert party.wait(20_000) == ()
        party.supply(2)
    assert party.wait(4_999) == ()
    assert "Upload" in kinds(party.wait(1))
    assert party.machine.kept.reason == "timeout"


def test_only_a_higher_total_stops_the_time_out() -> None:
    party = Party()
    party.stream_units(1)
    party.supply(2)
    party.wait(4_000)
    assert kinds(party.pay(5, valid_ms=50_000)) == ["Stored"]
    assert kinds(party.pay(5, valid_ms=61_000)) == ["Keep", "Stored"]
    assert "Upload" in kinds(party.wait(1_000))


def test_an_iteration_is_uploaded_a_margin_before_it_expires() -> None:
    party = Party(step_ms=3_600_000)
    party.stream_units(1)
    assert party.wait(49_999) == ()
    raw = party.machine.kept.raw
    assert party.wait(1)[-1] == Upload(raw)
    assert party.machine.kept.reason == "expiry"


def test_a_withdrawal_ends_the_stream_at_once() -> None:
    party = Party()
    party.stream_units(1)
    party.supply(3)
    assert kinds(party.see(withdraw_at_uptime_ms=200_000)) == ["Keep", "Standing", "Keep", "Upload"]
    assert party.machine.kept.reason == "withdrawal"
    assert party.machine.allowed_units == 3


def test_the_owner_ends_a_stream_once() -> None:
    party = Party()
    party.stream_units(1)
    assert kinds(party.machine.end("owner", NOW_MS)) == ["Keep", "Standing", "Keep", "Upload"]
    assert party.machine.end("owner", NOW_MS) == ()


# -- close ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "due", "is_good"),
    [
        (Mode.SERVICE_FIRST, 5, True),
        (Mode.SERVICE_FIRST, 10, True),
        (Mode.SERVICE_FIRST, 0, False),
        (Mode.SERVICE_FIRST, 15, False),
        (Mode.PAYMENT_FIRST, 15, True),
        (Mode.PAYMENT_FIRST, 10, True),
        (Mode.PAYMENT_FIRST, 5, False),
        (Mode.PAYMENT_FIRST, 20, False),
    ],
)
def test_a_close_is_taken_with_what_is_paid_or_supplied(mode: Mode, due: int, is_good: bool) -> None:
    """One paid and two supplied, or three paid and two supplied."""
    party = Party(mode=int(mode))
    party.stream_units(1)
    if mode == Mode.PAYMENT_FIRST:
        party.pay(15)
    party.supply(2)
    effects = party.machine.close_asked(due, b"signature", NOW_MS)
    assert codes(effects) == ([] if is_good else ["bad_close"])
    assert kinds(effects)[-2:] == ["Keep", "Standing"]
    assert party.machine.kept.reason == "close"
    assert party.machine.allowed_units == 2
    assert party.wait(CLOSE_PAUSE_MS - 1) == party.see() == ()
    if is_good:
        assert party.wait(1) == (CloseTogether(due, b"signature"),)
    else:
        assert party.wait(1) == ()
        assert kinds(party.see()) == ["Keep", "Upload"]


@pytest.mark.parametrize("mode", list(Mode))
def test_units_that_were_on_their_way_when_a_close_was_asked_for_are_told_and_paid(mode: Mode) -> None:
    """The payer has not heard of the second unit, and the third comes after it has asked."""
    party = Party(mode=int(mode), step_max=15)
    party.pay(15) if mode == Mode.PAYMENT_FIRST else None
    party.supply(2)
    party.machine.close_asked(5, b"one", NOW_MS)
    effects = party.supply(3)
    assert kinds(effects) == ["Keep", "Supplied", "Standing"]
    assert party.machine.close_asked(15, b"three", NOW_MS) == ()
    party.machine.close_asked(5, b"one", NOW_MS)
    assert party.wait(CLOSE_PAUSE_MS) == (CloseTogether(15, b"three"),)


def test_a_close_that_the_chain_refuses_is_followed_by_the_upload() -> None:
    party = Party()
    party.stream_units(2)
    party.machine.close_asked(10, b"signature", NOW_MS)
    party.wait(CLOSE_PAUSE_MS)
    assert party.see() == ()
    assert kinds(party.machine.uploaded(Outcome.REFUSED, party.now_ms)) == ["Keep", "Upload"]


def test_a_close_of_which_nothing_is_known_is_tried_again() -> None:
    party = Party()
    party.stream_units(2)
    party.machine.close_asked(10, b"signature", NOW_MS)
    party.wait(CLOSE_PAUSE_MS)
    assert party.machine.uploaded(Outcome.UNKNOWN, party.now_ms) == ()
    assert party.see() == (CloseTogether(10, b"signature"),)
    assert party.machine.uploaded(Outcome.FINAL, NOW_MS) == ()
    assert kinds(party.see(status="CLOSED", paid=10)) == ["Keep", "Standing"]
    assert party.machine.kept.status == "CLOSED"


def test_a_close_is_no_longer_taken_once_the_iteration_was_uploaded() -> None:
    party = Party()
    party.stream_units(2)
    party.machine.end("owner", NOW_MS)
    assert codes(party.machine.close_asked(10, b"signature", NOW_MS)) == ["stream_ended"]


# -- V6, V7: collecting --------------------------------------------------------------------------------------


def ended(**changes: Any) -> Party:
    """A party whose stream of four units, 20 in all, has ended, with the upload's fate unknown."""
    party = Party(**changes)
    party.stream_units(4)
    party.machine.end("owner", party.now_ms)
    party.machine.uploaded(Outcome.UNKNOWN, party.now_ms)
    return party


def test_an_upload_is_repeated_until_the_chain_shows_it() -> None:
    party = ended()
    assert kinds(party.see()) == ["Keep", "Upload"]
    assert party.see() == ()
    party.machine.uploaded(Outcome.UNKNOWN, party.now_ms)
    party.machine.uploaded(Outcome.FINAL, party.now_ms)
    upload_id = party.machine.kept.upload_id
    effects = party.see(Lane(upload_id), settled_by=upload_id, paid=20)
    assert kinds(effects) == ["Keep", "Standing", "AgreeToClose"]
    assert effects[-1] == AgreeToClose(20)
    assert party.machine.kept.status == "SETTLED"
    assert party.see(Lane(upload_id)) == ()


def test_a_number_used_otherwise_is_claimed_with_the_fine() -> None:
    """S4.9, S4.10: also where nothing is due above what was paid before."""
    party = ended()
    raw = party.machine.kept.raw
    assert party.see(Lane(OTHER_ID), paid=20, taken=20) == (Claim(raw),)
    assert party.see(Lane(OTHER_ID)) == ()
    party.machine.uploaded(Outcome.FINAL, party.now_ms)
    assert kinds(party.see(Lane(OTHER_ID), is_fined=True)) == ["Keep", "Standing", "AgreeToClose"]
    assert party.machine.kept.status == "CLAIMED"


def test_a_number_used_while_the_stream_runs_ends_it() -> None:
    party = Party()
    party.stream_units(2)
    raw = party.machine.kept.raw
    assert kinds(party.see(Lane(OTHER_ID))) == ["Keep", "Standing", "Claim"]
    assert (party.machine.kept.reason, party.machine.kept.raw) == ("used", raw)
    assert party.machine.allowed_units == 2


def test_a_settlement_with_less_is_followed_by_a_claim_of_the_rest() -> None:
    """R86: the larger total counts, whichever came first."""
    party = ended()
    raw = party.machine.kept.raw
    assert party.see(Lane(OTHER_ID), settled_by=OTHER_ID, paid=10) == (Claim(raw),)
    party.machine.uploaded(Outcome.FINAL, party.now_ms)
    assert kinds(party.see(Lane(OTHER_ID), paid=20, taken=10))[-1] == "AgreeToClose"
    assert party.machine.kept.status == "SETTLED"


@pytest.mark.parametrize(("past_ms", "is_claimed"), [(0, False), (1, True)])
def test_an_expired_iteration_is_claimed_and_not_before(past_ms: int, is_claimed: bool) -> None:
    party = ended()
    until_ms = party.machine.kept.valid_until_ms
    assert kinds(party.see(time_ms=until_ms + past_ms)) == (["Claim"] if is_claimed else ["Keep", "Upload"])


def test_an_iteration_that_expired_on_an_idle_chain_is_claimed_by_the_clock() -> None:
    party = ended()
    party.wait(60_001)
    assert kinds(party.see(time_ms=NOW_MS)) == ["Claim"]


def test_what_only_credit_covers_is_not_claimed_for_ever() -> None:
    party = ended(deposit=110, credit=40)
    assert kinds(party.see(Lane(OTHER_ID), paid=10, taken=10, is_fined=True)) == ["Keep", "Standing"]
    assert party.machine.kept.status == "CLAIMED"
    assert party.see(Lane(OTHER_ID)) == ()
    assert kinds(party.see(Lane(OTHER_ID), deposit=120)) == ["Claim"]


def test_no_fine_is_claimed_where_none_was_agreed() -> None:
    party = ended(fine=0)
    assert kinds(party.see(Lane(OTHER_ID), paid=20)) == ["Keep", "Standing", "AgreeToClose"]


def test_a_stream_that_nothing_was_paid_in_is_agreed_to_be_closed() -> None:
    party = Party()
    party.machine.end("owner", NOW_MS)
    assert kinds(party.see()) == ["Keep", "Standing", "AgreeToClose"]
    assert party.machine.kept.status == "SETTLED"


@pytest.mark.parametrize(("paid", "status"), [(20, "CLOSED"), (19, "LOST")])
def test_a_stream_that_was_closed_with_less_is_lost(paid: int, status: str) -> None:
    party = ended()
    assert kinds(party.see(status="CLOSED", paid=paid)) == ["Keep", "Standing"]
    assert party.machine.kept.status == status
    assert codes(party.pay(20)) == ["stream_ended"]
    assert party.see() == ()


def test_once_it_ends_no_iteration_is_taken_that_would_outlast_the_one_that_is_collected() -> None:
    """Else a payer delays the claim until its withdrawal's window has ended."""
    party = Party()
    party.stream_units(1)
    party.supply(2)
    party.machine.end("timeout", NOW_MS)
    before = party.machine.kept
    assert codes(party.pay(10)) == ["stream_ended"]
    assert kinds(party.pay(5, valid_ms=61_000)) == ["Stored"]
    assert party.machine.kept == before


# -- restarts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["ENDING", "UPLOADED"])
def test_a_restart_goes_on_with_the_upload(status: str) -> None:
    party = Party()
    party.stream_units(2)
    again = Party(is_seen=False, kept=replace(party.machine.kept, status=status, reason="count"))
    assert kinds(again.see()) == ["Keep", "Upload"]


def test_a_restart_goes_on_with_the_stream_and_gives_the_payer_its_time() -> None:
    party = Party()
    party.stream_units(2)
    party.supply(3)
    again = Party(is_seen=False, kept=party.machine.kept)
    again.now_ms += 20_000
    assert again.wait(0) == ()
    assert again.machine.allowed_units == 3
    assert again.machine.asked() == (Tell(Standing(again.stream, 10, 2, 3, "STREAMING", "")),)
    again.see()
    assert again.wait(4_999) == ()
    assert kinds(again.pay(15)) == ["Keep", "Stored"]
    assert again.machine.allowed_units == 5


def test_a_settled_stream_is_agreed_to_be_closed_again_when_the_payer_comes_back() -> None:
    party = ended()
    party.see(Lane(OTHER_ID), settled_by=OTHER_ID, paid=20)
    again = Party(is_seen=False, kept=party.machine.kept)
    assert kinds(again.machine.asked()) == ["Standing"]
    again.see(Lane(OTHER_ID), settled_by=OTHER_ID, paid=20)
    assert kinds(again.machine.asked()) == ["Standing", "AgreeToClose"]
