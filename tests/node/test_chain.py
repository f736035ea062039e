"""The chain above its store: what it builds it accepts, what is altered it refuses, what it stored it finds again."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from consensus.ledger.block import Block, Header, transactions_root
from consensus.ledger.errors import InvariantError, LocalError, PeerError, StorageError
from consensus.ledger.proof import decode_proof_untrusted, encode_proof, verify_proof_untrusted
from consensus.ledger.state_tree import SEAL_INTERVAL_MS
from consensus.ledger.transaction import Transaction, make_call
from consensus.ledger.validators import ValidatorSet
from node.audit import AuditFailure, StoreSource, verify_chain
from node.chain import Chain
from node.proofs import ProofMaker
from node.state import UNSTORED_SEALS_MAX
from node.storage import layout
from node.storage.leveldb import LevelStore
from tests.node.support import Consortium, extend, make_consortium, make_executor

CONSORTIUM = make_consortium()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LevelStore]:
    store = LevelStore.open(tmp_path / "data")
    yield store
    store.close()


@pytest.fixture
def chain(store: LevelStore) -> Chain:
    return Chain(store, CONSORTIUM.genesis, make_executor())


def address(name: str) -> bytes:
    return CONSORTIUM.account_keys[name].public.address


def issue(consortium: Consortium = CONSORTIUM) -> list[Transaction]:
    """The unit ``cny``, with 1,000 of it in the hands of user-b."""
    define = make_call("tokens", "define", {"unit": "cny", "decimals": 2, "description": "yuan"})
    give = make_call("tokens", "issue", {"unit": "cny", "to": address("user-b"), "amount": 1_000})
    return [consortium.sign("bank-a", [define, give])]


def transfer(sequence: int, amount: int = 1) -> Transaction:
    call = make_call("tokens", "transfer", {"unit": "cny", "to": address("user-e"), "amount": amount})
    return CONSORTIUM.sign("user-b", [call], sequence=sequence)


def test_a_new_store_begins_with_the_sealed_genesis(chain: Chain) -> None:
    header = chain.head.header
    assert (header.height, header.sealed_height) == (0, 0)
    assert chain.reader.block(0) == Block.of(header, [])


def test_every_replica_gets_the_same_block(chain: Chain, tmp_path: Path) -> None:
    other_store = LevelStore.open(tmp_path / "other")
    other = Chain(other_store, CONSORTIUM.genesis, make_executor())
    candidate, refused = chain.build("node-0", chain.head.header.time_ms + 5, issue())
    assert not refused
    assert other.check_untrusted(candidate.block).block.hash == candidate.block.hash
    other_store.close()


@pytest.mark.parametrize("field", [field for field in Header.__struct_fields__ if field != "version"])
def test_r41_a_proposal_with_any_header_field_altered_is_refused(chain: Chain, store: LevelStore, field: str) -> None:
    extend(chain, store, CONSORTIUM, issue())
    block = chain.build("node-0", chain.head.header.time_ms + 5, [transfer(0)])[0].block
    value = getattr(block.header, field)
    altered = value + 1 if isinstance(value, int) else "node-9" if isinstance(value, str) else bytes(32)
    header = msgspec.structs.replace(block.header, **{field: altered})
    with pytest.raises(PeerError):
        Chain(store, CONSORTIUM.genesis, make_executor()).check_untrusted(Block.of(header, block.transactions))


def test_r09_another_body_under_a_known_header_is_refused(chain: Chain, store: LevelStore) -> None:
    extend(chain, store, CONSORTIUM, issue())
    block = chain.build("node-0", chain.head.header.time_ms + 5, [transfer(0)])[0].block
    with pytest.raises(PeerError) as refusal:
        chain.check_untrusted(Block.of(block.header, [transfer(0, amount=2).raw]))
    assert refusal.value.code == "bad_header"


def test_a_forged_signature_in_a_block_is_refused(chain: Chain, store: LevelStore) -> None:
    extend(chain, store, CONSORTIUM, issue())
    good = transfer(0)
    forged = good.raw[:-1] + bytes([good.raw[-1] ^ 1])
    transaction = chain.verifier.decode_untrusted(forged)
    block = chain.build("node-0", chain.head.header.time_ms + 5, [good])[0].block
    header = msgspec.structs.replace(block.header, transactions_root=transactions_root([transaction.leaf]))
    with pytest.raises(PeerError) as refusal:
        chain.check_untrusted(Block.of(header, [forged]))
    assert refusal.value.code == "bad_signature"


def test_r45_the_same_transaction_twice_makes_a_block_invalid(chain: Chain, store: LevelStore) -> None:
    extend(chain, store, CONSORTIUM, issue())
    candidate, refused = chain.build("node-0", chain.head.header.time_ms + 5, [transfer(0), transfer(0)])
    assert [error.code for _, error in refused] == ["lane_used"]
    assert len(candidate.block.transactions) == 1
    assert doubled(chain, candidate.block, transfer(0), transfer(0)) == "lane_used"
    extend(chain, store, CONSORTIUM, [transfer(0)])
    assert chain.build("node-0", chain.head.header.time_ms + 5, [transfer(0)])[1][0][1].code == "lane_used"
    other = chain.build("node-0", chain.head.header.time_ms + 5, [transfer(1)])[0].block
    assert doubled(chain, other, transfer(0), transfer(1)) == "lane_used"


def doubled(chain: Chain, block: Block, *transactions: Transaction) -> str:
    """Return why a liar's block of these transactions is refused; its header fits its body."""
    root = transactions_root([transaction.leaf for transaction in transactions])
    header = msgspec.structs.replace(block.header, transactions_root=root)
    with pytest.raises(PeerError) as refusal:
        chain.check_untrusted(Block.of(header, [transaction.raw for transaction in transactions]))
    return refusal.value.code


