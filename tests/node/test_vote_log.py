"""A vote key and its log: every crash point of a start, every way the two can part."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from consensus.ledger.errors import StorageError
from consensus.ledger.keys import PrivateKey
from node import vote_log
from node.storage import layout
from node.storage.leveldb import LevelStore
from node.storage.store import Write

KEY = PrivateKey.from_secret(7).public.compressed
OTHER_KEY = PrivateKey.from_secret(8).public.compressed
VOTE = layout.VOTE + b"\2"


class Home:
    """A store and the folder of its keys."""

    def __init__(self, folder: Path) -> None:
        self.keys = folder / "keys"
        self.data = folder / "data"
        self.keys.mkdir(parents=True)
        self.store = LevelStore.open(self.data)

    @property
    def file(self) -> Path:
        return self.keys / vote_log.INCARNATION_FILE

    def start(self, key: bytes = KEY) -> tuple[bool, dict[bytes, bytes]]:
        return vote_log.open_log(self.store, self.keys, key)

    def restore(self, folder: Path) -> None:
        self.store.close()
        shutil.rmtree(self.data)
        shutil.copytree(folder, self.data)
        self.store = LevelStore.open(self.data)

    def copy(self, folder: Path) -> Path:
        self.store.close()
        shutil.copytree(self.data, folder)
        self.store = LevelStore.open(self.data)
        return folder


@pytest.fixture
def home(tmp_path: Path) -> Iterable[Home]:
    home = Home(tmp_path / "home")
    yield home
    home.store.close()


def test_the_log_is_found_again_at_every_start(home: Home) -> None:
    assert home.start() == (True, {})
    home.store.write([(VOTE, b"said")])
    for _ in range(3):
        assert home.start() == (True, {b"\2": b"said"})


@pytest.mark.parametrize("starts", [0, 1, 4])
@pytest.mark.parametrize("point", ["before_store", "before_file", "after_file"])
def test_a_crash_at_any_point_of_a_start_keeps_the_vote(
    home: Home, monkeypatch: pytest.MonkeyPatch, starts: int, point: str
) -> None:
    for _ in range(starts):
        assert home.start()[0]
    home.store.write([(VOTE, b"said")])

    class Crash(Exception):
        pass

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        if point == "before_store":
            patch.setattr(home.store, "write", crash)
        elif point == "before_file":
            patch.setattr(vote_log, "_write_synced", crash)
        else:
            patch.setattr(home.store, "scan", crash)
        with pytest.raises(Crash):
            home.start()
    assert home.start() == (True, {b"\2": b"said"})
    assert home.start()[0]


def test_r47_a_first_start_may_fail_between_its_writes_again_and_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("disk_failed", "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(vote_log, "_write_synced", refuse)
        for _ in range(3):
            with pytest.raises(StorageError):
                home.start()
    assert home.start() == (True, {})
    assert home.start() == (True, {})


def test_r49_a_wiped_store_does_not_vote_however_often_it_starts(home: Home, tmp_path: Path) -> None:
    empty = home.copy(tmp_path / "empty")
    home.start()
    home.restore(empty)
    assert [home.start() for _ in range(3)] == [(False, {})] * 3


def test_a_store_from_a_backup_does_not_vote(home: Home, tmp_path: Path) -> None:
    home.start()
    backup = home.copy(tmp_path / "backup")
    home.start()
    home.restore(backup)
    assert home.start() == (False, {})


def test_a_lost_file_beside_the_key_stops_voting_after_the_first_start(home: Home) -> None:
    home.start()
    home.start()
    home.file.unlink()
    assert home.start() == (False, {})


def test_two_homes_with_one_key_do_not_both_vote(home: Home, tmp_path: Path) -> None:
    home.start()
    twin = Home(tmp_path / "twin")
    shutil.copytree(home.keys, twin.keys, dirs_exist_ok=True)
    assert twin.start() == (False, {})
    twin.store.close()


def test_two_logs_of_one_key_are_not_taken_for_each_other(home: Home, tmp_path: Path) -> None:
    """Both began on their own and started as often: the count alone would not tell them apart."""
    home.start()
    home.start()
    twin = Home(tmp_path / "twin")
    twin.start()
    twin.start()
    shutil.copy(home.file, twin.file)
    assert twin.start() == (False, {})
    twin.store.close()


def test_a_new_key_in_an_old_store_begins_a_log_of_its_own(home: Home) -> None:
    home.start()
    home.start()
    assert home.start(OTHER_KEY)[0]
    assert home.start(OTHER_KEY)[0]


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x93\x01\x02\x03"])
def test_an_incarnation_that_cannot_be_read_is_damage_not_a_new_start(home: Home, content: bytes) -> None:
    home.start()
    home.file.write_bytes(content)
    with pytest.raises(StorageError, match="incarnation") as error:
        home.start()
    assert error.value.code == "corrupted"
    home.file.unlink()
    home.file.mkdir()
    with pytest.raises(StorageError) as error:
        home.start()
    assert error.value.code == "disk_failed"


def test_a_disk_that_refuses_either_copy_is_fatal(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(batch: Iterable[Write]) -> None:
        raise StorageError("disk_failed", "no space")

    with monkeypatch.context() as patch:
        patch.setattr(home.store, "write", refuse)
        with pytest.raises(StorageError):
            home.start()
    home.keys.rmdir()
    with pytest.raises(StorageError) as error:
        home.start()
    assert error.value.code == "disk_failed"
