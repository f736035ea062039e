"""The state tree: a sparse Merkle tree with sixteen children a node, over the SHA-256 of the state keys.

    leaf   = SHA-256(key) ‖ SHA-256(value), 64 bytes
    bucket = up to three leaves in ascending order
    node   = 01 ‖ 16 sizes ‖ 16 children
    child  = a bucket, or SHA-256(node), 32 bytes

A size is one byte: how often 32 bytes the child has, 0 if it is empty, 1 for a hash. What is hashed thus
names the kind of each child, and no leaf passes for two nodes.

A subtree of up to three leaves *is* its bucket, so the tree depends on the content alone and never on
the history, and a proof is as long as the tree is deep, about log16 of the number of keys. Only the root
of the tree, whose hash stands for the whole, is a node even above fewer leaves.

The caller keeps the nodes, each as the bytes above under its *path*: the nibbles (one byte each, 0 to
15) that lead to it. Nodes are overwritten in place: the tree holds the newest sealed state and no older
one.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Protocol

import msgspec

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.errors import PeerError, StorageError
from consensus.ledger.ids import HASH_BYTES, ZERO_HASH, Hash

EMPTY_ROOT = ZERO_HASH
"""The root of a tree without keys."""

SEAL_WRITES_MAX = 10_000
"""How many distinct keys may be written before the tree is sealed."""
SEAL_INTERVAL_MS = 1_000
"""How much block time may pass before the tree is sealed."""
CACHED_NODES_MAX = 131_072
"""How many nodes a :class:`NodeCache` holds unless told otherwise; 45 MB in a tree of a million keys."""

DEPTH_MAX = 2 * HASH_BYTES
BUCKET_LEAVES_MAX = 3
"""More make fewer nodes, but larger ones: up to here a seal of many keys got quicker."""
_WIDTH = 16
_LEAF_BYTES = 2 * HASH_BYTES
_BUCKET_BYTES_MAX = BUCKET_LEAVES_MAX * _LEAF_BYTES
_HEAD_BYTES = 1 + _WIDTH
_SIZES = slice(1, _HEAD_BYTES)
"""Where a node has the sizes of its children."""
_EMPTY_NODE = b"\1" + bytes(_WIDTH)
_NIBBLE_OF_DIGIT = bytes.maketrans(b"0123456789abcdef", bytes(range(_WIDTH)))
_CHILD_NAMES = tuple(bytes([nibble]) for nibble in range(_WIDTH + 1))
"""What a child's path has more than its parent's. The last one is no child's: it stands behind them all."""


class NodeStore(Protocol):
    """Where the nodes are kept."""

    def get(self, path: bytes) -> bytes | None:
        """Return the blob at a path, or None."""


@dataclass(frozen=True, slots=True)
class TreeUpdate:
    """The new root, and the node writes that lead to it: path → blob, or None to delete."""

    root: Hash
    nodes: dict[bytes, bytes | None]


class StateProof(Record, frozen=True):
    """What stands at a key's place: each node on the way down, root first.

    A level is the node without the child that lies on the way, whose size is 0. ``other`` is the bucket in
    this key's place, without the leaf of the key itself.
    """

    levels: Annotated[
        list[
            Annotated[
                bytes,
                msgspec.Meta(min_length=_HEAD_BYTES, max_length=_HEAD_BYTES + (_WIDTH - 1) * _BUCKET_BYTES_MAX),
            ]
        ],
        msgspec.Meta(max_length=DEPTH_MAX),
    ]
    other: Annotated[bytes, msgspec.Meta(max_length=_BUCKET_BYTES_MAX)]


state_proof_codec: RecordCodec[StateProof] = RecordCodec(StateProof, bytes_max=192 * 1024)


