"""What travels on a channel: packages of applications, answers, questions; signed by roots. Pure.

A bank's signature covers the root over its applications' leaves. An issuer's signature covers that root, the root over
the outcomes' leaves, and its answer before. Both kinds prove themselves, whoever hands them over: so a party that lost
its payload takes it back from the other and checks it against what it signed and what the chain has anchored.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, TypeAlias

import msgspec

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.cooperation import (
    PACKAGE_ORDERS_MAX,
    SALT_BYTES,
    answer_hash,
    order_leaf,
    orders_hash,
    outcome_leaf,
)
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import HASH_BYTES, ChainId, Hash
from consensus.ledger.keys import SIGNATURE_BYTES, PrivateKey, PublicKey, Purpose
from consensus.ledger.merkle import list_root
from services.agency.orders import Application, Confirmation, Outcome, application_codec, outcome_codec

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
"""Largest message on a channel; a full package of ordinary applications has a quarter of it."""

HashBytes = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Salt = Annotated[bytes, msgspec.Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
SignatureBytes = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Party = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
Epoch = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
Round = Annotated[int, msgspec.Meta(ge=0, le=1)]


class Package(Record, frozen=True, tag="package"):
    """Applications with one interface id, from bank to issuer; ``salts`` has one of 32 random bytes for each."""

    bank: Party
    issuer: Party
    epoch: Epoch
    created_ms: Annotated[int, msgspec.Meta(ge=0)]
    root: HashBytes
    signature: SignatureBytes
    salts: Annotated[list[Salt], msgspec.Meta(min_length=1, max_length=PACKAGE_ORDERS_MAX)]
    applications: Annotated[list[Application], msgspec.Meta(min_length=1, max_length=PACKAGE_ORDERS_MAX)]


class Answer(Record, frozen=True, tag="answer"):
    """Confirmations from issuer to bank, in the order of the package's applications.

    Of round 0 there is one for each application; of round 1 for the applications at ``places`` alone.
    """

    bank: Party
    issuer: Party
    epoch: Epoch
    root: HashBytes
    round_number: Round
    places: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=PACKAGE_ORDERS_MAX)]
    outcome_root: HashBytes
    previous: HashBytes
    signature: SignatureBytes
    confirmations: Annotated[list[Confirmation], msgspec.Meta(min_length=1, max_length=PACKAGE_ORDERS_MAX)]


class Refusal(Record, frozen=True, tag="refusal"):
    """The receiver takes a package as a whole for no orders, and never will; ``code`` says why."""

    root: HashBytes
    code: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{1,40}\Z")]
    message: Annotated[str, msgspec.Meta(max_length=200)]


class Question(Record, frozen=True, tag="question"):
    """Asks for what the other side has of a package: its answers, or the package itself and its answers."""

    root: HashBytes
    is_lost: bool


Message: TypeAlias = Package | Answer | Refusal | Question
message_codec: RecordCodec[Message] = RecordCodec(Message, bytes_max=MESSAGE_BYTES_MAX)


def make_package(
    key: PrivateKey,
    chain_id: ChainId,
    *,
    bank: str,
    issuer: str,
    epoch: int,
    created_ms: int,
    salts: Sequence[bytes],
    applications: Sequence[Application],
) -> Package:
    """Sign 1 to 1,024 applications under one root; each salt is 32 random bytes of its own."""
    root = orders_root(salts, applications)
    payload = orders_hash(bank, issuer, epoch, root, len(applications))
    signature = key.sign(Purpose.ORDERS, chain_id, payload)
    return Package(bank, issuer, epoch, created_ms, root, signature, [*salts], [*applications])


def make_answer(
    key: PrivateKey,
    chain_id: ChainId,
    package: Package,
    confirmations: Sequence[Confirmation],
    *,
    previous: bytes,
    round_number: int = 0,
    places: Sequence[int] = (),
) -> Answer:
    """Sign the confirmations of a package; ``places`` says for round 1 which applications they are of."""
    root = list_root(outcome_leaves(package, confirmations, places))
    payload = answer_hash(package.bank, package.issuer, package.epoch, package.root, round_number, root, previous)
    return Answer(
        package.bank,
        package.issuer,
        package.epoch,
        package.root,
        round_number,
        [*places],
        root,
        previous,
        key.sign(Purpose.ANSWER, chain_id, payload),
        [*confirmations],
    )


def check_package_untrusted(package: Package, chain_id: ChainId, bank_key: bytes) -> None:
    """Check that a package is whole and that the bank signed it.

    Raises:
        PeerError: ``malformed`` where salts and applications differ in number, or one serial stands twice,
            ``bad_root``, ``bad_signature``.
    """
    count = len(package.applications)
    if len(package.salts) != count:
        raise PeerError("malformed", f"{len(package.salts)} salts for {count} applications")
    if len({application.serial for application in package.applications}) != count:
        raise PeerError("malformed", "one serial stands twice")
    if orders_root(package.salts, package.applications) != package.root:
        raise PeerError("bad_root", "the applications do not make the package's root")
    payload = orders_hash(package.bank, package.issuer, package.epoch, package.root, count)
    if not PublicKey.load_untrusted(bank_key).verifies(package.signature, Purpose.ORDERS, chain_id, payload):
        raise PeerError("bad_signature", f"not signed by {package.bank}")


def check_answer_untrusted(answer: Answer, package: Package, chain_id: ChainId, issuer_key: bytes) -> None:
    """Check that an answer belongs to the package, confirms its applications, and that the issuer signed it.

    Raises:
        PeerError: ``malformed``, ``wrong_package``, ``bad_root``, ``bad_signature``.
    """
    if bool(answer.places) != bool(answer.round_number):
        raise PeerError("malformed", "a first answer confirms every application, a second one those at its places")
    theirs = (answer.bank, answer.issuer, answer.epoch, answer.root)
    if theirs != (package.bank, package.issuer, package.epoch, package.root):
        raise PeerError("wrong_package", "the answer is to another package")
    leaves = outcome_leaves(package, answer.confirmations, answer.places)
    if list_root(leaves) != answer.outcome_root:
        raise PeerError("bad_root", "the confirmations do not make the answer's root")
    payload = answer_id(answer)
    if not PublicKey.load_untrusted(issuer_key).verifies(answer.signature, Purpose.ANSWER, chain_id, payload):
        raise PeerError("bad_signature", f"not signed by {answer.issuer}")


def waiting_places(confirmations: Iterable[Confirmation]) -> list[int]:
    """Return the places of a first answer's confirmations that are not final: a second one is about exactly these."""
    return [place for place, confirmation in enumerate(confirmations) if not confirmation.is_final]


