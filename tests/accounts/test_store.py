"""The books in a database, the same on SQLite and on PostgreSQL: histories, races, clocks, pages, new starts."""

import random
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy
import trio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.accounts import tables
from services.accounts.ledger import ISSUED_MAX
from services.accounts.port import Answer, Operation, Order
from services.accounts.store import MIGRATIONS, AccountStore, open_store
from services.client.errors import Refused
from services.local.database import open_database
from services.local.schema import version_table
from services.settlement.database import open_events
from services.settlement.states import State
from tests.accounts.model import Model
from tests.accounts.support import PAY, RELEASE, RESERVE, order

NAMES = ("a", "b", "c", "far")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/accounts.db"
    return str(request.getfixturevalue("postgres_url"))


async def opened(store: AccountStore, amount: int = 100) -> None:
    await store.open([("buyer", "CNY"), ("shop", "CNY")])
    await store.deposit("opening", "buyer", amount)


def drawn(draw: random.Random) -> Order:
    """One of 60 events with terms of their own, seldom with others, in any operation."""
    number = draw.randrange(60)
    payer, payee = NAMES[number % 3], NAMES[(number + 1) % 3]
    amount = 5 + number + (draw.random() < 0.03)
    currency = "EUR" if draw.random() < 0.03 else "CNY"
    return Order(
        f"t-{number}", draw.choice(list(Operation)), payer, "nobody" if number == 7 else payee, amount, currency
    )


async def test_histories_in_batches_are_as_the_second_account_system_says(url: str) -> None:
    """Doubled within a batch and between batches, the store opened anew twice in the middle."""
    draw = random.Random(1)
    model = Model(dict.fromkeys(NAMES, "CNY") | {"far": "EUR"})
    first: dict[tuple[str, Operation], Answer] = {}
    for start in range(3):
        async with open_store(url, now_ms=lambda: draw.randrange(1, 1_000)) as store:
            if not start:
                await store.open(list(model.currencies.items()))
            for _ in range(20):
                name = draw.choice(NAMES[:3])
                await store.deposit(f"d-{len(model.deposits)}", name, 30)
                model.deposits.append((name, 30))
                if model.frozen or draw.random() < 0.3:
                    model.frozen = set() if model.frozen else {name}
                    for other in NAMES:
                        await store.freeze(other, is_frozen=other in model.frozen)
                orders = [drawn(draw) for _ in range(draw.randrange(1, 30))]
                expected = [model.run(one) for one in orders]
                answers = await store.run(orders)
                assert [answer.code for answer in answers] == [
                    "" if code in ("done", "same") else code for code in expected
                ]
                for answer in answers:
                    if answer.is_done:
                        assert first.setdefault((answer.event, answer.operation), answer) == answer
            await check_books(store, model)
    counts = Counter(operation for _, operation in first)
    assert min(counts[operation] for operation in Operation) >= 8, counts


async def check_books(store: AccountStore, model: Model) -> None:
    """See balances, what stands and all postings against the model."""
    balances = model.balances()
    accounts = await store.accounts("", 100)
    assert [account.id for account in accounts] == sorted(NAMES)
    for account in accounts:
        assert (account.available, account.held) == (balances[account.id, "available"], balances[account.id, "held"])
        assert account.is_frozen == (account.id in model.frozen)
    assert await store.money() == {"CNY": -balances["WORLD", "CNY"]}
    for standing in await store.look_up([f"t-{number}" for number in range(60)]):
        if standing is not None:
            times = (standing.reserved_ms, standing.paid_ms, standing.released_ms, standing.reversed_ms)
            done = {one.operation for one in model.done if one.event == standing.event}
            assert {operation for operation, time in zip(Operation, times, strict=True) if time} == done
    page = await store.entries(from_ms=0, until_ms=1 << 62, after=0, limit=1_000)
    tombstones = sum(1 for one in model.done if one.operation is RELEASE) - sum(
        e.operation == "release" for e in page.items
    )
    assert len(page.items) == len(model.deposits) + len(model.done) - tombstones
    places = [(entry.time_ms, entry.number) for entry in page.items]
    assert places == sorted(places)
    assert {number for _, number in places} == set(range(1, len(page.items) + 1))


