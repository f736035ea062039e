"""What a gateway reads of the chain, through its institution's own node, which it believes.

The keys of a channel's two sides are remembered, since every package needs one; whoever meets a signature that does not
hold reads them again once. Everything else is read when it is asked for.
"""

from typing import TypeVar

import msgspec

from consensus.ledger.codec import Value
from consensus.ledger.errors import PeerError
from services.agency.interfaces import ProductTerms, Terms
from services.client.errors import Refused
from services.client.reader import Reader

CHANNELS_KNOWN_MAX = 1_024
ANCHORS_PAGE = 100

# What cannot be an id at all is nobody's either: a peer's message that names it must not be asked about for ever.
_UNKNOWN = {
    "unknown_party",
    "unknown_channel",
    "unknown_interface",
    "unknown_product",
    "unknown_terms",
    "bad_arguments",
}

T = TypeVar("T")


class Signers(msgspec.Struct, frozen=True, rename="camel"):
    """Business keys whose signatures count on a channel now, those in force first, and the channel's epoch."""

    epoch: int
    bank_keys: list[bytes]
    issuer_keys: list[bytes]


class Interface(msgspec.Struct, frozen=True, rename="camel"):
    """Whose an interface id (接口标识) is, and the node that it resolves to."""

    issuer: str
    node: str


class Channel(msgspec.Struct, frozen=True, rename="camel"):
    """A channel of the registry; ``status`` is ``OPEN`` or ``REVOKED``, times in ms UTC, 0 for none."""

    bank: str
    issuer: str
    epoch: int
    status: str
    issuer_node: str
    expires_ms: int
    grace_until_ms: int


class Anchor(msgspec.Struct, frozen=True, rename="camel"):
    """An anchor; ``status`` is ``MUTUAL`` or ``CLAIMED``. Keys and signatures that are not there are empty."""

    status: str
    outcome_root: bytes
    orders_signature: bytes
    answer_signature: bytes
    height: int


class Anchors(msgspec.Struct, frozen=True, rename="camel"):
    """All anchors of one round of a package."""

    anchors: list[Anchor]
    is_contradicted: bool


class LogEntry(msgspec.Struct, frozen=True, rename="camel"):
    """An entry of a channel's log of anchors."""

    number: int
    root: bytes
    round_number: int


class _Product(msgspec.Struct, frozen=True, rename="camel"):
    issuer: str
    interface: str
    type: str
    risk: int
    currency: str
    charge_basis_points: int
    is_open: bool
    nav: int
    nav_date: int


class _Terms(msgspec.Struct, frozen=True, rename="camel"):
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

    def public(self) -> Terms:
        """Return them as the gateway's methods answer them."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name != "issuer"}
        return Terms(**fields)


class ChainReader:
    """Asks the contracts ``cooperation`` and ``evidence``.

    Every method may raise ``Unreachable``, ``Refused`` (not for what is just unknown) and ``PeerError`` ``bad_answer``.
    """

    def __init__(self, client: Reader) -> None:
        self._client = client
        self._signers: dict[tuple[str, str], Signers] = {}

    async def signers(self, bank: str, issuer: str, *, is_newest: bool = False) -> Signers | None:
        """Return the business keys that count on a channel, None where there never was one.

        ``is_newest`` reads them again.
        """
        known = self._signers.get((bank, issuer))
        if known is not None and not is_newest:
            return known
        found = await self._query("signers", {"bank": bank, "issuer": issuer}, Signers)
        if found is not None:
            if len(self._signers) >= CHANNELS_KNOWN_MAX:
                self._signers.clear()
            self._signers[bank, issuer] = found
        return found

    async def interface(self, interface: str) -> Interface | None:
        """Return whose an interface id is, None for an unknown one."""
        return await self._query("interface", {"interface": interface}, Interface)

    async def channel(self, bank: str, issuer: str) -> Channel | None:
        """Return a channel of the registry, None where there never was one."""
        return await self._query("channel", {"bank": bank, "issuer": issuer}, Channel)

    async def product(self, product: str, bank: str) -> ProductTerms | None:
        """Return a product with the terms in force for this bank, None where the chain has no such product."""
        found = await self._query("product", {"product": product}, _Product)
        if found is None:
            return None
        terms = await self._query("terms", {"bank": bank, "product": product}, _Terms)
        before = None
        if terms is not None and terms.version > 1:
            version: dict[str, Value] = {"subject": terms.subject, "version": terms.version - 1}
            before = await self._query("terms_version", {"bank": bank, "issuer": found.issuer, **version}, _Terms)
        return ProductTerms(
            product,
            found.issuer,
            found.interface,
            found.type,
            found.risk,
            found.currency,
            found.nav,
            found.nav_date,
            found.charge_basis_points,
            found.is_open,
            None if terms is None else terms.public(),
            None if before is None else before.public(),
        )

    async def anchors_of(self, bank: str, issuer: str, root: bytes, round_number: int) -> list[Anchor]:
        """Return the anchors of a round of a package."""
        arguments: dict[str, Value] = {"bank": bank, "issuer": issuer, "root": root, "round_number": round_number}
        found = await self._query("anchor_of", arguments, Anchors, "evidence")
        return [] if found is None else found.anchors

    async def log(self, bank: str, issuer: str, start: int) -> list[LogEntry]:
        """Return a page of a channel's log of anchors from a number on; a short page is the last."""
        arguments: dict[str, Value] = {"bank": bank, "issuer": issuer, "start": start, "limit": ANCHORS_PAGE}
        return await self._query("anchors", arguments, list[LogEntry], "evidence") or []

    async def _query(
        self, method: str, arguments: dict[str, Value], kind: type[T], contract: str = "cooperation"
    ) -> T | None:
        try:
            answer = await self._client.query(contract, method, arguments)
        except Refused as error:
            if error.code in _UNKNOWN:
                return None
            raise
        if answer is None:
            return None
        try:
            return msgspec.convert(answer, kind)
        except msgspec.ValidationError as error:
            raise PeerError("bad_answer", f"{contract}.{method} answers another shape: {error}") from None
