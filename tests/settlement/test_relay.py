"""From the outbox to the message centre: nothing lost, nothing doubled, and nothing while the centre is away."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import trio

from services.accounts.port import Operation, Order
from services.client.errors import Refused, Unreachable
from services.messages.port import Settlement, Verdict
from services.messages.queue import Queue
from services.messages.store import NewMessage, Published
from services.settlement import relay as relay_module
from services.settlement.relay import NOT_UNDERSTOOD, Relay
from services.settlement.states import Topic, changed
from services.settlement.watched import WatchedStore
from tests.settlement.memory import MemoryStore
from tests.settlement.parts import NOW_MS, TERMS, Desk, open_center, registration
from tests.settlement.test_events import answers, cancel, delivered, paid, register


class Lines:
    """A message centre whose line breaks when told: before what is published is kept, or before that is answered."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.before: Exception | None = None
        self.after: Exception | None = None
        self.published = 0

    async def publish(self, messages: Sequence[NewMessage]) -> list[Published]:
        if self.before:
            raise self.before
        kept = await self.queue.publish(messages)
        self.published += len(messages)
        if self.after:
            raise self.after
        return kept

    def __getattr__(self, name: str) -> object:
        return getattr(self.queue, name)


async def orders_in(queue: Queue, count: int) -> list[tuple[str, Order]]:
    """Take so many deliveries and return their keys and orders."""
    found: list[tuple[str, Order]] = []
    with trio.fail_after(10):
        async with queue.consume("test", window=512) as subscription:
            async for delivery in subscription:
                assert delivery.lane == delivery.key.partition("/")[0]
                found.append((delivery.key, msgspec.json.decode(delivery.body, type=Order)))
                await subscription.settle([Settlement(delivery.sequence, delivery.fence, Verdict.DONE)])
                if len(found) == count:
                    return found
    raise AssertionError("the centre has ended")


async def test_the_outbox_goes_out_in_order_and_once(tmp_path: Path) -> None:
    desk = Desk()
    await delivered(desk, "T-1", "T-2")
    await register(desk, registration("T-3"))
    await cancel(desk, "T-3")
    async with open_center(tmp_path) as queue:
        relay = Relay(desk.store, queue)
        assert await relay.drain()
        assert not desk.memory.outbox
        assert await relay.drain()
        found = await orders_in(queue, 3)
        assert (await queue.stats()).waiting == 0
    assert [key for key, _ in found] == ["T-1/pay/3", "T-2/pay/3", "T-3/release/2"]
    assert found[0][1] == Order("T-1", Operation.PAY, TERMS.payer, TERMS.payee, TERMS.price, TERMS.currency)
    assert found[2][1].operation is Operation.RELEASE


async def test_what_was_published_before_a_crash_is_no_second_message(tmp_path: Path) -> None:
    class Crashing(MemoryStore):
        is_crashing = True

        async def drop_notices(self, numbers: Sequence[int]) -> None:
            if self.is_crashing:
                raise RuntimeError("killed between publishing and dropping")
            await super().drop_notices(numbers)

    store = Crashing()
    desk = Desk(store)
    await delivered(desk, "T-1")
    async with open_center(tmp_path) as queue:
        with pytest.raises(RuntimeError):
            await Relay(desk.store, queue).drain()
        store.is_crashing = False
        assert await Relay(desk.store, queue).drain()
        assert not store.outbox
        assert (await queue.stats()).waiting == 1


@pytest.mark.parametrize("error", [Unreachable("away", "center_unreachable"), Refused("store_full", "full")])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_while_the_centre_is_away_everything_stays(tmp_path: Path, error: Exception, when: str) -> None:
    desk = Desk()
    await delivered(desk, "T-1")
    async with open_center(tmp_path) as queue:
        lines = Lines(queue)
        relay = Relay(desk.store, lines)  # type: ignore[arg-type]
        setattr(lines, when, error)
        assert not await relay.drain()
        assert relay.trouble == error.code  # type: ignore[attr-defined]
        assert len(desk.memory.outbox) == 1
        setattr(lines, when, None)
        assert await relay.drain()
        assert relay.trouble == ""
        assert not desk.memory.outbox
        assert (await queue.stats()).waiting == 1


