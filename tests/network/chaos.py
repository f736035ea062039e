"""``python -m tests.network.chaos --cycles N --seed S``: kill -9, partitions and bad wires at the same time.

Four nodes on machines of their own. A cycle cuts some off, in one direction or both, kills some, starts them
again, before or after the wires are whole, and checks what :mod:`tests.network.kill_loop` checks. Needs root.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from random import Random

import trio

from node.network import local
from tests.network.kill_loop import RECOVERY_TIMEOUT_S, kill, more_acknowledged, require_none
from tests.network.statements import StatementBook, evidence_in_logs
from tests.network.support import Load, not_held, open_campaign, pass_time, same_block
from tests.network.wires import CUT, Machines, Wire, machines, start_inside

BAD = Wire(delay_ms=30, jitter_ms=20, lost=0.03, reordered=0.1)
SUBMITTERS = 4
CUT_MS_MAX = 2_500
DOWN_MS_MAX = 3_000


async def run(folder: Path, *, cycles: int, seed: int) -> str:
    """Run the cycles and return a line that tells what happened; errors as for the kill loop."""
    random = Random(seed)
    longest_s = 0.0
    async with machines(folder, seed=seed) as four:
        network = four.network
        book = StatementBook(network.genesis)
        await open_campaign(network)
        load = Load(network, "chaos-0")
        four.wires.set(BAD)
        async with trio.open_nursery() as nursery:
            for number in range(SUBMITTERS):
                await nursery.start(Load(network, f"chaos-{number}", load.acknowledged).run)
            for _ in range(cycles):
                await more_acknowledged(load, random.randrange(SUBMITTERS, 4 * SUBMITTERS))
                longest_s = max(longest_s, await _cycle(four, random, book))
                require_none(book.contradictions, "contradictions")
            nursery.cancel_scope.cancel()
        for node in network.nodes:
            require_none(await not_held(network, node.name, load.acknowledged), f"{node.name} has lost")
        await local.stop(network)
        height = book.read_whole(list(network.nodes))
        require_none(book.contradictions, "contradictions")
        require_none(evidence_in_logs(list(network.nodes)), "logs report")
    return (
        f"seed {seed}: {cycles} cycles, {len(load.acknowledged)} transactions acknowledged and kept, {height} blocks, "
        f"{len(book.said)} statements without a contradiction, {four.wires.carried} packets carried and "
        f"{four.wires.lost} lost, longest recovery {longest_s:.1f} s"
    )


async def _cycle(four: Machines, random: Random, book: StatementBook) -> float:
    """Play one accident and return the seconds until all nodes have proven one new block."""
    network = four.network
    victims = random.sample(range(4), random.choice((1, 1, 2, 4)))
    side = set(random.sample(range(4), random.choice((1, 2))))
    match random.choice(("split", "one-way", "whole")):
        case "split":
            four.wires.split(side)
        case "one-way":
            four.wires.set(CUT, source=side)
    await pass_time(random.randrange(CUT_MS_MAX))
    await kill(network, [network.nodes[index].name for index in victims])
    book.read_stopped([network.nodes[index] for index in victims])
    book.check_durable()
    if random.random() < 0.5:
        four.wires.set(BAD)
    for index in victims:
        start_inside(four.namespaces[index], network.nodes[index])
    await pass_time(random.randrange(DOWN_MS_MAX))
    four.wires.set(BAD)
    begin_s = trio.current_time()
    with trio.fail_after(RECOVERY_TIMEOUT_S):
        for home in network.nodes:
            while await local.read_health(home.rpc) is None:
                await trio.lowlevel.checkpoint()
    await same_block(network, timeout_s=RECOVERY_TIMEOUT_S)
    return trio.current_time() - begin_s


def main() -> int:
    """Return 0 when everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.network.chaos", description=__doc__)
    parser.add_argument("--cycles", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.cycles} cycles …", flush=True)
    with tempfile.TemporaryDirectory(prefix="hansa-chaos-") as folder:

        async def play() -> str:
            return await run(Path(folder) / "net", cycles=arguments.cycles, seed=arguments.seed)

        print(trio.run(play))
    return 0


if __name__ == "__main__":
    sys.exit(main())
