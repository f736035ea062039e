"""Proof files: whole chains of set changes, each kind of claim, and no byte that can be changed."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from consensus.ledger.block import Block, Header
from consensus.ledger.errors import PeerError
from consensus.ledger.merkle import ListProof
from consensus.ledger.proof import (
    PROOF_BYTES_MAX,
    SET_CHANGES_MAX,
    BlockClaim,
    Claim,
    Proof,
    ReceiptClaim,
    SetChange,
    StateClaim,
    TransactionClaim,
    decode_proof_untrusted,
    encode_proof,
    proof_from_json_untrusted,
    proof_to_json,
    prove_receipt,
    prove_transaction,
    verify_proof_untrusted,
)
from consensus.ledger.state_tree import StateProof, prove, update
from consensus.ledger.transaction import decode_transaction_untrusted
from tests.ledger.builders import (
    Keys,
    certify,
    make_block,
    make_genesis,
    make_genesis_block,
    make_keys,
    make_receipt,
    make_set,
    make_transaction,
    refusal,
)

FIRST = make_keys(4)
SECOND = {**FIRST, **make_keys(3, first=20)}
THIRD = make_keys(4, first=21)
GENESIS = make_genesis(FIRST)
CHAIN_ID = GENESIS.chain_id()

STATE = {b"tokens/balance/%d" % number: b"\xcd\x01\x2c" for number in range(30)}
TREE = update({}, STATE)
NODES = {path: blob for path, blob in TREE.nodes.items() if blob is not None}

TRANSACTIONS = [make_transaction(number, chain_id=CHAIN_ID) for number in range(5)]
RECEIPTS = [make_receipt(transaction) for transaction in TRANSACTIONS]


def grow() -> tuple[list[Block], list[Keys]]:
    """Blocks 1 to 5 and who certifies each: 2 hands over to SECOND, 4 to THIRD; 5 has content and a seal."""
    parent = make_genesis_block(CHAIN_ID, make_set(FIRST)).header
    plan = [(FIRST, FIRST), (FIRST, SECOND), (SECOND, SECOND), (SECOND, THIRD), (THIRD, THIRD)]
    blocks: list[Block] = []
    for height, (keys, following) in enumerate(plan, start=1):
        last = height == len(plan)
        block = make_block(
            parent,
            make_set(keys),
            following=make_set(following),
            transactions=TRANSACTIONS if last else (),
            receipts=RECEIPTS if last else (),
            sealed_root=TREE.root if last else None,
        )
        blocks.append(block)
        parent = block.header
    return blocks, [keys for keys, _ in plan]


BLOCKS, SIGNERS = grow()
CHANGES = (
    SetChange(BLOCKS[1].header, certify(BLOCKS[1].header, FIRST), make_set(SECOND)),
    SetChange(BLOCKS[3].header, certify(BLOCKS[3].header, SECOND, view=2), make_set(THIRD)),
)


def proof_of(height: int, claim: Claim, changes: tuple[SetChange, ...] | None = None) -> Proof:
    header = BLOCKS[height - 1].header
    if changes is None:
        changes = tuple(change for change in CHANGES if change.header.height < height)
    return Proof(CHAIN_ID, changes, header, certify(header, SIGNERS[height - 1]), claim)


KEY, ABSENT = b"tokens/balance/7", b"lanes/00/00"
CLAIMS: dict[str, Claim] = {
    "block": BlockClaim(),
    "transaction": prove_transaction(TRANSACTIONS, 3),
    "receipt": prove_receipt(RECEIPTS, 4),
    "value": StateClaim(KEY, STATE[KEY], prove(NODES, KEY)),
    "absence": StateClaim(ABSENT, None, prove(NODES, ABSENT)),
}
PROOFS = {name: proof_of(5, claim) for name, claim in CLAIMS.items()}


def verify(proof: Proof) -> str:
    return refusal(verify_proof_untrusted, proof, GENESIS)


@pytest.mark.parametrize("name", PROOFS)
def test_what_is_true_is_proven(name: str) -> None:
    proof = PROOFS[name]
    again = decode_proof_untrusted(encode_proof(proof))
    assert again == proof == proof_from_json_untrusted(json.loads(json.dumps(proof_to_json(proof))))
    verified = verify_proof_untrusted(again, GENESIS)
    header = BLOCKS[4].header
    assert (verified.chain_id, verified.height, verified.time_ms) == (CHAIN_ID, 5, header.time_ms)
    assert (verified.block_hash, verified.header, verified.claim) == (BLOCKS[4].hash, header, CLAIMS[name])
    assert verified.validators == make_set(THIRD)
    assert verified.signers == make_set(THIRD).names[:3]


@pytest.mark.parametrize("height", range(1, 6))
def test_every_height_is_provable_with_the_set_changes_below_it(height: int) -> None:
    assert verify_proof_untrusted(proof_of(height, BlockClaim()), GENESIS).height == height


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path, value


def replaced(value: Any, path: tuple[Any, ...], leaf: Any) -> Any:
    if not path:
        return leaf
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = replaced(value[path[0]], path[1:], leaf)
    return copied


@pytest.mark.parametrize("name", PROOFS)
def test_no_byte_of_a_proof_can_be_changed(name: str) -> None:
    document = proof_to_json(PROOFS[name])
    tried = 0
    for path, text in leaves(document):
        if text is None:
            continue
        step = max(1, len(text) // 60)
        for place in range(len(text) - 1, 1, -step):
            digit = "0" if text[place] != "0" else "1"
            bad = replaced(document, path, text[:place] + digit + text[place + 1 :])
            code = refusal(proof_from_json_untrusted, bad) or verify(proof_from_json_untrusted(bad))
            tried += 1
            if (name, path[-1]) == ("absence", "key") and not code:
                continue  # one proof shows the absence of every key of its place
            assert code in {"malformed", "bad_certificate", "bad_proof", "wrong_chain"}, path
    assert tried > 300


@pytest.mark.parametrize("name", PROOFS)
def test_fields_left_out_added_or_of_another_type(name: str) -> None:
    document = proof_to_json(PROOFS[name])
    assert isinstance(document["claim"], dict)
    for path, right in leaves(document):
        for wrong in (1, 1.5, True, [], {}, "", "0x0", "0xGG", "0xAB", "00", f"{right}\n", "0x" + "00" * 3_000):
            bad = replaced(document, path, wrong)
            code = refusal(proof_from_json_untrusted, bad) or verify(proof_from_json_untrusted(bad))
            assert code in {"malformed", "too_large", "bad_proof", "wrong_chain"}, (path, wrong)
    for holder in (document, document["claim"]):
        for field in list(holder):
            kept = holder.pop(field)
            assert refusal(proof_from_json_untrusted, document) == "malformed", field
            holder[field] = kept
        holder["more"] = "0x"
        assert refusal(proof_from_json_untrusted, document) == "malformed"
        del holder["more"]


def test_r62_the_header_needs_a_quorum_of_its_own_set() -> None:
    header = BLOCKS[4].header
    for keys, count in [(THIRD, 2), (FIRST, 3), (SECOND, 5), (make_keys(4, first=70), 3)]:
        proof = dataclasses.replace(PROOFS["block"], certificate=certify(header, keys, count=count))
        assert verify(proof) == "bad_certificate"
    other = dataclasses.replace(PROOFS["block"], certificate=certify(BLOCKS[0].header, THIRD))
    assert verify(other) == "bad_certificate"


def test_no_set_change_can_be_left_out_turned_or_repeated() -> None:
    one, two = CHANGES
    for changes, code in [
        ((), "bad_certificate"),
        ((one,), "bad_certificate"),
        ((two,), "bad_certificate"),
        ((two, one), "bad_certificate"),
        ((one, one, two), "bad_proof"),
        ((one, two, two), "bad_proof"),
    ]:
        assert verify(proof_of(5, BlockClaim(), changes)) == code
    assert verify(proof_of(4, BlockClaim(), CHANGES)) == "bad_proof"
    assert verify(proof_of(3, BlockClaim(), CHANGES)) == "bad_proof"


def test_a_set_change_names_the_set_that_its_header_announces() -> None:
    one, two = CHANGES
    for bad in [
        dataclasses.replace(one, validators=make_set(THIRD)),
        dataclasses.replace(one, validators=make_set(FIRST)),
        SetChange(BLOCKS[0].header, certify(BLOCKS[0].header, FIRST), make_set(FIRST)),
    ]:
        assert verify(proof_of(5, BlockClaim(), (bad, two))) == "bad_proof"
    usurped = dataclasses.replace(one, certificate=certify(one.header, SECOND))
    assert verify(proof_of(5, BlockClaim(), (usurped, two))) == "bad_certificate"


def test_r84_a_proof_of_another_chain() -> None:
    other = msgspec.structs.replace(GENESIS, time_ms=GENESIS.time_ms + 1)
    for proof in PROOFS.values():
        assert refusal(verify_proof_untrusted, proof, other) == "wrong_chain"
        renamed = dataclasses.replace(proof, chain_id=other.chain_id())
        assert refusal(verify_proof_untrusted, renamed, other) == "wrong_chain"
    first = proof_of(1, BlockClaim())
    assert (
        refusal(verify_proof_untrusted, dataclasses.replace(first, chain_id=other.chain_id()), other) == "wrong_chain"
    )
    foreign: Header = msgspec.structs.replace(CHANGES[0].header, chain_id=bytes(32))
    changed = dataclasses.replace(CHANGES[0], header=foreign)
    assert verify(proof_of(5, BlockClaim(), (changed, CHANGES[1]))) == "wrong_chain"


def test_genesis_itself_is_not_provable() -> None:
    header = make_genesis_block(CHAIN_ID, make_set(FIRST)).header
    proof = Proof(CHAIN_ID, (), header, certify(header, FIRST), BlockClaim())
    assert verify(proof) in {"bad_certificate", "bad_proof"}


def test_r65_claims_hold_for_their_own_content_place_and_root() -> None:
    stranger = make_transaction(99, chain_id=CHAIN_ID)
    path = prove_transaction(TRANSACTIONS, 3).path
    forged = decode_transaction_untrusted(
        TRANSACTIONS[3].raw[: -len(TRANSACTIONS[3].signature)] + TRANSACTIONS[2].signature
    )
    wrong: list[Claim] = [
        TransactionClaim(stranger, path),
        TransactionClaim(forged, path),
        TransactionClaim(TRANSACTIONS[2], path),
        TransactionClaim(TRANSACTIONS[3], ListProof(2, path.count, path.path)),
        ReceiptClaim(RECEIPTS[3], prove_receipt(RECEIPTS, 4).path),
        ReceiptClaim(msgspec.structs.replace(RECEIPTS[4], status=1), prove_receipt(RECEIPTS, 4).path),
        StateClaim(KEY, b"\x01", prove(NODES, KEY)),
        StateClaim(KEY, None, prove(NODES, KEY)),
        StateClaim(ABSENT, b"", prove(NODES, ABSENT)),
        StateClaim(b"tokens/balance/8", None, prove(NODES, ABSENT)),
        StateClaim(KEY, None, StateProof([], b"")),
    ]
    for claim in wrong:
        assert verify(proof_of(5, claim)) == "bad_proof"
    assert verify(proof_of(3, CLAIMS["value"])) == "bad_proof", "the tree was sealed later"


def test_a_claim_does_not_pass_as_one_of_another_kind() -> None:
    document = proof_to_json(PROOFS["transaction"])
    claim = dict(document["claim"])  # type: ignore[call-overload]
    as_receipt = {"kind": "receipt", "receipt": claim["transaction"], "path": claim["path"]}
    for bad in (
        as_receipt,
        {**claim, "kind": "receipt"},
        {**claim, "kind": "other"},
        {"kind": "transaction"},
        None,
        [],
    ):
        assert refusal(proof_from_json_untrusted, {**document, "claim": bad}) == "malformed"


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"null", b"[" * 50_000, b"\xff", b'{"format":"hansa-proof-2"}', bytes(100)]
)
def test_bytes_that_are_no_proof(data: bytes) -> None:
    assert refusal(decode_proof_untrusted, data) == "malformed"


def test_proofs_are_bounded() -> None:
    assert refusal(decode_proof_untrusted, b" " * (PROOF_BYTES_MAX + 1)) == "too_large"
    document = proof_to_json(PROOFS["block"])
    changes = document["setChanges"]
    assert isinstance(changes, list)
    document["setChanges"] = changes[:1] * (SET_CHANGES_MAX + 1)
    with pytest.raises(PeerError) as refused:
        proof_from_json_untrusted(document)
    assert refused.value.code == "malformed"
