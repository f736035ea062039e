"""List trees: RFC 6962's own recursion as reference, and every changed proof refused."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.codec import RecordCodec
from consensus.ledger.merkle import ListProof, leaf_is_under, list_root, prove_leaf, prove_leaves
from tests.ledger.builders import flips, refusal

codec: RecordCodec[ListProof] = RecordCodec(ListProof, bytes_max=4_096)


def tree_hash(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\0" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\1" + tree_hash(leaves[:split]) + tree_hash(leaves[split:])).digest()


def audit_path(index: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, section 2.1.1, word for word."""
    if len(leaves) <= 1:
        return []
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    if index < split:
        return [*audit_path(index, leaves[:split]), tree_hash(leaves[split:])]
    return [*audit_path(index - split, leaves[split:]), tree_hash(leaves[:split])]


def counted(count: int, root: bytes) -> bytes:
    return sha256(b"\2" + count.to_bytes(8, "big") + root).digest()


# The leaves and tree heads that implementations of RFC 6962 (certificate-transparency's own tests) share.
PUBLISHED_LEAVES = [
    bytes.fromhex(text)
    for text in ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
]
PUBLISHED_ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


@pytest.mark.parametrize("count", PUBLISHED_ROOTS)
def test_published_roots(count: int) -> None:
    leaves = PUBLISHED_LEAVES[:count]
    published = bytes.fromhex(PUBLISHED_ROOTS[count])
    assert tree_hash(leaves) == published
    assert list_root(leaves) == counted(count, published)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=70), st.data())
def test_roots_and_paths_are_those_of_the_standard(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    root = list_root(leaves)
    proof = prove_leaf(leaves, index)
    assert root == counted(len(leaves), tree_hash(leaves))
    assert proof == ListProof(index, len(leaves), audit_path(index, leaves))
    assert leaf_is_under(root, leaves[index], proof)


@given(st.lists(st.binary(max_size=8), max_size=40))
def test_the_paths_of_all_leaves_are_those_of_each(leaves: list[bytes]) -> None:
    assert prove_leaves(leaves) == [prove_leaf(leaves, index) for index in range(len(leaves))]


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=40, unique=True), st.data())
def test_r65_a_proof_holds_at_its_own_place_only(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    root = list_root(leaves)
    proof = prove_leaf(leaves, index)
    for other_index in range(-len(leaves) - 1, len(leaves) + 2):
        for other_count in {len(leaves), len(leaves) + 1, max(1, len(leaves) - 1), 2 * len(leaves)}:
            moved = ListProof(other_index, other_count, proof.path)
            same = (other_index, other_count) == (index, len(leaves))
            assert leaf_is_under(root, leaves[index], moved) == same
    assert not any(leaf_is_under(root, leaf, proof) for leaf in leaves if leaf != leaves[index])


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 13])
def test_every_mutated_proof_is_refused(count: int) -> None:
    leaves = [bytes([number]) * 3 for number in range(count)]
    root = list_root(leaves)
    for index, leaf in enumerate(leaves):
        proof = prove_leaf(leaves, index)
        for bad in flips(codec.encode(proof)):
            assert refusal(codec.decode_untrusted, bad) or not leaf_is_under(root, leaf, codec.decode_untrusted(bad))
        assert not any(leaf_is_under(root, bad, proof) for bad in flips(leaf))
        assert not any(leaf_is_under(bad, leaf, proof) for bad in flips(root))
        assert not leaf_is_under(root, leaf, ListProof(index, count, [*proof.path, bytes(32)]))
        assert not leaf_is_under(root, leaf, ListProof(index, count, proof.path[:-1])) or not proof.path


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=33))
def test_r44_repeating_leaves_changes_the_root(leaves: list[bytes]) -> None:
    root = list_root(leaves)
    for tail in range(1, len(leaves) + 1):
        assert list_root([*leaves, *leaves[-tail:]]) != root


def test_an_inner_node_is_no_leaf() -> None:
    left, right = sha256(b"\0a").digest(), sha256(b"\0b").digest()
    assert list_root([left + right]) != list_root([b"a", b"b"])
    assert not leaf_is_under(list_root([b"a", b"b"]), left + right, ListProof(0, 1, []))
    assert not leaf_is_under(list_root([b"a", b"b"]), left + right, ListProof(0, 2, []))


def test_the_empty_list_has_a_root_of_its_own() -> None:
    assert list_root([]) == counted(0, sha256(b"").digest())
    assert list_root([]) != list_root([b""])
