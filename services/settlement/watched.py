"""An event store that tells of the changes it took: who waits for an event hears of it, and who has work from it.

All parts of the event system read and write through one of these, so that nobody has to poll and nobody has to tell.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog
import trio

from consensus.ledger.errors import LocalError
from services.settlement.states import Change, Event, HistoryRow, Notice, State, Topic
from services.settlement.store import Cursor, EventStore, Selection

WATCHES_MAX = 1_024
"""How many callers wait for events at a time."""

log = structlog.get_logger("events")


class Watch:
    """What became of some events since the watch began; made by :meth:`WatchedStore.watch`."""

    def __init__(self) -> None:
        self._changed: dict[str, Event] = {}
        self._bell = trio.Event()

    def put(self, event: Event) -> None:
        """Note a change."""
        self._changed[event.event] = event
        self._bell.set()

    async def next(self) -> list[Event]:
        """Wait for changes; return each changed event as it is now."""
        await self._bell.wait()
        self._bell = trio.Event()
        changed, self._changed = [*self._changed.values()], {}
        return changed


class WatchedStore:
    """Fills :class:`services.settlement.store.EventStore` with another one; see there."""

    def __init__(self, store: EventStore) -> None:
        """Wrap a store that nobody else changes."""
        self._store = store
        self._watches: dict[str, set[Watch]] = {}
        self._watch_count = 0
        self._bells: list[tuple[frozenset[Topic], Callable[[], None]]] = []

    # -- who hears -------------------------------------------------------------------------------------

    def ring(self, topics: Sequence[Topic], bell: Callable[[], None]) -> None:
        """Call ``bell`` whenever notices of these topics were kept."""
        self._bells.append((frozenset(topics), bell))

    @contextmanager
    def watch(self, events: Sequence[str]) -> Iterator[Watch]:
        """Hear of these events' changes for the time of the block; read them after its beginning, not before.

        Raises:
            LocalError: ``busy``: too many wait already.
        """
        if self._watch_count >= WATCHES_MAX:
            raise LocalError("busy", f"{WATCHES_MAX} callers wait for events already")
        watch = Watch()
        self._watch_count += 1
        for event in events:
            self._watches.setdefault(event, set()).add(watch)
        try:
            yield watch
        finally:
            self._watch_count -= 1
            for event in events:
                if watches := self._watches.get(event):
                    watches.discard(watch)
                    if not watches:
                        del self._watches[event]

    def _tell(self, change: Change) -> None:
        for watch in self._watches.get(change.after.event, ()):
            watch.put(change.after)
        if change.after.is_flagged and not change.before.is_flagged:
            log.warning("event needs an operator", trade=change.after.event, code=change.after.code, why=change.why)

    # -- the store -------------------------------------------------------------------------------------

    async def register(self, events: Sequence[Event]) -> list[Event]:
        """Keep new events."""
        return await self._store.register(events)

    async def apply(self, changes: Sequence[Change], *, cursor: Cursor | None = None) -> list[bool]:
        """Take changes, and tell whom they concern."""
        taken = await self._store.apply(changes, cursor=cursor)
        topics: set[Topic] = set()
        for change, is_taken in zip(changes, taken, strict=True):
            if is_taken:
                self._tell(change)
                topics.update(change.topics)
        for wanted, bell in self._bells:
            if wanted & topics:
                bell()
        return taken

    async def find(self, events: Sequence[str]) -> list[Event | None]:
        """Return events by id."""
        return await self._store.find(events)

    async def find_transactions(self, transaction_ids: Sequence[bytes]) -> list[Event]:
        """Return the events with these transactions."""
        return await self._store.find_transactions(transaction_ids)

    async def due(self, now_ms: int, limit: int, *, ahead_ms: int) -> list[Event]:
        """Return unfinished events whose time has come."""
        return await self._store.due(now_ms, limit, ahead_ms=ahead_ms)

    async def notices(self, topics: Sequence[Topic], after: int, limit: int) -> list[Notice]:
        """Return outbox rows."""
        return await self._store.notices(topics, after, limit)

    async def drop_notices(self, numbers: Sequence[int]) -> None:
        """Remove outbox rows."""
        await self._store.drop_notices(numbers)

    async def history(self, event: str) -> list[HistoryRow]:
        """Return all changes of an event."""
        return await self._store.history(event)

    async def listed(self, selection: Selection, after: str, limit: int) -> list[Event]:
        """Return a page of events."""
        return await self._store.listed(selection, after, limit)

    async def totals(self) -> dict[State, int]:
        """Return how many events have each state."""
        return await self._store.totals()

    async def cursor(self) -> Cursor | None:
        """Return how far the chain was read."""
        return await self._store.cursor()
