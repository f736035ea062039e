"""A network of real node processes under fuzz: three run, the fourth validator's keys are the attacker's.

One of the three has no penalties (``tests.fuzz.node``) and hears the bulk of the frames; calls go to all.
"""

import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from consensus.ledger.transaction import make_call
from node.config import NodeConfig, load_config
from node.network import local
from node.network.homes import LocalNetwork, NodeHome
from node.network.process import LocalProcess
from node.network.trial import trial_network
from services.client.client import open_client
from services.client.keystore import Signer

GROWTH_MIB_MAX = 50
ALIVE_S_MAX = 60
"""Time within which a transaction must be final on every node after the fuzz, on a loaded machine."""
ALARMS = ("Traceback", '"level": "error"', '"level": "critical"', '"exception"', "Exception Group")
"""What must not stand in a log."""


@dataclass
class Live:
    """The running network, and what its nodes weighed when the warm-up was over."""

    network: LocalNetwork
    attacker: NodeHome
    soft: NodeHome
    """The node without penalties."""
    weights: dict[str, int] = field(default_factory=dict)
    probes: int = 0

    @property
    def nodes(self) -> list[NodeHome]:
        """The nodes that run."""
        return [home for home in self.network.nodes if home.name != self.attacker.name]

    @property
    def attacker_config(self) -> NodeConfig:
        """The keys and addresses that the attacker has."""
        return load_config(self.attacker.folder)

    def weigh(self) -> dict[str, int]:
        """Return each node's resident memory, MiB."""
        found = {}
        for home in self.nodes:
            pid = local.node_process(home).pid()
            if pid is not None:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                found[home.name] = next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))
        return found

    async def prove_alive(self) -> None:
        """Submit a transaction by one node and wait until each node alone says that it is final."""
        self.probes += 1
        shop = Signer.of("shop", self.network.key("shop"))
        call = make_call("rights", "open_campaign", {"campaign": f"fuzz-{self.probes}", "quota": 5})
        with trio.fail_after(ALIVE_S_MAX):
            async with open_client(self.network.genesis, [home.rpc_url for home in self.nodes]) as client:
                transaction = client.sign(shop, [call], sequence=0, lane=b"%d" % self.probes)
                (await client.submit_and_wait(transaction)).check()
            for home in self.nodes:
                async with open_client(self.network.genesis, [home.rpc_url]) as client:
                    (await client.wait(transaction)).check()

    async def same_roots(self) -> bool:
        """Tell whether all nodes have the same block, state roots included, at the lowest of their heads."""
        found = set()
        lowest = min(item.height or 0 for item in await local.status(self.network) if item.is_ready)
        for home in self.nodes:
            async with open_client(self.network.genesis, [home.rpc_url]) as client:
                found.add((await client.prove_block(lowest)).block_hash)
        return len(found) == 1 and lowest > 0

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the processes: gone, grown, or alarmed."""
        weights = self.weigh()
        for home in self.nodes:
            if home.name not in weights:
                yield f"{home.name} is gone: {local.node_process(home).last_words()}"
            elif weights[home.name] > self.weights.get(home.name, weights[home.name]) + GROWTH_MIB_MAX:
                yield f"{home.name} grew from {self.weights[home.name]} to {weights[home.name]} MiB"
            for line in home.log_file.read_text(errors="replace").splitlines():
                if any(alarm in line for alarm in ALARMS):
                    yield f"{home.name} logs {line[:400]}"
                    break


@asynccontextmanager
async def live_network(folder: Path) -> AsyncIterator[Live]:
    """Give the network; every process ends with the block."""
    async with trial_network(folder, validators=4) as trial:
        network = trial.network
        attacker, soft = network.nodes[-1], network.nodes[0]
        await local.stop(network, [attacker.name, soft.name])
        _soft_process(soft).start(local.environment())
        await local.start(network, [soft.name])
        yield Live(network, attacker, soft)


def _soft_process(home: NodeHome) -> LocalProcess:
    arguments = (sys.executable, "-m", "tests.fuzz.node", "--home", str(home.folder))
    return LocalProcess(home.name, arguments, home.run / "node.pid", home.log_file)


def alarms_of(answer: bytes) -> str:
    """Return what an RPC answer admits of a bug inside the node; empty when it admits none."""
    if b'"internal"' not in answer:
        return ""
    try:
        documents = json.loads(answer)
    except ValueError:
        return answer[:200].decode(errors="replace")
    for document in documents if isinstance(documents, list) else [documents]:
        error = document.get("error") if isinstance(document, dict) else None
        if error and error.get("data", {}).get("code") == "internal":
            return str(error)
    return ""
