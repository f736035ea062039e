"""Recent state above sealed state: whatever blocks write and whenever they seal, it reads like one map."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from node.state import CACHED_VALUE_BYTES_MAX, RecentState, SealedState
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

    @rule(writes=st.dictionaries(key, value, max_size=4))
    def block(self, writes: dict[bytes, bytes | None]) -> None:
        self.state.extend(writes)
        for name, new in writes.items():
            if new is None:
                self.model.pop(name, None)
            else:
                self.model[name] = new

    @rule()
    def seal(self) -> None:
        self.store.write([(layout.STATE + name, new) for name, new in self.state.tail.items()])
        self.state.seal()

    @rule()
    def restart(self) -> None:
        tail = self.state.tail
        self.state = RecentState(SealedState(self.store))
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
