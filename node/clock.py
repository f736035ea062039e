"""The two clocks of a node, behind a port so that tests decide what time it is."""

import time
from typing import Protocol

CLOCK_TOLERANCE_MS = 10_000


def is_timely(time_ms: int, *, parent_ms: int, wall_ms: int) -> bool:
    """Tell whether a node takes a new block of this time (ms UTC) by its own clock.

    Where the chain is ahead of the clock, because the clocks of many were ahead together and were set right, the
    smallest step above the parent is taken: else nobody's block was, until the clocks have come as far.
    """
    if abs(time_ms - wall_ms) <= CLOCK_TOLERANCE_MS:
        return True
    return time_ms == parent_ms + 1 and time_ms > wall_ms


class Clock(Protocol):
    """Wall time for block times, monotonic time for timeouts."""

    def wall_ms(self) -> int:
        """Return ms since 1970 UTC as this machine believes."""

    def monotonic_ms(self) -> int:
        """Return ms since some moment; never goes back."""


class SystemClock:
    """The operating system's clocks."""

    def wall_ms(self) -> int:
        """Return ms since 1970 UTC as this machine believes."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Return ms since some moment; never goes back."""
        return time.monotonic_ns() // 1_000_000
