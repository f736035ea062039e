"""The state as a node reads it: three layers, each newer than the one below.

*Tail*: what blocks wrote since the last seal. *Unstored*: what seals gave since the store last took the
state over, values and nodes of the tree. Below both the store, read through a bounded cache. A key that is
written all the time thus reaches the disk once in many seals, while values and proofs speak of the last one.

What is unstored follows from the blocks alone, and so does when it is stored: a node that starts makes it
again out of the writes that every block leaves in the store, and an audit finds the same records.
"""

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import islice

from node.storage.layout import STATE, TREE
from node.storage.store import Store

CACHED_VALUES_MAX = 200_000
CACHED_VALUE_BYTES_MAX = 1_024
"""Longer values are read from the store each time, so that the cache stays small whatever is stored."""

UNSTORED_NODES_MAX = 16_384
"""About 15 MB: what changes with every seal is written once in many, in batches that hold up no block."""
UNSTORED_BYTES_MAX = 128 * 1024 * 1024
"""What seals have changed, all of them together, however often in the same place."""
UNSTORED_SEALS_MAX = 15
"""A seal made again costs a starting node up to 50 ms."""

_UNKNOWN = b"unknown"
"""Stands for a value that a map does not hold; compared by identity."""


class Layer:
    """Newer values above an older state; None removes."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self._keys: list[bytes] | None = None

    def extend(self, writes: Mapping[bytes, bytes | None]) -> None:
        """Add what is newer still."""
        self.values.update(writes)
        self._keys = None

    def clear(self) -> None:
        """Forget all of it."""
        self.values = {}
        self._keys = None

    def above(self, older: Iterator[tuple[bytes, bytes]], prefix: bytes, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs with the prefix, ascending, with keys from ``start`` on; ``older`` is below."""
        merged = heapq.merge(
            ((key, 0, value) for key, value in self._walk(prefix, max(prefix, start))),
            ((key, 1, value) for key, value in older),
        )
        newest: bytes | None = None
        for key, _, value in merged:
            if key != newest and value is not None:
                yield key, value
            newest = key

    def _walk(self, prefix: bytes, start: bytes) -> Iterator[tuple[bytes, bytes | None]]:
        if self._keys is None:
            self._keys = sorted(self.values)
        keys = self._keys
        for index in range(bisect_left(keys, start), len(keys)):
            if not keys[index].startswith(prefix):
                break
            yield keys[index], self.values[keys[index]]


class SealedState:
    """State at the last seal, and the nodes of its tree."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cache: dict[bytes, bytes | None] = {}
        self._unstored = Layer()
        self._unstored_nodes: dict[bytes, bytes | None] = {}
        self._unstored_bytes = 0
        self._unstored_seals = 0

    def is_due(self, *, is_quiet: bool) -> bool:
        """Tell whether the next seal goes to the store, and takes along what is unstored.

        It does in a block without transactions, so that an idle node has nothing to make again when it starts.
        """
        return (
            is_quiet
            or len(self._unstored_nodes) >= UNSTORED_NODES_MAX
            or self._unstored_bytes >= UNSTORED_BYTES_MAX
            or self._unstored_seals >= UNSTORED_SEALS_MAX
        )

    def records(
        self, changes: Mapping[bytes, bytes | None], nodes: Mapping[bytes, bytes | None]
    ) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield what the store is given at a seal that changes these values and nodes."""
        for key, value in {**self._unstored.values, **changes}.items():
            yield STATE + key, value
        for path, blob in {**self._unstored_nodes, **nodes}.items():
            yield TREE + path, blob

    def get(self, key: bytes) -> bytes | None:
        """Return the value at the last seal."""
        value = self._unstored.values.get(key, _UNKNOWN)
        if value is _UNKNOWN:
            value = self._cache.get(key, _UNKNOWN)
        if value is _UNKNOWN:
            value = self._store.get(STATE + key)
            self._remember(key, value)
        return value

    def node(self, path: bytes) -> bytes | None:
        """Return the node of the state tree at a path."""
        blob = self._unstored_nodes.get(path, _UNKNOWN)
        return self._store.get(TREE + path) if blob is _UNKNOWN else blob

    def walk(self, prefix: bytes, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs with the prefix, ascending, with keys from ``start`` on."""
        return self._unstored.above(self._walk_store(prefix, start), prefix, start)

    def scan(self, prefix: bytes, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``limit`` pairs with the prefix, ascending, with keys from ``start`` on."""
        return list(islice(self.walk(prefix, start), max(limit, 0)))

    def sealed(self, changes: Mapping[bytes, bytes | None], nodes: Mapping[bytes, bytes | None]) -> None:
        """Take over what a seal changed."""
        self._unstored_bytes += sum(sum(map(len, filter(None, part.values()))) for part in (changes, nodes))
        self._unstored.extend(changes)
        self._unstored_nodes.update(nodes)
        self._unstored_seals += 1

    def stored(self) -> None:
        """Let go of what the store now holds."""
        changes = self._unstored.values
        if len(self._cache) + len(changes) < CACHED_VALUES_MAX and all(
            value is None or len(value) <= CACHED_VALUE_BYTES_MAX for value in changes.values()
        ):
            self._cache.update(changes)
        else:
            for key, value in changes.items():
                self._remember(key, value)
        self._unstored.clear()
        self._unstored_nodes = {}
        self._unstored_bytes = self._unstored_seals = 0

    def _walk_store(self, prefix: bytes, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        if start.startswith(prefix):
            after = start[len(prefix) :]
        elif start < prefix:
            after = b""
        else:
            return
        for key, value in self._store.scan(STATE + prefix, after):
            yield key[1:], value

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
        self._tail = Layer()

    @property
    def tail(self) -> Mapping[bytes, bytes | None]:
        """What blocks wrote since the last seal."""
        return self._tail.values

    def get(self, key: bytes) -> bytes | None:
        """Return the newest value."""
        value = self._tail.values.get(key, _UNKNOWN)
        return self.sealed.get(key) if value is _UNKNOWN else value

    def scan(self, prefix: bytes, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``limit`` newest pairs with the prefix, ascending, with keys from ``start`` on."""
        newest = self._tail.above(self.sealed.walk(prefix, start), prefix, start)
        return list(islice(newest, max(limit, 0)))

    def extend(self, writes: Mapping[bytes, bytes | None]) -> None:
        """Add the net writes of one more block."""
        self._tail.extend(writes)

    def seal(self, nodes: Mapping[bytes, bytes | None]) -> None:
        """Let what was recent become sealed, under a tree with these nodes changed."""
        self.sealed.sealed(self._tail.values, nodes)
        self._tail.clear()
