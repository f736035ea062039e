"""What the port says of an event store, sentence by sentence, for every store; and what is true of databases alone."""

import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from bench.settlement_rows import load_rows, selection_figures
from services.accounts.port import AMOUNT_MAX
from services.accounts.store import open_store
from services.local.database import open_database
from services.local.schema import version_table
from services.settlement.database import MIGRATIONS, due_query, open_events
from services.settlement.states import (
    CHAIN,
    MESSAGES,
    Change,
    Event,
    HistoryRow,
    Kind,
    Outcome,
    State,
    Terms,
    Topic,
    Wish,
    changed,
)
from services.settlement.store import HISTORY_MAX, Cursor, EventStore, Selection
from services.settlement.tables import EVENTS, METADATA
from tests.settlement.stores import (
    NOW_MS,
    Site,
    batch_changes,
    batch_size,
    batch_trades,
    database_site,
    site,
    trade,
)

__all__ = ["database_site", "site"]

HOUR_MS = 3_600_000


def pending(event: Event, *topics: Topic, **fields: object) -> Change:
    """Return the step to ACCOUNT_PENDING, or another one of the same state."""
    return changed(event, "on the chain", *topics, now_ms=NOW_MS + 5, state=State.ACCOUNT_PENDING, **fields)


def completed(event: Event, outcome: Outcome = Outcome.PAID) -> Change:
    return changed(event, "paid", Topic.LIFT, now_ms=NOW_MS + 9, state=State.COMPLETED, outcome=outcome)


async def names(store: EventStore, selection: Selection, after: str = "", limit: int = 100) -> list[str]:
    return [event.event for event in await store.listed(selection, after, limit)]


# -- register ----------------------------------------------------------------------------------------------


async def test_every_field_comes_back(site: Site) -> None:
    longest = trade(
        "A" + "z" * 63,
        kind=Kind.REVERSAL,
        original="x" * 64,
        terms=Terms(bytes(20), b"\xff" * 20, "権益 'quoted\"", AMOUNT_MAX, AMOUNT_MAX, "XTS", "a" * 64, "b:c.d_e-f"),
        transaction_id=bytes(range(32)),
        raw=bytes(range(256)) * 64,
        wish=Wish.REVERSE,
        code="insufficient_funds",
        is_flagged=True,
        is_released=True,
        attempts=7,
        height=1 << 40,
    )
    async with site.opened() as store:
        assert await store.register([longest, trade("b")]) == [longest, trade("b")]
        final = completed(longest)
        assert await store.apply([final]) == [True]
    async with site.opened() as store:
        assert await store.find([longest.event, "b"]) == [final.after, trade("b")]


async def test_an_id_keeps_its_first_event_whatever_comes_later(site: Site) -> None:
    first, other, new = trade("a", 1), trade("a", 2), trade("n", 3)
    async with site.opened() as store:
        assert await store.register([first]) == [first]
        assert await store.register([other, new, first]) == [first, new, first]
        assert await store.apply([pending(first)]) == [True]
        assert await store.register([first]) == [pending(first).after]
        assert [row.version for row in await store.history("a")] == [1, 2]
        assert await store.register([]) == []


async def test_an_id_twice_in_one_call_is_one_event(site: Site) -> None:
    first, other = trade("a", 1), trade("a", 2)
    async with site.opened() as store:
        assert await store.register([first, other]) == [first, first]
        assert len(await store.history("a")) == 1


async def test_of_a_long_history_the_newest_changes_are_shown(site: Site) -> None:
    async with site.opened() as store:
        (event,) = await store.register([trade("a")])
        for number in range(HISTORY_MAX):
            change = changed(event, f"look {number}", now_ms=NOW_MS + number)
            assert await store.apply([change]) == [True]
            event = change.after
        rows = await store.history("a")
        assert [row.version for row in rows] == [*range(2, HISTORY_MAX + 2)]
        assert rows[-1].why == f"look {HISTORY_MAX - 1}"


