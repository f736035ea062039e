"""Transactions: signed calls, numbered within a lane.

A transaction travels and is stored as opaque bytes ``[body, signature]``. Its id is the hash of the
body alone; the transactions root of a block commits to ``H(id ‖ signature)``, because two signatures
of one body are two different pieces of evidence.

A *lane* counts a sender's transactions. Any number of lanes run side by side. A lane whose name has
32 bytes is *one-shot*: it holds the number 0 and nothing else, so that whoever knows the name can
prove that its transaction happened, or that it never can.
"""

from typing import Annotated

import msgspec

from consensus.ledger.codec import INTEGER_MAX, Record, RecordCodec, Value, encode
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import ADDRESS_BYTES, HASH_BYTES, Address, ChainId, Hash, tagged_hash
from consensus.ledger.keys import SIGNATURE_BYTES, PrivateKey, PublicKey, Purpose

FORMAT_VERSION = 1
TRANSACTION_BYTES_MAX = 256 * 1024
CALLS_MAX = 1_024
LANE_NAME_BYTES_MAX = 16
ONE_SHOT_LANE_BYTES = HASH_BYTES

ATOMIC = 0
"""All calls or none: one receipt."""
EACH = 1
"""Every call stands for itself: a receipt for each."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]


class Call(Record, frozen=True):
    """One call of a contract's method. ``arguments`` is the canonical encoding of a map name → value."""

    contract: Name
    method: Name
    arguments: Annotated[bytes, msgspec.Meta(max_length=TRANSACTION_BYTES_MAX)]


class TransactionBody(Record, frozen=True):
    """What the sender signs."""

    version: int
    chain_id: Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
    sender: Annotated[bytes, msgspec.Meta(min_length=ADDRESS_BYTES, max_length=ADDRESS_BYTES)]
    lane: Annotated[bytes, msgspec.Meta(max_length=ONE_SHOT_LANE_BYTES)]
    sequence: Natural
    valid_until_ms: Natural
    mode: Annotated[int, msgspec.Meta(ge=ATOMIC, le=EACH)]
    calls: Annotated[list[Call], msgspec.Meta(min_length=1, max_length=CALLS_MAX)]


class _Envelope(Record, frozen=True):
    body: bytes
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


_body_codec: RecordCodec[TransactionBody] = RecordCodec(TransactionBody, bytes_max=TRANSACTION_BYTES_MAX)
_envelope_codec: RecordCodec[_Envelope] = RecordCodec(_Envelope, bytes_max=TRANSACTION_BYTES_MAX)


class Transaction(msgspec.Struct, frozen=True, gc=False):
    """A decoded transaction beside the bytes it came from; its signature is not yet judged."""

    raw: bytes
    body: TransactionBody
    body_bytes: bytes
    signature: bytes
    id: Hash
    leaf: Hash

    @property
    def sender(self) -> Address:
        """The account that signs and is charged with the effects."""
        return Address(self.body.sender)

    @property
    def is_one_shot(self) -> bool:
        """Whether the lane holds the number 0 and nothing else."""
        return len(self.body.lane) == ONE_SHOT_LANE_BYTES

    def signed_by(self, key: PublicKey) -> bool:
        """Tell whether the signature is that of this key."""
        return key.verifies(self.signature, Purpose.TRANSACTION, ChainId(self.body.chain_id), self.body_bytes)


def decode_transaction_untrusted(raw: bytes) -> Transaction:
    """Decode a transaction and check all that needs neither chain nor key.

    Raises:
        PeerError: ``too_large``, ``malformed``, ``bad_version`` or ``bad_lane``.
    """
    envelope = _envelope_codec.decode_untrusted(raw)
    body = _body_codec.decode_untrusted(envelope.body)
    if body.version != FORMAT_VERSION:
        raise PeerError("bad_version", f"transaction version {body.version}, this node reads {FORMAT_VERSION}")
    lane_bytes = len(body.lane)
    if lane_bytes > LANE_NAME_BYTES_MAX and lane_bytes != ONE_SHOT_LANE_BYTES:
        raise PeerError("bad_lane", f"a lane name has up to {LANE_NAME_BYTES_MAX} bytes, or 32 for a one-shot lane")
    if lane_bytes == ONE_SHOT_LANE_BYTES and body.sequence != 0:
        raise PeerError("bad_lane", "a one-shot lane holds the number 0 alone")
    return _assemble(raw, body, envelope)


def make_call(contract: str, method: str, arguments: dict[str, Value]) -> Call:
    """Return a call with its arguments in canonical form."""
    return Call(contract, method, encode(arguments))


def sign_transaction(
    key: PrivateKey,
    chain_id: ChainId,
    calls: list[Call],
    *,
    sequence: int,
    valid_until_ms: int,
    lane: bytes = b"",
    mode: int = ATOMIC,
    sender: Address | None = None,
) -> Transaction:
    """Make and sign a transaction; ``sender`` differs from the key's own address once the key was rotated.

    Raises:
        LocalError: ``too_large``, ``bad_lane`` or ``malformed``: what nodes would refuse is refused here first.
    """
    address = key.public.address if sender is None else sender
    body = TransactionBody(FORMAT_VERSION, chain_id, address, lane, sequence, valid_until_ms, mode, calls)
    body_bytes = _body_codec.encode(body)
    raw = _envelope_codec.encode(_Envelope(body_bytes, key.sign(Purpose.TRANSACTION, chain_id, body_bytes)))
    try:
        return decode_transaction_untrusted(raw)
    except PeerError as error:
        raise LocalError(error.code, error.message) from None


def _assemble(raw: bytes, body: TransactionBody, envelope: _Envelope) -> Transaction:
    transaction_id = tagged_hash("transaction", envelope.body)
    return Transaction(
        raw=raw,
        body=body,
        body_bytes=envelope.body,
        signature=envelope.signature,
        id=transaction_id,
        leaf=tagged_hash("transaction-leaf", transaction_id, envelope.signature),
    )
