"""Each strategy can fail: with its defence taken out of the engine, what it does breaks a rule, and it holds with it.

What ``twins`` break is shown by their own tests; ``slow``, ``staller``, ``censor`` and ``flooder`` cost time alone, and
the tests of liveness say how much; so does ``slowhelper``, at the end here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from consensus.ledger.ids import NodeName
from consensus.ledger.validators import vote_payload
from consensus.pbft import certificates, engine, healing, ordering, view_change
from consensus.pbft.events import Phase, Validated
from consensus.pbft.messages import NewView, PrePrepare, Status, ViewChange
from consensus.pbft.state import State
from consensus.pbft.tallies import Tally, Vote
from tests.sim import process
from tests.sim.byzantine import STRATEGIES
from tests.sim.plan import Plan
from tests.sim.process import Process
from tests.sim.signing import _signature
from tests.sim.simulation import run_plan

Patch = pytest.MonkeyPatch

CALM: dict[str, Any] = {"safety_ms": 8_000, "transactions": 30}
LOSSY: dict[str, Any] = {**CALM, "loss_permille": 150}
SPLIT: dict[str, Any] = {
    "safety_ms": 15_000,
    "transactions": 20,
    "loss_permille": 200,
    "disk_ms_max": 5,
    "lossy_kinds": ("Commit", "Decided"),
    "lossy_permille": 800,
    "partition_every_ms": 300,
}
CRASHES: dict[str, Any] = {**CALM, "crash_every_ms": 500, "crash_at_effect_permille": 1_000, "downtime_ms_max": 1_500}


# -- what is taken out -----------------------------------------------------------------------------------


def takes_a_second_proposal(patch: Patch) -> None:
    """P10: a proposal is accepted once in a view."""
    original = ordering.on_pre_prepare

    def eager(state: State, sender: NodeName, message: PrePrepare) -> None:
        state.progress.proposal = None
        if state.progress.phase is Phase.PREPARING:
            state.progress.phase = Phase.OPEN
        original(state, sender, message)

    patch.setattr(ordering, "on_pre_prepare", eager)


def takes_a_second_new_view(patch: Patch) -> None:
    """P10 and P15: a view is entered once."""

    def ignore(state: State, message: NewView) -> bool:
        progress = state.progress
        is_own = state.roster.primary(message.height, message.view) == state.name
        return progress.phase is Phase.DECIDED or is_own or message.view < progress.view

    patch.setattr(view_change, "_ignore_new_view", ignore)


def verifies_no_votes(patch: Patch) -> None:
    """P4: a vote is verified before it counts."""
    patch.setattr(Tally, "_holds", lambda self, vote: True)


def takes_votes_of_other_chains(patch: Patch) -> None:
    """P4: a signature covers the chain."""
    original = Tally._holds

    def lax(self: Tally, vote: Vote) -> bool:
        payload = vote_payload(vote.height, vote.view, vote.block_hash)
        foreign = _signature(vote.signer.encode().ljust(32, b"!"), self._purpose, payload, b"another")
        return vote.signature == foreign or original(self, vote)

    patch.setattr(Tally, "_holds", lax)


def takes_proposals_from_anyone(patch: Patch) -> None:
    """P4: a relay could put another body under the primary's signature."""
    original = ordering._ignore_pre_prepare
    patch.setattr(ordering, "_ignore_pre_prepare", lambda state, _, message: original(state, state.primary, message))


def takes_votes_of_other_heights(patch: Patch) -> None:
    """P17: what is outside the height is dropped."""

    def receive(state: State, sender: NodeName, message: Any) -> None:
        match message:
            case Status():
                healing.on_status(state, sender, message)
            case engine.Decided():
                healing.on_decided(state, sender, message)
            case _:
                engine._receive_now(state, sender, message)

    patch.setattr(engine, "_receive", receive)


def keeps_evidence_unverified(patch: Patch) -> None:
    """P11: a contradiction is evidence only if both signatures hold."""
    patch.setattr(Tally, "_check", lambda self, vote: None)


