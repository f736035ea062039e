"""LevelDB's files cut, torn, lost and damaged: a batch is there whole or not at all, no older state ever passes."""

import ast
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from consensus.ledger.errors import LocalError, StorageError
from consensus.ledger.transaction import Transaction, make_call
from node.chain import Chain
from node.storage.leveldb import LevelStore
from tests.node.support import Consortium, extend, make_consortium, make_executor
from tests.test_tidy import PRODUCT, files_of, tree_of

LOG_BLOCK = 32 * 1024
PAGE = 4_096
RECORDS = 3
LIVES, PER_LIFE = 4, 6
BATCHES = LIVES * PER_LIFE


def batch(number: int, size: int) -> list[tuple[bytes, bytes | None]]:
    """Return the batch that makes ``number`` the head, with records of this size."""
    random = Random(number)
    records: list[tuple[bytes, bytes | None]] = [
        (b"r%d-%d" % (number, index), random.randbytes(size)) for index in range(RECORDS)
    ]
    return [*records, (b"head", b"%d" % number)]


def written(folder: Path, *sizes: int) -> Path:
    """Return a database with one batch of each size, never told that it would end."""
    store = LevelStore.open(folder)
    for number, size in enumerate(sizes):
        store.write(batch(number, size))
    store.close()  # LevelDB writes nothing when it closes: as after kill -9
    return folder


def found(folder: Path) -> int | None:
    """Return how many batches are there, each one whole; None when the store refuses."""
    try:
        store = LevelStore.open(folder)
    except StorageError:
        return None
    try:
        head = store.get(b"head")
        count = 0 if head is None else int(head) + 1
        records = dict(store.scan(b"r"))
        assert len(records) == RECORDS * count
        sizes = [len(records[b"r%d-0" % number]) for number in range(count)]
        assert all(records[key] == value for number in range(count) for key, value in batch(number, sizes[number])[:-1])
    except StorageError:
        return None
    finally:
        store.close()
    return count


def changed(folder: Path, place: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """Return a copy in which one file's content is another."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place)
    path = place / name
    path.write_bytes(change(path.read_bytes()))
    return place


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def test_r54_r58_a_batch_cut_at_any_byte_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", 40, 12)
    log = only(folder, "*.log")
    first = log.stat().st_size
    shutil.rmtree(folder)
    written(folder, 40, 12, 12)
    size = only(folder, "*.log").stat().st_size
    assert size - first > RECORDS * 12
    for end in range(first, size + 1):
        copy = changed(folder, tmp_path / "copy", log.name, lambda content, end=end: content[:end])
        assert found(copy) == (3 if end == size else 2), end


def test_r54_a_batch_of_many_pages_may_be_torn_anywhere(tmp_path: Path) -> None:
    """Pages reach the disk in any order: what lies before the end of the file may be missing too."""
    folder = written(tmp_path / "data", 40, 4 * PAGE)
    log = only(folder, "*.log")
    size = log.stat().st_size
    borders = [border + shift for border in range(LOG_BLOCK, size, LOG_BLOCK) for shift in (-8, -7, -1, 0, 1, 6, 7)]
    for end in [*borders, *range(PAGE, size, PAGE), size - 1]:
        copy = changed(folder, tmp_path / "copy", log.name, lambda content, end=end: content[:end])
        assert found(copy) == 1, end
    for start in range(PAGE, size - PAGE, PAGE):
        for filler in (bytes(PAGE), Random(start).randbytes(PAGE)):
            torn = changed(
                folder,
                tmp_path / "copy",
                log.name,
                lambda content, start=start, filler=filler: content[:start] + filler + content[start + PAGE :],
            )
            assert found(torn) in (None, 1), start


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database after some lives, so few that nothing was merged yet: a table a life, and the long log of the last."""
    folder = tmp_path_factory.mktemp("aged") / "data"
    for life in range(LIVES):
        store = LevelStore.open(folder)
        for number in range(PER_LIFE * life, PER_LIFE * (life + 1)):
            store.write(batch(number, 300 if life < LIVES - 1 else 3_000))
        store.close()
    return folder


def test_r54_a_missing_file_is_no_older_state(aged: Path, tmp_path: Path) -> None:
    names = [path.name for path in aged.iterdir() if not path.name.startswith(("LOG", "LOCK"))]
    assert len(names) >= 4
    assert found(shutil.copytree(aged, tmp_path / "whole")) == BATCHES
    for name in names:
        copy = shutil.copytree(aged, tmp_path / name)
        (copy / name).unlink()
        before = sorted(path.name for path in copy.iterdir())
        with pytest.raises(StorageError, match=name if name != "CURRENT" else "CURRENT is missing") as error:
            LevelStore.open(copy)
        assert error.value.code == "corrupted"
        assert sorted(path.name for path in copy.iterdir()) == before, "the refusal changed the folder"


@pytest.mark.parametrize("pattern", ["CURRENT", "MANIFEST-*", "*.ldb"])
def test_r54_a_cut_file_is_no_older_state(aged: Path, tmp_path: Path, pattern: str) -> None:
    for path in aged.glob(pattern):
        size = path.stat().st_size
        ends = range(size) if size < 1_000 else sorted(Random(1).sample(range(size), 20))
        for end in ends:
            copy = changed(aged, tmp_path / "copy", path.name, lambda content, end=end: content[:end])
            assert found(copy) is None, f"{path.name} cut at {end} of {size}"


def test_one_flipped_bit_anywhere_never_hides_a_record(aged: Path, tmp_path: Path) -> None:
    """A scan once ended quietly at a damaged last block of a table."""
    random = Random(7)
    for path in [*aged.glob("*.ldb"), *aged.glob("*.log"), *aged.glob("MANIFEST-*")]:
        size = path.stat().st_size
        places = random.sample(range(size), 25)
        for place in [*places, *range(max(0, size - 200), size, 7)]:

            def flip(content: bytes, place: int = place) -> bytes:
                return content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]

            assert found(changed(aged, tmp_path / "copy", path.name, flip)) in (None, BATCHES), (
                f"{path.name} at {place}"
            )


