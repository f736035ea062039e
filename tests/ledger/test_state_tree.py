"""The state tree against a reference that knows nothing of nodes, batches or history."""

import random
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from consensus.ledger import state_tree
from consensus.ledger.errors import StorageError
from consensus.ledger.state_tree import (
    EMPTY_ROOT,
    SEAL_WRITES_MAX,
    NodeCache,
    StateProof,
    TreeUpdate,
    check_state_proof_untrusted,
    prove,
    should_seal,
    state_proof_codec,
    tree_root,
    update,
)
from tests.ledger.builders import flips, refusal

State = dict[bytes, bytes]


class Nodes(dict[bytes, bytes]):
    """A store in memory that takes over node writes."""

    def take(self, result: TreeUpdate) -> bytes:
        for path, blob in result.nodes.items():
            if blob is None:
                self.pop(path, None)
            else:
                self[path] = blob
        return result.root


def reference_root(state: State) -> bytes:
    """The definition, from the module's first lines, as a recursion over the whole content."""

    def subtree(leaves: list[tuple[str, bytes]], depth: int) -> bytes:
        if len(leaves) <= 3 and depth > 0:
            return b"".join(leaf for _, leaf in sorted(leaves))
        children = [
            subtree([leaf for leaf in leaves if leaf[0][depth] == digit], depth + 1) for digit in "0123456789abcdef"
        ]
        return sha256(b"\1" + bytes(len(child) // 32 for child in children) + b"".join(children)).digest()

    leaves = [(sha256(key).hexdigest(), sha256(key).digest() + sha256(value).digest()) for key, value in state.items()]
    return subtree(leaves, 0) if leaves else bytes(32)


def crowded_keys() -> list[bytes]:
    """Keys whose hashes share long prefixes, too many for a bucket, so that chains of single children appear."""
    by_prefix: dict[str, list[bytes]] = {}
    for number in range(30_000):
        key = b"k%d" % number
        by_prefix.setdefault(sha256(key).hexdigest()[:4], []).append(key)
    close = [key for keys in by_prefix.values() if len(keys) > 4 for key in keys]
    return close[:16] + [b"k%d" % number for number in range(24)]


KEYS = crowded_keys()
keys = st.sampled_from(KEYS)
contents = st.dictionaries(keys, st.binary(max_size=6), max_size=30)


@given(contents)
def test_the_root_is_that_of_the_reference(state: State) -> None:
    nodes = Nodes()
    assert nodes.take(update(nodes, state)) == reference_root(state) == tree_root(nodes)


@given(contents, contents, st.randoms(use_true_random=False))
def test_the_root_and_the_nodes_do_not_depend_on_history(state: State, before: State, shuffler: random.Random) -> None:
    at_once = Nodes()
    root = at_once.take(update(at_once, state))
    one_by_one = Nodes()
    for key, value in before.items():
        one_by_one.take(update(one_by_one, {key: value}))
    steps: list[tuple[bytes, bytes | None]] = [(key, None) for key in before if key not in state]
    steps += state.items()
    shuffler.shuffle(steps)
    for key, change in steps:
        one_by_one.take(update(one_by_one, {key: change}))
    assert tree_root(one_by_one) == root
    assert one_by_one == at_once


@settings(max_examples=60, stateful_step_count=25, deadline=None)
class Histories(RuleBasedStateMachine):
    """Any batches, deletions of what is not there included; the nodes are always those of a fresh tree."""

    @initialize()
    def start(self) -> None:
        self.nodes = Nodes()
        self.cache = NodeCache(self.nodes, nodes_max=5)
        self.state: State = {}

    @rule(changes=st.dictionaries(keys, st.none() | st.binary(max_size=3), max_size=12))
    def change(self, changes: dict[bytes, bytes | None]) -> None:
        result = update(self.cache, changes)
        assert result == update(self.nodes, changes)
        assert self.nodes.take(result) == tree_root(self.nodes)
        self.cache.apply(result.nodes)
        for key, value in changes.items():
            if value is None:
                self.state.pop(key, None)
            else:
                self.state[key] = value

    @rule()
    def remove_all(self) -> None:
        self.change(dict.fromkeys(self.state))
        assert not self.nodes

    @rule(key=keys, wrong=st.binary(max_size=3))
    def prove_and_check(self, key: bytes, wrong: bytes) -> None:
        root, held = tree_root(self.nodes), self.state.get(key)
        proof = prove(self.cache, key)
        check_state_proof_untrusted(
            root, key, held, state_proof_codec.decode_untrusted(state_proof_codec.encode(proof))
        )
        for value in {None, wrong, b""} - {held}:
            assert refusal(check_state_proof_untrusted, root, key, value, proof) == "bad_proof"

    @invariant()
    def the_tree_is_that_of_its_content(self) -> None:
        fresh = Nodes()
        assert fresh.take(update(fresh, self.state)) == tree_root(self.nodes) == reference_root(self.state)
        assert fresh == self.nodes
        assert len(self.cache) <= 5


TestHistories = Histories.TestCase


def tree_of(count: int) -> tuple[Nodes, State, bytes]:
    state = {b"key-%d" % number: b"value-%d" % number for number in range(count)}
    nodes = Nodes()
    return nodes, state, nodes.take(update(nodes, state))


def test_the_empty_tree() -> None:
    nodes = Nodes()
    assert update(nodes, {}) == TreeUpdate(EMPTY_ROOT, {})
    assert update(nodes, {b"absent": None}) == TreeUpdate(EMPTY_ROOT, {})
    check_state_proof_untrusted(EMPTY_ROOT, b"absent", None, prove(nodes, b"absent"))
    assert refusal(check_state_proof_untrusted, EMPTY_ROOT, b"absent", b"", prove(nodes, b"absent")) == "bad_proof"


def test_deletes_collapse_to_a_single_leaf_and_to_nothing() -> None:
    nodes, state, _ = tree_of(60)
    survivor = b"key-7"
    root = nodes.take(update(nodes, {key: None for key in state if key != survivor}))
    assert list(nodes) == [b""]
    assert root == reference_root({survivor: state[survivor]})
    assert nodes.take(update(nodes, {survivor: None})) == EMPTY_ROOT
    assert not nodes


def test_what_changes_nothing_writes_nothing() -> None:
    nodes, state, root = tree_of(50)
    assert update(nodes, {**state, b"absent": None}) == TreeUpdate(root, {})
    single = Nodes()
    single.take(update(single, {b"a": b"1"}))
    assert update(single, {b"a": b"1", b"b": None}).nodes == {}


def test_each_node_is_read_and_written_once() -> None:
    nodes, state, _ = tree_of(400)
    reads: list[bytes] = []

    class Counting:
        def get(self, path: bytes) -> bytes | None:
            reads.append(path)
            return nodes.get(path)

    result = update(Counting(), dict.fromkeys(list(state)[:200], b"new"))
    assert len(result.nodes) <= len(set(reads))
    assert len(reads) <= len(set(reads)) + 1, "only the root is read twice"


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_every_mutated_proof_key_and_value_is_refused(count: int) -> None:
    nodes, state, root = tree_of(count)
    for key in [b"key-0", b"absent-1", b"absent-2", b"absent-3"]:
        value = state.get(key)
        proof = prove(nodes, key)
        check_state_proof_untrusted(root, key, value, proof)
        for bad in flips(state_proof_codec.encode(proof)):
            if not refusal(state_proof_codec.decode_untrusted, bad):
                other = state_proof_codec.decode_untrusted(bad)
                assert refusal(check_state_proof_untrusted, root, key, value, other) == "bad_proof"
        for bad in flips(root):
            assert refusal(check_state_proof_untrusted, bad, key, value, proof) == "bad_proof"
        for bad in flips(value or b""):
            assert refusal(check_state_proof_untrusted, root, key, bad, proof) == "bad_proof"
        if value is not None:
            assert refusal(check_state_proof_untrusted, root, key, None, proof) == "bad_proof"
            for bad in flips(key):
                assert refusal(check_state_proof_untrusted, root, bad, value, proof) == "bad_proof"


def test_absence_cannot_be_claimed_for_a_present_key() -> None:
    nodes, state, root = tree_of(40)
    for key in state:
        honest = prove(nodes, key)
        own_leaf = sha256(key).digest() + sha256(state[key]).digest()
        attempts = [StateProof(honest.levels[:depth], b"") for depth in range(len(honest.levels) + 1)]
        attempts.append(StateProof(honest.levels, own_leaf))
        path = bytes(nibble for byte in sha256(key).digest() for nibble in (byte >> 4, byte & 15))
        whole = [nodes[path[:depth]] for depth in range(len(honest.levels))]
        attempts += [StateProof([*honest.levels[:depth], node], b"") for depth, node in enumerate(whole)]
        attempts += [StateProof(honest.levels[:depth], sha256(node).digest()) for depth, node in enumerate(whole)]
        for other in state:
            borrowed = prove(nodes, other)
            content = sha256(other).digest() + sha256(state[other]).digest()
            attempts += [StateProof(borrowed.levels, borrowed.other), StateProof(borrowed.levels, content)]
            attempts.append(StateProof(honest.levels, content))
        for attempt in attempts:
            assert refusal(check_state_proof_untrusted, root, key, None, attempt) == "bad_proof"


def node_of(children: dict[int, bytes]) -> bytes:
    """A node with these children, whether or not they could be."""
    sizes = bytes(len(children.get(nibble, b"")) // 32 for nibble in range(16))
    return b"\1" + sizes + b"".join(children[nibble] for nibble in sorted(children))


def first_nibble(key: bytes) -> int:
    return sha256(key).digest()[0] >> 4


def leaf_of(key: bytes, value: bytes) -> bytes:
    return sha256(key).digest() + sha256(value).digest()


def test_a_proof_has_one_spelling() -> None:
    nodes, state, root = tree_of(2)
    proof = prove(nodes, b"key-0")
    (level,) = proof.levels
    own, beside = first_nibble(b"key-0"), first_nibble(b"key-1")
    leaf, other = (leaf_of(key, state[key]) for key in (b"key-0", b"key-1"))
    assert level == node_of({beside: other}) != nodes[b""] == node_of({own: leaf, beside: other})
    unused = next(nibble for nibble in range(16) if nibble not in (own, beside))
    spellings = [
        [nodes[b""]],
        [node_of({beside: other, unused: bytes(32)})],
        [node_of({beside: other, own: bytes(32)})],
        [node_of({beside: other[:32]})],
        [b"\0" + level[1:]],
        [level[:17]],
        [level + b"\0"],
        [level[:16]],
        [],
        [level, node_of({})],
        [node_of({}), level],
    ]
    bad = [StateProof(levels, b"") for levels in spellings]
    bad += [StateProof(proof.levels, extra) for extra in (bytes(64), leaf, other, leaf[:32], leaf + leaf)]
    for spelled in bad:
        assert refusal(check_state_proof_untrusted, root, b"key-0", state[b"key-0"], spelled) == "bad_proof"
    check_state_proof_untrusted(EMPTY_ROOT, b"key-0", None, StateProof([], b""))
    assert refusal(check_state_proof_untrusted, EMPTY_ROOT, b"key-0", None, StateProof([node_of({})], b""))


def test_the_others_of_a_bucket_stand_in_their_order() -> None:
    place = [key for key in (b"%d" % number for number in range(400)) if first_nibble(key) == 7][:4]
    state = dict.fromkeys(place[:3], b"value")
    nodes = Nodes()
    root = nodes.take(update(nodes, state))
    assert list(nodes) == [b""]
    leaves = sorted(leaf_of(key, b"value") for key in state)
    for key, value in ((place[0], b"value"), (place[3], None)):
        proof = prove(nodes, key)
        own = leaf_of(key, b"value")
        assert proof == StateProof([node_of({})], b"".join(leaf for leaf in leaves if leaf != own))
        check_state_proof_untrusted(root, key, value, proof)
        others = [proof.other[at : at + 64] for at in range(0, len(proof.other), 64)]
        for bad in ([*others[1:], others[0]], others[1:], [*others, others[-1]], [*others, own], [], [own, own]):
            altered = StateProof(proof.levels, b"".join(bad))
            assert refusal(check_state_proof_untrusted, root, key, value, altered) == "bad_proof"
    for lacking in state:
        without = StateProof([node_of({})], b"".join(leaves))
        assert refusal(check_state_proof_untrusted, root, lacking, None, without) == "bad_proof"


def test_a_subtree_is_a_bucket_up_to_three_leaves() -> None:
    by_place: dict[bytes, list[bytes]] = {}
    for number in range(3_000):
        by_place.setdefault(sha256(b"%d" % number).digest()[:1], []).append(b"%d" % number)
    four = next(keys for keys in by_place.values() if len(keys) >= 4)[:4]
    nodes = Nodes()
    nodes.take(update(nodes, dict.fromkeys(four[:3], b"")))
    assert list(nodes) == [b""]
    nodes.take(update(nodes, {four[3]: b""}))
    assert [len(path) for path in sorted(nodes)][:3] == [0, 1, 2]
    nodes.take(update(nodes, {four[0]: None}))
    assert list(nodes) == [b""]
    assert tree_root(nodes) == reference_root(dict.fromkeys(four[1:], b""))


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\1" + bytes(15),
        b"\1" + bytes(17),
        b"\0" + bytes(16),
        b"\1" + bytes([1] + [0] * 15) + bytes(31),
        b"\1" + bytes([2] + [0] * 15) + bytes(32),
    ],
)
def test_a_damaged_or_missing_node_is_a_storage_error(damage: bytes) -> None:
    nodes, _, _ = tree_of(40)
    nodes[b""] = damage
    for use in (lambda: tree_root(nodes), lambda: update(nodes, {b"key-1": b"x"}), lambda: prove(nodes, b"key-1")):
        with pytest.raises(StorageError) as failed:
            use()
        assert failed.value.code == "corrupt_tree"
    nodes, _, _ = tree_of(400)
    for path in [path for path in nodes if path]:
        del nodes[path]
    with pytest.raises(StorageError):
        prove(nodes, b"key-1")
    with pytest.raises(StorageError):
        update(nodes, {b"key-1": b"x"})


def test_another_leaf_shows_absence_in_its_own_place_only() -> None:
    key, stranger = (
        b"key-0",
        next(b"%d" % number for number in range(99) if sha256(b"%d" % number).digest()[0] >> 4 == 1),
    )
    assert sha256(key).digest()[0] >> 4 != 1
    leaf = leaf_of(stranger, b"value")
    root_of_a_wrong_tree = sha256(node_of({first_nibble(key): leaf})).digest()
    proof = StateProof([node_of({})], leaf)
    assert refusal(check_state_proof_untrusted, root_of_a_wrong_tree, key, None, proof) == "bad_proof"


def test_the_cache_holds_the_nodes_used_last() -> None:
    nodes = Nodes({bytes([number]): b"blob" for number in range(4)})
    cache = NodeCache(nodes, nodes_max=4)
    for path in (b"\0", b"\1", b"\2", b"\0", b"\3"):
        assert cache.get(path) == b"blob"
    nodes.clear()
    assert [cache.get(bytes([number])) for number in range(4)] == [b"blob", None, b"blob", b"blob"]
    cache.apply({b"\0": None, b"\2": b"new"})
    assert (cache.get(b"\0"), cache.get(b"\2")) == (None, b"new")
    cache.apply({bytes([number]): None for number in range(4)})
    assert [cache.get(bytes([number])) for number in range(4)] == [None] * 4
    assert cache.get(b"") is None


@pytest.mark.parametrize(
    ("quiet", "unsealed_writes", "time_ms", "sealed"),
    [
        (False, 0, 1_999, False),
        (False, SEAL_WRITES_MAX - 1, 1_999, False),
        (False, SEAL_WRITES_MAX, 1_001, True),
        (False, 0, 2_000, True),
        (True, 0, 1_001, True),
    ],
)
def test_when_a_block_seals(quiet: bool, unsealed_writes: int, time_ms: int, sealed: bool) -> None:
    decided = should_seal(quiet=quiet, unsealed_writes=unsealed_writes, time_ms=time_ms, sealed_time_ms=1_000)
    assert decided == sealed


def test_a_large_tree_has_short_proofs() -> None:
    nodes, state, root = tree_of(20_000)
    shuffled = random.Random(1).sample(sorted(state), 200)
    for key in shuffled:
        proof = prove(nodes, key)
        check_state_proof_untrusted(root, key, state[key], proof)
        assert len(proof.levels) <= 8
        assert len(state_proof_codec.encode(proof)) < 3_500
    changed = dict.fromkeys(shuffled, b"changed")
    assert nodes.take(update(nodes, changed)) == reference_root({**state, **changed})
    assert state_tree.tree_root(nodes) == reference_root({**state, **changed})
