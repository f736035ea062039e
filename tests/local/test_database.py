"""A store in tables: groups of works, one moment for readers, what goes wrong, and servers that go away."""

import os
import select
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
import trio.testing

from bench.postgres import PostgresCluster
from consensus.ledger.errors import HansaError, LocalError, StorageError
from services.client.errors import Unreachable
from services.local.database import GROUP_MAX, Database, open_database
from services.local.rows import insert_new, insert_or_update, lists_of
from tests.conftest import require

OLDER = "tests.local.steps.older.things.migrations"
NEWER = "tests.local.steps.newer.things.migrations"
THINGS = sa.table("things", sa.column("name"), sa.column("number"))
TABLE = sa.Table("things", sa.MetaData(), sa.Column("name", sa.Text, primary_key=True), sa.Column("number", sa.Integer))

opened = partial(open_database, migrations=OLDER)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a store on each database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/things.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


def put(name: str, number: int, connection: sa.Connection) -> int:
    """Keep a thing, also when it is there already."""
    connection.execute(insert_or_update(connection.dialect.name, TABLE), {"name": name, "number": number})
    return number


def names(connection: sa.Connection) -> list[str]:
    return sorted(connection.scalars(sa.select(THINGS.c.name)))


async def code_of_opening(url: str, migrations: str = OLDER) -> str:
    try:
        async with open_database(url, migrations=migrations):
            return ""
    except HansaError as error:
        return error.code


async def test_works_of_many_callers_share_transactions(url: str) -> None:
    transactions = set()
    numbers = []

    def work(number: int, connection: sa.Connection) -> int:
        transactions.add(connection.get_transaction())
        return put(f"t{number:04}", number, connection)

    async with opened(url) as database, trio.open_nursery() as nursery:

        async def write(number: int) -> None:
            numbers.append(await database.write(partial(work, number)))

        for number in range(1_000):
            nursery.start_soon(write, number)
    assert sorted(numbers) == list(range(1_000))
    assert len(transactions) <= 1_000 // GROUP_MAX + 2
    async with opened(url) as database:
        assert await database.read(names) == [f"t{number:04}" for number in range(1_000)]


async def test_a_work_that_raises_leaves_nothing_and_takes_nobody_with_it(url: str) -> None:
    def fail(connection: sa.Connection) -> None:
        put("half", 1, connection)
        raise LookupError("on purpose")

    async with opened(url) as database:
        await put_first_and_hold_the_rest(database, fail)
        assert await database.read(names) == ["a", "b", "first"]


async def put_first_and_hold_the_rest(database: Database, fail: object) -> None:
    """Let a good work, one that fails, and another good one wait together."""
    go_on = threading.Event()

    def first(connection: sa.Connection) -> None:
        put("first", 0, connection)
        assert go_on.wait(30)

    async def failing() -> None:
        with pytest.raises(LookupError, match="on purpose"):
            await database.write(fail)  # type: ignore[arg-type]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.write, first)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.start_soon(database.write, partial(put, "a", 1))
        nursery.start_soon(failing)
        nursery.start_soon(database.write, partial(put, "b", 2))
        await trio.testing.wait_all_tasks_blocked(0.01)
        go_on.set()


async def test_the_tables_rules_hold_and_are_the_works_own_errors(url: str) -> None:
    def twice(connection: sa.Connection) -> None:
        connection.execute(sa.insert(THINGS), [{"name": "a", "number": 1}, {"name": "a", "number": 2}])

    async with opened(url) as database:
        with pytest.raises(sa.exc.IntegrityError):
            await database.write(twice)
        with pytest.raises((sa.exc.OperationalError, sa.exc.ProgrammingError), match="nothing"):
            await database.write(lambda connection: connection.execute(sa.text("SELECT * FROM nothing_of_that_name")))
        assert await database.read(names) == []


