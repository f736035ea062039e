"""What people of an institution do on the chain: agreements, channels, terms. One function an errand, over a client."""

from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

import msgspec
import trio

from consensus.ledger.codec import Value, decode_untrusted
from consensus.ledger.cooperation import terms_hash
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import Call, make_call
from services.agency.credentials import sign_terms
from services.client.answers import HexText, bytes_of
from services.client.client import Client
from services.client.errors import Refused

CONTRACT = "cooperation"
PAGE = 100
DECISION_POLL_MS = 100

T = TypeVar("T")


class PartyRecord(msgspec.Struct, frozen=True, rename="camel"):
    """A party as the chain has it: its node, its business key and its node's channel key."""

    organisation: str
    node: str
    business_key: bytes
    channel_key: bytes
    role: str


class ApplicationRecord(msgspec.Struct, frozen=True, rename="camel"):
    """An application for channels; ``status`` is PENDING, OPENED or REFUSED."""

    application: bytes
    number: str
    bank: str
    issuers: list[str]
    valid_from_ms: int
    valid_until_ms: int
    grace_ms: int
    status: str
    reason: str


class ChannelRecord(msgspec.Struct, frozen=True, rename="camel"):
    """A channel of the registry; times are ms UTC, 0 for none; ``status`` is OPEN or REVOKED."""

    bank: str
    issuer: str
    epoch: int
    status: str
    agreement: bytes
    bank_node: str
    issuer_node: str
    opened_ms: int
    expires_ms: int
    revoked_ms: int
    grace_until_ms: int
    revoked_by: str
    reason: str


class TermsRecord(msgspec.Struct, frozen=True, rename="camel"):
    """Enacted terms; amounts in 1/100 of the currency, 0 for no bound."""

    bank: str
    issuer: str
    subject: str
    version: int
    kinds: list[str]
    age_min: int
    needs_identity: bool
    needs_registration: bool
    needs_risk_match: bool
    amount_min: int
    amount_max: int
    effective_ms: int
    expires_ms: int
    proposal: bytes


class ProposalRecord(msgspec.Struct, frozen=True, rename="camel"):
    """Proposed terms; ``status`` is PROPOSED, ACCEPTED (both signed) or VOID (its version was enacted otherwise)."""

    proposal: bytes
    bank: str
    issuer: str
    subject: str
    version: int
    terms: dict[str, object]
    effective_ms: int
    expires_ms: int
    proposer: str
    signatures: dict[str, bytes]
    status: str


class ProductRecord(msgspec.Struct, frozen=True, rename="camel"):
    """A product; ``nav`` in 1/10,000 of the currency a unit, 0 before the first; ``risk`` 1…5 for R1–R5."""

    product: str
    issuer: str
    interface: str
    type: str
    risk: int
    currency: str
    charge_basis_points: int
    is_open: bool
    nav: int
    nav_date: int


class InterfaceRecord(msgspec.Struct, frozen=True):
    """Whose an interface id (接口标识) is, and the node that it resolves to."""

    interface: str
    issuer: str
    node: str


class _KeyRecord(msgspec.Struct, frozen=True, rename="camel"):
    is_accepted: bool


class _RawState(msgspec.Struct, frozen=True):
    raw: HexText | None


async def ask(client: Client, method: str, arguments: dict[str, Value], kind: type[T]) -> T:
    """Ask the contract ``cooperation``; one node is asked and believed.

    Raises:
        Refused: with the contract's code.
        PeerError: ``bad_answer``.
    """
    answer = await client.query(CONTRACT, method, arguments)
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError as error:
        raise PeerError("bad_answer", f"{CONTRACT}.{method}: {error}") from None


async def find(client: Client, method: str, arguments: dict[str, Value], kind: type[T], unknown: str) -> T | None:
    """Ask for one thing; None where the contract says ``unknown``."""
    try:
        return await ask(client, method, arguments, kind)
    except Refused as error:
        if error.code != unknown:
            raise
        return None