async def test_history_tells_every_change_from_the_first(site: Site) -> None:
    event = trade("a")
    step = pending(event, Topic.PAY, height=4)
    last = completed(step.after)
    async with site.opened() as store:
        await store.register([event])
        await store.apply([step])
        await store.apply([last])
        assert await store.history("a") == [
            HistoryRow("a", 1, "", "REGISTERED", "", "", "registered", [], NOW_MS),
            HistoryRow("a", 2, "REGISTERED", "ACCOUNT_PENDING", "", "", "on the chain", ["pay"], NOW_MS + 5),
            HistoryRow("a", 3, "ACCOUNT_PENDING", "COMPLETED", "PAID", "", "paid", ["lift"], NOW_MS + 9),
        ]
        assert await store.history("b") == []


async def test_a_thousand_callers_of_one_id_have_one_effect_and_one_answer(site: Site) -> None:
    answers = []
    async with site.opened() as store:

        async def register(number: int) -> None:
            answers.extend(await store.register([trade("a", number)]))

        async with trio.open_nursery() as nursery:
            for number in range(1, 1_001):
                nursery.start_soon(register, number)
        assert len(answers) == 1_000
        assert {answer.transaction_id for answer in answers} == {answers[0].transaction_id}
        assert len(await store.history("a")) == 1
        assert (await store.totals())[State.REGISTERED] == 1


# -- apply -------------------------------------------------------------------------------------------------


async def test_a_change_of_an_older_version_is_not_taken(site: Site) -> None:
    event = trade("a")
    first, rival, unknown = pending(event, Topic.PAY), pending(event, Topic.REVERSE, code="x"), pending(trade("u"))
    async with site.opened() as store:
        await store.register([event])
        assert await store.apply([first]) == [True]
        assert await store.apply([rival, unknown]) == [False, False]
        assert await store.find(["a", "u"]) == [first.after, None]
        assert [notice.topic for notice in await store.notices([*MESSAGES, *CHAIN], 0, 10)] == [Topic.PAY]
        assert len(await store.history("a")) == 2
        assert await store.history("u") == []
        assert await store.apply([]) == []


async def test_changes_of_one_call_are_taken_for_themselves_in_their_order(site: Site) -> None:
    one, two = trade("a"), trade("b", 2)
    first = pending(one, Topic.PAY)
    second = completed(first.after)
    async with site.opened() as store:
        await store.register([one, two])
        assert await store.apply([first, pending(one), second, pending(two, Topic.PAY)]) == [True, False, True, True]
        assert await store.find(["a", "b"]) == [second.after, pending(two).after]
        assert [row.version for row in await store.history("a")] == [1, 2, 3]


async def test_every_taken_change_has_its_notices_numbered_in_order(site: Site) -> None:
    one, two = trade("a"), trade("b", 2)
    async with site.opened() as store:
        await store.register([one, two])
        await store.apply([pending(one, Topic.PAY, Topic.LIFT), pending(two, Topic.PAY)])
        every = await store.notices([*MESSAGES, *CHAIN], 0, 10)
        assert [(notice.event, notice.topic, notice.version, notice.created_ms) for notice in every] == [
            ("a", Topic.PAY, 2, NOW_MS + 5),
            ("a", Topic.LIFT, 2, NOW_MS + 5),
            ("b", Topic.PAY, 2, NOW_MS + 5),
        ]
        numbers = [notice.number for notice in every]
        assert numbers == sorted(set(numbers))
        assert await store.notices(MESSAGES, 0, 10) == [every[0], every[2]]
        assert await store.notices(MESSAGES, numbers[0], 10) == [every[2]]
        assert await store.notices(MESSAGES, 0, 1) == [every[0]]
        await store.drop_notices([*numbers, 1 << 40])
        await store.drop_notices([])
        assert await store.notices([*MESSAGES, *CHAIN], 0, 10) == []
        # A number is never given twice: who remembers the last one misses nothing.
        await store.apply([completed(pending(one).after)])
        assert (await store.notices(CHAIN, numbers[-1], 10))[0].event == "a"


async def test_the_cursor_goes_on_only_with_all_changes(site: Site) -> None:
    event = trade("a")
    async with site.opened() as store:
        assert await store.cursor() is None
        await store.apply([], cursor=Cursor(7, b"7" * 32))
        await store.register([event])
        assert await store.apply([pending(event)], cursor=Cursor(8, b"8" * 32)) == [True]
        assert await store.cursor() == Cursor(8, b"8" * 32)
        assert await store.apply([pending(event)], cursor=Cursor(9, b"9" * 32)) == [False]
    async with site.opened() as store:
        assert await store.cursor() == Cursor(8, b"8" * 32)


