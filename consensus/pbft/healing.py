"""Making up for what was lost: questions and answers between replicas (SPEC P17, P18).

Nothing is sent again on suspicion. A replica that sees no progress asks everyone by ``Status``, and each
answers that one with its own last statements, or with the certificate of a height it has passed.
"""

from consensus.ledger.block import Block
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import NodeName
from consensus.ledger.validators import Certificate
from consensus.pbft import ordering
from consensus.pbft.certificates import check_commit_certificate_untrusted, known_by_honest
from consensus.pbft.events import Broadcast, CatchUp, PeerStatus, Phase, Send
from consensus.pbft.messages import BlockBody, Decided, FetchBlock, Status
from consensus.pbft.state import State

LOOK_AGAIN_MS = 30_000
"""How often a validator follows a certificate of nobody it knows."""


def ask(state: State) -> None:
    """Tell everyone where this replica stands, which asks for what it lacks."""
    state.asked_ms = state.now_ms
    state.emit(Broadcast(_own_status(state)))


def ask_one(state: State, peer: NodeName, height: int) -> None:
    """Ask a peer that speaks of later heights: a claim triggers a question, never more (R61).

    The next height alone is everyday: the others may be a moment ahead.
    """
    stuck = state.now_ms - state.progress.moved_ms >= state.config.resend_ms
    if (stuck or height > state.height + 1) and state.may_answer(peer, "ahead"):
        state.emit(Send(peer, _own_status(state)))


def ask_after_catch_up(state: State) -> None:
    """Ask again at once: under load the others have gone on meanwhile, and waiting would never close the gap."""
    if state.catching_up is None or state.head.header.height >= state.catching_up[0]:
        ask(state)


def _own_status(state: State) -> Status:
    return Status(state.height, state.view, state.progress.proposal is not None)


def tick(state: State) -> None:
    """Ask when nothing moves, fetch what a decision or a new view needs."""
    progress = state.progress
    expecting = progress.phase is not Phase.OPEN or state.waiting_since_ms is not None or progress.view > 0
    stuck = expecting and state.now_ms - progress.moved_ms >= state.config.resend_ms
    if state.now_ms - state.asked_ms >= (state.config.resend_ms if stuck else state.config.status_ms):
        ask(state)
    if progress.certificate is not None:
        certificate, source = progress.certificate
        if all(block.hash != certificate.block_hash for block in state.validating):
            _catch_up(state, certificate, source)
    _fetch_required(state)


def _fetch_required(state: State) -> None:
    """As the primary of a view that must re-propose a block unknown here: ask those who prepared it, one by one."""
    progress = state.progress
    required = progress.required
    if required is None or not state.is_primary or progress.phase is not Phase.OPEN:
        return
    if state.known_block(required.block_hash) is not None:
        return
    if progress.fetched_ms is not None and state.now_ms - progress.fetched_ms < state.config.resend_ms:
        return
    holders = [vote.signer for vote in required.prepares]
    holders.append(state.roster.primary(required.height, required.view))
    others = [name for name in holders if name != state.name]
    if others:
        progress.fetched_ms = state.now_ms
        holder = NodeName(others[progress.fetch_index % len(others)])
        progress.fetch_index += 1
        state.emit(Send(holder, FetchBlock(state.height, required.block_hash)))


def on_status(state: State, sender: NodeName, message: Status) -> None:
    """Answer with what the sender lacks; statements and bodies not too often, a certificate is small."""
    if sender in state.roster:
        state.peers[sender] = PeerStatus(message.height, message.view, state.now_ms)
    if message.height < state.height:
        if state.head.certificate is not None:
            state.emit(Send(sender, Decided(state.head.certificate)))
    elif message.height == state.height and state.is_validator and state.may_answer(sender, "status"):
        _answer(state, sender, message)


def _answer(state: State, sender: NodeName, message: Status) -> None:
    progress = state.progress
    if progress.view_change is not None and message.view <= state.view:
        state.emit(Send(sender, progress.view_change))
    if message.view < state.view or (message.view == state.view and not message.has_proposal):
        if progress.new_view is not None:
            state.emit(Send(sender, progress.new_view))
        under_way = state.now_ms - progress.proposal_ms < state.config.resend_ms
        if (
            state.is_primary
            and progress.accepted is not None
            and progress.accepted.view == state.view
            and not under_way
        ):
            state.emit(Send(sender, progress.accepted.message()))
    prepare = progress.prepares.own(state.name)
    if prepare is not None and prepare.view >= message.view:
        state.emit(Send(sender, prepare))
    if (vote := progress.commits.own(state.name)) is not None:
        state.emit(Send(sender, vote))


def on_decided(state: State, sender: NodeName, message: Decided) -> None:
    """Decide by a peer's certificate, or fetch what it stands for."""
    certificate = message.certificate
    if certificate.height < state.height or state.progress.phase is Phase.DECIDED:
        return
    if certificate.height > state.height:
        if not _is_catching_up(state, certificate.height) and (
            known_by_honest(certificate, state.roster) or _may_look(state)
        ):
            _catch_up(state, certificate, sender)
        return
    if state.progress.certificate is not None:
        return
    try:
        check_commit_certificate_untrusted(certificate, state.roster)
    except PeerError as error:
        state.penalise(sender, error.code)
        return
    ordering.settle(state, certificate, sender)


def on_fetch_block(state: State, sender: NodeName, message: FetchBlock) -> None:
    """Hand out the body of a block voted for at this height."""
    block = state.known_block(message.block_hash)
    if block is not None and state.may_answer(sender, "fetch"):
        state.emit(Send(sender, BlockBody(block.record())))


def on_block_body(state: State, message: BlockBody) -> None:
    """Validate the body that this view must re-propose; one that does not fit its hash is asked for elsewhere."""
    progress = state.progress
    required = progress.required
    if required is None or not state.is_primary or progress.phase is not Phase.OPEN:
        return
    block = Block.of(message.block.header, message.block.transactions)
    if block.hash != required.block_hash or state.known_block(block.hash) is not None:
        return
    if all(other.hash != block.hash for other in state.validating):
        state.validate(block, first_seen=False)


def _may_look(state: State) -> bool:
    """Tell whether to look for blocks although no validator known here stands behind them (P24).

    All that were known may have left meanwhile. Looking keeps a primary from proposing for a moment, so a
    validator does it only after long silence and seldom; an observer has nothing to lose.
    """
    if not state.is_validator:
        return True
    is_stalled = state.now_ms - state.progress.began_ms >= state.config.timeout_ms_max
    if not is_stalled or (state.looked_ms is not None and state.now_ms - state.looked_ms < LOOK_AGAIN_MS):
        return False
    state.looked_ms = state.now_ms
    return True


def _is_catching_up(state: State, height: int) -> bool:
    if state.catching_up is None:
        return False
    target, since_ms = state.catching_up
    return height <= target and state.now_ms - since_ms < state.config.status_ms


def _catch_up(state: State, certificate: Certificate, source: NodeName) -> None:
    if not _is_catching_up(state, certificate.height):
        state.catching_up = (certificate.height, state.now_ms)
        state.emit(CatchUp(certificate, source))
