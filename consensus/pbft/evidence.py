"""Proof that a validator broke the rules, made of its own signatures, and its check by anyone."""

from typing import Annotated

import msgspec

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.errors import PeerError
from consensus.ledger.keys import Purpose
from consensus.ledger.merkle import HashBytes
from consensus.ledger.validators import NodeNameText, vote_payload
from consensus.pbft.events import Evidence, EvidenceKind
from consensus.pbft.messages import (
    Claim,
    Commit,
    Height,
    Prepare,
    SignatureBytes,
    View,
    ViewChangeVote,
    view_change_payload,
)
from consensus.pbft.roster import Roster

EVIDENCE_PER_HEIGHT_MAX = 16
"""Pieces of evidence an engine emits at one height; each pair of kind and signer counts once."""

_PURPOSES = {
    EvidenceKind.DOUBLE_PROPOSAL: Purpose.PROPOSAL,
    EvidenceKind.DOUBLE_PREPARE: Purpose.PREPARE,
    EvidenceKind.DOUBLE_COMMIT: Purpose.COMMIT,
    EvidenceKind.DOUBLE_VIEW_CHANGE: Purpose.VIEW_CHANGE,
    EvidenceKind.INVALID_PROPOSAL: Purpose.PROPOSAL,
}


class Statement(Record, frozen=True):
    """Something signed: a vote for ``block_hash``, or a view change with ``claim``."""

    purpose: Annotated[str, msgspec.Meta(max_length=16)]
    height: Height
    view: View
    block_hash: HashBytes | None
    claim: Claim | None
    signer: NodeNameText
    signature: SignatureBytes


statement_codec: RecordCodec[Statement] = RecordCodec(Statement, bytes_max=512)


def proposal_statement(height: int, view: int, block_hash: bytes, signer: str, signature: bytes) -> bytes:
    """Return the bytes of a primary's signed proposal without the block's body."""
    return statement_codec.encode(Statement(Purpose.PROPOSAL.value, height, view, block_hash, None, signer, signature))


def vote_statement(vote: Prepare | Commit) -> bytes:
    """Return the bytes of a signed prepare or commit."""
    purpose = Purpose.PREPARE if isinstance(vote, Prepare) else Purpose.COMMIT
    return statement_codec.encode(
        Statement(purpose.value, vote.height, vote.view, vote.block_hash, None, vote.signer, vote.signature)
    )


def view_change_statement(vote: ViewChangeVote) -> bytes:
    """Return the bytes of a signed view-change vote."""
    return statement_codec.encode(
        Statement(Purpose.VIEW_CHANGE.value, vote.height, vote.view, None, vote.claim, vote.signer, vote.signature)
    )


def check_evidence_untrusted(evidence: Evidence, roster: Roster) -> None:
    """Check that the signer really made both statements and that they contradict each other.

    For ``INVALID_PROPOSAL`` only the signature is checked: that the block is invalid needs its execution.

    Raises:
        PeerError: ``bad_evidence``, ``malformed`` or ``too_large``.
    """
    first = _check_statement(evidence, evidence.first, roster)
    if evidence.kind is EvidenceKind.INVALID_PROPOSAL:
        return
    second = _check_statement(evidence, evidence.second, roster)
    if (first.block_hash, first.claim) == (second.block_hash, second.claim):
        raise PeerError("bad_evidence", "the statements agree")


def _check_statement(evidence: Evidence, data: bytes, roster: Roster) -> Statement:
    statement = statement_codec.decode_untrusted(data)
    purpose = _PURPOSES[evidence.kind]
    said = (statement.purpose, statement.height, statement.view, statement.signer)
    if said != (purpose.value, evidence.height, evidence.view, evidence.signer):
        raise PeerError("bad_evidence", "the statement is about something else")
    if purpose is Purpose.VIEW_CHANGE:
        payload = view_change_payload(statement.height, statement.view, statement.claim)
    elif statement.block_hash is None:
        raise PeerError("bad_evidence", "a vote names a block")
    else:
        payload = vote_payload(statement.height, statement.view, statement.block_hash)
    if not roster.verifies(statement.signer, purpose, payload, statement.signature):
        raise PeerError("bad_evidence", f"{statement.signer} did not sign this")
    return statement


class EvidenceBook:
    """What was found at the height in progress, and the newest piece of all."""

    def __init__(self) -> None:
        self.last: Evidence | None = None
        self._found: set[tuple[EvidenceKind, str]] = set()

    def begin_height(self) -> None:
        """Forget what was found at the last height."""
        self._found.clear()

    def is_new(self, evidence: Evidence) -> bool:
        """Note a piece of evidence; false when one like it was found at this height, or too many were."""
        entry = (evidence.kind, evidence.signer)
        if entry in self._found or len(self._found) >= EVIDENCE_PER_HEIGHT_MAX:
            return False
        self._found.add(entry)
        self.last = evidence
        return True
