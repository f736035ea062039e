"""What goes into the engine and what comes out.

The driver executes the effects of one step strictly in order: a ``Persist`` is synced before the
effects behind it begin, which is what makes votes durable before they are sent (SPEC P12).
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from consensus.ledger.block import Block, Header
from consensus.ledger.ids import Hash, NodeName
from consensus.ledger.validators import Certificate, ValidatorSet
from consensus.pbft.messages import Message

CLOCK_CODE = "clock_skew"
"""The ``Validated.code`` for a proposal whose time is too far from our clock: refused, but no evidence."""


@dataclass(frozen=True, slots=True)
class Head:
    """The newest committed block. ``certificate`` is None for genesis alone.

    ``validators`` certify the *next* height; ``quiet`` says that the block carried no transaction.
    """

    header: Header
    hash: Hash
    certificate: Certificate | None
    validators: ValidatorSet
    quiet: bool


# Events


@dataclass(frozen=True, slots=True)
class Received:
    """A message that ``sender``, known by its TLS session, handed over."""

    sender: NodeName
    message: Message


@dataclass(frozen=True, slots=True)
class Tick:
    """The monotonic clock, ms from any origin, every 20 to 50 ms. The first one starts the engine."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class Proposed:
    """The block built for ``Propose``; building it proves it valid, so it is not validated again."""

    height: int
    view: int
    block: Block


@dataclass(frozen=True, slots=True)
class Validated:
    """The verdict on the block of the last ``Validate``. ``code`` says why it is not valid."""

    block_hash: Hash
    valid: bool
    code: str = ""


@dataclass(frozen=True, slots=True)
class Advanced:
    """A block is in storage, by ``Decide`` or by catch-up. Repeated or older heads have no effect."""

    head: Head


@dataclass(frozen=True, slots=True)
class Work:
    """The mempool's state, a level that holds until the next ``Work``; send it before ``Advanced``.

    ``waiting``: something admissible waits. ``overdue``: a transaction was passed by too many full blocks.
    """

    waiting: bool
    overdue: bool = False


Event: TypeAlias = Received | Tick | Proposed | Validated | Advanced | Work


# Effects


@dataclass(frozen=True, slots=True)
class Persist:
    """Write all records in one synced batch (None deletes) before going on. A failure stops the node."""

    records: tuple[tuple[bytes, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Send to one node. May be lost."""

    to: NodeName
    message: Message


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Send to all other validators of the height in progress. May be lost."""

    message: Message


@dataclass(frozen=True, slots=True)
class Propose:
    """Build a block on this parent and answer ``Proposed`` with the same height and view."""

    height: int
    view: int
    parent: Hash


@dataclass(frozen=True, slots=True)
class Validate:
    """Check and execute; answer ``Validated``, unless storage has passed the block's height.

    Only a ``first_seen`` block is judged by the local clock (R23). The block's hash covers its header
    alone: that header and transactions fit is part of the question.
    """

    block: Block
    first_seen: bool


@dataclass(frozen=True, slots=True)
class Decide:
    """Commit this validated block; answer ``Advanced``."""

    block: Block
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Fetch and commit blocks up to this certificate, from ``source`` first; answer ``Advanced`` for each or the last.

    For the height in progress the certificate is fully checked; for later heights f+1 known validators signed it.
    """

    certificate: Certificate
    source: NodeName


class EvidenceKind(StrEnum):
    """What a validator did wrong, provably by its own signatures."""

    DOUBLE_PROPOSAL = "double_proposal"
    DOUBLE_PREPARE = "double_prepare"
    DOUBLE_COMMIT = "double_commit"
    DOUBLE_VIEW_CHANGE = "double_view_change"
    INVALID_PROPOSAL = "invalid_proposal"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Signed statements (``evidence.Statement`` bytes) that contradict each other.

    For ``INVALID_PROPOSAL`` there is one, ``second`` is empty and ``code`` says what the block broke.
    """

    kind: EvidenceKind
    signer: NodeName
    height: int
    view: int
    first: bytes
    second: bytes
    code: str = ""


@dataclass(frozen=True, slots=True)
class Penalise:
    """``peer`` handed over something that no honest node makes."""

    peer: NodeName
    code: str


@dataclass(frozen=True, slots=True)
class ViewEntered:
    """A view began: with ``opened`` proposals are accepted, without it votes for it are being gathered."""

    height: int
    view: int
    primary: NodeName
    opened: bool


Effect: TypeAlias = (
    Persist | Send | Broadcast | Propose | Validate | Decide | CatchUp | Evidence | Penalise | ViewEntered
)


# What `consensus_status` shows


class Phase(StrEnum):
    """Where the height in progress stands."""

    VIEW_CHANGE = "view_change"
    """Left the last view, the next is not open yet."""
    OPEN = "open"
    """No proposal accepted in this view yet."""
    VALIDATING = "validating"
    PREPARING = "preparing"
    """Own prepare (or proposal) is out."""
    COMMITTING = "committing"
    """Own commit is out."""
    DECIDED = "decided"
    """Waits for storage."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What a validator last said of itself; ``seen_ms`` by the engine's clock."""

    height: int
    view: int
    seen_ms: int


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """A snapshot for people. ``deadline_in_ms`` is None while nothing is expected.

    ``failed_ms`` says of each suspected primary when its last bad turn was, by the engine's clock.
    """

    height: int
    view: int
    phase: Phase
    primary: NodeName
    is_validator: bool
    validators: tuple[NodeName, ...]
    quorum: int
    block_hash: Hash | None
    prepares: tuple[NodeName, ...]
    commits: tuple[NodeName, ...]
    view_changes: dict[NodeName, int]
    timeout_ms: int
    deadline_in_ms: int | None
    suspected: tuple[NodeName, ...]
    evidence: Evidence | None
    peers: dict[NodeName, PeerStatus]
    failed_ms: dict[NodeName, int] = field(default_factory=dict)
