"""Waits that end within tens of microseconds of their time.

trio waits in the kernel's ``epoll``, whose timeout counts whole milliseconds: at 500 deliveries a second half of
the pace would be rounding. A ``timerfd`` is exact, and costs nothing while it waits. Where the system has none,
trio's own sleep is taken.
"""

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trio

NS_PER_S = 1_000_000_000
_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_TFD_FLAGS = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_EXPIRATIONS_BYTES = 8


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Timer:
    """One waiter's alarm clock; made by :func:`open_timer`. ``descriptor`` is -1 where trio's sleep has to do."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def wait_until(self, moment_ns: int) -> None:
        """Return at ``moment_ns`` of the monotonic clock or just after it, never before; one waiter at a time."""
        left_ns = moment_ns - time.monotonic_ns()
        if left_ns <= 0:
            await trio.lowlevel.checkpoint()
            return
        while left_ns > 0:
            if self._descriptor < 0:
                await trio.sleep(left_ns / NS_PER_S)
            else:
                self._set(moment_ns)
                await trio.lowlevel.wait_readable(self._descriptor)
                with suppress(BlockingIOError):
                    os.read(self._descriptor, _EXPIRATIONS_BYTES)
            left_ns = moment_ns - time.monotonic_ns()

    def _set(self, moment_ns: int) -> None:
        seconds, nanoseconds = divmod(moment_ns, NS_PER_S)
        spec = _TimerSpec(_TimeSpec(0, 0), _TimeSpec(seconds, nanoseconds))
        if _libc.timerfd_settime(self._descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")


_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def open_timer() -> Iterator[Timer]:
    """Give a timer for the time of the block."""
    descriptor = -1
    if sys.platform == "linux":
        descriptor = _libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
    try:
        yield Timer(descriptor)
    finally:
        if descriptor >= 0:
            trio.lowlevel.notify_closing(descriptor)
            os.close(descriptor)