async def test_trouble_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    desk = Desk()
    await delivered(desk, "T-1")
    async with open_center(tmp_path) as queue:
        lines = Lines(queue)
        relay = Relay(desk.store, lines)  # type: ignore[arg-type]
        lines.before = Unreachable("away", "center_unreachable")
        for _ in range(5):
            await relay.drain()
    shown = capsys.readouterr().out
    assert shown.count("message centre in trouble") == 1


async def test_a_change_wakes_the_relay(tmp_path: Path) -> None:
    desk = Desk()
    async with open_center(tmp_path) as queue:
        lines = Lines(queue)
        relay = Relay(desk.store, lines)  # type: ignore[arg-type]
        desk.store.ring([Topic.PAY], relay.wake)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)
            await trio.testing.wait_all_tasks_blocked()
            await delivered(desk, "T-1", "T-2")
            assert len(await orders_in(queue, 2)) == 2
            lines.before = Unreachable("away", "center_unreachable")
            await delivered(desk, "T-3")
            with trio.fail_after(5):
                while not relay.trouble:
                    await trio.lowlevel.checkpoint()
            lines.before = None
            assert [key for key, _ in await orders_in(queue, 1)] == ["T-3/pay/3"], "by itself"
            nursery.cancel_scope.cancel()


async def test_what_is_paid_already_is_not_asked_again(tmp_path: Path) -> None:
    desk = Desk()
    await delivered(desk, "T-1")
    await answers(desk, paid("T-1"))
    async with open_center(tmp_path) as queue:
        assert await Relay(desk.store, queue).drain()
        assert (await queue.stats()).waiting == 0
    assert [notice.topic for notice in desk.memory.outbox.values()] == [Topic.LIFT], "the clerk's stays"


async def test_many_rows_go_in_several_parts(tmp_path: Path) -> None:
    store = MemoryStore()
    desk = Desk(store)
    await register(desk, registration("T-1"))
    for number in range(2_100):
        event = store.events["T-1"]
        await store.apply([changed(event, "again", Topic.PAY, now_ms=NOW_MS, attempts=number)])
    async with open_center(tmp_path) as queue:
        lines = Lines(queue)
        assert await Relay(WatchedStore(store), lines).drain()  # type: ignore[arg-type]
        assert lines.published == 2_100
        assert (await queue.stats()).waiting == 2_100
    assert not store.outbox


async def test_another_message_under_a_key_does_not_hold_up_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = Desk()
    await delivered(desk, "T-1", "T-2")
    async with open_center(tmp_path) as queue:
        await queue.publish([NewMessage("T-1/pay/3", "T-1", b"of an event system before")])
        assert await Relay(desk.store, queue).drain()
        assert (await queue.stats()).waiting == 2
    assert not desk.memory.outbox
    assert "T-1/pay/3" in capsys.readouterr().out


async def test_dead_letters_wait_again_but_what_nobody_understands(tmp_path: Path) -> None:
    desk = Desk()
    await delivered(desk, "T-1")
    async with open_center(tmp_path, attempts_max=1) as queue:
        relay = Relay(desk.store, queue)
        await relay.drain()
        await queue.publish([NewMessage("other", "other", b"?")])
        async with queue.consume("test", window=2) as subscription:
            for _ in range(2):
                delivery = await anext(subscription)
                verdict, detail = (Verdict.DEAD, NOT_UNDERSTOOD) if delivery.key == "other" else (Verdict.RETRY, "away")
                await subscription.settle([Settlement(delivery.sequence, delivery.fence, verdict, detail)])
        assert (await queue.stats()).dead == 2
        assert await relay.revive() == 1
        assert [key for key, _ in await orders_in(queue, 1)] == ["T-1/pay/3"]
        assert await relay.revive() == 0


async def test_dead_letters_are_looked_for_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "REVIVE_MS", 10)
    desk = Desk()
    await delivered(desk, "T-1")
    async with open_center(tmp_path, attempts_max=1) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(Relay(desk.store, queue).run)
        async with queue.consume("test", window=1) as subscription:
            with trio.fail_after(10):
                for _ in range(3):
                    delivery = await anext(subscription)
                    assert delivery.key == "T-1/pay/3"
                    await subscription.settle([Settlement(delivery.sequence, delivery.fence, Verdict.RETRY, "away")])
        nursery.cancel_scope.cancel()
