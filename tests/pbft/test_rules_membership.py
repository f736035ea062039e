"""P24: the validator set changes from one height to the next, while everyone runs on."""

from dataclasses import replace
from random import Random

import pytest

from consensus.ledger.block import Block
from consensus.ledger.ids import NodeName
from consensus.ledger.validators import Certificate, Signature, Validator, ValidatorSet
from consensus.pbft.engine import Engine
from consensus.pbft.events import (
    Advanced,
    Broadcast,
    CatchUp,
    Decide,
    Head,
    Penalise,
    Propose,
    Proposed,
    ViewEntered,
    Work,
)
from consensus.pbft.healing import LOOK_AGAIN_MS
from consensus.pbft.messages import Commit, Decided, Prepare, PrePrepare, Status, ViewChange
from consensus.pbft.signing import KeySigner
from tests.pbft.cluster import (
    CHAIN,
    Cluster,
    Replica,
    default_config,
    genesis_head,
    key_of,
    make_block,
    node_names,
    validator_set,
)
from tests.pbft.solo import Solo

Vote = PrePrepare | Prepare | Commit | ViewChange


def set_of(names: str, **generations: int) -> ValidatorSet:
    """The nodes a, b, c … of ``names``; a key of a later generation where one is named."""
    return ValidatorSet.of(
        [Validator(name, "org", key_of(name, generations.get(name, 0)).public.compressed) for name in names]
    )


class Changing(Cluster):
    """A cluster of ``count`` engines; ``sets`` says from which height on who votes."""

    def __init__(self, count: int, sets: dict[int, ValidatorSet], **config: int) -> None:
        super().__init__(count, **config)
        self.sets = sets
        head = genesis_head(sets[1])
        genesis = Block.of(head.header, [])
        for name in self.names:
            engine = Engine.restore(default_config(name, **config), head, {})
            self.replicas[name] = Replica(name, engine, {}, [(genesis, None, head)])

    def set_at(self, height: int) -> ValidatorSet:
        return self.sets[max(first for first in self.sets if first <= height)]

    def perform(self, replica: Replica, effect: object) -> None:
        if isinstance(effect, Propose):
            following = self.set_at(replica.height + 2).hash()
            block = make_block(replica.head, replica.name, self.waiting(replica), next_validators_hash=following)
            self.feed(replica.name, Proposed(effect.height, effect.view, block))
        else:
            super().perform(replica, effect)  # type: ignore[arg-type]

    def commit(self, replica: Replica, block: Block, certificate: Certificate) -> None:
        self.validators = self.set_at(block.height + 1)  # the head's, which the smallest driver takes from here
        super().commit(replica, block, certificate)

    def votes(self, name: str) -> list[Vote]:
        return [
            effect.message
            for sender, effect in self.trace
            if sender == name and isinstance(effect, Broadcast) and isinstance(effect.message, Vote)
        ]

    def signers(self, height: int) -> set[str]:
        _, certificate, _ = self.alive[0].chain[height]
        assert certificate is not None
        return {vote.signer for vote in certificate.signatures}

    def grow(self, height: int, limit_ms: int = 20_000) -> None:
        """Reach a height, a transaction a block."""
        while min(replica.height for replica in self.alive) < height:
            before = min(replica.height for replica in self.alive)
            self.submit(b"t%d" % len(self.pool))
            self.run_until_height(before + 1, limit_ms)
        self.agree()


def test_p24_a_seated_node_votes_at_the_next_height_without_a_restart() -> None:
    cluster = Changing(5, {1: set_of("abcd"), 4: set_of("abcde")})
    cluster.grow(3)
    assert cluster.votes("e") == []
    cluster.crash("a")
    cluster.grow(10)  # of five, four are needed: without the newcomer's vote nothing is decided
    assert {vote.height for vote in cluster.votes("e")} >= {4, 5, 6}
    assert all("e" in cluster.signers(height) for height in range(4, 11))
    assert any(block.header.proposer == "e" for block, _, _ in cluster["e"].chain)


def test_p24_a_removed_node_follows_and_says_nothing() -> None:
    cluster = Changing(5, {1: set_of("abcde"), 4: set_of("abcd")})
    cluster.grow(3)
    said = len(cluster.votes("e"))
    cluster.grow(10)
    assert cluster["e"].height == 10
    assert len(cluster.votes("e")) == said
    assert max(vote.height for vote in cluster.votes("e")) == 3
    assert all("e" not in cluster.signers(height) for height in range(4, 11))
    status = cluster["e"].engine.status()
    assert not status.is_validator
    assert status.deadline_in_ms is None


