"""A local network of real node processes for a test, and a load that remembers what was acknowledged."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from consensus.ledger.codec import Value
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import Transaction, make_call
from node.network import local
from node.network.homes import LocalNetwork
from node.network.trial import trial_network
from services.client.client import Client, open_client
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer

HELD_TIMEOUT_S = 20


@asynccontextmanager
async def running_network(folder: Path, validators: int = 4) -> AsyncIterator[LocalNetwork]:
    """Give a running network, and end every process of it afterwards."""
    async with trial_network(folder, validators=validators) as trial:
        yield trial.network


async def pass_time(ms: int) -> None:
    """Let a while pass before an accident, which keeps no step with what nodes do; nothing may wait this way."""
    with trio.move_on_after(ms / 1000):
        await trio.sleep_forever()


def signer(network: LocalNetwork, name: str) -> Signer:
    """Return an identity of the network, ready to sign."""
    key: PrivateKey = network.key(name)
    return Signer.of(name, key)


@asynccontextmanager
async def client_of(network: LocalNetwork, *names: str) -> AsyncIterator[Client]:
    """Give a client to all nodes, or to those named."""
    urls = [node.rpc_url for node in network.nodes if not names or node.name in names]
    async with open_client(network.genesis, urls) as client:
        yield client


def order(number: int, tag: str) -> dict[str, Value]:
    """Return the arguments of one creation of rights."""
    return {
        "campaign": "load",
        "order": f"{tag}-{number}",
        "user": f"u{number % 50}",
        "amount": 1,
        "event": f"e-{tag}-{number}",
    }


@dataclass
class Load:
    """Submits creations of rights one after the other, and keeps every one whose receipt it has seen."""

    network: LocalNetwork
    tag: str
    acknowledged: list[Transaction] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Submit until cancelled."""
        shop = signer(self.network, "shop")
        async with client_of(self.network) as client:
            lane = self.tag.encode()
            task_status.started()
            number = 0
            while True:
                transaction = client.sign(
                    shop, [make_call("rights", "create", order(number, self.tag))], sequence=number, lane=lane
                )
                try:
                    outcome = await client.submit_and_wait(transaction)
                except (Refused, Unreachable) as error:
                    self.failures.append(str(error))
                    number = (
                        (await client.lane_next(shop.address, lane)) if not isinstance(error, Unreachable) else number
                    )
                    continue
                outcome.check()
                self.acknowledged.append(transaction)
                number += 1


async def open_campaign(network: LocalNetwork, quota: int = 1_000_000) -> None:
    """Open the campaign that the load creates rights in."""
    async with client_of(network) as client:
        outcome = await client.call(
            signer(network, "shop"), "rights", "open_campaign", {"campaign": "load", "quota": quota}
        )
        outcome.check()


async def same_block(network: LocalNetwork, *, timeout_s: float) -> int:
    """Return a height at which all nodes have proven the same block, above every head seen at the call."""
    statuses = await local.status(network)
    height = 1 + max(item.height or 0 for item in statuses)
    hashes: set[bytes] = set()
    with trio.fail_after(timeout_s):
        for node in network.nodes:
            async with client_of(network, node.name) as client:
                hashes.add(await proven_block(client, height))
    if len(hashes) != 1:
        raise AssertionError(f"the nodes have different blocks at height {height}")
    return height


async def proven_block(client: Client, height: int) -> bytes:
    """Return the hash of a block once the client's node has proven it; waits for it without end."""
    while True:
        try:
            return (await client.prove_block(height)).block_hash
        except (Refused, Unreachable):
            await client.pause()


async def missing(network: LocalNetwork, name: str, transactions: list[Transaction]) -> list[str]:
    """Return the ids of the transactions whose receipts one node cannot prove."""
    lost: list[str] = []
    async with client_of(network, name) as client:
        for transaction in transactions:
            try:
                (await client.outcome(transaction.id)).check()
            except Refused as error:
                lost.append(f"{transaction.id.hex()}: {error}")
    return lost


async def not_held(network: LocalNetwork, name: str, transactions: list[Transaction]) -> list[str]:
    """Return the ids of the transactions that one node does not hold with their receipts; the node is believed."""
    async with client_of(network, name) as client:
        try:
            finals = await client.wait_final([item.id for item in transactions], timeout_ms=1_000 * HELD_TIMEOUT_S)
        except Unreachable as error:
            return [str(error)]
    return [item.transaction_id.hex() for item in finals if item.failed_count]
