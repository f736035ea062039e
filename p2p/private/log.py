"""Where channels keep what must survive, on the node's private store. Layout, numbers big-endian::

    s ‖ channel                                 ChannelState
    o ‖ channel ‖ epoch (4) ‖ number (8)        our message that waits: [id, previous, head, payload]
    i ‖ position (8)                            for the owner: [bank, issuer, epoch, number, id, code, payload]
    d                                           position up to which the owner is done
    k ‖ SHA-256(channel, id)                    [epoch, number, ordinal] of a message of ours, also after it went
    n ‖ channel ‖ ordinal (8)                   the key of that, so that the oldest can be forgotten

``channel`` is ``BANK/ISSUER`` and a zero byte. The store seals values and not keys, so an id stands in no key.
Every position is used once, whatever the owner is done with. Pure but for the store that is given in.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeAlias, TypeVar, assert_never

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.errors import LocalError, PeerError, StorageError
from consensus.ledger.ids import tagged_hash
from p2p.frames import FRAME_BYTES_MAX
from p2p.private.channel_machine import ChannelState, Deliver, Enqueue, Entry, Fail, Keep, Remove
from p2p.private.port import ChannelName, Delivery, PrivateStore
from p2p.private.records import Message

IDS_KEPT = 65_536
"""Ids remembered for each channel; the oldest is forgotten first."""
INBOX_COUNT_MAX = 16_384
"""Deliveries that wait for the owner, of all channels; at this mark nothing more is taken from peers."""
INBOX_BYTES_MAX = 256 * 1024 * 1024
"""Their payloads."""

Write: TypeAlias = tuple[bytes, bytes | None]
T = TypeVar("T")


class _Outgoing(Record, frozen=True):
    id: str
    previous: bytes
    head: bytes
    payload: bytes


class _Incoming(Record, frozen=True):
    bank: str
    issuer: str
    epoch: int
    number: int
    id: str
    code: str
    payload: bytes


class _Placed(Record, frozen=True):
    epoch: int
    number: int
    ordinal: int


_state_codec: RecordCodec[ChannelState] = RecordCodec(ChannelState, bytes_max=1_024)
_outgoing_codec: RecordCodec[_Outgoing] = RecordCodec(_Outgoing, bytes_max=FRAME_BYTES_MAX)
_incoming_codec: RecordCodec[_Incoming] = RecordCodec(_Incoming, bytes_max=FRAME_BYTES_MAX)
_placed_codec: RecordCodec[_Placed] = RecordCodec(_Placed, bytes_max=64)

_DONE = b"d"


class ChannelLog:
    """Outboxes, the one inbox, and states on a store. Reads see what is durable; writes are made by the caller."""

    def __init__(self, store: PrivateStore) -> None:
        """Read what waits for the owner.

        Raises:
            StorageError: ``corrupted``.
        """
        self._store = store
        done = store.get(_DONE)
        self._last = int.from_bytes(done or b"", "big")
        self._durable = self._last
        self._positions: list[int] = []
        self._sizes: dict[int, int] = {}
        self._failed: dict[int, bytes] = {}
        self._bytes = 0
        for key, value in store.scan(b"i"):
            item = _decode(_incoming_codec, key, value)
            failed = _id_key(ChannelName(item.bank, item.issuer), item.id) if item.code else None
            self._note(int.from_bytes(key[1:], "big"), len(item.payload), failed)
        self._durable = self._last

    @property
    def last(self) -> int:
        """The highest position that the owner may read."""
        return self._durable

    @property
    def has_room(self) -> bool:
        """Whether the inbox takes more from peers."""
        return len(self._positions) < INBOX_COUNT_MAX and self._bytes < INBOX_BYTES_MAX

    def load(self, channel: ChannelName) -> tuple[ChannelState, list[Entry]]:
        """Return what was kept of a channel, its waiting messages in order.

        Raises:
            StorageError: ``corrupted``.
        """
        key = b"s" + _prefix(channel)
        value = self._store.get(key)
        state = ChannelState() if value is None else _decode(_state_codec, key, value)
        entries: list[Entry] = []
        prefix = b"o" + _prefix(channel)
        for key, value in self._store.scan(prefix):
            place, item = key[len(prefix) :], _decode(_outgoing_codec, key, value)
            epoch, number = int.from_bytes(place[:4], "big"), int.from_bytes(place[4:], "big")
            entries.append(Entry(epoch, number, item.id, len(item.payload), item.head))
        return state, entries

    def placed(self, channel: ChannelName, message_id: str) -> tuple[int, int] | None:
        """Return epoch and number that a message of this id got, None when it is new or long forgotten."""
        key = _id_key(channel, message_id)
        value = self._store.get(key)
        if value is None:
            return None
        item = _decode(_placed_codec, key, value)
        return item.epoch, item.number

    def message(self, channel: ChannelName, entry: Entry, *, to_bank: bool) -> Message:
        """Return a message of ours that waits, not signed.

        Raises:
            StorageError: ``corrupted`` when it is not there.
        """
        key = _out_key(channel, entry)
        value = self._store.get(key)
        if value is None:
            raise StorageError("corrupted", f"message {entry.number} to {channel} is gone from the private store")
        item = _decode(_outgoing_codec, key, value)
        return Message(*channel, entry.epoch, to_bank, entry.number, item.previous, item.payload)

    def writes(self, channel: ChannelName, keep: Sequence[Keep]) -> list[Write]:
        """Return the writes for what a machine wants kept; they have to be made, in the order of these calls."""
        writes: list[Write] = []
        for item in keep:
            match item:
                case Enqueue():
                    writes += self._enqueue(channel, item)
                case Remove():
                    writes.append((_out_key(channel, item.entry), None))
                case Fail():
                    entry = item.entry
                    writes.append((_out_key(channel, entry), None))
                    writes.append(self._deliver(channel, entry.epoch, entry.number, b"", entry.id, item.code))
                case Deliver():
                    message = item.message
                    writes.append(self._deliver(channel, message.epoch, message.number, message.payload, "", ""))
                case ChannelState():
                    writes.append((b"s" + _prefix(channel), _state_codec.encode(item)))
                case _:
                    assert_never(item)
        return writes

    def written(self) -> None:
        """Take note that all writes so far are durable: the owner may read what they delivered."""
        self._durable = self._last

    def waits(self, after: int) -> bool:
        """Tell whether :meth:`receive` has something behind a position, or refuses it."""
        place = bisect_right(self._positions, after)
        return after > self._durable or (place < len(self._positions) and self._positions[place] <= self._durable)

    def receive(self, after: int, *, limit: int, bytes_max: int) -> list[Delivery]:
        """Return what waits behind a position, oldest first, at least one when there is any.

        Raises:
            LocalError: ``position_ahead`` for a position that this store never gave.
            StorageError: ``corrupted``.
        """
        if after > self._durable:
            raise LocalError("position_ahead", f"the newest position is {self._durable}: was the store replaced?")
        found: list[Delivery] = []
        size = 0
        first = bisect_right(self._positions, after)
        for position in self._positions[first : first + limit]:
            size += self._sizes[position]
            if position > self._durable or (found and size > bytes_max):
                break
            key = _in_key(position)
            value = self._store.get(key)
            if value is None:
                raise StorageError("corrupted", f"delivery {position} is gone from the private store")
            item = _decode(_incoming_codec, key, value)
            channel = ChannelName(item.bank, item.issuer)
            found.append(Delivery(position, channel, item.epoch, item.number, item.payload, item.id, item.code))
        return found

    def done(self, position: int) -> list[Write]:
        """Return the writes that forget everything up to a position, and the ids of what failed there.

        Raises:
            LocalError: ``position_ahead``.
        """
        if position > self._durable:
            raise LocalError("position_ahead", f"the newest position is {self._durable}: was the store replaced?")
        count = bisect_right(self._positions, position)
        writes: list[Write] = [(_DONE, self._last.to_bytes(8, "big"))] if count else []
        for old in self._positions[:count]:
            writes.append((_in_key(old), None))
            if (failed := self._failed.pop(old, None)) is not None:
                writes.append((failed, None))
            self._bytes -= self._sizes.pop(old)
        del self._positions[:count]
        return writes

    def _enqueue(self, channel: ChannelName, item: Enqueue) -> list[Write]:
        entry, id_key = item.entry, _id_key(channel, item.entry.id)
        outgoing = _Outgoing(entry.id, item.previous, entry.head, item.payload)
        placed = _Placed(entry.epoch, entry.number, item.ordinal)
        writes: list[Write] = [
            (_out_key(channel, entry), _outgoing_codec.encode(outgoing)),
            (id_key, _placed_codec.encode(placed)),
            (_ordinal_key(channel, item.ordinal), id_key),
        ]
        if item.ordinal >= IDS_KEPT:
            old = item.ordinal - IDS_KEPT
            old_key = self._store.get(_ordinal_key(channel, old))
            value = None if old_key is None else self._store.get(old_key)
            writes.append((_ordinal_key(channel, old), None))
            if old_key is not None and value is not None and _decode(_placed_codec, old_key, value).ordinal == old:
                writes.append((old_key, None))
        return writes

    def _deliver(
        self, channel: ChannelName, epoch: int, number: int, payload: bytes, message_id: str, code: str
    ) -> Write:
        position = self._last + 1
        self._note(position, len(payload), _id_key(channel, message_id) if code else None)
        item = _Incoming(*channel, epoch, number, message_id, code, payload)
        return _in_key(position), _incoming_codec.encode(item)

    def _note(self, position: int, size: int, failed: bytes | None) -> None:
        self._positions.append(position)
        self._sizes[position] = size
        self._bytes += size
        self._last = max(self._last, position)
        if failed is not None:
            self._failed[position] = failed


def _prefix(channel: ChannelName) -> bytes:
    return f"{channel}\0".encode()


def _out_key(channel: ChannelName, entry: Entry) -> bytes:
    return b"o" + _prefix(channel) + entry.epoch.to_bytes(4, "big") + entry.number.to_bytes(8, "big")


def _in_key(position: int) -> bytes:
    return b"i" + position.to_bytes(8, "big")


def _id_key(channel: ChannelName, message_id: str) -> bytes:
    return b"k" + tagged_hash("channel-id", _prefix(channel), message_id.encode(errors="replace"))


def _ordinal_key(channel: ChannelName, ordinal: int) -> bytes:
    return b"n" + _prefix(channel) + ordinal.to_bytes(8, "big")


def _decode(codec: RecordCodec[T], key: bytes, value: bytes) -> T:
    try:
        return codec.decode_untrusted(value)
    except PeerError as error:
        raise StorageError("corrupted", f"private record {key[:1].decode()}: {error.message}") from None
