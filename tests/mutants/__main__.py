"""``python -m tests.mutants`` runs all mutants, or those named; exit 1 when one survives or cannot be applied.

First every command must succeed on the product as it is, else its failing would show nothing.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.mutant import Mutant, Verdict, copied_tree, judge, run
from tests.mutants.table import MUTANTS


def main() -> int:
    """Return 0 when all mutants are caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="run only these")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the table as Markdown and run nothing")
    parser.add_argument("--no-baseline", action="store_true", help="trust that the commands succeed unbroken")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    if arguments.list:
        print(markdown(chosen))
        return 0
    began = time.perf_counter()
    shares = [chosen[number :: arguments.workers] for number in range(arguments.workers)]
    with ThreadPoolExecutor(arguments.workers) as pool:
        parts = list(pool.map(lambda share: _work(share, is_checked=not arguments.no_baseline), shares))
    verdicts = [verdict for part in parts for verdict in part]
    bad = [verdict for verdict in verdicts if verdict.outcome != "caught"]
    for verdict in bad:
        print(f"\n{verdict.outcome.upper()} {verdict.mutant.name}: {verdict.mutant.caught_by}\n{verdict.detail}")
    print(f"{len(verdicts) - len(bad)} of {len(chosen)} mutants caught in {time.perf_counter() - began:.0f} s")
    return bool(bad) or not chosen


def _work(share: Sequence[Mutant], *, is_checked: bool) -> list[Verdict]:
    """Judge some mutants on a copy of one's own."""
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="hansa-mutants-") as folder, copied_tree(Path(folder)) as tree:
        sound: dict[str, tuple[int | None, str]] = {}
        for mutant in share:
            if is_checked and mutant.caught_by not in sound:
                sound[mutant.caught_by] = run(mutant.caught_by, tree)
            code, said = sound.get(mutant.caught_by, (0, ""))
            verdict = judge(mutant, tree) if code == 0 else Verdict(mutant, "broken", f"fails unbroken: {said}")
            verdicts.append(verdict)
            print(f"{verdict.outcome:9} {mutant.name:44} {mutant.caught_by}", flush=True)
    return verdicts


def markdown(mutants: Sequence[Mutant]) -> str:
    """Return the table for ``docs/faults.md``."""
    rows = [f"| {mutant.name} | {mutant.breaks} | `{mutant.caught_by}` |" for mutant in mutants]
    return "\n".join(("| mutant | what it breaks | caught by |", "| --- | --- | --- |", *rows))


if __name__ == "__main__":
    sys.exit(main())
