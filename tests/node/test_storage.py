"""The store on LevelDB: whole batches or nothing, order, and what happens when the disk lies."""

from collections.abc import Iterator
from pathlib import Path

import plyvel
import pytest

from consensus.ledger.errors import LocalError, StorageError
from node.storage import layout
from node.storage.leveldb import LevelStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LevelStore]:
    store = LevelStore.open(tmp_path / "data")
    yield store
    store.close()


def test_a_batch_is_read_back_and_removes_what_it_says(store: LevelStore) -> None:
    store.write([(b"a", b"1"), (b"b", b"2")])
    store.write([(b"a", None), (b"c", b"3")])
    assert [store.get(key) for key in (b"a", b"b", b"c")] == [None, b"2", b"3"]


def test_scan_stays_within_its_prefix_and_starts_where_it_is_told(store: LevelStore) -> None:
    store.write([(key, b"") for key in (b"a\xff", b"b", b"b\x00", b"b\x01", b"b\xff\xff", b"c")])
    assert [key for key, _ in store.scan(b"b")] == [b"b", b"b\x00", b"b\x01", b"b\xff\xff"]
    assert [key for key, _ in store.scan(b"b", b"\x01")] == [b"b\x01", b"b\xff\xff"]
    assert [key for key, _ in store.scan(b"b", reverse=True)] == [b"b\xff\xff", b"b\x01", b"b\x00", b"b"]
    assert [key for key, _ in store.scan(b"b", b"\x01", reverse=True)] == [b"b\x00", b"b"]


def test_scan_of_the_last_prefix_has_no_end_key(store: LevelStore) -> None:
    store.write([(b"\xff\xff", b"1"), (b"\xff\xffa", b"2")])
    assert len(list(store.scan(b"\xff\xff"))) == 2


def test_r57_an_exception_within_a_batch_writes_nothing(store: LevelStore) -> None:
    def failing() -> Iterator[tuple[bytes, bytes]]:
        yield b"a", b"1"
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        store.write(failing())
    assert store.get(b"a") is None


def test_what_was_written_is_there_after_opening_again(tmp_path: Path) -> None:
    store = LevelStore.open(tmp_path)
    store.write([(b"a", b"1")])
    store.close()
    again = LevelStore.open(tmp_path)
    assert again.get(b"a") == b"1"
    again.close()


def test_a_second_process_is_refused(store: LevelStore, tmp_path: Path) -> None:
    with pytest.raises(LocalError) as refusal:
        LevelStore.open(tmp_path / "data")
    assert refusal.value.code == "store_locked"


def test_a_damaged_table_is_a_storage_error_not_a_value(tmp_path: Path) -> None:
    store = LevelStore.open(tmp_path)
    store.write([(number.to_bytes(4, "big"), bytes(100)) for number in range(1_000)])
    store.close()
    LevelStore.open(tmp_path).close()  # Moves the log into a table.
    table = max(tmp_path.glob("*.ldb"), key=lambda path: path.stat().st_size)
    content = bytearray(table.read_bytes())
    content[100] ^= 1
    table.write_bytes(content)
    damaged = LevelStore.open(tmp_path)
    with pytest.raises(StorageError) as error:
        list(damaged.scan(b""))
    assert error.value.code == "corrupted"
    damaged.close()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (layout.at_height(layout.BLOCK, 7), "block 7"),
        (layout.VALIDATORS, "validator set"),
        (layout.STATE + b"tokens/a", "state tokens/a"),
        (layout.TRANSACTION + b"\xff", "transaction index 0xff"),
        (layout.META_HEAD, "meta head"),
        (b"", "record"),
    ],
)
def test_every_record_has_a_name_for_people(key: bytes, name: str) -> None:
    assert layout.describe(key) == name


def test_a_full_disk_is_told_from_one_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for reason, code in (("No space left on device", "disk_full"), ("Input/output error", "disk_failed")):

        def refuse(*_: object, reason: str = reason, **__: object) -> None:
            raise plyvel.IOError(f"IO error: 000003.log: {reason}")

        monkeypatch.setattr(plyvel, "DB", refuse)
        with pytest.raises(StorageError) as error:
            LevelStore.open(tmp_path)
        assert error.value.code == code
