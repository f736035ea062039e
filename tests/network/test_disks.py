"""Disks that fill up and databases that are damaged: the node stops and says why, the others go on, it comes back."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from consensus.ledger.block import transactions_root
from consensus.ledger.errors import LocalError
from node.network import local
from node.network.homes import LocalNetwork, NodeHome
from node.storage import layout
from node.storage.leveldb import LevelStore
from services.client.errors import Unreachable
from tests.conftest import require
from tests.network.kill_loop import more_acknowledged
from tests.network.statements import StatementBook
from tests.network.support import Load, client_of, missing, not_held, open_campaign, running_network, same_block

pytestmark = [pytest.mark.network, pytest.mark.slow]

EXIT_STORAGE = 3
SUBMITTERS = 4
SMALL_BYTES, LARGE_BYTES = 6 * 1024 * 1024, 64 * 1024 * 1024
LEFT_BYTES = 150_000
"""What others leave of the small disk: a few blocks fit."""
FAILURE_S = 60


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a folder that is a small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "hansa-test", str(folder)]
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


async def test_a_node_whose_disk_is_full_stops_says_so_and_goes_on_once_there_is_room(
    tmp_path: Path, small_disk: Path
) -> None:
    async with running_network(tmp_path / "net") as network:
        await open_campaign(network)
        home = network.nodes[-1]
        await local.stop(network, [home.name])
        shutil.copytree(home.folder, small_disk, dirs_exist_ok=True)
        shutil.rmtree(home.folder)
        home.folder.symlink_to(small_disk)
        await local.start(network, [home.name])
        async with _under_load(network, "full") as load:
            await more_acknowledged(load, 20)
            _fill(small_disk)
            ending = await _ended(home)
            assert (ending["code"], ending["exit"]) == ("disk_full", EXIT_STORAGE)
            assert "No space left on device" in ending["why"]
            assert "make room" in ending["why"]
            await more_acknowledged(load, 20)
            status = await _hansa("network", "status", "--network", str(network.folder), "--json", expects=1)
            assert f"{home.name} does not run: exit 3, disk_full" in json.loads(status)["attention"][0]
            book = StatementBook(network.genesis)
            book.read_stopped([home])
            await trio.run_process(["mount", "-o", f"remount,size={LARGE_BYTES}", str(small_disk)])
            await local.start(network, [home.name])
            await same_block(network, timeout_s=60)
        assert await not_held(network, home.name, load.acknowledged) == []
        assert await missing(network, home.name, load.acknowledged[-50:]) == []
        await local.stop(network)
        book.read_whole(list(network.nodes))
        assert book.contradictions == []


async def test_a_damaged_database_is_found_named_and_replaced(tmp_path: Path) -> None:
    """Damage in every kind of file is found at the start; what only a read can find stops the node then."""
    async with running_network(tmp_path / "net") as network:
        await open_campaign(network)
        home = network.nodes[-1]
        async with _under_load(network, "before") as before:
            await more_acknowledged(before, 40)
            await local.kill(network, home.name)
            await local.start(network, [home.name])  # moves its log into a table
            await more_acknowledged(before, 20)
        await _quiet_block(network)  # no start reads an older one from now on
        await local.kill(network, home.name)
        pristine = tmp_path / "pristine"
        shutil.copytree(home.data, pristine)
        for name, damage in DAMAGES.items():
            await _is_found_at_start(network, home, name, damage)
            shutil.rmtree(home.data)
            shutil.copytree(pristine, home.data)
        await _is_found_when_read(network, home)
        async with _under_load(network, "damage") as load:
            await more_acknowledged(load, 20)
            status = await _hansa("network", "status", "--network", str(network.folder), "--json", expects=1)
            assert f"hansa node rejoin {home.name}" in json.loads(status)["attention"][0]
            await _hansa("node", "rejoin", home.name, "--network", str(network.folder))
            await same_block(network, timeout_s=60)
            await local.kill(network, home.name)
            shutil.rmtree(home.folder)
            diagnosis = await _hansa("consensus", "doctor", "--network", str(network.folder), "--json", expects=1)
            [stopped] = [item for item in json.loads(diagnosis)["findings"] if item["code"] == "node_stopped"]
            assert f"hansa node rejoin {home.name}" in stopped["advice"]
            await _hansa("node", "rejoin", home.name, "--network", str(network.folder))
            await same_block(network, timeout_s=60)
        for node in network.nodes:
            assert await not_held(network, node.name, before.acknowledged + load.acknowledged) == []
        await _hansa("network", "status", "--network", str(network.folder), "--json")


async def _quiet_block(network: LocalNetwork) -> None:
    """Return once all nodes have a block without transactions, and with it the state in their stores."""
    async with client_of(network) as client:
        while True:
            block = await client.prove_block(await same_block(network, timeout_s=60))
            if block.header.transactions_root == transactions_root([]):
                return


def _change(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0x10
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _largest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_size)


Damage = Callable[[Path], None]
DAMAGES: dict[str, Damage] = {
    ".ldb is damaged": lambda data: _change(_largest(data, "*.ldb"), 0.9999),
    ".ldb is cut": lambda data: _cut(_largest(data, "*.ldb")),
    ".ldb is missing": lambda data: _largest(data, "*.ldb").unlink(),
    "checksum mismatch": lambda data: _change(_largest(data, "*.log"), 0.5),
    ".log is missing": lambda data: _largest(data, "*.log").unlink(),
    "MANIFEST-": lambda data: _change(_largest(data, "MANIFEST-*"), 0.5),
    "descriptor": lambda data: _cut(_largest(data, "MANIFEST-*")),
    "CURRENT names no manifest": lambda data: (data / "CURRENT").write_bytes(b"?"),
    "CURRENT is missing": lambda data: (data / "CURRENT").unlink(),
}
"""Damage by a part of what the node says about it."""


async def _is_found_at_start(network: LocalNetwork, home: NodeHome, said: str, damage: Damage) -> None:
    damage(home.data)
    with pytest.raises(LocalError) as error:
        await local.start(network, [home.name])
    assert error.value.code == "node_exited"
    assert said in error.value.message
    assert "exit 3, corrupted" in error.value.message


async def _is_found_when_read(network: LocalNetwork, home: NodeHome) -> None:
    """Damage the first block, which nobody reads at the start; the node stops when somebody asks for it."""
    store = LevelStore.open(home.data)
    block = store.get(layout.at_height(layout.BLOCK, 1))
    store.close()
    assert block is not None
    [table] = [path for path in home.data.glob("*.ldb") if block in path.read_bytes()]
    content = table.read_bytes()
    # Behind it stands the vote for it, which a start does read.
    table.write_bytes(content.replace(block, block[:-1] + bytes([block[-1] ^ 1]), 1))
    await local.start(network, [home.name])
    async with client_of(network, home.name) as client:
        with pytest.raises(Unreachable):
            await client.prove_block(1)
    ending = await _ended(home)
    assert (ending["code"], ending["exit"]) == ("corrupted", EXIT_STORAGE)
    assert "in its " in ending["why"]


@asynccontextmanager
async def _under_load(network: LocalNetwork, tag: str) -> AsyncIterator[Load]:
    load = Load(network, f"{tag}-0")
    async with trio.open_nursery() as nursery:
        for number in range(SUBMITTERS):
            await nursery.start(Load(network, f"{tag}-{number}", load.acknowledged).run)
        yield load
        nursery.cancel_scope.cancel()


def _fill(disk: Path) -> None:
    space = os.statvfs(disk)
    with (disk / "ballast").open("wb") as file:
        file.write(bytes(space.f_bavail * space.f_frsize - LEFT_BYTES))


async def _ended(home: NodeHome) -> dict[str, object]:
    """Return the last words of a node that ends by itself."""
    with trio.fail_after(FAILURE_S):
        await local.node_process(home).wait_stopped()
    for line in reversed(home.log_file.read_text().splitlines()):
        entry = json.loads(line)
        if entry["event"] == "stopped":
            return entry
    raise AssertionError("it did not say why it stopped")


async def _hansa(*arguments: str, expects: int = 0) -> str:
    command = [sys.executable, "-m", "cli.main", *arguments]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == expects, done.stderr.decode()
    return done.stdout.decode()
