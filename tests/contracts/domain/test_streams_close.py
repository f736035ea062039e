"""Deposits that grow and go back: top-up, withdrawal after its window, close by both; a closed stream never moves."""

import pytest

from consensus.ledger.ids import ZERO_HASH, ChainId
from consensus.ledger.keys import Purpose
from consensus.ledger.receipt import FAILED
from consensus.ledger.streams import AMOUNT_MAX, OUTAGE_MS, close_hash
from tests.contracts.domain.streams import FUNDS, OTHER, PAYER, SERVICE, Streams


@pytest.fixture
def streams() -> Streams:
    return Streams()


# -- top-up ------------------------------------------------------------------------------------------------


def test_a_top_up_adds_to_the_deposit(streams: Streams) -> None:
    stream = streams.open()
    assert streams.call(PAYER, "top_up", stream=stream, amount=500) == 1_500
    assert (streams.record(stream).deposit, streams.escrow(stream)) == (1_500, 1_500)
    assert streams.balance(PAYER) == FUNDS - 1_500
    assert streams.record(stream).limit == 1_400
    for name in (SERVICE, OTHER):
        streams.fails("not_allowed", name, "top_up", stream=stream, amount=1)
    streams.fails("insufficient_funds", PAYER, "top_up", stream=stream, amount=FUNDS)
    streams.fails("overflow", PAYER, "top_up", stream=stream, amount=AMOUNT_MAX - 1_499)
    streams.fails("insufficient_funds", PAYER, "top_up", stream=stream, amount=AMOUNT_MAX - 1_500)
    streams.fails("bad_arguments", PAYER, "top_up", stream=stream, amount=0)


# -- withdrawal --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late_ms", [-1, 0, 1])
def test_a_deposit_goes_back_after_the_window_and_not_before(streams: Streams, late_ms: int) -> None:
    stream = streams.open()
    streams.fails("no_withdrawal", PAYER, "withdraw", stream=stream)
    at = streams.chain.next_uptime_ms + 150_000
    assert streams.call(PAYER, "request_withdrawal", stream=stream) == at
    assert streams.record(stream).withdraw_at_uptime_ms == at
    streams.chain.wait_until_uptime(at + late_ms)
    if late_ms < 0:
        streams.fails("window_open", PAYER, "withdraw", stream=stream)
        return
    assert streams.call(PAYER, "withdraw", stream=stream) == 1_000
    assert (streams.balance(PAYER), streams.escrow(stream), streams.record(stream).status) == (FUNDS, 0, "CLOSED")


def test_asking_again_begins_no_new_window(streams: Streams) -> None:
    stream = streams.open()
    at = streams.call(PAYER, "request_withdrawal", stream=stream)
    streams.chain.wait(50_000)
    assert streams.call(PAYER, "request_withdrawal", stream=stream) == at
    assert streams.events() == []
    assert streams.record(stream).withdraw_at_uptime_ms == at


@pytest.mark.parametrize("method", ["request_withdrawal", "withdraw"])
def test_only_the_payer_withdraws(streams: Streams, method: str) -> None:
    stream = streams.open()
    for name in (SERVICE, OTHER):
        streams.fails("not_allowed", name, method, stream=stream)


def test_a_window_counts_uptime_and_not_time(streams: Streams) -> None:
    """While the chain stands still nobody can claim, so that time is no part of the window."""
    stream = streams.open()
    streams.call(PAYER, "request_withdrawal", stream=stream)
    streams.chain.wait(10 * 24 * 3_600_000, is_idle=True)
    streams.fails("window_open", PAYER, "withdraw", stream=stream)


def test_what_cannot_settle_is_claimed_before_the_shortest_window_ends(streams: Streams) -> None:
    """The worst: an iteration signed at the request, its payer's key replaced, and the chain then stands still."""
    terms = streams.terms(validity_ms=10_000, margin_ms=1_000, window_ms=11_000 + OUTAGE_MS)
    stream = streams.open(terms)
    last = streams.iteration(stream, 40, valid_ms=10_000)
    streams.call(PAYER, "request_withdrawal", stream=stream)
    streams.rotate(PAYER)
    streams.chain.wait(3_600_000)
    streams.chain.idle_ms += 3_600_000 - OUTAGE_MS
    streams.fails("window_open", PAYER, "withdraw", stream=stream)
    assert streams.call(OTHER, "claim", stream=stream, raw=last.raw) == {"amount": 40, "fine": 0}
    streams.chain.wait(11_000)
    assert streams.call(PAYER, "withdraw", stream=stream) == 960


