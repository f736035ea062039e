"""The overlay against a plain dict with snapshots."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from contracts.runtime import state as state_module
from contracts.runtime.state import MemoryState, Overlay

KEYS = st.binary(max_size=3).map(lambda tail: b"a/" + tail) | st.binary(max_size=3).map(lambda tail: b"b/" + tail)
VALUES = st.binary(max_size=4)


class OverlayMachine(RuleBasedStateMachine):
    """Random writes, marks, rollbacks and scans; the model copies a dict at every mark."""

    @initialize(base=st.dictionaries(KEYS, VALUES, max_size=40))
    def begin(self, base: dict[bytes, bytes]) -> None:
        self.base = base
        self.overlay = Overlay(MemoryState(base))
        self.model: dict[bytes, bytes | None] = {}
        self.marks: list[tuple[int, dict[bytes, bytes | None]]] = []

    @rule(key=KEYS, value=VALUES)
    def put(self, key: bytes, value: bytes) -> None:
        self.overlay.put(key, value)
        self.model[key] = value

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        self.overlay.delete(key)
        self.model[key] = None

    @rule()
    def mark(self) -> None:
        self.marks.append((self.overlay.mark(), dict(self.model)))

    @rule()
    def rollback(self) -> None:
        if self.marks:
            mark, model = self.marks.pop()
            self.overlay.rollback(mark)
            self.model = dict(model)

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        assert self.overlay.get(key) == self.model.get(key, self.base.get(key))

    @rule(prefix=st.sampled_from([b"", b"a/", b"b/", b"a/\x00", b"c"]), start=KEYS, limit=st.integers(0, 12))
    def scan(self, prefix: bytes, start: bytes, limit: int) -> None:
        merged = {**self.base, **self.model}
        expected = [
            (key, value)
            for key, value in sorted(merged.items())
            if value is not None and key.startswith(prefix) and key >= start
        ]
        assert self.overlay.scan(prefix, start, limit) == expected[:limit]

    @invariant()
    def writes_are_the_models(self) -> None:
        assert list(self.overlay.writes().items()) == sorted(self.model.items())


TestOverlay = OverlayMachine.TestCase
TestOverlay.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)


def test_scan_goes_on_past_a_batch_of_deleted_entries() -> None:
    base = {b"a/%05d" % number: b"v" for number in range(2 * state_module.SCAN_BATCH)}
    overlay = Overlay(MemoryState(base))
    for number in range(2 * state_module.SCAN_BATCH - 3):
        overlay.delete(b"a/%05d" % number)
    overlay.put(b"a/zzz", b"new")
    found = overlay.scan(b"a/", b"a/", 3)
    assert [key for key, _ in found] == [b"a/%05d" % (2 * state_module.SCAN_BATCH - 3 + index) for index in range(3)]
    assert overlay.scan(b"a/", b"a/", 100)[-1] == (b"a/zzz", b"new")


def test_many_writes_then_scan() -> None:
    overlay = Overlay(MemoryState())
    for number in range(500, 0, -1):
        overlay.put(b"a/%03d" % number, b"")
    assert [key for key, _ in overlay.scan(b"a/", b"a/499", 10)] == [b"a/499", b"a/500"]
