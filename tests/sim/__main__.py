"""Many schedules, or one with all its story.

``python -m tests.sim --seeds N --first-seed S`` runs N schedules, ``--minutes M`` as many as fit into the time, and
``--seed S`` replays one. A schedule that fails is printed with what was on and with the command that repeats it.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

from tests.sim.plan import draw_plan
from tests.sim.simulation import Result, run_seed
from tests.sim.workers import run_seeds, run_seeds_until


def main() -> int:
    """Return 0 when everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many schedules")
    parser.add_argument("--minutes", type=float, help="run for this long instead")
    parser.add_argument("--first-seed", type=int, help="default 1, with --minutes one that comes of the date")
    parser.add_argument("--seed", type=int, help="replay this one and print its trace")
    parser.add_argument("--quiet", action="store_true", help="with --seed: no trace, only what came of it")
    parser.add_argument("--verbose", action="store_true", help="print every schedule, and what is on in it")
    parser.add_argument("--traces", action="store_true", help="print every schedule's digest")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return _replay(arguments.seed, verbose=not arguments.quiet)
    first = arguments.first_seed
    if first is None:
        first = 1 if arguments.minutes is None else int(datetime.now(UTC).strftime("%Y%m%d")) * 1_000_000
    print(f"from seed {first} on {arguments.workers} workers", flush=True)
    began = time.perf_counter()
    if arguments.minutes is None:
        running = run_seeds(range(first, first + arguments.seeds), arguments.workers)
    else:
        running = run_seeds_until(began + 60 * arguments.minutes, first, arguments.workers)
    results = list(_tell(running, verbose=arguments.verbose, traces=arguments.traces))
    _report(results, time.perf_counter() - began)
    return any(result.rule for result in results)


def _replay(seed: int, *, verbose: bool) -> int:
    print(f"seed {seed}: {draw_plan(seed).describe()}")
    result = run_seed(seed, verbose=verbose)
    print(_line(result), f"trace {result.trace}", sep="\n")
    return bool(result.rule)


def _tell(results: Iterator[Result], *, verbose: bool, traces: bool) -> Iterator[Result]:
    for result in results:
        if result.rule or verbose:
            print(_line(result), f"  with {result.plan}", sep="\n")
        if result.rule:
            print(f"  again: python -m tests.sim --seed {result.seed}", flush=True)
        if traces:
            print(f"trace {result.seed} {result.trace}")
        yield result


def _line(result: Result) -> str:
    what = "holds" if not result.rule else f"FAILS {result.message}"
    return (
        f"seed {result.seed} {what} | {result.blocks} blocks, {result.transactions} transactions, "
        f"{result.frames} frames, {result.evidence} evidence, {result.halts} halts, {result.set_changes} set changes, "
        f"probes after {result.probe_ms} ms"
    )


def _report(results: list[Result], seconds: float) -> None:
    healed = sorted((max(result.probe_ms), result.seed) for result in results if result.probe_ms)
    print(
        f"{len(results)} schedules in {seconds:.1f} s: {sum(item.unlimited for item in results)} unlimited; "
        f"{sum(item.blocks for item in results)} blocks, {sum(item.transactions for item in results)} transactions, "
        f"{sum(item.frames for item in results)} frames, {sum(item.claims for item in results)} claims, "
        f"{sum(item.halts for item in results)} halts, {sum(item.set_changes for item in results)} set changes, "
        f"views up to {max((item.views for item in results), default=0)}"
    )
    if healed:
        middle, (most, seed) = healed[len(healed) // 2][0], healed[-1]
        print(
            f"after healing a transaction is final everywhere in {middle} ms (median), {most} ms (longest, seed {seed})"
        )
    failed = [item for item in results if item.rule]
    for rule, count in sorted(Counter(item.rule for item in failed).items()):
        print(f"{count} times {rule}: seeds {' '.join(str(item.seed) for item in failed if item.rule == rule)}")


if __name__ == "__main__":
    sys.exit(main())
