"""P12 and P13: durable before sent, and restarts that contradict nothing."""

from dataclasses import replace

import pytest

from consensus.ledger.errors import StorageError
from consensus.ledger.ids import NodeName
from consensus.ledger.validators import Validator, ValidatorSet
from consensus.pbft.engine import Engine
from consensus.pbft.events import (
    Advanced,
    Broadcast,
    Decide,
    Effect,
    Evidence,
    Persist,
    Phase,
    Propose,
    Proposed,
    Send,
    Tick,
    Validate,
    Validated,
    Work,
)
from consensus.pbft.messages import Commit, NewView, Prepare, PrePrepare, Status, ViewChange
from consensus.pbft.signing import KeySigner
from consensus.pbft.vote_log import RecordKind, VoteLog
from tests.pbft.cluster import CHAIN, Cluster, default_config, key_of
from tests.pbft.solo import Solo

Statement = PrePrepare | Prepare | Commit | ViewChange | NewView


def key(kind: RecordKind) -> bytes:
    return bytes([kind])


def order(effects: list[Effect]) -> list[str]:
    names = []
    for effect in effects:
        if isinstance(effect, Persist):
            names += [RecordKind(record[0]).name for record, _ in effect.records]
        elif isinstance(effect, Broadcast):
            names.append(type(effect.message).__name__)
    return names


def committed(solo: Solo, *transactions: bytes) -> None:
    """Bring a backup to COMMITTING in view 0."""
    solo.tick()
    block = solo.block(*transactions)
    solo.accept(block)
    solo.receive(solo.prepare("c", block))
    assert solo.engine.status().phase is Phase.COMMITTING


def test_r46_p12_each_statement_follows_its_record() -> None:
    solo = Solo()
    solo.tick()
    block = solo.block(b"t")
    assert order(solo.accept(block)) == ["ACCEPTED", "Prepare"]
    assert order(solo.receive(solo.prepare("c", block))) == ["PREPARED", "Commit"]
    solo.step(Work(waiting=True))
    assert order(solo.tick(1_100))[:2] == ["VIEW", "ViewChange"]


def test_r46_p12_a_primary_writes_its_proposal_first() -> None:
    solo = Solo("b")
    solo.tick()
    assert solo.step(Work(waiting=True)) == [Propose(1, 0, solo.head.hash)]
    assert order(solo.step(Proposed(1, 0, solo.block(b"t")))) == ["ACCEPTED", "PrePrepare"]


def test_r50_p12_a_new_view_is_durable_before_it_is_sent_and_entered() -> None:
    solo = Solo("c")
    solo.tick()
    for name in "bd":
        solo.receive(solo.view_change(name, 1))
    assert order(solo.effects) == ["VIEW", "ViewChange", "VIEW", "NewView"]
    other = Solo("a")
    other.tick()
    other.receive(other.new_view(1, [other.view_change(name, 1) for name in "bcd"]))
    assert order(other.effects) == ["VIEW"]
    assert other.restarted().engine.view == 1


def test_p12_the_prepared_body_is_kept_when_another_block_is_accepted() -> None:
    solo = Solo()
    committed(solo, b"1")
    first = solo.block(b"1")
    second = solo.block(b"2", proposer="c")
    solo.receive(solo.new_view(1, [solo.view_change(name, 1) for name in "bcd"]))
    assert order(solo.accept(second, 1)) == ["ACCEPTED", "PREPARED_BODY", "Prepare"]
    again = solo.restarted()
    again.tick()
    again.step(Validated(second.hash, True))
    again.step(Work(waiting=True))
    again.tick(60_000)
    claim = again.every(ViewChange)[0].vote.claim
    assert claim is not None
    assert (claim.view, claim.block_hash) == (0, first.hash)


def test_p13_a_backup_repeats_its_prepare_and_takes_no_other_block() -> None:
    solo = Solo()
    solo.tick()
    block, other = solo.block(b"1"), solo.block(b"2")
    solo.accept(block)
    prepare = solo.every(Prepare)[0]
    again = solo.restarted()
    again.tick()
    assert again.every(Validate) == [Validate(block, False)]
    again.receive(again.propose(other))
    assert len(again.every(Evidence)) == 1
    again.step(Validated(block.hash, True))
    assert again.every(Prepare) == [prepare]
    assert not again.every(Persist)


def test_p13_a_primary_repeats_its_proposal() -> None:
    solo = Solo("b")
    solo.tick()
    solo.step(Work(waiting=True))
    solo.step(Proposed(1, 0, solo.block(b"1")))
    proposal = solo.every(PrePrepare)[0]
    again = solo.restarted()
    again.step(Work(waiting=True))
    again.tick()
    assert not again.every(Propose)
    again.step(Validated(solo.block(b"1").hash, True))
    assert again.every(PrePrepare) == [proposal]


