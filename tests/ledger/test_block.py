"""Blocks: the hash covers all, roots commit to content, a header follows its parent."""

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.block import (
    BLOCK_BYTES_MAX,
    BLOCK_TRANSACTIONS_MAX,
    UPTIME_STEP_MS_MAX,
    Block,
    BlockRecord,
    Header,
    check_certified_untrusted,
    check_successor_untrusted,
    decode_block_untrusted,
    header_codec,
    receipts_root,
    transactions_root,
    uptime_after,
    write_leaf,
    writes_root,
)
from consensus.ledger.codec import decode_untrusted, encode
from consensus.ledger.receipt import receipt_codec
from tests.ledger.builders import (
    CHAIN,
    certify,
    flips,
    make_block,
    make_genesis_block,
    make_keys,
    make_receipt,
    make_set,
    make_transaction,
    refusal,
)

KEYS = make_keys(4)
SET = make_set(KEYS)
GENESIS = make_genesis_block(CHAIN, SET)
TRANSACTIONS = [make_transaction(number) for number in range(3)]
RECEIPTS = [make_receipt(transaction) for transaction in TRANSACTIONS]
BLOCK = make_block(GENESIS.header, SET, transactions=TRANSACTIONS, receipts=RECEIPTS)

CHANGED: dict[str, object] = {
    "chain_id": bytes(32),
    "height": 2,
    "parent_hash": bytes(32),
    "time_ms": BLOCK.header.time_ms + 1,
    "uptime_ms": BLOCK.header.uptime_ms + 1,
    "proposer": "node-004",
    "transactions_root": bytes(32),
    "receipts_root": bytes(32),
    "writes_root": bytes(32),
    "validators_hash": bytes(32),
    "next_validators_hash": bytes(32),
    "sealed_height": 7,
    "sealed_root": bytes([1]) * 32,
}


def altered(header: Header, **changes: object) -> Header:
    return msgspec.structs.replace(header, **changes)


def test_blocks_travel() -> None:
    assert decode_block_untrusted(BLOCK.encode()) == BLOCK
    assert (BLOCK.height, BLOCK.is_quiet, make_block(BLOCK.header, SET).is_quiet) == (1, False, True)


def test_r09_the_hash_is_computed_from_every_field_of_the_header() -> None:
    assert set(CHANGED) == set(Header.__struct_fields__) - {"version"}
    hashes = {altered(BLOCK.header, **{field: value}).hash() for field, value in CHANGED.items()}
    assert len(hashes | {BLOCK.hash}) == len(CHANGED) + 1
    for bad in flips(header_codec.encode(BLOCK.header)):
        if not refusal(header_codec.decode_untrusted, bad):
            assert header_codec.decode_untrusted(bad).hash() != BLOCK.hash


def test_r08_the_hash_does_not_know_the_view() -> None:
    assert "view" not in Header.__struct_fields__
    assert "view" not in {field.name for field in dataclasses.fields(Block)}


def test_every_changed_byte_of_a_block_shows() -> None:
    leaves_root = BLOCK.header.transactions_root
    for bad in flips(BLOCK.encode()):
        if not refusal(decode_block_untrusted, bad):
            other = decode_block_untrusted(bad)
            assert (other.hash, other.transactions) != (BLOCK.hash, BLOCK.transactions)
    swapped = [TRANSACTIONS[1].leaf, TRANSACTIONS[0].leaf, TRANSACTIONS[2].leaf]
    assert transactions_root(swapped) != leaves_root == transactions_root([item.leaf for item in TRANSACTIONS])


def test_r44_a_repeated_transaction_changes_the_root() -> None:
    leaves = [transaction.leaf for transaction in TRANSACTIONS]
    assert transactions_root([*leaves, leaves[-1]]) != transactions_root(leaves)
    assert receipts_root([*RECEIPTS, RECEIPTS[-1]]) != receipts_root(RECEIPTS)


def test_r44_a_valid_block_is_accepted_after_an_invalid_one_of_its_hash() -> None:
    doubled = Block.of(BLOCK.header, [*BLOCK.transactions, BLOCK.transactions[-1]])
    assert doubled.hash == BLOCK.hash
    assert decode_block_untrusted(doubled.encode()) != BLOCK
    assert decode_block_untrusted(BLOCK.encode()) == BLOCK


@pytest.mark.parametrize(("field", "value"), CHANGED.items())
def test_r41_a_header_follows_from_its_parent(field: str, value: object) -> None:
    parent, parent_hash = GENESIS.header, GENESIS.hash
    assert not refusal(check_successor_untrusted, parent, parent_hash, BLOCK.header)
    needs_execution = {"proposer", "transactions_root", "receipts_root", "writes_root", "next_validators_hash"}
    expected = "" if field in needs_execution else "wrong_chain" if field == "chain_id" else "bad_header"
    header = altered(BLOCK.header, **{field: value})
    assert refusal(check_successor_untrusted, parent, parent_hash, header) == expected


