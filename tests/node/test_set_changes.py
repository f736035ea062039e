"""The set that the membership contract writes: who certifies the next block, on disk, in headers and in proof files."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus.ledger.codec import Value
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.proof import Proof, SetChange, decode_proof_untrusted, encode_proof, verify_proof_untrusted
from consensus.ledger.states import StatesChecker, states_codec
from consensus.ledger.transaction import Transaction, make_call, sign_transaction
from consensus.ledger.validators import (
    Certificate,
    Signature,
    Validator,
    ValidatorSet,
    quorum_of,
    seat_payload,
    vote_payload,
)
from node.audit import StoreSource, verify_chain
from node.chain import Candidate, Chain
from node.proofs import ProofMaker
from node.storage import layout
from node.storage.leveldb import LevelStore
from tests.contracts.domain.consortium import consortium_genesis, key
from tests.contracts.domain.support import shared_registry
from tests.node.support import make_executor

GENESIS = consortium_genesis(shared_registry(), 4)
CHAIN_ID = GENESIS.chain_id()
LATE, NEXT, VERY_LATE = key(500), key(501), key(502)
VOTE_KEYS = {
    item.public.compressed: item for item in [*(key(100 + index) for index in range(4)), LATE, NEXT, VERY_LATE]
}


class Members:
    """A chain whose blocks are certified by whoever has the seat at their height."""

    def __init__(self, store: LevelStore) -> None:
        self.store = store
        self.chain = Chain(store, GENESIS, make_executor())
        self._sequences: dict[str, int] = {}

    @property
    def height(self) -> int:
        return self.chain.head.header.height

    def call(self, admin: str, method: str, /, **arguments: Value) -> Transaction:
        """Return an admin's signed call of the membership contract."""
        sequence = self._sequences.get(admin, 0)
        self._sequences[admin] = sequence + 1
        return sign_transaction(
            key(int(admin[-1])),
            CHAIN_ID,
            [make_call("membership", method, arguments)],
            sequence=sequence,
            valid_until_ms=self.chain.head.header.time_ms + 60_000,
        )

    def extend(self, *transactions: Transaction) -> Candidate:
        """Build, certify and commit a block; every call in it must succeed."""
        head = self.chain.head
        candidate, refused = self.chain.build(
            head.validators.primary(head.header.height + 1, 0), head.header.time_ms + 10, list(transactions)
        )
        assert refused == []
        assert [receipt.code for receipt in candidate.execution.receipts] == [""] * len(transactions)
        certificate = certify(candidate, head.validators)
        self.store.write(self.chain.commit_batch(candidate, certificate))
        self.chain.adopt(candidate, certificate)
        return candidate

    def approved(self, method: str, **arguments: Value) -> None:
        """Let as many organisations approve as are needed, in one block."""
        seated = sorted({item.organisation for item in self.chain.head.validators.validators})
        self.extend(*(self.call(admin, method, **arguments) for admin in seated[: quorum_of(len(seated))]))

    def proven(self, node: str, vote_key: PrivateKey) -> dict[str, Value]:
        """Return a node's arguments for its seat."""
        payload = seat_payload(node, vote_key.public.compressed, self.height)
        proof = vote_key.sign(Purpose.SEAT, CHAIN_ID, payload)
        return {"node": node, "height": self.height, "proof": proof}


def certify(candidate: Candidate, validators: ValidatorSet) -> Certificate:
    """Return a certificate by a quorum of this set."""
    block = candidate.block
    payload = vote_payload(block.height, 0, block.hash)
    votes = [
        Signature(item.name, VOTE_KEYS[item.vote_key].sign(Purpose.COMMIT, CHAIN_ID, payload))
        for item in validators.validators[: validators.quorum]
    ]
    return Certificate(block.height, 0, block.hash, votes)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    store = LevelStore.open(tmp_path_factory.mktemp("members") / "data")
    made = Members(store)
    late = {"vote_key": LATE.public.compressed}
    made.approved("admit_node", node="late", organisation="org-3", **late)
    made.extend(made.call("org-3", "seat_node", **made.proven("late", LATE)))
    made.extend()
    replaced = {**made.proven("node-1", NEXT), "vote_key": NEXT.public.compressed}
    made.extend(made.call("org-1", "replace_key", **replaced))
    made.approved("remove_node", node="node-0")
    made.approved("admit_node", node="very-late", organisation="org-2", vote_key=VERY_LATE.public.compressed)
    made.extend(made.call("org-2", "seat_node", **made.proven("very-late", VERY_LATE)))
    made.extend()
    yield made
    store.close()


def verdict(proof: Proof) -> str:
    """Return the code with which a proof fails, empty when it holds."""
    try:
        verify_proof_untrusted(proof, GENESIS)
    except PeerError as error:
        return error.code
    return ""


