"""``python -m tests.network.kill_loop --cycles N --seed S``: kill -9 under load, again and again.

A cycle kills one node, two, all, or one again while it starts, at a random moment under load, and starts
what was killed. After each cycle every node must hold everything that was acknowledged, all must have
proven one same new block, and no vote log may contradict what was found before. In the end all databases
are compared height by height, and the logs must not report a contradiction or a failure.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio

from consensus.ledger.errors import LocalError
from consensus.ledger.proof import proof_from_json_untrusted
from node.network import local
from node.network.homes import LocalNetwork
from services.client.answers import ProofAnswer
from services.client.errors import Refused
from tests.network.statements import StatementBook, evidence_in_logs
from tests.network.support import (
    Load,
    client_of,
    missing,
    not_held,
    open_campaign,
    pass_time,
    running_network,
    same_block,
)

SUBMITTERS = 6
PROVEN_PER_NODE = 100
"""How many receipts a node has to prove in the end, drawn from all; that it holds them all is asked each cycle."""
KILL_DELAY_MS_MAX = 250
DOWN_MS_MAX = 300
START_MS_MIN, START_MS_MAX = 50, 900
"""When a node dies that is starting: before, at or after its first vote."""
LOAD_TIMEOUT_S = 60
RECOVERY_TIMEOUT_S = 60


@dataclass
class Report:
    """What a run did. ``longest_recovery_ms`` is from the start of the killed nodes to one block proven by all."""

    seed: int
    validators: int
    cycles: int = 0
    kills: int = 0
    acknowledged: int = 0
    height: int = 0
    statements: int = 0
    longest_recovery_ms: int = 0
    plans: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        plans = ", ".join(f"{count} {name}" for name, count in sorted(self.plans.items()))
        return (
            f"seed {self.seed}, {self.validators} validators: {self.cycles} cycles ({plans}), {self.kills} kills, "
            f"{self.acknowledged} transactions acknowledged and kept, {self.height} blocks, "
            f"{self.statements} statements without a contradiction, longest recovery {self.longest_recovery_ms} ms"
        )


async def run(folder: Path, *, cycles: int, seed: int, validators: int = 4) -> Report:
    """Run the loop on a network of its own in ``folder``.

    Raises:
        AssertionError: something acknowledged is lost, votes contradict each other, or nodes differ.
        trio.TooSlowError: the chain does not go on.
    """
    report = Report(seed, validators)
    async with running_network(folder, validators) as network:
        book = StatementBook(network.genesis)
        await open_campaign(network)
        load = Load(network, "kills-0")
        random = Random(seed)
        checked = 0
        async with trio.open_nursery() as nursery:
            for number in range(SUBMITTERS):
                await nursery.start(Load(network, f"kills-{number}", load.acknowledged).run)
            for _ in range(cycles):
                await more_acknowledged(load, random.randrange(SUBMITTERS, 4 * SUBMITTERS))
                await _cycle(network, random, book, report)
                done = list(load.acknowledged)
                for node in network.nodes:
                    require_none(await not_held(network, node.name, done[checked:]), f"{node.name} has lost")
                require_none(book.contradictions, "contradictions")
                checked = len(done)
            nursery.cancel_scope.cancel()
        await same_block(network, timeout_s=RECOVERY_TIMEOUT_S)
        done = load.acknowledged
        for node in network.nodes:
            require_none(await not_held(network, node.name, done), f"{node.name} has lost")
            proven = random.sample(done, min(len(done), PROVEN_PER_NODE))
            require_none(await missing(network, node.name, proven), f"{node.name} cannot prove")
        await local.stop(network)
        report.height = book.read_whole(list(network.nodes))
        require_none(book.contradictions, "contradictions")
        require_none(evidence_in_logs(list(network.nodes)), "logs report")
        report.acknowledged, report.statements = len(done), len(book.said)
    return report


async def more_acknowledged(load: Load, count: int) -> None:
    """Return once this many more transactions are acknowledged."""
    goal = len(load.acknowledged) + count
    async with client_of(load.network) as client:
        with trio.fail_after(LOAD_TIMEOUT_S):
            while len(load.acknowledged) < goal:
                await client.pause()


async def _cycle(network: LocalNetwork, random: Random, book: StatementBook, report: Report) -> None:
    names = [node.name for node in network.nodes]
    plan = random.choice(("one", "one", "two", "all", "starting"))
    victims = random.sample(names, {"two": min(2, len(names)), "all": len(names)}.get(plan, 1))
    await pass_time(random.randrange(KILL_DELAY_MS_MAX))
    await kill(network, victims)
    if plan == "starting":
        await kill_at_start(network, victims[0], random.randrange(START_MS_MIN, START_MS_MAX))
    report.kills += len(victims) + (plan == "starting")
    book.read_stopped([network.node(name) for name in victims])
    for name in set(names) - set(victims):
        await _add_certificates(network, name, book)
    book.check_durable()
    await pass_time(random.randrange(DOWN_MS_MAX))
    begin_s = trio.current_time()
    await local.start(network, victims)
    await same_block(network, timeout_s=RECOVERY_TIMEOUT_S)
    report.longest_recovery_ms = max(report.longest_recovery_ms, round(1000 * (trio.current_time() - begin_s)))
    report.cycles += 1
    report.plans[plan] = report.plans.get(plan, 0) + 1


async def _add_certificates(network: LocalNetwork, name: str, book: StatementBook) -> None:
    """Ask a running node for its certificates of the blocks that stopped ones voted for last."""
    async with client_of(network, name) as client:
        for height, _ in book.stopped.values():
            try:
                answer = await client.request("chain_getBlock", {"height": height, "prove": True}, ProofAnswer)
            except Refused:
                continue  # not final there
            book.add_certificate(proof_from_json_untrusted(answer.proof).certificate)


async def kill(network: LocalNetwork, names: list[str]) -> None:
    """Send SIGKILL to all of them in one moment, and return when they are gone."""
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(local.kill, network, name)


async def kill_at_start(network: LocalNetwork, name: str, after_ms: int) -> None:
    """Start a node and kill it so much later, ready or not."""

    async def start() -> None:
        try:
            await local.start(network, [name])
        except LocalError as error:
            if error.code != "node_exited":
                raise

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await pass_time(after_ms)
        await local.kill(network, name)


def require_none(faults: list[str], what: str) -> None:
    """Raise AssertionError that names the first of these faults, if there is any."""
    if faults:
        raise AssertionError(f"{what}: {faults[:5]} and {max(0, len(faults) - 5)} more")


def main() -> int:
    """Return 0 when everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.network.kill_loop", description=__doc__)
    parser.add_argument("--cycles", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--validators", type=int, default=4)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.cycles} cycles, {arguments.validators} validators …", flush=True)
    with tempfile.TemporaryDirectory(prefix="hansa-kills-") as folder:

        async def play() -> Report:
            return await run(
                Path(folder) / "net", cycles=arguments.cycles, seed=arguments.seed, validators=arguments.validators
            )

        print(trio.run(play))
    return 0


if __name__ == "__main__":
    sys.exit(main())
