"""The normal case: propose, prepare, commit, decide (SPEC P3 to P11)."""

from consensus.ledger.block import Block, check_successor_untrusted
from consensus.ledger.errors import InvariantError, PeerError
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import Purpose
from consensus.ledger.validators import Certificate, vote_payload
from consensus.pbft import view_change
from consensus.pbft.events import (
    CLOCK_CODE,
    Broadcast,
    Decide,
    EvidenceKind,
    Persist,
    Phase,
    Propose,
    Proposed,
    Validated,
)
from consensus.pbft.evidence import proposal_statement, vote_statement
from consensus.pbft.messages import Commit, Prepare, PreparedCertificate, PrePrepare
from consensus.pbft.state import Prepared, Proposal, State


def propose_if_due(state: State) -> None:
    """As primary of an open view without a proposal: re-propose what is required, or ask for a block."""
    progress = state.progress
    if progress.phase is not Phase.OPEN or not state.is_primary or not state.started:
        return
    if progress.required is not None:
        block_hash = progress.required.block_hash
        if (block := progress.valid.get(block_hash)) is not None:
            _propose(state, block)
        elif (known := state.known_block(block_hash)) is not None and not progress.asked_to_propose:
            progress.asked_to_propose = True
            state.validate(known, first_seen=False)
        return
    due = progress.view > 0 or state.waiting_since_ms is not None or state.now_ms >= state.idle_due_ms()
    if due and not progress.asked_to_propose:
        progress.asked_to_propose = True
        state.emit(Propose(state.height, progress.view, state.head.hash))


def on_proposed(state: State, event: Proposed) -> None:
    """Propose the block that was built, unless the height or the view has gone on meanwhile (R22)."""
    progress = state.progress
    if (event.height, event.view) != (state.height, progress.view) or not progress.asked_to_propose:
        return
    if progress.phase is not Phase.OPEN or not state.is_primary:
        return
    if event.block.header.parent_hash != state.head.hash:
        return  # storage has gone on by catch-up, and ``Advanced`` is on its way
    code = _unfit(state, event.block)
    if code:
        raise InvariantError(f"built a block that does not fit: {code}")
    progress.valid[event.block.hash] = event.block
    _propose(state, event.block)


def on_pre_prepare(state: State, sender: NodeName, message: PrePrepare) -> None:
    """Take the primary's proposal of the current view and have it validated."""
    if _ignore_pre_prepare(state, sender, message):
        return
    block = Block.of(message.block.header, message.block.transactions)
    progress = state.progress
    if progress.proposal is not None and progress.proposal.block.hash == block.hash:
        return
    payload = vote_payload(state.height, message.view, block.hash)
    if not state.roster.verifies(state.primary, Purpose.PROPOSAL, payload, message.signature):
        state.penalise(sender, "bad_signature")
        return
    proposal = Proposal(block, message.view, message.signature)
    if progress.proposal is not None:
        state.note_evidence(
            EvidenceKind.DOUBLE_PROPOSAL,
            signer=state.primary,
            view=message.view,
            first=_statement(state, progress.proposal),
            second=_statement(state, proposal),
        )
        return
    if progress.phase is Phase.OPEN:
        _consider(state, proposal)


def _ignore_pre_prepare(state: State, sender: NodeName, message: PrePrepare) -> bool:
    if sender != state.primary:
        return True  # the signature covers the header alone: a relay could put another body under it
    if message.view != state.view or not state.is_validator or state.is_primary:
        return True
    return state.progress.phase in (Phase.VIEW_CHANGE, Phase.DECIDED)


def _consider(state: State, proposal: Proposal) -> None:
    progress = state.progress
    required = progress.required
    if required is not None and proposal.block.hash != required.block_hash:
        state.penalise(state.primary, "bad_proposal")
        _give_up(state)
        return
    if state.waiting_since_ms is not None:
        state.pace.proposed(state.primary, state.now_ms - max(progress.entered_ms, state.waiting_since_ms))
    progress.proposal = proposal
    progress.proposal_ms = state.now_ms
    state.enter_phase(Phase.VALIDATING)
    if code := _unfit(state, proposal.block):
        _refuse(state, proposal, code)
    elif (valid := progress.valid.get(proposal.block.hash)) is not None:
        progress.proposal = Proposal(valid, proposal.view, proposal.signature)
        _accept(state, progress.proposal)
    else:
        state.validate(proposal.block, first_seen=required is None)


def on_validated(state: State, event: Validated) -> None:
    """Vote for the proposal, or refuse it. A verdict belongs to one body, not to its hash (R44)."""
    block = next((block for block in state.validating if block.hash == event.block_hash), None)
    if block is None:
        return
    state.validating.remove(block)
    progress = state.progress
    if event.valid and block.height == state.height:
        progress.valid[block.hash] = block
        if progress.certificate is not None and progress.certificate[0].block_hash == block.hash:
            settle(state, *progress.certificate)
            return
    proposal = progress.proposal
    if progress.phase is not Phase.VALIDATING or proposal is None or proposal.block is not block:
        return
    if event.valid:
        _accept(state, proposal)
    else:
        _refuse(state, proposal, event.code)


def _refuse(state: State, proposal: Proposal, code: str) -> None:
    """Do not vote; keep the primary's signature under an invalid block; ask for another primary (P7)."""
    if code != CLOCK_CODE and not state.is_primary:
        state.note_evidence(
            EvidenceKind.INVALID_PROPOSAL,
            signer=state.primary,
            view=proposal.view,
            first=_statement(state, proposal),
            second=b"",
            code=code,
        )
    _give_up(state)


def _give_up(state: State) -> None:
    """Leave a view whose primary was refused; after a whole round of them only the deadline leaves (P7, R31)."""
    if state.view < state.roster.size:
        view_change.start(state, state.view + 1)


