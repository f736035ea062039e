"""Claims: what is paid out of a deposit when an iteration cannot settle, and when the payer is fined."""

from collections.abc import Callable

import pytest

from consensus.ledger.codec import Value, encode
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.receipt import FAILED
from consensus.ledger.streams import AMOUNT_MAX, CONTRACT, ITERATION_BYTES_MAX, make_iteration, stream_lane
from consensus.ledger.transaction import EACH, Call, Transaction, make_call, sign_transaction
from tests.contracts.domain.streams import FUNDS, OTHER, PAYER, SERVICE, UNIT, Streams


@pytest.fixture
def streams() -> Streams:
    return Streams()


def claim(streams: Streams, stream: bytes, iteration: Transaction, by: str = OTHER) -> tuple[int, int]:
    """Claim, see that the service party gets what the call says and conservation hold; return amount and fine."""
    before, escrow = streams.balance(SERVICE), streams.escrow(stream)
    told = streams.call(by, "claim", stream=stream, raw=iteration.raw)
    assert streams.balance(SERVICE) - before == escrow - streams.escrow(stream) == told["amount"] + told["fine"]
    assert streams.held() == 5 * FUNDS
    return told["amount"], told["fine"]


def refused(streams: Streams, code: str, stream: bytes, raw: bytes) -> None:
    """See a claim refused, and nothing moved."""
    before = streams.escrow(stream), streams.balance(SERVICE)
    streams.fails(code, OTHER, "claim", stream=stream, raw=raw)
    assert (streams.escrow(stream), streams.balance(SERVICE)) == before


# -- what became of the number -----------------------------------------------------------------------------


def transfer_call(streams: Streams) -> Call:
    return make_call("tokens", "transfer", streams.transfer(OTHER, 1))


def failing_call(streams: Streams) -> Call:
    return make_call("tokens", "transfer", streams.transfer(OTHER, 10 * FUNDS))


BURNS: dict[str, Callable[[Streams, bytes], object]] = {
    "another call": lambda streams, stream: streams.burn(stream, transfer_call(streams)),
    "a failing call": lambda streams, stream: streams.burn(stream, failing_call(streams)),
    "no contract": lambda streams, stream: streams.burn(stream, make_call("nothing", "none", {})),
    "another method": lambda streams, stream: streams.burn(
        stream, make_call(CONTRACT, "request_withdrawal", {"stream": stream})
    ),
    "a settlement undone": lambda streams, stream: streams.burn(
        stream, make_call(CONTRACT, "settle", {"stream": stream, "due": 1}), failing_call(streams)
    ),
    "bad arguments": lambda streams, stream: streams.burn(
        stream, make_call(CONTRACT, "settle", {"stream": stream, "due": 0})
    ),
    "a bool for a total": lambda streams, stream: streams.burn(
        stream, make_call(CONTRACT, "settle", {"stream": stream, "due": True})
    ),
    "one of each": lambda streams, stream: streams.burn(
        stream, transfer_call(streams), failing_call(streams), mode=EACH
    ),
}


@pytest.mark.parametrize("how", BURNS)
def test_a_number_used_for_anything_else_pays_the_due_and_the_fine_once(streams: Streams, how: str) -> None:
    """S4.9, S4.10."""
    stream = streams.open()
    last = streams.iteration(stream, 40)
    BURNS[how](streams, stream)
    with pytest.raises(PeerError):
        streams.upload(last)
    assert claim(streams, stream, last) == (40, 100)
    record = streams.record(stream)
    assert (record.paid, record.taken, record.is_fined) == (40, 40, True)
    assert streams.escrow(stream) == 860
    refused(streams, "nothing_due", stream, last.raw)
    larger = streams.iteration(stream, 60)
    assert claim(streams, stream, larger) == (20, 0)


