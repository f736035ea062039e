"""Leaving a view and opening the next (SPEC P14 to P16, P19 to P21)."""

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import Purpose
from consensus.pbft.certificates import check_new_view_untrusted, check_view_change_untrusted, highest_claim
from consensus.pbft.events import Broadcast, EvidenceKind, Persist, Phase, ViewEntered
from consensus.pbft.evidence import view_change_statement
from consensus.pbft.messages import (
    VIEW_MAX,
    Claim,
    NewView,
    ViewChange,
    ViewChangeVote,
    new_view_payload,
    view_change_payload,
)
from consensus.pbft.state import State


def start(state: State, view: int) -> None:
    """Vote for a higher view, whatever the reason; what follows from it happens at once."""
    _vote_for(state, view)
    react(state)


def on_view_change(state: State, sender: NodeName, message: ViewChange) -> None:
    """Take a vote; it may pull this replica up, give the time-out its quorum, or complete a new view."""
    if _ignore_view_change(state, message):
        return
    vote = message.vote
    try:
        check_view_change_untrusted(message, state.roster)
    except PeerError as error:
        state.penalise(sender, error.code)
        return
    first = state.progress.view_changes.get(NodeName(vote.signer))
    if first is not None and first.vote.view == vote.view:
        state.note_evidence(
            EvidenceKind.DOUBLE_VIEW_CHANGE,
            signer=vote.signer,
            view=vote.view,
            first=view_change_statement(first.vote),
            second=view_change_statement(vote),
        )
        return
    state.progress.view_changes[NodeName(vote.signer)] = message
    react(state)


def _ignore_view_change(state: State, message: ViewChange) -> bool:
    vote = message.vote
    if state.progress.phase is Phase.DECIDED or not state.is_validator:
        return True
    if vote.signer not in state.roster or vote.signer == state.name:
        return True
    if vote.view < state.view or (vote.view == state.view and state.progress.phase is not Phase.VIEW_CHANGE):
        return True
    first = state.progress.view_changes.get(NodeName(vote.signer))
    return first is not None and (first.vote.view > vote.view or first.vote == vote)


def on_new_view(state: State, sender: NodeName, message: NewView) -> None:
    """Enter the view that its primary opened, when its votes say that it may."""
    if _ignore_new_view(state, message):
        return
    try:
        check_new_view_untrusted(message, state.roster)
    except PeerError as error:
        state.penalise(sender, error.code)
        return
    _enter(state, message.view, message)


def _ignore_new_view(state: State, message: NewView) -> bool:
    progress = state.progress
    if progress.phase is Phase.DECIDED or not state.is_validator:
        return True
    if state.roster.primary(message.height, message.view) == state.name:
        return True
    return message.view < progress.view or (message.view == progress.view and progress.phase is not Phase.VIEW_CHANGE)


def react(state: State) -> None:
    """Do what the votes now call for: jump to the (f+1)-th highest view, start the clock, open the view."""
    votes = state.progress.view_changes
    others = sorted((message.vote.view for name, message in votes.items() if name != state.name), reverse=True)
    faulty_max = state.roster.faulty_max
    if len(others) > faulty_max and others[faulty_max] > state.view:
        _vote_for(state, others[faulty_max])
    progress = state.progress
    if progress.phase is not Phase.VIEW_CHANGE:
        return
    at_least = sum(message.vote.view >= progress.view for message in progress.view_changes.values())
    if progress.supported_ms is None and at_least >= state.roster.quorum:
        progress.supported_ms = state.now_ms
    exactly = [message for message in progress.view_changes.values() if message.vote.view == progress.view]
    if state.is_primary and len(exactly) >= state.roster.quorum:
        _open(state, exactly)


def check_deadline(state: State) -> None:
    """Leave the view when its time is up (P19)."""
    deadline_ms = state.deadline_ms()
    if deadline_ms is not None and state.now_ms >= deadline_ms:
        start(state, state.view + 1)


def check_overdue(state: State) -> None:
    """Leave view 0 when a transaction was passed by too often, once in n heights (P21)."""
    if not state.overdue or not state.started or state.is_primary or not state.is_validator:
        return
    if state.view == 0 and state.progress.phase is Phase.OPEN and state.height >= state.overdue_height_min:
        state.overdue_height_min = state.height + state.roster.size
        start(state, 1)


def _vote_for(state: State, view: int) -> None:
    if view <= state.view or view > VIEW_MAX or not state.is_validator:
        return
    progress = state.progress
    claim = certificate = None
    if progress.prepared is not None:
        certificate = progress.prepared.certificate
        claim = Claim(certificate.view, certificate.block_hash)
    payload = view_change_payload(state.height, view, claim)
    signature = state.config.signer.sign(Purpose.VIEW_CHANGE, payload)
    message = ViewChange(ViewChangeVote(state.height, view, claim, state.name, signature), certificate)
    progress.view_changes[state.name] = message
    _enter(state, view, message)


def _open(state: State, messages: list[ViewChange]) -> None:
    """Open the view as its primary, with every vote for it that is here."""
    messages = sorted(messages, key=lambda message: message.vote.signer)
    votes = [message.vote for message in messages]
    claim = highest_claim(votes)
    certificate = next((message.certificate for message in messages if message.vote.claim == claim), None)
    payload = new_view_payload(state.height, state.view, votes, certificate)
    signature = state.config.signer.sign(Purpose.NEW_VIEW, payload)
    _enter(state, state.view, NewView(state.height, state.view, votes, certificate, signature))


def _enter(state: State, view: int, reason: ViewChange | NewView) -> None:
    """Enter a view: the one transition, whoever caused it (R21).

    Durable before anything is said or accepted in it (P12, R50).
    """
    progress = state.progress
    if view > progress.view and state.primary != state.name:
        state.pace.failed(state.primary, now_ms=state.now_ms)
    progress.view = view
    progress.entered_ms = progress.moved_ms = state.now_ms
    progress.proposal = None
    progress.asked_to_propose = False
    progress.fetched_ms = None
    progress.supported_ms = None
    kept = [voted.block.hash for voted in (progress.accepted, progress.prepared) if voted is not None]
    progress.valid = {block_hash: block for block_hash, block in progress.valid.items() if block_hash in kept}
    opened = isinstance(reason, NewView)
    progress.new_view = reason if isinstance(reason, NewView) else None
    progress.view_change = reason if isinstance(reason, ViewChange) else None
    progress.phase = Phase.OPEN if opened else Phase.VIEW_CHANGE
    state.emit(Persist((state.log.view(state.height, view, progress.view_change, progress.new_view),)))
    if not opened or state.is_primary:
        state.emit(Broadcast(reason))
    state.emit(ViewEntered(state.height, view, state.primary, opened))
