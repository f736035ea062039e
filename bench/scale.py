"""``hansa bench scale``: what grows with state, history and validators, and how long a start takes.

Five rows, each with a floor and an aim:

- *keys*: throughput as the state grows to 1,000,000 keys, all written by transactions. The same 2,500 accounts,
  four keys each (account, name, balance, lane), transfer units to each other at every size; further accounts,
  three keys each, fill the state. The rows named *spread* transfer to any of all these accounts instead, so that
  each transfer changes a place of the tree that no cache holds: the hardest load that a large state can have.
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
from dataclasses import dataclass, replace
from pathlib import Path

import trio
from rich.console import Console

import bench as _bench_package
from bench.harness import (
    Bench,
    bench_network,
    check_names,
    cores,
    interrupted_by_signals,
    measure_verification,
    memory_mib,
    say,
    usage_of,
    wait_until_idle,
)
from bench.report import Figures, number, print_stages, print_table, rows_of, stages_of
from bench.throughput import ROW_COLUMNS, ROWS, figures
from consensus.ledger.errors import LocalError
from node.network import local
from node.network.homes import NodeHome, is_network, load_network
from node.network.trial import free_port_base

PARTS = ("keys", "memory", "catch_up", "up", "validators")
SENDERS = 2_500
KEYS_A_SENDER = 4
KEYS_A_RECEIVER = 3
FILL_ACCOUNTS_MAX = 32_000
"""How many accounts are made at a time, so that their keys need little memory."""
HISTORY_ROW_S = 10.0
"""The history is made in rows of this length, until it is long enough."""
POLL_S = 0.05
CATCH_UP_S_MAX = 300
STAGES = "stages_us_per_call"
TWO = {"figure": "figure", "": ""}

ENVELOPE = next(row for row in ROWS if row.name == "envelope")
CALLS_100 = next(row for row in ROWS if row.name == "calls_100")
KEYS_ROWS = (
    ENVELOPE,
    CALLS_100,
    *(replace(row, name=f"{row.name}_spread", is_spread=True) for row in (ENVELOPE, CALLS_100)),
)


def sizes_of_state(keys: int) -> tuple[int, ...]:
    """Return the numbers of keys at which throughput is measured on the way to this one."""
    return (*(size for size in (10_000, 100_000) if size < keys), keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large everything is; the defaults take some six minutes on two processors."""

    seconds: float = 6.0
    keys: tuple[int, ...] = sizes_of_state(1_000_000)
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
    report = measure(rows or PARTS, sizes or Sizes())
    if as_json:
        print(json.dumps(report))
    else:
        _draw(report)
    return 0


def measure(parts: Sequence[str], sizes: Sizes) -> Figures:
    """Return the report on these parts: every part's own figures, and ``figures``, each beside its goal."""
    report: Figures = {"ok": True, "cores": cores(), "verify_us": round(measure_verification() * 1e6, 1)}
    goals: list[Figures] = []
    if "keys" in parts:
        report["keys"] = points = trio.run(measure_keys, sizes)
        goals += keys_goals(points)
    if "memory" in parts or "catch_up" in parts:
        found = trio.run(_measure_history, sizes, "catch_up" in parts)
        report |= found
        goals += [goal for part, goal in _history_goals(found).items() if part in parts]
    if "up" in parts:
        report["up"] = up = _measure_up(sizes.up_rounds)
        goals.append(_goal("network up to four ready nodes", "s", 4, 2.5).judge(up["init_s"] + up["up_s"]))
    if "validators" in parts:
        report["validators"] = counts = trio.run(measure_validators, sizes)
        goals += validators_goals(counts)
    return report | {"figures": goals}


def _goal(name: str, unit: str, floor: float, aim: float) -> Goal:
    return Goal(name=name, unit=unit, floor=floor, aim=aim)


