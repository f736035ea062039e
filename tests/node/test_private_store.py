"""The sealed store of private channels: what lies on the disk, keys lost and wrong, bytes altered, many writers."""

import shutil
from pathlib import Path

import plyvel
import pytest

from consensus.ledger.errors import LocalError, StorageError
from consensus.ledger.ids import ChainId
from node.storage.leveldb import LevelStore
from node.storage.private import SealedStore

CHAIN = ChainId(b"c" * 32)
MARKER = b"investor 0042 buys 1,000.00"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir()
    return tmp_path


def open_store(folder: Path, chain_id: ChainId = CHAIN) -> SealedStore:
    return SealedStore.open(folder / "private", folder / "keys" / "private.key", chain_id)


async def test_values_come_back_after_a_restart_in_order_of_their_keys(folder: Path) -> None:
    store = open_store(folder)
    await store.write([(b"b2", b"two"), (b"a", b"other"), (b"b1", b"one"), (b"b3", b"three")])
    await store.write([(b"b2", None), (b"b3", b"")])
    store.close()
    store = open_store(folder)
    assert list(store.scan(b"b")) == [(b"b1", b"one"), (b"b3", b"")]
    assert list(store.scan(b"b", b"2")) == [(b"b3", b"")]
    assert (store.get(b"a"), store.get(b"b2")) == (b"other", None)
    store.close()


async def test_nothing_lies_on_the_disk_in_clear(folder: Path) -> None:
    store = open_store(folder)
    await store.write([(b"k%d" % number, MARKER * 100) for number in range(50)])
    store.close()
    plain = plyvel.DB(str(folder / "private"))
    values = [value for _, value in plain]
    plain.close()
    assert len(values) == 51  # and what says how it is sealed
    assert len(set(values)) == 51  # equal values do not look equal
    files = [path.read_bytes() for path in (folder / "private").iterdir()]
    assert not [data for data in [*values, *files] if MARKER in data]
    assert (folder / "keys" / "private.key").stat().st_mode & 0o777 == 0o600


async def test_a_lost_key_names_key_and_data_and_nothing_is_made_in_its_place(folder: Path) -> None:
    open_store(folder).close()
    key = folder / "keys" / "private.key"
    key.unlink()
    with pytest.raises(LocalError) as caught:
        open_store(folder)
    assert caught.value.code == "key_lost"
    assert str(key) in caught.value.message
    assert str(folder / "private") in caught.value.message
    assert not key.exists()


async def test_another_key_opens_nothing(folder: Path) -> None:
    open_store(folder).close()
    (folder / "keys" / "private.key").write_bytes(bytes(32))
    with pytest.raises(StorageError) as caught:
        open_store(folder)
    assert caught.value.code == "not_sealed_here"


@pytest.mark.parametrize(("content", "mode"), [(bytes(31), 0o600), (b"", 0o600), (bytes(32), 0o644)])
async def test_a_key_file_that_is_none_or_that_others_may_read_is_refused(
    folder: Path, content: bytes, mode: int
) -> None:
    key = folder / "keys" / "private.key"
    key.write_bytes(content)
    key.chmod(mode)
    with pytest.raises(LocalError) as caught:
        open_store(folder)
    assert caught.value.code == "bad_key"


async def test_data_of_another_chain_are_refused(folder: Path) -> None:
    open_store(folder).close()
    with pytest.raises(LocalError) as caught:
        open_store(folder, ChainId(b"d" * 32))
    assert caught.value.code == "wrong_chain"


async def test_altered_moved_and_strange_values_are_found_out(folder: Path) -> None:
    store = open_store(folder)
    await store.write([(b"a", b"one"), (b"b", b"two")])
    store.close()
    plain = LevelStore.open(folder / "private")
    sealed = plain.get(b"a") or b""
    plain.write([(b"a", sealed[:-1] + bytes([sealed[-1] ^ 1])), (b"c", plain.get(b"b")), (b"d", b"")])
    plain.close()
    store = open_store(folder)
    for key in (b"a", b"c", b"d"):
        with pytest.raises(StorageError):
            store.get(key)
        with pytest.raises(StorageError):
            list(store.scan(key))
    assert store.get(b"b") == b"two"
    store.close()


async def test_data_that_do_not_say_how_they_are_sealed_are_refused(folder: Path) -> None:
    plain = LevelStore.open(folder / "private")
    plain.write([(b"a", b"plain")])
    plain.close()
    (folder / "keys" / "private.key").write_bytes(bytes(32))
    (folder / "keys" / "private.key").chmod(0o600)
    with pytest.raises(StorageError) as caught:
        open_store(folder)
    assert caught.value.code == "corrupted"


async def test_an_older_copy_of_the_folder_opens(folder: Path) -> None:
    """Nobody can tell from the folder alone; the channel's numbers do."""
    store = open_store(folder)
    await store.write([(b"a", b"one")])
    store.close()
    shutil.copytree(folder / "private", folder / "copy")
    store = open_store(folder)
    await store.write([(b"a", b"two")])
    store.close()
    shutil.rmtree(folder / "private")
    (folder / "copy").rename(folder / "private")
    store = open_store(folder)
    assert store.get(b"a") == b"one"
    store.close()
