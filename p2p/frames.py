"""Frames: the unit in which bytes travel between two nodes.

Layout: payload length (4 bytes, big-endian) ‖ kind (1 byte) ‖ payload. A length above the limit is
refused when its header is read, before anything of the payload is kept (R68). Pure.
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from consensus.ledger.errors import LocalError, PeerError

FRAME_BYTES_MAX = 5 * 1024 * 1024
"""Largest payload of a frame in an established session; a full block of 4 MiB fits with its votes."""

HANDSHAKE_FRAME_BYTES_MAX = 1024
"""Largest payload before both sides have acknowledged each other."""

_HEADER = struct.Struct(">IB")
HEADER_BYTES = _HEADER.size


class FrameKind(IntEnum):
    """What a payload is. The kinds from 64 on belong to the session itself and never reach a handler.

    Those from 32 on travel on private connections only (``p2p.private``), those below never do.
    """

    CONSENSUS = 1
    TRANSACTIONS = 2
    SYNC_REQUEST = 3
    SYNC_RESPONSE = 4
    RESULT_REQUEST = 5
    RESULT_RESPONSE = 6
    PRIVATE_OPEN = 32
    PRIVATE_MESSAGE = 33
    PRIVATE_RECEIPT = 34
    GREETING = 64
    HELLO = 65
    ACK = 66
    KEEP_ALIVE = 67
    BYE = 68
    CLOCK_QUESTION = 69
    CLOCK_ANSWER = 70

    @property
    def is_for_session(self) -> bool:
        """Whether the session handles the frame itself."""
        return self >= FrameKind.GREETING


_KINDS = {int(kind): kind for kind in FrameKind}


class Frame(NamedTuple):
    """One decoded frame."""

    kind: FrameKind
    payload: bytes


def encode_frame(kind: FrameKind, payload: bytes) -> bytes:
    """Return the bytes of one frame.

    Raises:
        LocalError: ``frame_too_large`` above ``FRAME_BYTES_MAX``.
    """
    if len(payload) > FRAME_BYTES_MAX:
        raise LocalError("frame_too_large", f"{len(payload)} bytes, a frame holds at most {FRAME_BYTES_MAX}")
    return _HEADER.pack(len(payload), kind) + payload


def encode_frames(frames: Iterable[Frame]) -> bytes:
    """Return the bytes of several frames in order, to be sent at once."""
    return b"".join([encode_frame(kind, payload) for kind, payload in frames])


class FrameDecoder:
    """Cuts a stream into frames: ``feed`` bytes, then take frames until there is none.

    Called in this order it holds at most one frame and one feed. ``payload_bytes_max`` may be changed
    between two frames; sessions raise it once the peer is known.
    """

    def __init__(self, *, payload_bytes_max: int) -> None:
        self.payload_bytes_max = payload_bytes_max
        self._buffer = bytearray()
        self._start = 0

    def feed(self, data: bytes | bytearray) -> None:
        """Append received bytes."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next_untrusted(self) -> Frame | None:
        """Return the next complete frame, or None when more bytes are needed.

        Raises:
            PeerError: ``frame_too_large`` or ``unknown_frame``; the stream cannot be read on after it.
        """
        available = len(self._buffer) - self._start
        if available < HEADER_BYTES:
            return None
        size, number = _HEADER.unpack_from(self._buffer, self._start)
        if size > self.payload_bytes_max:
            raise PeerError("frame_too_large", f"{size} bytes announced, at most {self.payload_bytes_max} are taken")
        kind = _KINDS.get(number)
        if kind is None:
            raise PeerError("unknown_frame", f"frames of kind {number} are unknown")
        if available < HEADER_BYTES + size:
            return None
        begin = self._start + HEADER_BYTES
        self._start = begin + size
        with memoryview(self._buffer) as view:
            return Frame(kind, bytes(view[begin : self._start]))