async def test_a_thousand_equal_orders_at_once_have_one_effect_and_one_answer(url: str) -> None:
    answers: list[Answer] = []
    async with open_store(url) as store:
        await opened(store)

        async def ask() -> None:
            answers.extend(await store.run([order(PAY)]))

        async with trio.open_nursery() as nursery:
            for _ in range(1_000):
                nursery.start_soon(ask)
        assert len(answers) == 1_000
        assert {(answer.code, answer.time_ms) for answer in answers} == {("", answers[0].time_ms)}
        assert [account.available for account in await store.accounts("", 9)] == [70, 30]
        assert len((await store.entries(from_ms=0, until_ms=1 << 62, after=0, limit=9)).items) == 2


async def test_what_is_there_is_held_once_however_many_want_it(url: str) -> None:
    codes: list[str] = []
    async with open_store(url) as store:
        await opened(store)

        async def ask(number: int) -> None:
            codes.extend(answer.code for answer in await store.run([order(RESERVE, f"t-{number}", amount=3)]))

        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(ask, number)
        assert (codes.count(""), codes.count("insufficient_funds")) == (33, 27)
        buyer = await store.account("buyer")
        assert (buyer.available, buyer.held) == (1, 99)


async def test_a_deposit_counts_once_for_its_reference(url: str) -> None:
    async with open_store(url) as store:
        await opened(store)
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(store.deposit, "d-1", "shop", 7)
        assert (await store.account("shop")).available == 7
        assert await store.money() == {"CNY": 107}
        for account, amount in (("shop", 8), ("buyer", 7)):
            with pytest.raises(Refused) as refusal:
                await store.deposit("d-1", account, amount)
            assert refusal.value.code == "operation_conflict"
        for reference, account, code in (("d-2", "nobody", "unknown_account"), ("d-3", "shop", "overflow")):
            with pytest.raises(Refused) as refusal:
                await store.deposit(reference, account, ISSUED_MAX)
            assert refusal.value.code == code
        assert (await store.deposit("d-3", "shop", 1)).available == 8  # what was refused left no trace
        await store.open([("rich", "EUR")])
        assert (await store.deposit("d-4", "rich", ISSUED_MAX)).available == ISSUED_MAX


async def test_accounts_are_opened_all_or_none_and_pages_of_them_follow_one_another(url: str) -> None:
    async with open_store(url) as store:
        await opened(store)
        with pytest.raises(Refused) as refusal:
            await store.open([("new", "CNY"), ("shop", "EUR")])
        assert refusal.value.code == "account_exists"
        again = await store.open([("shop", "CNY"), ("new", "EUR"), ("new", "EUR"), ("Z", "CNY"), ("a:1", "CNY")])
        assert [(account.id, account.currency) for account in again[:3]] == [
            *(("shop", "CNY"), ("new", "EUR"), ("new", "EUR")),
        ]
        first = await store.accounts("", 2)
        rest = await store.accounts(first[-1].id, 9)
        assert [account.id for account in first + rest] == ["Z", "a:1", "buyer", "new", "shop"]  # by their bytes
        with pytest.raises(Refused) as refusal:
            await store.account("nobody")
        assert refusal.value.code == "unknown_account"


