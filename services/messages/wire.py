"""What travels between the message centre and its peers: frames, what is in them, and nothing that waits. Pure.

A frame is its payload's length (4 bytes, big-endian) ‖ payload, a msgpack array whose first element says what it is.

    peer → centre   Hello     once, first: who it is, and which secret it knows
    centre → peer   Welcome   or Failure, and then the end
    peer → centre   Publish | Find | Ended | Replay | Discard | Ask | Settle    each with an id
    centre → peer   Kept | Records | Replayed | Discarded | Standing | Settled | Failure    by id, in any order
    centre → peer   Deliver   only to a consumer, one at a time
    peer → centre   Received  at once for each Deliver, before anybody looks at it
    peer → centre   Leave     the last frame of a consumer that goes in order

:class:`Reader` cuts a stream into frames. It refuses a length above its limit when it has read the four bytes, so that
a peer makes nobody hold more than one frame and one feed; until the Hello is read the limit is ``HELLO_BYTES_MAX``.
Requests under way at the same time have no order between them; who needs one waits for the answer.
"""

from collections.abc import Sequence
from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import Meta, Struct

from consensus.ledger.errors import LocalError, PeerError
from services.messages.port import PUBLISH_MESSAGES_MAX, WINDOW_MAX, Delivery, Settlement, Stats
from services.messages.store import (
    BODY_BYTES_MAX,
    DETAIL_BYTES_MAX,
    KEY_BYTES_MAX,
    LANE_BYTES_MAX,
    MARK_BYTES_MAX,
    NewMessage,
    Published,
    Record,
    State,
)

VERSION = 1
HELLO_BYTES_MAX = 1_024
"""Largest payload before a peer has shown that it knows the token."""
FRAME_BYTES_MAX = 20 * 1024 * 1024
"""Largest payload after it: 1,000 of the largest messages, or of the largest records, fit."""
ITEMS_MAX = PUBLISH_MESSAGES_MAX
"""How many messages, keys, records or sequences are in one frame."""
NAME_CHARACTERS_MAX = 64
LENGTH_BYTES = 4

_Identity = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Message = tuple[
    Annotated[str, Meta(max_length=KEY_BYTES_MAX)],
    Annotated[str, Meta(max_length=LANE_BYTES_MAX)],
    Annotated[bytes, Meta(max_length=BODY_BYTES_MAX)],
    Annotated[bytes, Meta(max_length=MARK_BYTES_MAX)],
]


class Hello(Struct, frozen=True, array_like=True, tag=1):
    """The first frame of a peer.

    Args:
        version: of this format.
        name: for the log and the figures.
        token: the secret of the centre, empty where it has none.
        boot: which start of which machine this is, as the kernel names it; empty when it does not.
        window: 0 from who only asks; from a consumer the number of deliveries it wants unsettled at a time.
    """

    version: int
    name: Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)]
    token: Annotated[str, Meta(max_length=256)]
    boot: Annotated[str, Meta(max_length=64)]
    window: Annotated[int, Meta(ge=0, le=WINDOW_MAX)]


class Publish(Struct, frozen=True, array_like=True, tag=2):
    """Keep messages; answered by Kept when they are durable."""

    id: _Identity
    messages: Annotated[list[_Message], Meta(min_length=1, max_length=ITEMS_MAX)]


class Find(Struct, frozen=True, array_like=True, tag=3):
    """Look messages up by their keys; answered by Records."""

    id: _Identity
    keys: Annotated[list[Annotated[str, Meta(max_length=KEY_BYTES_MAX)]], Meta(max_length=ITEMS_MAX)]


class Ended(Struct, frozen=True, array_like=True, tag=4):
    """List what ended so, above a sequence; answered by Records."""

    id: _Identity
    state: State
    after: _Count
    limit: Annotated[int, Meta(ge=1, le=ITEMS_MAX)]


class Replay(Struct, frozen=True, array_like=True, tag=5):
    """Make dead letters wait again; answered by Replayed."""

    id: _Identity
    sequences: Annotated[list[_Count], Meta(max_length=ITEMS_MAX)]


class Ask(Struct, frozen=True, array_like=True, tag=6):
    """Ask how the queue stands; answered by Standing."""

    id: _Identity


class Settle(Struct, frozen=True, array_like=True, tag=7):
    """A consumer's verdicts; answered by Settled."""

    id: _Identity
    settlements: Annotated[list[Settlement], Meta(max_length=ITEMS_MAX)]


class Received(Struct, frozen=True, array_like=True, tag=8):
    """A delivery has been read, at ``at_ns`` of the consumer's monotonic clock."""

    fence: _Count
    at_ns: _Count


class Discard(Struct, frozen=True, array_like=True, tag=9):
    """Drop dead letters for ever; answered by Discarded."""

    id: _Identity
    sequences: Annotated[list[_Count], Meta(max_length=ITEMS_MAX)]


class Leave(Struct, frozen=True, array_like=True, tag=10):
    """A consumer goes in order: what it leaves unsettled is not why. Nothing answers it."""


class Welcome(Struct, frozen=True, array_like=True, tag=20):
    """The answer to a Hello. ``is_same_machine``: both have one monotonic clock."""

    version: int
    is_same_machine: bool


class Kept(Struct, frozen=True, array_like=True, tag=21):
    """What became of each message of a Publish: its sequence, whether it is new, whether it is in conflict."""

    id: _Identity
    published: list[tuple[int, bool, bool]]


class Records(Struct, frozen=True, array_like=True, tag=22):
    """Messages that were looked up or listed."""

    id: _Identity
    records: list[Record | None]