def tells_nobody_what_was_decided(patch: Patch) -> None:
    """P17: who is behind gets the certificate."""
    original = healing.on_status

    def mean(state: State, sender: NodeName, message: Status) -> None:
        if message.height == state.height:
            original(state, sender, message)

    patch.setattr(healing, "on_status", mean)


def follows_the_highest_view(patch: Patch) -> None:
    """P23: f + 1 votes pull a replica up, not one."""
    original = view_change.react

    def gullible(state: State) -> None:
        votes = state.progress.view_changes
        highest = max((message.vote.view for message in votes.values()), default=0)
        if highest > state.view:
            view_change._vote_for(state, highest)
        original(state)

    patch.setattr(view_change, "react", gullible)


def keeps_every_view_change(patch: Patch) -> None:
    """P23: one slot a signer."""
    original = view_change.on_view_change

    def hoard(state: State, sender: NodeName, message: ViewChange) -> None:
        vars(state).setdefault("hoard", []).append(message)
        original(state, sender, message)

    patch.setattr(view_change, "on_view_change", hoard)


def opens_with_votes_for_any_view(patch: Patch) -> None:
    """P15: a new view needs q votes for exactly that view."""
    original = view_change.react

    def hasty(state: State) -> None:
        original(state)
        votes = [message for message in state.progress.view_changes.values() if message.vote.view >= state.view]
        if state.progress.phase is Phase.VIEW_CHANGE and state.is_primary and len(votes) >= state.roster.quorum:
            view_change._open(state, votes)

    patch.setattr(view_change, "react", hasty)


def takes_the_lowest_claim(patch: Patch) -> None:
    """P15: the claim of the highest view is proposed again."""

    def lowest(votes: Any) -> Any:
        claims = [vote.claim for vote in votes]
        return None if None in claims else min(claims, key=lambda claim: claim.view, default=None)

    for module in (certificates, view_change):
        patch.setattr(module, "highest_claim", lowest)


def takes_any_block_in_a_new_view(patch: Patch) -> None:
    """P15: a proposal of another block than the required one is a refusal."""
    original = ordering._consider

    def lenient(state: State, proposal: Any) -> None:
        required = state.progress.required
        if required is not None and required.block_hash != proposal.block.hash:
            state.progress.new_view = None
        original(state, proposal)

    patch.setattr(ordering, "_consider", lenient)


def checks_no_new_view(patch: Patch) -> None:
    """P15: everyone recomputes what a new view must propose."""
    patch.setattr(view_change, "check_new_view_untrusted", lambda message, roster: None)
    takes_any_block_in_a_new_view(patch)


def waits_while_anyone_talks(patch: Patch) -> None:
    """P19: only a commit starts the clock anew."""
    original = healing.on_status

    def chatty(state: State, sender: NodeName, message: Status) -> None:
        state.progress.entered_ms = state.progress.proposal_ms = state.now_ms
        original(state, sender, message)

    patch.setattr(healing, "on_status", chatty)


def never_catches_up(patch: Patch) -> None:
    """P9: with a certificate but without the block a replica catches up."""
    patch.setattr(healing, "_catch_up", lambda state, certificate, source: None)


def finds_everything_valid(patch: Patch) -> None:
    """P7: a replica prepares only what it has executed and found valid."""
    patch.setattr(ordering, "_unfit", lambda state, block: "")
    patch.setattr(Process, "_validate", lambda self, block, *, first_seen: Validated(block.hash, True))


def believes_every_clock(patch: Patch) -> None:
    """P7: a first-seen proposal is judged by the clock."""
    patch.setattr(process, "is_timely", lambda *_, **__: True)


def catches_up_without_certificates(patch: Patch) -> None:
    """P18: catching up commits by the same certificates."""
    patch.setattr(Process, "_check_certified", lambda *_: None)


def never_leaves_a_slow_helper(patch: Patch) -> None:
    """R63: who answers slowly is left for the next one."""
    patch.setattr(process, "SLOW_SHARE", 10)


def votes_with_any_log(patch: Patch) -> None:
    """P13, R49: without its log a key votes no more."""
    original = process.open_log_beside
    patch.setattr(process, "open_log_beside", lambda *arguments: (True, original(*arguments)[1]))