def test_settlements_and_claims_go_on_within_the_window(streams: Streams) -> None:
    first, second = streams.open(), streams.open(streams.terms(1))
    for stream in (first, second):
        streams.call(PAYER, "request_withdrawal", stream=stream)
    streams.settle(streams.iteration(first, 40))
    last = streams.iteration(second, 30)
    streams.burn(second)
    streams.call(OTHER, "claim", stream=second, raw=last.raw)
    streams.chain.wait(160_000)
    assert streams.call(PAYER, "withdraw", stream=first) == 1_000
    assert streams.call(PAYER, "withdraw", stream=second) == 870
    assert streams.held() == 5 * FUNDS


def test_nothing_is_left_to_give_back_after_the_largest_claim(streams: Streams) -> None:
    stream = streams.open()
    streams.burn(stream)
    streams.call(OTHER, "claim", stream=stream, raw=streams.iteration(stream, 900).raw)
    streams.call(PAYER, "request_withdrawal", stream=stream)
    streams.chain.wait(160_000)
    assert streams.call(PAYER, "withdraw", stream=stream) == 0
    assert streams.record(stream).status == "CLOSED"


# -- close -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("caller", "signer"), [(PAYER, SERVICE), (SERVICE, PAYER)])
@pytest.mark.parametrize("due", [0, 1, 900])
def test_both_close_at_once_out_of_the_deposit(streams: Streams, caller: str, signer: str, due: int) -> None:
    stream = streams.open()
    closed = streams.call(caller, "close", **streams.consent(stream, due, by=signer))
    assert closed == {"amount": due, "rest": 1_000 - due}
    assert (streams.balance(PAYER), streams.balance(SERVICE)) == (FUNDS - due, FUNDS + due)
    record = streams.record(stream)
    assert (record.status, record.paid, record.taken, streams.escrow(stream)) == ("CLOSED", due, due, 0)
    assert streams.events()[-1] == ("closed", {"stream": stream, "due": due, "amount": due, "rest": 1_000 - due})


def test_credit_is_paid_at_the_close_by_a_payer_that_calls_itself(streams: Streams) -> None:
    stream = streams.open(streams.terms(credit=200))
    streams.spend(PAYER, leave=150)
    streams.fails("insufficient_funds", SERVICE, "close", **streams.consent(stream, 901, by=PAYER))
    streams.fails("insufficient_funds", PAYER, "close", **streams.consent(stream, 1_051, by=SERVICE))
    closed = streams.call(PAYER, "close", **streams.consent(stream, 1_050, by=SERVICE))
    assert closed == {"amount": 1_050, "rest": 100}
    assert (streams.balance(PAYER), streams.balance(SERVICE)) == (100, FUNDS + 1_050)


def test_a_close_after_the_settlement_pays_what_lacks(streams: Streams) -> None:
    stream = streams.open()
    streams.settle(streams.iteration(stream, 40))
    closed = streams.call(SERVICE, "close", **streams.consent(stream, 45, by=PAYER))
    assert closed == {"amount": 5, "rest": 995}
    assert streams.balance(SERVICE) == FUNDS + 45


def test_a_close_below_what_was_paid_takes_nothing_back(streams: Streams) -> None:
    stream = streams.open()
    streams.settle(streams.iteration(stream, 40))
    assert streams.call(PAYER, "close", **streams.consent(stream, 10, by=SERVICE)) == {"amount": 0, "rest": 1_000}
    assert (streams.record(stream).paid, streams.balance(SERVICE)) == (40, FUNDS + 40)


