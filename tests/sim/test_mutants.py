"""The checkers can fail: engines broken on purpose are caught, each by the rule it breaks."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from consensus.ledger.validators import ValidatorSet
from consensus.pbft import certificates, healing, ordering, view_change
from consensus.pbft.engine import Engine
from consensus.pbft.messages import PrePrepare, Status
from consensus.pbft.roster import Roster
from consensus.pbft.state import Proposal, State
from consensus.pbft.tallies import Tally
from consensus.pbft.vote_log import RecordKind, VoteLog
from tests.sim.plan import FAR_OFF_MS, Plan
from tests.sim.process import Process
from tests.sim.simulation import run_plan

ROUGH: dict[str, Any] = {
    "safety_ms": 20_000,
    "transactions": 30,
    "loss_permille": 200,
    "partition_every_ms": 1_000,
    "disk_ms_max": 5,
}
SPLIT: dict[str, Any] = {
    **ROUGH,
    "lossy_kinds": ("Commit", "Decided"),
    "lossy_permille": 800,
    "partition_every_ms": 300,
}
CRASHES: dict[str, Any] = {"crash_every_ms": 500, "crash_at_effect_permille": 1_000, "downtime_ms_max": 300}

Patch = Callable[[pytest.MonkeyPatch], None]


def broken_rules(plans: Iterable[Plan], wanted: str) -> list[str]:
    """Run plans until one breaks the wanted rule; return all rules broken on the way."""
    found = []
    for plan in plans:
        found.append(run_plan(plan).rule)
        if found[-1] == wanted:
            break
    return found


def replace_method(patch: pytest.MonkeyPatch, owner: type, name: str, twist: Callable[..., Any]) -> None:
    """Put ``twist(original, self, …)`` in place of a method."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda self, *args, **kwargs: twist(original, self, *args, **kwargs))


def test_one_vote_too_few_in_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def weak(original: Callable[..., None], self: Roster, *args: Any) -> None:
        original(self, *args)
        self.quorum -= 1

    replace_method(monkeypatch, Roster, "__init__", weak)
    assert "certificate" in broken_rules((Plan(seed=seed, **ROUGH) for seed in range(5)), "certificate")


def test_one_vote_too_few_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where even the checkers believe in the small quorum, the chain forks before their eyes."""
    monkeypatch.setattr(ValidatorSet, "quorum", property(lambda self: (self.size + self.faulty_max + 2) // 2 - 1))
    assert "agreement" in broken_rules((Plan(seed=seed, **ROUGH) for seed in range(40)), "agreement")


def test_a_prepare_that_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def void(original: Callable[..., tuple[bytes, bytes]], self: VoteLog, message: PrePrepare) -> tuple[bytes, bytes]:
        return self._entry(RecordKind.ACCEPTED, 0, 0, b"")

    replace_method(monkeypatch, VoteLog, "accepted", void)
    assert broken_rules([Plan(seed=1)], "not_durable") == ["not_durable"]


def test_a_restart_that_forgets_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Engine.restore
    monkeypatch.setattr(Engine, "restore", lambda config, head, records: original(config, head, {}))
    found = broken_rules((Plan(seed=seed, **ROUGH, **CRASHES) for seed in range(60)), "double_vote")
    assert "double_vote" in found


def test_a_deadline_moved_without_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    original = healing.on_status

    def chatty(state: State, sender: Any, message: Status) -> None:
        state.progress.entered_ms = state.progress.proposal_ms = state.now_ms
        original(state, sender, message)

    monkeypatch.setattr("consensus.pbft.healing.on_status", chatty)
    plans = (Plan(seed=seed, delay_ms_max=1, liars=((seed % 4, ("silent",)),)) for seed in range(12))
    assert "liveness" in broken_rules(plans, "liveness")


def test_a_lock_that_is_ignored_in_the_view_change(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (certificates, view_change):
        monkeypatch.setattr(module, "highest_claim", lambda votes: None)
    assert "agreement" in broken_rules((Plan(seed=seed, **SPLIT) for seed in range(40)), "agreement")


def test_a_claim_that_is_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    original = view_change._vote_for

    def forgetful(state: State, view: int) -> None:
        state.progress.prepared = None
        original(state, view)

    monkeypatch.setattr(view_change, "_vote_for", forgetful)
    assert "lost_claim" in broken_rules((Plan(seed=seed, **ROUGH) for seed in range(20)), "lost_claim")


def test_refusals_that_end_every_view_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(state: State, proposal: Proposal, code: str) -> None:
        view_change.start(state, state.view + 1)

    monkeypatch.setattr(ordering, "_refuse", impatient)
    plans = (Plan(seed=seed, delay_ms_max=1, skew_ms_max=FAR_OFF_MS, safety_ms=30_000) for seed in range(10))
    assert "storm" in broken_rules(plans, "storm")


def test_catching_up_without_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Process, "_check_certified", lambda *_: None)
    liars = ((0, ("lyinghelper",)),)
    plans = (Plan(seed=seed, liars=liars, safety_ms=20_000, transactions=30, **CRASHES) for seed in range(30))
    assert "certificate" in broken_rules(plans, "certificate")


def test_memory_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    def hoard(original: Callable[..., bool], self: State, *args: Any) -> bool:
        vars(self).setdefault("hoard", []).append(args)
        return original(self, *args)

    replace_method(monkeypatch, State, "may_answer", hoard)
    assert broken_rules([Plan(seed=1, safety_ms=60_000)], "memory") == ["memory"]


def test_votes_that_nobody_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tally, "_holds", lambda self, vote: True)
    plans = (Plan(seed=seed, liars=((seed % 4, ("forger",)),), transactions=30) for seed in range(20))
    assert "certificate" in broken_rules(plans, "certificate")
