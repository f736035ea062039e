"""One order of a package, disclosed: a file that anyone with the genesis document checks offline.

The file shows one application with its confirmation and their salt; two paths lead from their leaves to the roots that
bank and issuer signed, and a proof out of the chain's state shows the anchor of those roots with signatures and keys.
Nothing is learnt of any other order, since each leaf has a salt of its own. Checked is, in this order:

    proof        the anchor of these parties, roots and round stands in the state that the chain's validators certified
    order        salt and application make the leaf at this place under the orders' root; the bank signed that root
    outcome      salt, application and confirmation make the leaf under the outcomes' root, at the same place; the
                 issuer signed that root for this package and round

The anchor says MUTUAL where both signed; CLAIMED where one did, and then the other's half is not there to be checked.
That its keys were the parties' is what the contract found in its registry when it took the signatures; the validators
certified what it wrote. What else the signatures cover, epoch, number of orders, answer before, stands in the anchor
alone: a side that signs one of these wrongly, and anchors first, keeps nobody from proving what the roots hold. The
number of orders that counts is the one that the root commits to.

All this is as of the proof's block. Whoever discloses chooses the proof: what was anchored later, the other's signature
under a claim or a contradiction, is not in it. So look at its time, and ask for a newer one where that matters.

The file is a JSON object; bytes are 0x-hex, records are objects by their fields' names.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from consensus.ledger.codec import Record, decode_untrusted
from consensus.ledger.cooperation import answer_hash, order_leaf, orders_hash, outcome_leaf
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PublicKey, Purpose
from consensus.ledger.merkle import ListProof, leaf_is_under, prove_leaf
from consensus.ledger.proof import (
    PROOF_BYTES_MAX,
    StateClaim,
    Verified,
    proof_from_json_untrusted,
    verify_proof_untrusted,
)
from services.agency.orders import Application, Confirmation, Investor, Outcome, application_codec, outcome_codec
from services.agency.packages import Answer, Package, Party, Round, order_leaves, outcome_leaves
from services.client.answers import bytes_of, hex_of

FORMAT: Final = "hansa-disclosure-1"
FILE_BYTES_MAX = PROOF_BYTES_MAX + 256 * 1024
"""The proof, and one order with its confirmation and paths around it."""

_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{64}\Z")]
_Natural = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Path = Annotated[list[_Hex32], msgspec.Meta(max_length=16)]

R = TypeVar("R", bound=Record)


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Base of the file's objects."""


class PathObject(_Document, frozen=True):
    """Place of a leaf among ``count``, and its siblings from the bottom up."""

    index: _Natural
    count: _Natural
    path: _Path


class OutcomeObject(_Document, frozen=True):
    """What the issuer confirmed, and its way to the root that the issuer signed."""

    confirmation: dict[str, Any]
    round_number: Round
    outcome_root: _Hex32
    path: PathObject


class Disclosure(_Document, frozen=True):
    """A disclosure, decoded and not verified. ``outcome`` is null while nothing but a claim is anchored."""

    format: Literal["hansa-disclosure-1"]
    bank: Party
    issuer: Party
    root: _Hex32
    salt: _Hex32
    application: dict[str, Any]
    path: PathObject
    outcome: OutcomeObject | None
    proof: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a disclosure has proven.

    Args:
        status: ``MUTUAL`` or ``CLAIMED``.
        claimed_by: of a claim: ``bank`` or ``issuer``.
        is_contradicted: the issuer signed another outcome of the same round too.
        anchored_height: block of the anchor; ``anchored_ms`` its time, ms UTC.
        height: of the block's state that the proof shows; ``time_ms`` of the header that certifies it, ms UTC, with
            its ``signers``. What was anchored later is not known.
    """

    status: str
    claimed_by: str
    is_contradicted: bool
    bank: str
    issuer: str
    root: bytes
    application: Application
    confirmation: Confirmation | None
    round_number: int
    anchored_height: int
    anchored_ms: int
    height: int
    time_ms: int
    signers: tuple[str, ...]


class _Anchor(msgspec.Struct, frozen=True, rename="camel"):
    """The contract's record; see ``contracts/domain/evidence.py``."""

    status: str
    epoch: int
    count: int
    previous: bytes
    orders_signature: bytes
    answer_signature: bytes
    bank_key: bytes
    issuer_key: bytes
    height: int
    time_ms: int
    number: int
    is_contradicted: bool


_decoder = msgspec.json.Decoder(Disclosure)