def test_a_scan_says_that_the_last_block_of_a_table_is_damaged(aged: Path, tmp_path: Path) -> None:
    table = max(aged.glob("*.ldb"), key=lambda path: path.stat().st_size)
    content = table.read_bytes()
    refused = 0
    for place in range(len(content) // 2, len(content) - 48, 301):

        def flip(content: bytes, place: int = place) -> bytes:
            return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

        store = LevelStore.open(changed(aged, tmp_path / "copy", table.name, flip))
        for reverse in (False, True):
            try:
                assert sum(1 for _ in store.scan(b"", reverse=reverse)) == BATCHES * RECORDS + 1
            except StorageError:
                refused += 1
        store.close()
    assert refused >= 10


HOLDER = """
import sys
from pathlib import Path
from node.storage.leveldb import LevelStore
store = LevelStore.open(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_database_that_another_process_writes_to_is_locked_whatever_its_files_look_like(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", 10)
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        (folder / "CURRENT").rename(tmp_path / "CURRENT")
        with pytest.raises(LocalError) as error:
            LevelStore.open(folder)
        assert error.value.code == "store_locked"
        holder.communicate()
    (tmp_path / "CURRENT").rename(folder / "CURRENT")
    assert found(folder) == 1


def test_a_file_that_cannot_be_read_is_a_storage_error(aged: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(aged, tmp_path / "copy")
    (copy / "999999.log").mkdir()
    with pytest.raises(StorageError) as error:
        LevelStore.open(copy)
    assert error.value.code == "disk_failed"


def test_r47_after_a_failed_write_the_store_takes_no_other(tmp_path: Path) -> None:
    """LevelDB itself would go on behind half a record, and lose it and all that follows at the next start."""
    store = LevelStore.open(tmp_path)
    store.write(batch(0, 100))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (only(tmp_path, "*.log").stat().st_size + 50, hard))
    try:
        with pytest.raises(StorageError) as error:
            store.write(batch(1, 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.code == "disk_failed"
    with pytest.raises(StorageError) as again:
        store.write(batch(1, 100))
    assert again.value.code == "disk_failed"
    store.close()
    assert found(tmp_path) == 1


# -- a block is applied once -------------------------------------------------------------------------------


def issue(consortium: Consortium, number: int) -> list[Transaction]:
    calls = [make_call("tokens", "define", {"unit": f"u{number}", "decimals": 2, "description": "-"})]
    return [consortium.sign("bank-a", calls, sequence=number)]


def test_r52_r58_a_crash_at_any_byte_of_a_commit_leaves_the_block_to_be_applied_once(tmp_path: Path) -> None:
    """Height, state, receipts and indexes are one batch: whatever survives, the next start goes on at one height."""
    consortium = make_consortium()
    store = LevelStore.open(tmp_path / "data")
    chain = Chain(store, consortium.genesis, make_executor())
    extend(chain, store, consortium, issue(consortium, 0))
    log = only(tmp_path / "data", "*.log")
    first = log.stat().st_size
    last = extend(chain, store, consortium, issue(consortium, 1))
    size = log.stat().st_size
    expected = dict(store.scan(b""))
    store.close()
    heights = set()
    for end in [*range(first, size, 149), size - 1, size]:
        copy = changed(tmp_path / "data", tmp_path / "copy", log.name, lambda content, end=end: content[:end])
        store = LevelStore.open(copy)
        chain = Chain(store, consortium.genesis, make_executor())
        heights.add(chain.head.header.height)
        if chain.head.header.height == 1:
            candidate = chain.check_untrusted(last.block)
            certificate = consortium.certify(candidate)
            store.write(chain.commit_batch(candidate, certificate))
            chain.adopt(candidate, certificate)
        assert chain.head.hash == last.block.hash
        assert dict(store.scan(b"")) == expected, end
        store.close()
    assert heights == {1, 2}


# -- how the product uses LevelDB --------------------------------------------------------------------------


def calls_of(attribute: str) -> Iterator[tuple[str, ast.Call]]:
    for path in files_of(*PRODUCT):
        for node in ast.walk(tree_of(path)):
            match node:
                case ast.Call(func=ast.Attribute(attr=attr)) if attr == attribute:
                    yield path, node


def test_r56_a_node_has_one_database(tmp_path: Path) -> None:
    """Nothing is atomic across two; that a running node opens no other is seen in its home in test_program.

    Private channels have their own, sealed, which shares no fact with the chain's: neither is written with the other.
    """
    assert [(path, ast.unparse(node.func)) for path, node in calls_of("DB")] == [
        ("node/storage/leveldb.py", "plyvel.DB")
    ]
    openers = [path for path, node in calls_of("open") if ast.unparse(node.func) == "LevelStore.open"]
    assert openers.count("node/storage/private.py") == 1
    assert openers.count("node/program.py") == 1
    assert {path for path in openers if path.startswith(("node/", "p2p/", "consensus/", "contracts/"))} <= {
        "node/program.py",
        "node/audit.py",
        "node/reindex.py",
        "node/network/rejoin.py",
        "node/network/traces.py",  # a copy of what a stopped node has left
        "node/storage/private.py",
    }


def test_r55_r57_every_batch_is_a_synced_transaction() -> None:
    found = [
        (path, {word.arg: ast.unparse(word.value) for word in node.keywords}) for path, node in calls_of("write_batch")
    ]
    assert found == [("node/storage/leveldb.py", {"transaction": "True", "sync": "True"})]
    tree = tree_of("node/storage/leveldb.py")
    direct = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("put", "delete") and ast.unparse(node.value) != "writes"
    ]
    assert direct == []


def test_r57_closing_waits_for_a_batch_under_way(tmp_path: Path) -> None:
    store = LevelStore.open(tmp_path)
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[tuple[bytes, bytes | None]]:
        yield b"a", b"1"
        begun.set()
        go_on.wait(60)
        yield b"b", b"2"

    writer = threading.Thread(target=store.write, args=(slow(),))
    closer = threading.Thread(target=store.close)
    writer.start()
    begun.wait(60)
    closer.start()
    assert writer.is_alive()
    assert store.get(b"a") is None  # still open, nothing of the batch there
    go_on.set()
    writer.join(60)
    closer.join(60)
    assert dict(LevelStore.open(tmp_path).scan(b"")) == {b"a": b"1", b"b": b"2"}
