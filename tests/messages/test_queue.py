"""The queue on the embedded store: what is kept, who gets what when, and what crashes leave behind."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.ledger.errors import LocalError, StorageError
from services.client.errors import Refused, Unreachable
from services.messages import queue as queue_module
from services.messages.port import Delivery, Settlement, Subscription, Verdict
from services.messages.queue import CONSUMERS_MAX, Consumer, Queue, QueueSettings, open_queue
from services.messages.queuemachine import CONSUMER_LOST
from services.messages.store import BODY_BYTES_MAX, NewMessage, State
from tests.messages.pace import fastest_window
from tests.messages.simulated import NS_PER_MS, InlineStore, SimulatedClock
from tests.messages.stores import StoreSite, message, redis_server, site

__all__ = ["redis_server", "site"]

FAST = QueueSettings(rate_per_s=1_000_000)
SLOW = QueueSettings(rate_per_s=10)
INTERVAL_MS = 100


@asynccontextmanager
async def queue_in(
    folder: Path, settings: QueueSettings = FAST, clock: SimulatedClock | None = None
) -> AsyncIterator[tuple[Queue, InlineStore, SimulatedClock]]:
    store, clock = InlineStore(folder), clock or SimulatedClock()
    async with open_queue(store, settings, clock) as queue:
        yield queue, store, clock


def done(delivery: Delivery, verdict: Verdict = Verdict.DONE) -> Settlement:
    return Settlement(delivery.sequence, delivery.fence, verdict, "why")


async def take(subscription: Subscription, count: int) -> list[Delivery]:
    with trio.fail_after(10):
        return [await subscription.__anext__() for _ in range(count)]


async def test_what_was_published_is_there_after_a_restart(tmp_path: Path) -> None:
    async with queue_in(tmp_path) as (queue, _, _):
        published = await queue.publish([message(1), message(2), message(1)])
        assert [(one.sequence, one.is_new) for one in published] == [(1, True), (2, True), (1, False)]
    async with queue_in(tmp_path) as (queue, _, _), queue.consume("one", window=10) as subscription:
        first, second = await take(subscription, 1) + await take_next_lane(queue, subscription)
        assert (first.key, first.lane, first.body, first.attempt) == ("create/o-1/1", "order:o-0", b"body", 1)
        assert second.key == "create/o-2/1"


async def take_next_lane(queue: Queue, subscription: Subscription) -> list[Delivery]:
    """Settle message 1, so that the next of its lane comes."""
    (record,) = await queue.find(["create/o-1/1"])
    assert record is not None
    assert record.state is State.WAITING
    stats = await queue.stats()
    assert (stats.leased, stats.waiting) == (1, 2)
    await subscription.settle([Settlement(1, (2 << 32) + 1, Verdict.DONE)])
    return await take(subscription, 1)


async def test_a_queue_runs_on_every_store(site: StoreSite) -> None:
    verdicts = [Verdict.DONE, Verdict.REFUSED, Verdict.DEAD, Verdict.RETRY, Verdict.PARK]
    limits = replace(FAST, backoff_first_ms=1, attempts_max=3)
    numbers = range(30)
    async with site.made() as store, open_queue(store, limits) as queue, queue.consume("one", window=20) as consumer:
        await queue.publish([message(number) for number in numbers])
        for delivery in await take(consumer, 10):
            await consumer.settle([done(delivery, verdicts[delivery.sequence % 5])])
    async with site.made() as store, open_queue(store, limits) as queue, queue.consume("two", window=20) as consumer:
        while (await queue.stats()).waiting:
            for delivery in await take(consumer, 1):
                assert await consumer.settle([done(delivery)]) == [True]
        stats = await queue.stats()
        assert stats.done + stats.refused + stats.dead == len(numbers)
        assert stats.dead == await queue.replay([record.sequence for record in await queue.ended(State.DEAD, 0, 100)])
        for delivery in await take(consumer, stats.dead):
            await consumer.settle([done(delivery)])
        assert (await queue.stats()).dead == 0


async def test_callers_share_writes(tmp_path: Path) -> None:
    async with queue_in(tmp_path) as (queue, store, _):
        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(queue.publish, [message(number * 3)])
        assert store.appended_calls <= 2
        async with queue.consume("one", window=64) as subscription:
            deliveries = await take(subscription, 64)
            async with trio.open_nursery() as nursery:
                for delivery in deliveries:
                    nursery.start_soon(subscription.settle, [done(delivery)])
        assert store.changed_calls <= 2
        assert (await queue.stats()).done == 64


async def test_what_waits_is_bounded_in_count(tmp_path: Path) -> None:
    async with queue_in(tmp_path, replace(FAST, waiting_max=5)) as (queue, _, _):
        await queue.publish([message(number * 3) for number in range(3)])
        with pytest.raises(Refused) as caught:
            await queue.publish([message(number * 3) for number in range(10, 13)])
        assert caught.value.code == "store_full"
        assert (await queue.stats()).waiting == 3, "all or nothing"
        async with trio.open_nursery() as nursery:  # two that fit, each by itself, and not together
            outcomes: list[str] = []
            for first in (20, 22):
                nursery.start_soon(
                    _try_publish, queue, [message(number * 3) for number in (first, first + 1)], outcomes
                )
        assert sorted(outcomes) == ["kept", "store_full"]
        async with queue.consume("one", window=5) as subscription:
            await subscription.settle([done(one) for one in await take(subscription, 5)])
        await queue.publish([message(number * 3) for number in range(30, 35)])


async def test_dead_letters_are_bounded_until_some_are_discarded_or_replayed(tmp_path: Path) -> None:
    limits = replace(FAST, dead_max=3)
    async with queue_in(tmp_path, limits) as (queue, _, _), queue.consume("one", window=5) as subscription:
        await queue.publish([message(number * 3) for number in range(3)])
        await subscription.settle([done(one, Verdict.DEAD) for one in await take(subscription, 2)])
        await queue.publish([message(9)])
        await subscription.settle([done(one, Verdict.DEAD) for one in await take(subscription, 2)])
        await refused_for_dead_letters(queue, 4)
        assert await queue.discard([1]) == 1
        await refused_for_dead_letters(queue, 3)
    async with queue_in(tmp_path, limits) as (queue, _, _):
        await refused_for_dead_letters(queue, 3)
        assert await queue.discard([1, 2]) == 1
        assert [one.is_new for one in await queue.publish([message(0)])] == [True], "its key was forgotten"
        with pytest.raises(LocalError) as caught:
            await queue.discard(range(1_001))
        assert caught.value.code == "too_large"


async def refused_for_dead_letters(queue: Queue, count: int) -> None:
    with pytest.raises(Refused, match=f"{count} dead letters.*discard") as caught:
        await queue.publish([message(90)])
    assert caught.value.code == "store_full"


async def _try_publish(queue: Queue, messages: list[NewMessage], outcomes: list[str]) -> None:
    try:
        await queue.publish(messages)
        outcomes.append("kept")
    except Refused as error:
        outcomes.append(error.code)


async def test_what_waits_is_bounded_in_bytes(tmp_path: Path) -> None:
    limits = replace(FAST, waiting_bytes_max=2 * BODY_BYTES_MAX, attempts_max=1)
    big = [message(number, bytes(BODY_BYTES_MAX)) for number in (0, 3)]
    async with queue_in(tmp_path, limits) as (queue, _, _):
        await queue.publish(big)
        for _ in range(2):
            with pytest.raises(Refused):
                await queue.publish([message(6, b"1")])
            async with queue.consume("one", window=5) as subscription:
                await subscription.settle([done(one, Verdict.RETRY) for one in await take(subscription, 2)])
            assert (await queue.stats()).dead == 2
            await queue.publish([message(9, b"")])
            assert await queue.replay([1, 2, 77]) == 2
    async with queue_in(tmp_path, limits) as (queue, _, _):
        with pytest.raises(Refused):
            await queue.publish([message(6, b"1")])


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [message(number) for number in range(1_001)],
        [NewMessage("", "lane", b"")],
        [NewMessage("é" * 129, "lane", b"")],
        [NewMessage("key", "é" * 65, b"")],
        [NewMessage("key", "lane", bytes(BODY_BYTES_MAX + 1))],
        [NewMessage("key", "lane", b"", bytes(33))],
    ],
)
async def test_limits_of_a_publish(tmp_path: Path, bad: list[NewMessage]) -> None:
    async with queue_in(tmp_path) as (queue, _, _):
        with pytest.raises(LocalError) as caught:
            await queue.publish(bad)
        assert caught.value.code == "too_large"


async def test_other_calls_have_limits_as_well(tmp_path: Path) -> None:
    async with queue_in(tmp_path) as (queue, _, _):
        for call in (queue.find(["k"] * 1_001), queue.ended(State.DONE, 0, 1_001), queue.replay(range(1_001))):
            with pytest.raises(LocalError) as caught:
                await call
            assert caught.value.code == "too_large"
        for window in (0, 1_025):
            with pytest.raises(LocalError) as caught:
                queue.attach("one", window=window)
            assert caught.value.code == "bad_window"
        with pytest.raises(LocalError) as caught:
            await queue.settle([Settlement(1, 1, Verdict.RETRY, "", State.DONE)])
        assert caught.value.code == "bad_settlement"
        for _ in range(CONSUMERS_MAX):
            queue.attach("many", window=1)
        with pytest.raises(Refused) as refused:
            queue.attach("one more", window=1)
        assert refused.value.code == "too_many_consumers"


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate_per_s": 0},
        {"rate_per_s": float("nan")},
        {"rate_per_s": 2_000_000},
        {"attempts_max": 0},
        {"backoff_first_ms": 500, "backoff_max_ms": 400},
        {"waiting_bytes_max": BODY_BYTES_MAX - 1},
        {"ended_keep_ms": -1},
    ],
)
async def test_settings_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(LocalError, match=next(iter(wrong))) as caught:
        async with queue_in(tmp_path, QueueSettings(**wrong)):  # type: ignore[arg-type]
            pass
    assert caught.value.code == "bad_config"


async def test_the_pace_counts_from_receipts(tmp_path: Path) -> None:
    async with queue_in(tmp_path, SLOW) as (queue, _, clock):
        await queue.publish([message(number * 3) for number in range(9)])
        consumer = queue.attach("one", window=10)
        async with trio.open_nursery() as nursery:
            got: list[Delivery] = []

            async def take_one() -> None:
                got.append(await consumer.next_delivery())

            nursery.start_soon(take_one)
            await clock.move(INTERVAL_MS - 1)
            assert len(got) == 0, "a start is no burst"
            await clock.move(1)
            assert len(got) == 1
            nursery.start_soon(take_one)
            await clock.move(3 * INTERVAL_MS)
            assert len(got) == 1, "what is on its way holds up the next one"
            consumer.received(got[0], clock.now_ns)
            consumer.received(got[0], clock.now_ns)
            await clock.move(INTERVAL_MS - 1)
            assert len(got) == 1
            await clock.move(1)
            assert len(got) == 2
            # It was received 40 ms ago, and the confirmation came now.
            sent_ns = clock.now_ns
            await clock.move(40)
            consumer.received(got[1], sent_ns + 1_000)
            nursery.start_soon(take_one)
            await clock.move(INTERVAL_MS - 41)
            assert len(got) == 2
            await clock.move(2)
            assert len(got) == 3
        assert queue.dispatcher.delivered_count == 2


@pytest.mark.parametrize("lie_ns", [-(10**18), 10**18])
async def test_a_wrong_time_of_receipt_is_brought_back_to_what_can_be(tmp_path: Path, lie_ns: int) -> None:
    async with queue_in(tmp_path, SLOW) as (queue, _, clock):
        await queue.publish([message(0), message(3)])
        consumer = queue.attach("one", window=10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clock.move, INTERVAL_MS)
            delivery = await consumer.next_delivery()
        sent_ns = clock.now_ns
        consumer.received(delivery, lie_ns)
        again_ns = await moment_of_next(consumer, clock)
        assert INTERVAL_MS - 1 <= (again_ns - sent_ns) / NS_PER_MS <= INTERVAL_MS + 1


async def moment_of_next(consumer: Consumer, clock: SimulatedClock) -> int:
    """Take a delivery, and return when it might be sent."""
    moments = []

    async def take_one() -> None:
        await consumer.next_delivery()
        moments.append(clock.now_ns)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_one)
        await clock.move(3 * INTERVAL_MS)
    return moments[0]


async def test_one_delivery_is_on_its_way_over_all_consumers(tmp_path: Path) -> None:
    async with queue_in(tmp_path) as (queue, _, clock):
        await queue.publish([message(number * 3) for number in range(4)])
        slow, other = queue.attach("slow", window=2), queue.attach("other", window=2)
        first = await slow.next_delivery()
        async with trio.open_nursery() as nursery:
            got: list[Delivery] = []

            async def take_other() -> None:
                got.append(await other.next_delivery())

            nursery.start_soon(take_other)
            await clock.move(1_000)
            other.received(first)
            await clock.move(1_000)
            assert got == []
            slow.received(first)
            await clock.move(1)
            assert [one.sequence for one in got] == [2]


async def test_who_leaves_gives_back_what_it_held(tmp_path: Path) -> None:
    async with queue_in(tmp_path, SLOW) as (queue, _, clock):
        await queue.publish([message(0)])
        first = queue.attach("first", window=2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clock.move, INTERVAL_MS + 1)
            delivery = await first.next_delivery()
        first.detach()
        first.detach()
        left_ns = clock.now_ns
        second = queue.attach("second", window=2)
        again_ns = await moment_of_next(second, clock)
        assert again_ns - left_ns >= INTERVAL_MS * NS_PER_MS, "it may have been read before its consumer left"
        assert await queue.settle([done(delivery)]) == [False]
        assert await queue.settle([replace(done(delivery), fence=delivery.fence + 1)]) == [True]
        with pytest.raises(Unreachable):
            await first.next_delivery()


async def test_what_is_handed_to_who_gives_up_in_that_moment_goes_out_anew(tmp_path: Path) -> None:
    async with queue_in(tmp_path) as (queue, _, _):
        await queue.publish([message(0), message(3)])
        first, second = queue.attach("first", window=1), queue.attach("second", window=1)
        delivery = await first.next_delivery()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.next_delivery)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            # The task that is cancelled has not run yet.
            first.received(delivery)
        assert (await queue.stats()).leased == 1
        with trio.fail_after(5):
            again = await second.next_delivery()
        assert (again.sequence, again.attempt, again.fence) == (2, 1, delivery.fence + 2)


async def test_what_is_handed_to_who_is_detached_in_that_moment_never_leaves(tmp_path: Path) -> None:
    async with queue_in(tmp_path) as (queue, _, _):
        await queue.publish([message(0), message(3)])
        first, second = queue.attach("first", window=1), queue.attach("second", window=1)
        delivery = await first.next_delivery()
        async with trio.open_nursery() as nursery:
            ended = trio.Event()

            async def wait_in_vain() -> None:
                with pytest.raises(Unreachable):
                    await second.next_delivery()
                ended.set()

            nursery.start_soon(wait_in_vain)
            await trio.testing.wait_all_tasks_blocked()
            first.received(delivery)
            second.detach()
            await ended.wait()
        assert (await queue.stats()).leased == 1


async def test_who_gives_up_waiting_is_not_served(tmp_path: Path) -> None:
    async with queue_in(tmp_path) as (queue, _, _):
        first, second = queue.attach("first", window=1), queue.attach("second", window=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.next_delivery)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await queue.publish([message(0)])
        with trio.fail_after(5):
            assert (await second.next_delivery()).sequence == 1


async def test_consumers_take_turns(tmp_path: Path) -> None:
    async with queue_in(tmp_path) as (queue, _, clock):
        counts = [0, 0]

        async def consume(which: int) -> None:
            async with queue.consume(str(which), window=10) as subscription:
                async for delivery in subscription:
                    counts[which] += 1
                    await subscription.settle([done(delivery)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume, 0)
            nursery.start_soon(consume, 1)
            await queue.publish([message(number * 3) for number in range(100)])
            for _ in range(200):
                await clock.move(1)
            nursery.cancel_scope.cancel()
        assert sum(counts) == 100
        assert min(counts) >= 30


async def test_bodies_are_read_in_pages_and_not_at_all_while_there_is_no_backlog(tmp_path: Path) -> None:
    count = 3_000
    async with queue_in(tmp_path) as (queue, store, _), queue.consume("one", window=1_000) as subscription:
        await queue.publish([message(number * 3) for number in range(10)])
        await subscription.settle([done(one) for one in await take(subscription, 10)])
        assert store.read_calls == 0
        for first in range(0, count, 1_000):
            await queue.publish([message(number * 3, b"%d" % number) for number in range(100 + first, 1_100 + first)])
        for first in range(0, count, 500):
            deliveries = await take(subscription, 500)
            assert [int(one.body) for one in deliveries] == list(range(100 + first, 600 + first))
            await subscription.settle([done(one) for one in deliveries])
            await trio.testing.wait_all_tasks_blocked()
            assert store.read_calls > 0, "the next page is here before it is needed"
        assert store.read_calls <= count / 100


async def test_dead_letters_are_found_and_replayed(tmp_path: Path) -> None:
    async with queue_in(tmp_path) as (queue, _, clock), queue.consume("one", window=10) as subscription:
        await queue.publish([message(0), message(3), message(6)])
        await clock.move(500)
        first, second, third = await take(subscription, 3)
        await subscription.settle([done(first, Verdict.DEAD), done(second, Verdict.REFUSED), done(third, Verdict.PARK)])
        (dead,) = await queue.ended(State.DEAD, 0, 10)
        assert (dead.key, dead.detail, dead.body) == ("create/o-0/1", "why", b"body")
        stats = await queue.stats()
        assert (stats.waiting, stats.parked, stats.refused, stats.dead) == (1, 1, 1, 1)
        assert 500 <= stats.oldest_ms <= 510
        assert await queue.replay([1, 2, 3]) == 1
        (again,) = await take(subscription, 1)
        assert (again.sequence, again.attempt) == (1, 1)
        found = await queue.find(["create/o-3/1", "nobody"])
        assert [record and record.state for record in found] == [State.REFUSED, None]


async def test_what_looks_for_the_oldest_passes_over_dead_letters_once(tmp_path: Path) -> None:
    async with queue_in(tmp_path) as (queue, store, clock), queue.consume("one", window=10) as subscription:
        await queue.publish([message(0)])
        await clock.move(500)
        await queue.publish([message(3)])
        first, second = await take(subscription, 2)
        await subscription.settle([done(first, Verdict.DEAD)])
        assert (await queue.stats()).oldest_ms <= 10
        assert (await queue.stats()).oldest_ms <= 10
        assert store.entries_after == 1
        await queue.replay([1])
        assert (await queue.stats()).oldest_ms >= 500
        await subscription.settle([done(second), *map(done, await take(subscription, 1))])
        assert (await queue.stats()).oldest_ms == 0


async def test_what_waits_has_not_ended(site: StoreSite) -> None:
    async with site.made() as store, open_queue(store, FAST) as queue:
        await queue.publish([message(0)])
        assert await queue.ended(State.WAITING, 0, 10) == []


async def test_a_detail_is_cut_at_its_limit(tmp_path: Path) -> None:
    async with queue_in(tmp_path) as (queue, _, _), queue.consume("one", window=10) as subscription:
        await queue.publish([message(0)])
        (delivery,) = await take(subscription, 1)
        await subscription.settle([replace(done(delivery), detail="x" + "é" * 600)])
        (record,) = await queue.find(["create/o-0/1"])
        assert record is not None
        assert record.detail == "x" + "é" * 511


async def test_a_message_that_ends_its_consumers_is_a_dead_letter(tmp_path: Path) -> None:
    async with queue_in(tmp_path, replace(FAST, losses_max=3)) as (queue, _, _):
        await queue.publish([message(0)])
        for _ in range(4):
            async with queue.consume("one", window=1) as subscription:
                await take(subscription, 1)
        assert await queue.ended(State.DEAD, 0, 10) == [], "who goes in order blames nothing"
        for _ in range(3):
            with suppress(KeyError):
                async with queue.consume("one", window=1) as subscription:
                    await take(subscription, 1)
                    raise KeyError
        await trio.testing.wait_all_tasks_blocked()
        (dead,) = await queue.ended(State.DEAD, 0, 10)
        assert dead.detail == CONSUMER_LOST
        assert (await queue.stats()).waiting_bytes == 0


async def test_leases_expire_and_what_waits_out_comes_back(tmp_path: Path) -> None:
    limits = replace(FAST, lease_ms=1_000, backoff_first_ms=100)
    async with queue_in(tmp_path, limits) as (queue, _, clock), queue.consume("one", window=10) as subscription:
        await queue.publish([message(0), message(3)])
        kept, retried = await take(subscription, 2)
        await subscription.settle([done(retried, Verdict.RETRY)])
        got: list[Delivery] = []

        async def take_two() -> None:
            got.extend([await subscription.__anext__(), await subscription.__anext__()])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_two)
            await clock.move(98)
            assert got == []
            await clock.move(902)
        assert [(one.sequence, one.attempt) for one in got] == [(2, 2), (1, 1)]
        assert await subscription.settle([done(kept)]) == [False]


async def test_a_lease_expires_when_nothing_else_happens(tmp_path: Path) -> None:
    async with queue_in(tmp_path) as (queue, _, clock), queue.consume("one", window=10) as subscription:
        await queue.publish([message(0)])
        (first,) = await take(subscription, 1)
        await clock.move(FAST.lease_ms + 1)
        assert (await queue.stats()).leased == 0
        (second,) = await take(subscription, 1)
        assert (second.sequence, second.attempt, second.fence) == (1, 1, first.fence + 1)


async def test_a_long_backlog_is_read_in_pages_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "_ENTRIES_PAGE", 3)
    async with queue_in(tmp_path) as (queue, _, _):
        await queue.publish([message(number * 3) for number in range(10)])
    async with queue_in(tmp_path) as (queue, _, _), queue.consume("one", window=10) as subscription:
        assert [one.sequence for one in await take(subscription, 10)] == list(range(1, 11))


async def test_ends_are_forgotten_beyond_their_bound(tmp_path: Path) -> None:
    limits = replace(FAST, ended_keep_max=100)
    async with queue_in(tmp_path, limits) as (queue, _, _), queue.consume("one", window=1_000) as subscription:
        await queue.publish([message(number * 3) for number in range(1_000)])
        await subscription.settle([done(one) for one in await take(subscription, 1_000)])
        await trio.testing.wait_all_tasks_blocked()
        assert (await queue.stats()).done == 100
        assert await queue.find(["create/o-0/1"]) == [None]


async def test_a_store_that_fails_ends_the_queue_and_tells_callers_that_nothing_is_known(tmp_path: Path) -> None:
    codes: list[str] = []

    async def publish(queue: Queue) -> None:
        try:
            await queue.publish([message(1)])
        except Unreachable as error:
            codes.append(error.code)

    async with trio.open_nursery() as nursery:
        with pytest.raises(StorageError) as caught:  # noqa: PT012
            async with queue_in(tmp_path) as (queue, store, _):
                store.breaks_before_write = True
                subscription = queue.attach("one", window=1)
                nursery.start_soon(publish, queue)
                nursery.start_soon(publish, queue)
                await trio.sleep_forever()
    assert caught.value.code == "disk_failed"
    assert codes == ["center_unreachable"] * 2
    with pytest.raises(StopAsyncIteration):
        await subscription.__anext__()
    for call in (queue.publish([message(2)]), queue.settle([])):
        with suppress(Unreachable):
            await call
    with pytest.raises(Unreachable):
        queue.attach("late", window=1)


# ---------------------------------------------------------------------------------------------------------------------


def test_what_is_parked_outlasts_a_lease() -> None:
    """What it waits for may be in the hands of a consumer that hangs, and comes to another one at the lease's end."""
    settings = QueueSettings()
    rules, waited_ms = settings.rules(), 0
    for attempts in range(1, settings.attempts_max):
        waited_ms += rules.judge(Settlement(1, 1, Verdict.PARK), attempts, 0).due_ms
    assert waited_ms > settings.lease_ms + settings.backoff_first_ms
    assert rules.judge(Settlement(1, 1, Verdict.PARK), settings.attempts_max, 0).state is State.DEAD


