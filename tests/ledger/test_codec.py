"""The canonical codec: one value, one encoding; nothing that anyone sends does harm (R72)."""

import time
import tracemalloc

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from consensus.ledger.block import decode_block_untrusted, header_codec
from consensus.ledger.codec import (
    INTEGER_MAX,
    INTEGER_MIN,
    Limits,
    Record,
    RecordCodec,
    Value,
    decode,
    decode_untrusted,
    encode,
)
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.receipt import receipt_codec
from consensus.ledger.state_tree import state_proof_codec
from consensus.ledger.transaction import decode_transaction_untrusted
from consensus.ledger.validators import certificate_codec, decode_validators_untrusted
from tests.ledger.builders import refusal

integers = st.integers(INTEGER_MIN, INTEGER_MAX)
leaves = st.none() | st.booleans() | integers | st.binary(max_size=300) | st.text(max_size=80)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20)
)

DECODERS = [
    decode_untrusted,
    decode_transaction_untrusted,
    decode_block_untrusted,
    decode_validators_untrusted,
    header_codec.decode_untrusted,
    certificate_codec.decode_untrusted,
    receipt_codec.decode_untrusted,
    state_proof_codec.decode_untrusted,
]


@given(values)
def test_what_is_encoded_decodes_to_itself(value: Value) -> None:
    data = encode(value)
    assert decode_untrusted(data) == value
    assert decode(data) == value


@given(values)
def test_the_encoding_is_messagepack_with_sorted_keys(value: Value) -> None:
    def in_order(item: Value) -> Value:
        match item:
            case list():
                return [in_order(inner) for inner in item]
            case dict():
                return {key: in_order(item[key]) for key in sorted(item)}
            case _:
                return item

    assert encode(value) == msgpack.packb(in_order(value), use_bin_type=True)


@given(st.dictionaries(st.text(), integers, min_size=2), st.randoms(use_true_random=False))
def test_the_order_of_a_map_does_not_matter(value: dict[str, int], random: object) -> None:
    keys = list(value)
    random.shuffle(keys)  # type: ignore[attr-defined]
    assert encode({key: value[key] for key in keys}) == encode(dict(value))


@given(st.binary(max_size=200) | values.map(lambda value: msgpack.packb(value, use_bin_type=True)))
@example(b"\xce\x00\x00\x00\x01")
def test_any_bytes_are_refused_or_canonical(data: bytes) -> None:
    if (code := refusal(decode_untrusted, data)) != "malformed":
        assert not code
        assert encode(decode_untrusted(data)) == data


@given(st.binary(max_size=400))
def test_no_decoder_raises_anything_else(data: bytes) -> None:
    for decoder in DECODERS:
        assert refusal(decoder, data) in {"", "malformed", "too_large", "bad_validators"}


@given(values, st.data())
def test_no_mutation_has_the_same_meaning(value: Value, data: st.DataObject) -> None:
    good = encode(value)
    place = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[place] ^= data.draw(st.integers(1, 255))
    try:
        other = decode_untrusted(bytes(bad))
    except PeerError:
        return
    assert encode(other) != good


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "nothing"),
        (b"\x01\x01", "two values"),
        (b"\xc1", "the unused byte"),
        (b"\xcc\x01", "an 8-bit one"),
        (b"\xcd\x00\xff", "a 16-bit 255"),
        (b"\xce\x00\x00\xff\xff", "a 32-bit 65,535"),
        (b"\xcf\x00\x00\x00\x00\xff\xff\xff\xff", "a 64-bit 2^32-1"),
        (b"\xd0\x01", "a signed one"),
        (b"\xd3\x00\x00\x00\x00\x00\x00\x00\x01", "a signed 64-bit one"),
        (b"\xd0\xff", "an 8-bit -1"),
        (b"\xcf\x80\x00\x00\x00\x00\x00\x00\x00", "2^63"),
        (b"\xcf" + b"\xff" * 8, "2^64-1"),
        (b"\xca\x3f\x80\x00\x00", "a float"),
        (b"\xcb" + bytes(8), "a double"),
        (b"\xcb\x7f\xf8" + bytes(6), "not a number"),
        (b"\xd4\x05\x00", "an extension"),
        (b"\xd6\xff" + bytes(4), "a timestamp"),
        (b"\xd7\xff" + bytes(8), "a 64-bit timestamp"),
        (b"\xc7\x0c\xff" + bytes(12), "a 96-bit timestamp"),
        (b"\xd9\x01a", "text with a longer length than needed"),
        (b"\xda\x00\x01a", "text with a 16-bit length"),
        (b"\xc5\x00\x01a", "bytes with a 16-bit length"),
        (b"\xdc\x00\x01\xc0", "a list with a 16-bit length"),
        (b"\xde\x00\x01\xa1a\x01", "a map with a 16-bit length"),
        (b"\x82\xa1a\x01\xa1a\x01", "a key twice"),
        (b"\x82\xa1b\x01\xa1a\x01", "keys out of order"),
        (b"\x81\x01\x01", "an integer as key"),
        (b"\x81\xc4\x01a\x01", "bytes as key"),
        (b"\x81\xc0\x01", "nil as key"),
        (b"\x81\x90\x01", "a list as key"),
        (b"\xa1\xff", "text that is no UTF-8"),
        (b"\xa3\xed\xa0\x80", "a lone surrogate"),
        (b"\xa2\xc0\x80", "an overlong zero"),
        (b"\xa5ab", "cut text"),
    ],
)
def test_r72_a_second_spelling_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(PeerError) as refused:
        decode_untrusted(data)
    assert refused.value.code == "malformed", why


