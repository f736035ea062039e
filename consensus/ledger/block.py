"""Blocks: a header that commits to everything, and the transactions as opaque bytes.

The view a block was decided in is not part of its hash, so a prepared block keeps its name when a
later view proposes it again. The header holds the results of executing the block, because a replica
executes before it votes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import ZERO_HASH, ChainId, Hash, tagged_hash
from consensus.ledger.merkle import HashBytes, list_root
from consensus.ledger.receipt import Receipt, receipt_codec
from consensus.ledger.transaction import TRANSACTION_BYTES_MAX, Natural
from consensus.ledger.validators import Certificate, NodeNameText, ValidatorSet, check_certificate_untrusted

FORMAT_VERSION = 1
BLOCK_TRANSACTIONS_MAX = 2_000
BLOCK_BYTES_MAX = 4 * 1024 * 1024
UPTIME_STEP_MS_MAX = 60_000
"""How much of the time between two blocks counts as uptime at the most."""


class Header(Record, frozen=True):
    """What a block hash covers. All hashes have 32 bytes, times are ms since 1970 UTC.

    ``sealed_height`` and ``sealed_root`` name the newest sealed state: this block's own result when it
    seals, else what the parent's header says. ``validators_hash`` is the set that certifies this block,
    ``next_validators_hash`` the one that certifies the next.
    """

    version: Annotated[int, msgspec.Meta(ge=FORMAT_VERSION, le=FORMAT_VERSION)]
    chain_id: HashBytes
    height: Natural
    parent_hash: HashBytes
    time_ms: Natural
    uptime_ms: Natural
    proposer: NodeNameText
    transactions_root: HashBytes
    receipts_root: HashBytes
    writes_root: HashBytes
    validators_hash: HashBytes
    next_validators_hash: HashBytes
    sealed_height: Natural
    sealed_root: HashBytes

    def hash(self) -> Hash:
        """Return the block's hash."""
        return tagged_hash("block", header_codec.encode(self))


header_codec: RecordCodec[Header] = RecordCodec(Header, bytes_max=1024)

_pair_encoder = msgspec.msgpack.Encoder()

RawTransaction = Annotated[bytes, msgspec.Meta(max_length=TRANSACTION_BYTES_MAX)]


class BlockRecord(Record, frozen=True):
    """A block as it travels and is stored."""

    header: Header
    transactions: Annotated[list[RawTransaction], msgspec.Meta(max_length=BLOCK_TRANSACTIONS_MAX)]


_block_codec: RecordCodec[BlockRecord] = RecordCodec(BlockRecord, bytes_max=BLOCK_BYTES_MAX + 64 * 1024)


@dataclass(frozen=True, slots=True)
class Block:
    """A header with its transactions in order, and the header's hash, computed and never claimed (R09)."""

    header: Header
    transactions: tuple[bytes, ...]
    hash: Hash

    @staticmethod
    def of(header: Header, transactions: Sequence[bytes]) -> "Block":
        """Return the block of a header and its transactions."""
        return Block(header, tuple(transactions), header.hash())

    @property
    def height(self) -> int:
        """Number of blocks before this one; genesis has 0."""
        return self.header.height

    @property
    def is_quiet(self) -> bool:
        """Whether the block carries no transaction: a quiet block or a heartbeat."""
        return not self.transactions

    def record(self) -> BlockRecord:
        """Return the record that messages embed."""
        return BlockRecord(self.header, list(self.transactions))

    def encode(self) -> bytes:
        """Return the canonical bytes of header and transactions."""
        return _block_codec.encode(self.record())


def decode_block_untrusted(data: bytes) -> Block:
    """Decode a block; its roots are not yet checked against its content.

    Raises:
        PeerError: ``malformed`` or ``too_large``.
    """
    record = _block_codec.decode_untrusted(data)
    return Block.of(record.header, record.transactions)


def transactions_root(leaves: Sequence[bytes]) -> Hash:
    """Return the root over the transactions' leaves, ``H(id ‖ signature)`` each."""
    return list_root(leaves)


def receipts_root(receipts: Sequence[Receipt]) -> Hash:
    """Return the root over all receipts of a block in order."""
    return list_root([receipt_codec.encode(receipt) for receipt in receipts])


def write_leaf(key: bytes, value: bytes | None) -> bytes:
    """Return the leaf for one write: the key and its new bytes, nil for a removal."""
    return _pair_encoder.encode((key, value))


def writes_root(writes: dict[bytes, bytes | None]) -> Hash:
    """Return the root over a block's net writes in ascending order of their keys."""
    return list_root([write_leaf(key, writes[key]) for key in sorted(writes)])


def uptime_after(parent: Header, time_ms: int) -> int:
    """Return the uptime of a block at this time: outages count for a minute at the most."""
    return parent.uptime_ms + min(time_ms - parent.time_ms, UPTIME_STEP_MS_MAX)


def check_successor_untrusted(parent: Header, parent_hash: Hash, header: Header) -> None:
    """Check all of a header that follows from its parent and needs no execution.

    Raises:
        PeerError: ``wrong_chain`` or ``bad_header``.
    """
    if header.chain_id != parent.chain_id:
        raise PeerError("wrong_chain", "the block belongs to another chain")
    if header.height != parent.height + 1:
        raise PeerError("bad_header", f"height {header.height} does not follow {parent.height}")
    if header.parent_hash != parent_hash:
        raise PeerError("bad_header", "the parent is another block")
    if header.time_ms <= parent.time_ms:
        raise PeerError("bad_header", "block time must ascend")
    if header.uptime_ms != uptime_after(parent, header.time_ms):
        raise PeerError("bad_header", "wrong uptime")
    if header.validators_hash != parent.next_validators_hash:
        raise PeerError("bad_header", "another validator set than the parent announced")
    if header.sealed_height != header.height and (header.sealed_height, header.sealed_root) != (
        parent.sealed_height,
        parent.sealed_root,
    ):
        raise PeerError("bad_header", "neither sealed here nor the parent's seal")


def check_certified_untrusted(header: Header, certificate: Certificate, validators: ValidatorSet) -> None:
    """Check that a quorum of these validators certified this header, and that it is theirs to certify.

    Whether they are the set of the header's height is the caller's to know; the header only names a hash.

    Raises:
        PeerError: ``bad_certificate``.
    """
    if header.height == 0:
        raise PeerError("bad_certificate", "block 0 is made from genesis and never certified")
    if header.validators_hash != validators.hash():
        raise PeerError("bad_certificate", "the header names another validator set")
    if (certificate.height, certificate.block_hash) != (header.height, header.hash()):
        raise PeerError("bad_certificate", "the certificate is of another block")
    check_certificate_untrusted(certificate, validators, ChainId(header.chain_id))


def genesis_block(
    chain_id: bytes,
    *,
    time_ms: int,
    proposer: str,
    validators_hash: bytes,
    writes: dict[bytes, bytes | None],
    sealed_root: bytes,
) -> Block:
    """Return block 0, which everyone makes from the genesis document and nobody signs."""
    header = Header(
        version=FORMAT_VERSION,
        chain_id=chain_id,
        height=0,
        parent_hash=ZERO_HASH,
        time_ms=time_ms,
        uptime_ms=0,
        proposer=proposer,
        transactions_root=transactions_root([]),
        receipts_root=receipts_root([]),
        writes_root=writes_root(writes),
        validators_hash=validators_hash,
        next_validators_hash=validators_hash,
        sealed_height=0,
        sealed_root=sealed_root,
    )
    return Block.of(header, [])
