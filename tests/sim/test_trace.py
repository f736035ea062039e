"""One seed, one trace; one block, one result: whatever the order of hashes, the locale and the time zone."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from consensus.ledger.block import Block
from node.reader import ChainReader
from tests.sim import replay
from tests.sim.plan import Plan
from tests.sim.simulation import Simulation, run_seed

FIRST_SEED, SEEDS = 1, 40


@pytest.mark.slow
def test_one_seed_has_one_trace() -> None:
    """Two processes; ``python -m tests.sim.replay --seeds 200`` compares more."""
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda order: replay.traces(FIRST_SEED, SEEDS, order), replay.HASH_SEEDS)
    assert len(first) == SEEDS
    assert first == second
    assert run_seed(FIRST_SEED).trace == first[FIRST_SEED]


def test_other_seeds_have_other_traces() -> None:
    assert len({run_seed(seed).trace for seed in range(1, 5)}) == 4


def chain_of_a_schedule() -> tuple[Simulation, list[Block]]:
    """Return a schedule with money, reverts and members that come and go, and its blocks."""
    plan = Plan(seed=3, safety_ms=20_000, transactions=60, conflict_permille=300, set_changes=6)
    simulation = Simulation(plan)
    simulation.run()
    host = max(simulation.all_hosts, key=lambda item: item.chain.head.header.height if item.chain is not None else 0)
    reader = ChainReader(host.disk)
    blocks = [reader.block(height) for height in range(1, max(simulation.checkers.blocks) + 1)]
    return simulation, [block for block in blocks if block is not None]


def test_blocks_give_the_same_roots_in_other_surroundings() -> None:
    simulation, blocks = chain_of_a_schedule()
    assert simulation.checkers.set_changes > 2
    document = replay.document_of(simulation.genesis, blocks)
    here = replay.execute(document)
    assert len(here) == len(blocks) > 10
    for surroundings in replay.SURROUNDINGS:
        assert replay.roots(document, surroundings) == here