def test_a_settlement_that_failed_for_want_of_funds_is_fined(streams: Streams) -> None:
    stream = streams.open(streams.terms(credit=200))
    streams.spend(PAYER)
    last = streams.iteration(stream, 1_000)
    assert streams.upload(last).code == "insufficient_funds"
    assert claim(streams, stream, last) == (900, 100)
    assert streams.escrow(stream) == 0
    # The credit is the payer's word: no claim pays it.
    assert streams.record(stream).paid == 900
    refused(streams, "nothing_due", stream, last.raw)


def test_an_old_iteration_uploaded_costs_a_claim_of_the_difference_and_no_fine(streams: Streams) -> None:
    stream = streams.open()
    old, last = streams.iteration(stream, 10), streams.iteration(stream, 40)
    streams.settle(old)
    assert claim(streams, stream, last) == (30, 0)
    refused(streams, "nothing_due", stream, last.raw)
    refused(streams, "nothing_due", stream, old.raw)
    record = streams.record(stream)
    assert (record.paid, record.taken, record.is_fined) == (40, 30, False)


def test_what_was_settled_is_not_claimed_again(streams: Streams) -> None:
    stream = streams.open()
    last = streams.iteration(stream, 40)
    streams.settle(last)
    refused(streams, "nothing_due", stream, last.raw)
    refused(streams, "nothing_due", stream, streams.iteration(stream, 39).raw)


def test_a_settlement_among_other_calls_is_a_settlement(streams: Streams) -> None:
    stream = streams.open()
    receipt = streams.burn(stream, make_call(CONTRACT, "settle", {"stream": stream, "due": 10}), transfer_call(streams))
    assert receipt.code == ""
    assert claim(streams, stream, streams.iteration(stream, 40)) == (30, 0)


@pytest.mark.parametrize("late_ms", [-1, 0, 1])
def test_an_unused_number_pays_without_a_fine_once_the_iteration_has_expired(streams: Streams, late_ms: int) -> None:
    """At each time it either settles or is claimed, never neither, never both."""
    stream = streams.open()
    last = streams.iteration(stream, 40)
    until = last.body.valid_until_ms
    streams.chain.wait_until(until + late_ms)
    if late_ms <= 0:
        refused(streams, "not_claimable", stream, last.raw)
        streams.chain.time_ms = until + late_ms - 1_000
        streams.settle(last)
        return
    assert claim(streams, stream, last) == (40, 0)
    assert streams.lane(stream) is None
    refused(streams, "nothing_due", stream, last.raw)


def test_the_fine_is_due_after_a_claim_of_an_expired_iteration_too(streams: Streams) -> None:
    stream = streams.open()
    first = streams.iteration(stream, 40, valid_ms=10_000)
    streams.chain.wait(20_000)
    assert claim(streams, stream, first) == (40, 0)
    streams.burn(stream)
    assert claim(streams, stream, first) == (0, 100)
    refused(streams, "nothing_due", stream, first.raw)


def test_a_larger_claim_pays_the_difference_whatever_comes_first(streams: Streams) -> None:
    stream = streams.open()
    iterations = [streams.iteration(stream, due) for due in (40, 10, 70, 60, 70)]
    streams.burn(stream)
    assert claim(streams, stream, iterations[0]) == (40, 100)
    refused(streams, "nothing_due", stream, iterations[1].raw)
    assert claim(streams, stream, iterations[2]) == (30, 0)
    refused(streams, "nothing_due", stream, iterations[3].raw)
    refused(streams, "nothing_due", stream, iterations[4].raw)
    assert streams.record(stream).paid == 70


@pytest.mark.parametrize("due", [900, 901, 5_000, AMOUNT_MAX])
def test_a_claim_is_capped_by_the_deposit_less_the_fine(streams: Streams, due: int) -> None:
    stream = streams.open()
    streams.burn(stream)
    assert claim(streams, stream, streams.iteration(stream, due)) == (900, 100)
    assert streams.escrow(stream) == 0


def test_a_top_up_raises_what_a_claim_pays(streams: Streams) -> None:
    stream = streams.open()
    last = streams.iteration(stream, 5_000)
    streams.burn(stream)
    assert claim(streams, stream, last) == (900, 100)
    streams.call(PAYER, "top_up", stream=stream, amount=50)
    assert claim(streams, stream, last) == (50, 0)
    refused(streams, "nothing_due", stream, last.raw)


