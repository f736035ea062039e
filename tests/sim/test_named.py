"""Stories that broke other networks, each as a plan of its own; the names are those of the list of faults."""

from typing import Any

import pytest

from consensus.pbft.events import Head
from consensus.pbft.state import Progress, State
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

PARTED: dict[str, Any] = {
    "transactions": 40,
    "partition_every_ms": 3_000,
    "crash_every_ms": 4_000,
    "crash_at_effect_permille": 900,
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
@pytest.mark.parametrize("ahead_ms", [FAR_OFF_MS, -FAR_OFF_MS])
def test_r23_clocks_that_were_wrong_together_are_set_right(seed: int, ahead_ms: int) -> None:
    """Blocks an hour ahead of all clocks: the chain does not wait for the hour to pass."""
    simulation = Simulation(Plan(seed=seed, safety_ms=60_000))
    for host in simulation.all_hosts:
        host.skew_ms = ahead_ms
    simulation.run()
    assert max(simulation.probe_ms) < 10_000


@pytest.mark.parametrize("seed", SEEDS)
def test_r23_clocks_that_are_set_while_they_run(seed: int) -> None:
    hold(Plan(seed=seed, clock_step_every_ms=500, drift_permille=500, safety_ms=30_000, delay_ms_max=20))


@pytest.mark.parametrize("seed", SEEDS)
def test_links_that_are_dead_in_one_direction(seed: int) -> None:
    hold(Plan(seed=seed, validators=4 + seed % 4, one_way_permille=300, safety_ms=30_000, transactions=30))


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


# -- members come and go -----------------------------------------------------------------------------------

VIEW_CHANGES: dict[str, Any] = {
    "safety_ms": 30_000,
    "transactions": 30,
    "lossy_kinds": ("Commit", "PrePrepare"),
    "lossy_permille": 500,
}


@pytest.mark.parametrize("seed", SEEDS)
def test_r02_one_validator_becomes_four_under_view_changes(seed: int) -> None:
    """Sets of 1, 2, 3 and 4 follow each other while proposals and commits get lost."""
    result = hold(Plan(seed=seed, validators=1, set_changes=3, changes=("admit",) * 3, **VIEW_CHANGES))
    assert result.set_changes == 3
    assert result.views > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_members_change_under_partitions_and_crashes(seed: int) -> None:
    changes = ("admit", "replace", "remove", "admit", "remove", "replace")
    plan = Plan(seed=seed, validators=4, set_changes=6, changes=changes, safety_ms=60_000, **PARTED)
    assert hold(plan).set_changes > 3


@pytest.mark.parametrize("seed", SEEDS)
def test_r18_r49_a_wiped_node_votes_again_with_a_new_key(seed: int) -> None:
    """Its disk is lost in the middle of things; it follows, asks for a new key, and the fourth vote is there again."""
    index = seed % 4
    plan = Plan(seed=seed, fragile=(index,), set_changes=1, changes=("renew",), safety_ms=20_000, transactions=30)
    simulation = Simulation(plan)
    host = simulation.all_hosts[index]
    simulation.scheduler.after(3_000, host.replace_disk)
    simulation.run()
    assert simulation.checkers.set_changes == 1
    assert host.process is not None
    assert host.process.engine.status().is_validator


@pytest.mark.parametrize("seed", SEEDS)
def test_members_change_beside_a_liar(seed: int) -> None:
    liars = ((seed % 4, ("equivocator", "amnesiac")),)
    hold(Plan(seed=seed, validators=4, liars=liars, set_changes=6, safety_ms=40_000, loss_permille=50))


def test_a_node_that_takes_the_old_set_for_the_new_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original = State.begin_height

    def stubborn(self: State, head: Head) -> None:
        roster = self.roster
        original(self, head)
        if roster.size == 1:
            self.roster = roster
            self.progress = Progress(roster, self.now_ms)

    monkeypatch.setattr(State, "begin_height", stubborn)
    plan = Plan(seed=1, validators=1, set_changes=3, changes=("admit",) * 3, **VIEW_CHANGES)
    assert run_plan(plan).rule == "certificate"
