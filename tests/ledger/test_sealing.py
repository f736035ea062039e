"""Sealed values open with their key at their place and nowhere else, and show nothing of what they hold."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.errors import LocalError, StorageError
from consensus.ledger.sealing import KEY_BYTES, NONCE_BYTES, TAG_BYTES, Sealer
from tests.ledger.builders import flips

KEY = bytes(range(KEY_BYTES))


def sealer(key: bytes = KEY, seed: int = 1) -> Sealer:
    return Sealer(key, Random(seed).randbytes)


@given(st.binary(max_size=64), st.binary(max_size=300))
def test_what_is_sealed_opens_at_its_place(place: bytes, value: bytes) -> None:
    mine = sealer()
    sealed = mine.seal(place, value)
    assert len(sealed) == NONCE_BYTES + len(value) + TAG_BYTES
    assert mine.open(place, sealed) == value
    assert sealer(seed=2).open(place, sealed) == value
    with pytest.raises(StorageError) as refusal:
        mine.open(place + b"x", sealed)
    assert refusal.value.code == "not_sealed_here"


def test_every_altered_bit_and_every_cut_is_found() -> None:
    mine = sealer()
    sealed = mine.seal(b"place", b"an order")
    assert [changed for changed in flips(sealed) if not fails(mine.open, b"place", changed)] == []
    assert [end for end in range(len(sealed)) if not fails(mine.open, b"place", sealed[:end])] == []


def test_another_key_does_not_open_it() -> None:
    assert fails(sealer(bytes(KEY_BYTES)).open, b"place", sealer().seal(b"place", b"value"))


def test_the_same_value_twice_looks_different_and_shows_nothing() -> None:
    mine = sealer()
    first, second = mine.seal(b"place", b"marker" * 4), mine.seal(b"place", b"marker" * 4)
    assert first[:NONCE_BYTES] != second[:NONCE_BYTES]
    assert first[NONCE_BYTES:] != second[NONCE_BYTES:]
    assert b"marker" not in first


@pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
def test_a_key_has_32_bytes(size: int) -> None:
    with pytest.raises(LocalError) as refusal:
        sealer(bytes(size))
    assert refusal.value.code == "bad_key"


def fails(function: Callable[[bytes, bytes], bytes], place: bytes, sealed: bytes) -> bool:
    try:
        function(place, sealed)
    except StorageError as error:
        return error.code == "not_sealed_here"
    return False