def test_p13_a_commit_is_repeated_and_decides() -> None:
    solo = Solo()
    committed(solo, b"1")
    block = solo.block(b"1")
    again = solo.restarted()
    again.tick()
    again.step(Validated(block.hash, True))
    assert again.every(Commit) == [solo.every(Commit)[0]]
    again.receive(again.commit("b", block))
    again.receive(again.commit("c", block))
    assert again.every(Decide)[0].block == block


def test_r27_p13_a_view_change_vote_is_repeated_and_lower_views_stay_closed() -> None:
    solo = Solo()
    committed(solo, b"1")
    solo.tick(1_100)
    vote = solo.every(ViewChange)[0]
    again = solo.restarted()
    again.tick()
    assert again.every(ViewChange) == [vote]
    assert again.engine.view == 1
    again.receive(again.propose(again.block(b"1")))
    assert not again.effects


def test_p13_a_primary_that_opened_a_view_opens_the_same_again() -> None:
    solo = Solo("c")
    solo.tick()
    for name in "bd":
        solo.receive(solo.view_change(name, 1))
    opened = solo.every(NewView)[0]
    again = solo.restarted()
    again.tick()
    assert again.every(NewView) == [opened]


def test_r59_p13_one_validator_opens_the_view_it_voted_for_before_the_crash() -> None:
    solo = Solo("a", 1)
    log = VoteLog(key_of("a").public.compressed)
    again = Solo("a", 1, records=dict([log.view(1, 1, solo.view_change("a", 1), None)]))
    again.tick()
    assert again.every(NewView)
    assert again.every(Propose) == [Propose(1, 1, again.head.hash)]


def test_p13_records_of_older_heights_are_void() -> None:
    solo = Solo()
    committed(solo, b"1")
    solo.advance(solo.block(b"1"))
    again = solo.restarted()
    assert again.engine.status().phase is Phase.OPEN
    assert (again.engine.height, again.engine.view) == (2, 0)


def test_p13_records_of_another_key_are_void() -> None:
    solo = Solo()
    committed(solo, b"1")
    new_key = key_of("a", 1)
    config = replace(default_config(solo.name), signer=KeySigner(new_key, CHAIN))
    members = [Validator(v.name, v.organisation, v.vote_key) for v in solo.validators.validators if v.name != "a"]
    admitted = ValidatorSet.of([*members, Validator("a", "org", new_key.public.compressed)])
    status = Engine.restore(config, replace(solo.head, validators=admitted), solo.records).status()
    assert (status.phase, status.is_validator) == (Phase.OPEN, True)


def test_r18_r49_a_key_that_the_membership_has_not_admitted_observes() -> None:
    solo = Solo("b")
    config = replace(default_config(solo.name), signer=KeySigner(key_of("b", 1), CHAIN))
    solo.engine = Engine.restore(config, solo.head, {})
    solo.tick()
    solo.step(Work(waiting=True))
    for _ in range(20):
        assert not solo.every(Propose)
        assert not solo.every(Persist)
        assert {type(effect.message) for effect in solo.every(Broadcast)} <= {Status}
        solo.tick(1_000)
    assert not solo.engine.status().is_validator


def test_p13_records_ahead_of_storage_stop_the_node() -> None:
    solo = Solo()
    genesis = solo.head
    solo.tick()
    solo.advance(solo.block(b"1"))
    solo.accept(solo.block(b"2", proposer="c"))
    with pytest.raises(StorageError) as caught:
        Solo(head=genesis, records=solo.records)
    assert caught.value.code == "vote_log_ahead"


def test_r51_r58_p13_damaged_or_misplaced_records_stop_the_node() -> None:
    solo = Solo()
    committed(solo, b"1")
    swapped = {key(RecordKind.ACCEPTED): solo.records[key(RecordKind.PREPARED)]}
    bodiless = {key(RecordKind.PREPARED): solo.records[key(RecordKind.PREPARED)]}
    unentered = {key(RecordKind.VIEW): VoteLog(key_of("a").public.compressed).view(1, 3, None, None)[1]}
    value = solo.records[key(RecordKind.PREPARED)]
    cut = [{**solo.records, key(RecordKind.PREPARED): value[:length]} for length in range(len(value))]
    for records in (swapped, bodiless, unentered, *cut):
        with pytest.raises(StorageError) as caught:
            Solo(records=records)
        assert caught.value.code == "vote_log_corrupt"