async def _told(code: str, said: str, answer: Awaitable[T]) -> T:
    """Return an answer; where the contract refuses with ``code``, say in words what it means."""
    try:
        return await answer
    except Refused as error:
        if error.code != code:
            raise
        raise Refused(code, said) from None


async def party(client: Client, organisation: str) -> PartyRecord | None:
    """Return a party, None where it has not registered."""
    return await find(client, "party", {"organisation": organisation}, PartyRecord, "unknown_party")


async def channel(client: Client, bank: str, issuer: str) -> ChannelRecord | None:
    """Return a channel, None where there never was one."""
    return await find(client, "channel", {"bank": bank, "issuer": issuer}, ChannelRecord, "unknown_channel")


async def application(client: Client, application_id: bytes) -> ApplicationRecord | None:
    """Return an application by its id, 32 bytes."""
    arguments: dict[str, Value] = {"application": application_id}
    return await find(client, "application", arguments, ApplicationRecord, "unknown_application")


async def product(client: Client, code: str) -> ProductRecord | None:
    """Return a product, None where the chain has none of this code."""
    return await find(client, "product", {"product": code}, ProductRecord, "unknown_product")


async def interface(client: Client, name: str) -> InterfaceRecord | None:
    """Return whose an interface id is, None for an unknown one."""
    return await find(client, "interface", {"interface": name}, InterfaceRecord, "unknown_interface")


async def channels(client: Client) -> list[ChannelRecord]:
    """Return all channels, by bank and issuer."""
    found: list[ChannelRecord] = []
    while page := await ask(
        client, "channels", _from(f"{found[-1].bank}/{found[-1].issuer}" if found else ""), _Channels
    ):
        found += page
    return found


async def applications(client: Client) -> list[ApplicationRecord]:
    """Return all applications."""
    found: list[ApplicationRecord] = []
    while page := await ask(client, "applications", _from(found[-1].application.hex() if found else ""), _Applications):
        found += page
    return found


async def proposals(client: Client) -> list[ProposalRecord]:
    """Return all proposals of terms that are neither enacted nor withdrawn."""
    found: list[ProposalRecord] = []
    while page := await ask(client, "proposals", _from(found[-1].proposal.hex() if found else ""), _Proposals):
        found += page
    return found


async def products(client: Client) -> list[ProductRecord]:
    """Return all products, by code."""
    found: list[ProductRecord] = []
    while page := await ask(client, "products", _from(found[-1].product if found else ""), _Products):
        found += page
    return found


async def terms_in_force(client: Client, bank: str, code: str) -> TermsRecord | None:
    """Return the terms in force for a product at a bank.

    Raises:
        Refused: ``unknown_product``.
    """
    arguments: dict[str, Value] = {"bank": bank, "product": code}
    said = f"the chain has no product {code}"
    return await _told("unknown_product", said, ask(client, "terms", arguments, _MaybeTerms))  # type: ignore[arg-type]


async def terms_version(client: Client, bank: str, issuer: str, subject: str, version: int) -> TermsRecord | None:
    """Return one version of a subject's terms, None where there is none."""
    arguments: dict[str, Value] = {"bank": bank, "issuer": issuer, "subject": subject, "version": version}
    return await find(client, "terms_version", arguments, TermsRecord, "unknown_terms")


async def proposal(client: Client, proposal_id: bytes) -> ProposalRecord:
    """Return a proposal of terms.

    Raises:
        Refused: ``unknown_proposal``.
    """
    said = "nothing is proposed under this id: it is enacted or withdrawn, or never was"
    return await _told("unknown_proposal", said, ask(client, "proposal", {"proposal": proposal_id}, ProposalRecord))


