"""Targets in ``consensus``: decoders, certificates, proofs, tallies, and the engine itself."""

import itertools
from collections.abc import Callable
from functools import partial
from random import Random

import msgspec

from consensus.ledger import state_tree
from consensus.ledger.block import check_certified_untrusted, check_successor_untrusted, decode_block_untrusted
from consensus.ledger.codec import decode_untrusted, encode
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.genesis import decode_genesis_untrusted
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import PublicKey, Purpose
from consensus.ledger.proof import decode_proof_untrusted, proof_from_json_untrusted, verify_proof_untrusted
from consensus.ledger.state_tree import StateProof, check_state_proof_untrusted, state_proof_codec
from consensus.ledger.transaction import decode_transaction_untrusted
from consensus.ledger.validators import (
    certificate_codec,
    check_certificate_untrusted,
    decode_validators_untrusted,
)
from consensus.pbft.certificates import (
    check_commit_certificate_untrusted,
    check_new_view_untrusted,
    check_prepared_untrusted,
    check_view_change_untrusted,
)
from consensus.pbft.events import Decide, Evidence, Propose, Proposed, Received, Tick, Validate, Validated
from consensus.pbft.evidence import check_evidence_untrusted
from consensus.pbft.messages import (
    Commit,
    Decided,
    Message,
    NewView,
    Prepare,
    PreparedCertificate,
    ViewChange,
    decode_message_untrusted,
)
from consensus.pbft.tallies import Tally
from tests.fuzz import samples
from tests.fuzz.liar import as_liar
from tests.fuzz.target import Target, record_codecs
from tests.ledger.builders import make_set
from tests.ledger.test_proof import ABSENT, CHAIN_ID, CHANGES, FIRST, GENESIS, KEY, NODES, STATE, TREE
from tests.pbft.solo import Solo, sign

LEDGER = "consensus/ledger"
PBFT = "consensus/pbft"
LIAR = "d"
"""The one validator of four that may say anything in its own name."""
INPUTS_PER_ENGINE = 400


def targets() -> list[Target]:
    """Return the targets of ledger and consensus."""
    return [*_codec_targets(), *_ledger_targets(), *_proof_targets(), *_pbft_targets()]


def _codec_targets() -> list[Target]:
    every = [
        *samples.message_samples(),
        *samples.transaction_samples(),
        *samples.ledger_samples(),
        *samples.sync_request_samples(),
        *samples.sync_response_samples(),
        *samples.batch_samples(),
        *(statement for _, statements in samples.evidence() for statement in statements),
    ]
    found = record_codecs()

    def decode_all(data: bytes) -> None:
        for codec in found.values():
            try:
                again = codec.decode_untrusted(data)
            except PeerError:
                continue
            if codec.encode(again) != data:
                raise AssertionError("two encodings of one record")

    return [
        Target("every record codec", decode_all, every, reaches=(f"{LEDGER}/codec.py:decode_untrusted",), weight=2),
        Target("free values", _decode_value, every, reaches=(f"{LEDGER}/codec.py:decode_untrusted",)),
    ]


def _decode_value(data: bytes) -> None:
    if encode(decode_untrusted(data)) != data:
        raise AssertionError("two encodings of one value")


def _ledger_targets() -> list[Target]:
    blocks = [sample for sample in samples.ledger_samples() if _is(decode_block_untrusted, sample)]
    header = CHANGES[0].header

    def certificate(data: bytes) -> None:
        decoded = certificate_codec.decode_untrusted(data)
        check_certified_untrusted(header, decoded, make_set(FIRST))
        if decoded != CHANGES[0].certificate:
            raise AssertionError("another certificate holds")

    def bare_certificate(data: bytes) -> None:
        check_certificate_untrusted(certificate_codec.decode_untrusted(data), make_set(FIRST), CHAIN_ID)

    def successor(data: bytes) -> None:
        block = decode_block_untrusted(data)
        check_successor_untrusted(header, header.hash(), block.header)

    certificates = [certificate_codec.encode(change.certificate) for change in CHANGES]
    keys = [key.public.compressed for key in FIRST.values()]
    transactions = samples.transaction_samples()
    return [
        Target("block", decode_block_untrusted, blocks, (f"{LEDGER}/block.py:decode_block_untrusted",)),
        Target("successor", successor, blocks, (f"{LEDGER}/block.py:check_successor_untrusted",)),
        Target("certificate", certificate, certificates, (f"{LEDGER}/block.py:check_certified_untrusted",)),
        Target(
            "certificate alone",
            bare_certificate,
            certificates,
            (f"{LEDGER}/validators.py:check_certificate_untrusted",),
        ),
        Target(
            "validator set",
            decode_validators_untrusted,
            [change.validators.encode() for change in CHANGES],
            (f"{LEDGER}/validators.py:decode_validators_untrusted",),
        ),
        Target("public key", PublicKey.load_untrusted, keys, (f"{LEDGER}/keys.py:load_untrusted",)),
        Target(
            "transaction",
            decode_transaction_untrusted,
            transactions,
            (f"{LEDGER}/transaction.py:decode_transaction_untrusted",),
        ),
        Target(
            "genesis",
            decode_genesis_untrusted,
            samples.genesis_samples(),
            (f"{LEDGER}/genesis.py:decode_genesis_untrusted",),
            may=(LocalError,),
            is_json=True,
        ),
    ]


