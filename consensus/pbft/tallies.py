"""Votes of one kind at one height: one slot a signer, verified only when they would decide something.

A vote that its signer handed over itself waits unverified: a bad one only wastes the signer's own slot.
A relayed vote is verified at once, so that nobody can fill another's slot (R03). A slot holds the vote
of the highest view; within a view the first stays (R11). Memory is O(n) whatever is sent (R16).
"""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import Purpose
from consensus.ledger.validators import Signature, vote_payload
from consensus.pbft.messages import Commit, Prepare
from consensus.pbft.roster import Roster

Vote: TypeAlias = Prepare | Commit


@dataclass(frozen=True, slots=True)
class _Slot:
    vote: Vote
    verified: bool


class Tally:
    """The prepares, or the commits, of one height."""

    def __init__(self, purpose: Literal[Purpose.PREPARE, Purpose.COMMIT], roster: Roster) -> None:
        self._purpose = purpose
        self._roster = roster
        self._slots: dict[str, _Slot] = {}

    def add_own(self, vote: Vote) -> None:
        """Count this node's own vote."""
        self._slots[vote.signer] = _Slot(vote, verified=True)

    def add_untrusted(self, vote: Vote, *, relayed: bool) -> Vote | None:
        """Take a member's vote; return the first vote when this one contradicts it, both being valid.

        Raises:
            PeerError: ``bad_signature`` when that had to be checked.
        """
        slot = self._slots.get(vote.signer)
        if slot is not None:
            if slot.vote.view > vote.view or (slot.vote.view, slot.vote.block_hash) == (vote.view, vote.block_hash):
                return None
            if slot.vote.view == vote.view:
                self._check(vote)
                if self._verified(slot):
                    return slot.vote
                self._slots[vote.signer] = _Slot(vote, verified=True)
                return None
        if relayed:
            self._check(vote)
        self._slots[vote.signer] = _Slot(vote, verified=relayed)
        return None

    def signatures(self, view: int, block_hash: bytes, count: int) -> tuple[list[Signature] | None, list[NodeName]]:
        """Return ``count`` verified signatures for a block in a view, ascending by signer, or None.

        No more are verified than needed. The second part names the forgers among them; their slots are freed.
        """
        matching = [
            slot for slot in self._slots.values() if slot.vote.view == view and slot.vote.block_hash == block_hash
        ]
        forgers: list[NodeName] = []
        if len(matching) < count:
            return None, forgers
        good: list[Vote] = []
        for slot in sorted(matching, key=lambda slot: (not slot.verified, slot.vote.signer)):
            if len(good) == count:
                break
            if self._verified(slot):
                good.append(slot.vote)
                self._slots[slot.vote.signer] = replace(slot, verified=True)
            else:
                forgers.append(NodeName(slot.vote.signer))
                del self._slots[slot.vote.signer]
        if len(good) < count:
            return None, forgers
        good.sort(key=lambda vote: vote.signer)
        return [Signature(vote.signer, vote.signature) for vote in good], forgers

    def own(self, name: NodeName) -> Vote | None:
        """Return the vote this node itself cast last."""
        slot = self._slots.get(name)
        return slot.vote if slot is not None else None

    def voters(self, view: int) -> tuple[NodeName, ...]:
        """Return who voted in this view, verified or not, for people to see."""
        return tuple(sorted(NodeName(name) for name, slot in self._slots.items() if slot.vote.view == view))

    def _verified(self, slot: _Slot) -> bool:
        return slot.verified or self._holds(slot.vote)

    def _check(self, vote: Vote) -> None:
        if not self._holds(vote):
            raise PeerError("bad_signature", f"this is no vote of {vote.signer}")

    def _holds(self, vote: Vote) -> bool:
        payload = vote_payload(vote.height, vote.view, vote.block_hash)
        return self._roster.verifies(vote.signer, self._purpose, payload, vote.signature)
