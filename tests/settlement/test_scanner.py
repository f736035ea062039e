"""The scan: what is stuck is looked at in its time, and ends by what validators prove."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from consensus.ledger.transaction import Transaction
from services.client.errors import Unreachable
from services.client.outcome import Submitted
from services.messages.queue import Queue
from services.messages.store import NewMessage, Published
from services.settlement import decision
from services.settlement.decision import NodeAnswer, Tally, Verdict
from services.settlement.relay import Relay
from services.settlement.scanner import Scanner
from services.settlement.states import Change, Event, Kind, Outcome, State, Wish, changed
from services.settlement.store import Cursor
from tests.settlement.memory import MemoryStore
from tests.settlement.parts import NOW_MS, Desk, delivery, open_center, registration
from tests.settlement.test_events import delivered, register, release

VALIDATORS = ("node-0", "node-1", "node-2", "node-3")
VALID_UNTIL_MS = NOW_MS + 60_000


class Validators:
    """What all validators say, by event; everybody waits for it by default."""

    def __init__(self) -> None:
        self.said: dict[str, Sequence[NodeAnswer]] = {}
        self.time_ms = NOW_MS
        self.error: Exception | None = None
        self.asked: list[str] = []
        self.at_once = self.most = 0

    def say(self, event: str, *verdicts: Verdict, code: str = "", height: int = 7) -> None:
        """Let the validators say so, in order."""
        self.said[event] = [
            NodeAnswer(name, verdict, code, height) for name, verdict in zip(VALIDATORS, verdicts, strict=False)
        ]

    async def ask(self, event: Event) -> Tally:
        self.asked.append(event.event)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await trio.lowlevel.checkpoint()
        self.at_once -= 1
        if self.error is not None:
            raise self.error
        held = [NodeAnswer(name, Verdict.HELD) for name in VALIDATORS]
        return Tally(tuple(self.said.get(event.event, held)), 3, self.time_ms)


class Nodes:
    """What is sent to nodes."""

    node_count = 4

    def __init__(self) -> None:
        self.node = 0
        self.asked: list[int] = []
        self.sent: list[bytes] = []
        self.error: Exception | None = None
        self.code = ""

    async def submit_many(self, transactions: Sequence[Transaction]) -> list[Submitted]:
        if self.error is not None:
            raise self.error
        self.asked.append(self.node)
        self.sent += [transaction.raw for transaction in transactions]
        return [Submitted(transaction.id, self.code) for transaction in transactions]

    def leave_node(self) -> None:
        self.node = (self.node + 1) % self.node_count


class Watchtower:
    """A scanner over an event system, told what validators say."""

    def __init__(self, desk: Desk, queue: Queue) -> None:
        self.desk = desk
        self.queue = queue
        self.validators = Validators()
        self.nodes = Nodes()
        self.scanner = Scanner(
            desk.store,
            self.validators,
            self.nodes,  # type: ignore[arg-type]
            Relay(desk.store, queue),
            interval_ms=1_000,
            now_ms=desk.clock,
        )

    def event(self, name: str = "T-1") -> Event:
        return self.desk.memory.events[name]

    async def scan_at(self, after_ms: int) -> int:
        """Scan so long after the beginning."""
        self.desk.clock.ms = NOW_MS + after_ms
        return await self.scanner.scan()

    async def keys(self) -> list[str]:
        """Return the keys of what the centre has, by the outbox's numbers."""
        found = await self.queue.find(
            [
                f"{name}/{topic}/{version}"
                for name in self.desk.memory.events
                for topic in ("pay", "release")
                for version in range(20)
            ]
        )
        return [record.key for record in found if record]


@asynccontextmanager
async def tower(folder: Path, store: MemoryStore | None = None) -> AsyncIterator[Watchtower]:
    async with open_center(folder) as queue:
        yield Watchtower(Desk(store), queue)


async def released(found: Watchtower, *names: str) -> None:
    await register(found.desk, *(registration(name) for name in names))
    await release(found.desk, *names)


