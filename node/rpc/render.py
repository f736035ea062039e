"""Ledger objects as JSON: bytes as 0x-hex, heights and counts as numbers, times in ms. Pure.

Inside contract values (arguments, results, events, state) every integer is a decimal string, because
any of them may be an amount and none says so; ``raw`` beside a value is its canonical encoding.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import cast

from consensus.ledger.block import Header
from consensus.ledger.codec import Value, decode, decode_untrusted
from consensus.ledger.errors import PeerError
from consensus.ledger.proof import Proof, proof_to_json
from consensus.ledger.receipt import OK, Event, Receipt
from consensus.ledger.transaction import ATOMIC, TRANSACTION_BYTES_MAX, Transaction
from consensus.ledger.validators import Certificate, ValidatorSet
from contracts.runtime.accounts import AccountRecord
from contracts.runtime.lanes import LaneRecord
from node.rpc.backend import Committed
from node.rpc.protocol import Json


def hex_of(data: bytes) -> str:
    """Return bytes as 0x-hex in lower case."""
    return "0x" + data.hex()


def hex_untrusted(text: str) -> bytes:
    """Return the bytes of 0x-hex text.

    Raises:
        PeerError: ``invalid_params``.
    """
    try:
        if not text.startswith("0x"):
            raise ValueError
        return binascii.unhexlify(text[2:])  # unlike bytes.fromhex it lets no white space pass
    except ValueError:
        raise PeerError("invalid_params", "bytes are written as 0x and an even number of hex digits") from None


def transaction_bytes_untrusted(text: str) -> bytes:
    """Return a raw transaction out of 0x-hex or standard base64.

    Raises:
        PeerError: ``invalid_params`` or ``too_large``.
    """
    if len(text) > 2 * TRANSACTION_BYTES_MAX + 2:
        raise PeerError("too_large", f"a transaction has at most {TRANSACTION_BYTES_MAX} bytes")
    if text.startswith("0x"):  # no encoding of a transaction begins with the bytes that 0x means in base64
        return hex_untrusted(text)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise PeerError("invalid_params", "a raw transaction is 0x-hex or base64") from None


def value_json(value: Value) -> Json:
    """Return a contract value as JSON, see the module's note on integers."""
    match value:
        case bytes():
            return hex_of(value)
        case bool() | str() | None:
            return value
        case int():
            return str(value)
        case list():
            return [value_json(item) for item in value]
        case dict():
            return {key: value_json(item) for key, item in value.items()}


def encoded_json(data: bytes) -> Json:
    """Return canonical bytes that a contract or the ledger made as JSON."""
    return value_json(decode(data))


def header_json(header: Header, block_hash: bytes) -> dict[str, Json]:
    """Return a header with its hash."""
    return {
        "hash": hex_of(block_hash),
        "version": header.version,
        "chainId": hex_of(header.chain_id),
        "height": header.height,
        "parentHash": hex_of(header.parent_hash),
        "timeMs": header.time_ms,
        "uptimeMs": header.uptime_ms,
        "proposer": header.proposer,
        "transactionsRoot": hex_of(header.transactions_root),
        "receiptsRoot": hex_of(header.receipts_root),
        "writesRoot": hex_of(header.writes_root),
        "validatorsHash": hex_of(header.validators_hash),
        "nextValidatorsHash": hex_of(header.next_validators_hash),
        "sealedHeight": header.sealed_height,
        "sealedRoot": hex_of(header.sealed_root),
    }


def block_json(committed: Committed) -> dict[str, Json]:
    """Return a block's header, size and the ids of its transactions in order."""
    block = committed.block
    return {
        **header_json(block.header, block.hash),
        "transactionCount": len(block.transactions),
        "transactionIds": [hex_of(item) for item in committed.transaction_ids],
        "failedCount": sum(receipt.status != OK for receipt in committed.receipts),
        "receiptCount": len(committed.receipts),
        "bytes": sum(map(len, block.transactions)),
        "signers": [] if committed.certificate is None else [vote.signer for vote in committed.certificate.signatures],
    }


def certificate_json(certificate: Certificate) -> dict[str, Json]:
    """Return a certificate with its signatures."""
    return {
        "height": certificate.height,
        "view": certificate.view,
        "blockHash": hex_of(certificate.block_hash),
        "signatures": [{"signer": vote.signer, "signature": hex_of(vote.signature)} for vote in certificate.signatures],
    }


