"""What a flash sale costs with and without the message centre, side by side in one run.

::

    intake    orders a second accepted durably, in lists and one a request, while the chain drains at its threshold
    direct    the same server waiting for each order's transaction: one in flight, and 32
    backlog   100,000 orders that wait: memory, disk, and how fast the first and the last tenth drain
    quota     20,000 wishes for a campaign of 1,000: exactly 1,000 granted
    pace      the largest threshold that is kept exactly

``hansa bench flash-sale`` runs it on a trial network; client, programs and four validators share the machine.
"""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio
from rich.console import Console

from bench.center_rate import RATES_PER_S, RateFigure, largest_kept, measure_rate
from bench.flash_sale_client import Answers, drive, order_of, order_requests
from bench.harness import check_names, cores, interrupted_by_signals, say
from bench.report import Figures, number, print_table, rows_of
from consensus.ledger.errors import InvariantError
from node.network.programs import Program
from services.client.client import Client, open_client
from services.client.keystore import Signer
from services.demo.network import BUSINESS, CENTER, SERVER, Consortium, Doors, Wishes
from services.messages.link import Link, open_link
from services.messages.port import Settlement, Stats, Verdict

PARTS = ("intake", "direct", "backlog", "quota", "pace")
SECONDS = 6.0
THRESHOLD_PER_S = 200.0
"""The message centre's rate while intake is measured."""
ORDERS_PER_S, ORDERS_MAX = 20_000, 200_000
"""How many orders are made for a second of a row, and at the most: fewer than the message centre takes."""
LINGER_MS = 250
"""How long the rights server waits for more meanwhile: 50 events a transaction at that rate."""
RATE_MAX_PER_S = 1_000_000.0
"""As good as no threshold."""
CONNECTIONS = 32
LIST_CONNECTIONS = 4
LIST_ORDERS = 100
BACKLOG_EVENTS = 100_000
BACKLOG_LIST = 500
QUOTA = 1_000
WISHES = 20_000
PACE_SECONDS = 2.0
SETTLE_EACH = 200
WINDOW = 1_024
POLL_S = 0.1
DRAIN_TIMEOUT_S = 900
FIELDS_AFTER_NAME = 11
"""Where user time stands in ``/proc/PID/stat`` after the name."""


class RightsNetwork(Consortium, Protocol):
    """A trial network with the rights system on it, whose programs can be looked at."""

    def program(self, name: str) -> Program:
        """Return a program by its name."""
        ...


