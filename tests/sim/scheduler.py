"""Simulated time, the one event heap, and the trace that two runs of one seed must share."""

from collections.abc import Callable
from hashlib import sha256
from heapq import heappop, heappush

Action = Callable[[], None]


class Trace:
    """Hashes every line into one digest; prints them as well when asked to."""

    def __init__(self, *, verbose: bool) -> None:
        self._digest = sha256()
        self._verbose = verbose
        self.lines = 0

    def note(self, now_ms: int, who: str, what: str) -> None:
        """Add one line."""
        line = f"{now_ms:>7} {who:<8} {what}"
        self._digest.update(line.encode() + b"\n")
        self.lines += 1
        if self._verbose:
            print(line)

    def hexdigest(self) -> str:
        """Return the SHA-256 of all lines so far."""
        return self._digest.hexdigest()


class Scheduler:
    """Runs actions in order of their time, and of their creation within one ms."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.actions = 0
        self._heap: list[tuple[int, int, Action]] = []
        self._created = 0

    def after(self, delay_ms: int, action: Action) -> None:
        """Run an action once this much time has passed."""
        self._created += 1
        heappush(self._heap, (self.now_ms + delay_ms, self._created, action))

    def run(self, until_ms: int, is_done: Callable[[], bool] = lambda: False) -> bool:
        """Run until a moment, or until something holds; tell whether it does."""
        while self._heap and self._heap[0][0] <= until_ms:
            if is_done():
                return True
            self.now_ms, _, action = heappop(self._heap)
            self.actions += 1
            action()
        if is_done():
            return True
        self.now_ms = until_ms
        return False
