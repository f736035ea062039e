"""Proof files: what the chain holds, checked offline with nothing but the genesis file.

A proof leads from genesis to its claim in three steps. *Set changes*: the headers, in ascending height,
by which one validator set handed over to the next, each certified by the set before it; genesis names
the first. *Header*: one that the set of its height certified. *Path*: from a root in that header to the
claim. What remains to trust is that no quorum of any former set signs against its duty, even later.

The file is a JSON object; every value of bytes is 0x-hex, records are in their canonical encoding:

    format        "hansa-proof-1"
    chainId       32 bytes
    setChanges    [{header, certificate, validators}], the last being the set that follows
    header        the certified header
    certificate   its certificate
    claim         {kind: "block"}
                  {kind: "transaction", transaction, path}   raw; a ListProof under the transactions root
                  {kind: "receipt", receipt, path}           a ListProof under the receipts root
                  {kind: "state", key, value, path}          value null if absent; a StateProof under the sealed root

A state proof speaks of the state after block ``sealedHeight`` of its header. That a lane was not used is
a state proof of its record's absence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeAlias, assert_never, cast

import msgspec

from consensus.ledger.block import Header, check_certified_untrusted, header_codec
from consensus.ledger.codec import RecordCodec
from consensus.ledger.errors import PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.ids import ChainId, Hash, NodeName
from consensus.ledger.merkle import ListProof, leaf_is_under, prove_leaf
from consensus.ledger.receipt import Receipt, receipt_codec
from consensus.ledger.state_tree import StateProof, check_state_proof_untrusted, state_proof_codec
from consensus.ledger.transaction import Transaction, decode_transaction_untrusted
from consensus.ledger.validators import (
    Certificate,
    ValidatorSet,
    certificate_codec,
    decode_validators_untrusted,
)

PROOF_BYTES_MAX = 16 * 1024 * 1024
SET_CHANGES_MAX = 1_000
"""How many changes of the validator set a proof may carry; each costs a quorum of signature checks."""
FORMAT: Final = "hansa-proof-1"

_list_proof_codec: RecordCodec[ListProof] = RecordCodec(ListProof, bytes_max=2_048)


@dataclass(frozen=True, slots=True)
class SetChange:
    """A header that announces another set for the next height, its certificate, and that set."""

    header: Header
    certificate: Certificate
    validators: ValidatorSet


@dataclass(frozen=True, slots=True)
class BlockClaim:
    """The header itself stands on the chain."""


@dataclass(frozen=True, slots=True)
class TransactionClaim:
    """The block holds this transaction at ``path.index``."""

    transaction: Transaction
    path: ListProof


@dataclass(frozen=True, slots=True)
class ReceiptClaim:
    """The block's receipts hold this one at ``path.index``."""

    receipt: Receipt
    path: ListProof


@dataclass(frozen=True, slots=True)
class StateClaim:
    """The sealed state has this value at a key, or none when ``value`` is None."""

    key: bytes
    value: bytes | None
    path: StateProof


Claim: TypeAlias = BlockClaim | TransactionClaim | ReceiptClaim | StateClaim


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof file, decoded and not yet verified."""

    chain_id: ChainId
    set_changes: tuple[SetChange, ...]
    header: Header
    certificate: Certificate
    claim: Claim


@dataclass(frozen=True, slots=True)
class Verified:
    """What a proof has proven.

    ``signers`` are the members whose signatures were checked, ``validators`` the set they belong to.
    ``claim`` holds; a :class:`StateClaim` speaks of the state after ``header.sealed_height``.
    """

    chain_id: ChainId
    height: int
    time_ms: int
    block_hash: Hash
    header: Header
    signers: tuple[NodeName, ...]
    validators: ValidatorSet
    claim: Claim


def prove_transaction(transactions: Sequence[Transaction], index: int) -> TransactionClaim:
    """Return the claim for one of a block's transactions, given all of them in order."""
    leaves = [transaction.leaf for transaction in transactions]
    return TransactionClaim(transactions[index], prove_leaf(leaves, index))


