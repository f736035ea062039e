"""P14 to P16, P19 to P23: leaving views and opening them."""

from itertools import combinations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.block import BlockRecord
from consensus.ledger.errors import LocalError
from consensus.ledger.ids import NodeName
from consensus.pbft.certificates import highest_claim
from consensus.pbft.engine import Engine
from consensus.pbft.events import (
    Evidence,
    EvidenceKind,
    Penalise,
    Phase,
    Propose,
    Proposed,
    Received,
    Send,
    Tick,
    Validate,
    Validated,
    Work,
)
from consensus.pbft.messages import (
    VIEW_MAX,
    BlockBody,
    Claim,
    Commit,
    Decided,
    FetchBlock,
    Message,
    NewView,
    Prepare,
    PrePrepare,
    Status,
    ViewChange,
    ViewChangeVote,
)
from consensus.pbft.pace import SUSPECT_TURNS_MAX, Pace
from consensus.pbft.vote_log import VoteLog
from tests.pbft.cluster import Cluster, default_config, key_of
from tests.pbft.solo import Solo


def started(name: str = "a", count: int = 4, **config: int) -> Solo:
    solo = Solo(name, count, **config)
    solo.tick()
    return solo


# P14


@pytest.mark.parametrize(
    "flaw", ["view 0", "claim too new", "no proof", "proof without claim", "other proof", "forged"]
)
def test_p14_a_bad_view_change_is_refused(flaw: str) -> None:
    solo = started()
    block = solo.block(b"t")
    good = solo.view_change("c", 2, solo.prepared(block))
    vote, certificate = good.vote, good.certificate
    match flaw:
        case "view 0":
            bad = solo.view_change("c", 0)
        case "claim too new":
            bad = solo.view_change("c", 2, solo.prepared(block, 2))
        case "no proof":
            bad = ViewChange(vote, None)
        case "proof without claim":
            bad = ViewChange(solo.view_change("c", 2).vote, certificate)
        case "other proof":
            bad = ViewChange(vote, solo.prepared(block, 1))
        case _:
            bad = ViewChange(
                ViewChangeVote(1, 2, vote.claim, "c", solo.view_change("d", 2).vote.signature), certificate
            )
    solo.receive(bad)
    assert solo.engine.status().view_changes == {}
    if flaw != "view 0":
        assert [penalty.peer for penalty in solo.every(Penalise)] == ["c"]


@pytest.mark.parametrize("backups", ["a", "ac", "aa", "ca", "bc", "az", "acd"])
def test_r07_p14_p3_a_prepared_certificate_needs_distinct_backups(backups: str) -> None:
    solo = started("d", 4)
    message = solo.view_change("c", 1, solo.prepared(solo.block(b"t"), 0, backups))
    solo.receive(message)
    accepted = "c" in solo.engine.status().view_changes
    assert accepted == (backups in ("ac", "acd"))


def test_p11_p14_two_votes_for_one_view_are_evidence_and_the_first_stays() -> None:
    solo = started()
    solo.receive(solo.view_change("c", 2))
    solo.receive(solo.view_change("c", 2, solo.prepared(solo.block(b"t"))))
    assert solo.every(Evidence)[0].kind is EvidenceKind.DOUBLE_VIEW_CHANGE


# P15


def test_p15_the_primary_opens_with_q_votes_and_proposes() -> None:
    solo = started("c")
    solo.receive(solo.view_change("b", 1))
    assert not solo.every(NewView)
    solo.receive(solo.view_change("d", 1))
    assert [vote.signer for vote in solo.every(NewView)[0].votes] == ["b", "c", "d"]
    assert solo.every(Propose) == [Propose(1, 1, solo.head.hash)]
    solo.step(Proposed(1, 1, solo.block(b"t", proposer="c")))
    assert solo.every(PrePrepare)[0].view == 1


