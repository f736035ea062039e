"""Every event store under one fixture, so that one suite holds for all of them; also the program that a test kills.

``python -m tests.settlement.stores URL FIRST`` works for ever from batch FIRST on: each batch of 1 to 40 trades is
registered, then taken to ACCOUNT_PENDING with its cursor, and after each of the two its number is printed.
"""

import random
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from services.settlement.database import open_events
from services.settlement.states import Change, Event, Kind, Outcome, State, Terms, Topic, Wish, changed
from services.settlement.store import Cursor, EventStore
from tests.settlement.memory import MemoryStore

NOW_MS = 1_790_000_000_000
BATCH_MAX = 40


class Site:
    """A place that keeps events, also while no store is open on it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._memory = MemoryStore()

    @property
    def is_durable(self) -> bool:
        return self.url != "memory"

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[EventStore]:
        """Give a store on it for the time of the block."""
        if not self.is_durable:
            yield self._memory
            return
        async with open_events(self.url) as store:
            yield store

    def shared(self) -> AbstractAsyncContextManager[EventStore]:
        """Open a store beside others."""
        return open_events(self.url, is_shared=True) if self.is_durable else self.opened()


def _url(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    match kind:
        case "sqlite":
            return f"sqlite:///{folder}/events.db"
        case "postgres":
            found: str = request.getfixturevalue("postgres_url")
            return found
        case _:
            return kind


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """An empty place of each kind."""
    return Site(_url(request.param, request, tmp_path))


@pytest.fixture(params=["sqlite", "postgres"])
def database_site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """An empty place of each kind that lasts."""
    return Site(_url(request.param, request, tmp_path))


def trade(name: str, number: int = 1, **fields: object) -> Event:
    """Return a new trade."""
    event = Event(
        event=name,
        kind=Kind.TRADE,
        original="",
        state=State.REGISTERED,
        outcome=Outcome.NONE,
        terms=Terms(b"s" * 20, b"b" * 20, "BOND-1", number, 100, "CNY", "user-b", "shop"),
        transaction_id=number.to_bytes(32),
        raw=b"signed " + name.encode(),
        valid_until_ms=NOW_MS + 60_000,
        is_released=False,
        wish=Wish.NONE,
        code="",
        is_flagged=False,
        attempts=0,
        due_ms=NOW_MS,
        height=0,
        version=1,
        registered_ms=NOW_MS,
        changed_ms=NOW_MS,
    )
    return msgspec.structs.replace(event, **fields)


def batch_size(batch: int) -> int:
    """Return how many trades the killed program puts into a batch."""
    return random.Random(batch).randint(1, BATCH_MAX)


def batch_trades(batch: int) -> list[Event]:
    """Return the trades of a batch."""
    return [trade(f"b{batch:05}-{number}", batch * BATCH_MAX + number + 1) for number in range(batch_size(batch))]


def batch_changes(batch: int) -> list[Change]:
    """Return what happens to them."""
    return [
        changed(event, "on the chain", Topic.PAY, now_ms=NOW_MS + batch, state=State.ACCOUNT_PENDING, height=batch + 1)
        for event in batch_trades(batch)
    ]


async def _work_for_ever(url: str, batch: int) -> None:
    async with open_events(url) as store:
        while True:
            await store.register(batch_trades(batch))
            print(f"registered {batch}", flush=True)
            await store.apply(batch_changes(batch), cursor=Cursor(batch + 1, batch.to_bytes(32)))
            print(f"applied {batch}", flush=True)
            batch += 1


if __name__ == "__main__":
    trio.run(_work_for_ever, sys.argv[1], int(sys.argv[2]))
