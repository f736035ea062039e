"""``hansa bench scale``: what grows with state, history and validators, and how long a start takes.

Five rows, each with a floor and an aim:

- *keys*: throughput as the state grows to 1,000,000 keys, all written by transactions. Senders are the same
  2,500 accounts at every size, four keys each (account, name, balance, lane); further accounts, three keys each,
  receive. A transfer goes to any of them, so that the changes fall on the whole tree.
- *memory*: a node after 200,000 transactions. *catch_up*: that node loses its data and fetches the chain from
  the others, which rest meanwhile; its rate counts from the start of its process, against the live rate before.
- *up*: the commands ``network init`` and ``network up``, each a process of its own, from nothing to ready.
- *validators*: processor time of all nodes for a transaction ÷ their number, with more validators.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio
from rich import box
from rich.console import Console
from rich.table import Table

import bench as _bench_package
from bench.harness import (
    Bench,
    bench_network,
    check_names,
    cores,
    measure_verification,
    memory_mib,
    say,
    wait_until_idle,
)
from bench.throughput import ROWS, figures
from consensus.ledger.errors import LocalError
from node.network import local
from node.network.homes import NodeHome, is_network, load_network
from node.network.trial import free_port_base

Figures = dict[str, object]

PARTS = ("keys", "memory", "catch_up", "up", "validators")
SENDERS = 2_500
KEYS_A_SENDER = 4
KEYS_A_RECEIVER = 3
HISTORY_ROW_S = 10.0
"""The history is made in rows of this length, until it is long enough."""
POLL_S = 0.05
CATCH_UP_S_MAX = 300

ENVELOPE = next(row for row in ROWS if row.name == "envelope")
CALLS_100 = next(row for row in ROWS if row.name == "calls_100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large everything is; the defaults take some six minutes on two processors."""

    seconds: float = 6.0
    keys: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    transactions: int = 200_000
    up_rounds: int = 3
    validators: tuple[int, ...] = (4, 7, 10)
    accounts: int = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a figure should reach: the floor at least, better the aim."""

    name: str
    unit: str
    floor: float
    aim: float

    def judge(self, figure: float) -> Figures:
        """Return the figure beside its goal; ``met`` is ``aim``, ``floor`` or ``neither``."""
        more_is_better = self.aim > self.floor

        def reaches(goal: float) -> bool:
            return figure >= goal if more_is_better else figure <= goal

        met = "aim" if reaches(self.aim) else "floor" if reaches(self.floor) else "neither"
        return {
            "name": self.name,
            "figure": round(figure, 3),
            "unit": self.unit,
            "floor": self.floor,
            "aim": self.aim,
            "met": met,
        }


def main(*, rows: Sequence[str] = (), sizes: Sizes | None = None, as_json: bool = False) -> int:
    """Measure, print a table or one JSON object, and return 0.

    Args:
        rows: which of :data:`PARTS`; all by default.
        sizes: how large everything is.
        as_json: print one JSON object.

    Raises:
        LocalError: ``bad_arguments``.
        HansaError: a network does not start, or a transaction was refused: there are no figures then.
    """
    check_names(rows, PARTS)
    report = trio.run(measure, rows or PARTS, sizes or Sizes())
    if as_json:
        print(json.dumps(report))
    else:
        _draw(report)
    return 0


async def measure(parts: Sequence[str], sizes: Sizes) -> Figures:
    """Return the report on these parts: every part's own figures, and ``figures``, each beside its goal."""
    report: Figures = {"ok": True, "cores": cores(), "verify_us": round(measure_verification() * 1e6, 1)}
    goals: list[Figures] = []
    if "keys" in parts:
        report["keys"] = points = await measure_keys(sizes)
        goals += keys_goals(points)
    if "memory" in parts or "catch_up" in parts:
        found = await _measure_history(sizes, with_catch_up="catch_up" in parts)
        report |= found
        goals += [goal for part, goal in _history_goals(found).items() if part in parts]
    if "up" in parts:
        report["up"] = up = await _measure_up(sizes.up_rounds)
        goals.append(_goal("network up to four ready nodes", "s", 4, 2.5).judge(up["init_s"] + up["up_s"]))
    if "validators" in parts:
        report["validators"] = counts = await measure_validators(sizes)
        goals += validators_goals(counts)
    return report | {"figures": goals}


def _goal(name: str, unit: str, floor: float, aim: float) -> Goal:
    return Goal(name=name, unit=unit, floor=floor, aim=aim)


