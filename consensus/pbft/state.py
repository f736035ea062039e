"""What one replica knows, and the few things all handlers do with it.

The handlers in ``ordering``, ``view_change`` and ``healing`` are functions over this state; ``engine``
routes events to them. Nobody outside this package touches it.
"""

from collections import deque
from dataclasses import dataclass

from consensus.ledger.block import Block
from consensus.ledger.errors import InvariantError
from consensus.ledger.ids import Hash, NodeName
from consensus.ledger.keys import Purpose
from consensus.ledger.validators import Certificate
from consensus.pbft.config import Config
from consensus.pbft.events import (
    Effect,
    Evidence,
    EvidenceKind,
    Head,
    PeerStatus,
    Penalise,
    Phase,
    Validate,
    ViewEntered,
)
from consensus.pbft.evidence import EvidenceBook
from consensus.pbft.messages import Commit, NewView, Prepare, PreparedCertificate, PrePrepare, ViewChange
from consensus.pbft.pace import Pace
from consensus.pbft.roster import Roster
from consensus.pbft.tallies import Tally
from consensus.pbft.vote_log import VoteLog

VALIDATIONS_MAX = 64
"""Verdicts that may be outstanding; one is asked for per view at the most."""
ANSWERED_MAX = 1024
"""Pairs of node and question whose last answer is remembered, to answer none too often."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A block with the primary's signature for one view."""

    block: Block
    view: int
    signature: bytes

    def message(self) -> PrePrepare:
        """Return the message that carries it."""
        return PrePrepare(self.view, self.block.record(), self.signature)


@dataclass(frozen=True, slots=True)
class Prepared:
    """The block this replica committed to last, with the certificate that made it."""

    block: Block
    certificate: PreparedCertificate


class Progress:
    """Everything that begins anew with a height."""

    def __init__(self, roster: Roster, now_ms: int) -> None:
        self.view = 0
        self.phase = Phase.OPEN
        self.began_ms = now_ms
        self.entered_ms = now_ms
        self.moved_ms = now_ms
        self.proposal: Proposal | None = None
        """The proposal of the current view, valid or being validated."""
        self.proposal_ms = now_ms
        self.accepted: Proposal | None = None
        """The proposal voted for last; its view may be lower."""
        self.prepared: Prepared | None = None
        self.new_view: NewView | None = None
        """What opened the current view; None in view 0 and while votes are gathered."""
        self.view_change: ViewChange | None = None
        """The own vote, while it is the newest thing said."""
        self.supported_ms: int | None = None
        """Since when a quorum is in this view or above (P16)."""
        self.view_changes: dict[NodeName, ViewChange] = {}
        self.prepares = Tally(Purpose.PREPARE, roster)
        self.commits = Tally(Purpose.COMMIT, roster)
        self.valid: dict[bytes, Block] = {}
        """Blocks of this height found valid since the process started; a new view keeps those voted for."""
        self.asked_to_propose = False
        self.certificate: tuple[Certificate, NodeName] | None = None
        """A decision on a block that is not here, or not validated yet, and who has it."""
        self.fetch_index = 0
        self.fetched_ms: int | None = None

    @property
    def required(self) -> PreparedCertificate | None:
        """What the current view must re-propose (P15)."""
        return self.new_view.certificate if self.new_view is not None else None


