"""What is particular to the store in Redis: what it demands of the server, and what happens when that is away."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import pytest
import trio
from coredis import Redis

from consensus.ledger.errors import LocalError, StorageError
from services.client.errors import Refused
from services.messages import streams
from services.messages.port import Settlement, Verdict
from services.messages.queue import Queue, QueueSettings, open_queue
from services.messages.store import Change, NewMessage, State
from services.messages.streams import RedisStore, redis_store
from tests.messages.redis import RedisServer, new_redis, redis_server

__all__ = ["redis_server"]

NOW_MS = 1_700_000_000_000
BACKLOG = 25_000


def message(number: int, body: bytes = b"body") -> NewMessage:
    return NewMessage(f"create/o-{number}/1", f"order:o-{number}", body)


@asynccontextmanager
async def opened(url: str, name: str) -> AsyncIterator[RedisStore]:
    async with redis_store(url, name) as store:
        await store.open()
        yield store


class Cutter:
    """Stands between the store and Redis, and on demand cuts the line when the next answer comes back."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.cuts = 0
        self.port = 0

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, self._handle, 0)
            self.port = listeners[0].socket.getsockname()[1]
            task_status.started()

    async def _handle(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", self._target_port)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, near, far, False, nursery.cancel_scope)
            nursery.start_soon(self._pump, far, near, True, nursery.cancel_scope)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, is_back: bool, end: trio.CancelScope
    ) -> None:
        try:
            async for data in source:
                if is_back and self.cuts:
                    self.cuts -= 1
                    break
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        end.cancel()


async def test_a_call_whose_answer_is_lost_happens_once_and_is_answered_as_if_it_was_not(
    redis_server: RedisServer,
) -> None:
    cutter = Cutter(redis_server.port)
    async with trio.open_nursery() as nursery:
        await nursery.start(cutter.serve)
        async with opened(f"redis://127.0.0.1:{cutter.port}/0", "cut") as store:
            cutter.cuts = 1
            published = await store.append([message(1), message(2), message(1)], NOW_MS)
            assert [(one.sequence, one.is_new) for one in published] == [(1, True), (2, True), (1, False)]
            await store.change([Change(1, State.DEAD, 8, "poison")], NOW_MS)
            cutter.cuts = 1
            assert [entry.sequence for entry in await store.revive([1])] == [1]
            await store.change([Change(1, State.DONE, 1), Change(2, State.REFUSED, 1)], NOW_MS)
            cutter.cuts = 1
            assert await store.forget(NOW_MS + 1, 10) == 2
            assert (await store.counts()).waiting_bytes == 0
        nursery.cancel_scope.cancel()


async def test_what_comes_late_on_a_line_that_was_given_up_does_nothing(redis_server: RedisServer) -> None:
    async with opened(redis_server.url, "late") as store:
        await store.append([message(1)], NOW_MS)
        await store.change([Change(1, State.WAITING, 2, "newer")], NOW_MS)
        store._call = 0  # the first call again
        with pytest.raises(StorageError, match="LATE") as caught:
            await store.change([Change(1, State.WAITING, 1, "older")], NOW_MS)
        assert caught.value.code == "redis_failed"
        store._call = 2
        assert [entry.attempts for entry in await store.entries(0, 10)] == [2]


@pytest.mark.slow
async def test_a_server_killed_in_the_middle_loses_nothing_that_was_answered_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    server = new_redis(tmp_path)
    server.start()
    try:
        rng = Random(1)
        kept: dict[str, int] = {}
        async with opened(server.url, "killed") as store, trio.open_nursery() as nursery:
            kill_now, started = trio.Event(), trio.Event()

            async def crash() -> None:
                nonlocal kill_now, started
                for _ in range(4):
                    await kill_now.wait()
                    kill_now = trio.Event()
                    await trio.to_thread.run_sync(server.kill)
                    await trio.to_thread.run_sync(server.start)
                    started.set()

            nursery.start_soon(crash)
            number = 0
            for _ in range(4):
                crash_at, started = number + rng.randrange(1, 400), trio.Event()
                while not started.is_set():
                    batch = [message(number + one, rng.randbytes(300)) for one in range(rng.randrange(1, 60))]
                    if number <= crash_at < number + len(batch):
                        kill_now.set()
                    number += len(batch)
                    for new, published in zip(batch, await store.append(batch, NOW_MS), strict=True):
                        assert published.is_new
                        kept[new.key] = published.sequence
            entries = await store.entries(0, number + 1)
            assert sorted(kept.values()) == [entry.sequence for entry in entries] == list(range(1, number + 1))
            bodies = await store.bodies(list(kept.values()))
            assert {key: sequence for sequence, (key, _) in bodies.items()} == kept
    finally:
        server.kill()


