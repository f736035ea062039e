"""Rules that only a hostile validator tests: bounds of memory, and proposals that fit but for their view."""

import pytest

from consensus.ledger.ids import Hash, NodeName
from consensus.ledger.keys import Purpose
from consensus.ledger.validators import vote_payload
from consensus.pbft.events import Received, Validate, Work
from consensus.pbft.messages import Commit, Message, NewView, Prepare, Status, ViewChange
from consensus.pbft.signing import KeyVerifier
from consensus.pbft.state import ANSWERED_MAX
from tests.pbft.cluster import CHAIN, key_of
from tests.pbft.solo import Solo, sign


@pytest.mark.parametrize("view", [1, 3, 4, 8])
def test_r22_p10_a_proposal_for_another_view_than_ours_is_ignored_even_from_our_primary(view: int) -> None:
    """b is the primary of views 0, 4, 8 … of height 1; what it signs for one of them is no proposal for another."""
    solo = Solo("a", 4)
    solo.tick()
    block = solo.block()
    solo.receive(solo.propose(block, view, by="b"), "b")
    assert solo.every(Validate) == []
    solo.receive(solo.propose(block), "b")
    assert [effect.block for effect in solo.every(Validate)] == [block]


def test_r10_half_of_a_verified_signature_is_not_enough() -> None:
    verifier, payload = KeyVerifier(CHAIN), vote_payload(1, 0, bytes(32))
    key, signature = key_of("b").public.compressed, sign("b", Purpose.COMMIT, payload)
    assert verifier.verifies(key, Purpose.COMMIT, payload, signature)
    for place in (0, 31, 32, 63):
        changed = bytearray(signature)
        changed[place] ^= 1
        assert not verifier.verifies(key, Purpose.COMMIT, payload, bytes(changed))
    assert verifier.verifies(key, Purpose.COMMIT, payload, signature)


def test_r16_p17_who_asked_is_forgotten_when_too_many_ask() -> None:
    solo = Solo("a", 4)
    solo.tick()
    for number in range(2 * ANSWERED_MAX):
        solo.step(Received(NodeName(f"stranger-{number}"), Status(1, 0, False)))
    assert len(solo.engine._state.answered_ms) <= ANSWERED_MAX


def test_r16_p17_early_votes_take_one_slot_a_signer_and_kind() -> None:
    solo = Solo("a", 4)
    solo.tick()

    def votes(number: int) -> list[Message]:
        block_hash = Hash(number.to_bytes(32, "big"))
        return [
            Prepare(2, 0, block_hash, "c", sign("c", Purpose.PREPARE, vote_payload(2, 0, block_hash))),
            Commit(2, number, block_hash, "c", sign("c", Purpose.COMMIT, vote_payload(2, number, block_hash))),
        ]

    for number in range(50):
        for vote in votes(number):
            solo.step(Received(NodeName("c"), vote))
            solo.step(Received(NodeName("d"), vote))  # a relay's slot is not for it
    stash = solo.engine._state.stash
    assert set(stash) == {(NodeName("c"), "Prepare"), (NodeName("c"), "Commit")}


def test_r06_r16_p4_strangers_get_no_slot_however_many_they_are() -> None:
    solo = Solo("a", 4)
    solo.tick()
    block = solo.block()
    solo.accept(block)
    for number in range(100):
        name = f"stranger-{number}"
        for sender in (name, "c"):
            solo.receive(solo.commit(name, block), sender)
            solo.receive(solo.prepare(name, block), sender)
            assert solo.effects == []
    progress = solo.engine._state.progress
    assert (progress.commits.voters(0), progress.prepares.voters(0)) == ((), ("a",))


def test_p15_a_primary_with_its_own_vote_and_one_less_than_it_needs_opens_nothing() -> None:
    solo = Solo("c", 4)
    solo.tick()
    solo.step(Work(waiting=True))
    solo.tick(2_000)
    assert [message.vote.view for message in solo.every(ViewChange)] == [1]
    solo.receive(solo.view_change("b", 1))
    assert solo.every(NewView) == []
    solo.receive(solo.view_change("d", 1))
    assert [len(message.votes) for message in solo.every(NewView)] == [3]
