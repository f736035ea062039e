"""The event store in memory: the port's meaning in the fewest words, for tests."""

from collections.abc import Sequence

from services.settlement.states import Change, Event, HistoryRow, Notice, State, Topic
from services.settlement.store import HISTORY_MAX, Cursor, Selection


class MemoryStore:
    """Fills :class:`services.settlement.store.EventStore`; every call is one transaction, since nothing awaits."""

    def __init__(self) -> None:
        self.events: dict[str, Event] = {}
        self.rows: dict[str, list[HistoryRow]] = {}
        self.outbox: dict[int, Notice] = {}
        self._number = 0
        self._cursor: Cursor | None = None

    async def register(self, events: Sequence[Event]) -> list[Event]:
        for event in events:
            if event.event not in self.events:
                self.events[event.event] = event
                self.rows[event.event] = [_row(None, event, "registered", ())]
        return [self.events[event.event] for event in events]

    async def apply(self, changes: Sequence[Change], *, cursor: Cursor | None = None) -> list[bool]:
        taken = [self._take(change) for change in changes]
        if cursor is not None and all(taken):
            self._cursor = cursor
        return taken

    def _take(self, change: Change) -> bool:
        kept = self.events.get(change.after.event)
        if kept is None or kept.version != change.before.version:
            return False
        self.events[kept.event] = change.after
        self.rows[kept.event].append(_row(kept, change.after, change.why, change.topics))
        for topic in change.topics:
            self._number += 1
            self.outbox[self._number] = Notice(
                self._number, kept.event, topic, change.after.version, change.after.changed_ms
            )
        return True

    async def find(self, events: Sequence[str]) -> list[Event | None]:
        return [self.events.get(event) for event in events]

    async def find_transactions(self, transaction_ids: Sequence[bytes]) -> list[Event]:
        return [event for event in self.events.values() if event.transaction_id in transaction_ids]

    async def due(self, now_ms: int, limit: int, *, ahead_ms: int) -> list[Event]:
        found = [
            event
            for event in self.events.values()
            if not event.is_finished and not now_ms < event.due_ms <= now_ms + ahead_ms
        ]
        return sorted(found, key=lambda event: (event.due_ms, event.event))[:limit]

    async def notices(self, topics: Sequence[Topic], after: int, limit: int) -> list[Notice]:
        found = [notice for notice in self.outbox.values() if notice.topic in topics and notice.number > after]
        return sorted(found, key=lambda notice: notice.number)[:limit]

    async def drop_notices(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.outbox.pop(number, None)

    async def history(self, event: str) -> list[HistoryRow]:
        return self.rows.get(event, [])[-HISTORY_MAX:]

    async def listed(self, selection: Selection, after: str, limit: int) -> list[Event]:
        found = [
            event
            for _, event in sorted(self.events.items())
            if event.event > after
            and selection.state in (None, event.state)
            and selection.is_flagged in (None, event.is_flagged)
            and selection.from_ms <= event.registered_ms < selection.until_ms
        ]
        return found[:limit]

    async def totals(self) -> dict[State, int]:
        states = [event.state for event in self.events.values()]
        return {state: states.count(state) for state in State}

    async def cursor(self) -> Cursor | None:
        return self._cursor


def _row(before: Event | None, after: Event, why: str, topics: Sequence[Topic]) -> HistoryRow:
    return HistoryRow(
        event=after.event,
        version=after.version,
        state_before="" if before is None else before.state,
        state_after=after.state,
        outcome=after.outcome,
        code=after.code,
        why=why,
        topics=[topic.value for topic in topics],
        time_ms=after.changed_ms,
    )
