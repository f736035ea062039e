"""What one session may have under way, and what waits to be sent to it: both bounded, in number and bytes."""

from collections import deque
from collections.abc import Callable

import trio

OUTBOX_BYTES_MAX = 4 * 1024 * 1024
IN_FLIGHT_MAX = 4_096
"""Requests of one session that may be under way."""
IN_FLIGHT_BYTES_MAX = 8 * 1024 * 1024
"""Size of their messages together."""


class Outbox:
    """Messages on their way out. ``put`` waits while more than ``OUTBOX_BYTES_MAX`` are waiting.

    Whoever waits in ``put`` holds a message. So whoever has yet to make one waits before that, for
    ``has_room``: a small request may have a huge answer.
    """

    def __init__(self) -> None:
        self._messages: deque[bytes | Callable[[], bytes]] = deque()
        self._size = 0
        self._held = 0
        """Size of the messages that wait in ``put``."""
        self._changed = trio.Event()
        self._makers = trio.lowlevel.ParkingLot()

    async def has_room(self) -> None:
        """Return when a message may be made; one after the other, in the order in which they asked."""
        while self._size + self._held >= OUTBOX_BYTES_MAX:
            await self._makers.park()
        self._makers.unpark()  # the next one looks when this one's message is there, unless that takes its time

    async def put(self, message: bytes) -> None:
        """Leave a message; one that alone exceeds the bound passes when the box is empty."""
        self._held += len(message)
        try:
            while self._messages and self._size + len(message) > OUTBOX_BYTES_MAX:
                await self._changed.wait()
        finally:
            self._held -= len(message)
        self._messages.append(message)
        self._size += len(message)
        self._wake()

    def put_later(self, render: Callable[[], bytes]) -> None:
        """Leave a message that is made when its turn comes; who calls this bounds what it is made of."""
        self._messages.append(render)
        self._wake()

    async def take(self) -> bytes:
        """Return the oldest message, waiting for one."""
        while not self._messages:
            await self._changed.wait()
        message = self._messages.popleft()
        if not isinstance(message, bytes):
            return message()
        self._size -= len(message)
        self._wake()
        self._makers.unpark()
        return message

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Room:
    """What a session may have under way; ``enter`` waits for room, so that its peer is read no further."""

    def __init__(self) -> None:
        self._count = 0
        self._size = 0
        self._changed = trio.Event()

    async def enter(self, size: int) -> None:
        """Take a place for a message of this size; one that alone exceeds the bound enters an empty room."""
        while self._count and (self._count >= IN_FLIGHT_MAX or self._size + size > IN_FLIGHT_BYTES_MAX):
            await self._changed.wait()
        self._count += 1
        self._size += size

    def leave(self, size: int, *, count: int = 1) -> None:
        """Give the places of so many messages back, which have this size together."""
        self._count -= count
        self._size -= size
        self._changed.set()
        self._changed = trio.Event()