def test_r08_p15_a_prepared_block_is_proposed_again_with_its_hash() -> None:
    solo = started("c")
    block = solo.block(b"t")
    solo.accept(block)
    solo.receive(solo.view_change("b", 1))
    solo.receive(solo.view_change("d", 1, solo.prepared(block, 0, "ad")))
    assert solo.every(NewView)[0].certificate == solo.prepared(block, 0, "ad")
    assert solo.every(PrePrepare)[0].block == block.record()
    assert not solo.every(Propose)


def test_r25_p15_an_unknown_body_is_fetched_from_those_who_prepared_it() -> None:
    solo = started("c")
    block = solo.block(b"t")
    solo.receive(solo.view_change("b", 1))
    solo.receive(solo.view_change("d", 1, solo.prepared(block, 0, "ad")))
    solo.tick(25)
    assert [send.to for send in solo.every(Send) if isinstance(send.message, FetchBlock)] == ["a"]
    solo.tick(25)
    assert not solo.every(Send)
    solo.receive(BlockBody(BlockRecord(block.header, [b"other"])), sender="a")
    solo.step(Validated(block.hash, False, "bad_header"))
    assert not solo.every(Evidence)
    solo.tick(220)
    assert [send.to for send in solo.every(Send) if isinstance(send.message, FetchBlock)] == ["d"]
    solo.receive(BlockBody(block.record()), sender="d")
    assert solo.every(Validate) == [Validate(block, False)]
    solo.step(Validated(block.hash, True))
    assert solo.every(PrePrepare)[0].view == 1


def test_p15_who_prepared_a_body_hands_it_out() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.accept(block)
    solo.receive(FetchBlock(1, block.hash), sender="d")
    assert solo.to("d", BlockBody) == [BlockBody(block.record())]
    solo.receive(FetchBlock(1, bytes(32)), sender="c")
    assert not solo.effects


def test_p15_backups_take_only_the_required_block() -> None:
    solo = started()
    block, other = solo.block(b"t"), solo.block(b"u", proposer="c")
    votes = [solo.view_change("b", 1), solo.view_change("c", 1, solo.prepared(block)), solo.view_change("d", 1)]
    solo.receive(solo.new_view(1, votes, solo.prepared(block)))
    assert solo.engine.status().phase is Phase.OPEN
    solo.receive(solo.propose(other, 1))
    assert not solo.every(Validate)
    assert solo.every(ViewChange)[0].vote.view == 2


def test_p15_backups_take_the_required_block_without_the_clock() -> None:
    solo = started()
    block = solo.block(b"t")
    votes = [solo.view_change("b", 1), solo.view_change("c", 1, solo.prepared(block)), solo.view_change("d", 1)]
    solo.receive(solo.new_view(1, votes, solo.prepared(block)))
    solo.receive(solo.propose(block, 1))
    assert solo.every(Validate) == [Validate(block, False)]


FLAWS = [
    "too few", "twice", "not ascending", "outsider", "other view", "other height", "forged vote", "forged", "view 0",
    "claim without proof", "proof without claim", "lower proof", "two claims",
]  # fmt: skip