OpenRightsNetwork = Callable[[], AbstractAsyncContextManager[RightsNetwork]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured."""

    seconds: float = SECONDS
    backlog: int = BACKLOG_EVENTS
    wishes: int = WISHES
    quota: int = QUOTA
    paces_per_s: tuple[float, ...] = RATES_PER_S
    is_full: bool = False
    """Whether the backlog drains through rights server and chain; else a consumer settles everything at once."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should reach, or not exceed where ``is_most``."""

    name: str
    unit: str
    bound: float
    is_most: bool = False

    def judge(self, figure: float) -> Figures:
        """Return the figure beside its goal."""
        is_met = figure <= self.bound if self.is_most else figure >= self.bound
        sign = "≤" if self.is_most else "≥"
        shown = {"name": self.name, "figure": round(figure, 3), "unit": self.unit}
        return {**shown, "goal": f"{sign} {self.bound:g}", "met": "yes" if is_met else "no"}


GOALS = {
    "lists": Goal("orders accepted, posts of 100", "/s", 2_000),
    "singles": Goal("orders accepted, one a request", "/s", 600),
    "p99": Goal("the same, 99 of 100 answered within", "ms", 100, is_most=True),
    "strict_ratio": Goal("strict order ÷ direct, one in flight", "×", 10),
    "ratio": Goal("lanes ÷ direct, 32 connections", "×", 3),
    "p99_ratio": Goal("p99 ÷ direct's, 32 connections", "×", 0.2, is_most=True),
    "memory": Goal("memory of the centre with the backlog", "MiB", 200, is_most=True),
    "disk": Goal("disk of the backlog", "MiB", 400, is_most=True),
    "drain_ratio": Goal("drain, last tenth ÷ first", "×", 0.8),
    "granted": Goal("granted beyond the quota, or short of it", "", 0, is_most=True),
}


def main(
    *, open_network: OpenRightsNetwork, rows: Sequence[str] = (), sizes: Sizes | None = None, as_json: bool = False
) -> int:
    """Measure, print tables or one JSON object, and return 0.

    Args:
        open_network: starts the network for the time of the benchmark.
        rows: which of :data:`PARTS`; all by default.
        sizes: how much is measured.
        as_json: print one JSON object.

    Raises:
        LocalError: ``bad_arguments``.
        HansaError: something does not start, or answers otherwise than it must: there are no figures then.
    """
    check_names(rows, PARTS)
    with interrupted_by_signals():
        report = trio.run(_measure, open_network, list(rows or PARTS), sizes or Sizes())
    if as_json:
        print(json.dumps(report))
    else:
        _draw(report)
    return 0


async def _measure(open_network: OpenRightsNetwork, rows: list[str], sizes: Sizes) -> Figures:
    say("starting the network")
    report: Figures = {"ok": True, "cores": cores(), "validators": 4, "seconds_per_row": sizes.seconds}
    report |= {"threshold_per_s": THRESHOLD_PER_S, "linger_ms": LINGER_MS}
    measured: list[Figures] = []
    async with open_network() as network:
        bench = FlashSale(network, sizes)
        parts: dict[str, Callable[[], Awaitable[list[Figures]]]] = {
            "intake": bench.measure_intake,
            "direct": bench.measure_direct,
            "backlog": bench.measure_backlog,
            "quota": bench.measure_quota,
            "pace": bench.measure_pace,
        }
        for name in (name for name in PARTS if name in rows):
            measured += await parts[name]()
    return report | {"rows": measured, "goals": goals_of(measured)}


class FlashSale:
    """The parts of the benchmark on one running network."""

    def __init__(self, network: RightsNetwork, sizes: Sizes) -> None:
        self._network = network
        self._sizes = sizes
        self._signer = Signer.of("shop", network.key("shop"))
        self._runs = 0

    async def measure_intake(self) -> list[Figures]:
        """Measure what is taken in while the chain drains at its threshold: lists, singles, singles in strict order."""
        measured = []
        for name, is_strict, orders, connections in (
            ("lists of 100", False, LIST_ORDERS, LIST_CONNECTIONS),
            ("one a request", False, 1, CONNECTIONS),
            ("one a request, strict order", True, 1, CONNECTIONS),
        ):
            say(f"intake, {name}: {self._sizes.seconds} s")
            async with self._opened(self._threshold(is_strict=is_strict)) as run:
                measured.append(await self._intake(run, name, orders, connections))
        return measured

    async def measure_direct(self) -> list[Figures]:
        """Measure the same server without a message centre: it answers when the order is final."""
        measured = []
        for name, is_strict in (("direct, one in flight", True), ("direct", False)):
            say(f"{name}: {self._sizes.seconds} s")
            wishes = Wishes(rate_per_s=THRESHOLD_PER_S, is_direct=True, is_direct_strict=is_strict, is_fresh=True)
            async with self._opened(wishes) as run:
                measured.append(await self._intake(run, name, 1, CONNECTIONS, status=200))
        return measured

    async def measure_backlog(self) -> list[Figures]:
        """Let orders wait while the rights server is down; measure memory and disk, then drain."""
        say(f"backlog of {self._sizes.backlog:,} orders")
        async with self._opened(Wishes(rate_per_s=RATE_MAX_PER_S, is_fresh=True)) as run:
            await self._network.stop_program(SERVER)
            center = self._network.program(CENTER)
            empty_mib = memory_mib(center)
            requests = run.requests(self._sizes.backlog, per_request=BACKLOG_LIST)
            answers = (await run.drive(requests, connections=LIST_CONNECTIONS)).check()
            figures: Figures = {
                "row": "backlog",
                "waiting": (await run.center.stats()).waiting,
                "orders_per_s": round(answers.rate_per_s(BACKLOG_LIST), 1),
                "memory_empty_mib": empty_mib,
                "memory_mib": memory_mib(center),
                "disk_mib": disk_mib(center.folder / "data"),
                "bytes_per_order": round((await run.center.stats()).waiting_bytes / self._sizes.backlog),
            }
            say("draining it")
            if self._sizes.is_full:
                await self._network.start_program(SERVER)
                ended_ns = await self._watch_drain(run.center)
            else:
                ended_ns = await drain_all(run.center, self._sizes.backlog)
            rates = tenths_per_s(ended_ns)
            figures["drained_by"] = "rights server and chain" if self._sizes.is_full else "a consumer alone"
            figures["drained_per_s"] = round(len(ended_ns) * 1e9 / max(1, ended_ns[-1] - ended_ns[0]), 1)
            figures["drained_first_tenth_per_s"], figures["drained_last_tenth_per_s"] = rates
            figures["memory_drained_mib"] = memory_mib(center)
            return [figures]

    async def measure_quota(self) -> list[Figures]:
        """Let many want what few can have, as fast as everything goes."""
        wishes_count, quota = self._sizes.wishes, self._sizes.quota
        say(f"{wishes_count:,} wishes for {quota:,}")
        async with self._opened(Wishes(rate_per_s=RATE_MAX_PER_S, is_fresh=True), quota=quota) as run:
            before = await run.center.stats()
            began = time.monotonic()
            answers = (await run.drive(run.requests(wishes_count, amount=1), connections=CONNECTIONS)).check()
            await self._drained(run.center)
            seconds = time.monotonic() - began
            after = await run.center.stats()
            campaign = await run.client.query("rights", "campaign", {"campaign": run.campaign})
            if not isinstance(campaign, dict):
                raise InvariantError("a campaign is a map of figures")
            return [
                {
                    "row": "quota",
                    "wishes": wishes_count,
                    "quota": quota,
                    "granted": after.done - before.done,
                    "refused": after.refused - before.refused,
                    "dead": after.dead - before.dead,
                    "allocated_on_chain": campaign["created"],
                    "orders_per_s": round(answers.rate_per_s(), 1),
                    "ended_per_s": round(wishes_count / seconds, 1),
                }
            ]

    async def measure_pace(self) -> list[Figures]:
        """Find the largest threshold that deliveries keep exactly and reach; with a message centre alone."""
        say(f"pace: {len(self._sizes.paces_per_s)} thresholds, {PACE_SECONDS} s each")
        figures = await measure_rate(self._sizes.paces_per_s, PACE_SECONDS)
        return [
            *(_pace_row(figure) for figure in figures),
            {
                "row": "largest pace",
                "kept_exactly_per_s": largest_kept(figures, 0),
                "and_reached_to_90_percent_per_s": largest_kept(figures, 0.9),
            },
        ]

    def _threshold(self, *, is_strict: bool) -> Wishes:
        return Wishes(rate_per_s=THRESHOLD_PER_S, is_strict=is_strict, linger_ms=LINGER_MS, is_fresh=True)

    async def _intake(self, run: "Run", name: str, orders: int, connections: int, status: int = 202) -> Figures:
        """Post for the time of a row; return rates, latencies, and what the programs used."""
        programs = [self._network.program(program) for program in (BUSINESS, CENTER)]
        before, used = await run.center.stats(), [processor_s(program) for program in programs]
        requests = run.requests(min(ORDERS_MAX, int(self._sizes.seconds * ORDERS_PER_S)), per_request=orders)
        answers = (await run.drive(requests, connections=connections, seconds=self._sizes.seconds)).check(status)
        after, count = await run.center.stats(), len(answers.latencies_ms) * orders
        business_s, center_s = (processor_s(program) - before for program, before in zip(programs, used, strict=True))
        return {
            "row": name,
            "connections": connections,
            "orders_per_s": round(answers.rate_per_s(orders), 1),
            "p50_ms": answers.quantile_ms(50),
            "p99_ms": answers.quantile_ms(99),
            "waiting": after.waiting,
            "drained_per_s": round((after.delivered_count - before.delivered_count) / answers.seconds, 1),
            "business_us": round(business_s * 1e6 / max(1, count)),
            "center_us": round(center_s * 1e6 / max(1, count)),
        }

    async def _drained(self, center: Link) -> Stats:
        with trio.fail_after(DRAIN_TIMEOUT_S):
            while True:
                stats = await center.stats()
                if not stats.waiting:
                    return stats
                await trio.sleep(POLL_S)

    async def _watch_drain(self, center: Link) -> list[int]:
        """Return when messages ended, as far as asking again and again tells."""
        ended_ns: list[int] = []
        first = await center.stats()
        with trio.fail_after(max(DRAIN_TIMEOUT_S, self._sizes.backlog / 50)):
            while len(ended_ns) < first.waiting:
                await trio.sleep(POLL_S)
                stats = await center.stats()
                ended = stats.done + stats.refused + stats.dead - first.done - first.refused - first.dead
                ended_ns += [time.monotonic_ns()] * (ended - len(ended_ns))
        return ended_ns

    @asynccontextmanager
    async def _opened(self, wishes: Wishes, quota: int = 10**14) -> AsyncIterator["Run"]:
        """Run the programs as wished, with a campaign of its own."""
        self._runs += 1
        campaign = f"bench-{self._runs}"
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                open_client(self._network.genesis, list(self._network.urls.values()))
            )
            arguments = {"campaign": campaign, "quota": quota}
            (await client.call(self._signer, "rights", "open_campaign", arguments)).check()  # type: ignore[arg-type]
            doors = await self._network.open_rights(wishes)
            link = open_link(doors.center, token=doors.center_token, name="bench")
            yield Run(doors, await stack.enter_async_context(link), client, campaign)