def test_a_close_after_the_fine_gives_back_the_rest_without_it(streams: Streams) -> None:
    stream = streams.open()
    streams.burn(stream)
    streams.call(OTHER, "claim", stream=stream, raw=streams.iteration(stream, 40).raw)
    assert streams.call(PAYER, "close", **streams.consent(stream, 50, by=SERVICE)) == {"amount": 10, "rest": 850}
    assert streams.held() == 5 * FUNDS


@pytest.mark.parametrize(("caller", "signer"), [(PAYER, PAYER), (SERVICE, SERVICE), (PAYER, OTHER), (SERVICE, OTHER)])
def test_a_close_needs_the_other_side(streams: Streams, caller: str, signer: str) -> None:
    stream = streams.open()
    streams.fails("bad_signature", caller, "close", **streams.consent(stream, 40, by=signer))


def test_nobody_else_closes(streams: Streams) -> None:
    stream = streams.open()
    for signer in (PAYER, SERVICE):
        streams.fails("not_allowed", OTHER, "close", **streams.consent(stream, 40, by=signer))


def test_a_consent_is_for_one_total_of_one_stream_on_one_chain(streams: Streams) -> None:
    stream, twin = streams.open(), streams.open(streams.terms(1))
    consent = streams.consent(stream, 40, by=PAYER)
    streams.fails("bad_signature", SERVICE, "close", **{**consent, "due": 41})
    streams.fails("bad_signature", SERVICE, "close", **{**consent, "stream": twin})
    key, payload = streams.key(PAYER), close_hash(stream, 40)
    for purpose, chain_id in (
        (Purpose.STREAM_CLOSE, ChainId(ZERO_HASH)),
        (Purpose.STREAM_TERMS, streams.chain.chain_id),
        (Purpose.STREAM_HELLO, streams.chain.chain_id),
        (Purpose.TRANSACTION, streams.chain.chain_id),
    ):
        forged = {**consent, "signature": key.sign(purpose, chain_id, payload)}
        streams.fails("bad_signature", SERVICE, "close", **forged)
    streams.call(SERVICE, "close", **consent)


def test_a_payers_consent_counts_by_the_key_of_the_opening_a_service_partys_by_its_present_one(
    streams: Streams,
) -> None:
    first, second = streams.open(), streams.open(streams.terms(1))
    by_payer, by_service = streams.consent(first, 40, by=PAYER), streams.consent(second, 40, by=SERVICE)
    streams.rotate(PAYER, 1)
    streams.rotate(SERVICE, 2)
    streams.fails("bad_signature", SERVICE, "close", **streams.consent(first, 40, by=PAYER))
    streams.call(SERVICE, "close", **by_payer)
    streams.fails("bad_signature", PAYER, "close", **by_service)
    streams.call(PAYER, "close", **streams.consent(second, 40, by=SERVICE))


@pytest.mark.parametrize("is_withdrawn", [False, True])
def test_a_closed_stream_never_moves_again(streams: Streams, is_withdrawn: bool) -> None:
    stream = streams.open()
    last = streams.iteration(stream, 40, valid_ms=600_000)
    if is_withdrawn:
        streams.call(PAYER, "request_withdrawal", stream=stream)
        streams.chain.wait(160_000)
        streams.call(PAYER, "withdraw", stream=stream)
    else:
        streams.call(PAYER, "close", **streams.consent(stream, 0, by=SERVICE))
    before = streams.records()
    receipt = streams.upload(last)
    assert (receipt.status, receipt.code) == (FAILED, "stream_closed")
    streams.fails("stream_closed", OTHER, "claim", stream=stream, raw=last.raw)
    streams.fails("stream_closed", PAYER, "top_up", stream=stream, amount=1)
    streams.fails("stream_closed", PAYER, "request_withdrawal", stream=stream)
    streams.fails("stream_closed", PAYER, "withdraw", stream=stream)
    streams.fails("stream_closed", SERVICE, "close", **streams.consent(stream, 40, by=PAYER))
    streams.fails("stream_exists", PAYER, "open", **streams.offer(streams.terms()))
    assert streams.records() == before
    assert (streams.balance(PAYER), streams.balance(SERVICE)) == (FUNDS, FUNDS)
