"""What is agreed and signed about payment streams: no two statements share bytes; iterations are read strictly."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.codec import Value, encode
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import Address, ChainId, tagged_hash
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.streams import (
    AMOUNT_MAX,
    CONTRACT,
    ITERATION_BYTES_MAX,
    OUTAGE_MS,
    WINDOW_MS_MIN,
    StreamRecord,
    Terms,
    close_hash,
    make_iteration,
    read_iteration_untrusted,
    read_record,
    stream_id,
    stream_key,
    stream_lane,
    terms_codec,
    terms_fault,
    terms_hash,
)
from consensus.ledger.transaction import EACH, Call, Transaction, make_call, sign_transaction

CHAIN = ChainId(b"\7" * 32)
KEY, OTHER = PrivateKey.from_secret(11), PrivateKey.from_secret(12)
PAYER, SERVICE = KEY.public.address, OTHER.public.address
STREAM = stream_id(PAYER, SERVICE, 0)
TERMS = Terms(
    payer=PAYER,
    service=SERVICE,
    number=1,
    what="0.1 kWh",
    unit="FEN",
    deposit=1_000,
    fine=100,
    price=5,
    step_max=10,
    credit=0,
    mode=0,
    count_max=200,
    amount_max=0,
    duration_ms_max=0,
    window_ms=150_000,
    validity_ms=60_000,
    margin_ms=10_000,
    step_ms=5_000,
    offer_until_ms=9_000,
)
RECORD = StreamRecord(
    payer=PAYER,
    service=SERVICE,
    payer_key=KEY.public.compressed,
    unit="FEN",
    deposit=1_000,
    taken=0,
    paid=0,
    fine=100,
    is_fined=False,
    settled_by=b"",
    terms_hash=bytes(32),
    credit=20,
    window_ms=150_000,
    withdraw_at_uptime_ms=0,
    opened_at_ms=1,
    status="OPEN",
)


def test_every_part_of_every_statement_counts() -> None:
    terms = [TERMS]
    for name in Terms.__struct_fields__:
        value = getattr(TERMS, name)
        changed = value + 1 if isinstance(value, int) else value + "x" if isinstance(value, str) else bytes(20)
        terms.append(msgspec.structs.replace(TERMS, **{name: changed}))
    hashes = [terms_hash(item) for item in terms]
    hashes += [stream_id(*parts) for parts in ((PAYER, SERVICE, 0), (SERVICE, PAYER, 0), (PAYER, SERVICE, 1))]
    hashes += [stream_lane(STREAM), stream_lane(bytes(32))]
    hashes += [close_hash(STREAM, 0), close_hash(STREAM, 1), close_hash(bytes(32), 0)]
    assert len(set(hashes)) == len(hashes) == 1 + len(Terms.__struct_fields__) + 8


def test_statements_are_what_contracts_hash() -> None:
    assert stream_id(PAYER, SERVICE, 7) == tagged_hash("contract-data", encode(["stream", PAYER, SERVICE, 7]))
    assert stream_lane(STREAM) == tagged_hash("contract-data", encode(["stream-lane", STREAM]))
    assert close_hash(STREAM, 7) == tagged_hash("contract-data", encode(["stream-close", STREAM, 7]))
    values: list[Value] = [getattr(TERMS, name) for name in Terms.__struct_fields__]
    assert terms_hash(TERMS) == tagged_hash("contract-data", encode(["stream-terms", *values]))


def test_terms_travel_and_are_bounded() -> None:
    assert terms_codec.decode_untrusted(terms_codec.encode(TERMS)) == TERMS
    for changes in ({"deposit": 0}, {"what": "a\nb"}, {"mode": 2}, {"unit": "a/b"}, {"fine": AMOUNT_MAX + 1}):
        forged = msgspec.structs.replace(TERMS, **changes)
        with pytest.raises(PeerError):
            terms_codec.decode_untrusted(msgspec.msgpack.encode(forged))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, ""),
        ({"service": PAYER}, "accounts"),
        ({"fine": 1_000}, "fine"),
        ({"margin_ms": 60_000}, "margin"),
        ({"window_ms": 69_999 + OUTAGE_MS}, "window"),
        ({"window_ms": 70_000 + OUTAGE_MS}, ""),
    ],
)
def test_what_is_wrong_with_terms_is_said(changes: dict[str, Any], word: str) -> None:
    fault = terms_fault(msgspec.structs.replace(TERMS, **changes))
    assert word in fault
    assert bool(fault) == bool(word)


def test_the_shortest_window_outlasts_an_outage() -> None:
    assert WINDOW_MS_MIN >= OUTAGE_MS


# -- iterations --------------------------------------------------------------------------------------------


def read(raw: bytes, **changes: Any) -> Any:
    """Read bytes as an iteration of the stream."""
    return read_iteration_untrusted(
        raw, **{"chain_id": CHAIN, "payer": PAYER, "stream": STREAM, "key": KEY.public, **changes}
    )


def other(*calls: Call, lane: bytes | None = None, mode: int = 0, sender: Address = PAYER) -> Transaction:
    """Sign something else."""
    lane = stream_lane(STREAM) if lane is None else lane
    return sign_transaction(KEY, CHAIN, list(calls), sequence=0, valid_until_ms=9, lane=lane, mode=mode, sender=sender)


def settle(due: Value, stream: bytes = STREAM, **more: Value) -> Call:
    """Return the call that an iteration has."""
    return make_call(CONTRACT, "settle", {"stream": stream, "due": due, **more})


def test_an_iteration_is_a_transaction_that_says_what_is_due() -> None:
    """S4.1 to S4.4: whole, in the stream's lane, number 0, over the total."""
    made = make_iteration(KEY, CHAIN, PAYER, STREAM, 40, 9_999)
    iteration = read(made.raw)
    assert (iteration.stream, iteration.due, iteration.valid_until_ms) == (STREAM, 40, 9_999)
    assert iteration.transaction == made
    assert (made.body.lane, made.body.sequence, made.sender) == (stream_lane(STREAM), 0, PAYER)
    assert len(made.raw) < ITERATION_BYTES_MAX // 2


