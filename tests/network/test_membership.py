"""Members come, go, lose their disks and come back while real nodes work: nothing stalls, nothing is lost.

``HANSA_MEMBERSHIP_ROUNDS=10`` lets the set grow and shrink so often; once is the default.
"""

import os
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest
import trio

from cli.membership import open_local_chain
from contracts.runtime.execution import Executor
from contracts.runtime.registry import Registry
from node.audit import StoreSource, verify_chain
from node.network import joining, local
from node.network.homes import LocalNetwork
from node.reader import ChainReader
from node.storage.leveldb import LevelStore
from tests.network.support import Load, not_held, open_campaign, running_network, same_block
from tests.network.test_crashes import more_acknowledged

pytestmark = [pytest.mark.network, pytest.mark.slow]

ROUNDS = int(os.environ.get("HANSA_MEMBERSHIP_ROUNDS", "1"))
SUBMITTERS = 2
GAP_S_MAX = 6.0
"""The longest that two blocks may stand apart under load while the set changes: three time-outs of a loaded machine."""
STEP_MS_MAX = 120_000


@asynccontextmanager
async def loaded(network: LocalNetwork, tag: str) -> AsyncIterator[Load]:
    """Give a load of several submitters, which share what was acknowledged."""
    load = Load(network, f"{tag}-0")
    async with trio.open_nursery() as nursery:
        for number in range(SUBMITTERS):
            await nursery.start(Load(network, f"{tag}-{number}", load.acknowledged).run)
        yield load
        nursery.cancel_scope.cancel()


def set_sizes(reader: ChainReader) -> list[int]:
    return [validators.size for _, validators in reader.validator_changes()]


def gaps_s(reader: ChainReader, first: int, last: int) -> list[float]:
    """The time between each two blocks."""
    times = [block.header.time_ms for height in range(first, last + 1) if (block := reader.block(height)) is not None]
    return [(after - before) / 1_000 for before, after in pairwise(times)]


HANSA = (sys.executable, "-m", "cli.main")


def tell(line: str) -> None:
    """Say how far a long run is (``pytest -s``)."""
    print(f"{trio.current_time() % 10_000:8.1f} s  {line}", flush=True)


async def hansa(*arguments: str) -> None:
    """Run a command in a process of its own; it must succeed."""
    done = await trio.run_process([*HANSA, *arguments], check=False, capture_stdout=True, capture_stderr=True)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


async def killed_when(said: str, *arguments: str) -> None:
    """Run a command, and end it with SIGKILL once a line of its progress ends like this."""
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, [*HANSA, *arguments], check=False, stdout=DEVNULL, stderr=PIPE)
        process = await nursery.start(run)
        heard = b""
        with trio.fail_after(60):
            while not any(line.endswith(said.encode()) for line in heard.splitlines()):
                data = await process.stderr.receive_some()
                assert data, heard.decode()
                heard += data
        process.kill()


async def head(network: LocalNetwork) -> int:
    return max(status.height or 0 for status in await local.status(network))


async def test_four_to_five_to_seven_to_four_validators_under_load_without_a_stall(tmp_path: Path) -> None:
    async with running_network(tmp_path / "net") as network:
        await open_campaign(network)
        first = await head(network) + 1
        steady = [home.name for home in network.nodes if home.name != "issuer-f"]
        async with loaded(network, "change") as load:
            for number in range(ROUNDS):
                joiners = [f"e-{number}", f"f-{number}", f"g-{number}"]
                for name in joiners:
                    async with open_local_chain(network, without=name) as chain:
                        network = await joining.add(chain, network, name, organisation=name, timeout_ms=STEP_MS_MAX)
                    tell(f"{name} has come")
                    await more_acknowledged(load, SUBMITTERS)
                leavers = joiners if number else ["issuer-f", *joiners[1:]]
                for name in leavers:
                    async with open_local_chain(network, without=name) as chain:
                        network = await joining.remove(chain, network, name)
                    tell(f"{name} has left")
                    await more_acknowledged(load, SUBMITTERS)
            last = await head(network)
        assert {*steady, "e-0"} == {home.name for home in network.nodes}
        await same_block(network, timeout_s=60)
        for home in network.nodes:
            assert await not_held(network, home.name, load.acknowledged) == []
        # From the genesis document alone: the proof carries the headers that changed the set.
        proof, place = tmp_path / "validators.proof", ("--network", str(network.folder))
        await hansa("proof", "get", "state", "membership/validators", "--out", str(proof), *place)
        await hansa("proof", "verify", str(proof), "--genesis", str(network.genesis_path))
        await local.stop(network)
        for name in ("bank-a", "e-0"):
            check_stored(network, name, first, last)