# -- type 1 ------------------------------------------------------------------------------------------------------------


async def test_what_succeeded_awaits_its_payment(tmp_path: Path) -> None:
    async with tower(tmp_path) as found:
        await released(found, "T-1")
        assert await found.scan_at(0) == 0, "its time has not come"
        found.validators.say("T-1", *[Verdict.SUCCEEDED] * 3, Verdict.UNKNOWN)
        assert await found.scan_at(1_000) == 1
        assert (found.event().state, found.event().height) == (State.ACCOUNT_PENDING, 7)
        assert await found.keys() == ["T-1/pay/3"], "the scan drains the outbox too"


async def test_what_failed_is_cancelled_and_its_hold_released(tmp_path: Path) -> None:
    async with tower(tmp_path) as found:
        await released(found, "T-1")
        found.validators.say("T-1", *[Verdict.FAILED] * 3, code="insufficient_funds")
        await found.scan_at(1_000)
        assert (found.event().state, found.event().code) == (State.CANCELLED, "insufficient_funds")
        assert await found.keys() == ["T-1/release/3"]


@pytest.mark.parametrize("is_released", [False, True])
async def test_only_proven_absence_cancels_what_is_not_final(tmp_path: Path, is_released: bool) -> None:
    async with tower(tmp_path) as found:
        await register(found.desk, registration("T-1"))
        if is_released:
            await release(found.desk, "T-1")
        found.validators.time_ms = VALID_UNTIL_MS
        for after_ms in (1_000, 3_000, 10_000, 61_500):
            await found.scan_at(after_ms)
            assert found.event().state is State.REGISTERED, "pending is never cancelled"
        found.validators.time_ms = VALID_UNTIL_MS + 1
        await found.scan_at(200_000)
        assert found.event().state is State.REGISTERED, "over, but nobody proves that it is absent"
        found.validators.say("T-1", *[Verdict.ABSENT] * 3)
        await found.scan_at(400_000)
        assert (found.event().state, found.event().code) == (State.CANCELLED, "expired")
        assert found.desk.memory.rows["T-1"][-1].topics == ["release"]


async def test_identical_bytes_are_sent_again_while_they_may_come(tmp_path: Path) -> None:
    async with tower(tmp_path) as found:
        await released(found, "T-1")
        await register(found.desk, registration("T-2"))
        await found.scan_at(1_000)
        await found.scan_at(3_000)
        assert found.nodes.sent == [delivery("T-1").raw] * 2, "and never what was not released"
        found.nodes.error = Unreachable("away", "node_unreachable")
        await found.scan_at(10_000)
        assert found.scanner.trouble == "node_unreachable"
        assert found.event().attempts == 3
        found.nodes.error = None
        await found.scan_at(30_000)
        assert found.scanner.trouble == ""


async def test_pauses_grow_and_no_event_is_asked_about_twice_in_one_pass(tmp_path: Path) -> None:
    async with tower(tmp_path) as found:
        await released(found, *(f"T-{number:03}" for number in range(450)))
        assert await found.scan_at(1_000) == 450
        assert sorted(set(found.validators.asked)) == sorted(found.validators.asked)
        assert found.validators.most <= 16
        assert await found.scan_at(1_500) == 0
        assert await found.scan_at(2_000) == 450
        assert await found.scan_at(3_000) == 0
        assert await found.scan_at(4_000) == 450


@pytest.mark.parametrize("answers", [[Verdict.SUCCEEDED] * 2, [Verdict.SUCCEEDED] * 2 + [Verdict.LIAR] * 2])
async def test_too_few_wait_and_in_the_end_an_operator_is_told_once(
    tmp_path: Path, answers: list[Verdict], capsys: pytest.CaptureFixture[str]
) -> None:
    async with tower(tmp_path) as found:
        await released(found, "T-1")
        found.validators.say("T-1", *answers)
        for step in range(12):
            await found.scan_at((step + 1) * 61_000)
            found.validators.time_ms = found.desk.clock.ms
        assert found.event().state is State.REGISTERED
        assert (found.event().is_flagged, found.event().code) == (True, decision.RATIO_UNMET)
        found.validators.say("T-1", *[Verdict.SUCCEEDED] * 3)
        await found.scan_at(13 * 61_000)
        assert (found.event().state, found.event().is_flagged) == (State.ACCOUNT_PENDING, False)
    assert capsys.readouterr().out.count("event is stuck") == 1