def _proof_targets() -> list[Target]:
    def proof(data: bytes) -> None:
        decoded = decode_proof_untrusted(data)
        verified = verify_proof_untrusted(decoded, GENESIS)
        if verified.height != 5:
            raise AssertionError("a proof of another block holds")

    def document(data: bytes) -> None:
        try:
            parsed = msgspec.json.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return
        verify_proof_untrusted(proof_from_json_untrusted(parsed), GENESIS)

    known = {**STATE, ABSENT: None}

    def state_proof(data: bytes) -> None:
        decoded = state_proof_codec.decode_untrusted(data)
        for key, value in ((KEY, STATE[KEY]), (KEY, None), (ABSENT, None), (ABSENT, b"x")):
            try:
                check_state_proof_untrusted(TREE.root, key, value, decoded)
            except PeerError:
                continue
            if known[key] != value:
                raise AssertionError("a proof of what is not so holds")

    def level(data: bytes) -> None:
        state_tree._put_child_untrusted(data[1:], data[0] % 16 if data else 0, bytes(32))

    proofs = [state_proof_codec.encode(state_tree.prove(NODES, key)) for key in (KEY, ABSENT)]
    decoded: list[StateProof] = [state_proof_codec.decode_untrusted(data) for data in proofs]
    levels = [b"\x05" + item for proof in decoded for item in proof.levels]
    file = f"{LEDGER}/proof.py"
    reached = ("decode_proof", "verify_proof", "_check_claim", "_from_file", "_from_claim_file")
    return [
        Target(
            "proof file",
            proof,
            samples.proof_samples(),
            tuple(f"{file}:{name}_untrusted" for name in reached),
            is_json=True,
        ),
        Target(
            "proof in an answer",
            document,
            samples.proof_samples(),
            (f"{file}:proof_from_json_untrusted",),
            is_json=True,
        ),
        Target("state proof", state_proof, proofs, (f"{LEDGER}/state_tree.py:check_state_proof_untrusted",)),
        Target("level of a state proof", level, levels, (f"{LEDGER}/state_tree.py:_put_child_untrusted",)),
    ]


def _is(check: Callable[[bytes], object], data: bytes) -> bool:
    try:
        check(data)
    except PeerError:
        return False
    return True


def _pbft_targets() -> list[Target]:
    every = samples.message_samples()
    evidence = list(samples.evidence())

    def checks(data: bytes) -> None:
        _check_message(decode_message_untrusted(data))

    def evidence_of(data: bytes) -> None:
        for item, _ in evidence:
            changed = Evidence(item.kind, item.signer, item.height, item.view, item.first, data)
            check_evidence_untrusted(changed, samples.ROSTER)

    file = f"{PBFT}/certificates.py"
    reached = ("check_commit_certificate", "check_prepared", "check_view_change", "check_new_view")
    return [
        Target("message", decode_message_untrusted, every, (f"{PBFT}/messages.py:decode_message_untrusted",)),
        Target("certificates in messages", checks, every, tuple(f"{file}:{name}_untrusted" for name in reached)),
        Target(
            "evidence",
            evidence_of,
            [statement for _, statements in evidence for statement in statements],
            (f"{PBFT}/evidence.py:check_evidence_untrusted",),
        ),
        Target(
            "tally",
            _Tallies().take,
            [*samples.votes(Prepare), *samples.votes(Commit)],
            (f"{PBFT}/tallies.py:add_untrusted",),
        ),
        Target("engine", _Engine().take, every, weight=6),
    ]


def _check_message(message: Message) -> None:
    roster = samples.ROSTER
    match message:
        case ViewChange():
            check_view_change_untrusted(message, roster)
        case NewView():
            check_new_view_untrusted(message, roster)
        case Decided():
            check_commit_certificate_untrusted(message.certificate, roster)
        case _:
            return
    certificate: PreparedCertificate | None = getattr(message, "certificate", None)
    if isinstance(certificate, PreparedCertificate):
        check_prepared_untrusted(certificate, roster)


class _Tallies:
    """Takes votes, handed over by their signers and by others."""

    def __init__(self) -> None:
        self._tallies = {
            Prepare: Tally(Purpose.PREPARE, samples.ROSTER),
            Commit: Tally(Purpose.COMMIT, samples.ROSTER),
        }
        self._turns = itertools.count()

    def take(self, data: bytes) -> None:
        vote = decode_message_untrusted(data)
        if not isinstance(vote, Prepare | Commit):
            return
        tally = self._tallies[type(vote)]
        try:
            tally.add_untrusted(vote, relayed=bool(next(self._turns) % 2))
        finally:
            good, _ = tally.signatures(vote.view, vote.block_hash, 3)
            if good is not None and len({item.signer for item in good}) != 3:
                raise AssertionError("a quorum of fewer members")


class _Engine:
    """Engine ``a`` of four hears honest messages, changed ones, and whatever ``d`` signs; time goes on between."""

    def __init__(self) -> None:
        self._random = Random(1)
        self._count = 0
        self._solo = Solo("a", 4)

    def take(self, data: bytes) -> None:
        message = decode_message_untrusted(data)
        if self._count % INPUTS_PER_ENGINE == 0:
            self._solo = Solo("a", 4)
        self._count += 1
        if self._random.random() < 0.5:
            message = as_liar(message, LIAR, partial(sign, LIAR))
        solo = self._solo
        solo.step(Received(NodeName(self._random.choice("bcdx")), message))
        for effect in solo.every(Validate):
            solo.step(Validated(effect.block.hash, self._random.random() < 0.8))
        for wish in solo.every(Propose):
            solo.step(Proposed(wish.height, wish.view, solo.block(b"own", proposer="a")))
        if solo.every(Decide):
            self._count = 0
        if self._random.random() < 0.1:
            solo.now_ms += self._random.choice((1, 500, 5_000))
            solo.step(Tick(solo.now_ms))
