"""The payer's client: from a code to a payment. Money is simulated.

The code says an identity, the resolver whom that is at the platform, and the merchant's key out of the same proven
states whether a signed code is its own. What the payer enters goes to the platform, which checks all of it again. An
order of a merchant is paid once, so that the same again is safe whatever became of the first try.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey
from consensus.ledger.payees import Delegation, Mode
from services.client.errors import Refused
from services.payee import emv
from services.payee.codes import ReadCode, read_code, verify_code
from services.payee.identity import identity_text
from services.payee.interfaces import Pay, Payment
from services.payee.resolver import Asked, Candidate, QuerySigner, Resolved, Resolver
from services.payee.split import open_split

OPEN, PAID, REFUSED = "OPEN", "PAID", "REFUSED"
ORDER_RANDOM_BYTES = 10
"""Of an order's name where neither code nor payer gives one."""
OPEN_PAUSE_FIRST_MS, OPEN_PAUSE_MAX_MS = 100, 2_000
"""How long until an open payment is asked for again: doubling."""


class Platform(Protocol):
    """The platform's side for payers: :class:`services.payee.link.PlatformLink`."""

    async def delegate(self, key: bytes) -> Delegation:
        """Have the platform let a key sign queries for it."""
        ...

    async def part(self, identity: bytes) -> bytes:
        """Return the platform's part of the split key of its record of a merchant."""
        ...

    async def pay(self, asked: Pay) -> Payment:
        """Pay; the same again is the same payment."""
        ...


@dataclass(frozen=True, slots=True)
class Looked:
    """A code that its merchant's key bears out, and whom it is of, as far as one platform can say."""

    code: ReadCode
    resolved: Resolved

    @property
    def target(self) -> Candidate:
        """The platform's own record.

        Raises:
            Refused: ``no_platform``, which after mode B is found out here.
        """
        found = self.resolved.target
        if found is None:
            raise Refused("no_platform", f"{self.resolved.server} has no record of this merchant")
        return found


async def delegated_signer(platform: Platform, server: str) -> QuerySigner:
    """Return a new key that signs queries for a platform, by its delegation.

    Raises:
        PeerError: ``bad_answer`` where another platform answers.
        Refused, Unreachable: as :class:`services.payee.link.PlatformLink`.
    """
    key = PrivateKey.generate()
    given = await platform.delegate(key.public.compressed)
    if given.server != server:
        raise PeerError("bad_answer", f"platform {given.server} answers in place of {server}")
    return QuerySigner(server, key, given)


def read_payload(payload: str) -> ReadCode:
    """Read a code's characters; nothing of it is verified yet.

    Raises:
        PeerError: ``bad_payload``, ``bad_crc``, ``too_large``, ``no_identity``, ``bad_code`` and others of
            :mod:`services.payee.codes`.
    """
    return read_code(emv.parse(payload))