async def test_validators_that_contradict_each_other_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with tower(tmp_path) as found:
        await released(found, "T-1")
        found.validators.say("T-1", *[Verdict.SUCCEEDED] * 3, Verdict.FAILED)
        await found.scan_at(1_000)
        assert found.event().state is State.REGISTERED
        assert found.event().code == decision.RECEIPTS_DISAGREE
    assert "receipts_disagree" in capsys.readouterr().out


async def test_when_nobody_can_be_asked_everything_waits(tmp_path: Path) -> None:
    async with tower(tmp_path) as found:
        await released(found, "T-1")
        found.validators.error = Unreachable("away", "node_unreachable")
        await found.scan_at(1_000)
        assert (found.event().state, found.scanner.trouble) == (State.REGISTERED, "node_unreachable")
        found.validators.error = None
        found.validators.say("T-1", *[Verdict.SUCCEEDED] * 4)
        await found.scan_at(10_000)
        assert (found.event().state, found.scanner.trouble) == (State.ACCOUNT_PENDING, "")


# -- type 2 ------------------------------------------------------------------------------------------------------------


async def test_the_account_system_is_notified_until_it_has_finished(tmp_path: Path) -> None:
    async with tower(tmp_path) as found:
        await delivered(found.desk, "T-1")
        after_ms, looks = 0, 0
        while looks < 8:
            after_ms += 1_000
            looks += await found.scan_at(after_ms)
        assert not found.validators.asked, "the chain has decided"
        event = found.event()
        assert (event.state, event.attempts, event.is_flagged) == (State.ACCOUNT_PENDING, 8, True)
        keys = await found.keys()
        assert len(keys) == len(set(keys)) == 9, "each under a version of its own, flagged or not"


async def test_under_the_wish_to_reverse_it_is_told_to_release(tmp_path: Path) -> None:
    async with tower(tmp_path) as found:
        await delivered(found.desk, "T-1")
        wish = changed(found.event(), "operator", now_ms=NOW_MS, wish=Wish.REVERSE)
        await found.desk.store.apply([wish])
        await found.scan_at(10_000)
        assert [key.split("/")[1] for key in await found.keys()] == ["pay", "release"]


# -- reversals ---------------------------------------------------------------------------------------------------------


async def reversing(found: Watchtower) -> None:
    """Let a trade have a reversal under way."""
    await delivered(found.desk, "T-1")
    wish = changed(found.event(), "operator", now_ms=NOW_MS, wish=Wish.REVERSE, due_ms=NOW_MS + 900)
    await found.desk.store.apply([wish])
    event = found.event()
    reversal = decision.opened(
        "T-1.reverse",
        event.terms,
        transaction_id=bytes(32),
        raw=delivery("T-1.reverse").raw,
        valid_until_ms=VALID_UNTIL_MS,
        now_ms=NOW_MS,
        original="T-1",
    )
    await found.desk.store.register([reversal])


async def test_a_reversal_ends_its_trade_although_both_are_due(tmp_path: Path) -> None:
    async with tower(tmp_path) as found:
        await reversing(found)
        found.validators.say("T-1.reverse", *[Verdict.SUCCEEDED] * 4)
        assert await found.scan_at(2_000) == 2
        assert (found.event().state, found.event().outcome) == (State.COMPLETED, Outcome.REVERSED)
        assert found.event("T-1.reverse").state is State.COMPLETED
        assert found.event("T-1.reverse").kind is Kind.REVERSAL