@pytest.mark.parametrize("flaw", FLAWS)
def test_p15_a_bad_new_view_is_refused(flaw: str) -> None:
    solo = started()
    block, other = solo.block(b"t"), solo.block(b"u", proposer="c")
    low, high, lie = solo.prepared(block, 0), solo.prepared(other, 1), solo.prepared(block, 1)
    votes = [solo.view_change("b", 2), solo.view_change("c", 2, low), solo.view_change("d", 2, high)]
    good = solo.new_view(2, votes, high)
    match flaw:
        case "too few":
            bad = solo.new_view(2, votes[1:], high)
        case "twice":
            bad = solo.new_view(2, [votes[0], votes[2], votes[2]], high)
        case "not ascending":
            bad = solo.new_view(2, votes[::-1], high)
        case "outsider":
            bad = solo.new_view(2, [votes[0], votes[2], solo.view_change("z", 2)], high)
        case "other view":
            bad = solo.new_view(2, [votes[0], votes[1], solo.view_change("d", 3, high)], high)
        case "other height":
            bad = NewView(2, 2, good.votes, good.certificate, good.signature)
        case "forged vote":
            forged = ViewChange(ViewChangeVote(1, 2, None, "b", bytes(64)), None)
            bad = solo.new_view(2, [forged, votes[1], votes[2]], high)
        case "forged":
            bad = solo.new_view(2, votes, high, by="a")
        case "view 0":
            bad = solo.new_view(0, votes, high)
        case "claim without proof":
            bad = solo.new_view(2, votes, None)
        case "proof without claim":
            bad = solo.new_view(2, [solo.view_change(name, 2) for name in "bcd"], low)
        case "lower proof":
            bad = solo.new_view(2, votes, low)
        case _:
            bad = solo.new_view(2, [votes[0], solo.view_change("c", 2, high), solo.view_change("d", 2, lie)], high)
    solo.receive(bad, sender="d")
    assert solo.engine.view == 0
    if flaw not in ("view 0", "other height"):
        assert [penalty.peer for penalty in solo.every(Penalise)] == ["d"]
    solo.receive(good)
    assert solo.engine.view == 2


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 9), st.integers(0, 255))), min_size=1, max_size=9))
def test_r12_p15_the_choice_is_that_of_a_reference(claims: list[tuple[int, int] | None]) -> None:
    claims = [None if claim is None else (claim[0], claim[0]) for claim in claims]
    votes = [
        ViewChangeVote(1, 10, None if claim is None else Claim(claim[0], bytes([claim[1]]) * 32), "a", bytes(64))
        for claim in claims
    ]
    best = max((claim for claim in claims if claim is not None), default=None)
    choice = highest_claim(votes)
    assert (choice and (choice.view, choice.block_hash)) == (best and (best[0], bytes([best[1]]) * 32))


def test_r31_p7_refusals_leave_at_once_only_in_the_first_round_of_primaries() -> None:
    solo = started()
    votes = [solo.view_change(name, 5) for name in "bcd"]
    solo.receive(solo.new_view(5, votes))
    solo.receive(solo.propose(solo.block(b"bad", proposer="c"), 5))
    solo.step(Validated(solo.block(b"bad", proposer="c").hash, False, "bad_block"))
    assert solo.engine.view == 5
    solo.tick(8_000)
    assert solo.engine.view == 6


def test_r29_a_decision_ends_a_view_change() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.accept(block)
    solo.step(Work(waiting=True))
    solo.tick(1_000)
    solo.advance(block)
    status = solo.engine.status()
    assert (status.height, status.view, status.phase) == (2, 0, Phase.OPEN)


@pytest.mark.parametrize("lucky", [set(names) for size in range(5) for names in combinations("abcd", size)])
def test_r29_who_has_decided_and_who_changes_views_do_not_wait_for_each_other(lucky: set[str]) -> None:
    """The commits reach some, all others leave the view; then everything gets through again."""
    cluster = Cluster(4)
    cluster.run(20)
    cluster.drop = lambda sender, to, message: isinstance(message, Commit | Decided) and to not in lucky
    cluster.submit(b"t")
    cluster.run(2_000)
    assert {replica.name for replica in cluster.alive if replica.height} == lucky
    assert all(cluster[name].engine.view for name in cluster.names if name not in lucky)
    cluster.drop = lambda sender, to, message: False
    cluster.run_until_height(1, 4_000)
    cluster.submit(b"u")
    cluster.run_until_height(2, 4_000)
    cluster.agree()


def view_changes_sent(copies: int) -> int:
    """Return how many messages about views it takes to get past two dead primaries, when each arrives so often."""
    cluster = Cluster(7)
    cluster.run(20)
    cluster.crash("b", "c")

    def repeat(sender: NodeName, to: NodeName, message: Message) -> bool:
        if isinstance(message, ViewChange | NewView):
            for _ in range(copies - 1):
                cluster.feed(to, Received(sender, message))
        return False

    cluster.drop = repeat
    cluster.submit(b"t")
    cluster.run_until_height(1, 10_000)
    cluster.agree()
    assert not any(replica.penalties or replica.evidence for replica in cluster.alive)
    return sum(isinstance(getattr(effect, "message", None), ViewChange | NewView) for _, effect in cluster.trace)


