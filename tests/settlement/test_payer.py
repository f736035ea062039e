"""The payer: each notice has one effect, whatever is lost, doubled, late, or killed on the way."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import trio

from consensus.ledger.errors import PeerError
from services.accounts.port import Answer, Operation, Order
from services.client.errors import Refused, Unreachable
from services.client.tasks import single_errors
from services.messages.port import Settlement
from services.messages.queue import Consumer, Queue
from services.messages.store import NewMessage
from services.messages.store import State as MessageState
from services.settlement import payer as payer_module
from services.settlement.payer import WINDOW, Payer
from services.settlement.relay import NOT_UNDERSTOOD, Relay, message_of
from services.settlement.states import MESSAGES, Outcome, State
from services.settlement.trades import order_of
from tests.settlement.parts import Bank, Desk, open_center, registration
from tests.settlement.test_events import cancel, delivered, register

BUYER, SELLER, PRICE = "user-b", "shop", 12_550


class Killed(Exception):
    """The payer died here."""


class Way:
    """An event system, a centre and a bank, between which a payer goes."""

    def __init__(self, desk: Desk, queue: Queue, bank: Bank) -> None:
        self.desk = desk
        self.queue = queue
        self.bank = bank
        self.relay = Relay(desk.store, queue)

    @asynccontextmanager
    async def paying(self) -> AsyncIterator[None]:
        """Run a payer for the time of the block."""
        stopping = trio.Event()
        async with self.queue.consume("settle-payer", window=WINDOW) as subscription, trio.open_nursery() as nursery:
            nursery.start_soon(Payer(subscription, self.bank, self.desk.link).run, stopping)
            yield
            stopping.set()

    async def pay(self) -> None:
        """Notify, and pay until nothing waits; a payer that is killed is started again."""
        await self.relay.drain()
        with trio.fail_after(20):
            while (await self.queue.stats()).waiting:
                with suppress(Killed), single_errors():
                    async with self.paying():
                        while (await self.queue.stats()).waiting:
                            await trio.testing.wait_all_tasks_blocked(0.002)

    def state(self, event: str) -> tuple[State, Outcome, str]:
        found = self.desk.memory.events[event]
        return found.state, found.outcome, found.code


@asynccontextmanager
async def way(folder: Path, *, money: int = 100_000, **settings: object) -> AsyncIterator[Way]:
    desk = Desk()
    async with open_center(folder, **settings) as queue:
        yield Way(desk, queue, Bank(desk.clock, user_b=money, shop=0))


def once(error: Exception) -> Callable[[object], None]:
    """Raise an error the first time."""
    left = [error]

    def raising(_: object) -> None:
        if left:
            raise left.pop()

    return raising


PAID = (State.COMPLETED, Outcome.PAID, "")


async def test_what_was_delivered_is_paid_and_completed(tmp_path: Path) -> None:
    async with way(tmp_path) as found:
        await delivered(found.desk, "T-1", "T-2")
        await found.pay()
        assert found.state("T-1") == found.state("T-2") == PAID
        assert found.bank.parts(BUYER) == (100_000 - 2 * PRICE, 0)
        assert found.bank.parts(SELLER) == (2 * PRICE, 0)


@pytest.mark.parametrize("where", ["orders come", "orders were done", "answers come", "answers were kept"])
@pytest.mark.parametrize("how", [Unreachable("lost", "accounts_unreachable"), Killed()])
async def test_lost_at_any_point_it_is_paid_once(tmp_path: Path, where: str, how: Exception) -> None:
    async with way(tmp_path) as found:
        await delivered(found.desk, "T-1")
        match where:
            case "orders come":
                found.bank.before = once(how)
            case "orders were done":
                found.bank.after = once(how)
            case "answers come":
                found.desk.link.before = once(how)
            case _:
                found.desk.link.after = once(how)
        await found.pay()
        assert found.state("T-1") == PAID
        assert found.bank.parts(SELLER) == (PRICE, 0)
        assert [order.event for order in found.bank.orders][:2] in (["T-1"], ["T-1", "T-1"])
        assert (await found.queue.stats()).done == 1


async def test_doubled_and_late_notices_move_nothing(tmp_path: Path) -> None:
    async with way(tmp_path) as found:
        await delivered(found.desk, "T-1")
        (notice,) = await found.desk.store.notices(MESSAGES, 0, 10)
        await found.pay()
        event = found.desk.memory.events["T-1"]
        late = [message_of(event, msgspec.structs.replace(notice, version=version)) for version in (90, 91)]
        await found.queue.publish(late)
        await found.pay()
        assert found.desk.memory.events["T-1"] == event
        assert found.bank.parts(SELLER) == (PRICE, 0)


async def test_a_cancelled_trade_s_hold_is_released(tmp_path: Path) -> None:
    async with way(tmp_path) as found:
        await register(found.desk, registration("T-1"))
        await cancel(found.desk, "T-1")
        await found.pay()
        assert found.bank.books.standings["T-1"].is_tombstone


class Stubborn(Bank):
    """A bank that does no release for a while."""

    left = 3

    async def run(self, orders: Sequence[Order]) -> list[Answer]:
        if self.left and {order.operation for order in orders} == {Operation.RELEASE}:
            self.left -= 1
            return [Answer(order.event, order.operation, "account_frozen", "not now") for order in orders]
        return await super().run(orders)


async def test_a_cancelled_trade_s_hold_is_released_however_often_that_is_refused(tmp_path: Path) -> None:
    async with way(tmp_path) as found:
        bank = found.bank = Stubborn(found.desk.clock, user_b=100_000, shop=0)
        (kept,) = await register(found.desk, registration("T-1"))
        assert kept.event is not None
        await bank.run([order_of("T-1", Operation.RESERVE, kept.event.terms)])
        await cancel(found.desk, "T-1")
        await found.pay()
        assert (bank.parts(BUYER), bank.left) == ((100_000, 0), 0)


async def test_without_money_the_event_waits_with_its_reason(tmp_path: Path) -> None:
    async with way(tmp_path, money=PRICE - 1) as found:
        await delivered(found.desk, "T-1")
        await found.pay()
        assert found.state("T-1") == (State.ACCOUNT_PENDING, Outcome.NONE, "insufficient_funds")
        assert found.bank.parts(BUYER) == (PRICE - 1, 0)


async def test_a_centre_that_answers_nonsense_does_not_end_the_payer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with way(tmp_path) as found:
        await delivered(found.desk, "T-1", "T-2")
        settle, confused = Consumer.settle, once(PeerError("malformed", "the centre answers something else"))

        async def settled(consumer: Consumer, settlements: Sequence[Settlement]) -> list[bool]:
            counted = await settle(consumer, settlements)
            confused(counted)
            return counted

        monkeypatch.setattr(Consumer, "settle", settled)
        await found.pay()
        assert found.state("T-1") == found.state("T-2") == PAID


async def test_more_than_a_batch_at_once(tmp_path: Path) -> None:
    async with way(tmp_path, money=10**9) as found:
        names = [f"T-{number}" for number in range(600)]
        for start in range(0, 600, 300):
            await delivered(found.desk, *names[start : start + 300])
        found.bank.orders.clear()
        await found.pay()
        assert {found.state(name) for name in names} == {PAID}
        assert len(found.bank.orders) == 600
        assert found.desk.link.called.count("answers_put") < 60, "many at a time"


async def test_what_is_no_order_becomes_a_dead_letter_and_the_others_are_paid(tmp_path: Path) -> None:
    async with way(tmp_path) as found:
        await found.queue.publish([NewMessage("bad", "bad", b'{"event":1}'), NewMessage("worse", "worse", b"\xff")])
        await delivered(found.desk, "T-1")
        await found.pay()
        assert found.state("T-1") == PAID
        dead = await found.queue.ended(MessageState.DEAD, 0, 10)
        assert [(record.key, record.detail) for record in dead] == [("bad", NOT_UNDERSTOOD), ("worse", NOT_UNDERSTOOD)]


@pytest.mark.parametrize("error", [Unreachable("away", "accounts_unreachable"), Refused("busy", "too much")])
async def test_what_stays_away_gives_deliveries_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(payer_module, "KEEP_S", 0.01)
    async with way(tmp_path) as found:
        await delivered(found.desk, "T-1")
        left = [3]

        def away(_: object) -> None:
            if left[0]:
                left[0] -= 1
                raise error

        found.bank.before = away
        await found.pay()
        assert found.state("T-1") == PAID
        (record,) = await found.queue.find(["T-1/pay/3"])
        assert record is not None
        assert record.attempts > 1, "through the centre, not in the payer's hands"


async def test_a_bank_that_says_nothing_gives_deliveries_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payer_module, "KEEP_S", 0.01)
    monkeypatch.setattr(payer_module, "ASK_S", 0.01)
    async with way(tmp_path) as found:
        await delivered(found.desk, "T-1")
        run, left = found.bank.run, [2]

        async def silent(orders: Sequence[Order]) -> list[Answer]:
            if left[0]:
                left[0] -= 1
                await trio.sleep_forever()
            return await run(orders)

        monkeypatch.setattr(found.bank, "run", silent)
        await found.pay()
        assert found.state("T-1") == PAID


async def test_an_order_that_the_bank_takes_never_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payer_module, "KEEP_S", 0.01)
    async with way(tmp_path, attempts_max=3) as found:
        await delivered(found.desk, *(f"T-{number}" for number in range(5)))

        def choosy(orders: Sequence[Order]) -> None:
            if any(order.event == "T-3" for order in orders):
                raise Refused("bad_field", "an order like no other")

        found.bank.before = choosy
        await found.pay()
        ends = {name: found.state(name)[0] for name in found.desk.memory.events}
        assert ends == {name: State.ACCOUNT_PENDING if name == "T-3" else State.COMPLETED for name in ends}
