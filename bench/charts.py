"""``hansa bench charts``: throughput and latency along one axis each, drawn as SVG.

- *batch* and *calls*: throughput against transactions a frame, and against calls a signature.
- *latency*: frames of 50 fall due at random moments (open loop), at parts of the rate that the row *envelope*
  reaches in the same run; a latency counts from the moment at which its frame was due.
- *stages*: where a node's processor time goes, by what nodes count at ``/metrics``; *network and the rest* is
  what its process used beyond that.
- *keys* and *validators*: as ``hansa bench scale`` measures them.

Figures that a report of an earlier run holds are drawn and not measured again.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio
from rich.console import Console

from bench.harness import (
    ACCOUNTS,
    SERVER_LANES,
    Bench,
    Usage,
    bench_network,
    check_names,
    cores,
    measure_verification,
    say,
)
from bench.load import Row, Samples
from bench.pictures import CHARTS, draw
from bench.report import Figures, print_stages, print_table, rows_of, stages_of
from bench.scale import Sizes, measure_keys, measure_validators
from bench.throughput import ROW_COLUMNS, ROWS, figures
from consensus.ledger.errors import LocalError

FOLDER = Path("docs/charts")
SECONDS = 6.0
FRAMES = {1: 1_000, 5: 400, 20: 100, 50: 40, 200: 10}
"""Transactions a frame → frames in flight: 2,000 transactions, or as many messages as *single* has."""
CALLS = {1: 1_000, 3: 600, 10: 200, 30: 60, 100: 16}
"""Calls a transaction, which travels alone → transactions in flight."""
PERCENTS = (10, 25, 50, 75, 90)
LATENCY_ROW = 1.5
"""How much longer the rows of the latency take: few frames fall due at a tenth of the load."""
STAGE_ROWS = ("single", "envelope", "calls_100", "rights_100")

KEPT = {*CHARTS, "cores", "verify_us"}
"""What is taken out of earlier reports."""
FIRST_COLUMNS = {
    "batch": {"transactions_a_frame": "a frame"},
    "calls": {"calls_a_signature": "a signature"},
    "latency": {"percent": "% of most"},
    "keys": {"keys": "keys", "row": "row"},
    "validators": {"validators": "validators"},
}

_NAMED = {row.name: row for row in ROWS}
ENVELOPE = _NAMED["envelope"]


def main(
    *,
    only: Sequence[str] = (),
    folder: Path = FOLDER,
    earlier: Sequence[Path] = (),
    seconds: float = SECONDS,
    accounts: int = ACCOUNTS,
    sizes: Sizes | None = None,
    as_json: bool = False,
) -> int:
    """Measure what is missing, write the charts, print tables or one JSON object, and return 0.

    Args:
        only: which of :data:`CHARTS`; all by default.
        folder: where the SVG files go; made when missing.
        earlier: JSON reports of ``hansa bench charts`` and ``scale``; a later one counts more.
        seconds: how long each row is measured.
        accounts: among how many accounts units are transferred.
        sizes: how large the states and networks of ``keys`` and ``validators`` are.
        as_json: print one JSON object.

    Raises:
        LocalError: ``bad_arguments``, ``file_error``.
        HansaError: a network does not start, or a transaction was refused: there are no figures then.
    """
    check_names(only, CHARTS)
    wanted = only or CHARTS
    data = _known(earlier)
    missing = [name for name in wanted if name not in data]
    if missing:
        data |= {"cores": cores(), "verify_us": round(measure_verification() * 1e6, 1)}
        data |= trio.run(_measure, missing, seconds, accounts, sizes or Sizes(seconds=seconds))
    files = _write(folder, {name: draw(name, data) for name in wanted})
    if as_json:
        print(json.dumps({"ok": True, **data, "files": [str(path) for path in files]}))
    else:
        _print(data, wanted, files)
    return 0


def _known(earlier: Sequence[Path]) -> Figures:
    """Return the figures of earlier reports.

    Raises:
        LocalError: ``file_error``, or ``bad_arguments`` for what is no report.
    """
    known: Figures = {}
    for path in earlier:
        try:
            report = json.loads(path.read_text())
        except OSError as error:
            raise LocalError("file_error", f"{path}: {error.strerror}") from None
        except ValueError:
            report = None
        if not isinstance(report, dict):
            raise LocalError("bad_arguments", f"{path} is no report of hansa bench scale or charts")
        known |= {name: value for name, value in report.items() if name in KEPT}
    return known


async def _measure(missing: Sequence[str], seconds: float, accounts: int, sizes: Sizes) -> Figures:
    found: Figures = {}
    if own := [name for name in missing if name not in ("keys", "validators")]:
        async with bench_network(accounts=accounts, server_lanes=SERVER_LANES) as bench:
            found |= await _measure_rows(bench, own, seconds)
    if "keys" in missing:
        found["keys"] = await measure_keys(sizes)
    if "validators" in missing:
        found["validators"] = await measure_validators(sizes)
    return found


async def _measure_rows(bench: Bench, charts: Sequence[str], seconds: float) -> Figures:
    """Return the figures of the charts that one network gives; what two of them need is measured once."""
    done: dict[Row, tuple[Samples, Usage]] = {}

    async def measured(row: Row) -> tuple[Samples, Usage]:
        if row not in done:
            say(f"{row.name}: {seconds} s")
            done[row] = await bench.measure(row, seconds=seconds)
        return done[row]

    found: Figures = {}
    if "batch" in charts:
        rows = [_row(transactions=count, in_flight=frames) for count, frames in FRAMES.items()]
        found["batch"] = [
            {"transactions_a_frame": row.transactions, **figures(row, *await measured(row))} for row in rows
        ]
    if "calls" in charts:
        rows = [_row(calls=count, in_flight=frames) for count, frames in CALLS.items()]
        found["calls"] = [{"calls_a_signature": row.calls, **figures(row, *await measured(row))} for row in rows]
    if "stages" in charts:
        found["stages"] = [
            stage_figures(name, *await measured(_NAMED[name]), nodes=len(bench.homes)) for name in STAGE_ROWS
        ]
    if "latency" in charts:
        samples, _ = await measured(ENVELOPE)
        found["latency"] = await _measure_latency(bench, samples.transactions / samples.seconds, seconds)
    return found


def _row(*, in_flight: int, transactions: int = 1, calls: int = 1) -> Row:
    """Return the row of ``hansa bench throughput`` with this load, or another one like it."""
    for row in ROWS:
        if (row.transactions, row.calls, row.frames_in_flight) == (transactions, calls, in_flight):
            return row
    name = f"calls_{calls}" if calls > 1 else f"batch_{transactions}"
    return Row(name=name, frames_in_flight=in_flight, transactions=transactions, calls=calls)


async def _measure_latency(bench: Bench, most_tps: float, seconds: float) -> list[Figures]:
    points: list[Figures] = []
    for percent in PERCENTS:
        offered_tps = most_tps * percent / 100
        say(f"{percent} % of {most_tps:,.0f} transactions a second: {seconds * LATENCY_ROW} s")
        before = bench.usage()
        samples = await bench.load.run_open(ENVELOPE, tps=offered_tps, seconds=seconds * LATENCY_ROW)
        used = bench.usage().since(before)
        load = {"percent": percent, "offered_tps": round(offered_tps, 1)}
        points.append({**load, **figures(ENVELOPE, samples, used)})
    return points


def stage_figures(name: str, samples: Samples, used: Usage, *, nodes: int) -> Figures:
    """Return the processor time of a call on one node, by stage, in µs.

    Raises:
        LocalError: ``bad_arguments`` where the nodes count no stages.
    """
    stages = used.stages_us(calls=samples.calls_in_all, nodes=nodes)
    if not stages:
        raise LocalError("bad_arguments", "these nodes do not say how long their stages take")
    return {"row": name, "stages_us_per_call": stages}


def _write(folder: Path, charts: Mapping[str, str]) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in charts.items():
            (folder / f"{name}.svg").write_text(text)
    except OSError as error:
        raise LocalError("file_error", f"{error.filename}: {error.strerror}") from None
    return [folder / f"{name}.svg" for name in charts]


def _print(report: Figures, wanted: Sequence[str], files: Sequence[Path]) -> None:
    console = Console(highlight=False)
    for name in wanted:
        console.print(name)
        if name == "stages":
            print_stages(console, {str(row["row"]): stages_of(row) for row in rows_of(report, name)})
        else:
            print_table(console, rows_of(report, name), {**FIRST_COLUMNS[name], **ROW_COLUMNS})
    console.print(f"written: {', '.join(map(str, files))}", soft_wrap=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help=", ".join(CHARTS))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--from", type=Path, nargs="*", default=[], dest="earlier", help="reports of earlier runs")
    parser.add_argument("--json", action="store_true", dest="as_json")
    sys.exit(main(**vars(parser.parse_args())))