async def test_a_reader_sees_one_moment(url: str) -> None:
    seen, written = threading.Event(), threading.Event()

    def look_twice(connection: sa.Connection) -> tuple[list[str], list[str]]:
        before = names(connection)
        seen.set()
        assert written.wait(30)
        return before, names(connection)

    async with opened(url) as database, trio.open_nursery() as nursery:

        async def read() -> None:
            assert await database.read(look_twice) == ([], [])

        nursery.start_soon(read)
        await trio.to_thread.run_sync(seen.wait, 30)
        await database.write(partial(put, "a", 1))
        written.set()
    async with opened(url) as database:
        assert await database.read(names) == ["a"]


async def test_what_a_reader_writes_is_not_kept(url: str) -> None:
    async with opened(url) as database:
        # A server refuses at once.
        with suppress(sa.exc.InternalError):
            await database.read(partial(put, "a", 1))
        assert await database.read(names) == []


async def test_who_is_cancelled_in_the_queue_has_no_effect_and_who_is_later_may(url: str) -> None:
    began, go_on = threading.Event(), threading.Event()

    def slow(connection: sa.Connection) -> None:
        put("slow", 1, connection)
        began.set()
        assert go_on.wait(30)

    async with opened(url) as database:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.write, slow)
            await trio.to_thread.run_sync(began.wait, 30)
            nursery.start_soon(database.write, partial(put, "waiting", 2))
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        go_on.set()
        await database.write(partial(put, "later", 3))
        assert await database.read(names) == ["later", "slow"]


