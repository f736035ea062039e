"""A store in memory whose content is what would survive a crash at this very moment.

A write under way is the host's affair: it puts the batch here at the moment when it becomes durable, so a
crash before loses all of it and a crash after keeps all of it, acknowledged or not.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from node.storage.store import Write


class Disk:
    """An ordered map; see :class:`node.storage.store.Store`."""

    def __init__(self, content: dict[bytes, bytes] | None = None) -> None:
        self.content = dict(content or {})
        self._sorted: list[bytes] | None = None

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None."""
        return self.content.get(key)

    def scan(self, prefix: bytes, start: bytes = b"", *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Yield pairs in order of the keys, or downwards."""
        if self._sorted is None:
            self._sorted = sorted(self.content)
        keys = self._sorted
        first = bisect_left(keys, prefix if reverse else prefix + start)
        last = first
        while last < len(keys) and keys[last].startswith(prefix):
            if reverse and start and keys[last] >= prefix + start:
                break
            last += 1
        found = keys[first:last]
        yield from [(key, self.content[key]) for key in (reversed(found) if reverse else found)]

    def write(self, batch: Iterable[Write]) -> None:
        """Make a batch durable at once."""
        for key, value in batch:
            if value is None:
                self.content.pop(key, None)
                self._sorted = None
            else:
                if key not in self.content:
                    self._sorted = None
                self.content[key] = value

    def close(self) -> None:
        """Nothing to release."""