def test_receipts_and_history_are_found_again_after_opening(chain: Chain, store: LevelStore) -> None:
    extend(chain, store, CONSORTIUM, issue())
    sent = [transfer(number) for number in range(3)]
    extend(chain, store, CONSORTIUM, sent)
    again = Chain(store, CONSORTIUM.genesis, make_executor())
    assert again.head == chain.head
    assert again.state.tail == chain.state.tail
    location = again.reader.locate(sent[1].id)
    assert location is not None
    assert (location.height, location.index) == (2, 1)
    assert [receipt.transaction_id for receipt in again.reader.receipts_of(location)] == [sent[1].id]
    entries = again.reader.history(address("user-b"), before=None, limit=2)
    assert [entry.transaction_id for entry in entries] == [sent[2].id, sent[1].id]
    older = again.reader.history(address("user-b"), before=(2, 1), limit=5)
    assert [entry.transaction_id for entry in older] == [sent[0].id]


def test_a_quiet_block_seals_and_values_are_proven_from_genesis_alone(chain: Chain, store: LevelStore) -> None:
    extend(chain, store, CONSORTIUM, issue())
    assert chain.head.header.sealed_height == 0
    extend(chain, store, CONSORTIUM, [])
    assert chain.head.header.sealed_height == 2
    key = f"tokens/balance/cny/{address('user-b').hex()}".encode()
    proof = decode_proof_untrusted(encode_proof(ProofMaker(chain).state(key)))
    assert verify_proof_untrusted(proof, CONSORTIUM.genesis).claim == proof.claim
    absent = ProofMaker(chain).state(b"tokens/balance/cny/nobody")
    verify_proof_untrusted(absent, CONSORTIUM.genesis)


def test_an_unsealed_value_is_newer_than_its_proof(chain: Chain, store: LevelStore) -> None:
    extend(chain, store, CONSORTIUM, issue())
    extend(chain, store, CONSORTIUM, [])
    extend(chain, store, CONSORTIUM, [transfer(0, amount=400)])
    key = f"tokens/balance/cny/{address('user-b').hex()}".encode()
    assert chain.state.get(key) != chain.state.sealed.get(key)
    verify_proof_untrusted(ProofMaker(chain).state(key), CONSORTIUM.genesis)


def test_seals_that_the_store_was_not_given_are_made_again_at_the_start(chain: Chain, store: LevelStore) -> None:
    extend(chain, store, CONSORTIUM, issue())
    stored = dict(store.scan(layout.STATE))
    for number in range(UNSTORED_SEALS_MAX):
        extend(chain, store, CONSORTIUM, [transfer(number)], step_ms=SEAL_INTERVAL_MS)
        assert chain.head.header.sealed_height == chain.head.header.height
    assert dict(store.scan(layout.STATE)) == stored
    again = Chain(store, CONSORTIUM.genesis, make_executor())
    assert again.head == chain.head
    key = f"tokens/balance/cny/{address('user-b').hex()}".encode()
    assert again.state.sealed.get(key) == chain.state.sealed.get(key) != stored.get(key)
    verify_proof_untrusted(ProofMaker(again).state(key), CONSORTIUM.genesis)
    extend(again, store, CONSORTIUM, [transfer(UNSTORED_SEALS_MAX)], step_ms=SEAL_INTERVAL_MS)
    assert store.get(layout.META_STATE) == layout.number(again.head.header.height)
    assert store.get(layout.STATE + key) == again.state.get(key)
    assert verify_chain(StoreSource(store), CONSORTIUM.genesis, make_executor()).block_hash == again.head.hash


