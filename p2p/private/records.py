"""What travels in a private channel: messages, receipts and openings, each signed with its signer's channel key.

A message names everything that makes it this one and no other: channel, epoch, direction, number, and the head of
the message before it. Its head is the hash of that and of its payload, so that whoever knows the head of message n
knows all n messages. A receipt and an opening name the number and head up to which their signer has taken messages.
Pure.
"""

from hashlib import sha256
from typing import Annotated, TypeAlias, assert_never

import msgspec

from consensus.ledger.codec import Record, RecordCodec, Value, encode
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import ChainId, Hash, tagged_hash
from consensus.ledger.keys import SIGNATURE_BYTES, PrivateKey, PublicKey, Purpose
from consensus.ledger.merkle import HashBytes
from p2p.frames import FRAME_BYTES_MAX, FrameKind
from p2p.private.port import PAYLOAD_BYTES_MAX, ChannelName

NUMBER_MAX = 2**53 - 1
UNSIGNED = bytes(SIGNATURE_BYTES)
"""Stands in a record until it is signed."""

Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]
SignatureBytes: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Payload: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=PAYLOAD_BYTES_MAX)]


class _OfChannel(Record, frozen=True):
    """Where a record belongs. ``to_bank`` is the direction of the messages that it is or speaks of."""

    bank: Name
    issuer: Name
    epoch: Number
    to_bank: bool

    @property
    def channel(self) -> ChannelName:
        """The channel's name."""
        return ChannelName(self.bank, self.issuer)


class Message(_OfChannel, frozen=True):
    """One payload; numbers count from 1 in each epoch and direction, ``previous`` is the head of the one before."""

    number: Annotated[int, msgspec.Meta(ge=1, le=NUMBER_MAX)]
    previous: HashBytes
    payload: Payload
    signature: SignatureBytes = UNSIGNED

    @property
    def head(self) -> Hash:
        """What stands for this message and all before it."""
        payload = sha256(self.payload).digest()
        place: list[Value] = [self.bank, self.issuer, self.epoch, self.to_bank, self.number, self.previous, payload]
        return tagged_hash("channel-message", encode(place))


class Receipt(_OfChannel, frozen=True):
    """That its signer keeps the messages up to ``number``, the last of which has this head."""

    number: Number
    head: HashBytes
    signature: SignatureBytes = UNSIGNED


class Open(_OfChannel, frozen=True):
    """Where its signer stands: what it has taken in this epoch, and in the last epoch before in which it took any.

    ``is_final``: it takes nothing more in this epoch, as the channel was revoked. ``is_asking``: it wants the
    other's in return, having entered this epoch only now.
    """

    number: Number
    head: HashBytes
    is_final: bool
    is_asking: bool
    last_epoch: Number
    last_number: Number
    last_head: HashBytes
    signature: SignatureBytes = UNSIGNED


ChannelRecord: TypeAlias = Message | Receipt | Open

_codecs: dict[FrameKind, RecordCodec[ChannelRecord]] = {
    FrameKind.PRIVATE_MESSAGE: RecordCodec(Message, bytes_max=FRAME_BYTES_MAX),
    FrameKind.PRIVATE_RECEIPT: RecordCodec(Receipt, bytes_max=1_024),
    FrameKind.PRIVATE_OPEN: RecordCodec(Open, bytes_max=1_024),
}
_KINDS: dict[type[ChannelRecord], FrameKind] = {
    Message: FrameKind.PRIVATE_MESSAGE,
    Receipt: FrameKind.PRIVATE_RECEIPT,
    Open: FrameKind.PRIVATE_OPEN,
}


def encode_signed(record: ChannelRecord, key: PrivateKey, chain_id: ChainId) -> tuple[FrameKind, bytes]:
    """Return the frame's kind and payload of a record, signed with this channel key."""
    signature = key.sign(_purpose(record), chain_id, _signed_hash(record))
    kind = _KINDS[type(record)]
    return kind, _codecs[kind].encode(msgspec.structs.replace(record, signature=signature))


def decode_record_untrusted(kind: FrameKind, payload: bytes) -> ChannelRecord:
    """Return a record whose signature is yet to be checked.

    Raises:
        PeerError: ``unexpected_frame``, ``malformed`` or ``too_large``.
    """
    codec = _codecs.get(kind)
    if codec is None:
        raise PeerError("unexpected_frame", f"{kind.name} on a private connection")
    return codec.decode_untrusted(payload)


def check_signature_untrusted(record: ChannelRecord, key: bytes, chain_id: ChainId) -> None:
    """Check that the holder of this channel key (33 bytes) signed the record for this chain.

    Raises:
        PeerError: ``bad_key`` or ``bad_signature``.
    """
    public = PublicKey.load_untrusted(key)
    if not public.verifies(record.signature, _purpose(record), chain_id, _signed_hash(record)):
        raise PeerError(
            "bad_signature", f"this {type(record).__name__.lower()} of {record.channel} is not the peer's own"
        )


def _purpose(record: ChannelRecord) -> Purpose:
    return Purpose.CHANNEL_MESSAGE if isinstance(record, Message) else Purpose.CHANNEL_RECEIPT


def _signed_hash(record: ChannelRecord) -> Hash:
    match record:
        case Message():
            return record.head
        case Receipt():
            tag = "channel-receipt"
        case Open():
            tag = "channel-open"
        case _:
            assert_never(record)
    return tagged_hash(tag, encode([*msgspec.structs.astuple(record)[:-1]]))
