"""The transaction system: nothing is sent that was not registered, held and released first, in this order."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from consensus.ledger.errors import LocalError
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import decode_transaction_untrusted
from services.client.client import open_client
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.settlement import gathering, sending
from services.settlement.gathering import Ends, Gathering
from services.settlement.interfaces import Kept
from services.settlement.states import State
from services.settlement.trader import Trade, Trader
from tests.client.support import CONSORTIUM, NOW_MS, SoloNode, client_of, running
from tests.settlement.parts import AGENT, SELLER, TERMS, Bank, Desk
from tests.settlement.test_events import answers, delivered, paid

PRICE = TERMS.price
STEPS = ("register", "reserve", "release", "submit")


class Killed(Exception):
    """The transaction system died here."""


class Office:
    """A transaction system over an event system, a bank and a node that decides nothing; ``steps`` says who was asked.

    ``breaks``, of step and side, raises what it holds, once.
    """

    def __init__(self, desk: Desk, bank: Bank, node: SoloNode, trader: Trader) -> None:
        self.desk = desk
        self.bank = bank
        self.node = node
        self.trader = trader
        self.steps: list[str] = []
        self.breaks: dict[tuple[str, str], Exception] = {}
        desk.link.before, desk.link.after = self.at("before"), self.at("after")
        bank.before, bank.after = (lambda _: self.at("before")("reserve")), (lambda _: self.at("after")("reserve"))

    def at(self, side: str) -> Callable[[str], None]:
        def pass_by(step: str) -> None:
            if side == "before" and step in (*STEPS, "cancel"):
                self.steps.append(step)
            error = self.breaks.pop((step, side), None)
            if error is not None:
                raise error

        return pass_by

    @property
    def sent(self) -> set[bytes]:
        """What nodes were given, by transaction id."""
        return {bytes(decode_transaction_untrusted(raw).id) for raw in self.node.submitted}


@asynccontextmanager
async def office(folder: Path, *, money: int = 100_000) -> AsyncIterator[Office]:
    desk, node = Desk(), SoloNode(folder)
    node.is_deciding = False
    bank = Bank(desk.clock, user_b=money, shop=0)
    async with running(node), client_of(node) as client:
        trader = Trader(desk.link, bank, client, agent=bytes(AGENT.address), now_ms=desk.clock)
        found = Office(desk, bank, node, trader)
        submit = client.submit_many

        async def submit_many(*args: object, **options: object) -> object:
            found.at("before")("submit")
            answers = await submit(*args, **options)  # type: ignore[arg-type]
            found.at("after")("submit")
            return answers

        client.submit_many = submit_many  # type: ignore[assignment, method-assign]
        yield found


def trade(event: str = "T-1", **changes: object) -> Trade:
    return Trade(event, SELLER, msgspec.structs.replace(TERMS, **changes))


async def test_register_hold_release_send_in_this_order(tmp_path: Path) -> None:
    async with office(tmp_path) as found:
        (kept,) = await found.trader.place([trade()])
        assert found.steps == [*STEPS]
        assert kept.event is not None
        assert (kept.code, kept.event.state, kept.event.is_released) == ("", State.REGISTERED, True)
        assert found.sent == {kept.event.transaction_id}
        assert found.node.submitted == [kept.event.raw], "the very bytes that are kept"
        assert found.bank.parts(TERMS.payer) == (100_000 - PRICE, PRICE)


async def test_many_trades_go_a_step_at_a_time(tmp_path: Path) -> None:
    async with office(tmp_path, money=10**9) as found:
        kept = await found.trader.place([trade(f"T-{number}") for number in range(200)])
        assert found.steps == [*STEPS]
        assert len(found.sent) == 200
        assert [item.event.event for item in kept if item.event] == [f"T-{number}" for number in range(200)]


@pytest.mark.parametrize("error", [Unreachable("away", "program_unreachable"), Refused("disk_full", "no room")])
async def test_what_cannot_be_registered_is_not_sent(tmp_path: Path, error: Exception) -> None:
    async with office(tmp_path) as found:
        found.breaks["register", "before"] = error
        with pytest.raises(type(error)):
            await found.trader.place([trade()])
        assert found.steps == ["register"]
        assert not found.bank.orders
        assert not found.sent


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_any_step_the_same_again_goes_on(tmp_path: Path, step: str, side: str) -> None:
    async with office(tmp_path) as found:
        found.breaks[step, side] = Killed()
        with pytest.raises(Killed):
            await found.trader.place([trade()])
        was_sent = (step, side) == ("submit", "after")
        assert bool(found.sent) == was_sent, "not before it was released"
        assert bool(found.node.submitted) == was_sent
        (kept,) = await found.trader.place([trade()])
        assert kept.event is not None
        assert found.sent == {kept.event.transaction_id}
        assert found.bank.parts(TERMS.payer) == (100_000 - PRICE, PRICE), "held once"
        assert len(found.desk.memory.events) == 1


@pytest.mark.parametrize("step", ["register", "release"])
async def test_an_answer_of_the_event_system_that_is_lost_sends_nothing(tmp_path: Path, step: str) -> None:
    async with office(tmp_path) as found:
        found.breaks[step, "after"] = Unreachable("lost", "program_timeout")
        with pytest.raises(Unreachable):
            await found.trader.place([trade()])
        assert not found.sent


async def test_a_lost_answer_of_the_bank_is_asked_for_again(tmp_path: Path) -> None:
    async with office(tmp_path) as found:
        found.breaks["reserve", "after"] = Unreachable("lost", "accounts_unreachable")
        (kept,) = await found.trader.place([trade()])
        assert found.steps == ["register", "reserve", "reserve", "release", "submit"]
        assert not kept.code
        assert found.bank.parts(TERMS.payer) == (100_000 - PRICE, PRICE)


async def test_without_money_the_trade_is_given_up(tmp_path: Path) -> None:
    async with office(tmp_path, money=PRICE) as found:
        first, second = await found.trader.place([trade("T-1"), trade("T-2")])
        assert not first.code
        assert second.code == "insufficient_funds"
        assert second.event is not None
        assert (second.event.state, second.event.code) == (State.CANCELLED, "insufficient_funds")
        assert len(found.sent) == 1
        again = await found.trader.trade(trade("T-2"))
        assert again.event == second.event
        assert len(found.sent) == 1
        with pytest.raises(Refused) as caught:
            await found.trader.trade(trade("T-2", price=1))
        assert caught.value.code == "event_conflict"


async def test_a_bank_that_stays_away_leaves_the_trade_to_the_scan(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def away(_: object) -> None:
        raise Unreachable("away", "accounts_unreachable")

    desk = Desk()
    bank = Bank(desk.clock, user_b=100_000, shop=0)
    bank.run = away  # type: ignore[method-assign]
    async with open_client(CONSORTIUM.genesis, ["http://127.0.0.1:1"], now_ms=lambda: NOW_MS) as client:
        trader = Trader(
            desk.link,
            bank,
            client,
            agent=bytes(AGENT.address),
            now_ms=lambda: NOW_MS + int(1_000 * trio.current_time()),
        )
        began = trio.current_time()
        (kept,) = await trader.place([trade()])
        assert 40 < trio.current_time() - began <= 60, "as long as the transaction is valid"
    assert kept.code == "accounts_unreachable"
    assert kept.event is not None
    assert (kept.event.state, kept.event.is_released) == (State.REGISTERED, False)
    assert "release" not in desk.link.called


async def test_money_is_not_held_for_a_transaction_that_is_over(tmp_path: Path) -> None:
    async with office(tmp_path) as found:
        found.breaks["reserve", "before"] = Killed()
        with pytest.raises(Killed):
            await found.trader.place([trade()])
        found.desk.clock.ms = NOW_MS + 61_000
        found.desk.chain_ms = NOW_MS + 61_000
        found.steps.clear()
        # What is signed now is valid again, yet what was registered first counts.
        found.trader._client._now_ms = found.desk.clock
        (kept,) = await found.trader.place([trade()])
        assert found.steps == ["register"]
        assert kept.event is not None
        assert not kept.event.is_released


async def test_nodes_that_are_away_leave_the_trade_released(tmp_path: Path) -> None:
    desk = Desk()
    bank = Bank(desk.clock, user_b=100_000, shop=0)
    async with open_client(CONSORTIUM.genesis, ["http://127.0.0.1:1"], now_ms=lambda: NOW_MS) as client:
        trader = Trader(desk.link, bank, client, agent=bytes(AGENT.address), now_ms=desk.clock)
        (kept,) = await trader.place([trade()])
    assert kept.code == "node_unreachable"
    assert kept.event is not None
    assert kept.event.is_released


async def test_a_node_s_refusal_is_said_and_left_to_the_scan(tmp_path: Path) -> None:
    async with office(tmp_path) as found:
        stranger = Signer.of("stranger", PrivateKey.from_secret(77))
        strange = Trade("T-1", stranger, msgspec.structs.replace(TERMS, seller=bytes(stranger.address)))
        refused, taken = await found.trader.place([strange, trade("T-2")])
        assert (refused.code, taken.code) == ("unknown_account", "")
        assert refused.event is not None
        assert (refused.event.state, refused.event.is_released) == (State.REGISTERED, True), "only the chain decides"


async def test_any_node_will_do(tmp_path: Path) -> None:
    desk, nodes = Desk(), [SoloNode(tmp_path / name) for name in ("a", "b")]
    bank = Bank(desk.clock, user_b=100_000, shop=0)
    async with running(*nodes):
        urls = ["http://127.0.0.1:1", nodes[1].url]
        async with open_client(CONSORTIUM.genesis, urls, now_ms=lambda: NOW_MS) as client:
            trader = Trader(desk.link, bank, client, agent=bytes(AGENT.address), now_ms=desk.clock)
            (kept,) = await trader.place([trade()])
    assert not kept.code
    assert len(nodes[1].submitted) == 1


async def test_a_node_that_says_nothing_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "NODE_MS", 50)
    async with office(tmp_path) as found:
        submit, asked = found.trader._client.submit_many, 0

        async def frozen_at_first(*args: object, **options: object) -> object:
            nonlocal asked
            asked += 1
            if asked == 1:
                await trio.sleep_forever()
            return await submit(*args, **options)  # type: ignore[arg-type]

        found.trader._client.submit_many = frozen_at_first  # type: ignore[assignment, method-assign]
        found.trader._client.node_count = 2
        (kept,) = await found.trader.place([trade()])
        assert (kept.code, asked) == ("", 2)
        assert len(found.sent) == 1


async def test_the_same_trade_a_thousand_times_at_once_is_one(tmp_path: Path) -> None:
    async with office(tmp_path) as found:
        kept: list[Kept] = []

        async def one() -> None:
            kept.extend(await found.trader.place([trade()]))

        async with trio.open_nursery() as nursery:
            for _ in range(1_000):
                nursery.start_soon(one)
        assert len({item.event.raw for item in kept if item.event}) == 1
        assert {item.code for item in kept} == {""}
        assert len(kept) == 1_000
        assert len(found.sent) == 1
        assert found.bank.parts(TERMS.payer) == (100_000 - PRICE, PRICE)
        assert len(found.steps) < 100, "together"


async def test_one_that_lost_the_race_to_release_does_not_give_it_up(tmp_path: Path) -> None:
    """Two runs of one trade, of which one is refused money that the other one has got meanwhile."""
    async with office(tmp_path) as found:
        await found.trader.place([trade()])
        event = found.desk.memory.events["T-1"]
        stale = msgspec.structs.replace(event, is_released=False, version=1)
        kept = {0: Kept(stale)}
        real, found.bank.run = found.bank.run, _refuse(found.bank)  # type: ignore[method-assign]
        await found.trader._hold(kept)
        found.bank.run = real  # type: ignore[method-assign]
        assert kept[0] == Kept(event)


def _refuse(bank: Bank) -> object:
    async def run(orders: list[object]) -> object:
        answers = [bank.books.run(order) for order in orders]  # type: ignore[arg-type]
        return [msgspec.structs.replace(answer, code="insufficient_funds") for answer in answers]

    return run


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("units", 10**30),
        ("asset", "x" * 300_000),
        ("price", 0),
        ("price", -1),
        ("price", 10**16),
        ("price", 10**30),
        ("currency", "yuan"),
        ("payer", "no body"),
        ("payee", ""),
    ],
)
async def test_terms_that_are_none_stay_here(tmp_path: Path, field: str, value: object) -> None:
    async with office(tmp_path) as found:
        with pytest.raises(LocalError) as caught:
            await found.trader.place([trade("T-1"), trade("T-2", **{field: value})])
        assert caught.value.code == "bad_trade"
        assert not found.steps, "else what other tasks ask for would be refused with them"


@pytest.mark.parametrize("event", ["", "no name", "x" * 65, "-"])
async def test_ids_that_are_none_stay_here(tmp_path: Path, event: str) -> None:
    async with office(tmp_path) as found:
        for trades in ([], [trade(event)]):
            with pytest.raises(LocalError) as caught:
                await found.trader.place(trades)
            assert caught.value.code == "bad_trade"
        assert not found.steps


# -- waiting ---------------------------------------------------------------------------------------------------------


async def test_waiting_ends_with_the_trade_or_the_time(tmp_path: Path) -> None:
    async with office(tmp_path) as found:
        await delivered(found.desk, "T-1", "T-2")
        answer = await found.trader.wait("T-1", timeout_ms=1)
        assert answer.event.state is State.ACCOUNT_PENDING
        async with trio.open_nursery() as nursery:
            ended: list[State] = []

            async def wait() -> None:
                ended.append((await found.trader.wait("T-1")).event.state)

            for _ in range(50):
                nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await answers(found.desk, paid("T-1"))
        assert ended == [State.COMPLETED] * 50
        assert [*await found.trader.wait_many(["T-1", "T-2"], timeout_ms=1)] == ["T-1"]
        for unknown in ("T-9", "no name"):
            with pytest.raises(Refused) as caught:
                await found.trader.wait(unknown)
            assert caught.value.code == "unknown_event"


async def test_many_who_wait_are_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "POLLS_MAX", 2)
    desk = Desk()
    names = [f"T-{number}" for number in range(300)]
    await delivered(desk, *names)
    ends = Ends(desk.link)
    found: list[str] = []

    async def wait(name: str) -> None:
        found.append((await ends.wait(name)).event)

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(wait, name)
        await trio.testing.wait_all_tasks_blocked()
        assert desk.link.called.count("ends") <= 2
        await answers(desk, *(paid(name) for name in names))
    assert sorted(found) == sorted(names)
    assert desk.link.called.count("ends") < 10


# -- calls that go together --------------------------------------------------------------------------------------------


async def test_what_gathers_goes_together_and_each_gets_its_own() -> None:
    calls: list[list[int]] = []
    go = trio.Event()

    async def call(items: list[int]) -> list[int]:
        calls.append(items)
        await go.wait()
        return [10 * item for item in items]

    gathered = Gathering(call, size_max=4)
    found: dict[int, list[int]] = {}

    async def ask(*items: int) -> None:
        found[items[0]] = await gathered.ask(items)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for items in ((1,), (2, 3), (4,), (5, 6), (7, 8, 9, 10)):
                nursery.start_soon(ask, *items)
                await trio.testing.wait_all_tasks_blocked()
            go.set()
    assert calls == [[1], [2, 3, 4], [5, 6], [7, 8, 9, 10]]
    assert found == {1: [10], 2: [20, 30], 4: [40], 5: [50, 60], 7: [70, 80, 90, 100]}


async def test_an_error_is_everybody_s_whose_items_the_call_had() -> None:
    go = trio.Event()
    left = [1]

    async def call(items: list[int]) -> list[int]:
        await go.wait()
        if len(items) > 1 and left:
            left.clear()
            raise Unreachable("lost", "program_timeout")
        return items

    gathered = Gathering(call, size_max=2)
    found: dict[int, object] = {}

    async def ask(item: int) -> None:
        try:
            found[item] = await gathered.ask([item])
        except Unreachable as error:
            found[item] = error.code

    async with trio.open_nursery() as nursery:
        for item in range(5):
            nursery.start_soon(ask, item)
            await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert found == {0: [0], 1: "program_timeout", 2: "program_timeout", 3: [3], 4: [4]}


async def test_who_calls_for_all_may_be_cancelled() -> None:
    calls: list[list[int]] = []
    go = trio.Event()

    async def call(items: list[int]) -> list[int]:
        calls.append(items)
        await go.wait()
        return items

    gathered = Gathering(call, size_max=10)
    found: list[int] = []
    scopes = [trio.CancelScope() for _ in range(4)]

    async def ask(item: int) -> None:
        with scopes[item]:
            found.extend(await gathered.ask([item]))

    async with trio.open_nursery() as nursery:
        for item in range(4):
            nursery.start_soon(ask, item)
            await trio.testing.wait_all_tasks_blocked()
        scopes[0].cancel()
        await trio.testing.wait_all_tasks_blocked()
        scopes[2].cancel()  # its item is under way with another's call
        await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert calls == [[0], [1, 2, 3]]
    assert sorted(found) == [1, 3]