@dataclass(frozen=True)
class Case:
    """A strategy, what is taken out, and the rule that breaks then; ``beside`` is what the liar does as well."""

    strategy: str
    without: Callable[[Patch], None]
    rule: str
    plan: dict[str, Any] = field(default_factory=lambda: CALM)
    first_seed: int = 0
    """Where it is soon found."""
    seeds: int = 12
    beside: tuple[str, ...] = ()


CASES = [
    Case("equivocator", takes_a_second_proposal, "double_vote"),
    Case("forger", verifies_no_votes, "certificate"),
    Case("relayer", takes_proposals_from_anyone, "framed", LOSSY),
    Case("replayer", takes_votes_of_other_heights, "framed"),
    Case("foreignvotes", takes_votes_of_other_chains, "framed"),
    Case("framer", keeps_evidence_unverified, "framed"),
    Case("selectivecommitter", tells_nobody_what_was_decided, "liveness", LOSSY),
    Case("withholder", never_catches_up, "liveness"),
    Case("hugeviews", follows_the_highest_view, "storm"),
    Case("mixedviews", follows_the_highest_view, "storm", {**CALM, "delay_ms_max": 400}),
    Case("stormer", keeps_every_view_change, "memory"),
    Case("doubleleaver", opens_with_votes_for_any_view, "framed", SPLIT),
    Case("claimhider", takes_the_lowest_claim, "agreement", SPLIT, 7, 30),
    Case("amnesiac", takes_any_block_in_a_new_view, "agreement", SPLIT, 24, 30, beside=("equivocator",)),
    Case("badnewview", checks_no_new_view, "agreement", SPLIT, 15, 30, beside=("equivocator",)),
    Case("doubleopener", takes_a_second_new_view, "double_vote", SPLIT, 2, 30),
    Case("silent", waits_while_anyone_talks, "liveness", {**CALM, "delay_ms_max": 1}),
    Case("pingsonly", waits_while_anyone_talks, "liveness", {**CALM, "delay_ms_max": 1}),
    Case("badblocks", finds_everything_valid, "exception"),
    Case("headermutator", finds_everything_valid, "exception"),
    Case("doublespender", finds_everything_valid, "exception"),
    Case("clockliar", believes_every_clock, "time"),
    Case("lyinghelper", catches_up_without_certificates, "exception", CRASHES),
    Case("wiped", votes_with_any_log, "voted_without_log", CRASHES),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.strategy)
def test_a_strategy_breaks_what_it_attacks_once_the_defence_is_gone(case: Case, monkeypatch: Patch) -> None:
    kinds = (case.strategy, *case.beside)
    plans = [
        Plan(seed=seed, liars=((seed % 4, kinds),), **case.plan)
        for seed in range(case.first_seed, case.first_seed + case.seeds)
    ]
    case.without(monkeypatch)
    found = []
    for plan in plans:
        found.append(run_plan(plan).rule)
        if found[-1] == case.rule:
            break
    broke_at = len(found) - 1
    assert found[-1] == case.rule, f"{case.without.__doc__} {found}"
    monkeypatch.undo()
    assert not run_plan(plans[broke_at]).rule, "it fails with the defence as well"


def test_every_strategy_is_named_and_proved_here_or_by_its_figure() -> None:
    elsewhere = {"twins", "flooder", "slow", "staller", "censor", "slowhelper"}
    assert {case.strategy for case in CASES} | elsewhere == set(STRATEGIES)
    assert all(kind.__doc__ and "\n" not in kind.__doc__ for kind in STRATEGIES.values())


def test_r63_who_never_leaves_a_slow_helper_heals_late(monkeypatch: Patch) -> None:
    liars = ((3, ("slowhelper",)), (5, ("slowhelper",)))
    restarts: dict[str, int] = {"crash_every_ms": 1_500, "downtime_ms_max": 6_000}
    plan = Plan(seed=3, validators=7, liars=liars, safety_ms=10_000, transactions=30, **restarts)
    quick_ms = max(run_plan(plan).probe_ms)
    never_leaves_a_slow_helper(monkeypatch)
    assert max(run_plan(plan).probe_ms) > quick_ms + 5_000
