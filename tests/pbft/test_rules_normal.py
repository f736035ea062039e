"""P1 to P11: the normal case, one rule a test."""

import pytest

from consensus.ledger.block import Block
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import Purpose
from consensus.pbft.events import (
    CLOCK_CODE,
    CatchUp,
    Decide,
    Evidence,
    EvidenceKind,
    Penalise,
    Phase,
    Propose,
    Proposed,
    Validate,
    Validated,
    Work,
)
from consensus.pbft.evidence import check_evidence_untrusted
from consensus.pbft.messages import Commit, Prepare, PrePrepare, Status, ViewChange
from consensus.pbft.roster import Roster
from consensus.pbft.signing import KeyVerifier
from tests.pbft.cluster import CHAIN, Cluster, default_config, node_names, validator_set
from tests.pbft.solo import Solo


def started(name: str = "a", count: int = 4) -> Solo:
    solo = Solo(name, count)
    solo.tick()
    return solo


@pytest.mark.parametrize("count", range(1, 32))
def test_r01_p1_quorums_intersect_in_an_honest_replica_and_honest_ones_suffice(count: int) -> None:
    roster = Roster(validator_set(node_names(count)), KeyVerifier(CHAIN))
    assert 2 * roster.quorum - count >= roster.faulty_max + 1
    assert roster.quorum <= count - roster.faulty_max


def test_p2_the_primary_moves_with_height_and_view() -> None:
    roster = Roster(validator_set(node_names(4)), KeyVerifier(CHAIN))
    assert [roster.primary(height, 0) for height in (1, 2, 3, 4)] == ["b", "c", "d", "a"]
    assert [roster.primary(1, view) for view in (0, 1, 2, 3, 4)] == ["b", "c", "d", "a", "b"]


def test_p3_prepared_needs_proposal_and_q_minus_1_backups() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.accept(block)
    assert len(solo.every(Prepare)) == 1
    assert not solo.every(Commit)
    solo.receive(solo.prepare("c", block))
    assert solo.every(Commit)[0].block_hash == block.hash


def test_r05_p3_a_prepare_of_the_primary_is_ignored() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.accept(block)
    assert solo.receive(solo.prepare("b", block)) == []
    assert "b" not in solo.engine.status().prepares


def test_r07_p3_a_vote_counts_once_however_often_it_comes() -> None:
    solo = started("a", 7)
    block = solo.block(b"t")
    solo.accept(block)
    for _ in range(9):
        solo.receive(solo.prepare("c", block))
        assert not solo.every(Commit)
    solo.receive(solo.prepare("d", block))
    solo.receive(solo.prepare("e", block))
    assert len(solo.every(Commit)) == 1


def test_r03_p4_relayed_votes_count_for_their_signer() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.accept(block)
    assert solo.receive(solo.prepare("c", block), sender="d")
    assert solo.every(Commit)


def test_r03_p4_a_forged_relayed_vote_cannot_fill_anothers_slot() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.accept(block)
    good = solo.prepare("c", block)
    forged = Prepare(1, 0, block.hash, "c", solo.prepare("d", block).signature)
    assert solo.receive(forged, sender="d") == [Penalise(NodeName("d"), "bad_signature")]
    solo.receive(good)
    assert solo.every(Commit)


def test_p4_an_unverified_vote_is_verified_before_it_counts() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.accept(block)
    forged = Prepare(1, 0, block.hash, "c", bytes(64))
    assert solo.receive(forged) == [Penalise(NodeName("c"), "bad_signature")]
    assert not solo.every(Commit)


@pytest.mark.parametrize(
    "change", [{"height": 2}, {"view": 1}, {"block_hash": bytes(32)}, {"signer": "zz"}, {"signer": "d"}]
)
def test_r06_p4_p8_no_field_of_a_vote_can_be_changed(change: dict[str, object]) -> None:
    solo = started()
    block = solo.block(b"t")
    solo.accept(block)
    good = solo.commit("b", block)
    fields = {name: getattr(good, name) for name in good.__struct_fields__}
    solo.receive(solo.commit("c", block))
    solo.receive(Commit(**(fields | change)), sender="b")
    solo.receive(solo.prepare("c", block))
    assert len(solo.every(Commit)) == 1
    assert not solo.every(Decide)


def test_r10_p4_a_vote_of_another_chain_or_purpose_does_not_count() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.accept(block)
    prepare = solo.prepare("c", block)
    solo.receive(prepare)
    solo.receive(solo.commit("b", block))
    solo.receive(Commit(1, 0, block.hash, "c", prepare.signature))
    assert solo.every(Penalise) == [Penalise(NodeName("c"), "bad_signature")]
    assert not solo.every(Decide)


def test_p4_a_proposal_counts_only_from_its_primary() -> None:
    solo = started()
    assert solo.receive(solo.propose(solo.block(b"t")), sender="c") == []
    solo.receive(solo.propose(solo.block(b"t"), by="c"))
    assert solo.every(Penalise) == [Penalise(NodeName("b"), "bad_signature")]


