"""Valid encodings of everything that comes in over a border, by the product's own code; fuzzing starts from them."""

from collections.abc import Iterable
from functools import cache

import msgspec

from consensus.ledger.codec import encode
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.proof import encode_proof
from consensus.ledger.receipt import receipt_codec
from consensus.ledger.transaction import EACH, Call, make_call, sign_transaction
from consensus.ledger.validators import certificate_codec
from consensus.pbft.events import Evidence, EvidenceKind
from consensus.pbft.evidence import view_change_statement, vote_statement
from consensus.pbft.messages import (
    BlockBody,
    Commit,
    Decided,
    FetchBlock,
    Message,
    Prepare,
    PrePrepare,
    Status,
    encode_message,
)
from consensus.pbft.roster import Roster
from consensus.pbft.signing import KeyVerifier
from node.intake import _Batch, _batch_codec
from node.sync import FinalBlock, SyncRequest, SyncResponse, request_codec, response_codec
from tests.ledger.test_proof import BLOCKS, CHANGES, GENESIS, PROOFS, TRANSACTIONS
from tests.node.rpc.support import CONSORTIUM
from tests.node.support import GENESIS_TIME_MS, VALIDITY_MS
from tests.pbft.cluster import CHAIN
from tests.pbft.solo import Solo

SOLO = Solo("a", 4)
BLOCK = SOLO.block(TRANSACTIONS[0].raw, TRANSACTIONS[1].raw)
ROSTER = Roster(SOLO.validators, KeyVerifier(CHAIN))


@cache
def messages() -> list[Message]:
    """Return at least one consensus message of every kind, with valid signatures of a, b, c, d."""
    other = SOLO.block(b"other")
    prepared = SOLO.prepared(BLOCK)
    changes = [SOLO.view_change(name, 1, prepared if name == "b" else None) for name in "bcd"]
    plain = [SOLO.view_change(name, 2) for name in "acd"]
    return [
        SOLO.propose(BLOCK),
        SOLO.propose(other),
        SOLO.propose(BLOCK, 1),
        *(SOLO.prepare(name, BLOCK) for name in "acd"),
        *(SOLO.commit(name, BLOCK) for name in "bcd"),
        *changes,
        *plain,
        SOLO.new_view(1, changes, prepared),
        SOLO.new_view(2, plain),
        Decided(SOLO.certificate(BLOCK)),
        FetchBlock(1, BLOCK.hash),
        BlockBody(BLOCK.record()),
        Status(1, 0, False),
        Status(1, 1, True),
    ]


@cache
def message_samples() -> list[bytes]:
    """Return the consensus messages as bytes."""
    return [encode_message(message) for message in messages()]


@cache
def transaction_samples() -> list[bytes]:
    """Return transactions that a node of ``tests.node.rpc.support`` takes or nearly takes."""
    sign = CONSORTIUM.sign
    transfer = make_call("tokens", "transfer", {"unit": "cny", "to": bytes(20), "amount": 5})
    return [
        sign("user-b", [transfer]).raw,
        sign("user-b", [transfer], sequence=1).raw,
        sign("user-b", [transfer, transfer], mode=EACH, lane=b"second").raw,
        sign("shop", [transfer], lane=bytes(32)).raw,
        sign("bank-a", [make_call("tokens", "define", {"unit": "u", "decimals": 0, "description": "d"})]).raw,
        sign("user-e", [Call("nothing", "no_method", b"\x80")]).raw,
        TRANSACTIONS[0].raw,
    ]


def resigned(body: list[object], name: str = "user-b") -> bytes:
    """Return a transaction around whatever body, with the valid signature of an account."""
    key: PrivateKey = CONSORTIUM.account_keys[name]
    raw = msgspec.msgpack.encode(body)
    return msgspec.msgpack.encode([raw, key.sign(Purpose.TRANSACTION, CONSORTIUM.genesis.chain_id(), raw)])