def test_a_fine_of_nothing_is_none(streams: Streams) -> None:
    stream = streams.open(streams.terms(fine=0))
    last = streams.iteration(stream, 40)
    streams.burn(stream)
    assert claim(streams, stream, last) == (40, 0)
    refused(streams, "nothing_due", stream, last.raw)


@pytest.mark.parametrize("by", [SERVICE, OTHER, PAYER, "issuer"])
def test_anybody_claims_for_the_service_party_alone(streams: Streams, by: str) -> None:
    """S4, watcher: a stranger holds a file and pays nobody but the service party."""
    stream = streams.open()
    last = streams.iteration(stream, 40)
    streams.burn(stream)
    before = streams.balance(by)
    claim(streams, stream, last, by=by)
    assert streams.balance(by) - before == (140 if by == SERVICE else 0)


# -- accounts and keys -------------------------------------------------------------------------------------


def test_iterations_count_by_the_key_of_the_opening(streams: Streams) -> None:
    """S4.11: nobody denies what it signed by changing its key."""
    stream = streams.open()
    last = streams.iteration(stream, 40)
    old = streams.rotate(PAYER)
    refused(streams, "bad_transaction", stream, streams.iteration(stream, 50).raw)
    refused(streams, "not_claimable", stream, last.raw)
    streams.burn(stream)
    assert claim(streams, stream, last) == (40, 100)
    assert claim(streams, stream, streams.iteration(stream, 45, key=old)) == (5, 0)
    newer = streams.open(streams.terms(1))
    assert streams.record(newer).payer_key == streams.key(PAYER).public.compressed


def test_who_is_suspended_uses_no_number_up_and_is_claimed_without_a_fine(streams: Streams) -> None:
    stream = streams.open()
    last = streams.iteration(stream, 40)
    payer: Value = bytes(streams.chain.address(PAYER))
    streams.chain.ok("admin-a", "membership", "suspend_account", account=payer)
    with pytest.raises(PeerError) as refusal:
        streams.upload(last)
    assert refusal.value.code == "account_suspended"
    refused(streams, "not_claimable", stream, last.raw)
    streams.chain.wait_until(last.body.valid_until_ms + 1)
    assert claim(streams, stream, last) == (40, 0)


# -- what is no iteration of this stream -------------------------------------------------------------------


def signed(
    streams: Streams, stream: bytes, *calls: Call, lane: bytes | None = None, mode: int = 0, by: str = PAYER
) -> Transaction:
    """Return a transaction of the payer in the stream's lane, with other calls than an iteration has."""
    return sign_transaction(
        streams.key(by),
        streams.chain.chain_id,
        list(calls),
        sequence=0,
        valid_until_ms=streams.chain.next_time_ms + 60_000,
        lane=stream_lane(stream) if lane is None else lane,
        mode=mode,
        sender=streams.chain.address(by),
    )


def settle_call(stream: bytes, due: Value = 40, **more: Value) -> Call:
    return make_call(CONTRACT, "settle", {"stream": stream, "due": due, **more})