def should_seal(*, quiet: bool, unsealed_writes: int, time_ms: int, sealed_time_ms: int) -> bool:
    """Tell whether a block seals the tree: its header then carries its own height and the root after it.

    Every replica must answer alike, so only agreed numbers count.

    Args:
        quiet: the block holds no transactions.
        unsealed_writes: distinct keys written since the last sealed block, this block's included.
        time_ms: this block's time.
        sealed_time_ms: the time of the last sealed block; genesis is sealed.
    """
    return quiet or unsealed_writes >= SEAL_WRITES_MAX or time_ms - sealed_time_ms >= SEAL_INTERVAL_MS


def tree_root(store: NodeStore) -> Hash:
    """Return the root of the stored tree.

    Raises:
        StorageError: ``corrupt_tree``.
    """
    node = store.get(b"")
    if node is None:
        return EMPTY_ROOT
    if not _is_node(node):
        raise _damaged(b"")
    return Hash(sha256(node).digest())


def update(store: NodeStore, changes: Mapping[bytes, bytes | None]) -> TreeUpdate:
    """Return the tree after these changes (state key → value bytes, None removes); the store stays as it is.

    Each touched node is read, hashed and written once however many changes fall under it; a change that
    changes nothing writes nothing.

    Raises:
        StorageError: ``corrupt_tree``.
    """
    leaves: dict[bytes, bytes] = {}
    for key, value in changes.items():
        key_hash = sha256(key).digest()
        leaves[_nibbles(key_hash)] = key_hash if value is None else key_hash + sha256(value).digest()
    batch = _Batch(store, leaves)
    root = batch.descend(b"", 0, len(leaves))
    return TreeUpdate(tree_root(store) if root is None else Hash(root or EMPTY_ROOT), batch.nodes)


def prove(store: NodeStore, key: bytes) -> StateProof:
    """Return the proof of what the stored tree holds at a state key: its value, or that there is none.

    Raises:
        StorageError: ``corrupt_tree``.
    """
    key_hash = sha256(key).digest()
    nibbles = _nibbles(key_hash)
    levels: list[bytes] = []
    if store.get(b"") is None:
        return StateProof(levels, b"")
    child: bytes = ZERO_HASH
    while len(child) == HASH_BYTES:
        depth = len(levels)
        level, child = _take_child(nibbles[:depth], store.get(nibbles[:depth]) or b"", nibbles[depth])
        levels.append(level)
    return StateProof(levels, b"".join(leaf for leaf in _leaves_of(child) if not leaf.startswith(key_hash)))


def check_state_proof_untrusted(root: bytes, key: bytes, value: bytes | None, proof: StateProof) -> None:
    """Check that under this root the key has this value, or none when ``value`` is None.

    Raises:
        PeerError: ``bad_proof``.
    """
    key_hash = sha256(key).digest()
    nibbles = _nibbles(key_hash)
    depth = len(proof.levels)
    if depth > DEPTH_MAX:
        raise PeerError("bad_proof", f"a state proof has at most {DEPTH_MAX} levels")
    leaves = _leaves_of(proof.other)
    if leaves != sorted(set(leaves)):
        raise PeerError("bad_proof", "the other leaves must ascend")
    for leaf in leaves:
        if len(leaf) != _LEAF_BYTES or leaf.startswith(key_hash):
            raise PeerError("bad_proof", "no leaf of another key")  # A hash is none: the key may be below it.
        if _nibbles(leaf[:HASH_BYTES])[:depth] != nibbles[:depth]:
            raise PeerError("bad_proof", "the other leaf does not stand in this key's place")
    if value is not None:
        leaves.append(key_hash + sha256(value).digest())
    child = b"".join(sorted(leaves))
    for level, nibble in zip(reversed(proof.levels), reversed(nibbles[:depth]), strict=True):
        child = sha256(_put_child_untrusted(level, nibble, child)).digest()
    if (child or EMPTY_ROOT) != root:
        raise PeerError("bad_proof", "the proof does not lead to the root")


