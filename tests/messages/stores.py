"""Every store under one fixture, so that one suite holds for all of them; also the program that a test kills.

``python -m tests.messages.stores SPEC FIRST`` appends for ever, batches of 1 to 40 from message FIRST on, ends every
third message, and prints the number of the last message after every batch that was answered.
"""

import random
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest
import trio

from services.messages.embedded import EmbeddedStore
from services.messages.store import Change, NewMessage, State, Store
from services.messages.streams import redis_store
from tests.messages.redis import RedisServer, redis_server

__all__ = ["redis_server", "site"]

NOW_MS = 1_700_000_000_000
DONE_EACH = 3
BATCH_MAX = 40


class StoreSite(Protocol):
    """A place that keeps messages, also while no store is open on it."""

    @property
    def spec(self) -> str:
        """The place in one word, for another process."""
        ...

    def made(self) -> AbstractAsyncContextManager[Store]:
        """Give a store that is not open yet for the time of the block."""
        ...

    def opened(self) -> AbstractAsyncContextManager[Store]:
        """Give one that is."""
        ...

    def rival(self) -> AbstractAsyncContextManager[Store]:
        """Open another one although one is open already."""
        ...


class EmbeddedSite:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.spec = f"embedded={folder}"

    @asynccontextmanager
    async def made(self) -> AsyncIterator[Store]:
        store = EmbeddedStore(self._folder)
        try:
            yield store
        finally:
            await store.close()

    def opened(self) -> AbstractAsyncContextManager[Store]:
        return _opened(self)

    def rival(self) -> AbstractAsyncContextManager[Store]:
        # As on a file system that forgets locks.
        (self._folder / "LOCK").unlink()
        return self.opened()


class RedisSite:
    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name
        self.spec = f"redis={url}={name}"

    @asynccontextmanager
    async def made(self) -> AsyncIterator[Store]:
        async with redis_store(self._url, self._name) as store:
            yield store
            await store.close()

    def opened(self) -> AbstractAsyncContextManager[Store]:
        return _opened(self)

    def rival(self) -> AbstractAsyncContextManager[Store]:
        return self.opened()


@asynccontextmanager
async def _opened(site: StoreSite) -> AsyncIterator[Store]:
    async with site.made() as store:
        await store.open()
        yield store


def site_of(spec: str) -> StoreSite:
    """Return the place that a spec names."""
    kind, *where = spec.split("=")
    return EmbeddedSite(Path(where[0])) if kind == "embedded" else RedisSite(where[0], where[1])


@pytest.fixture(params=["embedded", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> StoreSite:
    """An empty place of each kind."""
    if request.param == "embedded":
        return EmbeddedSite(tmp_path / "queue")
    server: RedisServer = request.getfixturevalue("redis_server")
    return RedisSite(server.url, str(tmp_path))


def message(number: int, body: bytes = b"body", mark: bytes = b"") -> NewMessage:
    """Return message ``number``; three of them share a lane."""
    return NewMessage(f"create/o-{number}/1", f"order:o-{number // 3}", body, mark)


def body_of(number: int) -> bytes:
    """Return what the killed program writes as the body of a message: 100 to 1,100 bytes that tell the number."""
    return number.to_bytes(4) * random.Random(number).randrange(25, 275)


async def _write_for_ever(spec: str, first: int) -> None:
    rng = random.Random(first)
    async with site_of(spec).opened() as store:
        while True:
            count = rng.randint(1, BATCH_MAX)
            numbers = range(first, first + count)
            published = await store.append([message(number, body_of(number)) for number in numbers], NOW_MS)
            ended = [
                Change(answer.sequence, State.DONE, 1, f"done {number}")
                for number, answer in zip(numbers, published, strict=True)
                if number % DONE_EACH == 0
            ]
            await store.change(ended, NOW_MS)
            first += count
            print(first - 1, flush=True)


if __name__ == "__main__":
    trio.run(_write_for_ever, sys.argv[1], int(sys.argv[2]))