def anchor_key(bank: str, issuer: str, root: bytes, round_number: int, outcome_root: bytes) -> str:
    """Return the state key of an anchor; the outcome root is empty of a bank's claim."""
    return f"evidence/anchor/{bank}/{issuer}/{root.hex()}/{round_number}/{outcome_root.hex()}"


def make_disclosure(package: Package, serial: str, answer: Answer | None, proof: dict[str, Any]) -> Disclosure:
    """Return the disclosure of one order; ``proof`` is the proof file's object of the anchor's key.

    Raises:
        LocalError: ``unknown_order``, or ``not_allotted`` where the answer's round says nothing of it.
    """
    place = next((n for n, item in enumerate(package.applications) if item.serial == serial), None)
    if place is None:
        raise LocalError("unknown_order", f"the package has no order {serial}")
    leaves = order_leaves(package.salts, package.applications)
    return Disclosure(
        FORMAT,
        package.bank,
        package.issuer,
        hex_of(package.root),
        hex_of(package.salts[place]),
        _object_of(package.applications[place]),
        _path_object(prove_leaf(leaves, place)),
        None if answer is None else _outcome_object(package, answer, place),
        proof,
    )


def verify_disclosure(disclosure: Disclosure, genesis: Genesis) -> Verdict:
    """Check a disclosure against genesis.

    Raises:
        PeerError: ``malformed``; ``wrong_chain``, ``bad_certificate`` or ``bad_proof`` about the proof;
            ``not_anchored`` where it proves absence;
            ``bad_path``, ``bad_signature``, ``wrong_anchor`` where a part does not fit.
    """
    anchor, verified = _anchor_untrusted(disclosure, genesis)
    outcome = disclosure.outcome
    chain_id = genesis.chain_id()
    application = _check_order(disclosure, anchor, chain_id)
    confirmation = None if outcome is None else _check_outcome(disclosure, outcome, application, anchor, chain_id)
    is_mutual = bool(anchor.bank_key and anchor.issuer_key)
    if (anchor.status == "MUTUAL") != is_mutual:
        raise PeerError("wrong_anchor", f"the anchor says {anchor.status}, its keys do not")
    return Verdict(
        status=anchor.status,
        claimed_by="" if is_mutual else "bank" if anchor.bank_key else "issuer",
        is_contradicted=anchor.is_contradicted,
        bank=disclosure.bank,
        issuer=disclosure.issuer,
        root=bytes_of(disclosure.root),
        application=application,
        confirmation=confirmation,
        round_number=0 if outcome is None else outcome.round_number,
        anchored_height=anchor.height,
        anchored_ms=anchor.time_ms,
        height=verified.header.sealed_height,
        time_ms=verified.time_ms,
        signers=verified.signers,
    )


def _anchor_untrusted(disclosure: Disclosure, genesis: Genesis) -> tuple[_Anchor, Verified]:
    """Return the anchor that the proof shows under the key that the disclosure speaks of."""
    outcome = disclosure.outcome
    round_number = 0 if outcome is None else outcome.round_number
    outcome_root = b"" if outcome is None else bytes_of(outcome.outcome_root)
    key = anchor_key(disclosure.bank, disclosure.issuer, bytes_of(disclosure.root), round_number, outcome_root)
    verified = verify_proof_untrusted(proof_from_json_untrusted(disclosure.proof), genesis)
    claim = verified.claim
    if not isinstance(claim, StateClaim) or claim.key != key.encode():
        raise PeerError("bad_proof", f"the proof does not speak of {key}")
    if claim.value is None:
        raise PeerError("not_anchored", "the proof shows that there is no such anchor")
    try:
        return msgspec.convert(decode_untrusted(claim.value), _Anchor), verified
    except msgspec.ValidationError as error:
        raise PeerError("malformed", f"the anchor is of another shape: {error}") from None


def _check_order(disclosure: Disclosure, anchor: _Anchor, chain_id: ChainId) -> Application:
    application = _record_untrusted(disclosure.application, Application)
    root, salt = bytes_of(disclosure.root), bytes_of(disclosure.salt)
    leaf = order_leaf(salt, application_codec.encode(application))
    if not leaf_is_under(root, leaf, _list_proof(disclosure.path)):
        raise PeerError("bad_path", "salt and application do not lead to the orders' root")
    if anchor.bank_key:
        payload = orders_hash(disclosure.bank, disclosure.issuer, anchor.epoch, root, anchor.count)
        _check_signature(anchor.bank_key, anchor.orders_signature, Purpose.ORDERS, chain_id, payload)
    return application