def transaction_json(transaction: Transaction) -> dict[str, Json]:
    """Return a transaction with its calls decoded; arguments that do not decode are null beside their raw bytes."""
    body = transaction.body
    return {
        "id": hex_of(transaction.id),
        "sender": hex_of(body.sender),
        "lane": hex_of(body.lane),
        "sequence": body.sequence,
        "validUntilMs": body.valid_until_ms,
        "mode": "atomic" if body.mode == ATOMIC else "each",
        "calls": [
            {"contract": call.contract, "method": call.method, "arguments": arguments_json(call.arguments)}
            for call in body.calls
        ],
        "signature": hex_of(transaction.signature),
        "bytes": len(transaction.raw),
    }


def arguments_json(arguments: bytes) -> Json:
    """Return a call's arguments by name, or their raw hex when a client sent what is no canonical map."""
    try:
        return value_json(decode_untrusted(arguments))
    except PeerError:
        return hex_of(arguments)


def receipt_json(receipt: Receipt) -> dict[str, Json]:
    """Return a receipt with decoded values and events."""
    return {
        "transactionId": hex_of(receipt.transaction_id),
        "callIndex": receipt.call_index,
        "status": "ok" if receipt.status == OK else "failed",
        "code": receipt.code,
        "values": [encoded_json(value) for value in receipt.values],
        "events": [event_json(event) for event in receipt.events],
        "steps": receipt.steps,
    }


def event_json(event: Event) -> dict[str, Json]:
    """Return an event's name and data."""
    return {"contract": event.contract, "name": event.name, "data": encoded_json(event.data)}


def account_json(address: bytes, record: AccountRecord) -> dict[str, Json]:
    """Return an account."""
    return {
        "address": hex_of(address),
        "name": record.name,
        "organisation": record.organisation,
        "publicKey": hex_of(record.public_key),
        "roles": list(record.roles),
        "status": record.status,
    }


def lane_json(lane: bytes, record: LaneRecord | None) -> dict[str, Json]:
    """Return what the chain knows of a lane; ``next`` is the number that the next transaction must have."""
    if record is None:
        return {"lane": hex_of(lane), "next": 0, "lastId": None, "status": None, "height": None}
    return {
        "lane": hex_of(lane),
        "next": record.next,
        "lastId": hex_of(record.last_id),
        "status": record.status,
        "height": record.height,
    }


def proof_json(proof: Proof) -> Json:
    """Return a proof as its file's content."""
    return cast(Json, proof_to_json(proof))


def validators_json(validators: ValidatorSet) -> list[Json]:
    """Return a validator set in its order."""
    return [
        {"name": item.name, "organisation": item.organisation, "voteKey": hex_of(item.vote_key)}
        for item in validators.validators
    ]


def value_of_untrusted(kind: str, given: Json) -> Value:
    """Return a JSON argument as a contract value, by its type's name as ``contract_describe`` spells it.

    Integers may come as numbers or decimal strings, bytes and accounts as 0x-hex. Under ``value``, and
    wherever JSON and type do not fit, the JSON value stays as it is; the contract's own check says the rest.

    Raises:
        PeerError: ``invalid_params``.
    """
    kind = kind.removesuffix("?")
    match given:
        case None | bool() | int():
            return given
        case str():
            if kind in ("int", "amount"):
                return _decimal_untrusted(given)
            return hex_untrusted(given) if kind in ("bytes", "account") else given
        case list():
            inner = kind[5:-1] if kind.startswith("list<") else "value"
            return [value_of_untrusted(inner, item) for item in given]
        case dict():
            inner = kind[4:-1] if kind.startswith("map<") else "value"
            return {key: value_of_untrusted(inner, item) for key, item in given.items()}


def arguments_of_untrusted(kinds: Mapping[str, str], given: Mapping[str, Json]) -> dict[str, Value]:
    """Return JSON arguments as contract values, by the declared types' names.

    Raises:
        PeerError: ``invalid_params``.
    """
    return {name: value_of_untrusted(kinds.get(name, ""), item) for name, item in given.items()}


def cursor_text(height: int, index: int) -> str:
    """Return the cursor of a place."""
    return f"{height}:{index}"


def cursor_of(text: str) -> tuple[int, int]:
    """Return the place of a cursor, whose shape the parameters' schema has checked."""
    height, _, index = text.partition(":")
    return int(height), int(index)


def _decimal_untrusted(text: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        raise PeerError("invalid_params", f"{text[:40]!r} is no decimal integer")
    return int(text)
