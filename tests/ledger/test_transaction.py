"""Transactions: what is signed, what has an id, what is refused before any state is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.codec import INTEGER_MAX, decode_untrusted, encode
from consensus.ledger.errors import LocalError
from consensus.ledger.ids import Address, ChainId
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.transaction import (
    CALLS_MAX,
    EACH,
    TRANSACTION_BYTES_MAX,
    Call,
    Transaction,
    decode_transaction_untrusted,
    make_call,
    sign_transaction,
)
from tests.ledger.builders import CHAIN, CLIENT, START_MS, flips, make_transaction, refusal

CALL = make_call("tokens", "transfer", {"unit": "cny", "to": bytes(20), "amount": 5})


def raw_of(**changed: object) -> bytes:
    """A signed transaction with some fields of its body replaced by anything."""
    fields: dict[str, object] = {
        "version": 1,
        "chain_id": CHAIN,
        "sender": CLIENT.public.address,
        "lane": b"",
        "sequence": 0,
        "valid_until_ms": START_MS,
        "mode": 0,
        "calls": [["tokens", "transfer", b"\x80"]],
    }
    assert set(changed) <= set(fields)
    body = encode(list({**fields, **changed}.values()))  # type: ignore[arg-type]
    return encode([body, CLIENT.sign(Purpose.TRANSACTION, CHAIN, body)])


def test_what_is_signed_decodes_to_itself() -> None:
    made = make_transaction(3)
    again = decode_transaction_untrusted(made.raw)
    assert again == made
    assert (again.sender, again.body.sequence, again.is_one_shot) == (CLIENT.public.address, 3, False)
    assert again.signed_by(CLIENT.public)
    assert not again.signed_by(PrivateKey.from_secret(1).public)
    assert decode_untrusted(again.body.calls[0].arguments) == {"unit": "cny", "to": bytes(20), "amount": 5}


def test_every_changed_byte_is_refused_or_breaks_the_signature() -> None:
    good = make_transaction()
    for bad in flips(good.raw):
        if not refusal(decode_transaction_untrusted, bad):
            other = decode_transaction_untrusted(bad)
            assert not other.signed_by(CLIENT.public)
            assert other.leaf != good.leaf


def test_the_id_is_that_of_the_body_and_the_leaf_that_of_both() -> None:
    one = make_transaction()
    forged = decode_transaction_untrusted(encode([one.body_bytes, bytes(64)]))
    assert forged.id == one.id
    assert forged.leaf != one.leaf
    assert len({make_transaction(number).id for number in range(20)}) == 20


def test_r84_a_transaction_belongs_to_one_chain() -> None:
    here, there = make_transaction(), make_transaction(chain_id=ChainId(bytes(32)))
    assert here.id != there.id
    assert not decode_transaction_untrusted(encode([there.body_bytes, here.signature])).signed_by(CLIENT.public)


@given(st.binary(max_size=40), st.integers(0, 3))
def test_lanes(lane: bytes, sequence: int) -> None:
    code = refusal(decode_transaction_untrusted, raw_of(lane=lane, sequence=sequence))
    if len(lane) > 32:
        assert code == "malformed"
    elif len(lane) == 32:
        assert code == ("" if sequence == 0 else "bad_lane")
        assert code or decode_transaction_untrusted(raw_of(lane=lane)).is_one_shot
    else:
        assert code == ("" if len(lane) <= 16 else "bad_lane")


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("version", 0, "bad_version"),
        ("version", 2, "bad_version"),
        ("version", -1, "bad_version"),
        ("version", None, "malformed"),
        ("version", True, "malformed"),
        ("chain_id", bytes(31), "malformed"),
        ("chain_id", "a" * 32, "malformed"),
        ("sender", bytes(21), "malformed"),
        ("sender", b"", "malformed"),
        ("lane", None, "malformed"),
        ("sequence", -1, "malformed"),
        ("sequence", None, "malformed"),
        ("valid_until_ms", -1, "malformed"),
        ("mode", 2, "malformed"),
        ("mode", -1, "malformed"),
        ("calls", [], "malformed"),
        ("calls", {}, "malformed"),
        ("calls", [[]], "malformed"),
        ("calls", [["tokens", "transfer"]], "malformed"),
        ("calls", [["tokens", "transfer", b"", b""]], "malformed"),
        ("calls", [["", "transfer", b""]], "malformed"),
        ("calls", [["t" * 65, "transfer", b""]], "malformed"),
        ("calls", [["tokens", 1, b""]], "malformed"),
        ("calls", [["tokens", "transfer", {}]], "malformed"),
        ("calls", [["tokens", "transfer", b""]] * (CALLS_MAX + 1), "malformed"),
    ],
)
def test_r67_fields_that_are_wrong(field: str, value: object, code: str) -> None:
    assert refusal(decode_transaction_untrusted, raw_of(**{field: value})) == code


def test_the_limits_themselves_are_accepted() -> None:
    assert not refusal(decode_transaction_untrusted, raw_of(sequence=INTEGER_MAX, valid_until_ms=INTEGER_MAX))
    assert not refusal(decode_transaction_untrusted, raw_of(calls=[["a", "b", b""]] * CALLS_MAX))
    assert not refusal(decode_transaction_untrusted, raw_of(calls=[["a" * 64, "b" * 64, b""]]))


def test_the_size_is_bounded_before_anything_is_read() -> None:
    assert refusal(decode_transaction_untrusted, bytes(TRANSACTION_BYTES_MAX + 1)) == "too_large"
    assert refusal(decode_transaction_untrusted, bytes(TRANSACTION_BYTES_MAX)) == "malformed"


@pytest.mark.parametrize(
    "raw", [b"", b"\x90", b"\x91\xc4\x00", b"\x93\xc4\x00\xc4\x00\xc4\x00", encode([b"", bytes(64)])]
)
def test_envelopes_that_are_none(raw: bytes) -> None:
    assert refusal(decode_transaction_untrusted, raw) == "malformed"


def test_the_sender_may_differ_from_the_key_after_rotation() -> None:
    account = Address(bytes(20))
    moved = sign_transaction(CLIENT, CHAIN, [CALL], sequence=0, valid_until_ms=1, sender=account, mode=EACH)
    assert moved.sender == account
    assert moved.signed_by(CLIENT.public)


def test_one_refuses_to_sign_what_nodes_would_refuse() -> None:
    def signed(calls: list[Call], *, lane: bytes = b"", sequence: int = 0) -> Transaction:
        return sign_transaction(CLIENT, CHAIN, calls, sequence=sequence, valid_until_ms=1, lane=lane)

    for attempt, code in [
        (lambda: signed([]), "malformed"),
        (lambda: signed([CALL], sequence=-1), "malformed"),
        (lambda: signed([CALL], lane=bytes(17)), "bad_lane"),
        (lambda: signed([CALL], lane=bytes(32), sequence=1), "bad_lane"),
        (lambda: signed([Call("a", "b", bytes(TRANSACTION_BYTES_MAX))]), "too_large"),
    ]:
        with pytest.raises(LocalError) as refused:
            attempt()
        assert refused.value.code == code
