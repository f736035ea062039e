"""The state tree: a sparse Merkle tree with sixteen children a node, over the SHA-256 of the state keys.

    leaf  = SHA-256(00 ‖ SHA-256(key) ‖ SHA-256(value))
    inner = SHA-256(01 ‖ 16 child hashes), an empty child being 32 zero bytes

A subtree that holds exactly one leaf *is* that leaf, so the root depends on the content alone and never
on the history, and a proof is as long as the tree is deep, about log16 of the number of keys.

The caller keeps the nodes, each as one blob under its *path*: the nibbles (one byte each, 0 to 15) that
lead to it. Only inner nodes are stored, with their leaf children inside; a tree of one leaf stores that
leaf at the empty path. A child within a blob is an *entry*:

    empty  b""
    inner  32 bytes: its hash
    leaf   96 bytes: its hash ‖ key hash ‖ value hash

and a blob is 16 length bytes (0, 32 or 96) followed by the 16 entries. Nodes are overwritten in place:
the tree holds the newest sealed state and no older one.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Protocol, TypeAlias

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
CACHED_NODES_MAX = 65_536
"""How many blobs a :class:`NodeCache` holds unless told otherwise; about 50 MB."""

DEPTH_MAX = 2 * HASH_BYTES
_WIDTH = 16
_LEAF_ENTRY_BYTES = 3 * HASH_BYTES
_KEY_HASH = slice(HASH_BYTES, 2 * HASH_BYTES)
"""The key hash within the entry of a leaf."""
_ENTRY_LENGTHS = bytes([0, HASH_BYTES, _LEAF_ENTRY_BYTES])
_EMPTY_CHILDREN = (b"",) * _WIDTH
_NIBBLE_OF_DIGIT = bytes.maketrans(b"0123456789abcdef", bytes(range(_WIDTH)))
_CHILD_NAMES = tuple(bytes([nibble]) for nibble in range(_WIDTH))

_Item: TypeAlias = tuple[bytes, bytes]
"""The 64 nibbles of a key hash, and the leaf entry to stand there; an empty one removes the key."""


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
    """What stands at a key's place: each inner node on the way down, root first.

    A level is a 2-byte mask, big-endian, with bit i set for every child i that is not empty, the one on
    the way left out, followed by the hashes of those children in ascending order. ``other`` is empty
    unless another key's leaf stands in this key's place: then its key hash ‖ value hash.
    """

    levels: Annotated[
        list[Annotated[bytes, msgspec.Meta(min_length=2, max_length=2 + (_WIDTH - 1) * HASH_BYTES)]],
        msgspec.Meta(max_length=DEPTH_MAX),
    ]
    other: Annotated[bytes, msgspec.Meta(max_length=2 * HASH_BYTES)]


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
    blob = store.get(b"")
    if blob is None:
        return EMPTY_ROOT
    if len(blob) == _LEAF_ENTRY_BYTES:
        return Hash(blob[:HASH_BYTES])
    return Hash(_inner_hash(_decode_children(b"", blob)))


def update(store: NodeStore, changes: Mapping[bytes, bytes | None]) -> TreeUpdate:
    """Return the tree after these changes (state key → value bytes, None removes); the store stays as it is.

    Each touched node is read, hashed and written once however many changes fall under it; a change that
    changes nothing writes nothing.

    Raises:
        StorageError: ``corrupt_tree``.
    """
    items = sorted((_nibbles(key_hash), entry) for key_hash, entry in _leaf_entries(changes))
    batch = _Batch(store, items)
    blob = store.get(b"")
    if blob is None or len(blob) == _LEAF_ENTRY_BYTES:
        old = blob or b""
        entry = batch.grow(b"", old, 0, len(items))
    else:
        old = _inner_hash(_decode_children(b"", blob))
        entry = batch.descend(b"", old, 0, len(items))
    if entry != old and len(entry) != HASH_BYTES:
        batch.nodes[b""] = entry or None
    return TreeUpdate(Hash(entry[:HASH_BYTES] or EMPTY_ROOT), batch.nodes)


def prove(store: NodeStore, key: bytes) -> StateProof:
    """Return the proof of what the stored tree holds at a state key: its value, or that there is none.

    Raises:
        StorageError: ``corrupt_tree``.
    """
    key_hash = sha256(key).digest()
    nibbles = _nibbles(key_hash)
    levels: list[bytes] = []
    blob = store.get(b"")
    if blob is None:
        return StateProof([], b"")
    entry = blob if len(blob) == _LEAF_ENTRY_BYTES else ZERO_HASH
    while len(entry) == HASH_BYTES:
        path = nibbles[: len(levels)]
        children = _decode_children(path, store.get(path))
        entry = children[nibbles[len(levels)]]
        levels.append(_encode_level(children, nibbles[len(levels)]))
    other = entry[HASH_BYTES:]
    return StateProof(levels, b"" if other[:HASH_BYTES] == key_hash else other)


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
    node: bytes
    if value is not None:
        if proof.other:
            raise PeerError("bad_proof", "a proof of presence names no other leaf")
        node = _leaf_hash(key_hash, sha256(value).digest())
    elif proof.other:
        other_key_hash, other_value_hash = proof.other[:HASH_BYTES], proof.other[HASH_BYTES:]
        if len(other_value_hash) != HASH_BYTES or other_key_hash == key_hash:
            raise PeerError("bad_proof", "no leaf of another key")
        if _nibbles(other_key_hash)[:depth] != nibbles[:depth]:
            raise PeerError("bad_proof", "the other leaf does not stand in this key's place")
        node = _leaf_hash(other_key_hash, other_value_hash)
    else:
        node = ZERO_HASH
    for level, nibble in zip(reversed(proof.levels), reversed(nibbles[:depth]), strict=True):
        node = _fold_level_untrusted(level, nibble, node)
    if node != root:
        raise PeerError("bad_proof", "the proof does not lead to the root")


class NodeCache:
    """The nodes used last, above a store that is slow to read.

    The owner writes a :class:`TreeUpdate` to the store and, once that has succeeded, hands the same
    nodes to :meth:`apply`.
    """

    __slots__ = ("_blobs", "_nodes_max", "_store")

    def __init__(self, store: NodeStore, *, nodes_max: int = CACHED_NODES_MAX) -> None:
        self._store = store
        self._nodes_max = nodes_max
        self._blobs: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blobs)

    def get(self, path: bytes) -> bytes | None:
        """Return the blob at a path, from memory when it is there."""
        blob = self._blobs.get(path)
        if blob is not None:
            self._blobs.move_to_end(path)
            return blob
        blob = self._store.get(path)
        if blob is not None:
            self._keep(path, blob)
        return blob

    def apply(self, nodes: Mapping[bytes, bytes | None]) -> None:
        """Take over node writes that the store now holds."""
        for path, blob in nodes.items():
            if blob is None:
                self._blobs.pop(path, None)
            else:
                self._keep(path, blob)

    def _keep(self, path: bytes, blob: bytes) -> None:
        self._blobs[path] = blob
        self._blobs.move_to_end(path)
        if len(self._blobs) > self._nodes_max:
            self._blobs.popitem(last=False)


class _Batch:
    """One update under way: its items in ascending order, and the node writes so far.

    Both walks return the entry that now stands at a path; items ``first`` to ``end`` fall under it.
    """

    __slots__ = ("_items", "_store", "nodes")

    def __init__(self, store: NodeStore, items: list[_Item]) -> None:
        self._store = store
        self._items = items
        self.nodes: dict[bytes, bytes | None] = {}

    def descend(self, path: bytes, old: bytes, first: int, end: int) -> bytes:
        """Apply items to the stored inner node at a path, whose entry is ``old``."""
        items = self._items
        children = _decode_children(path, self._store.get(path))
        depth = len(path)
        changed = False
        while first < end:
            nibble = items[first][0][depth]
            after = first + 1
            while after < end and items[after][0][depth] == nibble:
                after += 1
            child = children[nibble]
            entry = items[first][1]
            if len(child) == HASH_BYTES:
                entry = self.descend(path + _CHILD_NAMES[nibble], child, first, after)
            elif after > first + 1 or not entry or (child and child[_KEY_HASH] != entry[_KEY_HASH]):
                entry = self.grow(path + _CHILD_NAMES[nibble], child, first, after)
            # else one leaf takes its own place, or an empty one
            if entry != child:
                children[nibble] = entry
                changed = True
            first = after
        return self._settle(path, children) if changed else old

    def grow(self, path: bytes, old: bytes, first: int, end: int) -> bytes:
        """Apply items where no inner node is stored: ``old`` is empty or a leaf."""
        new = [item for item in self._items[first:end] if item[1]]
        if old:
            nibbles = _nibbles(old[HASH_BYTES : 2 * HASH_BYTES])
            if all(item[0] != nibbles for item in self._items[first:end]):
                new.append((nibbles, old))
        return self._build(path, new)

    def _build(self, path: bytes, leaves: list[_Item]) -> bytes:
        """Make the subtree of these leaves out of nothing."""
        if not leaves:
            return b""
        if len(leaves) == 1:
            return leaves[0][1]
        depth = len(path)
        below: dict[int, list[_Item]] = {}
        for leaf in leaves:
            below.setdefault(leaf[0][depth], []).append(leaf)
        children = list(_EMPTY_CHILDREN)
        for nibble, group in below.items():
            children[nibble] = self._build(path + _CHILD_NAMES[nibble], group)
        return self._settle(path, children)

    def _settle(self, path: bytes, children: list[bytes]) -> bytes:
        """Write the node at a path, or remove it where none or a single leaf is left."""
        present = _WIDTH - children.count(b"")
        if present <= 1:
            entry = max(children)
            if len(entry) != HASH_BYTES:
                self.nodes[path] = None
                return entry
        self.nodes[path] = bytes(map(len, children)) + b"".join(children)
        return _inner_hash(children)


def _leaf_entries(changes: Mapping[bytes, bytes | None]) -> list[tuple[bytes, bytes]]:
    entries: list[tuple[bytes, bytes]] = []
    for key, value in changes.items():
        key_hash = sha256(key).digest()
        if value is None:
            entries.append((key_hash, b""))
            continue
        content = key_hash + sha256(value).digest()
        entries.append((key_hash, sha256(b"\0" + content).digest() + content))
    return entries


def _nibbles(key_hash: bytes) -> bytes:
    return key_hash.hex().encode("ascii").translate(_NIBBLE_OF_DIGIT)


def _leaf_hash(key_hash: bytes, value_hash: bytes) -> bytes:
    return sha256(b"\0" + key_hash + value_hash).digest()


def _inner_hash(children: list[bytes]) -> bytes:
    return sha256(b"\1" + b"".join([child[:HASH_BYTES] or ZERO_HASH for child in children])).digest()


def _decode_children(path: bytes, blob: bytes | None) -> list[bytes]:
    children: list[bytes] = []
    if blob is not None:
        start = _WIDTH
        lengths = blob[:_WIDTH]
        for length in lengths:
            end = start + length
            children.append(blob[start:end])
            start = end
        if start == len(blob) and len(children) == _WIDTH and not lengths.translate(None, _ENTRY_LENGTHS):
            return children
    raise StorageError("corrupt_tree", f"the state tree's node {path.hex()} is missing or damaged")


def _encode_level(children: list[bytes], own: int) -> bytes:
    mask = 0
    hashes: list[bytes] = []
    for index, child in enumerate(children):
        if child and index != own:
            mask |= 1 << index
            hashes.append(child[:HASH_BYTES])
    return mask.to_bytes(2, "big") + b"".join(hashes)


def _fold_level_untrusted(level: bytes, own: int, node: bytes) -> bytes:
    """Return the hash of the inner node that has ``node`` as child ``own`` and the level's hashes beside it."""
    mask = int.from_bytes(level[:2], "big")
    if len(level) != 2 + HASH_BYTES * mask.bit_count() or mask >> own & 1:
        raise PeerError("bad_proof", "a level whose mask does not fit")
    children = [ZERO_HASH] * _WIDTH
    start = 2
    for index in range(_WIDTH):
        if mask >> index & 1:
            children[index] = Hash(level[start : start + HASH_BYTES])
            if children[index] == ZERO_HASH:
                raise PeerError("bad_proof", "an empty child that is spelled out")
            start += HASH_BYTES
    children[own] = Hash(node)
    return sha256(b"\1" + b"".join(children)).digest()
