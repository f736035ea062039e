"""The event store in tables: SQLite by default, PostgreSQL by URL, in one code path.

Every call of the port is one work, so its changes, rows of history, notices and cursor come together or not at all.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row, Select, bindparam

from services.local.database import PATIENCE_S, Database, open_database
from services.local.rows import insert_new, insert_or_update, lists_of
from services.settlement.states import Change, Event, HistoryRow, Kind, Notice, Outcome, State, Terms, Topic, Wish
from services.settlement.store import HISTORY_MAX, Cursor, Selection
from services.settlement.tables import CURSOR, EVENTS, FLAGGED, HISTORY, OUTBOX, UNFINISHED

MIGRATIONS = "services.settlement.migrations"

# Statements are made once: to make one takes longer than to run it.
_SELECT = sa.select(*(column for column in EVENTS.c if column.name != "is_finished"))
_KEYS: sa.BindParameter[Any] = bindparam("keys", expanding=True)
_BY_EVENT = _SELECT.where(EVENTS.c.event.in_(_KEYS))
_BY_TRANSACTION = _SELECT.where(EVENTS.c.transaction_id.in_(_KEYS))
# Locked in one order of ids, so that two writers never wait for each other; on SQLite the transaction is alone anyway.
_VERSIONS = (
    sa.select(EVENTS.c.event, EVENTS.c.version).where(EVENTS.c.event.in_(_KEYS)).order_by(EVENTS.c.event)
).with_for_update()
_ADD_HISTORY = sa.insert(HISTORY)
_ADD_NOTICES = sa.insert(OUTBOX)
_DROP_NOTICES = sa.delete(OUTBOX).where(OUTBOX.c.number.in_(_KEYS))
_CHANGING = (
    *("state", "outcome", "is_released", "wish", "code", "is_flagged", "attempts", "due_ms", "height", "version"),
    *("changed_ms", "is_finished"),
)
_UPDATE = (
    sa.update(EVENTS)
    .where(EVENTS.c.event == bindparam("key"))
    .values({name: bindparam(f"new_{name}") for name in _CHANGING})
)


@asynccontextmanager
async def open_events(
    url: str, *, is_shared: bool = False, patience_s: float = PATIENCE_S
) -> AsyncIterator["EventDatabase"]:
    """Open the event store for the time of the block; arguments and errors as of ``open_database``."""
    async with open_database(url, migrations=MIGRATIONS, is_shared=is_shared, patience_s=patience_s) as database:
        yield EventDatabase(database)


class EventDatabase:
    """Fills :class:`services.settlement.store.EventStore`."""

    def __init__(self, database: Database) -> None:
        """Keep events in an open database."""
        self._database = database

    async def register(self, events: Sequence[Event]) -> list[Event]:
        """See the port."""
        return await self._database.write(lambda connection: _register(connection, events)) if events else []

    async def apply(self, changes: Sequence[Change], *, cursor: Cursor | None = None) -> list[bool]:
        """See the port.

        A server that went away before it answered may have taken a change that is answered with False here.
        """
        if not changes and cursor is None:
            return []
        return await self._database.write(lambda connection: _apply(connection, changes, cursor))

    async def find(self, events: Sequence[str]) -> list[Event | None]:
        """See the port."""
        found = await self._database.read(lambda connection: _found(connection, events))
        return [found.get(event) for event in events]

    async def find_transactions(self, transaction_ids: Sequence[bytes]) -> list[Event]:
        """See the port."""

        def work(connection: Connection) -> list[Event]:
            return [
                event
                for some in lists_of(sorted(set(transaction_ids)))
                for event in _events(connection, _BY_TRANSACTION, keys=some)
            ]

        return await self._database.read(work)

    async def due(self, now_ms: int, limit: int, *, ahead_ms: int) -> list[Event]:
        """See the port."""

        def work(connection: Connection) -> list[Event]:
            found = _events(connection, due_query(EVENTS.c.due_ms <= now_ms, limit))
            # In two steps, since an index cannot be walked in order for both at once.
            return found + _events(connection, due_query(EVENTS.c.due_ms > now_ms + ahead_ms, limit - len(found)))

        return await self._database.read(work)

    async def notices(self, topics: Sequence[Topic], after: int, limit: int) -> list[Notice]:
        """See the port."""
        query = (
            sa.select(OUTBOX.c.number, OUTBOX.c.event, OUTBOX.c.topic, OUTBOX.c.version, OUTBOX.c.created_ms)
            .where(OUTBOX.c.topic.in_([topic.value for topic in topics]), OUTBOX.c.number > after)
            .order_by(OUTBOX.c.number)
            .limit(limit)
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [Notice(number, event, Topic(topic), version, ms) for number, event, topic, version, ms in rows]

    async def drop_notices(self, numbers: Sequence[int]) -> None:
        """See the port."""

        def work(connection: Connection) -> None:
            for some in lists_of(sorted(set(numbers))):
                connection.execute(_DROP_NOTICES, {"keys": some})

        if numbers:
            await self._database.write(work)

    async def history(self, event: str) -> list[HistoryRow]:
        """See the port."""
        query = sa.select(HISTORY).where(HISTORY.c.event == event).order_by(HISTORY.c.version.desc()).limit(HISTORY_MAX)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [
            HistoryRow(event, version, before, after, outcome, code, why, topics.split(), ms)
            for event, version, before, after, outcome, code, why, topics, ms in reversed(rows)
        ]

    async def listed(self, selection: Selection, after: str, limit: int) -> list[Event]:
        """See the port."""
        query = _SELECT.where(EVENTS.c.event > after).order_by(EVENTS.c.event).limit(limit)
        if selection.state is not None:
            query = query.where(EVENTS.c.state == selection.state.value)
        if selection.is_flagged is not None:
            query = query.where(FLAGGED if selection.is_flagged else ~FLAGGED)
        query = query.where(EVENTS.c.registered_ms >= selection.from_ms, EVENTS.c.registered_ms < selection.until_ms)
        return await self._database.read(lambda connection: _events(connection, query))

    async def totals(self) -> dict[State, int]:
        """See the port."""
        query = sa.select(EVENTS.c.state, sa.func.count()).group_by(EVENTS.c.state)
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return dict.fromkeys(State, 0) | {State(state): count for state, count in rows}

    async def cursor(self) -> Cursor | None:
        """See the port."""
        query = sa.select(CURSOR.c.height, CURSOR.c.block_hash)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else Cursor(row.height, row.block_hash)


def due_query(when: sa.ColumnElement[bool], limit: int) -> Select[*tuple[Any, ...]]:
    """Return the query for unfinished events of a time, the longest due first."""
    return _SELECT.where(UNFINISHED, when).order_by(EVENTS.c.due_ms, EVENTS.c.event).limit(limit)


def event_row(event: Event) -> dict[str, object]:
    """Return an event's row by column."""
    terms = event.terms
    return {
        "event": event.event,
        "kind": event.kind.value,
        "original": event.original,
        "seller": terms.seller,
        "buyer": terms.buyer,
        "asset": terms.asset,
        "units": terms.units,
        "price": terms.price,
        "currency": terms.currency,
        "payer": terms.payer,
        "payee": terms.payee,
        "transaction_id": event.transaction_id,
        "raw": event.raw,
        "valid_until_ms": event.valid_until_ms,
        "registered_ms": event.registered_ms,
        **_changing(event),
    }


