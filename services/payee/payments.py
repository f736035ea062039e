"""Payments of a platform: what a code asks for is paid once for (merchant, order), over the account port. Simulated.

The platform trusts nobody's reading of a code: it reads and verifies it with the merchant's proven key, and pays to the
account in its own record, as the chain has it now. A payment is OPEN in the vault before the account system hears of
it, and stays so until that has said what came of it; then it is PAID or REFUSED. OPEN ones are asked for again, by the
same event, by whoever comes first: the next start, the same request, or :meth:`PaymentDesk.finish_forever`.

An order that its merchant has signed is another one than an order of the same name that a payer made up, so that nobody
takes an order's place with a static code. The event that the account system knows says nothing of the platform: where
platforms share an account system, it pays an order for one of them.
"""

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import structlog
import trio

from consensus.ledger.codec import encode
from consensus.ledger.errors import HansaError, PeerError
from consensus.ledger.ids import tagged_hash
from services.accounts.port import AMOUNT_MAX, AccountSystem, Answer, Operation, Order
from services.client.errors import Refused, Unreachable
from services.payee import emv
from services.payee.codes import ReadCode, read_code, verify_code
from services.payee.identity import identity_of, identity_text
from services.payee.interfaces import Pay, Payment, Payments, PaymentsQuery
from services.payee.metrics import PlatformMetrics
from services.payee.platform_chain import PlatformChain
from services.payee.platform_store import OPEN, PAID, REFUSED, KeptPayment, PlatformStore
from services.payee.records import RecordDesk

UNDER_WAY_MAX = 512
"""Requests for payments under way; who comes on top is refused with ``busy``."""
ASK_S = 15.0
"""How long the account system has for one answer."""
PAUSE_FIRST_MS, PAUSE_MAX_MS = 500, 15_000
"""How long open payments wait before they are asked for again: doubling while the account system is away."""
EVENT_HEX_DIGITS = 40
CONFLICT = "order_conflict"

log = structlog.get_logger("platform")


def event_of(identity: bytes, kind: str, order: str) -> str:
    """Return the id under which the account system knows an order, the same for every platform."""
    return f"payee-{tagged_hash('payee-order', encode([identity, kind, order])).hex()[:EVENT_HEX_DIGITS]}"