class Replayed(Struct, frozen=True, array_like=True, tag=23):
    """How many dead letters wait again."""

    id: _Identity
    count: int


class Standing(Struct, frozen=True, array_like=True, tag=24):
    """How the queue stands."""

    id: _Identity
    stats: Stats


class Settled(Struct, frozen=True, array_like=True, tag=25):
    """Which of the verdicts counted, in their order."""

    id: _Identity
    counted: list[bool]


class Failure(Struct, frozen=True, array_like=True, tag=26):
    """A request failed, with a code of ``docs/errors.md``; id 0: the connection did, and ends."""

    id: _Identity
    code: str
    message: str


class Deliver(Struct, frozen=True, array_like=True, tag=27):
    """A message on lease.

    ``until_ns``: who reads it later than this on the clock they share leaves it unread, since the centre has given
    the delivery up by then; 0 where the clocks differ.
    """

    sequence: int
    fence: int
    attempt: int
    key: str
    lane: str
    body: bytes
    until_ns: int

    def delivery(self) -> Delivery:
        """Return it as the port has it."""
        return Delivery(self.sequence, self.fence, self.attempt, self.key, self.lane, self.body)


class Discarded(Struct, frozen=True, array_like=True, tag=28):
    """How many dead letters were dropped."""

    id: _Identity
    count: int


Request = Publish | Find | Ended | Replay | Discard | Ask | Settle
FromPeer = Request | Received | Leave
FromCenter = Welcome | Kept | Records | Replayed | Discarded | Standing | Settled | Failure | Deliver
Frame = Hello | FromPeer | FromCenter
FrameT = TypeVar("FrameT")

hello_decoder = msgspec.msgpack.Decoder(Hello)
peer_decoder: msgspec.msgpack.Decoder[FromPeer] = msgspec.msgpack.Decoder(FromPeer)
center_decoder: msgspec.msgpack.Decoder[FromCenter] = msgspec.msgpack.Decoder(FromCenter)
_encoder = msgspec.msgpack.Encoder()


def encode(frame: Frame) -> bytes:
    """Return the bytes of a frame.

    Raises:
        LocalError: ``too_large``.
    """
    payload = _encoder.encode(frame)
    if len(payload) > FRAME_BYTES_MAX:
        raise LocalError("too_large", f"{len(payload)} bytes, a frame holds at most {FRAME_BYTES_MAX}")
    return len(payload).to_bytes(LENGTH_BYTES) + payload


class Reader(Generic[FrameT]):
    """Cuts a stream into frames of one kind: ``feed`` bytes, then take frames until there is none."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[FrameT], *, payload_bytes_max: int, rest: bytes = b"") -> None:
        self._decoder = decoder
        self._payload_bytes_max = payload_bytes_max
        self._buffer = bytearray(rest)
        self._start = 0
        self.frame_bytes = 0
        """Size of the last frame's payload."""

    def feed(self, data: bytes | bytearray) -> None:
        """Append received bytes."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next_untrusted(self) -> FrameT | None:
        """Return the next frame, or None when more bytes are needed.

        Raises:
            PeerError: ``too_large`` or ``malformed``; the stream cannot be read on after it.
        """
        begin = self._start + LENGTH_BYTES
        available = len(self._buffer) - begin
        if available < 0:
            return None
        size = int.from_bytes(self._buffer[self._start : begin])
        if size > self._payload_bytes_max:
            raise PeerError("too_large", f"a frame of {size} bytes, at most {self._payload_bytes_max} are taken")
        if available < size:
            return None
        self._start = begin + size
        self.frame_bytes = size
        try:
            with memoryview(self._buffer) as view, view[begin : self._start] as payload:
                return self._decoder.decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise PeerError("malformed", f"no frame of the message centre: {error}") from None

    def take_rest(self) -> bytes:
        """Return what is not decoded yet, for a reader of other frames to go on with."""
        return bytes(self._buffer[self._start :])


def messages_of(frame: Publish) -> list[NewMessage]:
    """Return what a Publish wants kept."""
    return [NewMessage(key, lane, body, mark) for key, lane, body, mark in frame.messages]


def publish_of(identity: int, messages: Sequence[NewMessage]) -> Publish:
    """Return the frame that wants these kept."""
    return Publish(identity, [(message.key, message.lane, message.body, message.mark) for message in messages])


def kept_of(identity: int, published: Sequence[Published]) -> Kept:
    """Return the frame that says what became of messages."""
    return Kept(identity, [(one.sequence, one.is_new, one.is_conflict) for one in published])


def published_of(frame: Kept) -> list[Published]:
    """Return what a Kept says."""
    return [Published(*one) for one in frame.published]


def deliver_of(delivery: Delivery, until_ns: int) -> Deliver:
    """Return the frame that delivers."""
    return Deliver(
        delivery.sequence, delivery.fence, delivery.attempt, delivery.key, delivery.lane, delivery.body, until_ns
    )


def check_settlements(settlements: Sequence[Settlement]) -> None:
    """Check what goes out as verdicts.

    Raises:
        LocalError: ``too_large``: a detail is above 1 KiB, or there are too many.
    """
    if len(settlements) > ITEMS_MAX:
        raise LocalError("too_large", f"{len(settlements)} settlements, at most {ITEMS_MAX} go at once")
    for settlement in settlements:
        if len(settlement.detail.encode()) > DETAIL_BYTES_MAX:
            raise LocalError("too_large", f"a detail is longer than {DETAIL_BYTES_MAX} bytes")
