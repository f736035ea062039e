"""What resolving a merchant's code costs, with few merchants on the chain and with many, on one network.

::

    few          so many merchants, each with a record of one platform: one client alone, then 16 at once
    many         the same, after many more were added to the same chain

A resolution is verified when its answer is shown to be of a registered environment with an allowed measurement, and to
fit what the chain commits to under a certified block: every figure counts these alone, and each brought what was
stored. ``hansa bench payee`` runs it on a trial network; clients, four validators and two environments share the
machine. The environments are emulated, without hardware isolation: of what SGX or TDX costs the figures say nothing.
"""

import json
import secrets
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import TypeVar

import msgspec
import trio
from rich.console import Console

from bench.goals import Goal, percentiles
from bench.harness import cores, interrupted_by_signals, say, seconds_of, wait_until_still
from bench.payee_client import Ready, Result, Task, Window, clock_ms
from bench.payee_load import SERVER, Platform
from bench.report import Figures, number, print_table, rows_of
from consensus.ledger.keys import PrivateKey
from services.client.client import open_client
from services.client.errors import Unreachable
from services.client.keystore import Signer
from services.demo.payee_network import BANK, ISSUER, OpenPayeeNetwork, PayeeConsortium
from services.payee.wording import EMULATED

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = (BANK, ISSUER)
"""Nodes with an environment beside them."""
LEAD_S = 0.2
"""How long before it begins a window is told."""
ANSWER_S_MAX = 120
SECRET_BYTES = 31
"""As a number below the order of P-256."""
FEW, MANY = "few", "many"
FEW_SHARE = 100
"""How many times fewer merchants row few has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured: merchants, clients over all processes, seconds of each window.

    So few that they only show that it runs are not held against the goals.
    """

    few: int = 1_000
    many: int = 100_000
    clients: int = 16
    processes: int = 2
    seconds: float = 8
    are_judged: bool = True


QUICK = Sizes(few=20, many=100, clients=4, seconds=1, are_judged=False)

GOALS = (
    Goal(MANY, "resolutions_per_s", "verified resolutions, many merchants", "/s", 300),
    Goal(MANY, "lone_p50_ms", "one alone, p50", "ms", 20, is_most=True),
    Goal(MANY, "cost_ratio", "processor time with many ÷ with few", "×", 1.5, is_most=True),
    Goal(MANY, "lone_ratio", "time alone with many ÷ with few", "×", 1.5, is_most=True),
)


def main(*, open_network: OpenPayeeNetwork, sizes: Sizes | None = None, as_json: bool = False) -> int:
    """Measure, print tables or one JSON object, and return 0.

    Args:
        open_network: starts the network for the time of the benchmark.
        sizes: how much is measured.
        as_json: print one JSON object.

    Raises:
        HansaError: something does not start, or a resolution fails: there are no figures then.
    """
    with interrupted_by_signals():
        report = trio.run(_measure, open_network, sizes or Sizes())
    if as_json:
        print(json.dumps(report))
    else:
        _draw(report)
    return 0


async def _measure(open_network: OpenPayeeNetwork, sizes: Sizes) -> Figures:
    say("starting the network")
    async with open_network() as network:
        await network.open_environments()
        async with open_client(network.genesis, list(network.urls.values())) as client:
            platform = Platform(client, Signer.of(SERVER, network.key(SERVER)))
            await platform.begin(list(ENVIRONMENTS))
            bench = PayeeBench(network, platform, sizes)
            rows = [await bench.measure(FEW, sizes.few), await bench.measure(MANY, sizes.many)]
    compare(*rows)
    goals = [judged for goal in GOALS if sizes.are_judged and (judged := goal.judge(rows)) is not None]
    environment: Figures = {"emulated": True, "isolation": EMULATED}
    return {"ok": True, "cores": cores(), **environment, "clients": sizes.clients, "rows": rows, "goals": goals}


def compare(few: Figures, many: Figures) -> None:
    """Add to the second row by how much its cost has grown over the first's.

    What processes use is compared, since rates also say what else the machine did meanwhile.
    """
    many["cost_ratio"] = round(number(many["processor_ms"]) / number(few["processor_ms"]), 2)
    many["lone_ratio"] = round(number(many["lone_p50_ms"]) / number(few["lone_p50_ms"]), 2)


