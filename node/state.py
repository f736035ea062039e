"""The state as a node reads it: what was sealed on disk, and above it what later blocks wrote."""

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import islice

from node.storage.layout import STATE
from node.storage.store import Store

CACHED_VALUES_MAX = 200_000
CACHED_VALUE_BYTES_MAX = 1_024
"""Longer values are read from the store each time, so that the cache stays small whatever is stored."""
_UNKNOWN = b"unknown"
"""Stands for a value that a map does not hold; compared by identity."""


class SealedState:
    """State at the last seal, read from the store through a bounded cache."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cache: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        """Return the value at the last seal."""
        value = self._cache.get(key, _UNKNOWN)
        if value is _UNKNOWN:
            value = self._store.get(STATE + key)
            self._remember(key, value)
        return value

    def walk(self, prefix: bytes, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs with the prefix, ascending, with keys from ``start`` on."""
        if start.startswith(prefix):
            after = start[len(prefix) :]
        elif start < prefix:
            after = b""
        else:
            return
        for key, value in self._store.scan(STATE + prefix, after):
            yield key[1:], value

    def scan(self, prefix: bytes, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``limit`` pairs with the prefix, ascending, with keys from ``start`` on."""
        return list(islice(self.walk(prefix, start), max(limit, 0)))

    def replace(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Take over what a seal has just written to the store."""
        if len(self._cache) + len(changes) < CACHED_VALUES_MAX and all(
            value is None or len(value) <= CACHED_VALUE_BYTES_MAX for value in changes.values()
        ):
            self._cache.update(changes)
            return
        for key, value in changes.items():
            self._remember(key, value)

    def _remember(self, key: bytes, value: bytes | None) -> None:
        if value is not None and len(value) > CACHED_VALUE_BYTES_MAX:
            self._cache.pop(key, None)
            return
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
        value = self.tail.get(key, _UNKNOWN)
        return self.sealed.get(key) if value is _UNKNOWN else value

    def scan(self, prefix: bytes, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``limit`` newest pairs with the prefix, ascending, with keys from ``start`` on."""
        merged = heapq.merge(
            ((key, 0, value) for key, value in self._walk_tail(prefix, max(prefix, start))),
            ((key, 1, value) for key, value in self.sealed.walk(prefix, start)),
        )
        found: list[tuple[bytes, bytes]] = []
        newest: bytes | None = None
        if limit <= 0:
            return found
        for key, _, value in merged:
            if key != newest and value is not None:
                found.append((key, value))
                if len(found) == limit:
                    break
            newest = key
        return found

    def extend(self, writes: Mapping[bytes, bytes | None]) -> None:
        """Add the net writes of one more block."""
        self.tail.update(writes)
        self._tail_keys = None

    def seal(self) -> None:
        """Let what was recent become sealed; the caller has written it to the store."""
        self.sealed.replace(self.tail)
        self.tail = {}
        self._tail_keys = None

    def _walk_tail(self, prefix: bytes, start: bytes) -> Iterator[tuple[bytes, bytes | None]]:
        if self._tail_keys is None:
            self._tail_keys = sorted(self.tail)
        keys = self._tail_keys
        for index in range(bisect_left(keys, start), len(keys)):
            if not keys[index].startswith(prefix):
                break
            yield keys[index], self.tail[keys[index]]