def _check_outcome(
    disclosure: Disclosure, outcome: OutcomeObject, application: Application, anchor: _Anchor, chain_id: ChainId
) -> Confirmation:
    confirmation = _record_untrusted(outcome.confirmation, Confirmation)
    outcome_root = bytes_of(outcome.outcome_root)
    leaf = outcome_leaf(bytes_of(disclosure.salt), outcome_codec.encode(Outcome(application, confirmation)))
    if not leaf_is_under(outcome_root, leaf, _list_proof(outcome.path)):
        raise PeerError("bad_path", "application and confirmation do not lead to the outcomes' root")
    places = [(path.index, path.count) for path in (disclosure.path, outcome.path)]
    if outcome.round_number == 0 and places[0] != places[1]:
        raise PeerError("bad_path", "the confirmation stands at another place than its application")
    if confirmation.serial != application.serial:
        raise PeerError("bad_path", "the confirmation is of another application")
    payload = answer_hash(
        disclosure.bank,
        disclosure.issuer,
        anchor.epoch,
        bytes_of(disclosure.root),
        outcome.round_number,
        outcome_root,
        anchor.previous,
    )
    _check_signature(anchor.issuer_key, anchor.answer_signature, Purpose.ANSWER, chain_id, payload)
    return confirmation


def _check_signature(key: bytes, signature: bytes, purpose: Purpose, chain_id: ChainId, payload: bytes) -> None:
    if not PublicKey.load_untrusted(key).verifies(signature, purpose, chain_id, payload):
        raise PeerError("bad_signature", f"the signature of the {purpose} is not the anchor's key's")


def encode_disclosure(disclosure: Disclosure) -> bytes:
    """Return the file's bytes, indented for people."""
    return msgspec.json.format(msgspec.json.encode(disclosure), indent=2) + b"\n"


def decode_disclosure_untrusted(data: bytes) -> Disclosure:
    """Decode a disclosure's file.

    Raises:
        PeerError: ``too_large`` or ``malformed``.
    """
    if len(data) > FILE_BYTES_MAX:
        raise PeerError("too_large", f"{len(data)} bytes, a disclosure has at most {FILE_BYTES_MAX}")
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerError("malformed", str(error)) from None


def save(disclosure: Disclosure, path: Path) -> None:
    """Write the file; it replaces what was there."""
    path.write_bytes(encode_disclosure(disclosure))


def load_untrusted(path: Path) -> Disclosure:
    """Read a file that anyone may have made; errors as for :func:`decode_disclosure_untrusted`, and of the disk."""
    with path.open("rb") as stream:
        return decode_disclosure_untrusted(stream.read(FILE_BYTES_MAX + 1))


def _outcome_object(package: Package, answer: Answer, place: int) -> OutcomeObject:
    places = answer.places if answer.round_number else [*range(len(package.applications))]
    if place not in places:
        raise LocalError("not_allotted", f"round {answer.round_number} says nothing of this order")
    index = places.index(place)
    leaves = outcome_leaves(package, answer.confirmations, answer.places if answer.round_number else ())
    return OutcomeObject(
        _object_of(answer.confirmations[index]),
        answer.round_number,
        hex_of(answer.outcome_root),
        _path_object(prove_leaf(leaves, index)),
    )


def _object_of(record: Record) -> dict[str, Any]:
    """Return a record as an object by its fields' names."""
    fields = msgspec.structs.asdict(record)
    return {name: _object_of(value) if isinstance(value, Record) else value for name, value in fields.items()}


def _record_untrusted(fields: dict[str, Any], kind: type[R]) -> R:
    """Return the record whose fields an object names, all of them and no other."""
    try:
        return msgspec.convert(_values_of(fields, kind), kind)
    except msgspec.ValidationError as error:
        raise PeerError("malformed", f"{kind.__name__}: {error}") from None


def _values_of(fields: dict[str, Any], kind: type[Record]) -> list[Any]:
    names = kind.__struct_fields__
    if {*fields} != {*names}:
        raise PeerError("malformed", f"{kind.__name__} has exactly the fields {', '.join(names)}")
    values = [fields[name] for name in names]
    return [
        _values_of(value, Investor) if name == "investor" and isinstance(value, dict) else value
        for name, value in zip(names, values, strict=True)
    ]


def _path_object(proof: ListProof) -> PathObject:
    return PathObject(proof.index, proof.count, [hex_of(item) for item in proof.path])


def _list_proof(item: PathObject) -> ListProof:
    return ListProof(item.index, item.count, [bytes_of(part) for part in item.path])