@dataclass(frozen=True, slots=True)
class Run:
    """The programs as one row has them."""

    doors: Doors
    center: Link
    client: Client
    campaign: str

    def requests(self, orders: int, *, per_request: int = 1, amount: int = 100) -> list[bytes]:
        """Return requests that post so many orders, each of another user."""
        made = [order_of(at, campaign=self.campaign, prefix=self.campaign, amount=amount) for at in range(orders)]
        return order_requests(made, per_request=per_request)

    async def drive(self, requests: list[bytes], *, connections: int, seconds: float = float("inf")) -> Answers:
        """Send requests to the business server."""
        host, _, port = self.doors.business_url.removeprefix("http://").rpartition(":")
        return await drive(host, int(port), requests, connections=connections, seconds=seconds)


def goals_of(rows: Sequence[Figures]) -> list[Figures]:
    """Return the goals that these rows decide."""
    by_name = {str(row["row"]): row for row in rows}

    def ratio(one: str, other: str, key: str) -> float | None:
        if one not in by_name or other not in by_name:
            return None
        return number(by_name[one][key]) / max(1e-9, number(by_name[other][key]))

    def figure(row: str, key: str) -> float | None:
        return number(by_name[row][key]) if row in by_name else None

    quota = by_name.get("quota")
    backlog = by_name.get("backlog")
    figures = {
        "lists": figure("lists of 100", "orders_per_s"),
        "singles": figure("one a request", "orders_per_s"),
        "p99": figure("one a request", "p99_ms"),
        "strict_ratio": ratio("one a request, strict order", "direct, one in flight", "orders_per_s"),
        "ratio": ratio("one a request", "direct", "orders_per_s"),
        "p99_ratio": ratio("one a request", "direct", "p99_ms"),
        "memory": figure("backlog", "memory_mib"),
        "disk": figure("backlog", "disk_mib"),
        "drain_ratio": backlog
        and number(backlog["drained_last_tenth_per_s"]) / max(1e-9, number(backlog["drained_first_tenth_per_s"])),
        "granted": quota and abs(number(quota["granted"]) - number(quota["quota"])),
    }
    return [GOALS[name].judge(value) for name, value in figures.items() if isinstance(value, int | float)]


