"""Agreements and terms as files that go from party to party until all have signed. Reads and writes files, else pure.

An agreement's hash and its signatures are what the contract ``cooperation`` asks for; the paper itself stays where it
is, and only its SHA-256 stands here. A file holds no secret: whoever has it can only do what all signed.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import msgspec

from consensus.ledger.codec import Value
from consensus.ledger.cooperation import agreement_hash, terms_hash
from consensus.ledger.errors import LocalError
from consensus.ledger.ids import HASH_BYTES, ChainId, Hash
from consensus.ledger.keys import PrivateKey, PublicKey, Purpose
from consensus.ledger.transaction import Call, make_call
from services.client.answers import HexText, bytes_of, hex_of
from services.local.files import replace_file

FILE_BYTES_MAX = 256 * 1024
DOCUMENT_BYTES_MAX = 256 * 1024 * 1024
ISSUERS_MAX = 32
GRACE_MS = 10 * 60 * 1_000
"""How long confirmations may still travel after a revocation, unless the parties agree on another time."""
VALIDITY_MS = 365 * 24 * 3_600 * 1_000
TERMS_EXPIRE_MS = 2**53
"""Of terms that do not expire by themselves."""
KINDS = ("001", "002", "003", "008", "020", "022", "024", "026", "027", "028", "036")
AMOUNT_MAX = 10**16 - 1

Organisation = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
Number = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
Subject = Annotated[str, msgspec.Meta(pattern=r"^(product:[A-Za-z0-9]{1,12}|type:[a-z0-9-]{1,32})\Z")]
TimeMs = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Amount = Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_MAX)]
F = TypeVar("F", bound="_File")


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Base of files: JSON with camelCase names."""


class Agreement(_File, frozen=True, kw_only=True):
    """A cooperation agreement: what it names, and who has signed it so far.

    ``document`` is the SHA-256 of the paper, ``chain_id`` the chain that it counts on, times are ms UTC; ``grace_ms``
    is how long confirmations may still travel after a revocation. ``signatures`` are 64 bytes by organisation.
    """

    format: Literal["hansa-agreement-1"] = "hansa-agreement-1"
    chain_id: HexText
    number: Number
    bank: Organisation
    issuers: Annotated[list[Organisation], msgspec.Meta(min_length=1, max_length=ISSUERS_MAX)]
    document: HexText
    valid_from_ms: TimeMs
    valid_until_ms: TimeMs
    grace_ms: Annotated[int, msgspec.Meta(ge=0, le=90 * 24 * 3_600 * 1_000)]
    signatures: dict[Organisation, HexText] = {}

    @property
    def parties(self) -> list[str]:
        """Who has to sign: the bank, then the issuers."""
        return [self.bank, *self.issuers]

    @property
    def missing(self) -> list[str]:
        """Who has not signed yet."""
        return [name for name in self.parties if name not in self.signatures]

    def id(self) -> Hash:
        """Return what is signed; it is the id of an application with this agreement."""
        document = bytes_of(self.document)
        return agreement_hash(
            self.number, self.bank, self.issuers, document, self.valid_from_ms, self.valid_until_ms, self.grace_ms
        )

    def checked(self) -> Self:
        """Return self.

        Raises:
            LocalError: ``bad_agreement``: issuers that do not ascend, a hash of another size, times out of order.
        """
        if self.issuers != sorted(set(self.issuers)) or self.bank in self.issuers:
            raise LocalError("bad_agreement", "issuers are named once each, in ascending order, and without the bank")
        if len(bytes_of(self.document)) != HASH_BYTES:
            raise LocalError("bad_agreement", f"document is a SHA-256, {HASH_BYTES} bytes")
        if self.valid_from_ms >= self.valid_until_ms:
            raise LocalError("bad_agreement", "it ends before it begins")
        if extra := sorted(set(self.signatures) - set(self.parties)):
            raise LocalError("bad_agreement", f"{extra[0]} has signed and is not named")
        return self

    def call(self) -> Call:
        """Return the call by which the bank applies for the channels."""
        arguments: dict[str, Value] = {
            "number": self.number,
            "issuers": [*self.issuers],
            "document": bytes_of(self.document),
            "valid_from_ms": self.valid_from_ms,
            "valid_until_ms": self.valid_until_ms,
            "grace_ms": self.grace_ms,
            "signatures": {name: bytes_of(signature) for name, signature in self.signatures.items()},
        }
        return make_call("cooperation", "apply", arguments)


