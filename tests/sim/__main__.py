"""``python -m tests.sim --seeds N --first-seed S`` runs many schedules, ``--seed S`` replays one and tells all."""

import argparse
import sys
import time
from collections import Counter

from tests.sim.plan import draw_plan
from tests.sim.simulation import Result, run_seed
from tests.sim.workers import run_seeds


def main() -> int:
    """Return 0 when everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many schedules")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--seed", type=int, help="replay this one and print its trace")
    parser.add_argument("--quiet", action="store_true", help="with --seed: no trace, only what came of it")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.seed is not None:
        print(f"seed {arguments.seed}: {draw_plan(arguments.seed).describe()}")
        result = run_seed(arguments.seed, verbose=not arguments.quiet)
        print(_line(result), f"trace {result.trace}", sep="\n")
        return bool(result.rule)
    began = time.perf_counter()
    results = []
    for result in run_seeds(range(arguments.first_seed, arguments.first_seed + arguments.seeds), arguments.workers):
        results.append(result)
        if result.rule:
            print(_line(result), flush=True)
    _report(results, time.perf_counter() - began)
    return any(result.rule for result in results)


def _line(result: Result) -> str:
    what = "holds" if not result.rule else f"FAILS {result.message}"
    return (
        f"seed {result.seed} {what} | {result.blocks} blocks, {result.transactions} transactions, "
        f"{result.frames} frames, {result.evidence} evidence, probes after {result.probe_ms} ms"
    )


def _report(results: list[Result], seconds: float) -> None:
    probes = sorted(ms for result in results for ms in result.probe_ms)
    print(
        f"{len(results)} schedules in {seconds:.1f} s: {sum(item.blocks for item in results)} blocks, "
        f"{sum(item.transactions for item in results)} transactions, {sum(item.frames for item in results)} frames, "
        f"{sum(item.claims for item in results)} claims, views up to {max(item.views for item in results)}"
    )
    if probes:
        middle, most = probes[len(probes) // 2], probes[-1]
        print(f"after healing a transaction is final everywhere in {middle} ms (median), {most} ms (longest)")
    for rule, count in sorted(Counter(item.rule for item in results if item.rule).items()):
        print(f"{count} times {rule}: seeds {' '.join(str(item.seed) for item in results if item.rule == rule)}")


if __name__ == "__main__":
    sys.exit(main())