@dataclass(slots=True)
class _Turn:
    """Who asks about one order goes one after the other; ``asked`` counts how often the account system was asked."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    users: int = 0
    asked: int = 0


@dataclass(frozen=True, slots=True)
class _Request:
    """A payment as it is asked for, its code read and not yet verified."""

    code: ReadCode
    order: str
    amount: int
    payer: str
    payee: str
    currency: str | None
    payload_hash: bytes

    @property
    def kind(self) -> Literal["signed", "open"]:
        """Whose order it is: the merchant's, who signs it, or the payer's."""
        return "signed" if self.code.is_dynamic else "open"

    def is_again(self, kept: KeptPayment) -> bool:
        """Tell whether this is the very request that a payment was made for: it has passed all checks."""
        asked = (self.payload_hash, self.payer, self.payee, self.amount)
        is_same = asked == (kept.payload_hash, kept.payer, kept.payee, kept.amount)
        return is_same and self.currency in (None, kept.currency)


class PaymentDesk:
    """What payers' clients ask for, and what the owner sees of it."""

    def __init__(
        self,
        store: PlatformStore,
        chain: PlatformChain,
        records: RecordDesk,
        accounts: AccountSystem,
        metrics: PlatformMetrics,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._chain = chain
        self._records = records
        self._accounts = accounts
        self._metrics = metrics
        self._now_ms = now_ms
        self._turns: dict[bytes, _Turn] = {}
        self._under_way = 0
        self._left = trio.Event()
        self._left.set()  # an earlier run may have left payments open
        self._is_away = False
        self.trouble = ""
        """Why the account system takes nothing at present, "" while it does."""

    async def pay(self, params: Pay) -> Payment:
        """See :class:`services.payee.interfaces.Pay`.

        Raises:
            PeerError, Refused: with one of its codes; this request has paid nothing.
            Unreachable: the chain cannot be read; this request has paid nothing.
        """
        if self._under_way >= UNDER_WAY_MAX:
            raise Refused("busy", f"{self._under_way} payments are under way: the same again is safe")
        self._under_way += 1
        try:
            payment = await self._pay(_read_untrusted(params))
            if payment.code == CONFLICT:
                raise Refused(CONFLICT, f"order {payment.order} was paid on other terms, or by another platform")
        except HansaError as error:
            self._metrics.payments.labels(error.code).inc()
            raise
        finally:
            self._under_way -= 1
        self._metrics.payments.labels(payment.code or payment.state).inc()
        return payment

    async def payments(self, params: PaymentsQuery) -> Payments:
        """See :class:`services.payee.interfaces.PaymentsQuery`."""
        identity = identity_of(params.identity) if params.identity else None
        found = self._store.newest_payments(identity, params.limit)
        return Payments([self._told(payment) for payment in found])

    async def finish_forever(self) -> None:
        """Ask for open payments until none is open, and again once one is left open."""
        pause_ms = PAUSE_FIRST_MS
        while True:
            await self._left.wait()
            self._left = trio.Event()
            if await self.finish():
                pause_ms = PAUSE_FIRST_MS
                continue
            self._left.set()
            await trio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, PAUSE_MAX_MS)

    async def finish(self) -> bool:
        """Ask once for each open payment, while the account system answers; tell whether none is left."""
        is_done = True
        for name in self._store.open_payments():
            async with self._turn(name) as (turn, _):
                payment = self._store.payment(name)
                if payment is None or payment.state != OPEN:
                    continue  # somebody else has finished it
                is_done = (await self._asked(name, payment, turn)).state != OPEN and is_done
            if self._is_away:
                return False
        return is_done

    # -- inside ----------------------------------------------------------------------------------------

    async def _pay(self, request: _Request) -> Payment:
        name = self._store.name_of(request.code.identity, request.kind, request.order)
        async with self._turn(name) as (turn, is_just_asked):
            kept = self._store.payment(name)
            if kept is not None and request.is_again(kept) and (kept.state != REFUSED or is_just_asked):
                return self._told(await self._finished(name, kept, turn, is_just_asked))
            currency = await self._check(request)
            if kept is not None and kept.state != REFUSED:
                if kept.terms != (request.payer, request.payee, request.amount, currency):
                    raise Refused(CONFLICT, f"order {request.order} was paid, or is being paid, on other terms")
                return self._told(await self._finished(name, kept, turn, is_just_asked))
            opened = await self._store.open_payment(name, self._opened(request, currency, kept))
            payment = await self._asked(name, opened, turn)
        return self._told(payment, is_first=payment.state == PAID)

    async def _check(self, request: _Request) -> str:
        """Check a request against the chain, and return the currency to pay in."""
        code, identity = request.code, request.code.identity
        merchant = await self._chain.merchant(identity)
        if merchant.value is None:
            raise Refused("unknown_merchant", f"{identity_text(identity)} is no merchant's identity")
        # By the later of both: an idle chain is behind the clock, and neither may take back what has expired.
        verify_code(code, merchant.value.key, self._chain.chain_id, max(self._chain.time_ms, self._now_ms()))
        own = (await self._records.acquiring(identity, code.key_part)).value
        if own is None or own.account != request.payee:
            raise Refused("wrong_payee", "the account to pay is not the one in the platform's own record")
        named = code.payload.value("53")
        if named is not None and code.currency != own.currency:
            raise Refused("wrong_currency", f"the merchant is paid in {own.currency} here, the code says another")
        if request.currency not in (None, own.currency):
            raise Refused("wrong_currency", f"the merchant is paid in {own.currency} here by now: look again")
        return own.currency

    def _opened(self, request: _Request, currency: str, kept: KeptPayment | None) -> KeptPayment:
        identity = request.code.identity
        return KeptPayment(
            number=0 if kept is None else kept.number,
            identity=identity,
            kind=request.kind,
            order=request.order,
            payer=request.payer,
            payee=request.payee,
            amount=request.amount,
            currency=currency,
            event=event_of(identity, request.kind, request.order),
            payload_hash=request.payload_hash,
            state=OPEN,
            opened_ms=self._now_ms(),
        )

    async def _finished(self, name: bytes, kept: KeptPayment, turn: _Turn, is_just_asked: bool) -> KeptPayment:
        """Return how a payment stands; an open one is asked for, unless that was just done for somebody else."""
        return await self._asked(name, kept, turn) if kept.state == OPEN and not is_just_asked else kept

    async def _asked(self, name: bytes, payment: KeptPayment, turn: _Turn) -> KeptPayment:
        """Ask the account system for an open payment, and keep what it says; it stays open where that is nothing."""
        order = Order(payment.event, Operation.PAY, payment.payer, payment.payee, payment.amount, payment.currency)
        ended = payment
        try:
            ended = _ended(payment, await self._answer(order))
            await self._store.end_payment(name, ended)
        except (Unreachable, Refused, PeerError) as error:
            self._on_trouble(error)
        else:
            self._on_progress()
        finally:
            turn.asked += 1
            if ended.state == OPEN:
                self._left.set()  # also where the one who asked has gone
        return ended

    async def _answer(self, order: Order) -> Answer:
        with trio.move_on_after(ASK_S):
            (answer,) = await self._accounts.run([order])
            return answer
        raise Unreachable(f"no answer within {ASK_S:g} s", "accounts_unreachable")

    @asynccontextmanager
    async def _turn(self, name: bytes) -> AsyncIterator[tuple[_Turn, bool]]:
        """Be the only one who pays an order; tells whether the account system was asked while this one waited."""
        turn = self._turns.setdefault(name, _Turn())
        asked = turn.asked
        turn.users += 1
        try:
            async with turn.lock:
                yield turn, turn.asked > asked
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[name]

    def _told(self, payment: KeptPayment, *, is_first: bool = False) -> Payment:
        return Payment(
            server=self._chain.server,
            identity=identity_text(payment.identity),
            order=payment.order,
            payer=payment.payer,
            payee=payment.payee,
            amount=payment.amount,
            currency=payment.currency,
            state=payment.state,
            code=payment.code,
            event=payment.event,
            time_ms=payment.paid_ms,
            is_first=is_first,
        )

    def _on_trouble(self, error: HansaError) -> None:
        if error.code != self.trouble:
            log.warning("payments in trouble", code=error.code, why=error.message)
        self.trouble, self._is_away = error.code, isinstance(error, Unreachable)

    def _on_progress(self) -> None:
        if self.trouble:
            log.info("payments go on", after=self.trouble)
        self.trouble, self._is_away = "", False


