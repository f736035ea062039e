"""What agency sale does: a fund file end to end, packaged against one by one, and the latency of one order.

::

    file        a file of orders with its accounts registered before: submitted, confirmed, recorded, anchored
    large       10,000 generated orders in one file
    packaged    orders in one package against the same number sent one by one, 8 in flight: the same code
    latency     one order alone, from the bank's till to its record, and to its anchor

Times begin when the orders are given to the sales end, after the file was read. ``hansa bench agency`` runs it on a
trial network; client, seven programs and four validators share the machine.
"""

import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio
from rich.console import Console

from bench.harness import check_names, cores, interrupted_by_signals, say
from bench.report import Figures, number, print_table, rows_of
from consensus.ledger.errors import InvariantError
from services.agency.ofd.files import FundFile
from services.agency.ofd.mapping import applications_of
from services.agency.ofd.reader import read, read_path
from services.agency.ofd.synthetic import orders_file, registrations
from services.agency.ofd.writer import write
from services.agency.orders import Application
from services.agency.sales_interface import Progress, State
from services.demo.agency_network import BANK_GATEWAY, SALES, AgencyConsortium, OpenAgencyNetwork
from services.demo.agency_script import INTERFACE, PRODUCT, playable
from services.demo.agency_till import Till, is_done, open_till

PARTS = ("file", "large", "packaged", "latency")
CREATOR = "996"
SERIAL_LENGTH = 24
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured. ``runs`` of the file, ``singles`` one by one with ``in_flight`` of them."""

    runs: int = 5
    large: int = 10_000
    singles: int = 400
    in_flight: int = 8
    latencies: int = 30


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should reach, or not exceed where ``is_most``."""

    row: str
    key: str
    name: str
    unit: str
    bound: float
    is_most: bool = True

    def judge(self, rows: Sequence[Figures]) -> Figures | None:
        """Return the figure beside its goal, None where its row was not measured."""
        row = next((row for row in rows if row["row"] == self.row), None)
        if row is None:
            return None
        figure = number(row[self.key])
        is_met = figure <= self.bound if self.is_most else figure >= self.bound
        shown = {"name": self.name, "figure": round(figure, 3), "unit": self.unit}
        return {**shown, "goal": f"{'≤' if self.is_most else '≥'} {self.bound:g}", "met": "yes" if is_met else "no"}


GOALS = (
    Goal("file", "anchored_s", "the file, sent to anchored", "s", 5),
    Goal("large", "anchored_s", "10,000 orders, sent to anchored", "s", 30),
    Goal("packaged", "ratio", "packaged ÷ one by one", "×", 3, is_most=False),
)


def main(
    *,
    open_network: OpenAgencyNetwork,
    rows: Sequence[str] = (),
    sizes: Sizes | None = None,
    applications: Path | None = None,
    as_json: bool = False,
) -> int:
    """Measure, print tables or one JSON object, and return 0.

    Args:
        open_network: starts the network for the time of the benchmark.
        rows: which of :data:`PARTS`; all by default.
        sizes: how much is measured.
        applications: a fund file of type 03 with orders of product 000198; without one it is drawn.
        as_json: print one JSON object.

    Raises:
        LocalError: ``bad_arguments``, ``bad_fund_file``.
        HansaError: something does not start, or ends otherwise than it must: there are no figures then.
    """
    check_names(rows, PARTS)
    file = orders_file(1) if applications is None else read_path(applications)
    playable(file)
    with interrupted_by_signals():
        report = trio.run(_measure, open_network, list(rows or PARTS), sizes or Sizes(), file)
    report["source"] = "a synthetic file" if applications is None else applications.name
    if as_json:
        print(json.dumps(report))
    else:
        _draw(report)
    return 0


async def _measure(open_network: OpenAgencyNetwork, rows: list[str], sizes: Sizes, file: FundFile) -> Figures:
    say("starting the network")
    measured: list[Figures] = []
    async with open_network() as network:
        await network.open_agency()
        async with open_till(network.socket(SALES), network.socket(BANK_GATEWAY)) as till:
            bench = AgencyBench(network, till, sizes, file)
            await bench.register()
            parts: dict[str, Callable[[], Awaitable[Figures]]] = {
                "file": bench.measure_file,
                "large": bench.measure_large,
                "packaged": bench.measure_packaged,
                "latency": bench.measure_latency,
            }
            for name in (name for name in PARTS if name in rows):
                measured.append(await parts[name]())
    goals = [judged for goal in GOALS if (judged := goal.judge(measured)) is not None]
    report: Figures = {"ok": True, "cores": cores(), "validators": len(network.urls), "rows": measured, "goals": goals}
    return report


