"""Writes down every frame of every connection as it is before TLS, for tests that look for what must not travel.

One record a frame: length of the rest (4 bytes, big-endian) ‖ ``>`` sent or ``<`` received ‖ number of the connection
(4 bytes, big-endian) ‖ the frame with its header. Nothing is encrypted or compressed: a node does this only when its
operator asks for it, and says so in its log.
"""

import os
import struct
from pathlib import Path

from consensus.ledger.errors import LocalError, StorageError
from p2p.frames import HEADER_BYTES

SENT, RECEIVED = b">", b"<"

_PREFIX = struct.Struct(">IcI")
_SIZE = struct.Struct(">I")


class FrameRecorder:
    """Appends to one file; what was given to it is in the file, even if the process is killed."""

    def __init__(self, path: Path) -> None:
        """Open the file, mode 0600.

        Raises:
            LocalError: ``file_error``.
        """
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise LocalError("file_error", f"{path}: {error.strerror}") from None
        self._connections = os.fstat(self._file).st_size  # numbers of one life do not meet those of the next

    def tap(self) -> "Tap":
        """Return what records one new connection."""
        self._connections = (self._connections + 1) % 2**32
        return Tap(self, self._connections)

    def write(self, direction: bytes, connection: int, frame: bytes) -> None:
        """Append a frame.

        Raises:
            StorageError: ``disk_failed``: a record with gaps would prove nothing, so the node has to stop.
        """
        record = _PREFIX.pack(len(frame) + _PREFIX.size - _SIZE.size, direction, connection) + frame
        try:
            if os.write(self._file, record) != len(record):
                raise StorageError("disk_full", "the record of frames has no room")
        except OSError as error:
            raise StorageError("disk_failed", f"the record of frames: {error.strerror}") from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class Tap:
    """Cuts both directions of a connection into frames and hands them to the recorder."""

    def __init__(self, recorder: FrameRecorder, connection: int) -> None:
        self._recorder = recorder
        self._connection = connection
        self._halves = {SENT: bytearray(), RECEIVED: bytearray()}

    def take(self, direction: bytes, data: bytes | bytearray | memoryview) -> None:
        """Take bytes as they went or came, ``SENT`` or ``RECEIVED``; what is no whole frame yet waits for its rest."""
        waiting = self._halves[direction]
        waiting += data
        while len(waiting) >= HEADER_BYTES:
            end = HEADER_BYTES + _SIZE.unpack_from(waiting)[0]
            if len(waiting) < end:
                return
            self._recorder.write(direction, self._connection, bytes(waiting[:end]))
            del waiting[:end]