def answer_id(answer: Answer) -> Hash:
    """Return the hash that the issuer signed, which its next answer names as ``previous``."""
    return answer_hash(
        answer.bank,
        answer.issuer,
        answer.epoch,
        answer.root,
        answer.round_number,
        answer.outcome_root,
        answer.previous,
    )


def orders_root(salts: Sequence[bytes], applications: Sequence[Application]) -> Hash:
    """Return the root over the applications' leaves."""
    return list_root(order_leaves(salts, applications))


def order_leaves(salts: Sequence[bytes], applications: Sequence[Application]) -> list[bytes]:
    """Return the applications' leaves in their order."""
    return [order_leaf(salt, application_codec.encode(item)) for salt, item in zip(salts, applications, strict=True)]


def outcome_leaves(package: Package, confirmations: Sequence[Confirmation], places: Sequence[int] = ()) -> list[bytes]:
    """Return the outcomes' leaves: of all applications, or of those at ``places``.

    Raises:
        PeerError: ``malformed`` where the confirmations are not those of these applications, in their order.
    """
    chosen = [*places] or [*range(len(package.applications))]
    if len(chosen) != len(confirmations):
        raise PeerError("malformed", f"{len(confirmations)} confirmations for {len(chosen)} applications")
    if [*chosen] != sorted(set(chosen)) or chosen[-1] >= len(package.applications):
        raise PeerError("malformed", "places must ascend within the package")
    leaves: list[bytes] = []
    for place, confirmation in zip(chosen, confirmations, strict=True):
        application = package.applications[place]
        if application.serial != confirmation.serial:
            raise PeerError("malformed", f"{confirmation.serial} confirms the application {application.serial}")
        leaves.append(outcome_leaf(package.salts[place], outcome_codec.encode(Outcome(application, confirmation))))
    return leaves