def test_r51_p13_a_record_that_landed_elsewhere_is_missed() -> None:
    """All that is there is whole, and the newest record knows of one that is not there."""
    solo = Solo()
    committed(solo, b"1")
    lost = {name: value for name, value in solo.records.items() if name != key(RecordKind.ACCEPTED)}
    with pytest.raises(StorageError, match="record 1 of ACCEPTED is missing, 0 is there"):
        Solo(records=lost)


class _Witness:
    """Sees everything that replicas say and finds contradictions, across crashes."""

    def __init__(self) -> None:
        self.said: dict[tuple[str, str, int, int], bytes] = {}
        self.left: dict[tuple[str, int], int] = {}

    def hear(self, name: str, message: Statement) -> None:
        match message:
            case PrePrepare():
                content = message.block.header.hash()
            case Prepare() | Commit():
                content = message.block_hash
                assert message.signer == name
            case ViewChange():
                self.left[name, message.height] = max(message.vote.view, self.left.get((name, message.height), 0))
                content = repr(message.vote.claim).encode()
            case NewView():
                return
        view = message.vote.view if isinstance(message, ViewChange) else message.view
        known = self.said.setdefault((name, type(message).__name__, message.height, view), content)
        assert known == content, f"{name} contradicts its {type(message).__name__} in {message.height}/{view}"


class _CrashingCluster(Cluster):
    """Crashes one replica when it is about to execute its k-th effect, and starts it again 300 ms later."""

    def __init__(self, count: int, victim: str, crash_at: int) -> None:
        super().__init__(count)
        self.victim = victim
        self.effects_left = crash_at
        self.crashed_ms = -1
        self.witness = _Witness()

    def run(self, duration_ms: int) -> None:
        super().run(duration_ms)
        if self.crashed_ms >= 0 and self.now_ms >= self.crashed_ms + 300:
            self.crashed_ms = -1
            self.restart(self.victim)

    def perform(self, replica: object, effect: Effect) -> None:
        node = self[getattr(replica, "name", "")]
        if node.name == self.victim:
            self.effects_left -= 1
            if self.effects_left == 0:
                node.alive = False
                self.crashed_ms = self.now_ms
                return
        if isinstance(effect, Send | Broadcast) and isinstance(effect.message, Statement):
            self.witness.hear(node.name, effect.message)
        super().perform(node, effect)


@pytest.mark.parametrize("victim", ["b", "c"])
@pytest.mark.parametrize("crash_at", range(1, 22))
def test_r46_r50_p12_p13_a_crash_at_any_effect_contradicts_nothing_and_commits_go_on(
    victim: str, crash_at: int
) -> None:
    cluster = _CrashingCluster(4, victim, crash_at)
    cluster.run(20)
    cluster.crash("d")
    cluster.submit(b"1")
    cluster.run_until_height(1, 10_000)
    cluster.submit(b"2")
    cluster.run_until_height(2, 10_000)
    for _ in range(30):
        cluster.run(20)
    assert cluster[victim].alive
    assert cluster[victim].height >= 2
    cluster.agree()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("phase", list(Phase))
def test_r34_r59_p13_everyone_restarting_in_each_phase_goes_on(count: int, phase: Phase) -> None:
    cluster = Cluster(count)
    cluster.run(20)
    allowed = {
        Phase.VIEW_CHANGE: (),
        Phase.OPEN: (),
        Phase.VALIDATING: (PrePrepare,),
        Phase.PREPARING: (PrePrepare, Prepare),
        Phase.COMMITTING: (PrePrepare, Prepare),
        Phase.DECIDED: (PrePrepare, Prepare, Commit),
    }[phase]
    cluster.drop = lambda sender, to, message: not isinstance(message, allowed)
    cluster.submit(b"1")
    cluster.run(1_500 if phase is Phase.VIEW_CHANGE else 40)
    cluster.crash(*cluster.names)
    cluster.queue.clear()
    cluster.drop = lambda sender, to, message: False
    cluster.restart(*cluster.names)
    cluster.run_until_height(1, 10_000)
    cluster.agree()


def test_the_first_tick_starts_the_clock() -> None:
    solo = Solo("a")
    solo.step(Work(waiting=True))
    solo.step(Tick(10_000_000))
    assert not solo.every(ViewChange)
    solo.step(Tick(10_001_000))
    assert len(solo.every(ViewChange)) == 1


def test_names_of_effects_stay_ordered_with_advanced() -> None:
    solo = Solo()
    solo.tick()
    block = solo.block(b"1")
    solo.advance(block)
    assert solo.step(Advanced(solo.head)) == []
    assert solo.engine.status().primary == NodeName("c")