def history_row(before: Event | None, after: Event, why: str, topics: Sequence[Topic] = ()) -> dict[str, object]:
    """Return the row of history for one version of an event."""
    return {
        "event": after.event,
        "version": after.version,
        "state_before": "" if before is None else before.state.value,
        "state_after": after.state.value,
        "outcome": after.outcome.value,
        "code": after.code,
        "why": why,
        "topics": " ".join(topics),
        "time_ms": after.changed_ms,
    }


def _changing(event: Event) -> dict[str, object]:
    return {
        "state": event.state.value,
        "outcome": event.outcome.value,
        "is_released": event.is_released,
        "wish": event.wish.value,
        "code": event.code,
        "is_flagged": event.is_flagged,
        "attempts": event.attempts,
        "due_ms": event.due_ms,
        "height": event.height,
        "version": event.version,
        "changed_ms": event.changed_ms,
        "is_finished": event.is_finished,
    }


def _register(connection: Connection, events: Sequence[Event]) -> list[Event]:
    first: dict[str, Event] = {}
    for event in events:
        first.setdefault(event.event, event)
    adding = insert_new(connection.dialect.name, EVENTS, EVENTS.c.event)
    # In one order of ids, so that two that register the same ones at once never wait for each other in a circle.
    new = set(connection.scalars(adding, [event_row(first[event]) for event in sorted(first)]))
    if new:
        connection.execute(_ADD_HISTORY, [history_row(None, first[event], "registered") for event in sorted(new)])
    kept = _found(connection, [event for event in first if event not in new])
    kept.update((event, first[event]) for event in new)
    return [kept[event.event] for event in events]


