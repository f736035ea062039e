"""Four nodes on four machines: bad wires, partitions, one-way links, an unplugged card; one history, and it goes on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from node.network import local
from tests.network.kill_loop import more_acknowledged
from tests.network.statements import StatementBook, evidence_in_logs
from tests.network.support import Load, client_of, not_held, open_campaign, order, pass_time, same_block, signer
from tests.network.wires import CUT, GOOD, Machines, Wire, machines, require_namespaces, require_netem

pytestmark = [pytest.mark.network, pytest.mark.slow]

BAD = Wire(delay_ms=50, jitter_ms=20, lost=0.05, reordered=0.1)
HEALING_S = 16
PARTITION_MS = 6_000
"""Longer than several time-outs of a view, so that both sides have left it."""


@pytest.fixture(autouse=True)
def namespaces() -> None:
    """Leave a test where namespaces cannot be made."""
    require_namespaces()


@pytest.fixture
def netem(namespaces: None) -> None:
    """Leave a test where the kernel lacks netem."""
    require_netem()


async def test_bad_wires_partitions_and_one_way_links_leave_one_history_that_goes_on(tmp_path: Path) -> None:
    async with machines(tmp_path / "net", seed=1) as four:
        network = four.network
        await open_campaign(network)
        load = Load(network, "wires")
        await _over_bad_wires(four, load)
        await _split_in_halves(four, load)
        await _one_is_not_heard(four, load)
        await _one_is_unplugged(four, load)
        await same_block(network, timeout_s=60)
        for node in network.nodes:
            assert await not_held(network, node.name, load.acknowledged) == []
        await local.stop(network)
        book = StatementBook(network.genesis)
        book.read_whole(list(network.nodes))
        assert book.contradictions == []
        assert evidence_in_logs(list(network.nodes)) == []
        print(f"{four.wires.carried} packets carried, {four.wires.lost} lost, {len(load.acknowledged)} acknowledged")


async def test_wires_that_tc_makes_bad_leave_one_history_that_goes_on(tmp_path: Path, netem: None) -> None:
    async with machines(tmp_path / "net", seed=2) as four:
        await open_campaign(four.network)
        load = Load(four.network, "tc")
        for index in range(len(four.namespaces)):
            four.shape(index, BAD)
        async with _under_load(four, load, "tc"):
            await more_acknowledged(load, 20)
            await same_block(four.network, timeout_s=60)
        for node in four.network.nodes:
            assert await not_held(four.network, node.name, load.acknowledged) == []


@asynccontextmanager
async def _under_load(four: Machines, load: Load, phase: str) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for number in range(3):
            await nursery.start(Load(four.network, f"{phase}-{number}", load.acknowledged).run)
        yield
        nursery.cancel_scope.cancel()


async def _over_bad_wires(four: Machines, load: Load) -> None:
    four.wires.set(BAD)
    async with _under_load(four, load, "bad"):
        await more_acknowledged(load, 20)
    four.wires.set(GOOD)
    assert four.wires.lost > 0


async def _split_in_halves(four: Machines, load: Load) -> None:
    """Neither half has a quorum: nothing becomes final; once healed everything does."""
    network = four.network
    async with client_of(network) as client:
        four.wires.split({0, 1})
        await pass_time(500)  # what was decided before may still arrive
        before = await _heights(four)
        shop = signer(network, "shop")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call, shop, "rights", "create", order(1, "halves"))
            await pass_time(PARTITION_MS)
            assert await _heights(four) == before
            four.wires.set(GOOD)
            begin_s = trio.current_time()
            await same_block(network, timeout_s=HEALING_S)
            print(f"one block on all nodes {trio.current_time() - begin_s:.1f} s after the halves met")


async def _one_is_not_heard(four: Machines, load: Load) -> None:
    """The first machine hears all others, and nobody hears it; then it is the other way round."""
    for side in ({"source": {0}}, {"to": {0}}):
        four.wires.set(CUT, **side)
        async with _under_load(four, load, f"one-way-{next(iter(side))}"):
            await more_acknowledged(load, 20)
            four.wires.set(GOOD)
            await same_block(four.network, timeout_s=HEALING_S)


async def _one_is_unplugged(four: Machines, load: Load) -> None:
    four.set_link(3, "down")
    async with _under_load(four, load, "unplugged"):
        await more_acknowledged(load, 20)
        four.set_link(3, "up")
        await same_block(four.network, timeout_s=HEALING_S)


async def _heights(four: Machines) -> list[int | None]:
    return [status.height for status in await local.status(four.network)]
