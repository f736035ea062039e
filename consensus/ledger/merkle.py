"""Merkle trees over lists, in the form of RFC 6962, with the length committed to.

``list_root`` is ``H(2 ‖ count ‖ MTH(leaves))``: the count stands under the root, so that a path also
proves its place. A leaf is hashed behind a 0 byte and an inner node behind a 1 byte, which keeps the
two apart; an odd node is never doubled (CVE-2012-2459).
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated

import msgspec

from consensus.ledger.codec import Record
from consensus.ledger.ids import HASH_BYTES, Hash

HashBytes = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]


class ListProof(Record, frozen=True):
    """That a leaf stands at ``index`` of a list of ``count``: the sibling hashes from the leaf up."""

    index: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    count: Annotated[int, msgspec.Meta(ge=1, lt=2**32)]
    path: Annotated[list[HashBytes], msgspec.Meta(max_length=32)]


def list_root(leaves: Sequence[bytes]) -> Hash:
    """Return the root over the leaves in their order; an empty list has a root too."""
    return _seal(len(leaves), _reduce([sha256(b"\0" + leaf).digest() for leaf in leaves]))


def prove_leaf(leaves: Sequence[bytes], index: int) -> ListProof:
    """Return the proof for the leaf at ``index``."""
    return ListProof(index, len(leaves), _path(_levels(leaves), index))


def prove_leaves(leaves: Sequence[bytes]) -> list[ListProof]:
    """Return the proof for each leaf, in their order; the tree is hashed once for all of them."""
    levels = _levels(leaves)
    return [ListProof(index, len(leaves), _path(levels, index)) for index in range(len(leaves))]


def leaf_is_under(root: bytes, leaf: bytes, proof: ListProof) -> bool:
    """Tell whether the proof leads from the leaf to the root; false for any proof of wrong shape."""
    if not 0 <= proof.index < proof.count:
        return False
    node = sha256(b"\0" + leaf).digest()
    position, width = proof.index, proof.count
    path = iter(proof.path)
    while width > 1:
        if position ^ 1 < width:
            sibling = next(path, None)
            if sibling is None:
                return False
            pair = sibling + node if position & 1 else node + sibling
            node = sha256(b"\1" + pair).digest()
        position //= 2
        width = (width + 1) // 2
    return next(path, None) is None and _seal(proof.count, node) == root


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """Return the tree's levels from the hashed leaves up, without the single node at the top."""
    level = [sha256(b"\0" + leaf).digest() for leaf in leaves]
    levels: list[list[bytes]] = []
    while len(level) > 1:
        levels.append(level)
        level = _pair(level)
    return levels


def _path(levels: list[list[bytes]], index: int) -> list[bytes]:
    """Return a leaf's siblings from the bottom up; a node without neighbour has none."""
    siblings = [(level, (index >> height) ^ 1) for height, level in enumerate(levels)]
    return [level[place] for level, place in siblings if place < len(level)]


def _pair(level: list[bytes]) -> list[bytes]:
    """Hash neighbours together; a last node without neighbour moves up as it is."""
    paired = [sha256(b"\1" + level[index] + level[index + 1]).digest() for index in range(0, len(level) - 1, 2)]
    if len(level) % 2:
        paired.append(level[-1])
    return paired


def _reduce(level: list[bytes]) -> bytes:
    if not level:
        return sha256(b"").digest()
    while len(level) > 1:
        level = _pair(level)
    return level[0]


def _seal(count: int, node: bytes) -> Hash:
    return Hash(sha256(b"\2" + count.to_bytes(8, "big") + node).digest())