def _apply(connection: Connection, changes: Sequence[Change], cursor: Cursor | None) -> list[bool]:
    versions: dict[str, int] = {}
    for some in lists_of(sorted({change.after.event for change in changes})):
        versions.update((event, version) for event, version in connection.execute(_VERSIONS, {"keys": some}))
    after: dict[str, Event] = {}
    history: list[dict[str, object]] = []
    notices: list[dict[str, object]] = []
    taken = []
    for change in changes:
        event = change.after.event
        is_taken = versions.get(event) == change.before.version
        taken.append(is_taken)
        if is_taken:
            versions[event] = change.after.version
            after[event] = change.after
            history.append(history_row(change.before, change.after, change.why, change.topics))
            notices += [_notice(change.after, topic) for topic in change.topics]
    if after:
        new = [{"key": name, **{f"new_{k}": v for k, v in _changing(event).items()}} for name, event in after.items()]
        connection.execute(_UPDATE, new)
        connection.execute(_ADD_HISTORY, history)
    if notices:
        connection.execute(_ADD_NOTICES, notices)
    if cursor is not None and all(taken):
        row = {"id": 1, "height": cursor.height, "block_hash": cursor.block_hash}
        connection.execute(insert_or_update(connection.dialect.name, CURSOR), row)
    return taken


def _notice(event: Event, topic: Topic) -> dict[str, object]:
    return {
        "event": event.event,
        "topic": topic.value,
        "version": event.version,
        "created_ms": event.changed_ms,
    }


def _found(connection: Connection, events: Sequence[str]) -> dict[str, Event]:
    return {
        event.event: event
        for some in lists_of(sorted(set(events)))
        for event in _events(connection, _BY_EVENT, keys=some)
    }


def _events(connection: Connection, query: Select[*tuple[Any, ...]], **values: object) -> list[Event]:
    return [_event(row) for row in connection.execute(query, values)]


def _event(row: Row[*tuple[Any, ...]]) -> Event:
    (event, kind, original, state, outcome, seller, buyer, asset, units, price, currency, payer, payee) = row[:13]
    (transaction_id, raw, valid_until_ms, is_released, wish, code, is_flagged, attempts, due_ms) = row[13:22]
    (height, version, registered_ms, changed_ms) = row[22:]
    return Event(
        event=event,
        kind=Kind(kind),
        original=original,
        state=State(state),
        outcome=Outcome(outcome),
        terms=Terms(seller, buyer, asset, units, price, currency, payer, payee),
        transaction_id=transaction_id,
        raw=raw,
        valid_until_ms=valid_until_ms,
        is_released=is_released,
        wish=Wish(wish),
        code=code,
        is_flagged=is_flagged,
        attempts=attempts,
        due_ms=due_ms,
        height=height,
        version=version,
        registered_ms=registered_ms,
        changed_ms=changed_ms,
    )
