"""Disks that refuse, tear, misplace and forget: what a node on them may still say. Each checker fails once, too."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from consensus.ledger.errors import StorageError
from consensus.pbft import vote_log as pbft_vote_log
from node import vote_log
from tests.sim.plan import Plan
from tests.sim.process import Process, Task
from tests.sim.simulation import Result, run_plan
from tests.sim.test_named import hold

SEEDS = range(1, 5)
BUSY: dict[str, Any] = {"safety_ms": 15_000, "transactions": 30, "disk_ms_max": 5, "downtime_ms_max": 500}
CRASHES: dict[str, Any] = {**BUSY, "crash_every_ms": 500, "crash_at_effect_permille": 1_000}
ROUGH: dict[str, Any] = {**CRASHES, "loss_permille": 200, "partition_every_ms": 1_000}


@pytest.mark.parametrize("seed", SEEDS)
def test_r47_r48_a_disk_that_refuses_writes_stops_its_node_and_nothing_else(seed: int) -> None:
    """EIO leaves the data there or not, ENOSPC lasts; at a start genesis, incarnation and its file are written too."""
    hold(Plan(seed=seed, write_error_permille=100, **CRASHES))


@pytest.mark.parametrize("seed", SEEDS)
def test_r51_misdirected_votes_are_never_voted_from(seed: int) -> None:
    fragile = {"fragile": (0, 1, 2, 3), "misdirected_permille": 50, "unlimited": True}
    hold(Plan(seed=seed, **fragile, **ROUGH))


def test_r51_a_certificate_that_landed_elsewhere_is_not_forgotten_in_a_later_view() -> None:
    """The record of a commit went astray, the slot it took was written again, and a restart found nothing wrong."""
    lossy: dict[str, Any] = {"lossy_kinds": ("Commit", "Decided", "Prepare"), "lossy_permille": 700}
    plan = Plan(
        seed=76,
        unlimited=True,
        fragile=(0, 1, 2, 3),
        misdirected_permille=15,
        safety_ms=40_000,
        transactions=30,
        loss_permille=100,
        partition_every_ms=700,
        disk_ms_max=2,
        crash_every_ms=700,
        crash_at_effect_permille=500,
        downtime_ms_max=300,
        **lossy,
    )
    hold(plan)


@pytest.mark.parametrize("seed", SEEDS)
def test_r54_r58_half_a_batch_is_never_voted_from(seed: int) -> None:
    hold(Plan(seed=seed, fragile=(0, 1, 2, 3), torn_permille=1_000, unlimited=True, **ROUGH))


def test_rotten_records_halt_the_node_that_reads_them() -> None:
    results = [hold(Plan(seed=seed, fragile=(seed % 4,), rot_every_ms=300, **CRASHES)) for seed in SEEDS]
    assert sum(result.halts for result in results) > 0


def test_misdirected_and_torn_writes_are_noticed() -> None:
    """Where LevelDB's promise does not hold either, nodes halt instead of going on; others do not mind one of them."""
    faults: dict[str, Any] = {"misdirected_permille": 200, "torn_permille": 1_000}
    results = [hold(Plan(seed=seed, fragile=(seed % 4,), **faults, **CRASHES)) for seed in range(1, 7)]
    assert sum(result.halts for result in results) > 3


@pytest.mark.parametrize("seed", SEEDS)
def test_r49_wiped_disks_of_all_are_nobodys_second_vote(seed: int) -> None:
    """More disks are lost than may be: the chain may stop, and nobody votes under an old key."""
    hold(Plan(seed=seed, fragile=(0, 1, 2, 3), wipe_every_ms=2_000, unlimited=True, **ROUGH))


# -- the checkers can fail ---------------------------------------------------------------------------------


def broken(plans: Sequence[Plan], *wanted: str) -> Result:
    """Run plans until one breaks a wanted rule."""
    result = run_plan(plans[0])
    for plan in plans[1:]:
        if result.rule in wanted:
            break
        result = run_plan(plan)
    assert result.rule in wanted
    return result


def test_a_failed_write_that_is_swallowed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., Task] = Process._step

    def deaf(self: Process, first: Any) -> Task:
        steps = original(self, first)
        for batch in steps:
            try:
                yield batch
            except StorageError:
                self._around.boundary()

    monkeypatch.setattr(Process, "_step", deaf)
    plans = [Plan(seed=seed, write_error_permille=100, **CRASHES) for seed in range(5)]
    broken(plans, "failed_write_ignored", "sent_after_failed_write")


def test_a_log_that_is_wiped_and_voted_with_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    original = vote_log.open_log_beside

    def trusting(*args: Any) -> tuple[bool, dict[bytes, bytes]]:
        return True, original(*args)[1]

    monkeypatch.setattr("tests.sim.process.open_log_beside", trusting)
    fragile: dict[str, Any] = {"fragile": (0, 1, 2, 3), "wipe_every_ms": 1_000, "unlimited": True}
    broken([Plan(seed=seed, **fragile, **ROUGH) for seed in range(20)], "voted_without_log")


def test_a_record_in_the_wrong_slot_that_counts_as_none_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the kind in the record a misdirected vote is a forgotten one."""
    original = pbft_vote_log.VoteLog.restore

    def lenient(self: pbft_vote_log.VoteLog, records: Any, height: int) -> pbft_vote_log.RestoredVotes:
        try:
            return original(self, records, height)
        except StorageError:
            return original(self, {}, height)

    monkeypatch.setattr(pbft_vote_log.VoteLog, "restore", lenient)
    fragile: dict[str, Any] = {"fragile": (0, 1, 2, 3), "misdirected_permille": 100, "unlimited": True}
    broken([Plan(seed=seed, **fragile, **ROUGH) for seed in range(60)], "double_vote")
