"""A clock that a test moves, and the embedded store without its thread, so that a run repeats exactly."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import trio
import trio.testing

from consensus.ledger.errors import StorageError
from services.messages import embedded
from services.messages.embedded import EmbeddedStore
from services.messages.store import Change, Entry, NewMessage, Published

NS_PER_MS = 1_000_000
UTC_MS = 1_700_000_000_000

Answer = TypeVar("Answer")


class SimulatedClock:
    """Stands still but for a microsecond a look, until it is moved."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._alarms: dict[trio.Event, int] = {}

    def monotonic_ns(self) -> int:
        self.now_ns += 1_000
        return self.now_ns

    def utc_ms(self) -> int:
        return UTC_MS + self.now_ns // NS_PER_MS

    async def wait_until(self, moment_ns: int) -> None:
        await trio.lowlevel.checkpoint()
        while self.now_ns < moment_ns:
            alarm = trio.Event()
            self._alarms[alarm] = moment_ns
            try:
                await alarm.wait()
            finally:
                del self._alarms[alarm]

    async def move(self, time_ms: float) -> None:
        """Let so much time pass, and everything happen that falls into it."""
        await trio.testing.wait_all_tasks_blocked()
        end_ns = self.now_ns + round(time_ms * NS_PER_MS)
        while (moment_ns := min(self._alarms.values(), default=end_ns)) < end_ns:
            self.now_ns = max(self.now_ns, moment_ns)
            self._ring()
            await trio.testing.wait_all_tasks_blocked()
        self.now_ns = max(self.now_ns, end_ns)
        self._ring()
        await trio.testing.wait_all_tasks_blocked()

    def _ring(self) -> None:
        for alarm, moment_ns in self._alarms.items():
            if moment_ns <= self.now_ns:
                alarm.set()


class InlineStore(EmbeddedStore):
    """The embedded store with its calls made in place; it counts them, and breaks where it is told to."""

    appended_calls = changed_calls = read_calls = 0
    entries_after = 0
    """Where the last page of entries began."""
    breaks_before_write = breaks_after_write = False

    async def append(self, messages: Sequence[NewMessage], now_ms: int) -> list[Published]:
        self.appended_calls += 1
        self._break(is_before=True)
        published = await super().append(messages, now_ms)
        self._break(is_before=False)
        return published

    async def change(self, changes: Sequence[Change], now_ms: int) -> None:
        self.changed_calls += 1
        self._break(is_before=True)
        await super().change(changes, now_ms)
        self._break(is_before=False)

    async def entries(self, after: int, limit: int) -> list[Entry]:
        self.entries_after = after
        return await super().entries(after, limit)

    async def bodies(self, sequences: Sequence[int]) -> dict[int, tuple[str, bytes]]:
        self.read_calls += 1
        return await super().bodies(sequences)

    def _break(self, *, is_before: bool) -> None:
        if self.breaks_before_write if is_before else self.breaks_after_write:
            raise StorageError("disk_failed", "the test says so")

    async def _run(self, work: Callable[[embedded._Owned], Answer]) -> Answer:
        await trio.lowlevel.checkpoint()
        assert self._owned is not None
        with self._owned.transaction():
            return work(self._owned)
