"""What payer and service party of a stream say to each other, the same over WebSocket, HTTP and private channels.

A *frame* is a list of messages of any of a connection's streams, in canonical MessagePack. ``Stored`` and ``Supplied``
tell of what is durable, of each stream only the last of a frame, since both count in all.

A connection begins with the service party's ``Challenge``; each stream on it with the payer's ``Hello``, signed over
the nonce, which is answered by ``Standing``. Over HTTP the nonce comes from ``POST /challenges``, and a Hello stands
first in each request's frame or not at all: an ``Iterate`` carries a signature of its own and needs none.
"""

from typing import Annotated, Final, TypeAlias

import msgspec

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.ids import HASH_BYTES
from consensus.ledger.keys import SIGNATURE_BYTES
from consensus.ledger.streams import ITERATION_BYTES_MAX, Amount, Natural

FRAME_BYTES_MAX = 64 * 1024
MESSAGES_MAX = 256
"""Messages in one frame."""
NONCE_BYTES: Final = 32

StreamId: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Signature: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Nonce: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


class Hello(Record, frozen=True, tag=1):
    """Payer: this stream is mine; its key's signature of the nonce, ``Purpose.STREAM_HELLO`` over ``hello_payload``."""

    stream: StreamId
    nonce: Nonce
    signature: Signature


class Iterate(Record, frozen=True, tag=2):
    """Payer: an iteration, a whole signed transaction."""

    stream: StreamId
    raw: Annotated[bytes, msgspec.Meta(max_length=ITERATION_BYTES_MAX)]


class Close(Record, frozen=True, tag=3):
    """Payer: let us close with this total; signed for ``STREAM_CLOSE`` over ``close_hash``."""

    stream: StreamId
    due: Amount
    signature: Signature


class Ask(Record, frozen=True, tag=4):
    """Payer: how does this stream stand? Needs a ``Hello`` before it."""

    stream: StreamId


class Challenge(Record, frozen=True, tag=5):
    """Service party: sign this, once."""

    nonce: Nonce


class Standing(Record, frozen=True, tag=6):
    """Service party: what is stored (``due``, ``count`` iterations), how many units were supplied, and the status."""

    stream: StreamId
    due: Amount
    count: Natural
    units: Natural
    status: Annotated[str, msgspec.Meta(max_length=32)]
    reason: Annotated[str, msgspec.Meta(max_length=64)]


class Supplied(Record, frozen=True, tag=7):
    """Service party: this many units were supplied in all, and what is due for them."""

    stream: StreamId
    units: Natural
    due: Amount


class Stored(Record, frozen=True, tag=8):
    """Service party: the iteration with this total is durable."""

    stream: StreamId
    due: Amount


class Refused(Record, frozen=True, tag=9):
    """Service party: what came for this stream was not taken; codes in docs/errors.md."""

    stream: StreamId
    code: Annotated[str, msgspec.Meta(pattern=r"^[a-z_]{1,64}\Z")]
    message: Annotated[str, msgspec.Meta(max_length=256)]


class Closed(Record, frozen=True, tag=10):
    """Service party: it agrees to close with this total; signed for ``STREAM_CLOSE`` over ``close_hash``."""

    stream: StreamId
    due: Amount
    signature: Signature


Said: TypeAlias = Hello | Iterate | Close | Ask
"""What a payer says."""
Told: TypeAlias = Challenge | Standing | Supplied | Stored | Refused | Closed
"""What a service party tells."""


class SaidFrame(Record, frozen=True):
    """Messages of a payer."""

    messages: Annotated[list[Said], msgspec.Meta(min_length=1, max_length=MESSAGES_MAX)]


class ToldFrame(Record, frozen=True):
    """Messages of a service party."""

    messages: Annotated[list[Told], msgspec.Meta(min_length=1, max_length=MESSAGES_MAX)]


said_codec: RecordCodec[SaidFrame] = RecordCodec(SaidFrame, bytes_max=FRAME_BYTES_MAX)
told_codec: RecordCodec[ToldFrame] = RecordCodec(ToldFrame, bytes_max=FRAME_BYTES_MAX)


def hello_payload(stream: bytes, nonce: bytes) -> bytes:
    """Return what a payer's key signs to say that a stream is its own, for ``Purpose.STREAM_HELLO``."""
    return stream + nonce