class Payer:
    """Pays what codes ask for through one platform."""

    def __init__(
        self,
        resolver: Resolver,
        platform: Platform,
        *,
        chain_id: ChainId,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        """Take who resolves and who pays; ``now_ms`` (UTC) judges expiry, ``random_bytes`` names orders."""
        self._resolver = resolver
        self._platform = platform
        self._chain_id = chain_id
        self._now_ms = now_ms
        self._random_bytes = random_bytes

    def query(self, code: ReadCode, mode: Mode = Mode.TARGET) -> Asked:
        """Return a signed query about a code's merchant, for whoever has it recorded before it is asked."""
        return self._resolver.query(code.identity, mode)

    async def look(
        self, code: ReadCode, *, mode: Mode = Mode.TARGET, asked: Asked | None = None, may_be_expired: bool = False
    ) -> Looked:
        """Find out whose code it is, and whether it is good; nothing is paid.

        ``asked`` is a query about the code's merchant that was made before, with its own mode. An expired code may have
        been paid while it was good: the platform knows, and pays it no more. The platform's own record is opened where
        it has a split key and the code a part of it.

        Raises:
            Refused, Unreachable, PeerError: as :meth:`Resolver.ask`.
            Refused: ``no_part`` where the platform has lost its part of a split key.
            PeerError: ``bad_code``, ``code_unsigned``, ``code_expired``; ``wrong_key_part``.
        """
        resolved = await self._resolver.ask(asked or self.query(code, mode))
        verify_code(code, resolved.merchant_key, self._chain_id, 0 if may_be_expired else self._now_ms())
        return Looked(code, await self._opened(code, resolved))

    def terms(self, looked: Looked, *, payer: str, amount: int | None = None, order: str | None = None) -> Pay:
        """Return what is to be paid; ``amount`` in 1/100, and ``order``, must not differ from the code's.

        An order that nobody names gets a random name: who pays again names it.

        Raises:
            LocalError: ``wrong_amount``, ``amount_missing``, ``wrong_order``.
            Refused: ``no_platform``; ``wrong_currency`` where code and platform name different ones;
                ``key_part_missing`` where the record has a split key and the code no part of it.
        """
        code, acquiring = looked.code, looked.target.acquiring
        if looked.target.split is not None and acquiring is None:
            raise Refused("key_part_missing", "the record has a split key, and this code has no part of it")
        if acquiring is None:
            raise Refused("no_platform", f"{looked.resolved.server} has no record of this merchant that it can show")
        if code.currency is not None and code.currency != acquiring.currency:
            raise Refused(
                "wrong_currency", f"the code is in {code.currency}, the platform pays in {acquiring.currency}"
            )
        if code.amount is not None and amount not in (None, code.amount):
            raise LocalError("wrong_amount", "the code names another amount")
        if code.order is not None and order not in (None, code.order):
            raise LocalError("wrong_order", f"the code is for order {code.order}")
        wanted = amount if code.amount is None else code.amount
        if wanted is None:
            raise LocalError("amount_missing", "the code names no amount: say how much")
        name = code.order or order or f"o-{self._random_bytes(ORDER_RANDOM_BYTES).hex()}"
        account, currency = acquiring.account, acquiring.currency
        return Pay(payload=code.text, payer=payer, payee=account, amount=wanted, order=name, currency=currency)

    async def _opened(self, code: ReadCode, resolved: Resolved) -> Resolved:
        """Return a resolution with the platform's own record opened, where a split key needs the code's part."""
        own = resolved.target
        if own is None or own.split is None or code.key_part is None:
            return resolved
        part = await self._platform.part(resolved.identity)
        acquiring = open_split(
            own.split, code_part=code.key_part, part=part, identity=resolved.identity, server=resolved.server
        )
        opened = replace(own, acquiring=acquiring)
        return replace(resolved, candidates=tuple(opened if one is own else one for one in resolved.candidates))

    async def pay(self, looked: Looked, asked: Pay, *, wait_ms: int = 0) -> Payment:
        """Pay, and for up to ``wait_ms`` ask again while the outcome is open; the same again is the same payment.

        Raises:
            Refused: with the platform's code; nothing was paid by this.
            Unreachable: ``platform_unreachable``: it is unknown what was done, and the same again is safe.
            PeerError: ``bad_answer`` for a payment that was not asked for.
        """
        deadline = trio.current_time() + wait_ms / 1000
        pause_ms = OPEN_PAUSE_FIRST_MS
        while True:
            payment = await self._platform.pay(asked)
            _check_answers(payment, looked, asked)
            left_ms = 1000 * (deadline - trio.current_time())
            if payment.state != OPEN or left_ms <= 0:
                return payment
            await trio.sleep(min(pause_ms, left_ms) / 1000)
            pause_ms = min(2 * pause_ms, OPEN_PAUSE_MAX_MS)


def _check_answers(payment: Payment, looked: Looked, asked: Pay) -> None:
    """Refuse a payment that is not the one that was asked for."""
    resolved = looked.resolved
    said = (payment.server, payment.identity, payment.order, payment.payer, payment.payee, payment.amount)
    meant = (resolved.server, identity_text(resolved.identity), asked.order, asked.payer, asked.payee, asked.amount)
    if said != meant or asked.currency not in (None, payment.currency) or payment.state not in (OPEN, PAID, REFUSED):
        raise PeerError("bad_answer", f"platform {resolved.server} speaks of another payment than it was asked for")
