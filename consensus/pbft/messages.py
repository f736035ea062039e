"""What validators say to each other, its bytes, and what its signatures cover.

Every message is a canonical MessagePack list that begins with its tag. The *signer* of a statement
counts, never who handed it over (SPEC P4). ``Status``, ``FetchBlock``, ``BlockBody`` and ``Decided``
are unsigned: they only make the receiver answer their sender, or prove themselves.
"""

from typing import Annotated, TypeAlias

import msgspec

from consensus.ledger.block import BLOCK_BYTES_MAX, BlockRecord
from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.ids import Hash, tagged_hash
from consensus.ledger.keys import SIGNATURE_BYTES
from consensus.ledger.merkle import HashBytes
from consensus.ledger.validators import VALIDATORS_MAX, Certificate, NodeNameText, Signature

VIEW_MAX = 1 << 32
"""Views above are ignored: no honest replica gets there within the life of a chain."""
MESSAGE_BYTES_MAX = BLOCK_BYTES_MAX + 128 * 1024

Height = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62))]
View = Annotated[int, msgspec.Meta(ge=0, le=VIEW_MAX)]
SignatureBytes = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class PrePrepare(Record, frozen=True, tag=1):
    """The primary of (height, view) proposes a block; it stands for the primary's prepare too (P3).

    ``signature`` is the primary's, purpose PROPOSAL, over ``vote_payload(height, view, block hash)``.
    """

    view: View
    block: BlockRecord
    signature: SignatureBytes

    @property
    def height(self) -> int:
        """The block's height."""
        return self.block.header.height


class Prepare(Record, frozen=True, tag=2):
    """A backup accepted the proposal of this view; purpose PREPARE over ``vote_payload``."""

    height: Height
    view: View
    block_hash: HashBytes
    signer: NodeNameText
    signature: SignatureBytes


class Commit(Record, frozen=True, tag=3):
    """A replica holds the prepared certificate of this block; purpose COMMIT over ``vote_payload``."""

    height: Height
    view: View
    block_hash: HashBytes
    signer: NodeNameText
    signature: SignatureBytes


class PreparedCertificate(Record, frozen=True):
    """The primary's proposal and the prepares of q−1 backups, ascending by name: q distinct signers (P3)."""

    height: Height
    view: View
    block_hash: HashBytes
    proposal_signature: SignatureBytes
    prepares: Annotated[list[Signature], msgspec.Meta(max_length=VALIDATORS_MAX)]


class Claim(Record, frozen=True):
    """The block a replica prepared last at this height, and in which view."""

    view: View
    block_hash: HashBytes


class ViewChangeVote(Record, frozen=True):
    """``signer`` leaves every view below ``view``; purpose VIEW_CHANGE over ``view_change_payload``."""

    height: Height
    view: View
    claim: Claim | None
    signer: NodeNameText
    signature: SignatureBytes


class ViewChange(Record, frozen=True, tag=4):
    """A view-change vote with the certificate that proves its claim; nil exactly without a claim."""

    vote: ViewChangeVote
    certificate: PreparedCertificate | None

    @property
    def height(self) -> int:
        """The height the vote is for."""
        return self.vote.height


class NewView(Record, frozen=True, tag=5):
    """The primary of ``view`` opens it with q votes, ascending by signer, and proof of the highest claim.

    ``signature`` is the primary's, purpose NEW_VIEW over ``new_view_payload``.
    """

    height: Height
    view: View
    votes: Annotated[list[ViewChangeVote], msgspec.Meta(min_length=1, max_length=VALIDATORS_MAX)]
    certificate: PreparedCertificate | None
    signature: SignatureBytes


class Decided(Record, frozen=True, tag=6):
    """The certificate of the sender's newest block, for whoever is behind."""

    certificate: Certificate


class FetchBlock(Record, frozen=True, tag=7):
    """Asks for the body of a block of the height in progress."""

    height: Height
    block_hash: HashBytes


class BlockBody(Record, frozen=True, tag=8):
    """Answers ``FetchBlock``."""

    block: BlockRecord

    @property
    def height(self) -> int:
        """The block's height."""
        return self.block.header.height


class Status(Record, frozen=True, tag=9):
    """Where the sender stands: height in progress, its view, and whether it has that view's proposal.

    It is a question: the receiver answers with what the sender lacks. A claimed height proves nothing.
    """

    height: Height
    view: View
    has_proposal: bool


Message: TypeAlias = PrePrepare | Prepare | Commit | ViewChange | NewView | Decided | FetchBlock | BlockBody | Status

_message_codec: RecordCodec[Message] = RecordCodec(Message, bytes_max=MESSAGE_BYTES_MAX)


def encode_message(message: Message) -> bytes:
    """Return a message's canonical bytes."""
    return _message_codec.encode(message)


def decode_message_untrusted(data: bytes) -> Message:
    """Decode a message; neither signatures nor membership are checked.

    Raises:
        PeerError: ``too_large`` or ``malformed``.
    """
    return _message_codec.decode_untrusted(data)


class _ViewChangePayload(Record, frozen=True):
    height: int
    view: int
    claim: Claim | None


class _NewViewPayload(Record, frozen=True):
    height: int
    view: int
    digest: bytes


class _NewViewContent(Record, frozen=True):
    votes: list[ViewChangeVote]
    certificate: PreparedCertificate | None


_view_change_codec: RecordCodec[_ViewChangePayload] = RecordCodec(_ViewChangePayload, bytes_max=128)
_new_view_codec: RecordCodec[_NewViewPayload] = RecordCodec(_NewViewPayload, bytes_max=128)
_new_view_content_codec: RecordCodec[_NewViewContent] = RecordCodec(_NewViewContent, bytes_max=1 << 20)


def view_change_payload(height: int, view: int, claim: Claim | None) -> bytes:
    """Return what a view-change signature covers, beside purpose and chain id."""
    return _view_change_codec.encode(_ViewChangePayload(height, view, claim))


def new_view_payload(
    height: int, view: int, votes: list[ViewChangeVote], certificate: PreparedCertificate | None
) -> bytes:
    """Return what a new-view signature covers: height, view and the hash of votes and certificate."""
    content = _new_view_content_codec.encode(_NewViewContent(votes, certificate))
    digest: Hash = tagged_hash("new-view", content)
    return _new_view_codec.encode(_NewViewPayload(height, view, digest))