def test_p5_no_commit_before_the_block_is_found_valid() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.receive(solo.propose(block))
    solo.receive(solo.prepare("c", block))
    solo.receive(solo.prepare("d", block))
    assert not solo.every(Commit)
    solo.step(Validated(block.hash, True))
    assert len(solo.every(Prepare)) == 1
    assert len(solo.every(Commit)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"chain_id": bytes(32)},
        {"parent_hash": bytes(32)},
        {"time_ms": 0},
        {"uptime_ms": 77},
        {"validators_hash": bytes(32)},
        {"proposer": "c"},
    ],
)
def test_r41_p6_a_header_that_does_not_fit_is_refused_without_executing(change: dict[str, object]) -> None:
    solo = started()
    block = solo.block(b"t", **change)
    solo.receive(solo.propose(block))
    assert not solo.every(Validate)
    assert solo.every(Evidence)[0].kind is EvidenceKind.INVALID_PROPOSAL
    assert solo.every(ViewChange)[0].vote.view == 1


def test_p7_an_invalid_block_gets_no_vote_but_evidence_and_a_view_change() -> None:
    solo = started()
    block = solo.block(b"bad")
    solo.receive(solo.propose(block))
    solo.step(Validated(block.hash, False, "result_mismatch"))
    assert not solo.every(Prepare)
    evidence = solo.every(Evidence)[0]
    assert (evidence.kind, evidence.signer, evidence.code) == (EvidenceKind.INVALID_PROPOSAL, "b", "result_mismatch")
    check_evidence_untrusted(evidence, Roster(solo.validators, KeyVerifier(CHAIN)))
    assert solo.every(ViewChange)[0].vote.claim is None


def test_p7_a_wrong_clock_is_refused_without_evidence() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.receive(solo.propose(block))
    assert solo.every(Validate)[0].first_seen
    solo.step(Validated(block.hash, False, CLOCK_CODE))
    assert not solo.every(Evidence)
    assert solo.every(ViewChange)


def test_r44_p7_a_verdict_belongs_to_a_body_and_not_to_its_hash() -> None:
    solo = started()
    good = solo.block(b"t")
    swapped = Block(good.header, (b"bad",), good.hash)
    solo.receive(solo.propose(swapped))
    solo.step(Validated(swapped.hash, False, "bad_header"))
    votes = [solo.view_change(name, 1, solo.prepared(good, 0, "cd")) for name in "acd"]
    solo.receive(solo.new_view(1, votes, solo.prepared(good, 0, "cd")))
    solo.receive(solo.propose(good, 1))
    assert solo.every(Validate) == [Validate(good, False)]
    solo.step(Validated(good.hash, True))
    assert solo.every(Prepare)[0].view == 1


def test_r44_p7_a_late_verdict_on_another_body_does_not_refuse_this_one() -> None:
    solo = started()
    good = solo.block(b"t")
    solo.receive(solo.propose(Block(good.header, (b"bad",), good.hash)))
    votes = [solo.view_change(name, 1, solo.prepared(good, 0, "cd")) for name in "bcd"]
    solo.receive(solo.new_view(1, votes, solo.prepared(good, 0, "cd")))
    solo.receive(solo.propose(good, 1))
    assert solo.step(Validated(good.hash, False, "bad_header")) == []
    solo.step(Validated(good.hash, True))
    assert solo.every(Prepare)[0].view == 1


def test_p8_q_commits_of_one_view_decide() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.accept(block)
    solo.receive(solo.prepare("c", block))
    solo.receive(solo.commit("b", block))
    assert not solo.every(Decide)
    solo.receive(solo.commit("c", block, 1))
    assert not solo.every(Decide)
    solo.receive(solo.commit("d", block))
    decided = solo.every(Decide)[0]
    assert decided.block == block
    assert [vote.signer for vote in decided.certificate.signatures] == ["a", "b", "d"]


def test_r28_p8_commits_of_a_view_that_was_left_still_decide() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.accept(block)
    solo.step(Work(waiting=True))
    solo.tick(1_100)
    assert solo.engine.status().phase is Phase.VIEW_CHANGE
    for name in "bcd":
        solo.receive(solo.commit(name, block))
    assert solo.every(Decide)[0].certificate.view == 0


def test_p9_a_certificate_waits_for_the_verdict() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.receive(solo.propose(block))
    for name in "bcd":
        solo.receive(solo.commit(name, block))
    solo.tick(25)
    assert not solo.every(CatchUp)
    solo.step(Validated(block.hash, True))
    assert solo.every(Decide)[0].block == block


def test_r35_p9_a_certificate_without_the_block_is_caught_up() -> None:
    solo = started()
    block = solo.block(b"t")
    for name in "bcd":
        solo.receive(solo.commit(name, block))
    assert not solo.every(Decide)
    solo.tick(25)
    assert solo.every(CatchUp)[0].certificate.block_hash == block.hash
    solo.tick(25)
    assert not solo.every(CatchUp)


def test_r53_r30_p9_a_height_is_decided_once_and_repeated_heads_change_nothing() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.accept(block)
    for name in "bcd":
        solo.receive(solo.commit(name, block))
    solo.receive(solo.commit("b", block))
    assert not solo.effects
    solo.advance(block)
    assert solo.engine.height == 2
    before = solo.engine.status()
    solo.advance(block)
    assert solo.engine.status() == before


