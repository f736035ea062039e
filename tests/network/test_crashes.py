"""What is acknowledged is kept: kill -9 under load, loss of the quorum, and what an audit says afterwards."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from contracts.runtime.execution import Executor
from contracts.runtime.registry import Registry
from node.audit import AuditFailure, StoreSource, verify_chain
from node.network import local
from node.network.homes import LocalNetwork
from node.storage import layout
from node.storage.leveldb import LevelStore
from tests.network import kill_loop
from tests.network.kill_loop import more_acknowledged
from tests.network.support import Load, open_campaign, running_network

pytestmark = [pytest.mark.network, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_QUORUM = [sys.executable, "-m", "tests.network.without_quorum"]


@pytest.fixture(scope="module")
def without_quorum() -> Iterator["subprocess.Popen[str]"]:
    """Start a network of its own that has no quorum for a minute, beside the tests of this module that ask for it."""
    with subprocess.Popen(
        WITHOUT_QUORUM, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process  # whoever does not wait for it closes its standard input at the end, and it ends soon after


@pytest.mark.usefixtures("without_quorum")
async def test_twenty_cycles_of_kills_under_load_lose_nothing_and_contradict_nothing(tmp_path: Path) -> None:
    report = await kill_loop.run(tmp_path / "net", cycles=20, seed=1)
    assert report.cycles == 20
    assert set(report.plans) == {"one", "two", "all", "starting"}
    assert report.acknowledged >= 20 * kill_loop.SUBMITTERS


@pytest.mark.usefixtures("without_quorum")
async def test_r59_a_single_validator_keeps_what_it_acknowledged_when_it_is_killed(tmp_path: Path) -> None:
    report = await kill_loop.run(tmp_path / "net", cycles=4, seed=1, validators=1)
    assert report.acknowledged >= 4 * kill_loop.SUBMITTERS


def test_without_a_quorum_for_a_minute_nothing_commits_and_soon_after_everything_does(
    without_quorum: "subprocess.Popen[str]",
) -> None:
    said, _ = without_quorum.communicate()  # now that the others are done, the nodes may come back
    assert without_quorum.returncode == 0, said


async def test_the_audit_proves_a_stopped_node_and_names_the_height_of_a_flipped_byte(tmp_path: Path) -> None:
    async with running_network(tmp_path / "net", validators=1) as network:
        await open_campaign(network)
        load = Load(network, "audit")
        async with trio.open_nursery() as nursery:
            await nursery.start(load.run)
            await more_acknowledged(load, 5)
            nursery.cancel_scope.cancel()
        await local.stop(network)
        height = audit(network)
        assert height >= 6
        flip(network.nodes[0].data, height=3)
        with pytest.raises(AuditFailure) as failure:
            audit(network)
        assert failure.value.height == 3
        await local.start(network)
        command = [sys.executable, "-m", "cli.main", "chain", "verify", "--network", str(network.folder), "--json"]
        served = await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
        assert served.returncode == 1
        assert "height 3: the receipts that the node serves" in served.stdout.decode()


def audit(network: LocalNetwork) -> int:
    store = LevelStore.open(network.nodes[0].data)
    try:
        return verify_chain(StoreSource(store), network.genesis, Executor(Registry.shipped())).height
    finally:
        store.close()


def flip(folder: Path, *, height: int) -> None:
    """Flip one bit of a stored receipt."""
    store = LevelStore.open(folder)
    key = layout.at_height(layout.RECEIPTS, height)
    value = bytearray(store.get(key) or b"")
    value[len(value) // 2] ^= 1
    store.write([(key, bytes(value))])
    store.close()
