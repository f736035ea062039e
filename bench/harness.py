"""What all benchmarks of whole networks share: a network with a client on it, and what its processes use.

Processor time is read from ``/proc`` (the kernel's ticks), stages of a node's work from its ``/metrics``.
"""

import gc
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from urllib.request import urlopen

import trio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from bench.load import Load, Row, Samples
from consensus.ledger.errors import LocalError
from node.network.homes import NodeHome
from node.network.local import node_process
from node.network.trial import TrialNetwork, handling, trial_network
from services.client.connection import open_connection

ACCOUNTS = 10_000
SERVER_LANES = 64
SERVER_LANES_FIRST = 4
"""Where nobody creates rights, these suffice to open the campaign."""
VERIFICATIONS = 4_000
METRICS_TIMEOUT_S = 10
REST = "network and the rest"
"""What a node's process uses beyond its stages."""
STAGE_LINE = re.compile(r'^hansa_stage_seconds_total\{stage="(\w+)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Seconds since some beginning: of the clock, of the processor for nodes and client, of the nodes' stages.

    ``stages`` is empty where nodes export none.
    """

    wall_s: float
    nodes_s: float
    client_s: float
    stages: Mapping[str, float] = field(default_factory=dict)

    @property
    def processor_s(self) -> float:
        """Processor time of nodes and client."""
        return self.nodes_s + self.client_s

    @property
    def cores_used(self) -> float:
        """How many processors nodes and client kept busy."""
        return self.processor_s / self.wall_s

    def stages_us(self, *, calls: int, nodes: int) -> dict[str, float]:
        """Return the processor time of a call on one node, by stage and the rest; empty where none is counted."""
        if not self.stages:
            return {}
        rest_s = max(0.0, self.nodes_s - sum(self.stages.values()))
        share = 1e6 / max(1, calls) / nodes
        return {name: round(seconds * share, 2) for name, seconds in {**self.stages, REST: rest_s}.items()}

    def since(self, before: "Usage") -> "Usage":
        """Return what was used between two moments."""
        return Usage(
            wall_s=self.wall_s - before.wall_s,
            nodes_s=self.nodes_s - before.nodes_s,
            client_s=self.client_s - before.client_s,
            stages={name: seconds - before.stages.get(name, 0.0) for name, seconds in self.stages.items()},
        )


@dataclass(frozen=True, slots=True)
class Bench:
    """A running network and a client with funded accounts; made by :func:`bench_network`."""

    network: TrialNetwork
    load: Load
    up_s: float
    set_up_s: float

    @property
    def homes(self) -> tuple[NodeHome, ...]:
        """The nodes."""
        return self.network.network.nodes

    def usage(self) -> Usage:
        """Return what nodes and client have used so far."""
        return usage_of(self.homes)

    async def measure(self, row: Row, *, seconds: float) -> tuple[Samples, Usage]:
        """Run a row and return what became final, and what it used with its ramp and its end."""
        before = self.usage()
        samples = await self.load.run(row, seconds=seconds)
        return samples, self.usage().since(before)


@asynccontextmanager
async def bench_network(
    *, validators: int = 4, accounts: int = ACCOUNTS, server_lanes: int = SERVER_LANES_FIRST
) -> AsyncIterator[Bench]:
    """Give a network whose accounts are registered and funded, for the time of the block.

    Raises:
        HansaError: it does not start, or refuses the accounts.
    """
    say(f"starting {validators} validators")
    began = time.monotonic()
    async with trial_network(validators=validators) as network, AsyncExitStack() as stack:
        up_s = time.monotonic() - began
        nodes = [await stack.enter_async_context(open_connection(url)) for url in network.urls.values()]
        load = Load(network.genesis.chain_id(), nodes, seed=1)
        say(f"registering and funding {accounts:,} accounts")
        began = time.monotonic()
        issuer, server = network.key("bank-a"), network.key("shop")
        await load.set_up(issuer, server, account_count=accounts, server_lanes=server_lanes)
        _settle_memory()
        yield Bench(network, load, up_s, time.monotonic() - began)


def chosen(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Return the rows with these names, in their own order; all where none is named.

    Raises:
        LocalError: ``bad_arguments``.
    """
    check_names(names, [row.name for row in rows])
    return [row for row in rows if not names or row.name in names]


def check_names(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse names that are not known.

    Raises:
        LocalError: ``bad_arguments``.
    """
    if unknown := [name for name in names if name not in known]:
        raise LocalError("bad_arguments", f"{unknown[0]} is none of {', '.join(known)}")


def usage_of(homes: Sequence[NodeHome]) -> Usage:
    """Return what some running nodes have used since they started, and this process."""
    stages: dict[str, float] = {}
    for home in homes:
        for name, seconds in _read_stages(home).items():
            stages[name] = stages.get(name, 0.0) + seconds
    nodes_s = sum(processor_seconds(home) for home in homes)
    return Usage(wall_s=time.monotonic(), nodes_s=nodes_s, client_s=time.process_time(), stages=stages)


def processor_seconds(home: NodeHome) -> float:
    """Return the processor time that a running node has used: it says most on a machine with guests."""
    return seconds_of(_pid(home))


def seconds_of(pid: int) -> float:
    """Return the processor time that a running process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(home: NodeHome) -> dict[str, float]:
    """Return what a running node holds in memory: ``rss`` counts shared pages whole, ``pss`` in parts."""
    text = Path(f"/proc/{_pid(home)}/smaps_rollup").read_text()
    found = {name.lower(): int(size) for name, size in re.findall(r"^(Rss|Pss): +(\d+) kB$", text, re.MULTILINE)}
    return {name: round(size / 1024, 1) for name, size in found.items()}


def _pid(home: NodeHome) -> int:
    pid = node_process(home).pid()
    if pid is None:
        raise LocalError("not_running", f"{home.name} does not run any more (log: {home.log_file})")
    return pid


def _read_stages(home: NodeHome) -> dict[str, float]:
    with urlopen(f"{home.rpc_url}/metrics", timeout=METRICS_TIMEOUT_S) as answer:
        return stages_in(answer.read().decode())


def stages_in(metrics: str) -> dict[str, float]:
    """Return the seconds of each stage that a node's figures name."""
    return {stage: float(seconds) for stage, seconds in STAGE_LINE.findall(metrics)}


def _settle_memory() -> None:
    """Keep the collector off what lives as long as the run, as the nodes do."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def measure_verification() -> float:
    """Return the seconds that one verification takes: the library alone, many keys, the median of five runs."""
    algorithm = ec.ECDSA(hashes.SHA256())
    message = bytes(200)
    pairs = []
    for _ in range(VERIFICATIONS // 20):
        key = ec.generate_private_key(ec.SECP256R1())
        pairs.append((key.public_key(), key.sign(message, algorithm)))
    runs: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(VERIFICATIONS // 5 // len(pairs)):
            for public, signature in pairs:
                public.verify(signature, message, algorithm)
        runs.append((time.perf_counter() - began) / (VERIFICATIONS // 5 // len(pairs) * len(pairs)))
    return sorted(runs)[2]


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


async def wait_until_idle(homes: Sequence[NodeHome]) -> None:
    """Wait until the nodes use next to no processor time, for at most half a minute: what runs behind has ended."""
    await wait_until_still(lambda: sum(map(processor_seconds, homes)))


async def wait_until_still(used_s: Callable[[], float]) -> None:
    """Wait until next to no processor time is used, for at most half a minute."""
    with trio.move_on_after(30):
        used = used_s()
        while True:
            await trio.sleep(0.5)
            before, used = used, used_s()
            if used - before < 0.1:
                return


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that it tidies up. Not for use under trio."""

    def handle(_: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with handling(handle):
        yield


def say(text: str) -> None:
    """Tell a person at a terminal what takes time."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)
