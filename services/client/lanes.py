"""Lanes of one account, handed out one caller at a time, so that many transactions run side by side.

Within a lane numbers follow each other; two lanes know nothing of each other. A lease gives a lane with
its next number, read from the chain the first time and after anything whose outcome is not known.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256

import trio

from consensus.ledger.errors import LocalError
from consensus.ledger.transaction import LANE_NAME_BYTES_MAX

LANES_MAX = 256
"""How many lanes an account may have open on the chain."""

ReadNext = Callable[[bytes], Awaitable[int]]


class Lane:
    """A leased lane: ``take`` numbers, and say ``forget`` when it is unknown which were used."""

    def __init__(self, name: bytes, read_next: ReadNext) -> None:
        self.name = name
        self._read_next = read_next
        self._next: int | None = None

    async def take(self, count: int = 1) -> int:
        """Return the first of ``count`` numbers that nobody else gets."""
        if self._next is None:
            self._next = await self._read_next(self.name)
        first = self._next
        self._next += count
        return first

    def forget(self) -> None:
        """Read the next number from the chain again before it is used."""
        self._next = None


class Lanes:
    """``count`` lanes ``PREFIX``, ``PREFIX1``, …; programs that share an account use different prefixes."""

    def __init__(self, read_next: ReadNext, *, count: int = 1, prefix: bytes = b"") -> None:
        """Raise LocalError ``bad_lane`` for names longer than 16 bytes or a count outside 1…256."""
        if not 1 <= count <= LANES_MAX or len(prefix) + (len(str(count - 1)) if count > 1 else 0) > LANE_NAME_BYTES_MAX:
            raise LocalError("bad_lane", f"1 to {LANES_MAX} lanes with names of up to {LANE_NAME_BYTES_MAX} bytes")
        names = [prefix + (str(number).encode() if number else b"") for number in range(count)]
        self._free = deque(Lane(name, read_next) for name in names)
        self._places = trio.Semaphore(count)

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Lane]:
        """Wait for a free lane and hold it for the time of the block; any error makes it forget its number."""
        async with self._places:
            lane = self._free.popleft()
            try:
                yield lane
            except BaseException:
                lane.forget()
                raise
            finally:
                self._free.append(lane)


def one_shot_lane(key: str) -> bytes:
    """Return the lane of 32 bytes that takes exactly one transaction, ever, for this account and key."""
    return sha256(b"hansa:one-shot\0" + key.encode()).digest()