async def measure_keys(sizes: Sizes) -> list[Figures]:
    """Return the rows of transfers, each also *spread*, with each number of keys in one network's state."""
    senders = min(SENDERS, sizes.keys[0] // KEYS_A_SENDER)
    points: list[Figures] = []
    async with bench_network(accounts=senders) as bench:
        for keys in sizes.keys:
            wanted = senders + (keys - senders * KEYS_A_SENDER) // KEYS_A_RECEIVER
            began = time.monotonic()
            while missing := wanted - bench.load.address_count:
                say(f"filling the state up to {keys:,} keys: {missing:,} accounts to go")
                await bench.load.fill(bench.network.key("bank-a"), min(missing, FILL_ACCOUNTS_MAX))
            fill_s = time.monotonic() - began
            await wait_until_idle(bench.homes)
            say(f"settling: {sizes.seconds} s")
            await bench.load.run(ENVELOPE, seconds=sizes.seconds)
            for row in KEYS_ROWS:
                say(f"{row.name} with {keys:,} keys: {sizes.seconds} s")
                samples, used = await bench.measure(row, seconds=sizes.seconds)
                stages = used.stages_us(calls=samples.calls_in_all, nodes=len(bench.homes))
                filled = {"keys": keys, "fill_s": round(fill_s, 1), STAGES: stages}
                points.append({**filled, **figures(row, samples, used)})
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


async def _measure_history(sizes: Sizes, with_catch_up: bool) -> Figures:
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
    used = usage_of([home])
    return {
        "transactions": transactions,
        "blocks": head,
        "ready_s": round(ready_s, 2),
        "caught_up_s": round(caught_up_s, 2),
        "blocks_per_s": round(head / caught_up_s, 1),
        "tps": round(transactions / caught_up_s, 1),
        "live_tps": round(live_tps, 1),
        "to_live": round(transactions / caught_up_s / live_tps, 3),
        "node_us_per_tx": round(used.nodes_s * 1e6 / transactions, 1),
        "cores_used": round(used.nodes_s / caught_up_s, 2),
        STAGES: used.stages_us(calls=transactions, nodes=1),
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


def _measure_up(rounds: int) -> dict[str, float]:
    """Return the median seconds of ``network init`` and of ``network up``."""
    inits, ups = [], []
    with interrupted_by_signals():
        for _ in range(rounds):
            say("network init, network up")
            place = Path(tempfile.mkdtemp(prefix="hansa-"))
            try:
                inits.append(_command("network", "init", str(place), "--port-base", str(free_port_base(4))))
                ups.append(_command("network", "up", str(place)))
            finally:
                if is_network(place):
                    trio.run(local.stop, load_network(place))
                shutil.rmtree(place, ignore_errors=True)
    return {"init_s": round(statistics.median(inits), 2), "up_s": round(statistics.median(ups), 2)}


def _command(*arguments: str) -> float:
    """Run a command of ours as a program of its own and return the seconds that it took.

    Raises:
        LocalError: ``not_ready`` when it fails.
    """
    root = Path(_bench_package.__path__[0]).parent
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments, "--json"], capture_output=True, check=False, cwd=root
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
        stages = used.stages_us(calls=samples.calls_in_all, nodes=validators)
        shares = {"nodes_us_per_tx": round(cost_us, 1), "us_per_node": round(cost_us / validators, 1)}
        counts.append({"validators": validators, **shares, STAGES: stages, **figures(ENVELOPE, samples, used)})
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
    print_table(console, rows_of(report, "figures"), {key: key for key in rows_of(report, "figures")[0]})
    if "keys" in report:
        rows = rows_of(report, "keys")
        print_table(console, rows, {"keys": "keys", "row": "row", **ROW_COLUMNS})
        for kind in dict.fromkeys(str(row["row"]) for row in rows):
            print_stages(console, {f"{kind} {row['keys']:,}": stages_of(row) for row in rows if row["row"] == kind})
    if "validators" in report:
        columns = {"validators": "n", "tps": "tx/s", "nodes_us_per_tx": "all nodes, µs a tx", "us_per_node": "÷ n"}
        rows = rows_of(report, "validators")
        print_table(console, rows, columns | {"cores_used": "cores used"})
        print_stages(console, {f"n = {row['validators']}": stages_of(row) for row in rows})
    match report:
        case {"memory": {"nodes_mib": dict() as nodes}}:
            columns = {"node": "node", "rss": "RSS MiB", "pss": "PSS MiB"}
            print_table(console, [{"node": name, **memory} for name, memory in nodes.items()], columns)
    for part in ("catch_up", "up"):
        match report.get(part):
            case dict() as found:
                lines = [{"figure": f"{part} {key}", "": value} for key, value in found.items() if key != STAGES]
                print_table(console, lines, TWO)
    match report.get("catch_up"):
        case dict() as found:
            print_stages(console, {"catch_up": stages_of(found)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[], help=", ".join(PARTS))
    parser.add_argument("--json", action="store_true", dest="as_json")
    sys.exit(main(**vars(parser.parse_args())))
