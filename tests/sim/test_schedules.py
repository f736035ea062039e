"""The schedules that ``make test`` runs, and those that once failed."""

from pathlib import Path

import pytest

from tests.sim.simulation import run_seed
from tests.sim.workers import run_seeds

SCHEDULES = 240
WORKERS = 2
REGRESSIONS = [
    line.split(maxsplit=1)
    for line in (Path(__file__).parent / "regressions.txt").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.slow
def test_schedules_hold() -> None:
    results = list(run_seeds(range(1, SCHEDULES + 1), WORKERS))
    assert [(result.seed, result.message) for result in results if result.rule] == []
    # A simulator in which nothing happens proves nothing.
    assert sum(result.blocks for result in results) > 5 * SCHEDULES
    assert sum(result.claims for result in results) > SCHEDULES
    assert sum(result.evidence for result in results) > SCHEDULES // 10
    assert sum(result.unlimited for result in results) > SCHEDULES // 10
    assert sum(result.set_changes for result in results) > SCHEDULES // 10
    assert sum(result.halts for result in results) > SCHEDULES // 20


@pytest.mark.parametrize(("seed", "story"), REGRESSIONS)
def test_seeds_that_failed_once(seed: str, story: str) -> None:
    result = run_seed(int(seed))
    assert not result.rule, f"{story}: {result.message}"