def test_headers_announce_what_the_contract_wrote(members: Members) -> None:
    reader = members.chain.reader
    names = {first: validators.names for first, validators in reader.validator_changes()}
    four = ("node-0", "node-1", "node-2", "node-3")
    assert names == {
        1: four,
        3: ("late", *four),
        5: ("late", *four),
        6: ("late", "node-1", "node-2", "node-3"),
        8: ("late", "node-1", "node-2", "node-3", "very-late"),
    }
    for height in range(1, members.height + 1):
        block = reader.block(height)
        assert block is not None
        serving = max(first for first in names if first <= height)
        following = max(first for first in names if first <= height + 1)
        changes = dict(reader.validator_changes())
        assert block.header.validators_hash == changes[serving].hash()
        assert block.header.next_validators_hash == changes[following].hash()
    assert members.chain.head.validators.vote_key("node-1") == NEXT.public


def test_a_proof_from_after_the_changes_verifies_from_genesis_alone(members: Members) -> None:
    maker = ProofMaker(members.chain)
    for proof in (maker.block(members.height), maker.state(b"membership/node/very-late")):
        again = decode_proof_untrusted(encode_proof(proof))
        assert len(again.set_changes) == 4
        verified = verify_proof_untrusted(again, GENESIS)
        assert verified.validators == members.chain.head.validators
        assert verified.height == members.height


def test_no_set_change_can_be_left_out_swapped_or_altered(members: Members) -> None:
    proof = ProofMaker(members.chain).block(members.height)
    assert verdict(proof) == ""
    changes = proof.set_changes
    for index in range(4):
        left_out = (*changes[:index], *changes[index + 1 :])
        assert verdict(dataclasses.replace(proof, set_changes=left_out)) == "bad_certificate"
    for index in range(3):
        swapped = (*changes[:index], changes[index + 1], changes[index], *changes[index + 2 :])
        assert verdict(dataclasses.replace(proof, set_changes=swapped)) in ("bad_certificate", "bad_proof")
    for index, change in enumerate(changes):
        for altered in altered_sets(change):
            forged = (*changes[:index], dataclasses.replace(change, validators=altered), *changes[index + 1 :])
            assert verdict(dataclasses.replace(proof, set_changes=forged)) == "bad_proof"


def altered_sets(change: SetChange) -> Iterator[ValidatorSet]:
    """Yield the sets that a forger would rather have followed."""
    validators = [*change.validators.validators]
    yield ValidatorSet.of(validators[1:])
    yield ValidatorSet.of([*validators, Validator("forger", "org-0", key(900).public.compressed)])
    yield ValidatorSet.of([Validator(validators[0].name, "org-0", key(900).public.compressed), *validators[1:]])


def test_a_key_that_lost_its_seat_certifies_nothing(members: Members) -> None:
    proof = ProofMaker(members.chain).block(members.height)
    old = GENESIS.validator_set()
    payload = vote_payload(members.height, 0, proof.header.hash())
    votes = [
        Signature(item.name, VOTE_KEYS[item.vote_key].sign(Purpose.COMMIT, CHAIN_ID, payload))
        for item in old.validators
    ]
    forged = Certificate(members.height, 0, proof.header.hash(), votes)
    assert verdict(dataclasses.replace(proof, certificate=forged)) == "bad_certificate"


def test_the_audit_and_a_new_start_follow_the_changes(members: Members) -> None:
    result = verify_chain(StoreSource(members.store), GENESIS, make_executor())
    assert result.block_hash == members.chain.head.hash
    reopened = Chain(members.store, GENESIS, make_executor())
    assert reopened.head == members.chain.head
    assert members.store.get(layout.at_height(layout.VALIDATORS, 3)) is not None


def test_states_are_proven_across_set_changes_by_a_maker_that_has_seen_them_come(tmp_path: Path) -> None:
    store = LevelStore.open(tmp_path / "data")
    try:
        made = Members(store)
        maker, checker = ProofMaker(made.chain), StatesChecker(GENESIS)
        held, absent = "membership/node/node-1", "membership/node/nobody"
        with pytest.raises(LocalError) as refused:
            maker.states([held])
        assert refused.value.code == "genesis_unsigned"
        seen: list[int] = []

        def check() -> None:
            for each in (maker, ProofMaker(made.chain)):
                proof = each.states([absent, held, held])
                seen.append(len(proof.changes))
                for who in (checker, StatesChecker(GENESIS)):
                    proven = who.check_untrusted(states_codec.encode(proof))
                    assert proven.height == made.height
                    assert proven.stored(held) == made.chain.state.sealed.get(held.encode()) is not None
                    assert proven.value(absent) is None

        made.extend()
        check()
        made.approved("admit_node", node="late", organisation="org-3", vote_key=LATE.public.compressed)
        made.extend(made.call("org-3", "seat_node", **made.proven("late", LATE)))
        check()
        made.extend()
        check()
        replaced = {**made.proven("node-1", NEXT), "vote_key": NEXT.public.compressed}
        made.extend(made.call("org-1", "replace_key", **replaced))
        made.approved("remove_node", node="node-0")
        made.extend()
        check()
        assert seen == [0, 0, 0, 0, 1, 1, 3, 3]
    finally:
        store.close()
