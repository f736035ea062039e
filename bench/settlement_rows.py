"""What the scan's selection costs beside many finished events, whose rows are loaded without a chain."""

import statistics
import time
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa

from consensus.ledger.errors import InvariantError
from services.local.database import Database, open_database
from services.settlement.database import MIGRATIONS, EventDatabase, event_row
from services.settlement.states import Event, Kind, Outcome, State, Terms, Wish
from services.settlement.tables import EVENTS

ROUNDS = 9
NOW_MS = 1_790_000_000_000
AHEAD_MS = 120_000
_BATCH_ROWS = 5_000
_RAW_BYTES = 450
"""As much as a signed delivery has."""


@dataclass(frozen=True, slots=True)
class SelectionFigures:
    """How long the scan took to find ``stuck`` events beside ``finished`` ones; times of calls of the store's port.

    ``best_ms`` is what it costs by itself, the others what it took beside all else on the machine.
    """

    finished: int
    stuck: int
    load_s: float
    best_ms: float
    p50_ms: float
    max_ms: float


async def selection_figures(url: str, *, finished: int, stuck: int) -> SelectionFigures:
    """Load an empty store and measure ``due`` on it.

    Raises:
        InvariantError: not exactly the stuck events are found.
    """
    async with open_database(url, migrations=MIGRATIONS) as database:
        began_s = time.perf_counter()
        await load_rows(database, finished=finished, stuck=stuck)
        load_s = time.perf_counter() - began_s
        store = EventDatabase(database)
        times_ms = []
        for _ in range(ROUNDS):
            began_s = time.perf_counter()
            found = await store.due(NOW_MS, stuck + 1, ahead_ms=AHEAD_MS)
            times_ms.append((time.perf_counter() - began_s) * 1_000)
            if len(found) != stuck or any(event.is_finished for event in found):
                raise InvariantError(f"{len(found)} events were selected, not {stuck}")
    return SelectionFigures(finished, stuck, load_s, min(times_ms), statistics.median(times_ms), max(times_ms))


async def load_rows(database: Database, *, finished: int, stuck: int) -> None:
    """Write events straight into the table, stuck ones spread among the finished; they have no history."""
    total = finished + stuck
    # As far apart as possible: one is stuck wherever the share of stuck ones passes a whole number.
    is_stuck = [(number + 1) * stuck // total > number * stuck // total for number in range(total)]
    for start in range(0, total, _BATCH_ROWS):
        numbers = range(start, min(start + _BATCH_ROWS, total))
        rows = [event_row(loaded_event(number, is_stuck=is_stuck[number])) for number in numbers]
        await database.write(partial(_insert, rows))


def _insert(rows: list[dict[str, object]], connection: sa.Connection) -> None:
    connection.execute(sa.insert(EVENTS), rows)


def loaded_event(number: int, *, is_stuck: bool) -> Event:
    """Return an event that was due before ``NOW_MS``: paid, or waiting for its chain or its payment."""
    stuck_state = State.REGISTERED if number % 2 else State.ACCOUNT_PENDING
    return Event(
        event=f"trade-{number:08}",
        kind=Kind.TRADE,
        original="",
        state=stuck_state if is_stuck else State.COMPLETED,
        outcome=Outcome.NONE if is_stuck else Outcome.PAID,
        terms=Terms(b"s" * 20, b"b" * 20, "BOND-1", 5, 100_00, "CNY", "user-b", "shop"),
        transaction_id=number.to_bytes(32),
        raw=bytes(_RAW_BYTES),
        valid_until_ms=NOW_MS,
        is_released=True,
        wish=Wish.NONE,
        code="",
        is_flagged=False,
        attempts=3,
        due_ms=NOW_MS - number % 60_000,
        height=number,
        version=4,
        registered_ms=NOW_MS - 60_000,
        changed_ms=NOW_MS,
    )