def test_p24_after_a_key_change_the_old_process_is_silent_and_the_new_key_votes() -> None:
    sets = {1: set_of("abcd"), 4: set_of("abcd", d=1)}
    cluster = Changing(4, sets)
    cluster.grow(6)
    assert max(vote.height for vote in cluster.votes("d")) == 3
    assert all("d" not in cluster.signers(height) for height in range(4, 7))
    cluster.crash("d", "a")
    renewed = cluster["d"]
    config = replace(default_config(NodeName("d")), signer=KeySigner(key_of("d", 1), CHAIN))
    renewed.engine = Engine.restore(config, renewed.head, dict(renewed.records))
    renewed.alive = True
    cluster.grow(9)
    assert all("d" in cluster.signers(height) for height in range(7, 10))


def test_p24_a_set_that_shrinks_below_the_view_begins_in_view_0_with_its_own_turns() -> None:
    cluster = Changing(7, {1: set_of("abcdefg"), 2: set_of("efg")})
    silent = {"b", "c", "d"}  # the primaries of views 0, 1 and 2 at height 1
    cluster.drop = lambda sender, to, message: sender in silent and isinstance(message, PrePrepare)
    cluster.submit(b"t0")
    cluster.run_until_height(1, 20_000)
    assert max(entered.view for entered in cluster["a"].views if entered.height == 1) == 3
    cluster.grow(8)
    turns = {(entered.height, entered.view): entered.primary for entered in cluster["g"].views}
    assert all(turns[height, 0] == "efg"[height % 3] for height in range(2, 9))
    assert {block.header.proposer for block, _, _ in cluster["a"].chain[2:]} == set("efg")


def test_r02_p24_from_one_to_four_and_back_while_views_change() -> None:
    sets = {1: set_of("a"), 3: set_of("ab"), 5: set_of("abc"), 8: set_of("abcd"), 14: set_of("ab"), 16: set_of("b")}
    cluster = Changing(4, sets)
    turn = 0

    def lost(sender: str, to: str, message: object) -> bool:
        nonlocal turn
        turn += isinstance(message, PrePrepare) and message.view == 0
        return isinstance(message, PrePrepare) and message.view == 0 and turn % 2 == 0

    cluster.drop = lost
    cluster.grow(20, 60_000)
    assert cluster.signers(20) == {"b"}
    assert all(replica.evidence == [] for replica in cluster.replicas.values())


@pytest.mark.parametrize("seed", range(8))
def test_p24_random_changes_with_crashes_keep_one_history(seed: int) -> None:
    random = Random(seed)
    sets = {1: set_of("abcd")}
    for height in range(2, 30, 2):
        sets[height] = set_of("".join(sorted(random.sample("abcdefgh", random.randint(4, 8)))))
    cluster = Changing(8, sets)
    while min(replica.height for replica in cluster.alive) < 30:
        up = set(cluster.names) - {replica.name for replica in cluster.alive}
        cluster.restart(*sorted(up))
        cluster.grow(max(replica.height for replica in cluster.replicas.values()) + 1, 60_000)
        cluster.crash(random.choice(cluster.names))  # every set bears one
        cluster.submit(b"c%d" % len(cluster.pool))
        cluster.run(random.randrange(20, 800, 20))
    for replica in cluster.replicas.values():
        assert replica.evidence == []
    for height, (_, certificate, _) in enumerate(cluster.alive[0].chain):
        assert certificate is None or {vote.signer for vote in certificate.signatures} <= set(
            cluster.set_at(height).names
        )


# One engine among validators that the test plays: a votes, the set of height 2 is another one.


def advanced(names: str, **generations: int) -> Solo:
    """Replica a at height 2, whose set is this one."""
    solo = Solo()
    solo.tick()
    following = set_of(names, **generations)
    block = solo.block(b"t", next_validators_hash=following.hash())
    head = Head(block.header, block.hash, solo.certificate(block), following, quiet=False)
    solo.head, solo.validators, solo.names = head, following, list(following.names)
    solo.step(Advanced(head))
    solo.tick(10)
    return solo


def next_block(solo: Solo, *transactions: bytes) -> Block:
    return make_block(solo.head, solo.validators.primary(2, 0), list(transactions))


def test_p24_votes_of_who_left_do_not_count_at_the_next_height() -> None:
    solo = advanced("abce")  # d has left; the primary of height 2 is c
    block = next_block(solo, b"u")
    solo.accept(block)
    solo.receive(solo.prepare("d", block))
    solo.receive(solo.prepare("b", block))
    assert solo.every(Commit)  # a, b and the primary
    solo.receive(solo.commit("d", block))
    solo.receive(solo.commit("b", block))
    assert not solo.every(Decide)
    solo.receive(solo.commit("e", block))
    assert solo.every(Decide)