FORGED: dict[str, tuple[str, Callable[[Streams, bytes], Transaction]]] = {
    "another lane": ("wrong_stream", lambda s, x: signed(s, x, settle_call(x), lane=b"")),
    "another one-shot lane": ("wrong_stream", lambda s, x: signed(s, x, settle_call(x), lane=bytes(32))),
    "two calls": ("bad_iteration", lambda s, x: signed(s, x, settle_call(x), settle_call(x))),
    "each": ("bad_iteration", lambda s, x: signed(s, x, settle_call(x), mode=EACH)),
    "another contract": (
        "bad_iteration",
        lambda s, x: signed(s, x, Call("stream", "settle", settle_call(x).arguments)),
    ),
    "another method": ("bad_iteration", lambda s, x: signed(s, x, Call(CONTRACT, "top_up", settle_call(x).arguments))),
    "another stream named": ("bad_iteration", lambda s, x: signed(s, x, settle_call(bytes(32)))),
    "nothing due": ("bad_iteration", lambda s, x: signed(s, x, settle_call(x, 0))),
    "less than nothing due": ("bad_iteration", lambda s, x: signed(s, x, settle_call(x, -1))),
    "more than there is": ("bad_iteration", lambda s, x: signed(s, x, settle_call(x, AMOUNT_MAX + 1))),
    "true for a total": ("bad_iteration", lambda s, x: signed(s, x, settle_call(x, True))),
    "text for a total": ("bad_iteration", lambda s, x: signed(s, x, settle_call(x, "40"))),
    "an argument more": ("bad_iteration", lambda s, x: signed(s, x, settle_call(x, 40, more=1))),
    "an argument less": ("bad_iteration", lambda s, x: signed(s, x, make_call(CONTRACT, "settle", {"stream": x}))),
    "arguments that are no map": (
        "bad_iteration",
        lambda s, x: signed(s, x, Call(CONTRACT, "settle", encode([x, 40]))),
    ),
    "arguments that are nothing": ("bad_transaction", lambda s, x: signed(s, x, Call(CONTRACT, "settle", b"\xc1"))),
    "another account": ("bad_transaction", lambda s, x: signed(s, x, settle_call(x), by=OTHER)),
    "another key": ("bad_transaction", lambda s, x: s.iteration(x, 40, key=s.key(OTHER))),
    "the service party's key": ("bad_transaction", lambda s, x: s.iteration(x, 40, key=s.key(SERVICE))),
}


@pytest.mark.parametrize("how", FORGED)
def test_only_this_streams_iterations_are_claimed(streams: Streams, how: str) -> None:
    stream = streams.open()
    streams.burn(stream)
    code, forge = FORGED[how]
    refused(streams, code, stream, forge(streams, stream).raw)
    claim(streams, stream, streams.iteration(stream, 40))


def test_every_byte_of_an_iteration_is_signed(streams: Streams) -> None:
    stream = streams.open()
    raw = streams.iteration(stream, 40).raw
    streams.burn(stream)
    answers = set()
    for index in range(len(raw)):
        for flip in (1, 0x80):
            forged = raw[:index] + bytes([raw[index] ^ flip]) + raw[index + 1 :]
            answers.add(streams.chain.fails(OTHER, CONTRACT, "claim", stream=stream, raw=forged))
    assert answers == {"bad_transaction"}
    for forged in (raw[:-1], raw + b"\0", b"\xc0"):
        refused(streams, "bad_transaction", stream, forged)
    refused(streams, "bad_arguments", stream, bytes(ITERATION_BYTES_MAX + 1))
    refused(streams, "bad_arguments", stream, b"")


# -- named faults ------------------------------------------------------------------------------------------


def test_r83_a_stream_id_never_serves_again_and_old_proofs_pay_nothing(streams: Streams) -> None:
    terms = streams.terms()
    stream = streams.open(terms)
    old = streams.iteration(stream, 40)
    streams.call(PAYER, "close", **streams.consent(stream, 0, by=SERVICE))
    streams.fails("stream_exists", PAYER, "open", **streams.offer(terms))
    streams.fails("stream_exists", PAYER, "open", **streams.offer(streams.terms(deposit=2_000)))
    refused(streams, "stream_closed", stream, old.raw)
    again = streams.open(streams.terms(1))
    streams.burn(again)
    refused(streams, "wrong_stream", again, old.raw)


def test_r84_what_was_signed_for_another_chain_counts_nowhere_else(streams: Streams) -> None:
    stream = streams.open()
    other = ChainId(bytes(31) + b"\1")
    until = streams.chain.next_time_ms + 60_000
    foreign = make_iteration(streams.key(PAYER), other, streams.chain.address(PAYER), stream, 40, until)
    streams.burn(stream)
    refused(streams, "bad_transaction", stream, foreign.raw)
    with pytest.raises(PeerError) as refusal:
        streams.upload(foreign)
    assert refusal.value.code == "wrong_chain"