async def test_many_changes_of_many_events_are_one_call(site: Site) -> None:
    events = [trade(f"e{number:04}", number) for number in range(1_000)]
    async with site.opened() as store:
        assert await store.register(events) == events
        assert all(await store.apply([pending(event, Topic.PAY) for event in events]))
        assert len(await store.notices(MESSAGES, 0, 2_000)) == 1_000
        await store.drop_notices([notice.number for notice in await store.notices(MESSAGES, 0, 2_000)])
        assert await store.notices(MESSAGES, 0, 1) == []


# -- reading -----------------------------------------------------------------------------------------------


async def test_events_are_found_by_id_and_by_transaction(site: Site) -> None:
    events = [trade(f"e{number:04}", number) for number in range(700)]
    async with site.opened() as store:
        await store.register(events)
        wanted = [event.event for event in events]
        assert await store.find(["none", *reversed(wanted), wanted[0]]) == [None, *reversed(events), events[0]]
        assert await store.find([]) == []
        found = await store.find_transactions([event.transaction_id for event in events] + [b"n" * 32])
        assert sorted(found, key=lambda event: event.event) == events
        assert await store.find_transactions([]) == []


async def test_due_are_the_unfinished_whose_time_has_come_or_is_too_far_ahead(site: Site) -> None:
    times = {"later": 1, "now": 0, "long": -50, "ahead": 60, "clock": 61, "longer": -60, "pending": -55, "done": -70}
    events = {name: trade(name, 1 + at, due_ms=NOW_MS + place) for at, (name, place) in enumerate(times.items())}
    async with site.opened() as store:
        await store.register(list(events.values()))
        await store.apply([pending(events["pending"]), completed(events["done"])])
        cancelled = changed(events["long"], "gone", now_ms=NOW_MS, state=State.CANCELLED, is_released=True)
        found = [event.event for event in await store.due(NOW_MS, 10, ahead_ms=60)]
        assert found == ["longer", "pending", "long", "now", "clock"]
        assert [event.event for event in await store.due(NOW_MS, 2, ahead_ms=60)] == ["longer", "pending"]
        await store.apply([cancelled])
        found = [event.event for event in await store.due(NOW_MS, 4, ahead_ms=60)]
        assert found == ["longer", "pending", "now", "clock"]
        assert await store.due(NOW_MS, 0, ahead_ms=60) == []


async def test_events_are_listed_by_id_in_pages_and_by_what_is_asked(site: Site) -> None:
    events = [
        trade(name, at + 1, registered_ms=NOW_MS + at * HOUR_MS) for at, name in enumerate(["b", "B", "a-1", "a"])
    ]
    flagged = pending(events[1], is_flagged=True)
    done = completed(events[0])
    async with site.opened() as store:
        await store.register(events)
        await store.apply([flagged, done])
        # By bytes, whatever language a server was made for.
        assert await names(store, Selection()) == ["B", "a", "a-1", "b"]
        assert await names(store, Selection(), limit=2) == ["B", "a"]
        assert await names(store, Selection(), after="a", limit=2) == ["a-1", "b"]
        assert await names(store, Selection(state=State.REGISTERED)) == ["a", "a-1"]
        assert await names(store, Selection(state=State.COMPLETED)) == ["b"]
        assert await names(store, Selection(is_flagged=True)) == ["B"]
        assert await names(store, Selection(is_flagged=False)) == ["a", "a-1", "b"]
        assert await names(store, Selection(State.REGISTERED, is_flagged=True)) == []
        hours = Selection(from_ms=NOW_MS + HOUR_MS, until_ms=NOW_MS + 3 * HOUR_MS)
        assert await names(store, hours) == ["B", "a-1"]
        assert await store.listed(Selection(is_flagged=True), "", 1) == [flagged.after]


