"""Lanes as state holds them: which number of a sender's lane comes next, and what became of the last one."""

from typing import TypeVar

import msgspec

from consensus.ledger.errors import StorageError
from contracts.runtime.state import StateReader

R = TypeVar("R")

LANES_PER_ACCOUNT_MAX = 256
"""How many counted lanes an account may open; a one-shot lane costs one record and is not counted."""


class LaneRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One lane, stored as a map with camelCase keys.

    ``next`` is the only number that the lane accepts; ``last_id`` (32 bytes), ``status`` (0 when every
    call succeeded, else 1) and ``height`` tell of the transaction before it.
    """

    next: int
    last_id: bytes
    status: int
    height: int


_decoder = msgspec.msgpack.Decoder(LaneRecord)
_encoder = msgspec.msgpack.Encoder(order="sorted")
_count_decoder = msgspec.msgpack.Decoder(int)


def lane_key(sender: bytes, lane: bytes) -> bytes:
    """Return the state key of a lane's record."""
    return f"lanes/{sender.hex()}/{lane.hex()}".encode()


def lane_count_key(sender: bytes) -> bytes:
    """Return the state key under which an account's counted lanes are counted."""
    return f"lanes/{sender.hex()}/count".encode()


def load_lane(state: StateReader, sender: bytes, lane: bytes) -> LaneRecord | None:
    """Return a lane's record, None for a lane that was never used."""
    data = state.get(lane_key(sender, lane))
    return None if data is None else _trusted(_decoder, data)


def load_lane_count(state: StateReader, sender: bytes) -> int:
    """Return how many counted lanes an account has opened."""
    data = state.get(lane_count_key(sender))
    return 0 if data is None else _trusted(_count_decoder, data)


def _trusted(decoder: "msgspec.msgpack.Decoder[R]", data: bytes) -> R:
    """Decode what execution wrote; bytes that no longer decode mean a damaged store.

    Raises:
        StorageError: ``corrupted``.
    """
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError):
        raise StorageError("corrupted", "the record of a lane cannot be read") from None


def encode_lane(record: LaneRecord) -> bytes:
    """Return the canonical bytes of a lane's record."""
    return _encoder.encode(record)


def encode_lane_count(count: int) -> bytes:
    """Return the canonical bytes of a lane count."""
    return _encoder.encode(count)