def test_r13_copies_of_view_changes_provoke_no_more_of_them() -> None:
    assert view_changes_sent(20) == view_changes_sent(1)


# P16 and P23, jumps


def test_r22_p16_alone_a_replica_stays_one_view_ahead() -> None:
    solo = started()
    solo.step(Work(waiting=True))
    solo.tick(1_000)
    for _ in range(100):
        solo.tick(10_000)
    assert solo.engine.view == 1
    solo.receive(solo.view_change("b", 1))
    solo.receive(solo.view_change("c", 5))
    solo.tick(2_000)
    assert solo.engine.view == 2


@pytest.mark.parametrize("view", [2**31, VIEW_MAX])
def test_r14_one_liars_huge_view_pulls_nobody(view: int) -> None:
    solo = started()
    solo.receive(solo.view_change("c", view))
    assert solo.engine.view == 0
    solo.receive(solo.view_change("d", 3))
    assert solo.engine.view == 3
    assert solo.every(ViewChange)[0].vote.view == 3


@pytest.mark.parametrize("seed", range(8))
def test_r20_r24_random_views_and_a_liar_lead_to_one_view(seed: int) -> None:
    random = Random(seed)
    cluster = Cluster(7)
    crafted = Solo("a", 7)
    cluster.crash(*cluster.names)
    for name in cluster.names[:6]:
        view = random.randrange(1, 9)
        log = VoteLog(key_of(name).public.compressed)
        cluster[name].records.update([log.view(1, view, crafted.view_change(name, view), None)])
    cluster.pool.append(b"t")
    cluster.restart(*cluster.names[:6])
    while cluster["a"].height == 0 and cluster.now_ms < 40_000:
        liar_vote = crafted.view_change("g", random.choice([1, 5, 9, 50, 2**31]))
        for name in cluster.names[:6]:
            if random.random() < 0.5:
                cluster.feed(name, Received(NodeName("g"), liar_vote))
        cluster.run(500)
    cluster.run_until_height(1, 1_000)
    assert max(replica.views[-1].view for replica in cluster.alive) < 20
    cluster.agree()


def test_r16_a_storm_of_views_takes_one_slot_a_signer() -> None:
    solo = started()
    for view in range(1, 300):
        solo.receive(solo.view_change("c", view))
        solo.receive(solo.commit("d", solo.block(b"t"), view))
    solo.receive(solo.commit("d", solo.block(b"t"), 0))
    assert solo.engine.status().commits == ()
    assert solo.engine.status().view_changes == {"c": 299}
    assert solo.engine.view == 0


def test_r13_repeated_view_changes_are_answered_with_nothing() -> None:
    solo = started()
    message = solo.view_change("c", 1)
    solo.receive(message)
    for _ in range(5):
        assert solo.receive(message) == []


# P19 to P22


def test_r15_r17_p19_timeouts_double_to_the_cap_and_only_a_commit_resets_them() -> None:
    solo = started("a", 1)
    pace = Pace(default_config(NodeName("a")))
    assert [pace.timeout_ms(view, NodeName("b"), 4) for view in (0, 1, 2, 3, 4, 2**32)] == [
        1_000, 2_000, 4_000, 8_000, 8_000, 8_000,
    ]  # fmt: skip
    solo.step(Work(waiting=True))
    for view, after_ms in ((1, 1_000), (2, 2_000), (3, 4_000), (4, 8_000), (5, 8_000)):
        solo.tick(after_ms - 1)
        assert solo.engine.view == view - 1
        if view > 1:  # in later views work that comes and goes changes nothing
            solo.step(Work(waiting=False))
            solo.step(Work(waiting=True))
        solo.tick(1)
        assert solo.engine.view == view
    solo.advance(solo.block(b"t", proposer="a"))
    assert solo.engine.view == 0
    assert solo.engine.status().timeout_ms == 1_000