def test_r85_an_iteration_is_no_consent_to_close_nor_the_other_way_round(streams: Streams) -> None:
    stream = streams.open()
    iteration = streams.iteration(stream, 40)
    streams.fails("bad_signature", SERVICE, "close", stream=stream, due=40, signature=iteration.signature)
    offer = streams.offer(streams.terms())
    streams.fails("bad_signature", PAYER, "close", stream=stream, due=0, signature=offer["signature"])
    consent = streams.consent(stream, 40, by=PAYER)
    forged = iteration.raw[: -len(iteration.signature)] + consent["signature"]
    streams.burn(stream)
    refused(streams, "bad_transaction", stream, forged)
    streams.call(SERVICE, "close", **consent)


@pytest.mark.parametrize("due", [AMOUNT_MAX, AMOUNT_MAX + 1, 2**63 - 1])
def test_r86_the_largest_number_there_is_blocks_nobody(streams: Streams, due: int) -> None:
    """What counts is the larger total, capped by the deposit: a huge one is paid what there is, or is none."""
    stream = streams.open()
    last = streams.iteration(stream, 40)
    huge = signed(streams, stream, settle_call(stream, due))
    streams.spend(PAYER)
    assert streams.upload(huge).status == FAILED
    assert claim(streams, stream, last) == (40, 100)
    if due <= AMOUNT_MAX:
        assert claim(streams, stream, huge) == (860, 0)
    else:
        refused(streams, "bad_iteration", stream, huge.raw)


def test_r87_no_other_streams_total_no_smaller_one_and_no_sum_above_the_deposit_is_paid(streams: Streams) -> None:
    """The machine in test_streams_machine.py does so in every order."""
    stream, twin = streams.open(), streams.open(streams.terms(1))
    theirs = streams.open(payer=OTHER)
    iterations = [streams.iteration(stream, due) for due in (300, 200, 800, 1_000)]
    for each in (stream, twin):
        streams.burn(each)
    streams.burn(theirs, payer=OTHER)
    for foreign in (streams.iteration(twin, 500), streams.iteration(stream, 500, key=streams.key(OTHER))):
        streams.fails(
            "wrong_stream" if foreign.body.lane != stream_lane(stream) else "bad_transaction",
            SERVICE,
            "claim",
            stream=stream,
            raw=foreign.raw,
        )
    # An equal number in another payer's lane of the same name.
    refused(streams, "bad_transaction", stream, streams.iteration(stream, 500, payer=OTHER).raw)
    assert [claim(streams, stream, iterations[0]), claim(streams, stream, iterations[2])] == [(300, 100), (500, 0)]
    refused(streams, "nothing_due", stream, iterations[1].raw)
    assert claim(streams, stream, iterations[3]) == (100, 0)
    assert (streams.escrow(stream), streams.escrow(twin), streams.escrow(theirs)) == (0, 1_000, 1_000)


def test_r88_no_stream_opens_without_the_money_it_names(streams: Streams) -> None:
    streams.spend(PAYER, leave=999)
    streams.fails("insufficient_funds", PAYER, "open", **streams.offer(streams.terms()))
    streams.fails("unknown_unit", PAYER, "open", **streams.offer(streams.terms(unit="NONE")))
    streams.chain.ok(OTHER, "tokens", "transfer", **streams.transfer(PAYER, 1))
    streams.chain.ok(PAYER, "tokens", "reserve", unit=UNIT, key="k", amount=1)
    streams.fails("insufficient_funds", PAYER, "open", **streams.offer(streams.terms()))
    streams.chain.ok(PAYER, "tokens", "release", unit=UNIT, key="k")
    stream = streams.open()
    assert (streams.balance(PAYER), streams.escrow(stream)) == (0, 1_000)
    streams.fails("insufficient_funds", PAYER, "top_up", stream=stream, amount=1)
