"""Who votes: the validator set, its quorum, and certificates made of its votes.

For any n ≥ 1: f = ⌊(n−1)/3⌋ may lie, and q = ⌈(n+f+1)/2⌉ votes decide, so that any two quorums share
an honest member (2q − n ≥ f + 1) and the honest ones are a quorum (q ≤ n − f).
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import ChainId, Hash, NodeName, tagged_hash
from consensus.ledger.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, PublicKey, Purpose
from consensus.ledger.merkle import HashBytes
from consensus.ledger.transaction import Natural

VALIDATORS_MAX = 100

NodeNameText = Annotated[str, msgspec.Meta(min_length=1, max_length=32, pattern=r"^[a-z0-9][a-z0-9-]*\Z")]


def quorum_of(size: int) -> int:
    """Return q = ⌈(n+f+1)/2⌉, how many of ``size`` members decide."""
    return (size + (size - 1) // 3 + 2) // 2


class Validator(Record, frozen=True):
    """One voting node. ``vote_key`` is its compressed public key, 33 bytes."""

    name: NodeNameText
    organisation: NodeNameText
    vote_key: Annotated[bytes, msgspec.Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]


class _ValidatorList(Record, frozen=True):
    validators: Annotated[list[Validator], msgspec.Meta(min_length=1, max_length=VALIDATORS_MAX)]


_list_codec: RecordCodec[_ValidatorList] = RecordCodec(_ValidatorList, bytes_max=64 * 1024)


@dataclass(frozen=True, slots=True)
class ValidatorSet:
    """The validators of a height, in ascending order of their names."""

    validators: tuple[Validator, ...]

    def __post_init__(self) -> None:
        names = [validator.name for validator in self.validators]
        keys = {validator.vote_key for validator in self.validators}
        if not names or len(names) > VALIDATORS_MAX:
            raise LocalError("bad_validators", f"a set has 1 to {VALIDATORS_MAX} validators")
        if names != sorted(set(names)) or len(keys) != len(names):
            raise LocalError("bad_validators", "names must ascend, and no name or key may stand twice")
        for validator in self.validators:
            try:
                PublicKey.load_untrusted(validator.vote_key)
            except PeerError as error:
                raise LocalError("bad_validators", f"{validator.name}: {error.message}") from None

    @staticmethod
    def of(validators: list[Validator]) -> "ValidatorSet":
        """Return the set of these validators, whatever their order."""
        return ValidatorSet(tuple(sorted(validators, key=lambda validator: validator.name)))

    @property
    def size(self) -> int:
        """n, the number of validators."""
        return len(self.validators)

    @property
    def faulty_max(self) -> int:
        """f, how many may lie or be silent."""
        return (self.size - 1) // 3

    @property
    def quorum(self) -> int:
        """q, how many votes decide."""
        return quorum_of(self.size)

    @property
    def names(self) -> tuple[NodeName, ...]:
        """The validators' names in order; the primary of view v at height h is number (h + v) mod n."""
        return tuple(NodeName(validator.name) for validator in self.validators)

    def primary(self, height: int, view: int) -> NodeName:
        """Return who proposes at this height and view."""
        return NodeName(self.validators[(height + view) % self.size].name)

    def vote_key(self, name: str) -> PublicKey | None:
        """Return a member's key, or None for one who is no member."""
        for validator in self.validators:
            if validator.name == name:
                return PublicKey.load_untrusted(validator.vote_key)
        return None

    def encode(self) -> bytes:
        """Return the canonical bytes that ``hash`` commits to."""
        return _list_codec.encode(_ValidatorList(list(self.validators)))

    def hash(self) -> Hash:
        """Return the hash that headers carry."""
        return tagged_hash("validators", self.encode())


def decode_validators_untrusted(data: bytes) -> ValidatorSet:
    """Decode a validator set.

    Raises:
        PeerError: ``malformed``, ``too_large`` or ``bad_validators``.
    """
    records = _list_codec.decode_untrusted(data).validators
    try:
        return ValidatorSet(tuple(records))
    except LocalError as error:
        raise PeerError(error.code, error.message) from None


class Signature(Record, frozen=True):
    """A member's commit signature, 64 bytes r ‖ s."""

    signer: NodeNameText
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class Certificate(Record, frozen=True):
    """That q members committed to one block in one view. Two certificates of one block may differ."""

    height: Natural
    view: Natural
    block_hash: HashBytes
    signatures: Annotated[list[Signature], msgspec.Meta(min_length=1, max_length=VALIDATORS_MAX)]


certificate_codec: RecordCodec[Certificate] = RecordCodec(Certificate, bytes_max=64 * 1024)


class _Vote(Record, frozen=True):
    height: int
    view: int
    block_hash: bytes


_vote_codec: RecordCodec[_Vote] = RecordCodec(_Vote, bytes_max=128)


def vote_payload(height: int, view: int, block_hash: bytes) -> bytes:
    """Return what a prepare or commit signature covers, beside purpose and chain id."""
    return _vote_codec.encode(_Vote(height, view, block_hash))


class _Seat(Record, frozen=True):
    node: str
    vote_key: bytes
    height: int


_seat_codec: RecordCodec[_Seat] = RecordCodec(_Seat, bytes_max=128)


def seat_payload(node: str, vote_key: bytes, height: int) -> bytes:
    """Return what a node signs with ``Purpose.SEAT`` to take a seat with this vote key (33 bytes).

    ``height`` is one that the node has reached, so that old proofs seat nobody.
    """
    return _seat_codec.encode(_Seat(node, vote_key, height))


def check_certificate_untrusted(certificate: Certificate, validators: ValidatorSet, chain_id: ChainId) -> None:
    """Check that the certificate's votes are a quorum of distinct members with valid signatures.

    Signers must ascend by name, so a certificate has one spelling; every signature must hold, so that
    nobody can hide a bad one behind a quorum of good ones.

    Raises:
        PeerError: ``bad_certificate``.
    """
    signers = [vote.signer for vote in certificate.signatures]
    if signers != sorted(set(signers)):
        raise PeerError("bad_certificate", "signers must ascend and none may stand twice")
    if len(signers) < validators.quorum:
        raise PeerError("bad_certificate", f"{len(signers)} votes, {validators.quorum} are a quorum")
    payload = vote_payload(certificate.height, certificate.view, certificate.block_hash)
    for vote in certificate.signatures:
        key = validators.vote_key(vote.signer)
        if key is None:
            raise PeerError("bad_certificate", f"{vote.signer} is no validator at this height")
        if not key.verifies(vote.signature, Purpose.COMMIT, chain_id, payload):
            raise PeerError("bad_certificate", f"the signature of {vote.signer} is not valid")
