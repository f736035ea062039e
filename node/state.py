"""The state as a node reads it: what was sealed on disk, and above it what later blocks wrote."""

from bisect import bisect_left
from collections.abc import Mapping

from node.storage.layout import STATE
from node.storage.store import Store

CACHED_VALUES_MAX = 200_000


class SealedState:
    """State at the last seal, read from the store through a bounded cache."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cache: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        """Return the value at the last seal."""
        try:
            return self._cache[key]
        except KeyError:
            value = self._store.get(STATE + key)
            self._remember(key, value)
            return value

    def scan(self, prefix: bytes, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``limit`` pairs with the prefix, ascending, with keys from ``start`` on."""
        found: list[tuple[bytes, bytes]] = []
        if limit <= 0:
            return found
        after = start[len(prefix) :] if start.startswith(prefix) else b"" if start < prefix else None
        if after is None:
            return found
        for key, value in self._store.scan(STATE + prefix, after):
            found.append((key[1:], value))
            if len(found) == limit:
                break
        return found

    def replace(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Take over what a seal has just written to the store."""
        for key, value in changes.items():
            self._remember(key, value)

    def _remember(self, key: bytes, value: bytes | None) -> None:
        if len(self._cache) >= CACHED_VALUES_MAX:
            for oldest in list(self._cache)[: CACHED_VALUES_MAX // 8]:
                del self._cache[oldest]
        self._cache[key] = value


class RecentState:
    """State after the newest block: the writes since the seal above the sealed state."""

    def __init__(self, sealed: SealedState) -> None:
        self.sealed = sealed
        self.tail: dict[bytes, bytes | None] = {}
        self._tail_keys: list[bytes] | None = None

    def get(self, key: bytes) -> bytes | None:
        """Return the newest value."""
        try:
            return self.tail[key]
        except KeyError:
            return self.sealed.get(key)

    def scan(self, prefix: bytes, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``limit`` newest pairs with the prefix, ascending, with keys from ``start`` on."""
        if limit <= 0:
            return []
        recent = self._recent(prefix, max(prefix, start))
        hidden = len(recent)
        merged = dict(self.sealed.scan(prefix, start, limit + hidden))
        for key in recent:
            value = self.tail[key]
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = value
        return [(key, merged[key]) for key in sorted(merged)[:limit]]

    def extend(self, writes: Mapping[bytes, bytes | None]) -> None:
        """Add the net writes of one more block."""
        self.tail.update(writes)
        self._tail_keys = None

    def seal(self) -> None:
        """Let what was recent become sealed; the caller has written it to the store."""
        self.sealed.replace(self.tail)
        self.tail = {}
        self._tail_keys = None

    def _recent(self, prefix: bytes, start: bytes) -> list[bytes]:
        if self._tail_keys is None:
            self._tail_keys = sorted(self.tail)
        keys = self._tail_keys
        first = last = bisect_left(keys, start)
        while last < len(keys) and keys[last].startswith(prefix):
            last += 1
        return keys[first:last]
