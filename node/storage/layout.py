"""Where everything stands in a node's store. Every key begins with one letter; numbers are big-endian.

====  =========================================  =====================================================
key   then                                       value
====  =========================================  =====================================================
m     name                                       meta: ``format``, ``chain``, ``head``, ``state``, ``incarnation``
b     height 8                                   block: header and transactions
c     height 8                                   certificate
r     height 8                                   receipts of the block in order, ``Receipts``
w     height 8                                   net writes of the block, ``Writes``
i     block hash 32                              height 8
x     transaction id 32                          ``Location``
a     address 20, height 8, index 4              transaction id 32: an account's history
e     contract, 0, event name, 0, height 8       empty: blocks that hold such an event
k     height 8                                   the validator set from this height on, where it changes
s     state key                                  value at the height under ``state``
n     path                                       node of the state tree at the same height
v     key of the consensus engine                vote log
====  =========================================  =====================================================

State on disk is that of one of the last seals, values and tree alike. What blocks wrote since is read again
from ``w`` at start and kept in memory, sealed where they sealed: a value and its proof always fit together, and
a key that many blocks write reaches the state once in many seals.
"""

from typing import Annotated

import msgspec

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.receipt import Receipt

FORMAT = b"3"

META_FORMAT = b"mformat"
META_CHAIN = b"mchain"
META_HEAD = b"mhead"
META_STATE = b"mstate"
META_INCARNATION = b"mincarnation"

BLOCK = b"b"
CERTIFICATE = b"c"
RECEIPTS = b"r"
WRITES = b"w"
BLOCK_INDEX = b"i"
TRANSACTION = b"x"
HISTORY = b"a"
EVENT = b"e"
VALIDATORS = b"k"
STATE = b"s"
TREE = b"n"
VOTE = b"v"

NAMES_BY_HEIGHT = {
    BLOCK: "block",
    CERTIFICATE: "certificate",
    RECEIPTS: "receipts",
    WRITES: "writes",
    VALIDATORS: "validator set",
}
"""What people call the records that are stored by height."""
NAMES = NAMES_BY_HEIGHT | {
    BLOCK_INDEX: "block index",
    TRANSACTION: "transaction index",
    HISTORY: "account history",
    EVENT: "event index",
    STATE: "state",
    TREE: "state tree",
    VOTE: "vote log",
    b"m": "meta",
}
"""What people call the kinds of records."""

Count = Annotated[int, msgspec.Meta(ge=0)]


class Location(Record, frozen=True):
    """Where a transaction stands: its block, its place there, and its receipts among the block's."""

    height: Count
    index: Count
    receipt_index: Count
    receipt_count: Count


class Receipts(Record, frozen=True):
    """All receipts of a block; ``counts`` has one number a transaction."""

    receipts: list[Receipt]
    counts: list[Count]


class Writes(Record, frozen=True):
    """The net writes of a block in ascending order of their keys; None removes."""

    pairs: list[tuple[bytes, bytes | None]]


_RECORD_BYTES_MAX = 1 << 30
location_codec: RecordCodec[Location] = RecordCodec(Location, bytes_max=_RECORD_BYTES_MAX)
receipts_codec: RecordCodec[Receipts] = RecordCodec(Receipts, bytes_max=_RECORD_BYTES_MAX)
writes_codec: RecordCodec[Writes] = RecordCodec(Writes, bytes_max=_RECORD_BYTES_MAX)


def number(value: int) -> bytes:
    """Return a height as it stands in keys: 8 bytes, big-endian."""
    return value.to_bytes(8, "big")


def at_height(kind: bytes, height: int) -> bytes:
    """Return the key of what is stored by height."""
    return kind + height.to_bytes(8, "big")


def describe(key: bytes) -> str:
    """Return what people call the record under a key: ``block 7``, ``state tokens/…``."""
    kind, rest = key[:1], key[1:]
    if kind in NAMES_BY_HEIGHT and len(rest) >= 8:
        return f"{NAMES_BY_HEIGHT[kind]} {int.from_bytes(rest[:8], 'big')}"
    return f"{NAMES.get(kind, 'record')} {readable(rest)}".rstrip()


def readable(data: bytes) -> str:
    """Return bytes as the text that they are, else as 0x-hex."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"0x{data.hex()}"
    return text if text.isprintable() else f"0x{data.hex()}"


def history_key(address: bytes, height: int, index: int) -> bytes:
    """Return the key of one entry of an account's history."""
    return HISTORY + address + height.to_bytes(8, "big") + index.to_bytes(4, "big")


def event_key(contract: str, name: str, height: int) -> bytes:
    """Return the key that says: block ``height`` holds an event of this kind."""
    return event_prefix(contract, name) + height.to_bytes(8, "big")


def event_prefix(contract: str, name: str) -> bytes:
    """Return the prefix of all blocks that hold an event of this kind."""
    return EVENT + contract.encode() + b"\0" + name.encode() + b"\0"
