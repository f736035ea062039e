"""Both or neither: whole trades through all programs' code, on a real chain, a real store and a real message centre."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from consensus.ledger.errors import StorageError
from services.accounts import program as accounts_program
from services.accounts.faults import Fault
from services.accounts.link import open_accounts
from services.accounts.port import Order
from services.accounts.program import AccountsSettings
from services.client.errors import Refused, Unreachable
from services.settlement import events as event_system
from services.settlement.interfaces import EventAnswer, EventsStatus, Kept, Repair
from services.settlement.states import Event, State
from services.settlement.watched import WatchedStore
from tests.conftest import postgres
from tests.settlement.house import PAID, REVERSED, House, end, house, trade
from tests.settlement.parts import TERMS


async def begin(found: House) -> None:
    """Start event system and payer."""
    await found.events.start()
    await found.payer.start()


async def test_a_trade_moves_asset_and_money_once_and_frees_the_units(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        await begin(found)
        answer = await found.trader.trade(trade())
        assert end(answer.event) == PAID
        assert [row.state_after for row in answer.history] == [
            "REGISTERED",
            "REGISTERED",
            "ACCOUNT_PENDING",
            "COMPLETED",
        ]
        assert [row.topics for row in answer.history] == [[], [], ["pay"], ["lift"]]
        await found.check_moved_once()
        assert (await found.trader.trade(trade())).event == answer.event, "the same again"
        await found.check_moved_once()
        status = await found.link.call("status", {}, EventsStatus)
        assert (status.totals["COMPLETED"], status.flagged, set(status.trouble.values())) == (1, 0, {""})


async def test_the_same_trade_a_thousand_times_at_once_over_the_socket(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        await begin(found)
        events: list[Event] = []

        async def one() -> None:
            await found.trader.place([trade()])
            events.extend((await found.trader.wait_many(["T-1"])).values())

        async with trio.open_nursery() as nursery:
            for _ in range(1_000):
                nursery.start_soon(one)
        assert len(events) == 1_000
        assert {end(event) for event in events} == {PAID}
        assert len({(event.raw, event.version) for event in events}) == 1
        await found.check_moved_once()


@pytest.mark.parametrize("switches", [{"is_scan_on": False}, {"is_relay_on": False}], ids=["relay", "scan"])
async def test_either_relay_or_scan_alone_is_enough(tmp_path: Path, switches: dict[str, object]) -> None:
    async with house(tmp_path, **switches) as found:
        await begin(found)
        await found.trader.place([trade("T-1"), trade("T-2")])
        for name in ("T-1", "T-2"):
            assert end(await found.until_finished(name)) == PAID
        await found.check_moved_once(2)


async def test_with_both_off_trades_wait_and_then_go_on(tmp_path: Path) -> None:
    async with house(tmp_path, is_relay_on=False, is_scan_on=False) as found:
        await begin(found)
        (kept,) = await found.trader.place([trade()])
        assert kept.event is not None
        assert kept.event.is_released
        with trio.fail_after(10):
            while (await found.units())[1] == (0, 0):
                await trio.lowlevel.checkpoint()
        assert (await found.shown("T-1")).event.state is State.REGISTERED
        await found.events.kill()
        found.set(is_scan_on=True)
        await found.events.start()
        assert end(await found.until_finished("T-1")) == PAID
        await found.check_moved_once()


async def test_without_money_nothing_is_sent(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        await begin(found)
        answer = await found.trader.trade(trade(price=10**9))
        assert (answer.event.state, answer.event.code) == (State.CANCELLED, "insufficient_funds")
        await found.check_neither()


async def test_what_the_chain_refuses_is_cancelled_and_the_hold_released(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        await begin(found)
        answer = await found.trader.trade(trade(units=10**6))
        assert (answer.event.state, answer.event.code) == (State.CANCELLED, "insufficient_funds")
        assert answer.event.height > 0
        await found.check_neither()


async def test_what_expires_is_cancelled_by_proof_and_not_before(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        await begin(found)
        found.node.is_deciding = False
        (kept,) = await found.trader.place([trade("T-1")])
        assert kept.event is not None
        await found.until("T-1", lambda event: event.attempts >= 2)
        assert (await found.shown("T-1")).event.state is State.REGISTERED
        found.pass_ms(61_000)  # the block has no room for it
        event = await found.until_finished("T-1")
        assert (event.state, event.code) == (State.CANCELLED, "expired")
        await found.check_neither()
        assert (await found.trader.trade(trade("T-1"))).event.state is State.CANCELLED, "for ever"


async def test_a_payment_that_cannot_be_made_is_reversed_by_an_operator(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        await begin(found)
        await found.payer.kill()
        await found.trader.place([trade()])
        found.bank.books.freeze("shop", is_frozen=True)
        await found.payer.start()
        event = await found.until("T-1", lambda event: event.is_flagged)
        assert (event.state, event.code) == (State.ACCOUNT_PENDING, "account_frozen")
        assert (await found.units())[1] == (0, 10), "the buyer has them under a lien"
        kept = await found.link.call("repair", Repair("T-1", "reverse"), Kept)
        assert kept.event is not None
        assert end(await found.until_finished("T-1")) == REVERSED
        assert (await found.shown("T-1.reverse")).event.state is State.COMPLETED
        await found.check_neither()
        with pytest.raises(Refused):
            await found.link.call("repair", Repair("T-1", "reverse"), Kept)


async def test_a_frozen_account_that_thaws_is_paid_by_itself(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        await begin(found)
        await found.payer.kill()
        await found.trader.place([trade()])
        found.bank.books.freeze("shop", is_frozen=True)
        await found.payer.start()
        await found.until("T-1", lambda event: event.is_flagged)
        found.bank.books.freeze("shop", is_frozen=False)
        assert end(await found.until_finished("T-1")) == PAID
        await found.check_moved_once()


# -- deaths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["registered", "released", "pending", "completed"])
async def test_an_event_system_that_dies_in_any_state_goes_on(tmp_path: Path, state: str) -> None:
    async with house(tmp_path) as found:
        await found.events.start()
        found.node.is_deciding = state == "completed"
        if state == "registered":
            registered = found.trader.sign(trade())
            found.bank.before = _raise(Unreachable("away", "accounts_unreachable"))
            with trio.move_on_after(0.2):
                await found.trader.place([trade()])
            assert registered
            found.bank.before = lambda _: None
        else:
            await found.trader.place([trade()])
        if state == "pending":
            found.go_on()
            await found.until("T-1", lambda event: event.state is State.ACCOUNT_PENDING)
        if state == "completed":
            await found.payer.start()
            await found.until("T-1", lambda event: event.is_finished)
        await found.events.kill()
        found.go_on()
        if not found.payer.is_running:
            await found.payer.start()
        await found.events.start()
        if state == "registered":
            await found.trader.place([trade()])
        assert end(await found.until_finished("T-1")) == PAID
        await found.check_moved_once()


def _raise(error: Exception) -> Callable[[object], None]:
    def raising(_: object) -> None:
        raise error

    return raising


async def test_while_the_event_system_is_away_nothing_is_sent_and_payments_wait(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        with pytest.raises(Unreachable):
            await found.trader.place([trade()])
        assert len(found.node.submitted) == 1, "what gave out the units"
        await begin(found)
        asked = trio.Event()

        def dying(_: object) -> None:
            found.bank.after = lambda _: None
            asked.set()

        await found.payer.kill()
        await found.trader.place([trade()])
        await found.until("T-1", lambda event: event.state is State.ACCOUNT_PENDING)
        found.bank.after = dying
        await found.payer.start()
        await asked.wait()
        await found.events.kill()  # paid, and nobody was told
        await found.events.start()
        assert end(await found.until_finished("T-1")) == PAID
        await found.check_moved_once()


async def test_who_waits_does_not_mind_that_the_event_system_starts_anew(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        await found.events.start()
        await found.trader.place([trade()])
        answers: list[EventAnswer] = []

        async def wait() -> None:
            answers.append(await found.trader.wait("T-1"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await found.until("T-1", lambda event: event.state is State.ACCOUNT_PENDING)
            await found.events.kill()
            await begin(found)
        assert [end(answer.event) for answer in answers] == [PAID]


async def test_a_write_whose_answer_is_lost_is_seen_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_system, "LOOK_MS", 20)
    monkeypatch.setattr(WatchedStore, "_tell", lambda *_: None)
    monkeypatch.setattr(WatchedStore, "ring", lambda *_: None)
    async with house(tmp_path, is_scan_on=False) as found:
        await begin(found)
        await found.trader.place([trade()])
        assert end(await found.until_finished("T-1")) == PAID
        await found.check_moved_once()


async def test_a_disk_that_fails_ends_the_program_with_its_code(tmp_path: Path) -> None:
    class Broken:
        """A store whose disk is gone."""

        def __getattr__(self, name: str) -> object:
            async def fail(*_: object, **__: object) -> None:
                raise StorageError("disk_failed", "no more")

            return fail

    async with house(tmp_path) as found:
        with trio.fail_after(10), pytest.raises(StorageError) as caught:
            await event_system.serve(
                found.settings,
                Broken(),  # type: ignore[arg-type]
                found.client,
                found.queue,
                trio.Event(),
            )
        assert caught.value.code == "disk_failed"


async def test_answers_lost_and_payers_killed_pay_once(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        await begin(found)
        names = [f"T-{number}" for number in range(10)]
        count = 0

        def losing(_: list[Order]) -> None:
            nonlocal count
            count += 1
            if count % 2:
                raise Unreachable("lost", "accounts_unreachable")

        found.bank.after = losing  # type: ignore[assignment]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.trader.place, [trade(name) for name in names])
            for _ in range(4):
                await found.payer.kill()
                await found.payer.start()
        for name in names:
            assert end(await found.until_finished(name)) == PAID
        await found.check_moved_once(10)


async def test_with_the_account_system_itself_that_loses_answers_and_says_things_twice(tmp_path: Path) -> None:
    async with house(tmp_path) as found, trio.open_nursery() as nursery:
        stopping = trio.Event()
        settings = AccountsSettings(
            host="127.0.0.1",
            port=0,
            token="",
            run=tmp_path / "accounts",
            database=f"sqlite:///{tmp_path}/accounts.db",
            is_fault_panel_open=True,
        )
        port = await nursery.start(accounts_program.serve, settings, stopping)
        async with open_accounts(f"http://127.0.0.1:{port}") as accounts:
            await accounts.open([("user-b", "CNY"), ("shop", "CNY")])
            await accounts.deposit("user-b", 1_000_000, key="first")
            faults = [
                *(Fault(kind="lose_answer", operation=operation, count=2) for operation in ("reserve", "pay")),
                *(Fault(kind="answer_twice", operation=operation, count=5) for operation in ("reserve", "pay")),
            ]
            await accounts.set_fault(*faults)
            found.use(accounts)
            await begin(found)
            names = [f"T-{number}" for number in range(5)]
            for name in names:
                assert end((await found.trader.trade(trade(name))).event) == PAID
            paid = len(names) * TERMS.price
            shop, buyer = await accounts.account("shop"), await accounts.account("user-b")
            assert (shop.available, shop.held) == (paid, 0)
            assert (buyer.available, buyer.held) == (1_000_000 - paid, 0)
            await found.payer.kill()
        stopping.set()


# -- the database ------------------------------------------------------------------------------------------------------


async def test_on_postgresql_and_over_its_restart(tmp_path: Path, postgres_server: postgres.PostgresCluster) -> None:
    async with house(tmp_path, database=postgres_server.new_database()) as found:
        await begin(found)
        assert end((await found.trader.trade(trade("T-0"))).event) == PAID
        ended: list[EventAnswer] = []

        async def one(number: int) -> None:
            ended.append(await found.trader.trade(trade(f"T-{number}")))

        async with trio.open_nursery() as nursery:
            for number in range(1, 10):
                nursery.start_soon(one, number)
            await trio.to_thread.run_sync(postgres_server.stop)
            await trio.to_thread.run_sync(postgres_server.start)
        assert {end(answer.event) for answer in ended} == {PAID}
        await found.check_moved_once(10)