class PayeeBench:
    """Resolutions on one running network."""

    def __init__(self, network: PayeeConsortium, platform: Platform, sizes: Sizes) -> None:
        self._network = network
        self._platform = platform
        self._sizes = sizes

    async def measure(self, row: str, merchants: int) -> Figures:
        """Load merchants up to this many, and resolve them at random: one client alone, then all together."""
        before = self._platform.loaded
        say(f"putting {merchants - before:,} merchants on the chain")
        load_s = await self._platform.load(merchants)
        await wait_until_still(lambda: sum(self._used_s().values()))
        say(f"one client alone, {merchants:,} merchants")
        lone = await self._resolve(merchants, [1])
        say(f"{self._sizes.clients} clients, {merchants:,} merchants")
        share, rest = divmod(self._sizes.clients, self._sizes.processes)
        counts = [share + (at < rest) for at in range(self._sizes.processes)]
        used = self._used_s()
        together = await self._resolve(merchants, [count for count in counts if count])
        used = {name: seconds - used[name] for name, seconds in self._used_s().items()}
        count = sum(len(result.times_ms) for result in together)
        times_ms = [time_ms for result in together for time_ms in result.times_ms]
        used["client"] = sum(result.processor_s for result in together)
        return {
            "row": row,
            "merchants": merchants,
            "loaded": merchants - before,
            "load_s": round(load_s, 1),
            "loaded_per_s": round((merchants - before) / max(load_s, 1e-9)),
            **{f"lone_{name}": figure for name, figure in percentiles(lone[0].times_ms).items()},
            "resolutions_per_s": round(count / self._sizes.seconds, 1),
            **{f"together_{name}": figure for name, figure in percentiles(times_ms).items()},
            **{f"{name}_ms": round(1_000 * seconds / count, 2) for name, seconds in used.items()},
            "processor_ms": round(1_000 * sum(used.values()) / count, 3),
        }

    async def _resolve(self, merchants: int, clients: Sequence[int]) -> list[Result]:
        """Resolve in as many processes as there are counts of clients, within one window."""
        secret = secrets.token_bytes(SECRET_BYTES)
        key = PrivateKey.from_secret(int.from_bytes(secret, "big"))
        delegation = self._platform.delegate(key.public.compressed, clock_ms())
        nodes = [self._network.urls[name] for name in ENVIRONMENTS]
        async with AsyncExitStack() as stack:
            processes = []
            for seed, count in enumerate(clients):
                task = Task(
                    genesis=str(self._network.genesis_file),
                    nodes=nodes,
                    secret=secret,
                    until_ms=delegation.until_ms,
                    signature=delegation.signature,
                    merchants=merchants,
                    clients=count,
                    seed=seed,
                )
                processes.append(await stack.enter_async_context(open_process(task)))
            for process in processes:
                await process.hear(Ready)
            begin_s = time.monotonic() + LEAD_S
            window = Window(begin_s, begin_s + self._sizes.seconds)
            for process in processes:
                await process.tell(window)
            return [await process.hear(Result) for process in processes]

    def _used_s(self) -> dict[str, float]:
        """Return the processor time that nodes and environments have used so far."""
        return {kind: sum(map(seconds_of, pids)) for kind, pids in self._network.processes().items()}


class ClientProcess:
    """A process of :mod:`bench.payee_client`; made by :func:`open_process`."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._heard = b""

    async def tell(self, words: msgspec.Struct) -> None:
        """Send it a line."""
        if self._process.stdin is not None:
            await self._process.stdin.send_all(msgspec.json.encode(words) + b"\n")

    async def hear(self, kind: type[T]) -> T:
        """Return its next line.

        Raises:
            Unreachable: ``client_failed``: it ended, or says nothing for two minutes.
        """
        with trio.move_on_after(ANSWER_S_MAX):
            while self._process.stdout is not None:
                line, end, rest = self._heard.partition(b"\n")
                if end:
                    self._heard = rest
                    return msgspec.json.decode(line, type=kind)
                data = await self._process.stdout.receive_some()
                if not data:
                    break
                self._heard += data
        raise Unreachable("a client's process failed: it says why above", code="client_failed")


@asynccontextmanager
async def open_process(task: Task) -> AsyncIterator[ClientProcess]:
    """Give a process with clients for the time of the block."""
    command = [sys.executable, "-m", "bench.payee_client"]
    process = await trio.lowlevel.open_process(command, stdin=PIPE, stdout=PIPE, cwd=ROOT)
    try:
        client = ClientProcess(process)
        await client.tell(task)
        yield client
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def _draw(report: Figures) -> None:
    console = Console(highlight=False)
    rows = rows_of(report, "rows")
    console.print(
        f"{report['cores']} cores: {report['clients']} clients, four validators and two environments\n"
        f"({EMULATED}).\n"
        "Each resolution is verified: certificate, proofs, environment, commitment."
    )
    columns = {"row": "row", "merchants": "merchants", "loaded_per_s": "loaded/s"}
    columns |= {"lone_p50_ms": "alone: p50 ms", "lone_p99_ms": "p99 ms", "resolutions_per_s": "together/s"}
    columns |= {"together_p50_ms": "p50 ms", "together_p99_ms": "p99 ms"}
    print_table(console, rows, columns)
    costs = {"client_ms": "client ms", "nodes_ms": "four nodes ms", "environments_ms": "environments ms"}
    print_table(console, rows, {"row": "processor time a resolution", **costs})
    goals = report["goals"]
    if isinstance(goals, list) and goals:
        print_table(console, goals, {"name": "goal", "figure": "figure", "unit": "", "goal": "wanted", "met": "met"})