def test_p10_one_proposal_a_view() -> None:
    solo = started()
    first, second = solo.block(b"1"), solo.block(b"2")
    solo.accept(first)
    solo.receive(solo.propose(second))
    assert not solo.every(Prepare)
    assert not solo.every(Validate)
    assert solo.engine.status().block_hash == first.hash


def test_r22_p10_nothing_is_said_below_the_own_view_and_old_proposals_are_cancelled() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.receive(solo.propose(block))
    solo.tick(2_000)
    assert solo.engine.view == 1
    assert solo.step(Validated(block.hash, True)) == []
    assert solo.receive(solo.propose(block)) == []
    builder = started("b")
    builder.step(Work(waiting=True))
    assert builder.every(Propose)
    builder.tick(2_000)
    assert builder.step(Proposed(1, 0, block)) == []


def test_r11_p11_the_first_of_two_proposals_stays_and_both_are_evidence_once() -> None:
    solo = started()
    first, second = solo.block(b"1"), solo.block(b"2")
    solo.accept(first)
    solo.receive(solo.propose(second))
    evidence = solo.every(Evidence)[0]
    assert evidence.kind is EvidenceKind.DOUBLE_PROPOSAL
    check_evidence_untrusted(evidence, Roster(solo.validators, KeyVerifier(CHAIN)))
    solo.receive(solo.propose(solo.block(b"3")))
    assert not solo.every(Evidence)
    solo.receive(solo.prepare("c", first))
    assert solo.every(Commit)[0].block_hash == first.hash


@pytest.mark.parametrize("kind", [EvidenceKind.DOUBLE_PREPARE, EvidenceKind.DOUBLE_COMMIT])
def test_r11_p11_the_first_of_two_votes_stays(kind: EvidenceKind) -> None:
    solo = started()
    first, second = solo.block(b"1"), solo.block(b"2")
    solo.accept(first)
    vote = solo.prepare if kind is EvidenceKind.DOUBLE_PREPARE else solo.commit
    solo.receive(vote("c", second))
    solo.receive(vote("c", first))
    assert solo.every(Evidence)[0].kind is kind
    check_evidence_untrusted(solo.every(Evidence)[0], Roster(solo.validators, KeyVerifier(CHAIN)))
    assert not solo.every(Commit)


def test_p11_a_forged_contradiction_is_no_evidence() -> None:
    solo = started()
    first, second = solo.block(b"1"), solo.block(b"2")
    solo.accept(first)
    solo.receive(solo.commit("c", first))
    solo.receive(Commit(1, 0, second.hash, "c", bytes(64)), sender="d")
    assert not solo.every(Evidence)
    assert solo.every(Penalise) == [Penalise(NodeName("d"), "bad_signature")]


def test_normal_case_verifies_no_more_votes_than_needed() -> None:
    calls: list[Purpose] = []

    class Counting(KeyVerifier):
        def verifies(self, key: bytes, purpose: Purpose, payload: bytes, signature: bytes) -> bool:
            calls.append(purpose)
            return super().verifies(key, purpose, payload, signature)

    solo = Solo("a", 7)
    config = default_config(NodeName("a"))
    solo.engine = type(solo.engine)(type(config)(config.name, config.signer, Counting(CHAIN)), solo.head)
    solo.tick()
    block = solo.block(b"t")
    solo.accept(block)
    for name in "cdefg":
        solo.receive(solo.prepare(name, block))
    for name in "bcdefg":
        solo.receive(solo.commit(name, block))
    assert solo.validators.quorum == 5
    assert calls.count(Purpose.PROPOSAL) == 1
    assert calls.count(Purpose.PREPARE) == 3
    assert calls.count(Purpose.COMMIT) == 4


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 10])
def test_r02_any_number_of_validators_commits_and_idles(count: int) -> None:
    cluster = Cluster(count)
    cluster.run(20)
    cluster.submit(b"t")
    assert [replica.height for replica in cluster.alive] == [1] * count
    cluster.run(1_100)
    assert [replica.height for replica in cluster.alive] == [2] * count
    cluster.run(30_100)
    assert [replica.height for replica in cluster.alive] == [3] * count
    cluster.agree()


def test_late_early_and_foreign_messages_have_no_effect() -> None:
    solo = started()
    block = solo.block(b"t", height=9)
    for message in (solo.prepare("c", block), solo.commit("c", block), solo.propose(block)):
        solo.receive(message, sender="c")
        assert not [effect for effect in solo.effects if not isinstance(getattr(effect, "message", None), Status)]
    assert not solo.every(PrePrepare)


def test_a_non_validator_only_observes() -> None:
    solo = Solo("a")
    outsider = Solo("z", 4)
    outsider.tick()
    block = solo.block(b"t")
    outsider.receive(solo.propose(block))
    assert outsider.effects == []
    outsider.tick(60_000)
    assert {type(message) for message in (getattr(effect, "message", None) for effect in outsider.effects)} == {Status}