def accept_call(found: ProposalRecord, key: PrivateKey, chain_id: ChainId) -> Call:
    """Return the call that accepts a proposal, signed over what it says, not over what its id claims to be.

    Raises:
        PeerError: ``bad_answer`` where the id is not that of these terms.
    """
    terms = msgspec.convert(found.terms, dict[str, Any])
    says = (found.bank, found.issuer, found.subject, found.version, terms, found.effective_ms, found.expires_ms)
    if terms_hash(*says) != found.proposal:
        raise PeerError("bad_answer", "the node tells other terms than the proposal's id is of")
    arguments: dict[str, Value] = {"proposal": found.proposal, "signature": sign_terms(found.proposal, key, chain_id)}
    return make_call(CONTRACT, "accept_terms", arguments)


async def await_enacted(client: Client, found: ProposalRecord, *, timeout_ms: int) -> bool:
    """Wait until a proposal's version is the newest or time is up, and tell whether it is enacted.

    Raises:
        Refused: ``terms_superseded``: another proposal became this version.
    """
    deadline = trio.current_time() + timeout_ms / 1000
    while True:
        if await newest_version(client, found.bank, found.issuer, found.subject) >= found.version:
            enacted = await terms_version(client, found.bank, found.issuer, found.subject, found.version)
            if enacted is None or enacted.proposal != found.proposal:
                raise Refused("terms_superseded", f"another proposal became version {found.version}")
            return True
        if trio.current_time() >= deadline:
            return False
        await trio.sleep(DECISION_POLL_MS / 1000)


async def newest_version(client: Client, bank: str, issuer: str, subject: str) -> int:
    """Return the newest version of a subject's terms, 0 where there is none; a proposal names the one after it."""
    version = await _state(client, f"terms-now/{bank}/{issuer}/{subject}")
    return version if isinstance(version, int) else 0


async def business_keys(client: Client, organisations: Iterable[str]) -> dict[str, list[bytes]]:
    """Return the business keys whose signatures count, by organisation, the one in force first.

    None of one that has not registered.
    """
    return {name: await _signing_keys(client, name) for name in organisations}


async def _signing_keys(client: Client, organisation: str) -> list[bytes]:
    record = await party(client, organisation)
    if record is None:
        return []
    keys = [record.business_key]
    replaced = await _state(client, f"replaced/{organisation}")
    for key, _ in msgspec.convert(replaced or [], list[tuple[bytes, int]]):
        if (await ask(client, "key_at", {"organisation": organisation, "key": key}, _KeyRecord)).is_accepted:
            keys.append(key)
    return keys


async def await_decision(client: Client, application_id: bytes, *, timeout_ms: int) -> ApplicationRecord:
    """Return an application once it is decided, or as it stands when time is up.

    Raises:
        Refused: ``unknown_application``.
    """
    deadline = trio.current_time() + timeout_ms / 1000
    while True:
        found = await ask(client, "application", {"application": application_id}, ApplicationRecord)
        if found.status != "PENDING" or trio.current_time() >= deadline:
            return found
        await trio.sleep(DECISION_POLL_MS / 1000)


async def application_of(client: Client, bank: str, number: str) -> ApplicationRecord | None:
    """Return the application with a bank's own number, None where it has none."""
    found = await _state(client, f"agreement/{bank}/{number}")
    return await application(client, found) if isinstance(found, bytes) else None


async def _state(client: Client, key: str) -> Value:
    """Return a value of the contract's state, unproven, None where there is none."""
    answer = await client.request("state_get", {"key": f"{CONTRACT}/{key}"}, _RawState)
    return None if answer.raw is None else decode_untrusted(bytes_of(answer.raw))


def _from(last: str) -> dict[str, Value]:
    """Return a page's arguments: after the key that was last. No key has a sign below ``-``."""
    return {"start": f"{last}!" if last else "", "limit": PAGE}


_Channels = list[ChannelRecord]
_Applications = list[ApplicationRecord]
_Proposals = list[ProposalRecord]
_Products = list[ProductRecord]
_MaybeTerms = TermsRecord | None