def signed_calls(calls: list[Call], name: str) -> bytes:
    """Return a transaction of an account that a node takes, whatever its calls ask for."""
    return sign_transaction(
        CONSORTIUM.account_keys[name],
        CONSORTIUM.genesis.chain_id(),
        calls,
        sequence=0,
        lane=b"fuzz",
        mode=EACH,
        valid_until_ms=GENESIS_TIME_MS + VALIDITY_MS,
    ).raw


@cache
def ledger_samples() -> list[bytes]:
    """Return blocks, headers, certificates, sets, receipts and free values."""
    receipts = [
        claim.receipt for proof in PROOFS.values() if (claim := proof.claim).__class__.__name__ == "ReceiptClaim"
    ]
    return [
        *(block.encode() for block in BLOCKS[-2:]),
        *(certificate_codec.encode(change.certificate) for change in CHANGES),
        *(change.validators.encode() for change in CHANGES),
        *(receipt_codec.encode(receipt) for receipt in receipts),
        encode({"unit": "cny", "to": bytes(20), "amount": -5, "memo": None, "many": [1, True, "é", {"a": [[]]}]}),
        encode([]),
    ]


@cache
def sync_request_samples() -> list[bytes]:
    """Return requests for final blocks."""
    pairs = [(1, 1), (0, 0), (2**63 - 1, 2**63 - 1), (7, 3)]
    return [request_codec.encode(SyncRequest(number, height)) for number, height in pairs]


@cache
def sync_response_samples() -> list[bytes]:
    """Return answers with final blocks."""
    final = FinalBlock(BLOCK.encode(), certificate_codec.encode(SOLO.certificate(BLOCK)))
    return [response_codec.encode(SyncResponse(1, blocks)) for blocks in ([], [final], [final, final])]


@cache
def batch_samples() -> list[bytes]:
    """Return the payloads of frames of transactions."""
    raws = transaction_samples()
    return [_batch_codec.encode(_Batch(part)) for part in ([], raws[:1], raws, [b"", b"\x90"])]


@cache
def proof_samples() -> list[bytes]:
    """Return proof files of each kind of claim."""
    return [encode_proof(proof) for proof in PROOFS.values()]


@cache
def genesis_samples() -> list[bytes]:
    """Return genesis files."""
    return [GENESIS.to_json(), CONSORTIUM.genesis.to_json()]


def evidence() -> Iterable[tuple[Evidence, list[bytes]]]:
    """Yield valid evidence with the statements in it."""
    one, two = SOLO.prepare("c", BLOCK), SOLO.prepare("c", SOLO.block(b"other"))
    first, second = vote_statement(one), vote_statement(two)
    yield Evidence(EvidenceKind.DOUBLE_PREPARE, "c", 1, 0, first, second), [first, second]  # type: ignore[arg-type]
    left = view_change_statement(SOLO.view_change("d", 1).vote)
    right = view_change_statement(SOLO.view_change("d", 1, SOLO.prepared(BLOCK)).vote)
    yield Evidence(EvidenceKind.DOUBLE_VIEW_CHANGE, "d", 1, 1, left, right), [left, right]  # type: ignore[arg-type]


RPC_SAMPLES = [
    b'{"jsonrpc":"2.0","id":1,"method":"chain_status"}',
    b'{"jsonrpc":"2.0","id":"a","method":"chain_getBlock","params":{"height":1,"transactions":true}}',
    b'{"jsonrpc":"2.0","method":"state_get","params":["contracts/tokens"]}',
    b'[{"jsonrpc":"2.0","id":1,"method":"chain_status"},{"jsonrpc":"2.0","id":2,"method":"tx_wait","params":{"ids":[]}}]',
]


def votes(kind: type[Prepare] | type[Commit]) -> list[bytes]:
    """Return the samples of one kind of vote."""
    return [encode_message(message) for message in messages() if isinstance(message, kind)]


def proposals() -> list[bytes]:
    """Return the samples of proposals."""
    return [encode_message(message) for message in messages() if isinstance(message, PrePrepare)]
