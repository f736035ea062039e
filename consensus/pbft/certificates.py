"""What proves something to a replica that was not there: prepared and commit certificates, view changes, new views.

Pure checks. Signers ascend strictly in every list, so nobody is counted twice (R07) and every
certificate has one spelling; every signature must hold.
"""

from collections.abc import Sequence

from consensus.ledger.errors import PeerError
from consensus.ledger.keys import Purpose
from consensus.ledger.validators import Certificate, Signature, vote_payload
from consensus.pbft.messages import (
    Claim,
    NewView,
    PreparedCertificate,
    ViewChange,
    ViewChangeVote,
    new_view_payload,
    view_change_payload,
)
from consensus.pbft.roster import Roster


def check_commit_certificate_untrusted(certificate: Certificate, roster: Roster) -> None:
    """Check a decision: q commits of distinct members, all of one view (P8).

    Raises:
        PeerError: ``bad_certificate``.
    """
    _check_signers([vote.signer for vote in certificate.signatures], roster.quorum, "bad_certificate")
    payload = vote_payload(certificate.height, certificate.view, certificate.block_hash)
    _check_signatures(certificate.signatures, Purpose.COMMIT, payload, roster, "bad_certificate")


def known_by_honest(certificate: Certificate, roster: Roster) -> bool:
    """Tell whether f+1 members of the roster signed it, so that an honest one did (P18).

    That is enough to go and look, for a height whose validators we cannot know yet; never to commit.
    """
    payload = vote_payload(certificate.height, certificate.view, certificate.block_hash)
    valid: set[str] = set()
    for vote in certificate.signatures:
        if vote.signer not in valid and roster.verifies(vote.signer, Purpose.COMMIT, payload, vote.signature):
            valid.add(vote.signer)
            if len(valid) > roster.faulty_max:
                return True
    return False


def check_prepared_untrusted(certificate: PreparedCertificate, roster: Roster) -> None:
    """Check that q distinct members stand behind a proposal: its primary and q−1 backups (P3).

    Raises:
        PeerError: ``bad_certificate``.
    """
    primary = roster.primary(certificate.height, certificate.view)
    signers = [vote.signer for vote in certificate.prepares]
    _check_signers(signers, roster.quorum - 1, "bad_certificate")
    if primary in signers:
        raise PeerError("bad_certificate", "the primary's prepare does not count")
    payload = vote_payload(certificate.height, certificate.view, certificate.block_hash)
    if not roster.verifies(primary, Purpose.PROPOSAL, payload, certificate.proposal_signature):
        raise PeerError("bad_certificate", f"{primary} did not sign this proposal")
    _check_signatures(certificate.prepares, Purpose.PREPARE, payload, roster, "bad_certificate")


def check_view_change_untrusted(message: ViewChange, roster: Roster) -> None:
    """Check a view-change vote and that its claim is proven (P14).

    Raises:
        PeerError: ``bad_view_change`` or ``bad_certificate``.
    """
    vote, certificate = message.vote, message.certificate
    _check_vote(vote, roster)
    if (vote.claim is None) != (certificate is None):
        raise PeerError("bad_view_change", "a claim needs its certificate, and the other way round")
    if vote.claim is not None and certificate is not None:
        _check_proof(vote.claim, certificate, vote.height, roster)


def check_new_view_untrusted(message: NewView, roster: Roster) -> None:
    """Check that q members left for this view and that what it re-proposes follows from their claims (P15).

    Raises:
        PeerError: ``bad_new_view``, ``bad_view_change`` or ``bad_certificate``.
    """
    _check_signers([vote.signer for vote in message.votes], roster.quorum, "bad_new_view")
    payload = new_view_payload(message.height, message.view, message.votes, message.certificate)
    primary = roster.primary(message.height, message.view)
    if message.view == 0 or not roster.verifies(primary, Purpose.NEW_VIEW, payload, message.signature):
        raise PeerError("bad_new_view", f"{primary} did not sign this new view")
    claim = highest_claim(message.votes)
    if (claim is None) != (message.certificate is None):
        raise PeerError("bad_new_view", "the highest claim needs its certificate, and the other way round")
    for vote in message.votes:
        if vote.height != message.height or vote.view != message.view:
            raise PeerError("bad_new_view", f"the vote of {vote.signer} is for another view")
        if claim is not None and vote.claim is not None and vote.claim.view == claim.view and vote.claim != claim:
            raise PeerError("bad_new_view", "two blocks are claimed for one view")
        _check_vote(vote, roster)
    if claim is not None and message.certificate is not None:
        _check_proof(claim, message.certificate, message.height, roster)


def highest_claim(votes: Sequence[ViewChangeVote]) -> Claim | None:
    """Return the claim of the highest view, which a new view must re-propose; None leaves the primary free."""
    claims = [vote.claim for vote in votes if vote.claim is not None]
    return max(claims, key=lambda claim: claim.view, default=None)


def _check_vote(vote: ViewChangeVote, roster: Roster) -> None:
    if vote.view == 0 or (vote.claim is not None and vote.claim.view >= vote.view):
        raise PeerError("bad_view_change", "a claim must be older than the view voted for")
    payload = view_change_payload(vote.height, vote.view, vote.claim)
    if not roster.verifies(vote.signer, Purpose.VIEW_CHANGE, payload, vote.signature):
        raise PeerError("bad_view_change", f"the vote of {vote.signer} is not valid")


def _check_proof(claim: Claim, certificate: PreparedCertificate, height: int, roster: Roster) -> None:
    proven = (certificate.height, certificate.view, certificate.block_hash)
    if proven != (height, claim.view, claim.block_hash):
        raise PeerError("bad_view_change", "the certificate proves another claim")
    check_prepared_untrusted(certificate, roster)


def _check_signers(signers: list[str], least: int, code: str) -> None:
    if signers != sorted(set(signers)):
        raise PeerError(code, "signers must ascend and none may stand twice")
    if len(signers) < least:
        raise PeerError(code, f"{len(signers)} votes, {least} are needed")


def _check_signatures(votes: list[Signature], purpose: Purpose, payload: bytes, roster: Roster, code: str) -> None:
    for vote in votes:
        if not roster.verifies(vote.signer, purpose, payload, vote.signature):
            raise PeerError(code, f"the signature of {vote.signer} is not valid")