async def test_a_clock_that_jumps_hides_no_posting_and_none_comes_twice(url: str) -> None:
    """Ahead by a year and back: what comes after has the right time again, and pages go on all the same."""
    now_ms = 5_000
    async with open_store(url, now_ms=lambda: now_ms) as store:
        await opened(store)
        times = (6_000, 10**9, 6_500, 0, 6_002, 7_000, 6_999)
        for number, now_ms in enumerate(times):
            (answer,) = await store.run([order(PAY, f"t-{number}", amount=1)])
            assert answer.time_ms == max(1, now_ms)
        found, after = [], 0
        while True:
            page = await store.entries(from_ms=6_000, until_ms=7_000, after=after, limit=1)
            found += [entry.event for entry in page.items]
            if not (after := page.next):
                break
        assert found == ["t-0", "t-4", "t-2", "t-6"]  # by time, and in it by number
        assert [
            entry.event for entry in (await store.entries(from_ms=8_000, until_ms=1 << 62, after=0, limit=9)).items
        ] == ["t-1"]


async def test_pages_of_postings_follow_one_another_and_end(url: str) -> None:
    now_ms = 1_000
    async with open_store(url, now_ms=lambda: now_ms) as store:
        await opened(store)
        for number in range(10):
            now_ms += number % 2  # two of each time
            await store.run([order(PAY, f"t-{number}", amount=1)])
        found, after = [], 0
        while True:
            page = await store.entries(from_ms=1_001, until_ms=1_005, after=after, limit=3)
            found += [entry.event for entry in page.items]
            assert len(page.items) <= 3
            if not (after := page.next):
                break
            assert after == page.items[-1].number
        assert found == [f"t-{number}" for number in range(1, 9)]
        assert (await store.entries(from_ms=1_001, until_ms=1_005, after=10**6, limit=3)).items == []
        assert (await store.entries(from_ms=2_000, until_ms=1 << 62, after=0, limit=3)).items == []


async def test_many_orders_of_many_accounts_are_one_request(url: str) -> None:
    async with open_store(url) as store:
        names = [f"n-{number:04}" for number in range(1_000)]
        await store.open([(name, "CNY") for name in names])
        await store.deposit("d-1", names[0], 10)
        orders = [order(PAY, f"t-{n}", amount=10, payer=names[n - 1], payee=names[n]) for n in range(1, 1_000)]
        assert all(answer.is_done for answer in await store.run(orders))  # each pays with what the one before paid it
        assert [account.id for account in await store.accounts("", 2_000) if account.available] == [names[-1]]
        assert await store.look_up(["nothing", "t-5"]) == [None, (await store.look_up(["t-5"]))[0]]


async def test_the_steps_make_the_tables_that_the_program_expects(url: str) -> None:
    def differences(connection: sqlalchemy.Connection) -> list[object]:
        options = {"version_table": version_table(MIGRATIONS), "compare_type": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata))

    async with open_database(url, migrations=MIGRATIONS) as database:
        assert await database.read(differences) == []


async def test_the_tables_themselves_refuse_what_the_rules_never_do(url: str) -> None:
    """A second posting of an operation, a part below zero, an event both paid and given up."""
    async with open_store(url) as store:
        await opened(store)
        await store.run([order(RESERVE), order(PAY)])
    wrongs = (
        "INSERT INTO account_entries VALUES (9, 't-1', 'pay', 'x', 'y', 1, 'CNY', 1)",
        "INSERT INTO account_entries VALUES (9, 't-9', 'pay', 'x', 'y', 0, 'CNY', 1)",
        "UPDATE accounts SET available = -1",
        "UPDATE accounts SET held = -1",
        "UPDATE account_standings SET released_ms = 1",
        "UPDATE account_standings SET paid_ms = 0, reversed_ms = 1",
    )
    async with open_database(url, migrations=MIGRATIONS) as database:
        for wrong in wrongs:
            with pytest.raises(sqlalchemy.exc.IntegrityError):
                await database.write(lambda connection, wrong=wrong: connection.execute(sqlalchemy.text(wrong)))


async def test_one_server_may_hold_the_books_and_the_events(postgres_url: str) -> None:
    """Set-up gives both programs the same database."""
    async with open_store(postgres_url) as store, open_events(postgres_url) as events:
        await opened(store)
        assert await events.totals() == dict.fromkeys(State, 0)
    async with open_events(postgres_url), open_store(postgres_url) as store:
        assert (await store.account("buyer")).available == 100
