"""``python -m tests.fuzz --frames 200000 --calls 50000 --seed 1`` fuzzes functions, then a running network."""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import trio

from tests.fuzz.pure import all_targets, throw, throw_absences
from tests.fuzz.run import fuzz_network


def main() -> int:
    """Return 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=300_000, help="inputs thrown at the functions")
    parser.add_argument("--frames", type=int, default=200_000, help="frames thrown at a running node")
    parser.add_argument("--calls", type=int, default=50_000, help="calls thrown at the running nodes")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="hansa-fuzz-") as folder:
        findings = trio.run(_fuzz, arguments, Path(folder), began)
    for finding in findings:
        print(f"FOUND {finding}")
    print(f"{len(findings)} findings with seed {arguments.seed} in {time.perf_counter() - began:.0f} s")
    return bool(findings)


async def _fuzz(arguments: argparse.Namespace, folder: Path, began: float) -> list[str]:
    say = partial(_say, began)
    findings: list[str] = []
    if arguments.inputs:
        with all_targets(folder) as targets:
            for outcome in (await throw_absences(targets), await throw(targets, arguments.inputs, arguments.seed)):
                say(outcome.line())
                findings += outcome.findings
    if arguments.frames or arguments.calls:
        findings += await fuzz_network(
            folder / "network", frames=arguments.frames, calls=arguments.calls, seed=arguments.seed, say=say
        )
    return findings


def _say(began: float, text: str) -> None:
    print(f"{time.perf_counter() - began:6.1f} s  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