class Conditions(_File, frozen=True, kw_only=True):
    """Who may buy what: business codes that are admitted, qualifications, amounts in 1/100 of the currency (0: any)."""

    kinds: Annotated[list[str], msgspec.Meta(min_length=1, max_length=len(KINDS))]
    age_min: Annotated[int, msgspec.Meta(ge=0, le=150)] = 18
    needs_identity: bool = True
    needs_registration: bool = True
    needs_risk_match: bool = True
    amount_min: Amount = 0
    amount_max: Amount = 0

    def value(self) -> dict[str, Value]:
        """Return them as the contract takes them, kinds in ascending order.

        Raises:
            LocalError: ``bad_terms``.
        """
        if unknown := sorted(set(self.kinds) - set(KINDS)):
            raise LocalError("bad_terms", f"{unknown[0]} is none of the business codes {', '.join(KINDS)}")
        if self.amount_max and self.amount_min > self.amount_max:
            raise LocalError("bad_terms", "the least amount exceeds the largest")
        value: dict[str, Value] = msgspec.to_builtins(self)
        return value | {"kinds": [kind for kind in KINDS if kind in self.kinds]}


class TermsFile(_File, frozen=True, kw_only=True):
    """Terms that one party proposes to the other; ``subject`` is ``product:CODE`` or ``type:NAME``."""

    format: Literal["hansa-terms-1"] = "hansa-terms-1"
    bank: Organisation
    issuer: Organisation
    subject: Subject
    terms: Conditions
    effective_ms: TimeMs = 0
    expires_ms: TimeMs = TERMS_EXPIRE_MS

    def id(self, version: int) -> Hash:
        """Return what both sign, as this version of the subject's terms; it is the proposal's id."""
        value = self.terms.value()
        return terms_hash(self.bank, self.issuer, self.subject, version, value, self.effective_ms, self.expires_ms)

    def call(self, version: int, key: PrivateKey, chain_id: ChainId) -> Call:
        """Return the call that proposes them as this version, signed with the proposer's business key."""
        arguments: dict[str, Value] = {
            "bank": self.bank,
            "issuer": self.issuer,
            "subject": self.subject,
            "terms": self.terms.value(),
            "effective_ms": self.effective_ms,
            "expires_ms": self.expires_ms,
            "signature": sign_terms(self.id(version), key, chain_id),
        }
        return make_call("cooperation", "propose_terms", arguments)


def made_terms(*, bank: str, issuer: str, subject: str, terms: Conditions) -> TermsFile:
    """Return terms that begin at once and do not expire.

    Raises:
        LocalError: ``bad_terms``.
    """
    terms.value()
    try:
        return msgspec.convert(
            msgspec.to_builtins(TermsFile(bank=bank, issuer=issuer, subject=subject, terms=terms)), TermsFile
        )
    except msgspec.ValidationError as error:
        raise LocalError("bad_terms", str(error)) from None


def sign_terms(proposal: bytes, key: PrivateKey, chain_id: ChainId) -> bytes:
    """Return a business key's signature under a proposal of terms."""
    return key.sign(Purpose.TERMS, chain_id, proposal)