class AgencyBench:
    """The parts of the benchmark on one running network."""

    def __init__(self, network: AgencyConsortium, till: Till, sizes: Sizes, file: FundFile) -> None:
        self._network = network
        self._till = till
        self._sizes = sizes
        self._file = file
        self._creator = file.header.creator
        self._orders = playable(file)
        self._runs = 0

    async def register(self) -> None:
        """Open the accounts of the file's holders."""
        say("opening accounts")
        accounts = registrations(self._orders, 1, interface=INTERFACE, distributor=self._creator)
        shown = await self._till.send("accounts", accounts)
        check_ends(shown, State.CONFIRMED, len(accounts))

    async def measure_file(self) -> Figures:
        """Send the file again and again with new serials; the median of each time."""
        runs: list[Figures] = []
        for _ in range(self._sizes.runs):
            say(f"the file, run {len(runs) + 1} of {self._sizes.runs}")
            began = time.monotonic()
            # Read as it is: of the real file only the serials are other ones.
            orders = applications_of(read(write(self._file), self._file.name), {PRODUCT: INTERFACE})
            read_s = time.monotonic() - began
            runs.append({"read_s": read_s, **await self._send(self._renamed(orders))})
        medians = {key: round(statistics.median(number(run[key]) for run in runs), 3) for key in runs[0]}
        return {"row": "file", "orders": len(self._orders), "runs": len(runs), **medians}

    async def measure_large(self) -> Figures:
        """Send many orders at once."""
        orders = self._made(self._sizes.large)
        say(f"{len(orders):,} orders")
        return {"row": "large", "orders": len(orders), **await self._send(orders)}

    async def measure_packaged(self) -> Figures:
        """Send the same number in one package, and one by one with some in flight."""
        count, in_flight = self._sizes.singles, self._sizes.in_flight
        say(f"{count} orders in one package")
        packaged = await self._send(self._made(count))
        say(f"{count} orders one by one, {in_flight} in flight")
        orders = iter(self._made(count))
        began = time.monotonic()

        async def send_in_turn() -> None:
            for order in orders:
                shown = await self._till.send(order.serial, [order], creator=self._creator)
                check_ends(shown, State.CONFIRMED, 1)

        async with trio.open_nursery() as nursery:
            for _ in range(in_flight):
                nursery.start_soon(send_in_turn)
        singles_s = time.monotonic() - began
        packaged_per_s = count / number(packaged["anchored_s"])
        return {
            "row": "packaged",
            "orders": count,
            "in_flight": in_flight,
            "packaged_per_s": round(packaged_per_s, 1),
            "one_by_one_per_s": round(count / singles_s, 1),
            "ratio": round(packaged_per_s * singles_s / count, 2),
        }

    async def measure_latency(self) -> Figures:
        """Send one order after the other; the medians and the worst."""
        say(f"{self._sizes.latencies} orders alone")
        runs = [await self._send([order]) for order in self._made(self._sizes.latencies)]
        recorded, anchored = (sorted(1000 * number(run[key]) for run in runs) for key in ("recorded_s", "anchored_s"))
        return {
            "row": "latency",
            "orders": len(runs),
            "recorded_p50_ms": round(statistics.median(recorded), 1),
            "anchored_p50_ms": round(statistics.median(anchored), 1),
            "anchored_max_ms": round(anchored[-1], 1),
        }

    async def _send(self, orders: Sequence[Application]) -> Figures:
        """Send orders and return when all were taken durably, recorded with their confirmations, and anchored."""
        self._runs += 1
        source = f"bench-{self._runs}"
        began = time.monotonic()
        await self._till.bring(source, orders, creator=self._creator)
        taken_s = time.monotonic() - began
        await self._till.until(source, lambda shown: not shown.waiting, timeout_s=TIMEOUT_S)
        recorded_s = time.monotonic() - began
        shown = await self._till.until(source, is_done, timeout_s=TIMEOUT_S)
        anchored_s = time.monotonic() - began
        own = sum(1 for order in orders if order.distributor == self._creator)
        check_ends(shown, State.CONFIRMED, own)
        return {
            "taken_s": round(taken_s, 4),
            "recorded_s": round(recorded_s, 4),
            "anchored_s": round(anchored_s, 4),
            "orders_per_s": round(len(orders) / anchored_s, 1),
        }

    def _made(self, count: int) -> list[Application]:
        """Return so many orders of the file's holders."""
        own = [order for order in self._orders if order.distributor == self._creator]
        return self._renamed([own[at % len(own)] for at in range(count)])

    def _renamed(self, orders: Sequence[Application]) -> list[Application]:
        """Return the orders with serials that nobody has had."""
        self._runs += 1
        prefix = f"{self._runs:08d}"
        width = SERIAL_LENGTH - len(prefix)
        return [msgspec.structs.replace(order, serial=f"{prefix}{at:0{width}d}") for at, order in enumerate(orders)]


def check_ends(shown: Progress, state: State, count: int) -> None:
    """Make sure that so many orders ended so.

    Raises:
        InvariantError: they did not: figures would say nothing.
    """
    found = sum(total.count for total in shown.totals if total.state is state)
    if found != count:
        raise InvariantError(f"{found} orders are {state} and not {count}: {shown.totals}")


def _draw(report: Figures) -> None:
    console = Console(highlight=False)
    rows = {str(row["row"]): row for row in rows_of(report, "rows")}
    console.print(
        f"{report['cores']} cores: client, seven programs and {report['validators']} validators; {report['source']}.\n"
        "Times from giving the orders to the sales end, durable at each step."
    )
    sent = [row for name, row in rows.items() if name in ("file", "large")]
    if sent:
        columns = {"row": "row", "orders": "orders", "read_s": "read s", "taken_s": "taken s"}
        columns |= {"recorded_s": "recorded s", "anchored_s": "anchored s", "orders_per_s": "orders/s"}
        print_table(console, sent, columns)
    if "packaged" in rows:
        columns = {"orders": "orders", "in_flight": "in flight", "packaged_per_s": "packaged/s"}
        columns |= {"one_by_one_per_s": "one by one/s", "ratio": "ratio"}
        print_table(console, [rows["packaged"]], columns)
    if "latency" in rows:
        columns = {"orders": "orders alone", "recorded_p50_ms": "recorded p50 ms"}
        columns |= {"anchored_p50_ms": "anchored p50 ms", "anchored_max_ms": "worst ms"}
        print_table(console, [rows["latency"]], columns)
    goals = report["goals"]
    if isinstance(goals, list) and goals:
        print_table(console, goals, {"name": "goal", "figure": "figure", "unit": "", "goal": "wanted", "met": "met"})