def prove_receipt(receipts: Sequence[Receipt], index: int) -> ReceiptClaim:
    """Return the claim for one of a block's receipts, given all of them in order."""
    leaves = [receipt_codec.encode(receipt) for receipt in receipts]
    return ReceiptClaim(receipts[index], prove_leaf(leaves, index))


def verify_proof_untrusted(proof: Proof, genesis: Genesis) -> Verified:
    """Check a proof against genesis and return what it proves.

    Raises:
        PeerError: ``wrong_chain``, ``bad_certificate`` or ``bad_proof``.
    """
    chain_id = genesis.chain_id()
    if proof.chain_id != chain_id or proof.header.chain_id != chain_id:
        raise PeerError("wrong_chain", "the proof belongs to another chain")
    validators, height = genesis.validator_set(), 0
    for change in proof.set_changes:
        validators = following_set_untrusted(change, validators, above=height, chain_id=chain_id)
        height = change.header.height
    if proof.header.height <= height:
        raise PeerError("bad_proof", "the header must follow the last set change")
    check_certified_untrusted(proof.header, proof.certificate, validators)
    _check_claim_untrusted(proof.header, proof.claim)
    return Verified(
        chain_id=chain_id,
        height=proof.header.height,
        time_ms=proof.header.time_ms,
        block_hash=proof.header.hash(),
        header=proof.header,
        signers=tuple(NodeName(vote.signer) for vote in proof.certificate.signatures),
        validators=validators,
        claim=proof.claim,
    )


def following_set_untrusted(
    change: SetChange, validators: ValidatorSet, *, above: int, chain_id: ChainId
) -> ValidatorSet:
    """Return the set that follows ``validators``, who have certified the change, at a height above the last one's.

    Raises:
        PeerError: ``wrong_chain``, ``bad_certificate`` or ``bad_proof``.
    """
    header = change.header
    if header.chain_id != chain_id:
        raise PeerError("wrong_chain", "a set change of another chain")
    if header.height <= above:
        raise PeerError("bad_proof", "set changes must ascend")
    check_certified_untrusted(header, change.certificate, validators)
    announced = change.validators.hash()
    if announced == header.validators_hash or announced != header.next_validators_hash:
        raise PeerError("bad_proof", f"block {header.height} does not announce the set that the proof names")
    return change.validators


def _check_claim_untrusted(header: Header, claim: Claim) -> None:
    match claim:
        case BlockClaim():
            held = True
        case TransactionClaim(transaction, path):
            held = leaf_is_under(header.transactions_root, transaction.leaf, path)
        case ReceiptClaim(receipt, path):
            held = leaf_is_under(header.receipts_root, receipt_codec.encode(receipt), path)
        case StateClaim(key, value, state_path):
            check_state_proof_untrusted(header.sealed_root, key, value, state_path)
            held = header.sealed_height <= header.height
        case _:
            assert_never(claim)
    if not held:
        raise PeerError("bad_proof", "the path does not lead to the header's root")


_Hex = Annotated[str, msgspec.Meta(pattern=r"^0x(?:[0-9a-f]{2})*\Z")]


class _BlockFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="block"):
    pass


class _TransactionFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="transaction"):
    transaction: _Hex
    path: _Hex


class _ReceiptFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="receipt"):
    receipt: _Hex
    path: _Hex


class _StateFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="state"):
    key: _Hex
    value: _Hex | None
    path: _Hex


_ClaimFile: TypeAlias = _BlockFile | _TransactionFile | _ReceiptFile | _StateFile


class _SetChangeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    header: _Hex
    certificate: _Hex
    validators: _Hex


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    format: Literal["hansa-proof-1"]
    chain_id: _Hex
    set_changes: Annotated[list[_SetChangeFile], msgspec.Meta(max_length=SET_CHANGES_MAX)]
    header: _Hex
    certificate: _Hex
    claim: _ClaimFile


_file_decoder: msgspec.json.Decoder[_File] = msgspec.json.Decoder(_File)


