"""``hansa bench compare BASE``: an earlier commit beside the working tree, so that no change slows it unseen.

The commit is unpacked into a temporary folder. Both trees run their own ``hansa bench throughput --json`` with the
same interpreter, in turns (base, tree, tree, base, …), because machines drift. Each round gives one ratio
a row; what counts is their median, and half of what they span is the spread. A row is slower when its median falls
below 1 by more than tolerance and spread together.

All processes and folders of a run live in the temporary folder, which is how they are found and ended.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

import bench as _bench_package
from bench.harness import check_names, interrupted_by_signals, say
from bench.report import Figures, number, print_table, rows_of
from bench.throughput import ROWS
from consensus.ledger.errors import HansaError, LocalError

ROUNDS = 3
SECONDS = 6
TOLERANCE = 0.10
STOP_S_MAX = 30
"""Time for a run to end its nodes when it is interrupted."""
LAST_WORDS_MAX = 300


@dataclass(frozen=True, slots=True)
class Ratios:
    """The tree's figure ÷ the base's, one of each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The ratio that counts."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Half of what the rounds span; 0 for a single one."""
        return (max(self.rounds) - min(self.rounds)) / 2

    def is_slower(self, tolerance: float) -> bool:
        """Tell whether a rate has fallen by more than the tolerance, beyond the spread."""
        return self.median < 1 - tolerance - self.spread


def main(
    base: str,
    *,
    rows: Sequence[str] = (),
    rounds: int = ROUNDS,
    seconds: int = SECONDS,
    tolerance: float = TOLERANCE,
    as_json: bool = False,
) -> int:
    """Run both, print the ratio of each row, and return 1 when a row is slower, else 0.

    Args:
        base: a commit, as git names it.
        rows: rows of ``hansa bench throughput``; all by default.
        rounds: how often each runs.
        seconds: how long each row is measured.
        tolerance: by how much of its rate a row may be slower, beyond the spread.
        as_json: print one JSON object.

    Raises:
        LocalError: ``bad_arguments``, ``no_repository`` or ``unknown_commit``.
        HansaError: ``bench_failed`` with the last words of a run that failed.
    """
    names = [row.name for row in ROWS]
    check_names(rows, names)
    tree = Path(_bench_package.__path__[0]).resolve().parent
    commit = find_commit(tree, base)
    with interrupted_by_signals(), _place() as place:
        unpack(tree, commit, place / "base")
        reports = _run_in_turns({"base": place / "base", "tree": tree}, rows or names, rounds, seconds, place)
    report = compared(reports["base"], reports["tree"], tolerance)
    report |= {"base": commit, "rounds": rounds, "seconds_per_row": seconds}
    if as_json:
        print(json.dumps(report))
    else:
        _draw(report)
    return 0 if report["ok"] else 1


