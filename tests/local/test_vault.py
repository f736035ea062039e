"""The encrypted store, on real files."""

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.errors import LocalError, StorageError
from services.local import vault as vault_module
from services.local.vault import DATABASE, Vault, open_vault

MARKER = b"a marker that nobody else may read"


def opened(folder: Path) -> Vault:
    return Vault(folder / "data", folder / "vault.key")


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_what_is_written_is_there_again(tmp_path: Path) -> None:
    async with open_vault(tmp_path / "data", tmp_path / "vault.key") as vault:
        await vault.write([(b"a", b"1"), (b"b", b""), (b"c", b"3")])
        await vault.write([(b"a", b"2"), (b"c", None), (b"d", None)])
        await vault.write([])
    assert stat.S_IMODE((tmp_path / "vault.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "data" / DATABASE).stat().st_mode) == 0o600
    async with open_vault(tmp_path / "data", tmp_path / "vault.key") as vault:
        assert [vault.get(name) for name in (b"a", b"b", b"c", b"d")] == [b"2", b"", None, None]
        assert vault.get_many([b"b", b"z"]) == [b"", None]


async def test_nothing_lies_in_the_clear(tmp_path: Path) -> None:
    async with open_vault(tmp_path / "data", tmp_path / "vault.key") as vault:
        await vault.write([(vault.blind("order", MARKER.decode()), MARKER * 100)])
        files = files_in(tmp_path)
        assert any(name.endswith("-wal") for name in files)
        assert [name for name, content in files.items() if MARKER in content] == []


async def test_a_blinded_name_depends_on_parts_and_key(tmp_path: Path) -> None:
    first, second = opened(tmp_path / "1"), opened(tmp_path / "2")
    assert first.blind("ab", "c") == first.blind("ab", "c") != first.blind("a", "bc")
    assert len({first.blind("ab"), second.blind("ab"), first.blind("ab", ""), first.blind("")}) == 4
    first.close()
    second.close()


def few_bytes(size_min: int, size_max: int) -> st.SearchStrategy[bytes]:
    """Few values, so that keys, prefixes and edges meet."""
    return st.lists(st.sampled_from([0, 1, 254, 255]), min_size=size_min, max_size=size_max).map(bytes)


@given(
    names=st.sets(few_bytes(1, 3), max_size=40),
    prefix=few_bytes(0, 2),
    start=few_bytes(0, 2),
    is_reverse=st.booleans(),
    limit=st.none() | st.integers(0, 5),
)
def test_a_scan_is_what_a_sorted_map_gives(
    tmp_path_factory: pytest.TempPathFactory,
    names: set[bytes],
    prefix: bytes,
    start: bytes,
    is_reverse: bool,
    limit: int | None,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vault_module, "_PAGE_ROWS", 2)
        vault = shared_vault(tmp_path_factory)
        stale = [name for name, _ in vault.scan(b"")]
        trio.run(vault.write, [*((name, None) for name in stale), *((name, b"v" + name) for name in names)])
        wanted = sorted(name for name in names if name.startswith(prefix))
        if start:
            edge = prefix + start
            wanted = [name for name in wanted if (name <= edge if is_reverse else name >= edge)]
        wanted = (wanted[::-1] if is_reverse else wanted)[:limit]
        found = vault.scan(prefix, start, reverse=is_reverse, limit=limit)
        assert list(found) == [(name, b"v" + name) for name in wanted]


_shared: dict[str, Vault] = {}


def shared_vault(factory: pytest.TempPathFactory) -> Vault:
    """One vault for all examples of a property; each clears it."""
    if not _shared:
        _shared["vault"] = opened(factory.mktemp("vault"))
    return _shared["vault"]


@pytest.fixture(autouse=True, scope="module")
def _close_shared() -> object:
    yield
    for vault in _shared.values():
        vault.close()


def test_one_process_alone(tmp_path: Path) -> None:
    vault = opened(tmp_path)
    with pytest.raises(LocalError) as caught:
        opened(tmp_path)
    assert caught.value.code == "store_locked"
    vault.close()
    opened(tmp_path).close()


def test_a_lost_key(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "vault.key").unlink()
    with pytest.raises(LocalError) as caught:
        opened(tmp_path)
    assert caught.value.code == "key_lost"
    assert not (tmp_path / "vault.key").exists()


def test_another_key(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "vault.key").write_bytes(os.urandom(32))
    with pytest.raises(StorageError) as caught:
        opened(tmp_path)
    assert caught.value.code == "not_sealed_here"


@pytest.mark.parametrize(("mode", "size", "code"), [(0o644, 32, "key_permissions"), (0o600, 31, "bad_key")])
def test_a_bad_key_file(tmp_path: Path, mode: int, size: int, code: str) -> None:
    (tmp_path / "vault.key").write_bytes(bytes(size))
    (tmp_path / "vault.key").chmod(mode)
    with pytest.raises(LocalError) as caught:
        opened(tmp_path)
    assert caught.value.code == code


async def test_values_stay_where_they_were_sealed(tmp_path: Path) -> None:
    async with open_vault(tmp_path / "data", tmp_path / "vault.key") as vault:
        await vault.write([(b"rich", b"1000000"), (b"poor", b"1")])
    with sqlite3.connect(tmp_path / "data" / DATABASE) as database:
        database.execute(
            "UPDATE map SET value = (SELECT value FROM map WHERE name = ?) WHERE name = ?", (b"rich", b"poor")
        )
    database.close()
    async with open_vault(tmp_path / "data", tmp_path / "vault.key") as vault:
        assert vault.get(b"rich") == b"1000000"
        with pytest.raises(StorageError) as caught:
            vault.get(b"poor")
        assert caught.value.code == "not_sealed_here"


@pytest.mark.parametrize("damage", ["format", "bytes", "folder"])
def test_files_that_are_none(tmp_path: Path, damage: str) -> None:
    vault = opened(tmp_path)
    vault.close()
    path = tmp_path / "data" / DATABASE
    if damage == "format":
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 99")
        database.close()
    elif damage == "bytes":
        path.write_bytes(b"not a database at all" * 500)
    else:
        shutil.rmtree(tmp_path / "data")
        (tmp_path / "data").write_text("a file")
    with pytest.raises(StorageError) as caught:
        opened(tmp_path)
    assert caught.value.code == {"format": "wrong_format", "bytes": "corrupted", "folder": "disk_failed"}[damage]


async def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_vault(tmp_path / "data", tmp_path / "vault.key") as vault:
        for name, value in ((b"", b"x"), (bytes(513), b"x"), (b"n", bytes(vault_module.VALUE_BYTES_MAX + 1))):
            with pytest.raises(LocalError) as caught:
                await vault.write([(b"first", b"1"), (name, value)])
            assert caught.value.code == "too_large"
        assert vault.get(b"first") is None
        monkeypatch.setattr(vault_module, "SEALED_MAX", 3)
        await vault.write([(b"a", b"1")])
        with pytest.raises(StorageError) as worn:
            await vault.write([(b"b", b"1"), (b"c", b"1")])
        assert worn.value.code == "key_worn"
    async with open_vault(tmp_path / "data", tmp_path / "vault.key") as vault:
        with pytest.raises(StorageError):
            await vault.write([(b"b", b"1"), (b"c", b"1")])


def test_all_or_nothing_through_a_kill(tmp_path: Path) -> None:
    """Killed at any moment, pairs of one write are there together, and what was reported is there."""
    program = (
        "import trio, sys; from pathlib import Path; from services.local.vault import Vault\n"
        "vault = Vault(Path(sys.argv[1]) / 'data', Path(sys.argv[1]) / 'vault.key')\n"
        "async def main():\n"
        "    for n in range(10**9):\n"
        "        await vault.write([(b'%d' % i, b'%d' % n) for i in range(20)])\n"
        "        print(n, flush=True)\n"
        "trio.run(main)"
    )
    for lines in (1, 7, 30):
        with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as process:
            if process.stdout is None:
                pytest.fail("no pipe")
            reported = [int(process.stdout.readline()) for _ in range(lines)][-1]
            process.send_signal(signal.SIGKILL)
            reported = max([reported, *(int(line) for line in process.stdout.read().split(b"\n")[:-1])])
        vault = opened(tmp_path)
        found = {vault.get(b"%d" % place) for place in range(20)}
        vault.close()
        assert len(found) == 1
        assert int(found.pop() or b"-1") >= reported


async def test_a_thousand_values_in_one_write(tmp_path: Path) -> None:
    async with open_vault(tmp_path / "data", tmp_path / "vault.key") as vault:
        begin = time.perf_counter()
        await vault.write([(b"%08d" % number, os.urandom(1_000)) for number in range(1_000)])
        written = time.perf_counter()
        assert sum(1 for _ in vault.scan(b"")) == 1_000
        print(f"1,000 values of 1 KB: written in {1e3 * (written - begin):.0f} ms, read in "
              f"{1e3 * (time.perf_counter() - written):.0f} ms")  # fmt: skip
        assert written - begin < 2
