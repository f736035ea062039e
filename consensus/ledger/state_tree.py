"""The state tree: a sparse Merkle tree with sixteen children a node, over the SHA-256 of the state keys.

    leaf  = SHA-256(key) ‖ SHA-256(value)
    node  = 01 ‖ mask ‖ leaf mask ‖ the children that are not empty, in ascending order
    child = a leaf, 64 bytes, or SHA-256(node), 32 bytes

A mask has 2 bytes, big-endian: bit i of the first says that child i is not empty, bit i of the second
that it is a leaf. What is hashed thus names the kind of each child, and no leaf passes for two nodes.

A subtree that holds exactly one leaf *is* that leaf, so the tree depends on the content alone and never
on the history, and a proof is as long as the tree is deep, about log16 of the number of keys. Only the
root of the tree, whose hash stands for the whole, is a node even above a single leaf.

The caller keeps the nodes, each as the bytes above under its *path*: the nibbles (one byte each, 0 to
15) that lead to it. Nodes are overwritten in place: the tree holds the newest sealed state and no older
one.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct
from typing import Annotated, Protocol

import msgspec

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.errors import PeerError, StorageError
from consensus.ledger.ids import HASH_BYTES, ZERO_HASH, Hash

EMPTY_ROOT = ZERO_HASH
"""The root of a tree without keys."""

SEAL_WRITES_MAX = 5_000
"""How many distinct keys may be written before the tree is sealed."""
SEAL_INTERVAL_MS = 1_000
"""How much block time may pass before the tree is sealed."""
CACHED_NODES_MAX = 98_304
"""How many nodes a :class:`NodeCache` holds unless told otherwise; about 50 MB."""

DEPTH_MAX = 2 * HASH_BYTES
_WIDTH = 16
_LEAF_BYTES = 2 * HASH_BYTES
_NODE_TAG = 1
_HEAD = Struct(">BHH")
"""What a node begins with: the tag, the mask of its children, the mask of its leaves."""
_HEAD_BYTES = _HEAD.size
_EMPTY_NODE = _HEAD.pack(_NODE_TAG, 0, 0)
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

    A level is the node without the child that lies on the way, whose bits are clear. ``other`` is empty
    unless another key's leaf stands in this key's place: then it is that leaf.
    """

    levels: Annotated[
        list[
            Annotated[bytes, msgspec.Meta(min_length=_HEAD_BYTES, max_length=_HEAD_BYTES + (_WIDTH - 1) * _LEAF_BYTES)]
        ],
        msgspec.Meta(max_length=DEPTH_MAX),
    ]
    other: Annotated[bytes, msgspec.Meta(max_length=_LEAF_BYTES)]


state_proof_codec: RecordCodec[StateProof] = RecordCodec(StateProof, bytes_max=64 * 1024)


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
    if _masks(node) is None:
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
        leaves[_nibbles(key_hash)] = b"" if value is None else key_hash + sha256(value).digest()
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
    return StateProof(levels, b"" if child.startswith(key_hash) else child)


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
    child = proof.other
    if value is not None:
        if proof.other:
            raise PeerError("bad_proof", "a proof of presence names no other leaf")
        child = key_hash + sha256(value).digest()
    elif proof.other:
        other_key_hash = proof.other[:HASH_BYTES]
        if len(proof.other) != _LEAF_BYTES or other_key_hash == key_hash:
            raise PeerError("bad_proof", "no leaf of another key")
        if _nibbles(other_key_hash)[:depth] != nibbles[:depth]:
            raise PeerError("bad_proof", "the other leaf does not stand in this key's place")
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
        for path, node in nodes.items():
            if node is not None:
                self._keep(path, node)  # The old generation is asked last, so what it holds there is never seen.
            else:
                self._young.pop(path, None)
                self._old.pop(path, None)

    def _keep(self, path: bytes, node: bytes) -> None:
        if len(self._young) >= self._generation_max:
            self._old = self._young
            self._young = {}
        self._young[path] = node