def test_p19_nothing_is_expected_of_an_idle_primary_until_a_block_is_due() -> None:
    solo = started()
    assert solo.engine.status().deadline_in_ms == 31_000
    solo.step(Work(waiting=True))
    assert solo.engine.status().deadline_in_ms == 1_000
    solo.step(Work(waiting=False))
    solo.receive(solo.propose(solo.block(b"t")))
    assert solo.engine.status().deadline_in_ms == 1_000


def test_r38_p19_a_primary_that_only_answers_is_replaced_within_two_timeouts() -> None:
    cluster = Cluster(4)
    cluster.run(20)
    cluster.drop = lambda sender, to, message: sender == "b" and isinstance(message, PrePrepare)
    cluster.submit(b"t")
    cluster.run_until_height(1, 2_000)
    assert cluster["a"].chain[1][0].header.proposer == "c"


def test_p20_a_suspect_gets_short_turns_then_a_full_one_until_it_succeeds() -> None:
    pace = Pace(default_config(NodeName("a")))
    name = NodeName("b")
    turns = []
    for _ in range(12):
        turns.append(pace.timeout_ms(0, name, 4))
        pace.failed(name)
    assert turns == [1_000, 200, 1_000, 200, 200, 1_000, 200, 200, 200, 200, 1_000, 200]
    assert pace.timeout_ms(4, name, 4) == 8_000
    for _ in range(1_000):
        pace.failed(name)
    assert pace._suspicions[name].turns == SUSPECT_TURNS_MAX
    pace.succeeded(name)
    assert pace.suspected() == ()


def test_p20_a_suspect_that_proposes_in_time_gets_full_time_to_finish_and_is_none_afterwards() -> None:
    solo = started()
    solo.step(Work(waiting=True))
    solo.tick(1_000)
    solo.advance(solo.block(b"1", proposer="c"))
    for proposer in "cda":
        assert solo.engine.status().suspected == ("b",)
        solo.advance(solo.block(b"t", proposer=proposer))
    assert (solo.engine.status().primary, solo.engine.status().timeout_ms) == ("b", 200)
    assert solo.engine.status().deadline_in_ms == 200
    solo.receive(solo.propose(solo.block(b"t")))
    assert solo.engine.status().deadline_in_ms == 1_000
    solo.advance(solo.block(b"t"))
    assert solo.engine.status().suspected == ()


def test_r22_p22_a_view_that_comes_round_asks_for_a_block_anew() -> None:
    solo = started("a", 1)
    assert solo.step(Work(waiting=True)) == [Propose(1, 0, solo.head.hash)]
    solo.tick(1_000)
    assert solo.every(Propose) == [Propose(1, 1, solo.head.hash)]
    assert solo.step(Proposed(1, 0, solo.block(b"t", proposer="a"))) == []


def test_p20_a_dead_validator_costs_little_in_the_long_run() -> None:
    cluster = Cluster(4)
    cluster.run(20)
    cluster.crash("b")
    began_ms = cluster.now_ms
    for number in range(100):
        cluster.submit(b"%d" % number)
        cluster.run_until_height(number + 1, 3_000)
    assert cluster.now_ms - began_ms <= 5_000 + 25 * 200


def test_p21_an_overdue_transaction_ends_a_view_once_in_n_heights() -> None:
    solo = started()
    solo.step(Work(waiting=True, overdue=True))
    assert solo.every(ViewChange)[0].vote.view == 1
    heights = [1]
    proposers = "bcdabcdabc"
    for height in range(2, 10):
        solo.advance(solo.block(b"t", proposer=proposers[height - 2]))
        if solo.every(ViewChange):
            heights.append(height)
    assert heights == [1, 5, 9]


def test_p22_quiet_block_then_heartbeats() -> None:
    cluster = Cluster(4)
    cluster.run(20)
    cluster.submit(b"t")
    cluster.run(900)
    assert cluster["a"].height == 1
    cluster.run(200)
    assert cluster["a"].height == 2
    cluster.run(29_000)
    assert cluster["a"].height == 2
    cluster.run(1_200)
    assert cluster["a"].height == 3