def find_commit(tree: Path, name: str) -> str:
    """Return the id of a commit of the repository that a folder belongs to.

    Raises:
        LocalError: ``no_repository`` or ``unknown_commit``.
    """
    if _git(tree, "rev-parse", "--is-inside-work-tree") is None:
        raise LocalError("no_repository", f"{tree}, where this program runs from, is no checkout of git")
    found = _git(tree, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if found is None:
        raise LocalError("unknown_commit", f"{name} is no commit of {tree}")
    return found.decode().strip()


def unpack(tree: Path, commit: str, folder: Path) -> None:
    """Write a commit's files of this part of the repository into a new folder.

    Raises:
        LocalError: ``unknown_commit`` when it holds none.
    """
    archive = _git(tree, "archive", "--format=tar", commit)
    if archive is None:
        raise LocalError("unknown_commit", f"{commit} does not hold {tree}")
    folder.mkdir()
    subprocess.run(["tar", "--extract", "--directory", str(folder)], input=archive, check=True)


def _git(tree: Path, *arguments: str) -> bytes | None:
    """Return what git says about the repository of a folder; None when it refuses or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(tree), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _run_in_turns(
    trees: Mapping[str, Path], rows: Sequence[str], rounds: int, seconds: int, place: Path
) -> dict[str, list[Figures]]:
    """Return the reports of each tree, in the order of the rounds."""
    reports: dict[str, list[Figures]] = {name: [] for name in trees}
    for index in range(rounds):
        turns = list(trees) if index % 2 == 0 else list(trees)[::-1]
        for name in turns:
            say(f"round {index + 1} of {rounds}: {name}")
            reports[name].append(_run(trees[name], rows, seconds, place))
    return reports


def _run(tree: Path, rows: Sequence[str], seconds: int, place: Path) -> Figures:
    """Run the benchmark of a tree; its networks live below ``place``.

    Raises:
        HansaError: ``bench_failed``.
    """
    command = [sys.executable, "-m", "cli.main", "bench", "throughput", "--json"]
    command += ["--seconds", str(seconds), "--rows", ",".join(rows)]
    paths = [str(tree), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(place)}
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        said = process.communicate()[0].decode(errors="replace")
    finally:
        _end(process)
    try:
        report = json.loads(said)
    except ValueError:
        report = None
    if process.returncode or not isinstance(report, dict) or "rows" not in report:
        raise HansaError("bench_failed", f"the benchmark of {tree}: {said.strip()[-LAST_WORDS_MAX:]}")
    return report


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a run that was interrupted: it ends its nodes itself, unless it hangs."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _place() -> Iterator[Path]:
    """Give a temporary folder; whatever still runs on it at the end is killed, and it goes."""
    place = Path(tempfile.mkdtemp(prefix="hansa-compare-"))
    try:
        yield place
    finally:
        for pid in running_below(place):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(place, ignore_errors=True)


def running_below(place: Path) -> list[int]:
    """Return the processes other than this one that have a path below a folder as an argument."""
    found = []
    below = f"{place}{os.sep}".encode()
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:  # it has ended meanwhile
            continue
        if any(argument.startswith(below) for argument in arguments) and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def compared(base: Sequence[Figures], tree: Sequence[Figures], tolerance: float) -> Figures:
    """Return each row's ratios of rate and of processor time a call, and whether none is slower.

    A row that only one of the two measures is left out; processor time is None where the base does not tell it.
    """
    rows: list[Figures] = []
    for name in [str(row["row"]) for row in rows_of(base[0], "rows")]:
        pairs = list(
            zip((_named(report, name) for report in base), (_named(report, name) for report in tree), strict=True)
        )
        rates = _ratios(pairs, "calls_per_s")
        if rates is None:
            continue
        processor = _ratios(pairs, "cpu_us_per_call")
        rows.append(
            {
                "row": name,
                "base_per_s": _median(pairs, 0),
                "tree_per_s": _median(pairs, 1),
                "ratio": round(rates.median, 3),
                "spread": round(rates.spread, 3),
                "cpu_ratio": round(processor.median, 3) if processor else None,
                "cpu_spread": round(processor.spread, 3) if processor else None,
                "slower": rates.is_slower(tolerance),
            }
        )
    return {"ok": not any(row["slower"] for row in rows), "tolerance": tolerance, "rows": rows}


def _named(report: Figures, name: str) -> Figures:
    """Return a report's row of this name; an empty one when it has none."""
    return next((row for row in rows_of(report, "rows") if row.get("row") == name), {})


def _ratios(pairs: Sequence[tuple[Figures, Figures]], key: str) -> Ratios | None:
    """Return tree ÷ base of a figure, for each round; None where one of them lacks it or has 0."""
    if not all(base.get(key) and tree.get(key) for base, tree in pairs):
        return None
    return Ratios(tuple(number(tree[key]) / number(base[key]) for base, tree in pairs))


def _median(pairs: Sequence[tuple[Figures, Figures]], side: int) -> float:
    return round(statistics.median(number(pair[side]["calls_per_s"]) for pair in pairs), 1)


def _draw(report: Figures) -> None:
    console = Console(highlight=False)
    console.print(f"working tree against {str(report['base'])[:12]}, {report['rounds']} rounds; ratios are tree ÷ base")
    columns = {"row": "row", "base_per_s": "base calls/s", "tree_per_s": "tree calls/s", "ratio": "ratio"}
    columns |= {"spread": "±", "cpu_ratio": "CPU a call", "cpu_spread": "±", "verdict": "verdict"}
    rows = rows_of(report, "rows")
    print_table(console, [row | {"verdict": "slower" if row["slower"] else "ok"} for row in rows], columns)
    console.print(f"slower: by more than {report['tolerance']} beyond the spread")