class NodeCache:
    """The nodes used last, above a store that is slow to read.

    The owner writes a :class:`TreeUpdate` to the store and, once that has succeeded, hands the same
    nodes to :meth:`apply`.

    There are two generations, each of up to half the nodes. What is used comes to the young one; when
    that is full, the old one is dropped and the young one takes its place.
    """

    __slots__ = ("_generation_max", "_old", "_store", "_young")

    def __init__(self, store: NodeStore, *, nodes_max: int = CACHED_NODES_MAX) -> None:
        self._store = store
        self._generation_max = nodes_max // 2
        self._young: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, path: bytes) -> bytes | None:
        """Return the node at a path, from memory when it is there."""
        node = self._young.get(path)
        if node is None:
            node = self._old.get(path)
            if node is None:
                node = self._store.get(path)
            if node is not None:
                self._keep(path, node)
        return node

    def apply(self, nodes: Mapping[bytes, bytes | None]) -> None:
        """Take over node writes that the store now holds."""
        for path in [path for path, node in nodes.items() if node is None]:
            self._young.pop(path, None)
            self._old.pop(path, None)
        # What the old generation holds at these places is never seen: it is asked last.
        kept = {path: node for path, node in nodes.items() if node is not None}
        if len(self._young) + len(kept) <= self._generation_max:
            self._young.update(kept)
        else:
            for path, node in kept.items():
                self._keep(path, node)

    def _keep(self, path: bytes, node: bytes) -> None:
        if len(self._young) >= self._generation_max:
            self._old = self._young
            self._young = {}
        self._young[path] = node


