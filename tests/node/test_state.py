"""Recent state above sealed state: whatever blocks write and whenever they seal, it reads like one map."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from node.state import (
    CACHED_VALUE_BYTES_MAX,
    UNSTORED_BYTES_MAX,
    UNSTORED_NODES_MAX,
    UNSTORED_SEALS_MAX,
    RecentState,
    SealedState,
)
from node.storage import layout
from node.storage.leveldb import LevelStore

KEYS = [b"a", b"a/", b"a/1", b"a/2", b"a/2/x", b"a/\xff", b"b/1", b"b/2"]
PREFIXES = [b"", b"a", b"a/", b"a/2", b"b/", b"c", b"\xff"]
key = st.sampled_from(KEYS)
value = st.one_of(st.none(), st.binary(max_size=3), st.just(b"v" * (CACHED_VALUE_BYTES_MAX + 1)))


class StateMachine(RuleBasedStateMachine):
    """Random blocks, seals and restarts beside a plain dict."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = LevelStore.open(Path(self.folder.name))
        self.state = RecentState(SealedState(self.store))
        self.model: dict[bytes, bytes] = {}
        self.unstored: list[dict[bytes, bytes | None]] = []

    @rule(writes=st.dictionaries(key, value, max_size=4))
    def block(self, writes: dict[bytes, bytes | None]) -> None:
        self.state.extend(writes)
        for name, new in writes.items():
            if new is None:
                self.model.pop(name, None)
            else:
                self.model[name] = new

    @rule(is_stored=st.booleans())
    def seal(self, is_stored: bool) -> None:
        changes = dict(self.state.tail)
        nodes: dict[bytes, bytes | None] = {name: b"node " + (new or b"none") for name, new in changes.items()}
        if is_stored:
            self.store.write(self.state.sealed.records(changes, nodes))
        self.unstored.append(changes)
        self.state.seal(nodes)
        if is_stored:
            self.state.sealed.stored()
            self.unstored.clear()
        for name, node in nodes.items():
            assert self.state.sealed.node(name) == node

    @rule()
    def restart(self) -> None:
        tail = dict(self.state.tail)
        self.state = RecentState(SealedState(self.store))
        for changes in self.unstored:
            self.state.extend(changes)
            self.state.seal({})
        self.state.extend(tail)

    @rule(prefix=st.sampled_from(PREFIXES), start=st.one_of(key, st.just(b"")), limit=st.integers(-1, 9))
    def scan(self, prefix: bytes, start: bytes, limit: int) -> None:
        found = sorted(name for name in self.model if name.startswith(prefix) and name >= start)
        expected = [(name, self.model[name]) for name in found[: max(limit, 0)]]
        assert self.state.scan(prefix, start, limit) == expected

    @invariant()
    def every_key_reads_like_the_model(self) -> None:
        for name in KEYS:
            assert self.state.get(name) == self.model.get(name)

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()


StateMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestState = StateMachine.TestCase


def test_a_scan_reads_no_more_of_the_store_than_it_returns(tmp_path: Path) -> None:
    store = LevelStore.open(tmp_path)
    store.write([(layout.STATE + b"k%03d" % number, b"old") for number in range(500)])
    walked = 0

    class Counting(SealedState):
        def walk(self, prefix: bytes, start: bytes):  # type: ignore[no-untyped-def]
            nonlocal walked
            for pair in super().walk(prefix, start):
                walked += 1
                yield pair

    state = RecentState(Counting(store))
    state.extend({b"k%03d" % number: b"new" for number in range(400)})
    assert [name for name, _ in state.scan(b"k", b"k010", 3)] == [b"k010", b"k011", b"k012"]
    assert walked <= 5
    store.close()


def test_a_seal_is_stored_after_so_many_seals_nodes_or_bytes_and_in_a_quiet_block(tmp_path: Path) -> None:
    store = LevelStore.open(tmp_path)
    state = RecentState(SealedState(store))
    for _ in range(UNSTORED_SEALS_MAX):
        assert not state.sealed.is_due(is_quiet=False)
        assert state.sealed.is_due(is_quiet=True)
        state.seal({})
    assert state.sealed.is_due(is_quiet=False)
    state.sealed.stored()
    assert not state.sealed.is_due(is_quiet=False)
    half = bytes(UNSTORED_BYTES_MAX // 2)
    for value, node in ((half, None), (None, half)):
        assert not state.sealed.is_due(is_quiet=False)
        state.extend({b"key": value})
        state.seal({b"a": node})
    assert state.sealed.is_due(is_quiet=False)
    state.sealed.stored()
    state.seal({b"%d" % number: b"" for number in range(UNSTORED_NODES_MAX - 1)})
    assert not state.sealed.is_due(is_quiet=False)
    state.seal({b"one more": b""})
    assert state.sealed.is_due(is_quiet=False)
    store.close()