def check_stored(network: LocalNetwork, name: str, first: int, last: int) -> None:
    """Verify a stopped node's whole chain, and look at its sets and at the gaps between its blocks."""
    store = LevelStore.open(network.node(name).data)
    try:
        reader = ChainReader(store)
        sizes = set_sizes(reader)
        assert sizes[:7] == [4, 5, 6, 7, 6, 5, 4]
        gaps = gaps_s(reader, first, last)
        print(f"{name}: {len(gaps)} blocks, largest gap {max(gaps):.2f} s, {len(sizes)} sets")
        assert max(gaps) <= GAP_S_MAX
        assert verify_chain(StoreSource(store), network.genesis, Executor(Registry.shipped())).height >= last
    finally:
        store.close()


async def votes(network: LocalNetwork, name: str) -> bool:
    """Tell whether a node votes, by its own word; waits until it answers."""
    with trio.fail_after(60):
        while True:
            for status in await local.status(network):
                if status.node.name == name and status.votes is not None:
                    return status.votes


def signed_between(network: LocalNetwork, at: str, name: str, spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Tell for each span of heights whether a node signed a certificate of it, as another, stopped node stored them."""
    store = LevelStore.open(network.node(at).data)
    try:
        reader = ChainReader(store)
        certificates = [[reader.certificate(height) for height in range(first, last + 1)] for first, last in spans]
        return [
            any(vote.signer == name for item in span if item is not None for vote in item.signatures)
            for span in certificates
        ]
    finally:
        store.close()


async def test_r18_r49_wiped_and_restored_nodes_do_not_vote_until_they_have_rejoined_under_a_new_key(
    tmp_path: Path,
) -> None:
    """One is wiped, one gets an older backup; both keep silent, and a rejoin is killed in its middle and run again."""
    wiped, restored = "issuer-c", "issuer-f"
    async with running_network(tmp_path / "net") as network:
        folder = str(network.folder)
        await open_campaign(network)
        async with loaded(network, "rejoin") as load:
            await local.stop(network, [restored])
            shutil.copytree(network.node(restored).data, tmp_path / "backup")
            await local.start(network, [restored])
            await more_acknowledged(load, 2 * SUBMITTERS)
            await local.stop(network, [restored])
            shutil.rmtree(network.node(restored).data)
            shutil.copytree(tmp_path / "backup", network.node(restored).data)
            await local.start(network, [restored])
            silent_from = await head(network) + 1
            await more_acknowledged(load, 2 * SUBMITTERS)
            assert not await votes(network, restored)
            silent_to = await head(network)
            for said in ("has a new vote key", "starting"):
                await killed_when(said, "node", "rejoin", restored, "--network", folder, "--keep-data")
            await hansa("node", "rejoin", restored, "--network", folder, "--keep-data")
            assert await votes(network, restored)

            await local.kill(network, wiped)
            shutil.rmtree(network.node(wiped).data)
            await local.start(network, [wiped])
            wiped_from = await head(network) + 1
            await more_acknowledged(load, 2 * SUBMITTERS)
            assert not await votes(network, wiped)
            wiped_to = await head(network)
            for said in ("stopping", f"replace_key {wiped}"):
                await killed_when(said, "node", "rejoin", wiped, "--network", folder)
            await hansa("node", "rejoin", wiped, "--network", folder)
            assert await votes(network, wiped)
            await more_acknowledged(load, 2 * SUBMITTERS)
            again_from = await head(network)
            await more_acknowledged(load, 4 * SUBMITTERS)
            again_to = await head(network)
        await same_block(network, timeout_s=60)
        for home in network.nodes:
            assert await not_held(network, home.name, load.acknowledged) == []
        await local.stop(network)
        again = (again_from, again_to)
        assert signed_between(network, "bank-a", restored, [(silent_from, silent_to), again]) == [False, True]
        assert signed_between(network, "bank-a", wiped, [(wiped_from, wiped_to), again]) == [False, True]