async def test_a_store_has_one_owner_at_a_time_unless_it_is_shared(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.local.backends._LOCK_MS", 50)
    async with opened(url):
        assert await code_of_opening(url) == "store_locked"
    async with opened(url, is_shared=True) as one, opened(url, is_shared=True) as other:
        await one.write(partial(put, "a", 1))
        await other.write(partial(put, "b", 2))
        assert await one.read(names) == ["a", "b"]
    assert await code_of_opening(url) == ""


async def test_a_closed_store_says_so_also_to_who_waits(url: str) -> None:
    began, go_on = threading.Event(), threading.Event()
    codes = []

    def slow(_: sa.Connection) -> None:
        began.set()
        assert go_on.wait(30)

    async def write(database: Database, work: object) -> None:
        try:
            await database.write(work)  # type: ignore[arg-type]
            codes.append("")
        except LocalError as error:
            codes.append(error.code)

    async with trio.open_nursery() as nursery:
        async with opened(url) as database:
            nursery.start_soon(write, database, slow)
            await trio.to_thread.run_sync(began.wait, 30)
            nursery.start_soon(write, database, partial(put, "waiting", 1))
            await trio.testing.wait_all_tasks_blocked(0.01)
            go_on.set()
        await write(database, partial(put, "late", 1))
    assert sorted(codes) == ["", "store_closed", "store_closed"]
    with pytest.raises(LocalError) as caught:
        await database.read(names)
    assert caught.value.code == "store_closed"
    assert await code_of_opening(url) == ""


async def test_older_tables_are_brought_up_to_date_and_newer_ones_are_refused(url: str) -> None:
    async with opened(url) as database:
        await database.write(partial(put, "a", 1))
    async with open_database(url, migrations=NEWER) as database:
        rows = await database.read(lambda connection: connection.execute(sa.text("SELECT * FROM things")).all())
        assert [tuple(row) for row in rows] == [("a", 1, "grey")]
    async with open_database(url, migrations=NEWER):
        pass
    assert await code_of_opening(url) == "wrong_format"


async def test_a_step_that_breaks_leaves_the_older_tables(url: str) -> None:
    async with opened(url) as database:
        # What the second step would make is there, as another program's.
        await database.write(lambda connection: connection.execute(sa.text("CREATE INDEX colours ON things (name)")))
        await database.write(partial(put, "a", 1))
    with pytest.raises((sa.exc.DBAPIError, HansaError)):
        async with open_database(url, migrations=NEWER):
            pass
    async with opened(url) as database:
        columns = await database.read(lambda connection: sa.inspect(connection).get_columns("things"))
        assert [column["name"] for column in columns] == ["name", "number"]
        assert await database.read(names) == ["a"]


@pytest.mark.parametrize(
    "url",
    [
        *("", "things.db", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true", "mysql://h/x"),
        *(
            "postgresql+psycopg://host",
            "postgresql+asyncpg://host/x",
            "postgresql+psycopg://host:port/x",
            "nosql://x/y",
        ),
    ],
)
async def test_a_url_that_is_none_is_refused(url: str) -> None:
    assert await code_of_opening(url) == "bad_database"


def test_lists_have_few_lengths_and_hold_everything() -> None:
    for total in (0, 1, 2, 8, 9, 64, 65, 512, 513, 1_100):
        lists = list(lists_of(range(total)))
        assert {len(some) for some in lists} <= {1, 8, 64, 512}
        assert sorted({value for some in lists for value in some}) == list(range(total))


async def test_rows_that_are_there_already_are_left_out(url: str) -> None:
    def work(connection: sa.Connection) -> list[str]:
        rows = [{"name": name, "number": 9} for name in ("a", "b", "c")]
        return sorted(connection.scalars(insert_new(connection.dialect.name, TABLE, TABLE.c.name), rows))

    async with opened(url) as database:
        await database.write(partial(put, "b", 1))
        assert await database.write(work) == ["a", "c"]
        assert await database.write(work) == []
        query = sa.select(THINGS.c.number).order_by(THINGS.c.name)
        assert await database.read(lambda connection: list(connection.scalars(query))) == [9, 1, 9]


# -- SQLite ------------------------------------------------------------------------------------------------


async def test_other_programs_files_and_what_is_no_database_are_refused(tmp_path: Path) -> None:
    foreign, rubbish, file = tmp_path / "foreign.db", tmp_path / "rubbish.db", tmp_path / "file"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE other (number)")
    database.close()
    rubbish.write_bytes(b"rubbish" * 1_000)
    file.write_text("no folder")
    assert await code_of_opening(f"sqlite:///{foreign}") == "wrong_format"
    assert await code_of_opening(f"sqlite:///{rubbish}") == "corrupted"
    assert await code_of_opening(f"sqlite:///{file}/things.db") == "disk_failed"


async def test_a_shell_in_the_file_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.local.backends._BUSY_S", 0.0)
    url = f"sqlite:///{tmp_path}/things.db"
    async with opened(url):
        pass
    with closing(sqlite3.connect(tmp_path / "things.db", isolation_level=None)) as shell:
        async with opened(url, patience_s=0.3) as database, trio.open_nursery() as nursery:
            shell.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unreachable, match="locked") as caught:
                await database.write(partial(put, "a", 1))
            assert caught.value.code == "database_unreachable"
            nursery.start_soon(database.write, partial(put, "b", 2))
            await trio.testing.wait_all_tasks_blocked()
            shell.execute("ROLLBACK")
        shell.execute("BEGIN EXCLUSIVE")
        assert await code_of_opening(url) == "store_locked"


async def test_every_commit_is_synced_whatever_a_server_does_by_default(url: str) -> None:
    statement, wanted = "PRAGMA synchronous", 2
    if not url.startswith("sqlite"):
        statement, wanted = "SHOW synchronous_commit", "on"
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.execute(sa.text("ALTER ROLE hansa SET synchronous_commit = off"))
        engine.dispose()
    async with opened(url) as database:
        for run in (database.read, database.write):
            assert await run(lambda connection: connection.execute(sa.text(statement)).scalar_one()) == wanted


async def test_a_file_is_its_owners_alone_and_rows_do_not_wait_for_a_busy_loop(tmp_path: Path) -> None:
    before_s = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.005)
        async with opened(f"sqlite:///{tmp_path}/data/things.db"):
            assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
            assert {file.stat().st_mode & 0o777 for file in (tmp_path / "data").iterdir()} == {0o600}
            assert sys.getswitchinterval() < 0.001
    finally:
        sys.setswitchinterval(before_s)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "hansa-test", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        require("tmpfs", "mount is missing")
    except subprocess.CalledProcessError as error:
        require("tmpfs", f"no disk of its own can be mounted: {error.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_full_disk_is_told_nothing_is_half_done_and_room_mends_it(small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(600_000))
    url = f"sqlite:///{small_disk}/things.db"
    kept = []

    def pair(number: int, connection: sa.Connection) -> None:
        put(f"{number}-a" + "x" * 2_000, number, connection)
        put(f"{number}-b" + "x" * 2_000, number, connection)

    async def fill(database: Database) -> None:
        for number in count():
            await database.write(partial(pair, number))
            kept.append(number)

    async with opened(url) as database:
        with pytest.raises(StorageError) as caught:
            await fill(database)
        assert caught.value.code == "disk_full"
        assert [name.strip("x") for name in await database.read(names)] == sorted(
            f"{number}-{part}" for number in kept for part in "ab"
        )
        filler.unlink()
        await database.write(partial(pair, len(kept)))
    async with opened(url) as database:
        assert len(await database.read(names)) == 2 * len(kept) + 2


async def test_a_disk_without_any_room_opens_nothing(small_disk: Path) -> None:
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4_096))
    assert await code_of_opening(f"sqlite:///{small_disk}/sub/things.db") == "disk_full"