async def test_totals_count_every_state(site: Site) -> None:
    events = [trade(f"e{number}", number) for number in range(5)]
    async with site.opened() as store:
        assert await store.totals() == dict.fromkeys(State, 0)
        await store.register(events)
        await store.apply([pending(events[0]), pending(events[1]), completed(events[2])])
        assert await store.totals() == {
            State.REGISTERED: 2,
            State.ACCOUNT_PENDING: 2,
            State.CANCELLED: 0,
            State.COMPLETED: 1,
        }


# -- databases alone ---------------------------------------------------------------------------------------


async def test_a_call_that_fails_in_the_middle_leaves_nothing(database_site: Site) -> None:
    one, two = trade("a"), trade("b", 2)
    # Takes the place of another row of history, which the table forbids, after the events themselves were changed.
    bad = changed(two, "on the chain", Topic.PAY, now_ms=NOW_MS)
    bad = Change(bad.before, trade("b", 2, state=State.ACCOUNT_PENDING), "on the chain", (Topic.PAY,))
    async with database_site.opened() as store:
        await store.register([one, two])
        with pytest.raises(sa.exc.IntegrityError):
            await store.apply([pending(one, Topic.PAY), bad], cursor=Cursor(5, b"5" * 32))
        assert await store.find(["a", "b"]) == [one, two]
        assert await store.cursor() is None
        assert await store.notices(MESSAGES, 0, 10) == []
        assert len(await store.history("a")) == 1
        assert await store.apply([pending(one, Topic.PAY)], cursor=Cursor(5, b"5" * 32)) == [True]


async def test_two_owners_of_one_store_never_take_the_same_version(database_site: Site) -> None:
    """Both count one event up, forty times each, beside another that both read in the other order."""

    async def count_up(store: EventStore, wins: list[int], order: int) -> None:
        while len(wins) < 40:
            found = [event for event in await store.find(["a", "b"]) if event is not None]
            steps = [changed(event, "looked", now_ms=NOW_MS, attempts=event.attempts + 1) for event in found]
            taken = await store.apply(steps[::order])
            wins += [found[0].version] * taken[::order][0]

    async with database_site.shared() as one, database_site.shared() as two:
        await one.register([trade("a"), trade("b", 2)])
        first: list[int] = []
        second: list[int] = []
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(count_up, one, first, 1)
                nursery.start_soon(count_up, two, second, -1)
        assert not set(first) & set(second)
        (event,) = [event for event in await one.find(["a"]) if event is not None]
        assert event.attempts == len(first) + len(second)
        assert [row.version for row in await two.history("a")] == list(range(1, event.version + 1))


async def test_two_owners_that_register_the_same_answer_the_same(database_site: Site) -> None:
    answers: dict[str, set[bytes]] = {}

    async def register(store: EventStore, salt: int, order: int) -> None:
        for start in range(0, 200, 20):
            batch = [trade(f"e{number}", number * 2 + salt) for number in range(start, start + 20)]
            for event in await store.register(batch[::order]):
                answers.setdefault(event.event, set()).add(event.transaction_id)

    async with database_site.shared() as one, database_site.shared() as two:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(register, one, 0, 1)
                nursery.start_soon(register, two, 1, -1)
    assert len(answers) == 200
    assert {len(ids) for ids in answers.values()} == {1}


@pytest.mark.slow
async def test_a_process_killed_in_the_middle_loses_nothing_that_was_answered_and_tears_nothing(
    database_site: Site,
) -> None:
    rng = random.Random(7)
    first = 0
    for _ in range(3):
        said = await trio.to_thread.run_sync(_work_and_kill, database_site.url, first, rng.randrange(6, 60))
        registered, applied = said["registered"], said["applied"]
        async with database_site.opened() as store:
            cursor = await store.cursor()
            height = 0 if cursor is None else cursor.height
            # What is behind the last answer is one call that was never answered, or none.
            assert applied + 1 <= height <= applied + 2
            for batch in range(first, registered + 2):
                wanted = [event.event for event in batch_trades(batch)]
                found = [event for event in await store.find(wanted) if event is not None]
                assert len(found) == batch_size(batch) or (not found and batch == registered + 1)
                if batch < height:
                    assert found == [change.after for change in batch_changes(batch)]
                elif found:
                    assert found == batch_trades(batch)
                for event in found:
                    assert [row.version for row in await store.history(event.event)] == list(
                        range(1, event.version + 1)
                    )
            total = sum(batch_size(batch) for batch in range(height))
            assert len(await store.notices(MESSAGES, 0, 100_000)) == total
        first = height


