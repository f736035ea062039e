"""The two clocks of a node, behind a port so that tests decide what time it is."""

import time
from typing import Protocol


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