@pytest.mark.slow
async def test_a_server_away_for_longer_than_a_call_waits_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_redis(tmp_path)
    server.start()
    monkeypatch.setattr(streams, "CALL_SECONDS_MAX", 0.5)
    monkeypatch.setattr(streams, "ANSWER_SECONDS_MAX", 0.2)
    try:
        async with opened(server.url, "away") as store:
            server.freeze()
            with pytest.raises(StorageError) as caught:
                await store.append([message(1)], NOW_MS)
            assert caught.value.code == "redis_failed"
            server.thaw()
            assert (await store.append([message(2)], NOW_MS))[0].is_new
            server.kill()
            with pytest.raises(StorageError) as caught:
                await store.counts()
            assert caught.value.code == "redis_failed"
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("setting", "wrong", "right"),
    [
        ("appendonly", "no", "yes"),
        ("appendfsync", "everysec", "always"),
        ("no-appendfsync-on-rewrite", "yes", "no"),
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
    ],
)
async def test_a_server_that_may_lose_what_it_answered_is_refused(
    redis_server: RedisServer, setting: str, wrong: str, right: str
) -> None:
    async with Redis.from_url(redis_server.url) as operator, redis_store(redis_server.url, setting) as store:
        await operator.config_set({setting: wrong})
        try:
            with pytest.raises(LocalError, match=f"{setting} {right}") as caught:
                await store.open()
            assert caught.value.code == "redis_not_durable"
        finally:
            await operator.config_set({setting: right})
        assert await store.open() == 1


async def test_a_server_at_its_maxmemory_takes_nothing_more_in_and_everything_else_goes_on(
    redis_server: RedisServer,
) -> None:
    limits = QueueSettings(rate_per_s=1_000_000, backoff_first_ms=1)
    async with Redis.from_url(redis_server.url) as operator:
        try:
            async with redis_store(redis_server.url, "full") as store, open_queue(store, limits) as queue:
                await queue.publish([message(number * 3) for number in range(3)])
                await operator.config_set({"maxmemory": 1})
                for _ in range(2):
                    with pytest.raises(Refused, match="maxmemory") as caught:
                        await queue.publish([message(9), message(0)])
                    assert caught.value.code == "store_full"
                await settle_each(queue, [Verdict.RETRY, Verdict.DEAD, Verdict.DEAD])
                assert await queue.replay([2]) == await queue.discard([3]) == 1
            await operator.script_flush()
            async with redis_store(redis_server.url, "full") as store, open_queue(store, limits) as queue:
                await settle_each(queue, [Verdict.DONE, Verdict.DONE])
                assert await queue.find([message(9).key]) == [None]
                await operator.config_set({"maxmemory": 0})
                assert [one.sequence for one in await queue.publish([message(9), message(0)])] == [4, 1]
        finally:
            await operator.config_set({"maxmemory": 0})


async def settle_each(queue: Queue, verdicts: list[Verdict]) -> None:
    async with queue.consume("one", window=len(verdicts)) as subscription:
        with trio.fail_after(10):
            deliveries = [await anext(subscription) for _ in verdicts]  # type: ignore[call-overload]
        settlements = [
            Settlement(one.sequence, one.fence, verdict) for one, verdict in zip(deliveries, verdicts, strict=True)
        ]
        assert await subscription.settle(settlements) == [True] * len(verdicts)


async def test_a_server_that_does_not_tell_is_refused(redis_server: RedisServer) -> None:
    async with Redis.from_url(redis_server.url) as operator:
        await operator.acl_setuser("limited", b"on", b">p@ss/word", b"~*", b"+@all", b"-config")
    place = urlsplit(redis_server.url).netloc
    async with redis_store(f"redis://limited:p%40ss%2Fword@{place}/0", "limited") as store:
        with pytest.raises(LocalError, match="CONFIG GET") as caught:
            await store.open()
    assert caught.value.code == "redis_not_durable"
    assert "word" not in caught.value.message


async def test_a_wrong_password_is_said_to_be_one(redis_server: RedisServer) -> None:
    async with Redis.from_url(redis_server.url) as operator:
        await operator.acl_setuser("known", b"on", b">right", b"~*", b"+@all")
    place = urlsplit(redis_server.url).netloc
    async with redis_store(f"redis://known:wrong@{place}/0", "known") as store:
        with pytest.raises(StorageError, match="password") as caught:
            await store.open()
    assert caught.value.code == "redis_failed"


@pytest.mark.parametrize("url", ["redis://127.0.0.1:port/0", "http://127.0.0.1:1/", "127.0.0.1"])
async def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(LocalError) as caught:
        async with redis_store(url, "nowhere"):
            pass
    assert caught.value.code == "bad_url"


@pytest.mark.slow
async def test_a_backlog_costs_at_most_two_kilobytes_of_memory_a_message_and_four_of_disk(tmp_path: Path) -> None:
    server = new_redis(tmp_path)
    server.start()
    try:
        random = Random(1)
        async with opened(server.url, "much") as store, Redis.from_url(server.url) as operator:
            for first in range(0, BACKLOG, 1_000):
                await store.append([message(first + one, random.randbytes(600)) for one in range(1_000)], NOW_MS)
            assert (await store.counts()).waiting == BACKLOG
            used = int(str((await operator.info("memory"))["used_memory_peak"]))
            assert used < 2_000 * BACKLOG
            assert server.disk_bytes() < 4_000 * BACKLOG
    finally:
        server.kill()


async def test_a_queue_that_was_emptied_under_its_owner_is_not_written_to(redis_server: RedisServer) -> None:
    async with opened(redis_server.url, "emptied") as store:
        await store.append([message(1)], NOW_MS)
        async with Redis.from_url(redis_server.url) as operator:
            await operator.delete(["{emptied}:meta"])
        with pytest.raises(StorageError) as caught:
            await store.append([message(2)], NOW_MS)
        assert caught.value.code == "fenced"