async def drain_all(center: Link, count: int) -> list[int]:
    """Receive so many deliveries, up to 200,000, settle each, and return when they came: CLOCK_MONOTONIC, ns."""
    async with center.consume("bench", window=WINDOW) as subscription, trio.open_nursery() as nursery:
        done: list[Settlement] = []
        for at in range(count):
            delivery = await anext(subscription)
            done.append(Settlement(delivery.sequence, delivery.fence, Verdict.DONE))
            if len(done) == SETTLE_EACH or at == count - 1:
                nursery.start_soon(subscription.settle, done)
                done = []
    return list(subscription.received_ns)[:count]


def tenths_per_s(times_ns: Sequence[int]) -> tuple[float, float]:
    """Return how many there were a second in the first and in the last tenth of them."""
    tenth = max(2, len(times_ns) // 10)
    parts = (times_ns[:tenth], times_ns[-tenth:])
    first, last = (round((len(part) - 1) * 1e9 / max(1, part[-1] - part[0]), 1) for part in parts)
    return first, last


def memory_mib(program: Program) -> float:
    """Return the memory that a running program holds."""
    text = Path(f"/proc/{_pid(program)}/statm").read_text()
    return round(int(text.split()[1]) * 4_096 / 1024 / 1024, 1)


def disk_mib(folder: Path) -> float:
    """Return what the files below a folder take of the disk."""
    blocks = sum(path.stat().st_blocks for path in folder.rglob("*") if path.is_file())
    return round(blocks * 512 / 1024 / 1024, 1)


def processor_s(program: Program) -> float:
    """Return the processor time that a running program has used."""
    fields = Path(f"/proc/{_pid(program)}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[FIELDS_AFTER_NAME]) + int(fields[FIELDS_AFTER_NAME + 1])) / 100


def _pace_row(figure: RateFigure) -> Figures:
    return {
        "row": f"pace {figure.rate_per_s:g}/s",
        "threshold_per_s": figure.rate_per_s,
        "is_kept": figure.is_kept,
        "reached_per_s": round(figure.reached_per_s, 1),
        "worst_excess": round(float(figure.excess), 4),
    }


def _pid(program: Program) -> int:
    pid = program.process.pid()
    if pid is None:
        raise InvariantError(f"{program.name} does not run")
    return pid


def _draw(report: Figures) -> None:
    console = Console(highlight=False)
    rows = rows_of(report, "rows")
    console.print(
        f"{report['cores']} cores: client, three programs and {report['validators']} validators; while orders "
        f"are taken in, they drain at {report['threshold_per_s']:g}/s, with a linger of {report['linger_ms']} ms"
    )
    intake = [row for row in rows if "connections" in row]
    paces = [row for row in rows if "is_kept" in row]
    others = [row for row in rows if row not in intake and row not in paces]
    if intake:
        columns = {"row": "row", "orders_per_s": "orders/s", "p50_ms": "p50 ms", "p99_ms": "p99 ms"}
        columns |= {"drained_per_s": "drained/s", "business_us": "business µs", "center_us": "centre µs"}
        print_table(console, intake, columns)
    for row in others:
        lines = [{"figure": name.replace("_", " "), "value": value} for name, value in row.items() if name != "row"]
        console.print(f"[bold]{row['row']}[/]")
        print_table(console, lines, {"figure": "figure", "value": "value"})
    if paces:
        shown = [{**row, "kept": "yes" if row["is_kept"] else "no"} for row in paces]
        columns = {"row": "row", "kept": "kept", "reached_per_s": "reached/s", "worst_excess": "worst window above"}
        print_table(console, shown, columns)
    goals = report["goals"]
    if isinstance(goals, list) and goals:
        print_table(console, goals, {"name": "goal", "figure": "figure", "unit": "", "goal": "wanted", "met": "met"})