async def test_a_trade_that_changes_while_its_reversal_ends_is_ended_too(tmp_path: Path) -> None:
    class Racing(MemoryStore):
        """Somebody touches the trade between the scan's reading and its writing."""

        left = 3

        async def apply(self, changes: Sequence[Change], *, cursor: Cursor | None = None) -> list[bool]:
            if self.left and any(change.after.outcome is Outcome.REVERSED for change in changes):
                self.left -= 1
                await super().apply([changed(self.events["T-1"], "another's", now_ms=NOW_MS)])
            return await super().apply(changes, cursor=cursor)

    store = Racing()
    async with tower(tmp_path, store) as found:
        found.desk.memory = store
        await reversing(found)
        found.validators.say("T-1.reverse", *[Verdict.SUCCEEDED] * 4)
        await found.scan_at(2_000)
        assert not store.left
        assert (found.event().state, found.event().outcome) == (State.COMPLETED, Outcome.REVERSED)


async def test_each_time_another_node_gets_what_is_sent_again(tmp_path: Path) -> None:
    async with tower(tmp_path) as found:
        await released(found, "T-1")
        for seconds in (1, 3, 7, 15):
            await found.scan_at(seconds * 1_000)
        assert sorted(found.nodes.asked) == [0, 1, 2, 3], "one that takes all and hands nothing on ends no trade"


async def test_reminders_do_not_pile_up_while_the_centre_is_away(tmp_path: Path) -> None:
    async with tower(tmp_path) as found:
        await delivered(found.desk, "T-1")
        is_away = True
        publish = found.queue.publish

        async def away(messages: Sequence[NewMessage]) -> Sequence[Published]:
            if is_away:
                raise Unreachable("away", "center_unreachable")
            return await publish(messages)

        found.queue.publish = away  # type: ignore[assignment, method-assign]
        for minutes in range(1, 11):
            await found.scan_at(minutes * 60_000)
        assert found.event().attempts == 10
        assert len(found.desk.memory.outbox) == 2
        is_away = False
        await found.scan_at(11 * 60_000)
        await found.scan_at(12 * 60_000)
        assert await found.keys() == ["T-1/pay/3", "T-1/pay/4", "T-1/pay/15"], "and goes on when it is back"


# -- clocks and running -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_ms", [-86_400_000, 86_400_000])
async def test_a_clock_that_jumps_changes_when_not_what(tmp_path: Path, jump_ms: int) -> None:
    async with tower(tmp_path) as found:
        await released(found, "T-1", "T-2")
        await delivered(found.desk, "T-3")
        assert await found.scan_at(jump_ms) == 3, "nothing rests for a day"
        assert found.event("T-1").state is found.event("T-2").state is State.REGISTERED, "nothing expires by it"
        found.validators.say("T-1", *[Verdict.SUCCEEDED] * 4)
        await found.scan_at(jump_ms + 120_000)
        assert found.event("T-1").state is State.ACCOUNT_PENDING
        assert found.event("T-2").state is State.REGISTERED


async def test_it_scans_by_itself_and_when_woken(autojump_clock: trio.testing.MockClock) -> None:
    class Drained:
        async def drain(self) -> bool:
            return True

    looks: list[float] = []
    desk = Desk()
    due: Callable[..., object] = desk.store.due

    async def counted(*args: object, **options: object) -> object:
        looks.append(round(trio.current_time(), 3))
        return await due(*args, **options)  # type: ignore[misc]

    desk.store.due = counted  # type: ignore[assignment, method-assign]
    scanner = Scanner(
        desk.store,
        Validators(),
        Nodes(),  # type: ignore[arg-type]
        Drained(),  # type: ignore[arg-type]
        interval_ms=500,
        now_ms=desk.clock,
    )
    began = trio.current_time()
    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scanner.run)
            await trio.testing.wait_all_tasks_blocked()
            scanner.wake()
            await trio.sleep_forever()
    assert [round(look - began, 3) for look in looks[:4]] == [0, 0, 0.5, 1.0]