def test_time_must_ascend() -> None:
    for time_ms in (GENESIS.header.time_ms, GENESIS.header.time_ms - 1, 0):
        header = altered(BLOCK.header, time_ms=time_ms, uptime_ms=0)
        assert refusal(check_successor_untrusted, GENESIS.header, GENESIS.hash, header) == "bad_header"


def test_a_seal_is_its_own_or_the_parents() -> None:
    sealed = make_block(GENESIS.header, SET, sealed_root=bytes([9]) * 32)
    assert not refusal(check_successor_untrusted, GENESIS.header, GENESIS.hash, sealed.header)
    carried = make_block(sealed.header, SET)
    assert (carried.header.sealed_height, carried.header.sealed_root) == (1, sealed.header.sealed_root)
    assert not refusal(check_successor_untrusted, sealed.header, sealed.hash, carried.header)
    for changes in ({"sealed_height": 0}, {"sealed_root": bytes(32)}, {"sealed_height": 3}):
        header = altered(carried.header, **changes)
        assert refusal(check_successor_untrusted, sealed.header, sealed.hash, header) == "bad_header"


@given(st.integers(1, 10**12))
def test_an_outage_counts_for_a_minute(gap_ms: int) -> None:
    uptime = uptime_after(BLOCK.header, BLOCK.header.time_ms + gap_ms)
    assert uptime == BLOCK.header.uptime_ms + min(gap_ms, UPTIME_STEP_MS_MAX)


@given(st.dictionaries(st.binary(max_size=8), st.none() | st.binary(max_size=8), max_size=12), st.data())
def test_the_writes_root_knows_order_no_more_than_content(
    writes: dict[bytes, bytes | None], data: st.DataObject
) -> None:
    shuffled = {key: writes[key] for key in data.draw(st.permutations(list(writes)))}
    assert writes_root(shuffled) == writes_root(writes)
    changed = {**writes, b"a new key": b""}
    assert writes_root(changed) != writes_root(writes) != writes_root({**changed, b"a new key": None})


def test_a_removal_is_no_empty_value() -> None:
    assert decode_untrusted(write_leaf(b"key", None)) == [b"key", None]
    assert write_leaf(b"key", None) != write_leaf(b"key", b"")


def test_receipts_travel_and_every_byte_counts() -> None:
    data = receipt_codec.encode(RECEIPTS[0])
    assert receipt_codec.decode_untrusted(data) == RECEIPTS[0]
    for bad in flips(data):
        if not refusal(receipt_codec.decode_untrusted, bad):
            assert receipts_root([receipt_codec.decode_untrusted(bad)]) != receipts_root(RECEIPTS[:1])


def test_a_certified_header() -> None:
    certificate = certify(BLOCK.header, KEYS, view=3)
    others = make_keys(4, first=50)
    assert not refusal(check_certified_untrusted, BLOCK.header, certificate, SET)
    for header, vouched, validators in [
        (make_block(BLOCK.header, SET).header, certificate, SET),
        (altered(BLOCK.header, writes_root=bytes(32)), certificate, SET),
        (BLOCK.header, certify(make_block(BLOCK.header, SET).header, KEYS), SET),
        (BLOCK.header, msgspec.structs.replace(certificate, height=2), SET),
        (BLOCK.header, certify(BLOCK.header, others), make_set(others)),
        (BLOCK.header, certify(BLOCK.header, KEYS, count=2), SET),
        (GENESIS.header, certify(GENESIS.header, KEYS), SET),
    ]:
        assert refusal(check_certified_untrusted, header, vouched, validators) == "bad_certificate"


def test_blocks_are_bounded() -> None:
    many = BlockRecord(BLOCK.header, [b""] * (BLOCK_TRANSACTIONS_MAX + 1))
    assert refusal(decode_block_untrusted, msgspec.msgpack.encode(many)) == "malformed"
    assert refusal(decode_block_untrusted, bytes(BLOCK_BYTES_MAX * 2)) == "too_large"


def test_r67_missing_and_surplus_fields_are_refused() -> None:
    fields = list(msgspec.structs.astuple(BLOCK.header))
    assert not refusal(header_codec.decode_untrusted, encode(fields))
    for place in range(len(fields)):
        assert refusal(header_codec.decode_untrusted, encode(fields[:place] + fields[place + 1 :])) == "malformed"
        for wrong in (None, [], {}, -1, "\n", b""):
            assert (
                refusal(header_codec.decode_untrusted, encode([*fields[:place], wrong, *fields[place + 1 :]]))
                == "malformed"
            )
    assert refusal(header_codec.decode_untrusted, encode([*fields, None])) == "malformed"
