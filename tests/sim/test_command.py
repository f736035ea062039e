"""What the simulator's command prints: enough to repeat a schedule that failed."""

import sys

import pytest

from tests.sim import __main__ as command
from tests.sim.plan import Plan
from tests.sim.simulation import Result, run_plan, run_seed
from tests.sim.workers import run_seeds_until

FAILED = Result(
    seed=77, rule="agreement", message="agreement: two blocks", trace="", blocks=3, views=1, claims=0, transactions=2,
    frames=9, evidence=0, halts=0, set_changes=0, unlimited=False, probe_ms=(), plan="seed=77 validators=4",
)  # fmt: skip


def test_a_failure_is_printed_with_what_was_on_and_the_command_that_repeats_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run_seeds", lambda seeds, workers: iter([run_seed(5), FAILED]))
    monkeypatch.setattr(sys, "argv", ["sim", "--seeds", "2"])
    assert command.main() == 1
    printed = capsys.readouterr().out
    assert "seed 77 FAILS agreement: two blocks" in printed
    assert "with seed=77 validators=4" in printed
    assert "again: python -m tests.sim --seed 77" in printed
    assert "1 times agreement: seeds 77" in printed
    assert "seed 5 holds" not in printed


def test_verbose_prints_what_is_on_in_every_schedule(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run_seeds", lambda seeds, workers: iter([run_plan(Plan(seed=5, loss_permille=10))]))
    monkeypatch.setattr(sys, "argv", ["sim", "--seeds", "1", "--verbose"])
    assert command.main() == 0
    printed = capsys.readouterr().out
    assert "seed 5 holds" in printed
    assert "loss_permille=10" in printed


def test_a_run_by_the_clock_ends() -> None:
    assert list(run_seeds_until(0.0, 1, 1)) == []
