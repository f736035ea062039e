"""State as contracts and the executor read and write it: ordered keys, bytes as values, undoable writes.

A key is ``CONTRACT/TEXT KEY`` in UTF-8, a value is canonical MessagePack. Nothing here knows a disk: the
node gives a :class:`StateReader` of its parent block, and takes the net writes of the :class:`Overlay`.
"""

from bisect import bisect_left, insort
from typing import Protocol

SCAN_BATCH = 256
"""How many entries an overlay asks of its base at once while it scans."""

READ_CACHE_ENTRIES_MAX = 65_536
"""How many values an overlay remembers from its base; what comes after is read again."""

_UNKNOWN = b"unknown"
"""Stands for a value that a map does not hold; compared by identity."""


class StateReader(Protocol):
    """Read access to one version of the state; it must not change while it is read."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value's bytes, or None where the key holds nothing."""

    def scan(self, prefix: bytes, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``limit`` entries in ascending order whose keys begin with ``prefix`` and are ≥ ``start``."""


class MemoryState:
    """A state held in memory, for tests, simulations and tools."""

    def __init__(self, entries: dict[bytes, bytes] | None = None) -> None:
        self._entries: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []
        self.apply(dict(entries or {}))

    def get(self, key: bytes) -> bytes | None:
        """Return the value's bytes, or None where the key holds nothing."""
        return self._entries.get(key)

    def scan(self, prefix: bytes, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``limit`` entries in ascending order whose keys begin with ``prefix`` and are ≥ ``start``."""
        found: list[tuple[bytes, bytes]] = []
        for index in range(bisect_left(self._keys, max(prefix, start)), len(self._keys)):
            key = self._keys[index]
            if len(found) >= limit or not key.startswith(prefix):
                break
            found.append((key, self._entries[key]))
        return found

    def apply(self, writes: dict[bytes, bytes] | dict[bytes, bytes | None]) -> None:
        """Apply a block's net writes; None removes."""
        for key, value in writes.items():
            if value is None:
                self._entries.pop(key, None)
            else:
                self._entries[key] = value
        self._keys = sorted(self._entries)

    def entries(self) -> dict[bytes, bytes]:
        """Return all entries in ascending order of their keys."""
        return {key: self._entries[key] for key in self._keys}


class Overlay:
    """Writes above a reader, each of which can be undone back to a mark.

    ``writes`` is net: a key that was written back to what the base holds is still a write, because
    what a block commits to must not depend on how its reads were cached.
    """

    def __init__(self, base: StateReader) -> None:
        self._base = base
        self._reads: dict[bytes, bytes | None] = {}
        self._writes: dict[bytes, bytes | None] = {}
        self._journal: list[tuple[bytes, bytes | None]] = []
        self._written_keys: list[bytes] = []
        self._sorted_mark = 0

    def get(self, key: bytes) -> bytes | None:
        """Return the newest value, or None where the key holds nothing."""
        value = self._writes.get(key, _UNKNOWN)
        if value is not _UNKNOWN:
            return value
        value = self._reads.get(key, _UNKNOWN)
        if value is not _UNKNOWN:
            return value
        value = self._base.get(key)
        if len(self._reads) < READ_CACHE_ENTRIES_MAX:
            self._reads[key] = value
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Write a value."""
        self._journal.append((key, self._writes.get(key, _UNKNOWN)))
        self._writes[key] = value

    def delete(self, key: bytes) -> None:
        """Remove a key, whether it holds something or not."""
        self._journal.append((key, self._writes.get(key, _UNKNOWN)))
        self._writes[key] = None

    def mark(self) -> int:
        """Return the place in the journal to which ``rollback`` can return."""
        return len(self._journal)

    def rollback(self, mark: int) -> None:
        """Undo every write since the mark."""
        while len(self._journal) > mark:
            key, value = self._journal.pop()
            if value is _UNKNOWN:
                del self._writes[key]
            else:
                self._writes[key] = value
        self._sorted_mark = min(self._sorted_mark, mark)

    def writes(self) -> dict[bytes, bytes | None]:
        """Return the net writes in ascending order of their keys; None is a removal."""
        return {key: self._writes[key] for key in sorted(self._writes)}

    def scan(self, prefix: bytes, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``limit`` entries in ascending order whose keys begin with ``prefix`` and are ≥ ``start``."""
        position = max(prefix, start)
        found: list[tuple[bytes, bytes]] = []
        while len(found) < limit:
            asked = min(SCAN_BATCH, limit - len(found))
            batch = self._base.scan(prefix, position, asked)
            is_last = len(batch) < asked
            end = None if is_last else batch[-1][0] + b"\0"
            merged: dict[bytes, bytes | None] = dict(batch)
            merged.update(self._written_between(prefix, position, end))
            for key in sorted(merged):
                value = merged[key]
                if value is not None and len(found) < limit:
                    found.append((key, value))
            if end is None:
                break
            position = end
        return found

    def _written_between(self, prefix: bytes, start: bytes, end: bytes | None) -> dict[bytes, bytes | None]:
        """Return the writes in ``start`` ≤ key < ``end`` under the prefix; a rolled back key is passed over."""
        first_writes = [key for key, before in self._journal[self._sorted_mark :] if before is _UNKNOWN]
        if len(first_writes) > 64:
            self._written_keys = sorted({*self._written_keys, *first_writes})
        else:
            for key in first_writes:
                insort(self._written_keys, key)
        self._sorted_mark = len(self._journal)
        written: dict[bytes, bytes | None] = {}
        for index in range(bisect_left(self._written_keys, start), len(self._written_keys)):
            key = self._written_keys[index]
            if not key.startswith(prefix) or (end is not None and key >= end):
                break
            if key in self._writes:
                written[key] = self._writes[key]
        return written