async def measure_keys(sizes: Sizes) -> list[Figures]:
    """Return the rows *envelope* and *calls_100* with each number of keys in the state, in one network."""
    senders = min(SENDERS, sizes.keys[0] // KEYS_A_SENDER)
    points: list[Figures] = []
    async with bench_network(accounts=senders) as bench:
        for keys in sizes.keys:
            wanted = senders + (keys - senders * KEYS_A_SENDER) // KEYS_A_RECEIVER
            missing = wanted - bench.load.address_count
            say(f"filling the state up to {keys:,} keys")
            began = time.monotonic()
            await bench.load.fill(bench.network.key("bank-a"), missing)
            fill_s = time.monotonic() - began
            await wait_until_idle(bench.homes)
            for row in (ENVELOPE, CALLS_100):
                say(f"{row.name} with {keys:,} keys: {sizes.seconds} s")
                samples, used = await bench.measure(row, seconds=sizes.seconds)
                points.append({"keys": keys, "fill_s": round(fill_s, 1), **figures(row, samples, used)})
    return points


def keys_goals(points: Sequence[Mapping[str, object]]) -> list[Figures]:
    """Return what of its throughput each row keeps with the most keys, and what a call costs more."""
    goals: list[Figures] = []
    for name in dict.fromkeys(str(point["row"]) for point in points):
        own = [point for point in points if point["row"] == name]
        few, many = own[0], own[-1]
        what = f"{name} with {many['keys']:,} keys ÷ {few['keys']:,}"
        goals.append(_goal(what, "of calls/s", 0.8, 0.95).judge(_ratio(many, few, "calls_per_s")))
    return goals


def _ratio(one: Mapping[str, object], other: Mapping[str, object], key: str) -> float:
    return number(one[key]) / number(other[key])


def number(value: object) -> float:
    """Return a figure of a report as a number.

    Raises:
        LocalError: ``bad_arguments`` for what is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LocalError("bad_arguments", f"{value!r} in a report is no number")
    return float(value)


async def _measure_history(sizes: Sizes, *, with_catch_up: bool) -> Figures:
    """Return memory after so many transactions, and how a node that lost its data catches up with them."""
    async with bench_network(accounts=sizes.accounts) as bench:
        say(f"envelope: {sizes.transactions:,} transactions")
        done, measured, seconds = 0, 0, 0.0
        while done < sizes.transactions:
            samples = await bench.load.run(ENVELOPE, seconds=min(HISTORY_ROW_S, sizes.seconds * 2))
            done += samples.calls_in_all
            measured, seconds = measured + samples.transactions, seconds + samples.seconds
        live_tps = measured / seconds
        memory = {home.name: memory_mib(home) for home in bench.homes}
        found: Figures = {
            "memory": {"transactions": done, "live_tps": round(live_tps, 1), "nodes_mib": memory},
        }
        if with_catch_up:
            found["catch_up"] = await _catch_up(bench, bench.homes[-1], done, live_tps)
    return found


async def _catch_up(bench: Bench, home: NodeHome, transactions: int, live_tps: float) -> Figures:
    """Wipe a node's data and start it: it may not vote any more, and follows."""
    say(f"{home.name} loses its data and catches up")
    network = bench.network.network
    await local.stop(network, [home.name])
    await trio.to_thread.run_sync(shutil.rmtree, home.data)
    others = [node for node in bench.homes if node is not home]
    await wait_until_idle(others)
    head = max(status.height or 0 for status in await local.status(network))
    began = time.monotonic()
    ready_s = caught_up_s = 0.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(local.start, network, [home.name])
        with trio.fail_after(CATCH_UP_S_MAX):
            while not caught_up_s:
                health = await local.read_health(home.rpc)
                height = health.get("height") if health else None
                if isinstance(height, int):
                    ready_s = ready_s or time.monotonic() - began
                    caught_up_s = time.monotonic() - began if height >= head else 0.0
                await trio.sleep(POLL_S)
    return {
        "transactions": transactions,
        "blocks": head,
        "ready_s": round(ready_s, 2),
        "caught_up_s": round(caught_up_s, 2),
        "blocks_per_s": round(head / caught_up_s, 1),
        "tps": round(transactions / caught_up_s, 1),
        "live_tps": round(live_tps, 1),
        "to_live": round(transactions / caught_up_s / live_tps, 3),
    }


def _history_goals(found: Figures) -> dict[str, Figures]:
    goals: dict[str, Figures] = {}
    match found:
        case {"memory": {"transactions": int() as count, "nodes_mib": dict() as nodes}}:
            largest = max(memory["rss"] for memory in nodes.values())
            goals["memory"] = _goal(f"memory (RSS) after {count:,} transactions", "MiB", 300, 200).judge(largest)
    match found:
        case {"catch_up": {"to_live": float() as ratio}}:
            goals["catch_up"] = _goal("catch-up of a wiped node ÷ live rate", "×", 2, 4).judge(ratio)
    return goals


async def _measure_up(rounds: int) -> dict[str, float]:
    """Return the median seconds of ``network init`` and of ``network up``."""
    inits, ups = [], []
    for _ in range(rounds):
        say("network init, network up")
        place = Path(tempfile.mkdtemp(prefix="hansa-"))
        try:
            inits.append(await _command("network", "init", str(place), "--port-base", str(free_port_base(4))))
            ups.append(await _command("network", "up", str(place)))
        finally:
            with trio.CancelScope(shield=True):
                if is_network(place):
                    await local.stop(load_network(place))
                shutil.rmtree(place, ignore_errors=True)
    return {"init_s": round(statistics.median(inits), 2), "up_s": round(statistics.median(ups), 2)}


async def _command(*arguments: str) -> float:
    """Run a command of ours as a program of its own and return the seconds that it took."""
    began = time.monotonic()
    done = await trio.run_process(
        [sys.executable, "-m", "cli.main", *arguments, "--json"],
        check=False,
        capture_stdout=True,
        stderr=subprocess.DEVNULL,
        cwd=Path(_bench_package.__path__[0]).parent,
    )
    if done.returncode:
        raise LocalError("not_ready", f"hansa {' '.join(arguments)}: {done.stdout.decode(errors='replace').strip()}")
    return time.monotonic() - began


async def measure_validators(sizes: Sizes) -> list[Figures]:
    """Return the row *envelope* with each number of validators, and what a transaction costs all nodes."""
    counts: list[Figures] = []
    for validators in sizes.validators:
        async with bench_network(validators=validators, accounts=sizes.accounts) as bench:
            say(f"envelope with {validators} validators: {sizes.seconds} s")
            samples, used = await bench.measure(ENVELOPE, seconds=sizes.seconds)
        cost_us = used.nodes_s * 1e6 / max(1, samples.calls_in_all)
        shares = {"nodes_us_per_tx": round(cost_us, 1), "us_per_node": round(cost_us / validators, 1)}
        counts.append({"validators": validators, **shares, **figures(ENVELOPE, samples, used)})
    return counts


def validators_goals(counts: Sequence[Mapping[str, object]]) -> list[Figures]:
    """Return each further number's cost of a transaction ÷ validators, against that of the first number."""
    few, *more = counts
    return [
        _goal(f"n = {many['validators']}, cost of a transaction ÷ n, to n = {few['validators']}", "×", 1.3, 1.0).judge(
            _ratio(many, few, "us_per_node")
        )
        for many in more
    ]


def _draw(report: Figures) -> None:
    console = Console(highlight=False)
    console.print(f"{report['cores']} cores; one verification {report['verify_us']} µs")
    _table(console, report["figures"], ("name", "figure", "unit", "floor", "aim", "met"))
    _table(console, report.get("keys"), ("keys", "row", "tps", "calls_per_s", "cpu_us_per_call", "cores_used"))
    _table(console, report.get("validators"), ("validators", "tps", "nodes_us_per_tx", "us_per_node", "cores_used"))
    match report:
        case {"memory": {"nodes_mib": dict() as nodes}}:
            _table(console, [{"node": name, **memory} for name, memory in nodes.items()], ("node", "rss", "pss"))
    match report:
        case {"catch_up": dict() as catch_up}:
            _table(console, [catch_up], tuple(catch_up))
    match report:
        case {"up": dict() as up}:
            _table(console, [up], tuple(up))


def _table(console: Console, rows: object, columns: Sequence[str]) -> None:
    if not isinstance(rows, list) or not rows:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column in ("name", "row", "met") else "right")
    for row in rows:
        values = [row[column] for column in columns]
        table.add_row(*(f"{value:,}" if isinstance(value, int | float) else str(value) for value in values))
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[], help=", ".join(PARTS))
    parser.add_argument("--json", action="store_true", dest="as_json")
    sys.exit(main(**vars(parser.parse_args())))
