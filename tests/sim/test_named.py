"""Stories that broke other networks, each as a plan of its own; the names are those of the list of faults."""

from typing import Any

import pytest

from tests.sim.plan import FAR_OFF_MS, Plan
from tests.sim.simulation import Result, Simulation, run_plan

SEEDS = range(1, 5)
ALL_FAULTS: dict[str, Any] = {
    "loss_permille": 100,
    "duplicate_permille": 100,
    "slow_permille": 100,
    "slow_delay_ms_max": 2_000,
    "partition_every_ms": 2_000,
    "crash_every_ms": 1_000,
    "crash_at_effect_permille": 900,
    "disk_ms_max": 5,
}

CRASHES: dict[str, Any] = {"crash_every_ms": 700, "crash_at_effect_permille": 1_000, "downtime_ms_max": 500}


def hold(plan: Plan) -> Result:
    """Run a plan that must hold."""
    result = run_plan(plan)
    assert not result.rule, f"{result.message} in {plan}"
    return result


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("validators", [1, 2, 3])
def test_r02_r59_few_validators_survive_crashes(validators: int, seed: int) -> None:
    hold(Plan(seed=seed, validators=validators, **ALL_FAULTS))


@pytest.mark.parametrize("seed", SEEDS)
def test_r03_r06_forged_votes(seed: int) -> None:
    hold(Plan(seed=seed, liars=((seed % 4, ("forger",)),), loss_permille=100, real_keys=seed == 1))


@pytest.mark.parametrize("seed", SEEDS)
def test_r09_r41_bad_blocks(seed: int) -> None:
    result = hold(Plan(seed=seed, validators=7, transactions=30, liars=((1, ("badblocks",)), (4, ("badblocks",)))))
    assert result.evidence > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_r11_equivocation_is_proved_and_harmless(seed: int) -> None:
    result = hold(Plan(seed=seed, transactions=30, liars=((2, ("equivocator",)),)))
    assert result.evidence > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_r14_r16_r20_huge_views(seed: int) -> None:
    result = hold(Plan(seed=seed, validators=7, liars=((0, ("hugeviews",)), (3, ("hugeviews",))), loss_permille=50))
    assert result.views < 30


@pytest.mark.parametrize("seed", SEEDS)
def test_r17_r19_nodes_come_and_go(seed: int) -> None:
    hold(Plan(seed=seed, crash_every_ms=1_500, downtime_ms_max=8_000, safety_ms=30_000, transactions=30))


@pytest.mark.parametrize("seed", SEEDS)
def test_r18_r49_a_wiped_node_follows_without_voting(seed: int) -> None:
    hold(Plan(seed=seed, liars=((seed % 4, ("wiped",)),), crash_every_ms=3_000))


@pytest.mark.parametrize("seed", SEEDS)
def test_r23_r38_frozen_nodes(seed: int) -> None:
    hold(Plan(seed=seed, freeze_every_ms=2_000, freeze_ms_max=60_000, safety_ms=120_000, transactions=20))


@pytest.mark.parametrize("seed", range(12))
def test_r23_a_node_that_restarts_still_judges_new_blocks_by_its_clock(seed: int) -> None:
    """Proposals come late and twice, so that some arrive between start and first tick."""
    late: dict[str, Any] = {
        "tick_ms": 1_000,
        "slow_permille": 1_000,
        "slow_delay_ms_max": 3_000,
        "duplicate_permille": 1_000,
    }
    hold(Plan(seed=seed, validators=3, skew_ms_max=FAR_OFF_MS, safety_ms=60_000, **late, **CRASHES))


@pytest.mark.parametrize("seed", SEEDS)
def test_r28_twins(seed: int) -> None:
    twins = ((1, ("twins",)), (5, ("twins", "amnesiac")))
    hold(Plan(seed=seed, validators=7, transactions=30, liars=twins, loss_permille=50, partition_every_ms=3_000))


@pytest.mark.parametrize("seed", SEEDS)
def test_r31_views_do_not_race_when_everyone_refuses_everyone(seed: int) -> None:
    hold(Plan(seed=seed, delay_ms_max=1, skew_ms_max=FAR_OFF_MS, safety_ms=30_000))


@pytest.mark.parametrize("seed", SEEDS)
def test_r33_clocks_that_run_half_too_fast_or_too_slow(seed: int) -> None:
    hold(Plan(seed=seed, drift_permille=500, liars=((3, ("silent",)),), delay_ms_max=100))


@pytest.mark.parametrize("seed", SEEDS)
def test_r60_to_r63_lying_helpers(seed: int) -> None:
    liars = ((0, ("lyinghelper",)), (1, ("lyinghelper", "silent")))
    hold(Plan(seed=seed, validators=7, liars=liars, crash_every_ms=1_000, downtime_ms_max=4_000, transactions=30))


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("first", range(1, 81, 20))
def test_r46_r50_a_crash_at_every_effect(index: int, first: int) -> None:
    """One node dies at its k-th effect boundary, for every k in turn: before, within and after each write."""
    for boundary in range(first, first + 20):
        plan = Plan(seed=boundary, safety_ms=3_000, transactions=4, disk_ms_max=3, downtime_ms_max=500)
        simulation = Simulation(plan)
        simulation.all_hosts[index].crash_countdown = boundary
        simulation.run()


def test_r59_one_validator_dies_at_every_effect_of_its_view_changes() -> None:
    """Alone, it has to open a view whose vote it had just written; freezing makes it leave views."""
    for boundary in range(1, 80):
        simulation = Simulation(
            Plan(seed=boundary, validators=1, freeze_every_ms=700, freeze_ms_max=3_000, downtime_ms_max=500)
        )
        simulation.all_hosts[0].crash_countdown = boundary
        simulation.run()


def test_r36_a_slow_primary_costs_less_than_half() -> None:
    """A liar that proposes just before the time-out; the same load without it is the measure."""
    calm = Plan(seed=1, safety_ms=40_000, transactions=200)
    slow = Plan(seed=1, safety_ms=40_000, transactions=200, liars=((2, ("slow",)),))
    counts = []
    for plan in (calm, slow):
        simulation = Simulation(plan)
        simulation.run_safety()
        counts.append(len(simulation.checkers.transactions))
    assert counts[1] >= counts[0] // 2