RUN = QueueSettings(rate_per_s=50, lease_ms=2_000, backoff_first_ms=50, backoff_max_ms=200, attempts_max=1_000)
RUN_INTERVAL_MS = 20

STEP = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 6), st.integers(0, 3)),
    st.tuples(st.just("consume"), st.integers(1, 8), st.integers(0, 60)),
    st.tuples(st.just("settle"), st.integers(1, 4), st.sampled_from(["done", "retry"])),
    st.tuples(st.just("late"), st.just(0), st.just(0)),
    st.tuples(st.just("wait"), st.sampled_from([1, 100, 2_500]), st.just(0)),
    st.tuples(st.just("leave"), st.just(0), st.just(0)),
    st.tuples(st.sampled_from(["crash", "break before", "break after"]), st.just(0), st.just(0)),
)


class Run:
    """Plays steps against queues that follow each other on one folder, and keeps what was promised."""

    def __init__(self, folder: Path, rules: QueueSettings) -> None:
        self.folder, self.rules, self.clock = folder, rules, SimulatedClock()
        self.number = 0
        self.sequences: dict[str, int] = {}
        self.done: dict[str, str] = {}
        self.received: list[int] = []
        self.held: list[Delivery] = []
        self.stale: list[Delivery] = []
        self.held_since: dict[int, int] = {}
        self.retried: set[int] = set()
        """What is to go out again and has not yet."""
        self.fence = 0
        self.lanes: dict[str, str] = {}

    async def play(self, steps: list[tuple[str, int, object]]) -> None:
        rest = iter(steps)
        is_over = False
        while not is_over:
            self.stale, self.held = self.stale + self.held, []
            with suppress(StorageError):
                async with queue_in(self.folder, self.rules, self.clock) as (queue, store, _):
                    is_over = await self.live(queue, store, rest)
        await self.drain()

    async def live(self, queue: Queue, store: InlineStore, steps: Iterator[tuple[str, int, object]]) -> bool:
        """Play steps until one ends the process; return whether there are no more."""
        consumer = queue.attach("run", window=8)
        for kind, count, detail in steps:
            match kind:
                case "publish":
                    await self.publish(queue, count)
                case "consume":
                    for _ in range(count):
                        await self.receive(queue, consumer, int(str(detail)))
                case "settle":
                    await self.settle(queue, count, Verdict(str(detail)))
                case "late":
                    assert not any(await queue.settle([done(one) for one in self.stale[-5:]]))
                case "wait":
                    await self.clock.move(count)
                    self.retire()
                case "leave":
                    consumer.detach()
                    self.stale, self.held = self.stale + self.held, []
                    consumer = queue.attach("run", window=8)
                case "crash":
                    return False
                case _:
                    store.breaks_before_write = kind == "break before"
                    store.breaks_after_write = kind == "break after"
        return True

    async def publish(self, queue: Queue, count: int) -> None:
        new = []
        for _ in range(count):
            self.number += 1
            lane = f"lane{self.number % 3}"
            new.append(NewMessage(f"key{self.number}", lane, b"%d" % self.number))
            self.lanes[new[-1].key] = lane
        for one, published in zip(new, await queue.publish(new), strict=True):
            assert published.is_new
            self.sequences[one.key] = published.sequence

    async def receive(self, queue: Queue, consumer: Consumer, way_ms: int) -> None:
        got: list[Delivery] = []

        async def take_one() -> None:
            got.append(await consumer.next_delivery())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_one)
            await self.clock.move(RUN_INTERVAL_MS + 1)
            nursery.cancel_scope.cancel()
        if not got:
            return
        await self.clock.move(way_ms)
        self.received.append(self.clock.now_ns)
        consumer.received(got[0], self.clock.now_ns)
        self.retire()
        await self.judge(queue, got[0])
        self.held.append(got[0])
        self.held_since[got[0].fence] = self.clock.now_ns

    async def judge(self, queue: Queue, delivery: Delivery) -> None:
        assert delivery.fence > self.fence
        self.fence = delivery.fence
        self.retried.discard(delivery.sequence)
        assert delivery.key not in self.done, "it has ended"
        assert self.sequences.setdefault(delivery.key, delivery.sequence) == delivery.sequence
        earlier = [key for key, sequence in self.sequences.items() if sequence < delivery.sequence]
        if not self.rules.is_strict:
            earlier = [key for key in earlier if self.lanes[key] == delivery.lane]
        held = {one.key for one in self.held} if self.rules.is_strict else set()
        for record in await queue.find(earlier):
            assert record is not None
            assert record.state is State.DONE or record.key in held, "it goes before an earlier one"

    def retire(self) -> None:
        """What is surely not leased any more is not held."""
        until_ns = self.clock.now_ns - self.rules.lease_ms * NS_PER_MS
        while self.held and self.held_since[self.held[0].fence] < until_ns:
            self.stale.append(self.held.pop(0))

    async def settle(self, queue: Queue, count: int, verdict: Verdict) -> None:
        settled, self.held = self.held[:count], self.held[count:]
        answers = await queue.settle([replace(done(one, verdict), detail=f"by {one.fence}") for one in settled])
        for one, is_taken in zip(settled, answers, strict=True):
            if is_taken and verdict is Verdict.RETRY:
                self.retried.add(one.sequence)
            elif is_taken:
                assert one.key not in self.done
                assert not self.rules.is_strict or not any(sequence < one.sequence for sequence in self.retried)
                self.done[one.key] = f"by {one.fence}"
        self.stale += settled

    async def drain(self) -> None:
        """A good consumer ends everything; then all that was promised must stand."""
        clock = self.clock
        async with queue_in(self.folder, replace(self.rules, rate_per_s=1_000_000), clock) as (queue, _, _):

            async def consume() -> None:
                async with queue.consume("drain", window=8) as subscription:
                    async for delivery in subscription:
                        await self.judge(queue, delivery)
                        self.held = [delivery]
                        await self.settle(queue, 1, Verdict.DONE)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(consume)
                while (await queue.stats()).waiting:
                    await clock.move(100)
                nursery.cancel_scope.cancel()
            records = await queue.find(list(self.lanes))
        for key, record in zip(self.lanes, records, strict=True):
            if key in self.sequences:
                assert record is not None, "answered and lost"
            if record is not None:
                assert record.state is State.DONE
                assert record.sequence == self.sequences[key]
                assert record.detail == self.done.get(key, record.detail)
        found = [record.sequence for record in records if record]
        assert len(set(found)) == len(found)
        assert fastest_window(self.received, self.rules.rate_per_s) is None


@pytest.mark.parametrize("is_strict", [False, True])
@settings(max_examples=25)
@given(steps=st.lists(STEP, min_size=5, max_size=25))
def test_whatever_happens_nothing_is_lost_doubled_or_out_of_order(
    is_strict: bool, steps: list[tuple[str, int, object]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(Run(Path(folder), replace(RUN, is_strict=is_strict)).play, steps)
