"""The replica as the driver sees it: ``step(event)`` returns the effects, to be executed in order.

Pure: no clock but ``Tick``, no I/O, no randomness, and the same events give the same effects. The first
``Tick`` starts it; messages before it are taken, time is not.
"""

from collections.abc import Mapping
from typing import assert_never

from consensus.ledger.block import Block
from consensus.ledger.errors import InvariantError, StorageError
from consensus.ledger.ids import NodeName
from consensus.pbft import healing, ordering, view_change
from consensus.pbft.config import Config
from consensus.pbft.events import (
    Advanced,
    Broadcast,
    Effect,
    EngineStatus,
    Event,
    Head,
    Phase,
    Proposed,
    Received,
    Tick,
    Validated,
    ViewEntered,
    Work,
)
from consensus.pbft.messages import (
    BlockBody,
    Commit,
    Decided,
    FetchBlock,
    Message,
    NewView,
    Prepare,
    PrePrepare,
    Status,
    ViewChange,
)
from consensus.pbft.state import Prepared, Proposal, State
from consensus.pbft.vote_log import RestoredVotes

HeightMessage = PrePrepare | Prepare | Commit | ViewChange | NewView | FetchBlock | BlockBody


class Engine:
    """One replica of the protocol in ``SPEC.md``."""

    def __init__(self, config: Config, head: Head) -> None:
        config.validate()
        self._state = State(config, head)

    @classmethod
    def restore(cls, config: Config, head: Head, records: Mapping[bytes, bytes]) -> "Engine":
        """Return the engine as it stands after a restart.

        Args:
            config: As before; the vote key must be the one of ``records``, or a new one.
            head: The newest block in storage.
            records: All that ``Persist`` ever wrote; empty on the first start.

        Raises:
            LocalError: ``bad_config``.
            StorageError: ``vote_log_corrupt`` or ``vote_log_ahead``.
        """
        engine = cls(config, head)
        state = engine._state
        votes = state.log.restore(records, state.height)
        if state.is_validator:
            _resume(state, votes)
        return engine

    def step(self, event: Event) -> list[Effect]:
        """Take one event and return what is to be done, in this order."""
        state = self._state
        match event:
            case Received():
                _receive(state, event.sender, event.message)
            case Tick():
                _tick(state, event.now_ms)
            case Proposed():
                ordering.on_proposed(state, event)
            case Validated():
                ordering.on_validated(state, event)
            case Advanced():
                _advance(state, event.head)
            case Work():
                _work(state, event)
            case _:
                assert_never(event)
        view_change.check_overdue(state)
        ordering.propose_if_due(state)
        effects, state.out = state.out, []
        return effects

    @property
    def height(self) -> int:
        """The height in progress."""
        return self._state.height

    @property
    def view(self) -> int:
        """The current view of that height."""
        return self._state.view

    def status(self) -> EngineStatus:
        """Return a snapshot for ``consensus_status``."""
        state, progress = self._state, self._state.progress
        deadline_ms = state.deadline_ms() if state.started else None
        return EngineStatus(
            height=state.height,
            view=progress.view,
            phase=progress.phase,
            primary=state.primary,
            is_validator=state.is_validator,
            validators=state.roster.names,
            quorum=state.roster.quorum,
            block_hash=progress.proposal.block.hash if progress.proposal is not None else None,
            prepares=progress.prepares.voters(progress.view),
            commits=progress.commits.voters(progress.view),
            view_changes={name: message.vote.view for name, message in sorted(progress.view_changes.items())},
            timeout_ms=state.pace.timeout_ms(progress.view, state.primary, state.roster.size),
            deadline_in_ms=None if deadline_ms is None else deadline_ms - state.now_ms,
            suspected=state.pace.suspected(),
            failed_ms=state.pace.failed_ms(),
            evidence=state.evidence.last,
            peers=dict(sorted(state.peers.items())),
        )


def _receive(state: State, sender: NodeName, message: Message) -> None:
    match message:
        case Status():
            healing.on_status(state, sender, message)
        case Decided():
            healing.on_decided(state, sender, message)
        case _ if message.height == state.height:
            _receive_now(state, sender, message)
        case _ if message.height > state.height:
            _receive_early(state, sender, message)
        case _:
            return  # late; whoever still needs that height asks by Status


