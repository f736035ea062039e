"""What is particular to the store in a file: who may open it, what a bad disk looks like, and how much it takes."""

import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from consensus.ledger.errors import HansaError, LocalError, StorageError
from services.messages.embedded import DATABASE, EmbeddedStore
from services.messages.store import Change, Counts, State, Store
from tests.conftest import require
from tests.messages.stores import NOW_MS, EmbeddedSite, message

PAGE_BYTES = 4_096


async def code_of_opening(folder: Path) -> str:
    store = EmbeddedStore(folder)
    try:
        await store.open()
    except HansaError as error:
        return error.code
    await store.close()
    return ""


async def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    async with EmbeddedSite(tmp_path).opened():
        assert await code_of_opening(tmp_path) == "store_locked"
    assert await code_of_opening(tmp_path) == ""


async def test_a_store_is_opened_once_and_used_while_it_is_open(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path)
    with pytest.raises(LocalError) as caught:
        await store.counts()
    assert caught.value.code == "store_closed"
    await store.open()
    with pytest.raises(LocalError) as caught:
        await store.open()
    assert caught.value.code == "store_locked"
    await store.close()
    await store.close()
    assert await store.open() == 2
    await store.close()


async def test_another_writer_in_the_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.messages.embedded._BUSY_S", 0.0)
    async with EmbeddedSite(tmp_path).opened() as store:
        shell = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(LocalError) as caught:
            await store.append([message(1)], NOW_MS)
        assert caught.value.code == "store_locked"
        shell.execute("ROLLBACK")
        shell.close()
        await store.append([message(1)], NOW_MS)


async def test_other_formats_and_what_is_no_database_are_refused(tmp_path: Path) -> None:
    other, foreign, rubbish = tmp_path / "other", tmp_path / "foreign", tmp_path / "rubbish"
    async with EmbeddedSite(other).opened():
        pass
    foreign.mkdir()
    for folder, statement in ((other, "PRAGMA user_version = 2"), (foreign, "CREATE TABLE bodies (sequence)")):
        with sqlite3.connect(folder / DATABASE) as database:
            database.execute(statement)
        database.close()
        assert await code_of_opening(folder) == "wrong_format"
    rubbish.mkdir()
    (rubbish / DATABASE).write_bytes(b"rubbish" * 1_000)
    assert await code_of_opening(rubbish) == "corrupted"


async def test_a_damaged_page_is_found_at_the_start(tmp_path: Path) -> None:
    async with EmbeddedSite(tmp_path).opened() as store:
        await store.append([message(number, bytes(1_000)) for number in range(1, 101)], NOW_MS)
    content = bytearray((tmp_path / DATABASE).read_bytes())
    # A leaf of the index of keys, which nothing at the start would read: its first byte says what it is.
    places = range(PAGE_BYTES, len(content), PAGE_BYTES)
    place = next(place for place in places if content[place] == 0x0A and b"create/" in content[place:][:PAGE_BYTES])
    content[place + 3 : place + 8] = b"\xff" * 5
    (tmp_path / DATABASE).write_bytes(content)
    assert await code_of_opening(tmp_path) == "corrupted"


async def test_a_folder_that_cannot_be_is_a_disk_that_failed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert await code_of_opening(tmp_path / "file") == "disk_failed"


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


async def test_a_full_disk_is_told_and_nothing_is_half_done(small_disk: Path) -> None:
    async with EmbeddedSite(small_disk).opened() as store:
        with pytest.raises(StorageError) as caught:
            await _append_for_ever(store)
        assert caught.value.code == "disk_full"
        counts = await store.counts()
        total = counts.waiting
        assert total % 10 == 0
        assert counts == Counts(total, 0, 0, 0, 500 * total)
    async with EmbeddedSite(small_disk).opened() as store:
        assert await store.counts() == counts
        found = await store.find([message(number).key for number in range(total + 1)])
        assert [record and record.sequence for record in found] == [*range(1, total + 1), None]


async def _append_for_ever(store: Store) -> None:
    """Append ten messages a call."""
    for first in count(0, 10):
        await store.append([message(number, bytes(500)) for number in range(first, first + 10)], NOW_MS)


async def test_a_disk_without_any_room_opens_nothing(small_disk: Path) -> None:
    with suppress(OSError):
        _fill(small_disk / "filler")
    assert await code_of_opening(small_disk / "queue") == "disk_full"


def _fill(path: Path) -> None:
    """Write until there is no room for one byte more."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4_096))


async def test_what_ended_leaves_its_room_to_what_comes(tmp_path: Path) -> None:
    """2,000 messages wait at a time, and 20,000 go through."""
    sizes = []
    async with EmbeddedSite(tmp_path).opened() as store:
        for first in range(0, 20_000, 2_000):
            published = await store.append(
                [message(number, number.to_bytes(4) * 150) for number in range(first, first + 2_000)], NOW_MS + first
            )
            await store.change([Change(one.sequence, State.DONE, 1, "12 ab 3") for one in published], NOW_MS + first)
            await store.forget(0, 1_000)
            sizes.append(_size_of(tmp_path))
        assert await store.counts() == Counts(0, 1_000, 0, 0, 0)
    assert max(sizes) <= sizes[0] + (16 << 20)
    assert (tmp_path / DATABASE).stat().st_size <= 4 << 20


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


async def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    async with EmbeddedSite(tmp_path / "queue").opened():
        assert (tmp_path / "queue").stat().st_mode & 0o777 == 0o700