def proof_to_json(proof: Proof) -> dict[str, object]:
    """Return the proof file's JSON object, as the RPC embeds it."""
    return cast(dict[str, object], msgspec.to_builtins(_to_file(proof)))


def encode_proof(proof: Proof) -> bytes:
    """Return the proof file's bytes, indented for people."""
    return msgspec.json.format(msgspec.json.encode(_to_file(proof)), indent=2) + b"\n"


def decode_proof_untrusted(data: bytes) -> Proof:
    """Decode a proof file.

    Raises:
        PeerError: ``too_large`` or ``malformed``.
    """
    if len(data) > PROOF_BYTES_MAX:
        raise PeerError("too_large", f"{len(data)} bytes, a proof file has at most {PROOF_BYTES_MAX}")
    try:
        return _from_file_untrusted(_file_decoder.decode(data))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerError("malformed", str(error)) from None


def proof_from_json_untrusted(document: object) -> Proof:
    """Decode the proof object out of an answer that is parsed already.

    Raises:
        PeerError: ``too_large`` or ``malformed``.
    """
    try:
        return _from_file_untrusted(msgspec.convert(document, _File))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerError("malformed", str(error)) from None


def _to_file(proof: Proof) -> _File:
    return _File(
        format=FORMAT,
        chain_id=_hex(proof.chain_id),
        set_changes=[
            _SetChangeFile(
                header=_hex(header_codec.encode(change.header)),
                certificate=_hex(certificate_codec.encode(change.certificate)),
                validators=_hex(change.validators.encode()),
            )
            for change in proof.set_changes
        ],
        header=_hex(header_codec.encode(proof.header)),
        certificate=_hex(certificate_codec.encode(proof.certificate)),
        claim=_to_claim_file(proof.claim),
    )


def _to_claim_file(claim: Claim) -> _ClaimFile:
    match claim:
        case BlockClaim():
            return _BlockFile()
        case TransactionClaim(transaction, path):
            return _TransactionFile(_hex(transaction.raw), _hex(_list_proof_codec.encode(path)))
        case ReceiptClaim(receipt, path):
            return _ReceiptFile(_hex(receipt_codec.encode(receipt)), _hex(_list_proof_codec.encode(path)))
        case StateClaim(key, value, state_path):
            shown = None if value is None else _hex(value)
            return _StateFile(_hex(key), shown, _hex(state_proof_codec.encode(state_path)))
        case _:
            assert_never(claim)


def _from_file_untrusted(file: _File) -> Proof:
    try:
        return Proof(
            chain_id=ChainId(_bytes(file.chain_id)),
            set_changes=tuple(
                SetChange(
                    header_codec.decode_untrusted(_bytes(change.header)),
                    certificate_codec.decode_untrusted(_bytes(change.certificate)),
                    decode_validators_untrusted(_bytes(change.validators)),
                )
                for change in file.set_changes
            ),
            header=header_codec.decode_untrusted(_bytes(file.header)),
            certificate=certificate_codec.decode_untrusted(_bytes(file.certificate)),
            claim=_from_claim_file_untrusted(file.claim),
        )
    except PeerError as error:
        code = "too_large" if error.code == "too_large" else "malformed"
        raise PeerError(code, error.message) from None


def _from_claim_file_untrusted(claim: _ClaimFile) -> Claim:
    match claim:
        case _BlockFile():
            return BlockClaim()
        case _TransactionFile(transaction, path):
            decoded = decode_transaction_untrusted(_bytes(transaction))
            return TransactionClaim(decoded, _list_proof_codec.decode_untrusted(_bytes(path)))
        case _ReceiptFile(receipt, path):
            return ReceiptClaim(
                receipt_codec.decode_untrusted(_bytes(receipt)), _list_proof_codec.decode_untrusted(_bytes(path))
            )
        case _StateFile(key, value, path):
            held = None if value is None else _bytes(value)
            return StateClaim(_bytes(key), held, state_proof_codec.decode_untrusted(_bytes(path)))
        case _:
            assert_never(claim)


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])