def test_an_iteration_of_a_rotated_key_names_the_account_that_it_is_of() -> None:
    made = make_iteration(OTHER, CHAIN, PAYER, STREAM, 40, 9_999)
    assert read(made.raw, key=OTHER.public).due == 40


GOOD = make_iteration(KEY, CHAIN, PAYER, STREAM, 40, 9)
REFUSED: dict[str, tuple[str, Callable[[], Any]]] = {
    "another chain": ("wrong_chain", lambda: read(GOOD.raw, chain_id=ChainId(bytes(32)))),
    "another payer": ("wrong_stream", lambda: read(GOOD.raw, payer=SERVICE)),
    "another stream": ("wrong_stream", lambda: read(GOOD.raw, stream=bytes(32))),
    "another key": ("bad_signature", lambda: read(GOOD.raw, key=OTHER.public)),
    "another lane": ("wrong_stream", lambda: read(other(settle(40), lane=b"").raw)),
    "another stream named": ("bad_iteration", lambda: read(other(settle(40, bytes(32))).raw)),
    "two calls": ("bad_iteration", lambda: read(other(settle(40), settle(40)).raw)),
    "each": ("bad_iteration", lambda: read(other(settle(40), mode=EACH).raw)),
    "another method": ("bad_iteration", lambda: read(other(make_call(CONTRACT, "close", {})).raw)),
    "another contract": ("bad_iteration", lambda: read(other(Call("tokens", "settle", settle(40).arguments)).raw)),
    "no map": ("bad_iteration", lambda: read(other(Call(CONTRACT, "settle", encode([STREAM, 40]))).raw)),
    "nothing": ("malformed", lambda: read(other(Call(CONTRACT, "settle", b"\xc1")).raw)),
    "more": ("bad_iteration", lambda: read(other(settle(40, more=1)).raw)),
    "zero": ("bad_iteration", lambda: read(other(settle(0)).raw)),
    "negative": ("bad_iteration", lambda: read(other(settle(-1)).raw)),
    "too much": ("bad_iteration", lambda: read(other(settle(AMOUNT_MAX + 1)).raw)),
    "true": ("bad_iteration", lambda: read(other(settle(True)).raw)),
    "text": ("bad_iteration", lambda: read(other(settle("40")).raw)),
    "empty": ("malformed", lambda: read(b"")),
    "cut": ("malformed", lambda: read(GOOD.raw[:-1])),
    "large": ("too_large", lambda: read(GOOD.raw + bytes(ITERATION_BYTES_MAX))),
}


@pytest.mark.parametrize("what", REFUSED)
def test_whatever_is_no_iteration_of_the_stream_is_refused(what: str) -> None:
    code, attempt = REFUSED[what]
    with pytest.raises(PeerError) as refusal:
        attempt()
    assert refusal.value.code == code


def test_r84_every_bit_of_an_iteration_is_of_its_chain_and_payer() -> None:
    for index in range(len(GOOD.raw)):
        for bit in range(8):
            forged = bytearray(GOOD.raw)
            forged[index] ^= 1 << bit
            with pytest.raises(PeerError):
                read(bytes(forged))


def test_r85_an_iterations_signature_is_for_no_other_purpose() -> None:
    payload = close_hash(STREAM, 40)
    for purpose in (Purpose.STREAM_CLOSE, Purpose.STREAM_TERMS, Purpose.STREAM_HELLO):
        assert not KEY.public.verifies(GOOD.signature, purpose, CHAIN, GOOD.body_bytes)
        assert not KEY.public.verifies(GOOD.signature, purpose, CHAIN, payload)
        signature = KEY.sign(purpose, CHAIN, payload)
        others = [item for item in Purpose if item != purpose]
        assert not any(KEY.public.verifies(signature, item, CHAIN, payload) for item in others)


@given(st.binary(max_size=1_100))
def test_any_bytes_are_refused_with_a_code(raw: bytes) -> None:
    with pytest.raises(PeerError):
        read(raw)


# -- records -----------------------------------------------------------------------------------------------


def test_a_record_is_read_from_a_proven_value() -> None:
    value = msgspec.to_builtins(RECORD, builtin_types=(bytes,))
    assert read_record(value) == RECORD
    assert RECORD.limit == 920
    assert stream_key(STREAM) == f"streams/stream/{STREAM.hex()}"
    for broken in (None, [], {**value, "more": 1}, {**value, "deposit": "1"}, {"payer": PAYER}):
        with pytest.raises(PeerError) as refusal:
            read_record(broken)
        assert refusal.value.code == "malformed"