def _receive_now(state: State, sender: NodeName, message: HeightMessage) -> None:
    match message:
        case PrePrepare():
            ordering.on_pre_prepare(state, sender, message)
        case Prepare():
            ordering.on_prepare(state, sender, message)
        case Commit():
            ordering.on_commit(state, sender, message)
        case ViewChange():
            view_change.on_view_change(state, sender, message)
        case NewView():
            view_change.on_new_view(state, sender, message)
        case FetchBlock():
            healing.on_fetch_block(state, sender, message)
        case BlockBody():
            healing.on_block_body(state, message)
        case _:
            assert_never(message)


def _receive_early(state: State, sender: NodeName, message: HeightMessage) -> None:
    """Keep what the next height's normal case needs, in slots that only their sender fills (P17)."""
    if message.height == state.height + 1 and sender in state.roster:
        match message:
            case Prepare() | Commit() if message.signer == sender:
                state.stash[sender, type(message).__name__] = message
            case PrePrepare() if message.view == 0 and sender == state.roster.primary(message.height, 0):
                state.stash[sender, type(message).__name__] = message
            case _:
                pass
    healing.ask_one(state, sender, message.height)


def _tick(state: State, now_ms: int) -> None:
    if now_ms < state.now_ms:
        raise InvariantError("the clock of Tick went back")
    state.now_ms = now_ms
    if not state.started:
        _start(state)
    view_change.check_deadline(state)
    healing.tick(state)


def _start(state: State) -> None:
    """Begin to measure time, say again what was said before the restart, ask where the others are."""
    state.started = True
    progress = state.progress
    progress.began_ms = progress.entered_ms = progress.moved_ms = progress.proposal_ms = state.now_ms
    if state.waiting_since_ms is not None:
        state.waiting_since_ms = state.now_ms
    state.emit(ViewEntered(state.height, state.view, state.primary, progress.phase is not Phase.VIEW_CHANGE))
    if progress.view_change is not None:
        state.emit(Broadcast(progress.view_change))
    if progress.new_view is not None and state.is_primary:
        state.emit(Broadcast(progress.new_view))
    view_change.react(state)  # alone, the own vote is all that there will be
    if progress.phase is Phase.VALIDATING and progress.accepted is not None and progress.proposal is progress.accepted:
        state.validate(progress.accepted.block, first_seen=False)  # voted for already, so the clock has no say
    healing.ask(state)


def _resume(state: State, votes: RestoredVotes) -> None:
    """Stand where the log says: nothing said before is contradicted (P13)."""
    progress = state.progress
    progress.view = votes.view
    progress.new_view = votes.new_view
    progress.view_change = votes.view_change
    if votes.view_change is not None:
        progress.view_changes[state.name] = votes.view_change
        progress.phase = Phase.VIEW_CHANGE
    elif votes.view > 0 and votes.new_view is None:
        raise StorageError("vote_log_corrupt", f"no record says how view {votes.view} was entered")
    if votes.prepared is not None and votes.prepared_block is not None:
        progress.prepared = Prepared(votes.prepared_block, votes.prepared)
    if votes.accepted is not None:
        block = Block.of(votes.accepted.block.header, votes.accepted.block.transactions)
        progress.accepted = Proposal(block, votes.accepted.view, votes.accepted.signature)
        if votes.accepted.view == votes.view:
            progress.proposal = progress.accepted
            progress.phase = Phase.VALIDATING


def _advance(state: State, head: Head) -> None:
    height = head.header.height
    if height < state.height:
        if height == state.head.header.height and head.hash != state.head.hash:
            raise InvariantError(f"storage holds two blocks of height {height}")
        return
    caught_up = state.progress.phase is not Phase.DECIDED
    state.pace.succeeded(NodeName(head.header.proposer), now_ms=state.now_ms)
    state.begin_height(head)
    if caught_up:
        healing.ask_after_catch_up(state)
    early, state.stash = state.stash, {}
    for (sender, _), message in early.items():
        if message.height == state.height:
            _receive_now(state, sender, message)


def _work(state: State, event: Work) -> None:
    if not event.waiting:
        state.waiting_since_ms = None
    elif state.waiting_since_ms is None:
        state.waiting_since_ms = state.now_ms
    state.overdue = event.overdue