def new_agreement(
    chain_id: ChainId,
    *,
    number: str,
    bank: str,
    issuers: Iterable[str],
    document: bytes,
    valid_from_ms: int,
    valid_until_ms: int,
    grace_ms: int = GRACE_MS,
) -> Agreement:
    """Return an agreement that nobody has signed; ``document`` is the SHA-256 of the paper.

    Raises:
        LocalError: ``bad_agreement``.
    """
    values = {
        "chainId": hex_of(chain_id),
        "number": number,
        "bank": bank,
        "issuers": sorted(set(issuers)),
        "document": hex_of(document),
        "validFromMs": valid_from_ms,
        "validUntilMs": valid_until_ms,
        "graceMs": grace_ms,
    }
    try:
        return msgspec.convert(values, Agreement).checked()
    except msgspec.ValidationError as error:
        raise LocalError("bad_agreement", str(error)) from None


def sign_agreement(agreement: Agreement, organisation: str, key: PrivateKey) -> Agreement:
    """Return the agreement with an organisation's signature by its business key; signed again it is the same.

    Raises:
        LocalError: ``not_party`` for an organisation that it does not name.
    """
    if organisation not in agreement.parties:
        named = ", ".join(agreement.parties)
        raise LocalError("not_party", f"{organisation} is none of the parties of agreement {agreement.number}: {named}")
    signature = key.sign(Purpose.AGREEMENT, ChainId(bytes_of(agreement.chain_id)), agreement.id())
    return msgspec.structs.replace(agreement, signatures=agreement.signatures | {organisation: hex_of(signature)})


def bad_signatures(agreement: Agreement, keys: Mapping[str, Iterable[bytes]]) -> list[str]:
    """Return whose signatures do not hold; ``keys`` are the business keys that count, by organisation.

    An organisation without keys there cannot have signed.
    """
    payload, chain_id = agreement.id(), ChainId(bytes_of(agreement.chain_id))
    wrong: list[str] = []
    for name, signature in agreement.signatures.items():
        publics = [PublicKey.load_untrusted(key) for key in keys.get(name, ())]
        if not any(key.verifies(bytes_of(signature), Purpose.AGREEMENT, chain_id, payload) for key in publics):
            wrong.append(name)
    return wrong


def document_hash(path: Path) -> bytes:
    """Return the SHA-256 of the paper.

    Raises:
        LocalError: ``bad_file``.
    """
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                size += len(part)
                if size > DOCUMENT_BYTES_MAX:
                    raise LocalError("bad_file", f"{path} has more than {DOCUMENT_BYTES_MAX} bytes")
                digest.update(part)
    except OSError as error:
        raise LocalError("bad_file", f"{path}: {error.strerror}") from None
    return digest.digest()


def read_agreement(path: Path, chain_id: ChainId | None = None) -> Agreement:
    """Read an agreement's file; ``chain_id`` is the chain that it must count on, if that matters.

    Raises:
        LocalError: ``bad_file`` naming the field, ``bad_agreement``, ``wrong_chain``.
    """
    found = _read(path, Agreement).checked()
    if chain_id is not None and bytes_of(found.chain_id) != chain_id:
        raise LocalError("wrong_chain", f"the agreement counts on chain {found.chain_id}, this is {hex_of(chain_id)}")
    return found


def read_terms(path: Path) -> TermsFile:
    """Read a file of terms.

    Raises:
        LocalError: ``bad_file`` naming the field, ``bad_terms``.
    """
    file = _read(path, TermsFile)
    file.terms.value()
    return file


def write_file(path: Path, file: Agreement | TermsFile) -> None:
    """Write a file in one step."""
    try:
        replace_file(path, msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n")
    except OSError as error:
        raise LocalError("bad_file", f"{path}: {error.strerror}") from None


def _read(path: Path, kind: type[F]) -> F:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise LocalError("bad_file", f"{path} has more than {FILE_BYTES_MAX} bytes")
        return msgspec.json.decode(content, type=kind)
    except OSError as error:
        raise LocalError("bad_file", f"{path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LocalError("bad_file", f"{path}: {error}") from None
