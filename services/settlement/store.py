"""The port to the event store, filled by :mod:`services.settlement.database` and, for tests, in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.settlement.states import Change, Event, HistoryRow, Notice, State, Topic

PAGE_MAX = 1_000
"""How many rows one call returns or takes."""
HISTORY_MAX = 500
"""How many changes of an event are shown; an event that is stuck for weeks has more of them."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the chain was read: the newest block whose receipts are in the store."""

    height: int
    block_hash: bytes


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events are listed: of one state, flagged ones alone, registered in a time (UTC ms, until exclusive)."""

    state: State | None = None
    is_flagged: bool | None = None
    from_ms: int = 0
    until_ms: int = 1 << 62


class EventStore(Protocol):
    """All calls are durable when they return, and safe to repeat.

    Raises (all of them):
        Unreachable: ``database_unreachable`` while a database server is away for longer than the store waits.
        StorageError: the disk failed.
    """

    async def register(self, events: Sequence[Event]) -> list[Event]:
        """Keep new events, with the first row of their history; return what is kept under each id, in order.

        An id that is known keeps its first event, whatever is given now.
        """
        ...

    async def apply(self, changes: Sequence[Change], *, cursor: Cursor | None = None) -> list[bool]:
        """Take each change whose event still has the version it was made from; all in one transaction.

        With a taken change go its row of history and a notice for each of its topics. ``cursor`` is kept in the same
        transaction if every change was taken, also without changes. False: somebody was faster; read again and decide
        anew.
        """
        ...

    async def find(self, events: Sequence[str]) -> list[Event | None]:
        """Return events by id, None for unknown ones."""
        ...

    async def find_transactions(self, transaction_ids: Sequence[bytes]) -> list[Event]:
        """Return the events with these transactions, in no order."""
        ...

    async def due(self, now_ms: int, limit: int, *, ahead_ms: int) -> list[Event]:
        """Return unfinished events whose time has come, the longest due first.

        Also those due later than ``now_ms + ahead_ms``: no pause is that long, so the clock was set back.
        Its cost does not depend on how many events are finished.
        """
        ...

    async def notices(self, topics: Sequence[Topic], after: int, limit: int) -> list[Notice]:
        """Return outbox rows of these topics with numbers above ``after``, ascending."""
        ...

    async def drop_notices(self, numbers: Sequence[int]) -> None:
        """Remove outbox rows that were seen to."""
        ...

    async def history(self, event: str) -> list[HistoryRow]:
        """Return the newest ``HISTORY_MAX`` changes of an event, oldest first."""
        ...

    async def listed(self, selection: Selection, after: str, limit: int) -> list[Event]:
        """Return events of a selection in the order of their ids, above ``after`` ("" for the first page)."""
        ...

    async def totals(self) -> dict[State, int]:
        """Return how many events have each state."""
        ...

    async def cursor(self) -> Cursor | None:
        """Return how far the chain was read, None before the first block."""
        ...