# -- PostgreSQL --------------------------------------------------------------------------------------------


@pytest.fixture
async def restarted(postgres_server: PostgresCluster) -> AsyncIterator[PostgresCluster]:
    """A server that the test may stop; it runs again afterwards."""
    yield postgres_server
    await trio.to_thread.run_sync(postgres_server.start)


@pytest.mark.slow
async def test_callers_outlast_a_server_that_is_restarted(restarted: PostgresCluster, postgres_url: str) -> None:
    """Three times in the middle of writing, at once, as after a crash."""
    numbers = count()
    answered: list[int] = []
    goals = [trio.Event() for _ in range(4)]

    async def write_and_read(database: Database) -> None:
        while not goals[-1].is_set():
            number = next(numbers)
            await database.write(partial(put, f"t{number}", number))
            assert f"t{number}" in await database.read(names)
            answered.append(number)
            if len(answered) % 100 == 0 and len(answered) <= 400:
                goals[len(answered) // 100 - 1].set()

    async with opened(postgres_url) as database, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(write_and_read, database)
        for goal in goals[:-1]:
            await goal.wait()
            await trio.to_thread.run_sync(restarted.stop)
            await trio.to_thread.run_sync(restarted.start)
    async with opened(postgres_url) as database:
        kept = await database.read(names)
    assert len(answered) >= 400
    assert {f"t{number}" for number in answered} == set(kept)


async def test_a_server_that_stays_away_is_said_and_comes_back(restarted: PostgresCluster, postgres_url: str) -> None:
    async with opened(postgres_url, patience_s=0.3) as database:
        await database.write(partial(put, "a", 1))
        await trio.to_thread.run_sync(restarted.stop)
        for run in (database.write, database.read):
            with pytest.raises(Unreachable) as caught:
                await run(names)
            assert caught.value.code == "database_unreachable"
        with pytest.raises(Unreachable):
            async with opened(postgres_url, patience_s=0.1):
                pass
        await trio.to_thread.run_sync(restarted.start)
        while True:
            try:
                await database.write(partial(put, "b", 1))
                break
            except Unreachable:
                continue
        assert await database.read(names) == ["a", "b"]


async def test_a_server_that_takes_no_writes_for_a_while_is_waited_for(postgres_url: str) -> None:
    refusals = 0

    def write(connection: sa.Connection) -> None:
        nonlocal refusals
        if refusals < 2:
            refusals += 1
            connection.execute(sa.text("SET TRANSACTION READ ONLY"))
        put("a", 1, connection)

    async with opened(postgres_url) as database:
        await database.write(write)
        assert await database.read(names) == ["a"]


async def test_who_lost_its_session_to_another_owner_writes_nothing_more(
    restarted: PostgresCluster, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.local.backends._LOCK_MS", 50)
    async with opened(postgres_url) as first:
        await first.write(partial(put, "a", 1))
        await trio.to_thread.run_sync(restarted.stop)
        await trio.to_thread.run_sync(restarted.start)
        async with opened(postgres_url) as second:
            for _ in range(2):
                async with trio.open_nursery() as nursery:
                    for _ in range(5):
                        nursery.start_soon(refused_write, first)
            assert await second.read(names) == ["a"]
        await first.write(partial(put, "c", 3))
        assert await first.read(names) == ["a", "c"]


async def refused_write(database: Database) -> None:
    with pytest.raises(LocalError) as caught:
        await database.write(partial(put, "b", 2))
    assert caught.value.code == "store_locked"


async def test_a_server_is_told_to_notice_when_we_vanish(postgres_url: str) -> None:
    query = sa.text("SELECT source FROM pg_settings WHERE name LIKE 'tcp_keepalives%'")
    async with opened(postgres_url) as database:
        for run in (database.read, database.write):
            assert await run(lambda connection: list(connection.scalars(query))) == 3 * ["client"]


async def test_a_server_that_says_nothing_is_not_waited_for_longer_than_said() -> None:
    (mute,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with mute:
        port = mute.socket.getsockname()[1]
        with pytest.raises(Unreachable) as caught, trio.fail_after(20):
            async with opened(f"postgresql+psycopg://hansa@127.0.0.1:{port}/x", patience_s=0.2):
                pass
        assert caught.value.code == "database_unreachable"
        assert "hansa@127.0.0.1" in str(caught.value)


async def test_a_server_that_changes_texts_or_holds_others_tables_is_refused(postgres_url: str) -> None:
    engine = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("CREATE TABLE things (number INTEGER)"))
        connection.execute(sa.text("DROP DATABASE IF EXISTS latin"))
        connection.execute(sa.text("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0"))
    engine.dispose()
    assert await code_of_opening(postgres_url) == "wrong_format"
    other = sa.make_url(postgres_url).set(database="latin").render_as_string(hide_password=False)
    assert await code_of_opening(other) == "bad_database"


async def test_a_server_that_does_not_sync_is_refused(postgres_url: str) -> None:
    engine = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")

    def set_fsync(statement: str, value: str) -> None:
        with engine.connect() as connection:
            connection.execute(sa.text(statement))
            connection.execute(sa.text("SELECT pg_reload_conf()"))
        # Each session takes it over when it hears of it.
        for _ in range(100_000):
            with engine.connect() as connection:
                if connection.execute(sa.text("SHOW fsync")).scalar_one() == value:
                    return
        raise AssertionError(statement)

    try:
        await trio.to_thread.run_sync(set_fsync, "ALTER SYSTEM SET fsync = off", "off")
        assert await code_of_opening(postgres_url) == "bad_database"
    finally:
        await trio.to_thread.run_sync(set_fsync, "ALTER SYSTEM RESET fsync", "on")
        engine.dispose()
    assert await code_of_opening(postgres_url) == ""


def test_a_server_of_a_test_ends_with_a_process_that_is_killed(postgres_server: PostgresCluster) -> None:
    program = (
        "from bench.postgres import postgres_server\n"
        "with postgres_server() as server:\n    print(server.folder, flush=True)\n    input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        server = int((folder / "data" / "postmaster.pid").read_text().split()[0])
        handle = os.pidfd_open(server)
        owner.kill()
        assert select.select([handle], [], [], 30)[0]
    os.close(handle)
    shutil.rmtree(folder)
