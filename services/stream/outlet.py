"""What is to be told on one connection: in order, and each message only once what it tells of is durable."""

from collections import deque
from collections.abc import Iterable

import trio

from services.stream.store import StreamStore
from services.stream.wire import Stored, Supplied, Told

WAITING_MAX = 4_096
"""Messages that wait on one connection; one that reads so slowly is given up."""
STREAMS_MAX = 1_024
"""Streams that one connection is told of."""


class Outlet:
    """Messages with the group of the store that each waits for, which may be an older one than that of those before it.

    ``hailed`` are the streams that the peer has shown to be its own.
    """

    def __init__(self, store: StreamStore) -> None:
        self._store = store
        self._waiting: deque[tuple[int, Told]] = deque()
        self._has_news = trio.Event()
        self._has_room = trio.Event()
        self.hailed: set[bytes] = set()
        self.is_lost = False
        """Whether messages were dropped, since too many waited."""

    def put(self, group: int, message: Told) -> None:
        """Have a message told once a group is durable."""
        if len(self._waiting) >= WAITING_MAX:
            self._waiting = deque((group, told) for group, told in coalesced(self._waiting))
            if len(self._waiting) >= WAITING_MAX:
                self.is_lost = True
                self._waiting.clear()
        self._waiting.append((group, message))
        self._has_news.set()

    async def until_room(self) -> None:
        """Wait until the peer has been told half of what may wait."""
        while len(self._waiting) >= WAITING_MAX // 2:
            self._has_room = trio.Event()
            await self._has_room.wait()

    async def take(self) -> list[Told]:
        """Wait for messages that may be told, and return them, of what counts in all only the last of each stream.

        Raises:
            StorageError: the store has failed: nothing that waits may ever be told.
        """
        while not self._waiting:
            self._has_news = trio.Event()
            await self._has_news.wait()
        await self._store.until(self._waiting[0][0])
        return self._ready()

    async def take_all(self) -> list[Told]:
        """Return everything, once it may be told; errors as of :meth:`take`."""
        await self._store.until(max((group for group, _ in self._waiting), default=0))
        return self._ready()

    def _ready(self) -> list[Told]:
        ready: list[tuple[int, Told]] = []
        while self._waiting and self._waiting[0][0] <= self._store.durable:
            ready.append(self._waiting.popleft())
        self._has_room.set()
        return [message for _, message in coalesced(ready)]


def coalesced(messages: Iterable[tuple[int, Told]]) -> list[tuple[int, Told]]:
    """Leave out what a later message of the same stream says anew."""
    kept: dict[object, tuple[int, Told]] = {}
    for place, (group, message) in enumerate(messages):
        name: object = place
        if isinstance(message, Stored | Supplied):
            name = (type(message), message.stream)
            kept.pop(name, None)
        kept[name] = (group, message)
    return list(kept.values())