def _propose(state: State, block: Block) -> None:
    signature = state.config.signer.sign(Purpose.PROPOSAL, vote_payload(state.height, state.view, block.hash))
    state.progress.proposal = Proposal(block, state.view, signature)
    state.progress.proposal_ms = state.now_ms
    _accept(state, state.progress.proposal)


def _accept(state: State, proposal: Proposal) -> None:
    """Vote for a valid proposal: as primary by proposing it, else by a prepare; durable before sent (P12)."""
    progress = state.progress
    if progress.accepted != proposal:
        records = [state.log.accepted(proposal.message())]
        prepared = progress.prepared
        if prepared is not None and prepared.block.hash != proposal.block.hash:
            records.append(state.log.prepared_body(prepared.certificate.view, prepared.block))
        state.emit(Persist(tuple(records)))
    progress.accepted = proposal
    state.enter_phase(Phase.PREPARING)
    if state.is_primary:
        state.emit(Broadcast(proposal.message()))
    else:
        payload = vote_payload(state.height, proposal.view, proposal.block.hash)
        signature = state.config.signer.sign(Purpose.PREPARE, payload)
        prepare = Prepare(state.height, proposal.view, proposal.block.hash, state.name, signature)
        progress.prepares.add_own(prepare)
        state.emit(Broadcast(prepare))
    _commit_if_prepared(state)


def on_prepare(state: State, sender: NodeName, message: Prepare) -> None:
    """Count a backup's prepare; the primary's would count twice and is ignored (P3, R05)."""
    if message.signer == state.roster.primary(message.height, message.view) or not _take_vote(state, sender, message):
        return
    _commit_if_prepared(state)


def on_commit(state: State, sender: NodeName, message: Commit) -> None:
    """Count a commit of any view: q of one view decide, whatever view this replica is in (P8)."""
    if _take_vote(state, sender, message):
        _decide_if_committed(state, message.view, message.block_hash, sender)


def _take_vote(state: State, sender: NodeName, vote: Prepare | Commit) -> bool:
    """Put a vote into its tally; false when it changes nothing."""
    if state.progress.phase is Phase.DECIDED or vote.signer not in state.roster or vote.signer == state.name:
        return False
    is_prepare = isinstance(vote, Prepare)
    tally = state.progress.prepares if is_prepare else state.progress.commits
    try:
        first = tally.add_untrusted(vote, relayed=vote.signer != sender)
    except PeerError as error:
        state.penalise(sender, error.code)
        return False
    if first is not None:
        state.note_evidence(
            EvidenceKind.DOUBLE_PREPARE if is_prepare else EvidenceKind.DOUBLE_COMMIT,
            signer=vote.signer,
            view=vote.view,
            first=vote_statement(first),
            second=vote_statement(vote),
        )
        return False
    return True


def _commit_if_prepared(state: State) -> None:
    progress = state.progress
    proposal = progress.accepted
    if progress.phase is not Phase.PREPARING or proposal is None:
        return
    if progress.prepared is not None and progress.prepared.certificate.view == proposal.view:
        commit(state)  # prepared before a restart
        return
    block_hash = proposal.block.hash
    prepares, forgers = progress.prepares.signatures(proposal.view, block_hash, state.roster.quorum - 1)
    for forger in forgers:
        state.penalise(forger, "bad_signature")
    if prepares is None:
        return
    certificate = PreparedCertificate(state.height, proposal.view, block_hash, proposal.signature, prepares)
    progress.prepared = Prepared(proposal.block, certificate)
    state.emit(Persist((state.log.prepared(certificate),)))
    commit(state)


def commit(state: State) -> None:
    """Send the commit for the block prepared in the current view; its certificate is durable (P5, P12)."""
    prepared = state.progress.prepared
    if prepared is None or prepared.certificate.view != state.view:
        raise InvariantError("a commit needs the prepared certificate of its view")
    block_hash = prepared.block.hash
    signature = state.config.signer.sign(Purpose.COMMIT, vote_payload(state.height, state.view, block_hash))
    vote = Commit(state.height, state.view, block_hash, state.name, signature)
    state.progress.commits.add_own(vote)
    state.enter_phase(Phase.COMMITTING)
    state.emit(Broadcast(vote))
    _decide_if_committed(state, state.view, block_hash, state.name)


def _decide_if_committed(state: State, view: int, block_hash: bytes, source: NodeName) -> None:
    signatures, forgers = state.progress.commits.signatures(view, block_hash, state.roster.quorum)
    for forger in forgers:
        state.penalise(forger, "bad_signature")
    if signatures is not None:
        settle(state, Certificate(state.height, view, block_hash, signatures), source)


def settle(state: State, certificate: Certificate, source: NodeName) -> None:
    """Decide by a checked certificate of the height in progress, or remember it until the block is here (P9)."""
    progress = state.progress
    if progress.phase is Phase.DECIDED:
        return
    block = progress.valid.get(certificate.block_hash)
    if block is None:
        progress.certificate = progress.certificate or (certificate, source)
        return
    state.enter_phase(Phase.DECIDED)
    state.emit(Decide(block, certificate))


def _unfit(state: State, block: Block) -> str:
    """Return why a header does not follow the head, or an empty text; a fresh block is its primary's own (P6)."""
    try:
        check_successor_untrusted(state.head.header, state.head.hash, block.header)
    except PeerError as error:
        return error.code
    if state.progress.required is None and block.header.proposer != state.primary:
        return "bad_header"
    return ""


def _statement(state: State, proposal: Proposal) -> bytes:
    return proposal_statement(state.height, proposal.view, proposal.block.hash, state.primary, proposal.signature)
