"""The event system's methods: what may be registered, who may change what, and who hears of it."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec
import pytest
import trio

from consensus.ledger.ids import ChainId
from services.accounts.port import Answer, Operation
from services.client.errors import Refused
from services.settlement import engine, watched
from services.settlement.decision import on_certified
from services.settlement.interfaces import (
    AnswersPut,
    AnswersTaken,
    Cancel,
    Ended,
    EndsQuery,
    EventAnswer,
    EventQuery,
    EventsPage,
    EventsQuery,
    Kept,
    Register,
    Registered,
    Registration,
    Release,
    Repair,
)
from services.settlement.states import Change, Event, Outcome, State, Topic, Wish, changed
from services.settlement.store import Cursor
from tests.settlement.memory import MemoryStore
from tests.settlement.parts import BUYER, NOW_MS, TERMS, Desk, delivery, registration


async def register(desk: Desk, *trades: Registration) -> list[Kept]:
    return (await desk.link.call("register", Register([*trades]), Registered)).items


async def release(desk: Desk, *events: str) -> list[Kept]:
    return (await desk.link.call("release", Release([*events]), Registered)).items


async def cancel(desk: Desk, *events: str, code: str = "insufficient_funds") -> list[Kept]:
    return (await desk.link.call("cancel", Cancel([*events], code), Registered)).items


async def answers(desk: Desk, *given: Answer) -> list[bool]:
    return (await desk.link.call("answers_put", AnswersPut([*given]), AnswersTaken)).changed


async def shown(desk: Desk, event: str, after: int = 0, wait_ms: int = 0) -> EventAnswer:
    return await desk.link.call("event", EventQuery(event, after, wait_ms), EventAnswer)


async def delivered(desk: Desk, *names: str) -> None:
    """Register and release trades, and let the chain have taken them."""
    await register(desk, *(registration(name) for name in names))
    await release(desk, *names)
    for event in await desk.store.find(names):
        assert event is not None
        await desk.store.apply(on_certified(event, is_ok=True, code="", height=7, now_ms=desk.clock()))


def paid(event: str) -> Answer:
    return Answer(event, Operation.PAY, time_ms=NOW_MS)


# -- registering -----------------------------------------------------------------------------------------------------


async def test_what_is_registered_is_kept_with_its_bytes_and_not_released() -> None:
    desk = Desk()
    trade = registration("T-1")
    (kept,) = await register(desk, trade)
    assert kept.event is not None
    assert not kept.code
    assert (kept.event.state, kept.event.is_released, kept.event.version) == (State.REGISTERED, False, 1)
    assert (kept.event.raw, kept.event.transaction_id) == (trade.raw, delivery("T-1").id)
    assert kept.event.valid_until_ms == NOW_MS + 60_000
    assert not desk.memory.outbox, "nothing goes out for it"


async def test_the_first_bytes_of_an_id_win() -> None:
    desk = Desk()
    first, second = registration("T-1"), registration("T-1", until_ms=NOW_MS + 70_000)
    assert first.raw != second.raw
    for trades in ([first], [second], [second, first]):
        for kept in await register(desk, *trades):
            assert kept.event is not None
            assert kept.event.raw == first.raw


async def test_one_thousand_at_once_are_one_event() -> None:
    desk = Desk()
    found: set[bytes] = set()

    async def one(number: int) -> None:
        (kept,) = await register(desk, registration("T-1", until_ms=NOW_MS + 60_000 + number))
        assert kept.event is not None
        found.add(kept.event.raw)

    async with trio.open_nursery() as nursery:
        for number in range(1_000):
            nursery.start_soon(one, number)
    assert len(found) == 1
    assert len(desk.memory.rows["T-1"]) == 1


OTHERS: dict[str, object] = {
    "units": 11,
    "price": 12_551,
    "asset": "BOND-2",
    "buyer": b"\x09" * 20,
    "payer": "user-c",
    "payee": "issuer-c",
    "currency": "EUR",
}


@pytest.mark.parametrize("field", OTHERS)
async def test_other_terms_under_an_id_are_a_conflict(field: str) -> None:
    desk = Desk()
    await register(desk, registration("T-1"))
    (kept,) = await register(desk, registration("T-1", msgspec.structs.replace(TERMS, **{field: OTHERS[field]})))
    assert (kept.event, kept.code) == (None, "event_conflict")
    (again,) = await register(desk, registration("T-1"))
    assert again.event is not None
    assert again.event.terms == TERMS


OTHER = msgspec.structs.replace(TERMS, units=11)
BAD: dict[str, Callable[[], Registration]] = {
    "no transaction": lambda: Registration("T-1", TERMS, b"nothing"),
    "another chain": lambda: registration("T-1", chain=ChainId(b"\x08" * 32)),
    "another's agent": lambda: registration("T-1", agent=bytes(BUYER.address)),
    "other terms in the transaction": lambda: Registration("T-1", TERMS, delivery("T-1", OTHER).raw),
    "another event in the transaction": lambda: Registration("T-1", TERMS, delivery("T-2").raw),
    "another lane": lambda: Registration("T-1", TERMS, delivery("T-1", lane=b"").raw),
    "signed by the buyer": lambda: Registration("T-1", TERMS, delivery("T-1", signer=BUYER).raw),
    "no units": lambda: registration("T-1", msgspec.structs.replace(TERMS, units=0)),
    "to oneself": lambda: registration("T-1", msgspec.structs.replace(TERMS, buyer=TERMS.seller)),
    "one account": lambda: registration("T-1", msgspec.structs.replace(TERMS, payee=TERMS.payer)),
    "a reversal's name": lambda: registration("T-1.reverse"),
    "a reversal's name with a number": lambda: registration("T-1.reverse12"),
    "too long a name": lambda: registration("T" * 49),
    "valid too long": lambda: registration("T-1", until_ms=NOW_MS + 3_600_000 + engine.CLOCKS_MS_MAX + 1),
    "valid no more": lambda: registration("T-1", until_ms=NOW_MS - 1),
}


@pytest.mark.parametrize("fault", BAD)
async def test_a_bad_trade_is_not_kept(fault: str) -> None:
    desk = Desk()
    good, bad = registration("good"), BAD[fault]()
    first, second = await register(desk, good, bad)
    assert first.event is not None, "the others of the same call are"
    assert (second.event, second.code) == (None, "bad_trade")
    assert set(desk.memory.events) == {"good"}


async def test_a_known_trade_is_answered_whatever_is_signed_for_it_again() -> None:
    desk = Desk()
    (first,) = await register(desk, registration("T-1"))
    desk.clock.ms = desk.chain_ms = NOW_MS + 90_000
    late, conflict, new = await register(desk, registration("T-1"), registration("T-1", OTHER), registration("T-2"))
    assert late == first
    assert conflict.code == "event_conflict"
    assert new.code == "bad_trade"


async def test_validity_counts_by_the_chain_s_time_where_it_is_known() -> None:
    desk = Desk()
    desk.clock.ms = NOW_MS - 3_600_000  # this machine is an hour late
    desk.chain_ms = NOW_MS
    (kept,) = await register(desk, registration("T-1", until_ms=NOW_MS + 3_600_000))
    assert kept.event is not None


@pytest.mark.parametrize("field", ["units", "price"])
@pytest.mark.parametrize("value", [-1, 0, 10**19, 1.5, "1"])
async def test_amounts_that_are_none_are_refused(field: str, value: object) -> None:
    desk = Desk()
    terms = msgspec.to_builtins(TERMS, builtin_types=(bytes,)) | {field: value}
    terms |= {"seller": "AA==", "buyer": "AB=="}
    params = {"trades": [{"event": "T-1", "terms": terms, "raw": "AA=="}]}
    with suppress(Refused):
        answer = await desk.link.call("register", params, Registered)
        assert answer.items[0].code == "bad_trade", "what is no number does not get so far"
    assert not desk.memory.events


# -- releasing and giving up -------------------------------------------------------------------------------------------


async def test_release_once_for_all() -> None:
    desk = Desk()
    await register(desk, registration("T-1"), registration("T-2"))
    first = await release(desk, "T-1", "T-2", "T-1")
    assert [kept.event.is_released for kept in first if kept.event] == [True, True, True]
    again = await release(desk, "T-2", "T-1")
    assert [kept.event.version for kept in again if kept.event] == [2, 2]
    (unknown,) = await release(desk, "T-9")
    assert (unknown.event, unknown.code) == (None, "unknown_event")


async def test_released_or_cancelled_never_both() -> None:
    desk = Desk()
    await register(desk, registration("T-1"), registration("T-2"))
    await release(desk, "T-1")
    first, second = await cancel(desk, "T-1", "T-2")
    assert first.code == "event_released"
    assert second.event is not None
    assert second.event.state is State.CANCELLED
    assert second.event.code == "insufficient_funds"
    (late,) = await release(desk, "T-2")
    assert late.code == "event_cancelled"
    assert [notice.topic for notice in desk.memory.outbox.values()] == [Topic.RELEASE], "what was held is given up"
    await cancel(desk, "T-2")
    assert len(desk.memory.outbox) == 1, "once"


async def test_releases_and_cancels_at_once_have_one_winner() -> None:
    for order in range(4):
        desk = Desk()
        await register(desk, registration("T-1"))
        found: list[Kept] = []

        async def one(number: int, desk: Desk = desk, found: list[Kept] = found) -> None:
            found.extend(await (release if number % 2 else cancel)(desk, "T-1"))

        async with trio.open_nursery() as nursery:
            for number in range(order, order + 100):
                nursery.start_soon(one, number)
        event = desk.memory.events["T-1"]
        assert event.version == 2, "one change"
        losers = {"event_released"} if event.state is State.REGISTERED else {"event_cancelled"}
        assert {kept.code for kept in found} == {"", *losers}


# -- answers ---------------------------------------------------------------------------------------------------------


async def test_a_payment_completes_its_event_once() -> None:
    desk = Desk()
    await delivered(desk, "T-1")
    assert await answers(desk, paid("T-1"), paid("T-1"), paid("nobody")) == [True, False, False]
    event = desk.memory.events["T-1"]
    assert (event.state, event.outcome) == (State.COMPLETED, Outcome.PAID)
    assert [notice.topic for notice in desk.memory.outbox.values()] == [Topic.PAY, Topic.LIFT]
    assert await answers(desk, paid("T-1")) == [False]
    assert len(desk.memory.outbox) == 2


async def test_a_refusal_that_repeat_cannot_mend_is_flagged_at_once() -> None:
    desk = Desk()
    await delivered(desk, "T-1")
    refusal = Answer("T-1", Operation.PAY, "account_frozen", "frozen")
    assert await answers(desk, refusal) == [True]
    event = desk.memory.events["T-1"]
    assert (event.state, event.is_flagged, event.code) == (State.ACCOUNT_PENDING, True, "account_frozen")
    assert await answers(desk, refusal) == [False], "it is known"
    assert await answers(desk, paid("T-1")) == [True], "paid in the end"
    assert not desk.memory.events["T-1"].is_flagged


async def test_a_hold_that_stays_is_said_loudly(capsys: pytest.CaptureFixture[str]) -> None:
    desk = Desk()
    await register(desk, registration("T-1"))
    await cancel(desk, "T-1")
    for code, is_again in (("already_paid", False), ("not_now", True), ("", False)):
        params = AnswersPut([Answer("T-1", Operation.RELEASE, code, "")])
        assert await desk.link.call("answers_put", params, AnswersTaken) == AnswersTaken([False], [is_again])
        said = capsys.readouterr().out
        assert ("is not released" in said, code in said) == (bool(code), True)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("events", {"fromMs": 1 << 64}),
        ("events", {"after": "T\0"}),
        ("answers_put", {"answers": [{"event": "T-1", "operation": "pay", "code": "no\0"}]}),
        ("answers_put", {"answers": [{"event": "T\0", "operation": "pay"}]}),
    ],
)
async def test_what_no_store_could_keep_is_refused(method: str, params: object) -> None:
    with pytest.raises(Refused) as caught:
        await Desk().link.call(method, params, object)
    assert caught.value.code == "invalid_params"


async def test_an_answer_that_meets_another_change_is_decided_anew() -> None:
    class Racing(MemoryStore):
        """Somebody is faster, three times."""

        left = 3

        async def apply(self, changes: Sequence[Change], *, cursor: Cursor | None = None) -> list[bool]:
            if self.left and changes[0].why.startswith("account system"):
                self.left -= 1
                event = self.events["T-1"]
                await super().apply([changed(event, "another's", now_ms=NOW_MS, attempts=event.attempts + 1)])
            return await super().apply(changes, cursor=cursor)

    store = Racing()
    desk = Desk(store)
    await delivered(desk, "T-1")
    assert await answers(desk, paid("T-1")) == [True]
    assert store.events["T-1"].state is State.COMPLETED
    assert store.events["T-1"].attempts == 3


async def test_a_change_that_never_wins_is_refused_not_repeated_for_ever() -> None:
    class Losing(MemoryStore):
        async def apply(self, changes: Sequence[Change], *, cursor: Cursor | None = None) -> list[bool]:
            return [False] * len(changes)

    desk = Desk(Losing())
    await register(desk, registration("T-1"))
    with pytest.raises(Refused) as caught:
        await release(desk, "T-1")
    assert caught.value.code == "busy"


# -- who waits -------------------------------------------------------------------------------------------------------


async def test_who_waits_for_an_event_hears_of_its_change(autojump_clock: trio.testing.MockClock) -> None:
    desk = Desk()
    await delivered(desk, "T-1")
    heard: list[Event] = []

    async def wait() -> None:
        heard.append((await shown(desk, "T-1", after=3, wait_ms=20_000)).event)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not heard
        await answers(desk, paid("T-1"))
    assert [event.state for event in heard] == [State.COMPLETED] * 3
    assert trio.current_time() < 20, "woken, not timed out"


async def test_waiting_ends_with_the_time_and_at_once_for_what_is_finished(
    autojump_clock: trio.testing.MockClock,
) -> None:
    desk = Desk()
    await delivered(desk, "T-1")
    began = trio.current_time()
    answer = await shown(desk, "T-1", after=3, wait_ms=5_000)
    assert answer.event.state is State.ACCOUNT_PENDING
    assert trio.current_time() - began == pytest.approx(5)
    assert [row.state_after for row in answer.history] == ["REGISTERED", "REGISTERED", "ACCOUNT_PENDING"]
    await answers(desk, paid("T-1"))
    began = trio.current_time()
    await shown(desk, "T-1", after=99, wait_ms=5_000)
    assert trio.current_time() == began
    with pytest.raises(Refused) as caught:
        await shown(desk, "T-9")
    assert caught.value.code == "unknown_event"


async def test_one_call_waits_for_many(autojump_clock: trio.testing.MockClock) -> None:
    desk = Desk()
    await delivered(desk, "T-1", "T-2", "T-3")
    found: list[str] = []

    async def wait() -> None:
        ends = await desk.link.call("ends", EndsQuery(["T-1", "T-2", "T-3"], 20_000), Ended)
        found.extend(event.event for event in ends.items)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await desk.store.apply([changed(desk.memory.events["T-1"], "nothing", now_ms=NOW_MS, attempts=1)])
        await trio.testing.wait_all_tasks_blocked()
        assert not found, "a change is no end"
        await answers(desk, paid("T-2"))
    assert found == ["T-2"]
    ends = await desk.link.call("ends", EndsQuery(["T-1", "T-9"], 20_000), Ended)
    assert (ends.items, ends.unknown) == ([], ["T-9"])


async def test_waiters_are_bounded(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock) -> None:
    monkeypatch.setattr(watched, "WATCHES_MAX", 5)
    desk = Desk()
    await delivered(desk, "T-1")
    busy: list[str] = []

    async def wait() -> None:
        try:
            await shown(desk, "T-1", after=3, wait_ms=1_000)
        except Refused as error:
            busy.append(error.code)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(wait)
    assert busy == ["busy"] * 3
    await shown(desk, "T-1")


# -- looking and repairing ---------------------------------------------------------------------------------------------


async def test_pages_hold_every_event_once() -> None:
    desk = Desk()
    names = [f"T-{number:03}" for number in range(25)]
    await register(desk, *(registration(name) for name in names))
    found: list[str] = []
    after = ""
    while True:
        page = await desk.link.call("events", EventsQuery(after=after, limit=10), EventsPage)
        found += [event.event for event in page.items]
        if not (after := page.next):
            break
    assert found == names


async def test_an_operator_s_word() -> None:
    desk = Desk()
    await delivered(desk, "T-1", "T-2")
    await answers(desk, Answer("T-1", Operation.PAY, "account_frozen", ""))
    kept = await desk.link.call("repair", Repair("T-1", "retry"), Kept)
    assert kept.event is not None
    assert not kept.event.is_flagged
    kept = await desk.link.call("repair", Repair("T-1", "reverse"), Kept)
    assert kept.event is not None
    assert kept.event.wish is Wish.REVERSE
    assert desk.repaired == 2
    await answers(desk, paid("T-2"))
    for event, action, code in (("T-9", "retry", "unknown_event"), ("T-2", "reverse", "event_finished")):
        with pytest.raises(Refused) as caught:
            await desk.link.call("repair", Repair(event, action), Kept)
        assert caught.value.code == code
    assert desk.repaired == 2
