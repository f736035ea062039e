"""The port between a node and the disk."""

from collections.abc import Iterable, Iterator
from typing import Protocol

Write = tuple[bytes, bytes | None]
"""A key with its new value; None removes the key."""


class Store(Protocol):
    """An ordered map of bytes that survives a crash up to its last synced batch."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None."""

    def scan(self, prefix: bytes, start: bytes = b"", *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs whose keys begin with ``prefix``, from ``prefix + start`` on, in order of the keys.

        In reverse the walk goes down from the last key, or from just below ``prefix + start`` when it is given.
        """

    def write(self, batch: Iterable[Write]) -> None:
        """Write all or nothing, and return once it is on the disk.

        Raises:
            StorageError: the disk refuses; nothing may be tried again, the node has to stop.
        """

    def close(self) -> None:
        """Release the files; further calls fail."""
