"""``python -m tests.network.silent_primary --rounds N``: how long a frozen primary holds a transaction up.

Each round freezes the primary of the next height (SIGSTOP: its connections stay open), submits one
transaction to the others and measures until it is final. Between two rounds every node has its turn, so
that nobody is a suspect any more and the full time-out is measured (SPEC P19, P20).
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import trio

from consensus.ledger.transaction import make_call
from node.network import local
from node.network.homes import LocalNetwork
from services.client.client import Client
from services.client.lanes import one_shot_lane
from tests.network.support import client_of, open_campaign, order, proven_block, running_network, signer

ROUND_TIMEOUT_S = 60


async def measure(network: LocalNetwork, rounds: int, *, tag: str = "silent") -> list[int]:
    """Return for each round the milliseconds from submitting to final; the campaign must be open."""
    times_ms = []
    async with client_of(network) as client:
        for number in range(rounds):
            with trio.fail_after(ROUND_TIMEOUT_S):
                times_ms.append(await _round(network, client, f"{tag}-{number}"))
    return times_ms


async def _round(network: LocalNetwork, client: Client, tag: str) -> int:
    shop = signer(network, "shop")
    height = 0
    for turn in network.nodes:
        outcome = await client.call(shop, "rights", "create", order(0, f"{tag}-{turn.name}"))
        height = outcome.check().height
    for node in network.nodes:
        async with client_of(network, node.name) as reader:
            await proven_block(reader, height + 1)  # the quiet block; the next height begins with the transaction
    frozen = primary(network, height + 2)
    others = [node.name for node in network.nodes if node.name != frozen]
    async with client_of(network, *others) as voters:
        await voters.lane_next(shop.address, b"")  # connects
        calls = [make_call("rights", "create", order(0, tag))]
        transaction = voters.sign(shop, calls, sequence=0, lane=one_shot_lane(tag))
        local.freeze(network, frozen)
        try:
            begin_s = time.perf_counter()
            (await voters.submit_and_wait(transaction)).check()
            return round(1000 * (time.perf_counter() - begin_s))
        finally:
            local.resume(network, frozen)


def primary(network: LocalNetwork, height: int) -> str:
    """Return who proposes first at a height (SPEC P2)."""
    names = sorted(node.name for node in network.nodes)
    return names[height % len(names)]


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.network.silent_primary", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()

    async def play(folder: Path) -> list[int]:
        async with running_network(folder) as network:
            await open_campaign(network)
            return await measure(network, arguments.rounds)

    with tempfile.TemporaryDirectory(prefix="hansa-silent-") as folder:
        times_ms = sorted(trio.run(play, Path(folder) / "net"))
    p50, p99 = times_ms[len(times_ms) // 2], times_ms[min(len(times_ms) - 1, len(times_ms) * 99 // 100)]
    print(f"{len(times_ms)} frozen primaries: submit to final p50 {p50} ms, p99 {p99} ms, longest {times_ms[-1]} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