class _Batch:
    """One update under way: its leaves by the nibbles of their keys, and the node writes so far.

    An empty leaf removes its key. Each walk returns the child that now stands at a path: a leaf, a hash,
    or nothing. Names ``first`` to ``end``, in ascending order, fall under it.
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
        masks = _masks(stored)
        if masks is None:
            raise _damaged(path)
        mask, leaf_mask = masks
        node = bytearray(stored)
        names = self._names
        depth = len(path)
        while first < end:
            name = names[first]
            nibble = name[depth]
            after = first + 1
            if after < end and names[after][depth] == nibble:
                after = bisect_left(names, path + _CHILD_NAMES[nibble + 1], after, end)
            bit = 1 << nibble
            at = _HEAD_BYTES + HASH_BYTES * ((mask & bit - 1).bit_count() + (leaf_mask & bit - 1).bit_count())
            if mask & bit and not leaf_mask & bit:
                child_end = at + HASH_BYTES
                child = self.descend(path + _CHILD_NAMES[nibble], first, after)
            else:
                child_end = at + _LEAF_BYTES if leaf_mask & bit else at
                child = self._leaves[name]
                if after > first + 1 or (at < child_end and node[at : at + HASH_BYTES] != child[:HASH_BYTES]):
                    child = self._grow(path + _CHILD_NAMES[nibble], bytes(node[at:child_end]), first, after)
                # else one leaf takes its own place, or an empty one
            first = after
            if child is None:
                continue
            node[at:child_end] = child
            if len(child) != child_end - at:
                mask = mask | bit if child else mask & ~bit
                leaf_mask = leaf_mask | bit if len(child) == _LEAF_BYTES else leaf_mask & ~bit
        _HEAD.pack_into(node, 0, _NODE_TAG, mask, leaf_mask)
        return None if node == stored else self._settle(path, bytes(node), mask, leaf_mask)

    def _settle(self, path: bytes, node: bytes, mask: int, leaf_mask: int) -> bytes:
        """Write a changed node, or remove it where nothing or, below the root, a single leaf is left."""
        if not mask or (path and mask == leaf_mask and mask.bit_count() == 1):
            self.nodes[path] = None
            return node[_HEAD_BYTES:]
        self.nodes[path] = node
        return sha256(node).digest()

    def _grow(self, path: bytes, old: bytes, first: int, end: int) -> bytes:
        """Apply leaves where no node stands: ``old`` is empty or a leaf."""
        leaves = {name: leaf for name in self._names[first:end] if (leaf := self._leaves[name])}
        if old:
            name = _nibbles(old[:HASH_BYTES])
            if name not in self._leaves:
                leaves[name] = old
        return self._build(path, leaves)

    def _build(self, path: bytes, leaves: dict[bytes, bytes]) -> bytes:
        """Make the subtree of these leaves out of nothing."""
        if len(leaves) < 2:
            return b"".join(leaves.values())
        below: dict[int, dict[bytes, bytes]] = {}
        for name, leaf in leaves.items():
            below.setdefault(name[len(path)], {})[name] = leaf
        mask = leaf_mask = 0
        children: list[bytes] = []
        for nibble in sorted(below):
            child = self._build(path + _CHILD_NAMES[nibble], below[nibble])
            children.append(child)
            mask |= 1 << nibble
            leaf_mask |= (len(child) == _LEAF_BYTES) << nibble
        return self._settle(path, _HEAD.pack(_NODE_TAG, mask, leaf_mask) + b"".join(children), mask, leaf_mask)


def _nibbles(key_hash: bytes) -> bytes:
    return key_hash.hex().encode("ascii").translate(_NIBBLE_OF_DIGIT)


def _damaged(path: bytes) -> StorageError:
    return StorageError("corrupt_tree", f"the state tree's node {path.hex()} is missing or damaged")


def _masks(node: bytes) -> tuple[int, int] | None:
    """Return the mask of a node's children and that of its leaves, or None when the bytes are no node."""
    if len(node) < _HEAD_BYTES:
        return None
    tag, mask, leaf_mask = _HEAD.unpack_from(node)
    node_bytes = _HEAD_BYTES + HASH_BYTES * (mask.bit_count() + leaf_mask.bit_count())
    if tag != _NODE_TAG or leaf_mask | mask != mask or len(node) != node_bytes:
        return None
    return mask, leaf_mask


def _place(nibble: int, mask: int, leaf_mask: int) -> int:
    """Return where a child stands in its node, or would stand."""
    before = (1 << nibble) - 1
    return _HEAD_BYTES + HASH_BYTES * ((mask & before).bit_count() + (leaf_mask & before).bit_count())


def _take_child(path: bytes, node: bytes, nibble: int) -> tuple[bytes, bytes]:
    """Return a node without one of its children, and that child, empty if there is none."""
    masks = _masks(node)
    if masks is None:
        raise _damaged(path)
    mask, leaf_mask = masks
    bit = 1 << nibble
    start = _place(nibble, mask, leaf_mask)
    end = _place(nibble + 1, mask, leaf_mask)
    level = _HEAD.pack(_NODE_TAG, mask & ~bit, leaf_mask & ~bit) + node[_HEAD_BYTES:start] + node[end:]
    return level, node[start:end]


def _put_child_untrusted(level: bytes, nibble: int, child: bytes) -> bytes:
    """Return the node that :func:`_take_child` made a level of: with the child, a leaf, a hash or nothing."""
    masks = _masks(level)
    if masks is None:
        raise PeerError("bad_proof", "a level that is no node")
    mask, leaf_mask = masks
    bit = 1 << nibble
    if mask & bit:
        raise PeerError("bad_proof", "a level that holds the child on the way")
    place = _place(nibble, mask, leaf_mask)
    if child:
        mask |= bit
    if len(child) == _LEAF_BYTES:
        leaf_mask |= bit
    return _HEAD.pack(_NODE_TAG, mask, leaf_mask) + level[_HEAD_BYTES:place] + child + level[place:]