class _Pair(Record, frozen=True):
    number: int
    data: bytes


@pytest.mark.parametrize(
    "data",
    [
        b"\xdc\x00\x02\x05\xc4\x01x",
        b"\x92\xcc\x05\xc4\x01x",
        b"\x92\xd3\x00\x00\x00\x00\x00\x00\x00\x05\xc4\x01x",
        b"\x92\x05\xc5\x00\x01x",
    ],
    ids=["a list with a 16-bit length", "an 8-bit five", "a 64-bit five", "bytes with a 16-bit length"],
)
def test_r72_a_second_spelling_of_a_record_is_refused(data: bytes) -> None:
    """The decoder itself takes them all, and each would give one record a second hash."""
    codec: RecordCodec[_Pair] = RecordCodec(_Pair, bytes_max=64)
    assert codec.decode_untrusted(codec.encode(_Pair(5, b"x"))) == _Pair(5, b"x")
    with pytest.raises(PeerError) as refused:
        codec.decode_untrusted(data)
    assert refused.value.code == "malformed"


BOMBS = {
    "a list of 2^32-1": b"\xdd\xff\xff\xff\xff",
    "a map of 2^32-1": b"\xdf\xff\xff\xff\xff",
    "bytes of 2^32-1": b"\xc6\xff\xff\xff\xff",
    "text of 2^32-1": b"\xdb\xff\xff\xff\xff",
    "an extension of 2^32-1": b"\xc9\xff\xff\xff\xff\x01",
    "lists in lists": b"\x91" * 200_000,
    "maps in maps": b"\x81\xa1a" * 60_000,
    "lists that claim all that is left": b"\xdc\xff\xff" * 1_000 + b"\xc0" * 70_000,
    "lists that claim 2^20": b"\xdd\x00\x01\x00\x00" * 20_000,
    "maps that claim all that is left": b"\xde\xff\xff\xa1a" * 1_000 + b"\xc0" * 140_000,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_r72_bombs_cost_neither_memory_nor_time(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        began = time.process_time()
        for decoder in DECODERS:
            with pytest.raises(PeerError):
                decoder(bomb)
        elapsed_s = time.process_time() - began
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 * 1024 * 1024
    assert elapsed_s < 2.0


def test_depth_is_bounded_for_both_sides() -> None:
    def nested(depth: int) -> Value:
        value: Value = 1
        for _ in range(depth):
            value = [value]
        return value

    assert decode_untrusted(encode(nested(16))) == nested(16)
    with pytest.raises(LocalError, match="deep"):
        encode(nested(17))
    with pytest.raises(PeerError, match="deep"):
        decode_untrusted(b"\x91" * 17 + b"\x01")
    with pytest.raises(PeerError, match="deep"):
        decode_untrusted(encode(nested(3)), Limits(depth_max=2))


def test_size_and_items_are_bounded() -> None:
    with pytest.raises(PeerError) as refused:
        decode_untrusted(bytes(11), Limits(bytes_max=10))
    assert refused.value.code == "too_large"
    ten: list[Value] = [1] * 10
    assert decode_untrusted(encode(ten), Limits(items_max=10)) == ten
    with pytest.raises(PeerError):
        decode_untrusted(encode([*ten, 1]), Limits(items_max=10))
    with pytest.raises(PeerError):
        decode_untrusted(encode({str(number): 1 for number in range(11)}), Limits(items_max=10))


@pytest.mark.parametrize(
    "value",
    [
        1.0,
        float("nan"),
        2**63,
        -(2**63) - 1,
        "\ud800",
        {"\udfff": 1},
        {1: 2},
        {b"a": 1},
        {None: 1},
        {1, 2},
        object(),
        1j,
    ],
    ids=repr,
)
def test_what_has_no_encoding_is_refused(value: object) -> None:
    with pytest.raises(LocalError) as refused:
        encode([value])  # type: ignore[list-item]
    assert refused.value.code == "not_canonical"


def test_subclasses_have_no_encoding() -> None:
    class Number(int):
        pass

    with pytest.raises(LocalError):
        encode(Number(1))