def test_a_seal_made_again_must_have_the_root_of_its_block(chain: Chain, store: LevelStore) -> None:
    for number, transactions in enumerate((issue(), [transfer(0)], [transfer(1)])):
        extend(chain, store, CONSORTIUM, transactions, step_ms=SEAL_INTERVAL_MS * number + 1)
    below_the_root = [(key, node) for key, node in store.scan(layout.TREE) if len(key) > 1]
    # The last byte is one of a child's hashes.
    store.write([(key, node[:-1] + bytes([node[-1] ^ 1])) for key, node in below_the_root])
    with pytest.raises(StorageError, match="the state tree is not that of block 2"):
        Chain(store, CONSORTIUM.genesis, make_executor())


@pytest.mark.parametrize(
    "key",
    [
        layout.at_height(layout.CERTIFICATE, 3),
        layout.at_height(layout.WRITES, 2),
        layout.at_height(layout.BLOCK, 2),
        layout.at_height(layout.BLOCK, 3),
        layout.at_height(layout.VALIDATORS, 1),
        layout.TREE,
    ],
)
def test_r51_a_record_of_another_place_is_found_at_the_start(chain: Chain, store: LevelStore, key: bytes) -> None:
    """Each is whole, and what another block, set or tree has there."""
    for transactions in (issue(), [transfer(0)], [transfer(1)]):
        extend(chain, store, CONSORTIUM, transactions)
    other_set = ValidatorSet(CONSORTIUM.genesis.validator_set().validators[:3])
    _, other_node = list(store.scan(layout.TREE))[-1]
    others = {layout.VALIDATORS: other_set.encode(), layout.TREE: other_node}
    value = others.get(key[:1]) or store.get(layout.at_height(key[:1], 1))
    assert value is not None
    assert value != store.get(key)
    Chain(store, CONSORTIUM.genesis, make_executor())
    store.write([(key, value)])
    with pytest.raises(StorageError) as caught:
        Chain(store, CONSORTIUM.genesis, make_executor())
    assert caught.value.code in ("corrupted", "corrupt_tree")


def test_data_of_another_chain_are_refused(chain: Chain, store: LevelStore) -> None:
    with pytest.raises(LocalError) as refusal:
        Chain(store, make_consortium(validators=5).genesis, make_executor())
    assert refusal.value.code == "wrong_chain"


def test_r53_a_block_is_never_applied_twice(chain: Chain, store: LevelStore) -> None:
    candidate = extend(chain, store, CONSORTIUM, issue())
    with pytest.raises(InvariantError):
        chain.commit_batch(candidate, CONSORTIUM.certify(candidate))


def grow(chain: Chain, store: LevelStore, blocks: int) -> None:
    extend(chain, store, CONSORTIUM, issue())
    for number in range(blocks):
        extend(chain, store, CONSORTIUM, [transfer(number)], step_ms=400)
    extend(chain, store, CONSORTIUM, [])


def test_the_audit_proves_a_chain_from_genesis(chain: Chain, store: LevelStore) -> None:
    grow(chain, store, blocks=6)
    result = verify_chain(StoreSource(store), CONSORTIUM.genesis, make_executor())
    assert (result.height, result.block_hash, result.transactions) == (8, chain.head.hash, 7)


KINDS = [
    layout.BLOCK,
    layout.CERTIFICATE,
    layout.RECEIPTS,
    layout.WRITES,
    layout.STATE,
    layout.TREE,
    layout.TRANSACTION,
    layout.HISTORY,
    layout.BLOCK_INDEX,
    layout.VALIDATORS,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.decode())
@pytest.mark.parametrize("place", [0, -1])
def test_the_audit_finds_one_flipped_bit_in_every_kind_of_record(
    chain: Chain, store: LevelStore, kind: bytes, place: int
) -> None:
    grow(chain, store, blocks=3)
    records = [(key, value) for key, value in store.scan(kind) if value]
    key, value = records[len(records) // 2]
    flipped = bytearray(value)
    flipped[place] ^= 1
    store.write([(key, bytes(flipped))])
    with pytest.raises(AuditFailure) as failure:
        verify_chain(StoreSource(store), CONSORTIUM.genesis, make_executor())
    if kind in (layout.BLOCK, layout.CERTIFICATE, layout.RECEIPTS, layout.WRITES):
        assert failure.value.height == int.from_bytes(key[1:9], "big")


def test_the_audit_finds_a_record_that_is_missing_or_too_many(chain: Chain, store: LevelStore) -> None:
    grow(chain, store, blocks=1)
    key, value = next(iter(store.scan(layout.STATE)))
    store.write([(key, None)])
    with pytest.raises(AuditFailure):
        verify_chain(StoreSource(store), CONSORTIUM.genesis, make_executor())
    store.write([(key, value), (layout.STATE + b"zz", b"\x01")])
    with pytest.raises(AuditFailure):
        verify_chain(StoreSource(store), CONSORTIUM.genesis, make_executor())
