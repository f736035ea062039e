"""What every strategy is made of: what a liar may see, change, add and keep back."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Protocol

from consensus.ledger.block import BlockRecord
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import Purpose
from consensus.ledger.transaction import Transaction
from consensus.ledger.validators import ValidatorSet, vote_payload
from consensus.pbft.messages import (
    Claim,
    Commit,
    Message,
    NewView,
    Prepare,
    PreparedCertificate,
    PrePrepare,
    ViewChange,
    ViewChangeVote,
    new_view_payload,
    view_change_payload,
)
from consensus.pbft.signing import Signer
from node.chain import Chain
from node.sync import SyncResponse
from p2p.frames import FrameKind

MEMORY_MAX = 200
"""Messages that a liar keeps."""
NOISE_PERMILLE = 200
"""How often per tick a noisy strategy speaks up."""
VICTIMS_PERMILLE = 600


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message on its way out."""

    to: NodeName
    message: Message
    delay_ms: int = 0


class Liar(Protocol):
    """What a strategy has to work with."""

    name: NodeName
    signer: Signer
    foreign: Mapping[NodeName, Signer]
    """Everyone's key at work on another chain, whose votes a liar may have seen."""
    skew_ms: int
    """How far its clock is off."""

    @property
    def validators(self) -> ValidatorSet:
        """Who votes at the height in progress here."""

    @property
    def chain(self) -> Chain | None:
        """The liar's own chain, None while it is down."""

    @property
    def now_ms(self) -> int:
        """Simulated time."""

    def send_frame(self, to: NodeName, kind: FrameKind, payload: bytes) -> None:
        """Send anything that is no consensus message."""


class Strategy:
    """Follows the protocol; the others override what they need."""

    answer_delay_ms = 0
    """How long a node that catches up is left waiting."""

    def __init__(self, liar: Liar, random: Random) -> None:
        self.liar = liar
        self.random = random
        self.peers = [name for name in liar.validators.names if name != liar.name]
        self.victims = [name for name in self.peers if random.randrange(1_000) < VICTIMS_PERMILLE] or self.peers[:1]

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        """Return what becomes of a message that the engine sends."""
        return [parcel]

    def incoming(self, sender: NodeName, message: Message) -> list[Parcel]:
        """Return what to send because of a message that came in."""
        return []

    def tick(self) -> list[Parcel]:
        """Return what to send because time passes."""
        return []

    def answer(self, response: SyncResponse) -> SyncResponse | None:
        """Return what becomes of an answer to a node that catches up."""
        return response

    def select(self, transactions: list[Transaction]) -> list[Transaction]:
        """Return what the own proposal takes of what the pool offers."""
        return transactions

    def passes_on(self, to: NodeName, kind: FrameKind) -> bool:
        """Tell whether a frame that is no consensus message goes out."""
        return True

    # -- tools -----------------------------------------------------------------------------------------

    @property
    def height(self) -> int:
        """The height in progress here."""
        chain = self.liar.chain
        return 1 if chain is None else chain.head.header.height + 1

    def chance(self, permille: int) -> bool:
        """Draw."""
        return self.random.randrange(1_000) < permille

    def vote(self, kind: type[Prepare] | type[Commit], height: int, view: int, block_hash: bytes) -> Prepare | Commit:
        """Sign a vote in the own name."""
        return signed_vote(self.liar.signer, self.liar.name, kind, height, view, block_hash)

    def proposal(self, view: int, block: BlockRecord) -> PrePrepare:
        """Sign a proposal."""
        payload = vote_payload(block.header.height, view, block.header.hash())
        return PrePrepare(view, block, self.liar.signer.sign(Purpose.PROPOSAL, payload))

    def other_block(self, block: BlockRecord) -> BlockRecord | None:
        """Return a valid block beside this one, empty and a little later."""
        chain = self.liar.chain
        if chain is None or chain.head.header.height + 1 != block.header.height:
            return None
        candidate, _ = chain.build(self.liar.name, block.header.time_ms + 1, [])
        return candidate.block.record()

    def view_change(self, height: int, view: int, certificate: PreparedCertificate | None = None) -> ViewChange:
        """Sign a vote to leave; it claims what the certificate proves."""
        return signed_view_change(self.liar.signer, self.liar.name, height, view, certificate)

    def new_view(
        self, height: int, view: int, votes: list[ViewChangeVote], certificate: PreparedCertificate | None
    ) -> NewView:
        """Sign a new view, whatever its votes are worth."""
        payload = new_view_payload(height, view, votes, certificate)
        return NewView(height, view, votes, certificate, self.liar.signer.sign(Purpose.NEW_VIEW, payload))


def signed_vote(
    signer: Signer, name: NodeName, kind: type[Prepare] | type[Commit], height: int, view: int, block_hash: bytes
) -> Prepare | Commit:
    """Return a vote in anyone's name."""
    purpose = Purpose.PREPARE if kind is Prepare else Purpose.COMMIT
    return kind(height, view, block_hash, name, signer.sign(purpose, vote_payload(height, view, block_hash)))


def signed_view_change(
    signer: Signer, name: NodeName, height: int, view: int, certificate: PreparedCertificate | None
) -> ViewChange:
    """Return a view-change vote in anyone's name."""
    claim = None if certificate is None else Claim(certificate.view, certificate.block_hash)
    signature = signer.sign(Purpose.VIEW_CHANGE, view_change_payload(height, view, claim))
    return ViewChange(ViewChangeVote(height, view, claim, name, signature), certificate)