def _ended(payment: KeptPayment, answer: Answer) -> KeptPayment:
    if answer.is_done:
        return msgspec.structs.replace(payment, state=PAID, code="", paid_ms=answer.time_ms)
    code = CONFLICT if answer.code == "operation_conflict" else answer.code
    return msgspec.structs.replace(payment, state=REFUSED, code=code)


def _read_untrusted(params: Pay) -> _Request:
    """Read a request's code, and say which order it pays and how much.

    Raises:
        PeerError: codes of :mod:`services.payee.emv` and :mod:`services.payee.codes`.
        Refused: ``wrong_amount``, ``wrong_order``, ``amount_missing``, ``order_missing``.
    """
    code = read_code(emv.parse(params.payload))
    amount, order = code.amount or params.amount, code.order or params.order
    if amount is None:
        raise Refused("amount_missing", "the code names no amount, so the payer has to")
    if params.amount not in (None, amount) or amount > AMOUNT_MAX:
        raise Refused("wrong_amount", "the code names another amount, or one that is too large")
    if order is None:
        raise Refused("order_missing", "the code names no order: name one, so that the same again pays once")
    if params.order not in (None, order):
        raise Refused("wrong_order", "the code is for another order")
    payload_hash = hashlib.sha256(params.payload.encode()).digest()
    return _Request(code, order, amount, params.payer, params.payee, params.currency, payload_hash)