@pytest.mark.parametrize("signers", ["bcd", "abd", "bcdx"])
def test_p24_a_certificate_needs_the_quorum_of_its_own_heights_set(signers: str) -> None:
    """A quorum of height 1 decides nothing at height 2, where five vote and four are needed."""
    solo = advanced("abcef")
    block = next_block(solo, b"u")
    votes = [Signature(name, solo.commit(name, block).signature) for name in signers]
    solo.receive(Decided(Certificate(2, 0, block.hash, votes)), sender="b")
    assert solo.effects == [Penalise(NodeName("b"), "bad_certificate")]


def test_p24_a_vote_under_the_old_key_does_not_count_and_costs_its_sender() -> None:
    solo = advanced("abcd", d=1)
    block = next_block(solo, b"u")
    solo.accept(block)
    solo.receive(solo.prepare("d", block))  # the tests' votes are made with the first keys
    solo.receive(solo.prepare("b", block))
    solo.receive(solo.commit("d", block))
    solo.receive(solo.commit("b", block))
    assert solo.effects == [Penalise(NodeName("d"), "bad_signature")]
    solo.receive(solo.commit("c", block))
    assert [vote.signer for decided in solo.every(Decide) for vote in decided.certificate.signatures] == ["a", "b", "c"]


def test_p24_what_the_old_set_does_not_expect_is_dropped_and_asked_for() -> None:
    """A newcomer's proposal for the next height comes before the block that seats it: the question brings it back."""
    solo = Solo()
    solo.tick()
    following = set_of("adefg")
    block = solo.block(b"t", next_validators_hash=following.hash())
    head = Head(block.header, block.hash, solo.certificate(block), following, quiet=False)
    proposer = following.primary(2, 0)
    assert proposer == "e"
    early = make_block(head, proposer, [b"u"])
    solo.validators = following
    proposal = solo.propose(early)
    solo.receive(proposal, sender=proposer)
    assert solo.effects == []
    solo.head = head
    solo.step(Advanced(head))
    solo.step(Work(waiting=True))
    solo.tick(10)
    solo.tick(solo.engine._state.config.resend_ms)
    assert solo.every(Status) == [Status(2, 0, False)]
    solo.receive(proposal, sender=proposer)
    assert solo.engine.status().block_hash == early.hash


def test_p24_turns_and_suspicions_follow_the_set() -> None:
    solo = Solo("a", 4)
    solo.tick()
    solo.step(Work(waiting=True))
    solo.tick(1_000)  # b, the primary, is silent
    solo.receive(solo.view_change("c", 1))
    solo.receive(solo.view_change("d", 1))
    assert solo.engine.status().suspected == ("b",)
    block = solo.block(b"t", proposer="c")
    head = Head(block.header, block.hash, solo.certificate(block, view=1), set_of("acd"), quiet=False)
    solo.step(Advanced(head))
    assert solo.engine.status().suspected == ()
    assert solo.every(ViewEntered)[0].primary == "d"


# Far behind: nobody known is left


def stranger_certificate(height: int) -> Certificate:
    block = make_block(genesis_head(validator_set(node_names(4))), "w", [b"t"], height=height)
    return Certificate(height, 0, block.hash, [Signature(name, b"\1" * 64) for name in "wxyz"])


def test_p24_an_observer_follows_a_certificate_of_nobody_it_knows() -> None:
    solo = Solo("observer")
    solo.tick()
    solo.receive(Decided(stranger_certificate(50)), sender="w")
    assert [(effect.certificate.height, effect.source) for effect in solo.every(CatchUp)] == [(50, "w")]
    solo.receive(Decided(stranger_certificate(50)), sender="x")
    assert not solo.effects


def test_p24_a_validator_follows_one_only_after_long_silence_and_seldom() -> None:
    solo = Solo("a", heartbeat_ms=3_600_000)
    solo.tick()
    solo.tick(7_999)
    solo.receive(Decided(stranger_certificate(50)), sender="w")
    assert not solo.effects
    solo.tick(1)
    solo.receive(Decided(stranger_certificate(50)), sender="w")
    assert solo.every(CatchUp)
    solo.tick(LOOK_AGAIN_MS - 1)
    solo.receive(Decided(stranger_certificate(90)), sender="w")
    assert not solo.effects
    solo.tick(1)
    solo.receive(Decided(stranger_certificate(90)), sender="w")
    assert solo.every(CatchUp)