def test_p22_a_missing_heartbeat_changes_the_view() -> None:
    cluster = Cluster(4)
    cluster.run(20)
    cluster.crash("b")
    cluster.run(30_900)
    assert cluster["a"].height == 0
    cluster.run(400)
    assert cluster["a"].height == 1


# Stories


def test_r17_two_of_four_stopped_for_long_commit_soon_after_they_are_back() -> None:
    cluster = Cluster(4)
    cluster.run(20)
    cluster.crash("c", "d")
    cluster.submit(b"t")
    cluster.run(60_000)
    assert cluster["a"].engine.view <= 1
    cluster.restart("c", "d")
    cluster.run_until_height(1, 24_000)


def test_r23_a_block_prepared_before_a_long_pause_is_decided_after_it() -> None:
    cluster = Cluster(4)
    cluster.run(20)
    cluster.drop = lambda sender, to, message: isinstance(message, Commit)
    cluster.submit(b"t")
    prepared = cluster["a"].engine.status().block_hash
    cluster.crash("c", "d")
    cluster.run(30 * 60_000)
    cluster.drop = lambda sender, to, message: False
    cluster.restart("c", "d")
    cluster.run_until_height(1, 24_000)
    assert cluster["a"].chain[1][0].hash == prepared


def test_r28_replicas_that_committed_in_different_views_decide() -> None:
    cluster = Cluster(4)
    cluster.run(20)

    def only_to_a_in_view_0(sender: NodeName, to: NodeName, message: Message) -> bool:
        return (isinstance(message, Prepare) and message.view == 0 and to != "a") or isinstance(message, Commit)

    cluster.drop = only_to_a_in_view_0
    cluster.submit(b"t")
    cluster.run(3_000)
    assert {replica.engine.view for replica in cluster.alive} != {0}
    cluster.drop = lambda sender, to, message: False
    cluster.run_until_height(1, 24_000)
    cluster.agree()


@pytest.mark.parametrize("seed", range(12))
def test_loss_duplication_and_crashes_leave_one_history_and_commits_go_on(seed: int) -> None:
    random = Random(seed)
    cluster = Cluster(random.choice([1, 2, 3, 4, 4, 5, 7]))
    cluster.run(20)
    cluster.drop = lambda sender, to, message: random.random() < 0.25
    for number in range(12):
        cluster.submit(b"%d" % number)
        cluster.run(random.choice([20, 100, 700, 2_000]))
        victim = random.choice(cluster.names)
        if cluster[victim].alive:
            cluster.crash(victim)
        else:
            cluster.restart(victim)
        cluster.agree()
    cluster.drop = lambda sender, to, message: False
    cluster.restart(*[name for name in cluster.names if not cluster[name].alive])
    cluster.submit(b"last")
    height = max(replica.height for replica in cluster.alive)
    cluster.run_until_height(height + 1, 24_000)
    cluster.run(3_000)
    assert not cluster.waiting(cluster["a"] if "a" in cluster.names else cluster.alive[0])
    cluster.agree()


def test_r36_p20_a_primary_just_under_the_timeout_soon_loses_most_of_its_turns() -> None:
    cluster = Cluster(4)
    cluster.run(20)
    held: list[tuple[int, NodeName, Message]] = []

    def hold_back(sender: NodeName, to: NodeName, message: Message) -> bool:
        late = sender == "b" and isinstance(message, PrePrepare) and message.view == 0
        if late:
            held.append((cluster.now_ms + 900, to, message))
        return late

    cluster.drop = hold_back
    began_ms = cluster.now_ms
    for number in range(100):
        cluster.submit(b"%d" % number)
        while min(replica.height for replica in cluster.alive) <= number:
            while held and held[0][0] <= cluster.now_ms:
                _, to, message = held.pop(0)
                cluster.feed(to, Received(NodeName("b"), message))
            cluster.run(20)
    assert cluster.now_ms - began_ms <= 25 * 900 // 2