def _work_and_kill(url: str, first: int, lines: int) -> dict[str, int]:
    """Kill a process that works from batch ``first`` on after so many answers; return the last of each kind."""
    last = {"registered": first - 1, "applied": first - 1}
    command = [sys.executable, "-m", "tests.settlement.stores", url, str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        for at, line in enumerate(worker.stdout):
            with suppress(ValueError):
                # What it had still said before it died was answered as well.
                kind, batch = line.split() if line.endswith("\n") else ("", "")
                last[kind] = int(batch)
            if at == lines:
                worker.kill()
    return last


# -- tables ------------------------------------------------------------------------------------------------


async def test_the_steps_make_the_tables_that_the_code_expects(database_site: Site, tmp_path: Path) -> None:
    def work(connection: sa.Connection) -> tuple[list[object], object]:
        options = {"version_table": version_table(MIGRATIONS), "compare_type": True, "compare_server_default": True}
        drift = compare_metadata(MigrationContext.configure(connection, opts=options), METADATA)
        return drift, _rules(connection)

    async with open_database(database_site.url, migrations=MIGRATIONS) as database:
        drift, made = await database.read(work)

        def anew(connection: sa.Connection) -> object:
            METADATA.drop_all(connection)
            METADATA.create_all(connection)
            return _rules(connection)

        assert drift == []
        # Checks and the conditions of indexes, which that comparison passes over.
        assert made == await database.write(anew)


def _rules(connection: sa.Connection) -> list[object]:
    inspector = sa.inspect(connection)
    return [
        (name, sorted(map(str, rules)))
        for name in sorted(METADATA.tables)
        for rules in (
            inspector.get_check_constraints(name),
            [
                (one["name"], one["column_names"], {key: str(value) for key, value in one["dialect_options"].items()})
                for one in inspector.get_indexes(name)
            ],
            [(one["name"], one["nullable"], str(one["type"])) for one in inspector.get_columns(name)],
            [inspector.get_pk_constraint(name)["constrained_columns"]],
        )
    ]


@pytest.mark.parametrize("is_analysed", [False, True])
async def test_the_scan_reads_the_index_of_unfinished_events_in_its_order(
    database_site: Site, is_analysed: bool
) -> None:
    explain = "EXPLAIN QUERY PLAN " if database_site.url.startswith("sqlite") else "EXPLAIN "

    def plan(connection: sa.Connection, when: sa.ColumnElement[bool]) -> str:
        query = due_query(when, 1_000).compile(connection, compile_kwargs={"literal_binds": True})
        return "\n".join(str(tuple(row)) for row in connection.exec_driver_sql(explain + str(query)))

    async with open_database(database_site.url, migrations=MIGRATIONS) as database:
        await load_rows(database, finished=5_000, stuck=50)
        if is_analysed:
            await database.write(lambda connection: connection.exec_driver_sql("ANALYZE").close())
        for when in (EVENTS.c.due_ms <= NOW_MS, EVENTS.c.due_ms > NOW_MS + 60_000):
            said = await database.read(lambda connection, when=when: plan(connection, when))
            assert "settlement_due" in said, said
            assert "TEMP B-TREE" not in said
            assert "Seq Scan" not in said


async def test_the_scan_finds_exactly_the_stuck_ones_beside_many_finished(database_site: Site) -> None:
    figures = await selection_figures(database_site.url, finished=4_000, stuck=40)
    assert (figures.finished, figures.stuck) == (4_000, 40)
    assert 0 < figures.p50_ms <= figures.max_ms


async def test_events_and_accounts_may_share_one_server_database(postgres_url: str) -> None:
    async with open_events(postgres_url) as store, open_store(postgres_url) as accounts:
        await store.register([trade("a")])
        await accounts.open([("shop", "CNY")])
        assert (await accounts.account("shop")).available == 0
    async with open_events(postgres_url) as store, open_store(postgres_url) as accounts:
        assert await store.find(["a"]) == [trade("a")]
        assert [account.id for account in await accounts.accounts("", 10)] == ["shop"]