class State:
    """One replica. ``out`` gathers the effects of the step in progress."""

    def __init__(self, config: Config, head: Head) -> None:
        self.config = config
        self.name = config.name
        self._vote_key = config.signer.public_key
        self.log = VoteLog(self._vote_key)
        self.pace = Pace(config)
        self.evidence = EvidenceBook()
        self.out: list[Effect] = []
        self.now_ms = 0
        self.started = False
        self.waiting_since_ms: int | None = None
        self.overdue = False
        self.overdue_height_min = 0
        """The next height at which an overdue transaction may end a view (P21)."""
        self.validating: deque[Block] = deque()
        self.stash: dict[tuple[NodeName, str], PrePrepare | Prepare | Commit] = {}
        """Messages of the next height, one a sender and kind (P17)."""
        self.peers: dict[NodeName, PeerStatus] = {}
        self.answered_ms: dict[tuple[NodeName, str], int] = {}
        self.asked_ms = 0
        self.catching_up: tuple[int, int] | None = None
        """Height and time of the last ``CatchUp``."""
        self.looked_ms: int | None = None
        """When a certificate of validators unknown here was last followed (P24)."""
        self.head = head
        self.roster = Roster(head.validators, config.verifier)
        self.progress = Progress(self.roster, 0)

    @property
    def height(self) -> int:
        """The height in progress."""
        return self.head.header.height + 1

    @property
    def view(self) -> int:
        """The current view."""
        return self.progress.view

    @property
    def primary(self) -> NodeName:
        """Who proposes in the current view."""
        return self.roster.primary(self.height, self.progress.view)

    @property
    def is_primary(self) -> bool:
        """Whether that is this node."""
        return self.primary == self.name and self.is_validator

    @property
    def is_validator(self) -> bool:
        """Whether this node votes at this height: a new key observes until the membership has admitted it."""
        return self.roster.has_key(self.name, self._vote_key)

    def emit(self, *effects: Effect) -> None:
        """Add effects to the step's result."""
        self.out.extend(effects)

    def enter_phase(self, phase: Phase) -> None:
        """Move on within a view."""
        self.progress.phase = phase
        self.progress.moved_ms = self.now_ms

    def begin_height(self, head: Head) -> None:
        """Start the height above ``head`` in view 0."""
        if head.validators != self.roster.validators:
            self.roster = Roster(head.validators, self.config.verifier)
            self.pace.keep(self.roster.names)
            self.peers = {name: status for name, status in self.peers.items() if name in self.roster}
        self.head = head
        self.evidence.begin_height()
        self.validating.clear()  # storage has passed these blocks; the driver need not judge them any more
        self.progress = Progress(self.roster, self.now_ms)
        self.emit(ViewEntered(self.height, 0, self.primary, opened=True))

    def validate(self, block: Block, *, first_seen: bool) -> None:
        """Ask for a verdict; they are answered in order."""
        if len(self.validating) >= VALIDATIONS_MAX:
            raise InvariantError("the driver owes too many verdicts")
        self.validating.append(block)
        self.emit(Validate(block, first_seen))

    def note_evidence(
        self, kind: EvidenceKind, *, signer: str, view: int, first: bytes, second: bytes, code: str = ""
    ) -> None:
        """Emit evidence about the height in progress, once."""
        evidence = Evidence(kind, NodeName(signer), self.height, view, first, second, code)
        if self.evidence.is_new(evidence):
            self.emit(evidence)

    def penalise(self, peer: NodeName, code: str) -> None:
        """Report a peer for handing over what no honest node makes."""
        if peer != self.name:
            self.emit(Penalise(peer, code))

    def may_answer(self, peer: NodeName, question: str) -> bool:
        """Tell whether this peer was not answered such a question just now; notes that it is."""
        last_ms = self.answered_ms.pop((peer, question), None)
        allowed = last_ms is None or self.now_ms - last_ms >= self.config.resend_ms // 2
        self.answered_ms[peer, question] = self.now_ms if allowed or last_ms is None else last_ms
        if len(self.answered_ms) > ANSWERED_MAX:
            del self.answered_ms[next(iter(self.answered_ms))]
        return allowed

    def known_block(self, block_hash: Hash | bytes) -> Block | None:
        """Return the body behind a hash from what was accepted or prepared at this height, validated or not."""
        progress = self.progress
        for block in (
            progress.valid.get(block_hash),
            progress.accepted.block if progress.accepted is not None else None,
            progress.prepared.block if progress.prepared is not None else None,
        ):
            if block is not None and block.hash == block_hash:
                return block
        return None

    def idle_due_ms(self) -> int:
        """Return when the next block is due although nothing waits (P22)."""
        wait_ms = self.config.heartbeat_ms if self.head.quiet else self.config.quiet_after_ms
        return self.progress.began_ms + wait_ms

    def deadline_ms(self) -> int | None:
        """Return when the current view has failed, or None while nothing more is expected of it (P16, P19)."""
        progress = self.progress
        if progress.phase is Phase.DECIDED or not self.is_validator:
            return None
        timeout_ms = self.pace.timeout_ms(progress.view, self.primary, self.roster.size)
        if progress.phase is Phase.VIEW_CHANGE:
            return None if progress.supported_ms is None else progress.supported_ms + timeout_ms
        if progress.view > 0:
            due_ms = progress.entered_ms
        else:
            due_ms = self.idle_due_ms()
            if self.waiting_since_ms is not None:
                due_ms = min(due_ms, self.waiting_since_ms)
        if progress.phase is not Phase.OPEN:
            due_ms = min(due_ms, progress.proposal_ms)
            timeout_ms = max(timeout_ms, self.config.timeout_ms)
        return max(due_ms, progress.entered_ms) + timeout_ms