def test_r36_p20_slow_is_only_who_is_slower_than_the_others() -> None:
    pace = Pace(default_config(NodeName("a")))
    for name in "bcd":
        pace.proposed(NodeName(name), 700)
        pace.succeeded(NodeName(name))
    assert pace.suspected() == ()
    for name in "cd":
        pace.proposed(NodeName(name), 100)
    pace.succeeded(NodeName("b"))
    assert pace.suspected() == ("b",)
    pace.proposed(NodeName("b"), 150)
    pace.succeeded(NodeName("b"))
    assert pace.suspected() == ()


def test_r37_a_flood_of_forged_votes_stops_nobody_and_is_reported() -> None:
    cluster = Cluster(4)
    cluster.run(20)
    crafted = Solo("a")
    block = crafted.block(b"x")
    for number in range(200):
        forged = Commit(1, number % 3, block.hash, "c", number.to_bytes(64, "big"))
        cluster.feed("a", Received(NodeName("d"), forged))
    cluster.submit(b"t")
    assert cluster["a"].height == 1
    assert {penalty.peer for penalty in cluster["a"].penalties} == {"d"}
    assert not cluster["a"].evidence


def test_r19_rolling_restarts_never_stop_commits() -> None:
    cluster = Cluster(4)
    cluster.run(20)
    for number in range(12):
        name = cluster.names[number % 4]
        cluster.crash(name)
        cluster.submit(b"%d" % number)
        cluster.run(600)
        cluster.restart(name)
        cluster.run(300)
    cluster.run_until_height(12, 10_000)
    cluster.agree()


@pytest.mark.parametrize("seed", range(6))
def test_r32_r33_drifting_clocks_meet_in_a_view(seed: int) -> None:
    random = Random(seed)
    cluster = Cluster(4)
    cluster.run(20)
    rates = {name: random.choice([0.5, 0.8, 1, 1.2, 1.5]) for name in cluster.names}
    clocks = dict.fromkeys(cluster.names, cluster.now_ms)
    cluster.crash("b")
    cluster.drop = lambda sender, to, message: isinstance(message, NewView | PrePrepare)
    cluster.submit(b"t")
    for step in range(3_000):
        if step == 1_500:
            cluster.drop = lambda sender, to, message: False
        for name in cluster.names:
            clocks[name] += int(20 * rates[name])
            cluster.feed(name, Tick(clocks[name]))
        cluster.drain()
        if cluster["a"].height:
            break
    assert [replica.height for replica in cluster.alive] == [1, 1, 1]
    cluster.agree()


def random_config(random: Random) -> dict[str, int]:
    timeout_ms = random.choice([100, 1_000, 5_000])
    return {
        "timeout_ms": timeout_ms,
        "timeout_ms_max": timeout_ms * random.choice([1, 8]),
        "suspect_timeout_ms": random.choice([20, timeout_ms]),
        "resend_ms": random.choice([20, timeout_ms]),
        "status_ms": 5_000,
    }


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_r39_any_local_configuration_that_validates_keeps_going(seed: int, each: bool) -> None:
    """All nodes have one configuration, or each has its own."""
    random = Random(seed)
    cluster = Cluster(4, **random_config(random))
    for replica in cluster.replicas.values() if each else ():
        own = default_config(replica.name, **random_config(random))
        replica.engine = Engine.restore(own, replica.head, {})
    cluster.run(20)
    cluster.crash("b")
    cluster.submit(b"t")
    cluster.run_until_height(1, 60_000)
    cluster.agree()


@pytest.mark.parametrize(
    "change",
    [
        {"timeout_ms": 9}, {"timeout_ms_max": 999}, {"suspect_timeout_ms": 1_001}, {"quiet_after_ms": 0},
        {"heartbeat_ms": 10}, {"resend_ms": 0}, {"status_ms": 100},
    ],
)  # fmt: skip
def test_a_bad_configuration_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(LocalError) as caught:
        Solo(**change)
    assert caught.value.code == "bad_config"
    assert next(iter(change)) in caught.value.message


def test_a_status_is_no_vote() -> None:
    solo = started()
    for name in "bcd":
        solo.receive(Status(1, 50, False), sender=name)
    assert solo.engine.view == 0
