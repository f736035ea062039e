"""What settlement does: trades end to end on SQLite and on PostgreSQL, one trade alone, and the scan's selection.

::

    sqlite       trades placed in batches, from signing to COMPLETED; then trades one after the other
    postgresql   the same with events and accounts in PostgreSQL, on the same network and programs
    scan         the selection of stuck events among few and among many finished ones, on both

A trade is complete when its event says so: signed, registered, money held, released, sent, final in a certified block,
noticed, paid, answered; each durably. Its lien is lifted right after. ``hansa bench settlement`` runs it on a trial
network; client, four programs and four validators share the machine. The money is simulated.
"""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import trio
from rich.console import Console

from bench.goals import Goal, percentiles
from bench.harness import check_names, cores, interrupted_by_signals, say
from bench.postgres import PostgresCluster, postgres_server
from bench.report import Figures, number, print_table, rows_of
from bench.settlement_rows import selection_figures
from consensus.ledger.errors import InvariantError
from services.demo.settlement_network import OpenSettlementNetwork, SettlementConsortium, Wishes
from services.demo.settlement_script import BUYERS, PAID, SELLERS, Deal
from services.demo.settlement_till import Till, open_till
from services.settlement.states import Outcome, State

PARTS = ("sqlite", "postgresql", "scan")
NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured: ``trades`` in batches of ``batch``, ``in_flight`` batches at a time; rows of the scan.

    So few that they only show that it runs are not held against the goals.
    """

    trades: int = 2_000
    batch: int = 50
    in_flight: int = 6
    alone: int = 60
    finished_few: int = 10_000
    finished_many: int = 1_000_000
    stuck: int = 1_000
    are_judged: bool = True


QUICK = Sizes(
    trades=40, batch=10, in_flight=2, alone=5, finished_few=100, finished_many=10_000, stuck=10, are_judged=False
)


GOALS = (
    Goal("sqlite", "events_per_s", "end to end on SQLite", "events/s", 100),
    Goal("postgresql", "events_per_s", "end to end on PostgreSQL", "events/s", 100),
    Goal("sqlite", "alone_p50_ms", "one trade alone, p50", "ms", 150, is_most=True),
    Goal("scan sqlite", "many_ms", "selection on SQLite", "ms", 1_000, is_most=True),
    Goal("scan sqlite", "ratio", "many finished ÷ few, SQLite", "×", 2, is_most=True),
    Goal("scan postgresql", "many_ms", "selection on PostgreSQL", "ms", 1_000, is_most=True),
    Goal("scan postgresql", "ratio", "many finished ÷ few, PostgreSQL", "×", 2, is_most=True),
)


def main(
    *,
    open_network: OpenSettlementNetwork,
    rows: Sequence[str] = (),
    sizes: Sizes | None = None,
    database: str = "",
    as_json: bool = False,
) -> int:
    """Measure, print tables or one JSON object, and return 0.

    Args:
        open_network: starts the network for the time of the benchmark.
        rows: which of :data:`PARTS`; all by default.
        sizes: how much is measured.
        database: a PostgreSQL URL to measure on; "" starts a server for the time of the benchmark.
        as_json: print one JSON object.

    Raises:
        LocalError: ``bad_arguments``, ``postgres_missing``.
        HansaError: something does not start, or a trade ends otherwise than it must: there are no figures then.
    """
    check_names(rows, PARTS)
    wanted = [name for name in PARTS if name in (rows or PARTS)]
    with ExitStack() as stack:
        server = None
        if "scan" in wanted or ("postgresql" in wanted and not database):
            say("starting PostgreSQL")
            server = stack.enter_context(postgres_server())
        stores = {"sqlite": "", "postgresql": database or (server.new_database() if server else "")}
        with interrupted_by_signals():
            report = trio.run(_measure, open_network, wanted, sizes or Sizes(), stores, server)
    if as_json:
        print(json.dumps(report))
    else:
        _draw(report)
    return 0


async def _measure(
    open_network: OpenSettlementNetwork,
    wanted: list[str],
    sizes: Sizes,
    stores: Mapping[str, str],
    server: PostgresCluster | None,
) -> Figures:
    measured: list[Figures] = []
    ends = [name for name in wanted if name != "scan"]
    if ends:
        say("starting the network")
        async with open_network() as network:
            bench = SettlementBench(network, sizes)
            for name in ends:
                measured.append(await bench.measure(name, stores[name]))
    if "scan" in wanted and server is not None:
        measured += await _measure_scan(server, sizes)
    goals = [judged for goal in GOALS if sizes.are_judged and (judged := goal.judge(measured)) is not None]
    report: Figures = {"ok": True, "cores": cores(), "simulated": True, "rows": measured, "goals": goals}
    rates = {str(row["row"]): number(row["events_per_s"]) for row in measured if "events_per_s" in row}
    if len(rates) == len(NAMES):
        report["postgresql_to_sqlite"] = round(rates["postgresql"] / rates["sqlite"], 2)
    return report


class SettlementBench:
    """Trades on one running network."""

    def __init__(self, network: SettlementConsortium, sizes: Sizes) -> None:
        self._network = network
        self._sizes = sizes
        self._numbers = count(1)

    async def measure(self, row: str, database: str) -> Figures:
        """Make trades with both stores in one database, many together and then one by one."""
        sizes = self._sizes
        doors = await self._network.open_settlement(Wishes(database=database))
        urls = list(self._network.urls.values())
        async with open_till(self._network.genesis, urls, doors, self._network.key) as till:
            deals = self._deals(row, sizes.trades)
            alone = self._deals(f"{row}-alone", sizes.alone)
            await till.endow([*deals, *alone])
            await _trade_all(till, alone[: sizes.alone // 4])  # programs and connections are warm then
            say(f"{len(deals):,} trades on {NAMES[row]}")
            began = time.monotonic()
            await self._trade_in_batches(till, deals)
            took_s = time.monotonic() - began
            say(f"{sizes.alone} trades alone on {NAMES[row]}")
            times_ms = [await _timed(till, deal) for deal in self._deals(f"{row}-timed", sizes.alone)]
        return {
            "row": row,
            "trades": len(deals),
            "batch": sizes.batch,
            "in_flight": sizes.in_flight,
            "seconds": round(took_s, 2),
            "events_per_s": round(len(deals) / took_s, 1),
            **{f"alone_{name}": figure for name, figure in percentiles(times_ms).items()},
        }

    async def _trade_in_batches(self, till: Till, deals: Sequence[Deal]) -> None:
        batches = iter([deals[at : at + self._sizes.batch] for at in range(0, len(deals), self._sizes.batch)])

        async def trade() -> None:
            for batch in batches:
                await _trade_all(till, batch)

        async with trio.open_nursery() as nursery:
            for _ in range(self._sizes.in_flight):
                nursery.start_soon(trade)

    def _deals(self, name: str, number_of: int) -> list[Deal]:
        """Return trades of one unit at 1.00 CNY between all sellers and buyers in turn, with ids nobody has had."""
        run = next(self._numbers)
        stamp = time.time_ns() // 1_000_000
        return [
            Deal(
                event=f"{name}-{run}-{stamp}-{at}",
                seller=SELLERS[at % len(SELLERS)],
                buyer=BUYERS[at // len(SELLERS) % len(BUYERS)],
                units=1,
                price=100,
                wanted=PAID,
            )
            for at in range(number_of)
        ]


async def _trade_all(till: Till, deals: Sequence[Deal]) -> None:
    """Make trades and wait until all are paid.

    Raises:
        InvariantError: one ended otherwise: figures would say nothing.
    """
    if not deals:
        return
    for event in (await till.trade(deals)).values():
        if (event.state, event.outcome) != (State.COMPLETED, Outcome.PAID):
            raise InvariantError(f"{event.event} is {event.state} {event.outcome} {event.code}")


async def _timed(till: Till, deal: Deal) -> float:
    began = time.monotonic()
    await _trade_all(till, [deal])
    return 1_000 * (time.monotonic() - began)


# -- the scan's selection ------------------------------------------------------------------------------


async def _measure_scan(server: PostgresCluster, sizes: Sizes) -> list[Figures]:
    """Measure the selection on new stores, among few finished events and among many."""
    rows: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="hansa-bench-") as folder:
        for name in NAMES:
            found = []
            for finished in (sizes.finished_few, sizes.finished_many):
                say(f"{sizes.stuck:,} stuck among {finished:,} finished events on {NAMES[name]}")
                file = Path(folder) / f"{finished}.db"
                url = f"sqlite:///{file}" if name == "sqlite" else server.new_database()
                found.append(await selection_figures(url, finished=finished, stuck=sizes.stuck))
            few, many = found
            rows.append(
                {
                    "row": f"scan {name}",
                    "stuck": sizes.stuck,
                    "finished_few": few.finished,
                    "few_ms": round(few.p50_ms, 2),
                    "finished_many": many.finished,
                    "many_ms": round(many.p50_ms, 2),
                    "many_max_ms": round(many.max_ms, 2),
                    "ratio": round(many.best_ms / few.best_ms, 2),
                    "load_s": round(many.load_s, 1),
                }
            )
    return rows


def _draw(report: Figures) -> None:
    console = Console(highlight=False)
    rows = rows_of(report, "rows")
    console.print(
        f"{report['cores']} cores: client, four programs and four validators; simulated money.\n"
        "Trades from signing to COMPLETED, durable at each step; many together, then alone."
    )
    if traded := [row for row in rows if "events_per_s" in row]:
        columns = {"row": "row", "trades": "trades", "seconds": "s", "events_per_s": "events/s"}
        columns |= {"alone_p50_ms": "alone: p50 ms", "alone_p99_ms": "p99 ms", "alone_max_ms": "worst ms"}
        print_table(console, traded, columns)
    if "postgresql_to_sqlite" in report:
        console.print(f"PostgreSQL does {report['postgresql_to_sqlite']} of what SQLite does.")
    if scanned := [row for row in rows if "many_ms" in row]:
        columns = {"row": "row", "stuck": "stuck", "few_ms": "among few ms", "finished_many": "finished"}
        columns |= {"many_ms": "among many ms", "many_max_ms": "worst", "ratio": "ratio"}
        print_table(console, scanned, columns)
    goals = report["goals"]
    if isinstance(goals, list) and goals:
        print_table(console, goals, {"name": "goal", "figure": "figure", "unit": "", "goal": "wanted", "met": "met"})
