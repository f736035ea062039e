"""One flipped bit anywhere in a stopped database is found, by LevelDB or by what looks at the rest."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from consensus.ledger.errors import LocalError, StorageError
from node.storage.check import check_files, masked_checksum
from node.storage.leveldb import LevelStore

FLIPS = 120


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a table and a log, closed in order."""
    folder = tmp_path_factory.mktemp("store") / "data"
    for start in (0, 400):
        store = LevelStore.open(folder)  # opening makes a table of the log
        for number in range(start, start + 400, 20):
            store.write((f"k{key:05}".encode(), f"{key}".encode() * 40) for key in range(number, number + 20))
        store.close()
    return folder


def holds(folder: Path) -> bool:
    """Check as ``chain verify`` does."""
    try:
        check_files(folder)
        store = LevelStore.open(folder)
        try:
            assert sum(1 for _ in store.scan(b"")) == 800
        finally:
            store.close()
    except (StorageError, LocalError):
        return False
    return True


def copies(database: Path, tmp_path: Path) -> Iterator[Path]:
    for number in range(FLIPS):
        yield shutil.copytree(database, tmp_path / str(number))


def test_checksum_is_that_of_rfc_3720() -> None:
    crc = int.from_bytes(masked_checksum(bytes(32)), "little") - 0xA282EAD8 & 0xFFFFFFFF
    assert (crc << 15 | crc >> 17) & 0xFFFFFFFF == 0x8A9136AA


@pytest.mark.parametrize("pattern", ["*.ldb", "*.log", "MANIFEST-*"])
def test_a_flipped_bit_anywhere_is_found(database: Path, tmp_path: Path, pattern: str) -> None:
    random = Random(pattern)
    (size,) = (path.stat().st_size for path in database.glob(pattern))
    # Half of the places near the end, where a table has its filter and footer.
    places = [random.randrange(size) for _ in range(FLIPS // 2)]
    places += [random.randrange(max(0, size - 2_000), size) for _ in range(FLIPS // 2)]
    for place, folder in zip(places, copies(database, tmp_path), strict=True):
        (path,) = folder.glob(pattern)
        content = bytearray(path.read_bytes())
        content[place] ^= 1 << random.randrange(8)
        path.write_bytes(content)
        assert not holds(folder), f"{path.name} at {place} of {size}"


def test_a_whole_database_and_one_whose_last_write_was_cut_off_hold(database: Path, tmp_path: Path) -> None:
    assert holds(shutil.copytree(database, tmp_path / "whole"))
    cut = shutil.copytree(database, tmp_path / "cut")
    (log,) = cut.glob("*.log")
    log.write_bytes(log.read_bytes() + bytes.fromhex("0102030440000100"))
    (cut / "000999.ldb").write_bytes(b"a table that was being made")
    assert holds(cut)
    for table in cut.glob("*.ldb"):
        table.unlink()
    with pytest.raises(StorageError, match=r"ldb is missing"):
        check_files(cut)


def test_what_leveldb_says_is_text(database: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(database, tmp_path / "data")
    (table,) = folder.glob("*.ldb")
    content = bytearray(table.read_bytes())
    content[100] ^= 1
    table.write_bytes(content)
    store = LevelStore.open(folder)
    with pytest.raises(StorageError) as caught:
        list(store.scan(b""))
    store.close()
    assert "b'" not in caught.value.message