class _Batch:
    """One update under way: its leaves by the nibbles of their keys, and the node writes so far.

    A leaf of a key hash alone removes the key. Each walk returns the child that now stands at a path. Names
    ``first`` to ``end``, in ascending order, fall under it.
    """

    __slots__ = ("_leaves", "_names", "_store", "nodes")

    def __init__(self, store: NodeStore, leaves: dict[bytes, bytes]) -> None:
        self._store = store
        self._leaves = leaves
        self._names = sorted(leaves)
        self.nodes: dict[bytes, bytes | None] = {}

    def descend(self, path: bytes, first: int, end: int) -> bytes | None:
        """Apply leaves to the node that stands at a path; None when it stays as it is."""
        stored = self._store.get(path)
        if stored is None:
            stored = b"" if path else _EMPTY_NODE
        if not _is_node(stored):
            raise _damaged(path)
        node = bytearray(stored)
        sizes = stored[_SIZES]
        names = self._names
        depth = len(path)
        while first < end:
            name = names[first]
            nibble = name[depth]
            after = first + 1
            if after < end and names[after][depth] == nibble:
                after = bisect_left(names, path + _CHILD_NAMES[nibble + 1], after, end)
            start = _HEAD_BYTES + HASH_BYTES * sum(sizes[:nibble])
            stop = start + HASH_BYTES * sizes[nibble]
            child: bytes | None
            if sizes[nibble] == 1:
                child = self.descend(path + _CHILD_NAMES[nibble], first, after)
            elif after == first + 1:
                child = _put_leaf(bytes(node[start:stop]), self._leaves[name])
                if len(child) > _BUCKET_BYTES_MAX:
                    child = self._build(path + _CHILD_NAMES[nibble], _leaves_of(child))
            else:
                child = self._grow(path + _CHILD_NAMES[nibble], bytes(node[start:stop]), first, after)
            if child is not None:
                node[start:stop] = child
                if len(child) != stop - start:
                    node[1 + nibble] = len(child) // HASH_BYTES
                    sizes = bytes(node[_SIZES])
            first = after
        return None if node == stored else self._settle(path, bytes(node))

    def _settle(self, path: bytes, node: bytes) -> bytes:
        """Write a changed node, or remove it where nothing or, below the root, a bucket is left."""
        is_bucket = len(node) <= _HEAD_BYTES + _BUCKET_BYTES_MAX and 1 not in node[_SIZES]
        if len(node) == _HEAD_BYTES or (is_bucket and path):
            self.nodes[path] = None
            return node[_HEAD_BYTES:]
        self.nodes[path] = node
        return sha256(node).digest()

    def _grow(self, path: bytes, bucket: bytes, first: int, end: int) -> bytes:
        """Apply leaves where a bucket stands, which may be empty."""
        leaves = {leaf[:HASH_BYTES]: leaf for leaf in _leaves_of(bucket)}
        for name in self._names[first:end]:
            leaf = self._leaves[name]
            leaves[leaf[:HASH_BYTES]] = leaf
        return self._build(path, sorted(leaf for leaf in leaves.values() if len(leaf) == _LEAF_BYTES))

    def _build(self, path: bytes, leaves: list[bytes]) -> bytes:
        """Make the subtree of these leaves, in ascending order, out of nothing."""
        if len(leaves) <= BUCKET_LEAVES_MAX:
            return b"".join(leaves)
        byte, shift = len(path) // 2, 0 if len(path) % 2 else 4
        below: list[list[bytes]] = [[] for _ in range(_WIDTH)]
        for leaf in leaves:
            below[leaf[byte] >> shift & 15].append(leaf)
        children = [
            self._build(path + _CHILD_NAMES[nibble], group) if group else b"" for nibble, group in enumerate(below)
        ]
        sizes = bytes([len(child) // HASH_BYTES for child in children])
        return self._settle(path, b"\1" + sizes + b"".join(children))


def _nibbles(key_hash: bytes) -> bytes:
    return key_hash.hex().encode("ascii").translate(_NIBBLE_OF_DIGIT)


def _damaged(path: bytes) -> StorageError:
    return StorageError("corrupt_tree", f"the state tree's node {path.hex()} is missing or damaged")


def _is_node(data: bytes) -> bool:
    """Tell whether the bytes have the form of a node."""
    return data[:1] == b"\1" and len(data) == _HEAD_BYTES + HASH_BYTES * sum(data[_SIZES])


def _leaves_of(bucket: bytes) -> list[bytes]:
    return [bucket[at : at + _LEAF_BYTES] for at in range(0, len(bucket), _LEAF_BYTES)]


def _put_leaf(bucket: bytes, leaf: bytes) -> bytes:
    """Return a bucket with a leaf in its place; a key hash alone removes what stands there."""
    key_hash = leaf[:HASH_BYTES]
    start = 0
    while bucket[start : start + HASH_BYTES] < key_hash and start < len(bucket):
        start += _LEAF_BYTES
    stop = start + _LEAF_BYTES if bucket.startswith(key_hash, start) else start
    return bucket[:start] + (leaf if len(leaf) == _LEAF_BYTES else b"") + bucket[stop:]


def _take_child(path: bytes, node: bytes, nibble: int) -> tuple[bytes, bytes]:
    """Return a node without one of its children, and that child."""
    if not _is_node(node):
        raise _damaged(path)
    start = _HEAD_BYTES + HASH_BYTES * sum(node[1 : 1 + nibble])
    stop = start + HASH_BYTES * node[1 + nibble]
    return node[: 1 + nibble] + b"\0" + node[2 + nibble : start] + node[stop:], node[start:stop]


def _put_child_untrusted(level: bytes, nibble: int, child: bytes) -> bytes:
    """Return the node that :func:`_take_child` took this child out of.

    From a level that still has a child on the way comes more than its sizes say, which hashes to nothing.
    """
    if not _is_node(level):
        raise PeerError("bad_proof", "a level that is no node")
    start = _HEAD_BYTES + HASH_BYTES * sum(level[1 : 1 + nibble])
    size = bytes([len(child) // HASH_BYTES])
    return level[: 1 + nibble] + size + level[2 + nibble : start] + child + level[start:]
