"""Several values under one head: what is proven, what is refused, and which signatures are checked again."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace as changed

from consensus.ledger.block import Block, Header
from consensus.ledger.codec import Value, encode
from consensus.ledger.keys import PublicKey, Purpose
from consensus.ledger.payees import STATES_BYTES_MAX
from consensus.ledger.proof import SET_CHANGES_MAX
from consensus.ledger.state_tree import EMPTY_ROOT, StateProof, prove, update
from consensus.ledger.states import (
    ENTRIES_MAX,
    HEADS_REMEMBERED_MAX,
    KEY_CHARACTERS_MAX,
    CertifiedChange,
    ProvenStates,
    StateEntry,
    StatesChecker,
    StatesProof,
    states_codec,
)
from tests.ledger.builders import (
    Keys,
    certify,
    flips,
    make_block,
    make_genesis,
    make_genesis_block,
    make_keys,
    make_set,
    refusal,
)

FIRST = make_keys(4)
SECOND = make_keys(4, first=20)
GENESIS = make_genesis(FIRST)
CHAIN_ID = GENESIS.chain_id()

VALUES: dict[str, Value] = {f"payees/record/wallet-p/{number:032x}": {"version": number} for number in range(40)}
STATE = {key.encode(): encode(value) for key, value in VALUES.items()}
TREE = update({}, STATE)
NODES = {path: blob for path, blob in TREE.nodes.items() if blob is not None}

KEY, OTHER = sorted(VALUES)[3], sorted(VALUES)[4]
ABSENT = "payees/record/wallet-q/00"


def grow() -> list[Block]:
    """Blocks 1 to 4: FIRST hands over to SECOND with 2, and 3 seals."""
    blocks: list[Block] = []
    parent = make_genesis_block(CHAIN_ID, make_set(FIRST)).header
    for height, keys in enumerate([FIRST, FIRST, SECOND, SECOND], start=1):
        following = make_set(SECOND) if height == 2 else None
        root = TREE.root if height == 3 else None
        blocks.append(make_block(parent, make_set(keys), following=following, sealed_root=root))
        parent = blocks[-1].header
    return blocks


BLOCKS = grow()
CHANGE = CertifiedChange(BLOCKS[1].header, certify(BLOCKS[1].header, FIRST), make_set(SECOND).encode())


def entry(key: str) -> StateEntry:
    return StateEntry(key, STATE.get(key.encode()), prove(NODES, key.encode()))


def proof_of(keys: Sequence[str] = (KEY, OTHER, ABSENT), *, height: int = 4) -> StatesProof:
    header = BLOCKS[height - 1].header
    changes = [CHANGE] if height > 2 else []
    certificate = certify(header, SECOND if height > 2 else FIRST)
    return StatesProof(CHAIN_ID, changes, header, certificate, [entry(key) for key in sorted(keys)])


PROOF = proof_of()


def check(proof: StatesProof) -> ProvenStates:
    return StatesChecker(GENESIS).check_untrusted(states_codec.encode(proof))


def verdict(proof: StatesProof) -> str:
    return refusal(check, proof)


def test_what_is_true_is_proven() -> None:
    proven = check(PROOF)
    assert proven.value(KEY) == VALUES[KEY]
    assert proven.value(OTHER) == VALUES[OTHER]
    assert proven.value(ABSENT) is None
    assert proven.stored(KEY) == STATE[KEY.encode()]
    assert (proven.height, proven.time_ms) == (4, BLOCKS[3].header.time_ms)
    assert proven.header.sealed_height == 3


def test_nothing_is_said_of_a_key_without_entry() -> None:
    proven = check(proof_of([KEY]))
    for key in (OTHER, ABSENT, "", KEY + "0"):
        assert refusal(proven.value, key) == refusal(proven.stored, key) == "not_proven"


def test_an_empty_tree_proves_absence() -> None:
    header = BLOCKS[0].header
    assert header.sealed_root == EMPTY_ROOT
    absence = StateEntry(KEY, None, StateProof([], b""))
    assert check(StatesProof(CHAIN_ID, [], header, certify(header, FIRST), [absence])).value(KEY) is None


def test_every_byte_counts() -> None:
    checker = StatesChecker(GENESIS)
    whole = states_codec.encode(PROOF)
    checker.check_untrusted(whole)
    codes = {refusal(checker.check_untrusted, data) for data in flips(whole)}
    assert codes == {"malformed", "wrong_chain", "bad_certificate", "bad_proof"}


def test_a_cut_proof_is_none() -> None:
    checker = StatesChecker(GENESIS)
    whole = states_codec.encode(PROOF)
    assert {refusal(checker.check_untrusted, whole[:size]) for size in range(0, len(whole), 7)} == {"malformed"}
    assert refusal(checker.check_untrusted, whole + b"\0") == "malformed"
    assert refusal(checker.check_untrusted, bytes(STATES_BYTES_MAX + 1)) == "malformed"


def test_a_value_holds_at_its_own_key_under_its_own_head() -> None:
    first, second, absence = sorted(PROOF.entries, key=lambda one: one.key)
    wrong = [
        changed(first, value=second.value),
        changed(first, value=None),
        changed(first, path=second.path),
        changed(absence, value=first.value),
        changed(first, value=None, path=absence.path),
        StateEntry("payees/record/wallet-q/01", None, absence.path),
    ]
    for bad in wrong:
        assert verdict(changed(PROOF, entries=[bad])) == "bad_proof"
    assert verdict(proof_of(height=2)) == "bad_proof", "what was sealed later is not under an earlier head"


def test_keys_ascend_and_none_stands_twice() -> None:
    first, second, absence = PROOF.entries
    for entries in ([second, first], [first, first], [first, absence, second]):
        assert verdict(changed(PROOF, entries=entries)) == "malformed"


def test_the_set_of_the_height_certifies() -> None:
    header = BLOCKS[3].header
    for keys in (FIRST, make_keys(4, first=40)):
        assert verdict(changed(PROOF, certificate=certify(header, keys))) == "bad_certificate"
    assert verdict(changed(PROOF, certificate=certify(header, SECOND, count=2))) == "bad_certificate"
    assert verdict(changed(PROOF, certificate=certify(BLOCKS[2].header, SECOND))) == "bad_certificate"
    assert verdict(changed(PROOF, changes=[])) == "bad_certificate"
    assert verdict(changed(PROOF, changes=[CHANGE, CHANGE])) == "bad_proof"
    assert verdict(changed(proof_of(height=2), changes=[CHANGE])) == "bad_proof"
    usurped = changed(CHANGE, certificate=certify(CHANGE.header, SECOND))
    assert verdict(changed(PROOF, changes=[usurped])) == "bad_certificate"
    for validators, code in [(make_set(FIRST).encode(), "bad_proof"), (b"\x90", "malformed")]:
        assert verdict(changed(PROOF, changes=[changed(CHANGE, validators=validators)])) == code


def forged(keys: Keys, **fields: object) -> StatesProof:
    header: Header = changed(BLOCKS[3].header, **fields)
    return changed(PROOF, header=header, certificate=certify(header, keys))


def test_another_chain_and_a_seal_out_of_place() -> None:
    assert verdict(changed(PROOF, chain_id=bytes(32))) == "wrong_chain"
    assert verdict(forged(SECOND, chain_id=bytes(32))) == "wrong_chain"
    foreign = changed(CHANGE, header=changed(CHANGE.header, chain_id=bytes(32)))
    assert verdict(changed(PROOF, changes=[foreign])) == "wrong_chain"
    assert verdict(forged(SECOND, sealed_height=5)) == "bad_proof"
    other = changed(GENESIS, time_ms=GENESIS.time_ms + 1)
    assert refusal(StatesChecker(other).check_untrusted, states_codec.encode(PROOF)) == "wrong_chain"


def test_bounds() -> None:
    many = [StateEntry(f"{number:04}", None, StateProof([], b"")) for number in range(ENTRIES_MAX + 1)]
    assert verdict(changed(PROOF, entries=many)) == "malformed"
    long = StateEntry("k" * (KEY_CHARACTERS_MAX + 1), None, StateProof([], b""))
    assert verdict(changed(PROOF, entries=[long])) == "malformed"
    assert verdict(changed(PROOF, changes=[CHANGE] * (SET_CHANGES_MAX + 1))) == "malformed"


def test_a_value_that_is_no_canonical_encoding_is_told_by_its_bytes_alone() -> None:
    tree = update({}, {b"k": b"\xc1"})
    root = {path: blob for path, blob in tree.nodes.items() if blob is not None}
    header: Header = changed(BLOCKS[3].header, sealed_height=4, sealed_root=tree.root)
    proven = check(
        changed(
            PROOF,
            header=header,
            certificate=certify(header, SECOND),
            entries=[StateEntry("k", b"\xc1", prove(root, b"k"))],
        )
    )
    assert proven.stored("k") == b"\xc1"
    assert refusal(proven.value, "k") == "malformed"


# -- what is remembered --------------------------------------------------------------------------------------


@pytest.fixture
def signatures(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every signature that is checked."""
    seen: list[bytes] = []
    verifies = PublicKey.verifies

    def count(key: PublicKey, signature: bytes, purpose: Purpose, *rest: object) -> bool:
        seen.append(signature)
        return verifies(key, signature, purpose, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(PublicKey, "verifies", count)
    return seen


def test_a_head_costs_signatures_once(signatures: list[bytes]) -> None:
    checker = StatesChecker(GENESIS)
    quorum = make_set(SECOND).quorum
    costs: list[int] = []
    for proof in [PROOF, PROOF, proof_of([OTHER]), proof_of(height=3), proof_of([KEY], height=4)]:
        before = len(signatures)
        checker.check_untrusted(states_codec.encode(proof))
        costs.append(len(signatures) - before)
    assert costs == [2 * quorum, 0, 0, quorum, 0], "the way to a later head is known already"


def test_a_verified_head_vouches_for_no_other_bytes(signatures: list[bytes]) -> None:
    checker = StatesChecker(GENESIS)
    checker.check_untrusted(states_codec.encode(PROOF))
    again = changed(PROOF, certificate=certify(PROOF.header, SECOND, view=1))
    before = len(signatures)
    checker.check_untrusted(states_codec.encode(again))
    assert len(signatures) - before == make_set(SECOND).quorum
    votes = PROOF.certificate.signatures
    broken = [*votes[:-1], changed(votes[-1], signature=votes[0].signature)]
    bad = changed(PROOF, certificate=changed(PROOF.certificate, signatures=broken))
    for _ in range(2):
        assert refusal(checker.check_untrusted, states_codec.encode(bad)) == "bad_certificate"


def test_a_verified_head_needs_its_own_way_from_genesis() -> None:
    checker = StatesChecker(GENESIS)
    checker.check_untrusted(states_codec.encode(PROOF))
    without = changed(PROOF, changes=[])
    assert refusal(checker.check_untrusted, states_codec.encode(without)) == "bad_certificate"


def test_only_so_many_heads_are_remembered(signatures: list[bytes]) -> None:
    checker = StatesChecker(GENESIS)
    first = states_codec.encode(proof_of([], height=1))
    checker.check_untrusted(first)
    parent = BLOCKS[0].header
    for view in range(1, HEADS_REMEMBERED_MAX + 1):
        head = StatesProof(CHAIN_ID, [], parent, certify(parent, FIRST, view=view), [])
        checker.check_untrusted(states_codec.encode(head))
    before = len(signatures)
    checker.check_untrusted(first)
    assert len(signatures) - before == 3
