"""The bridge: confirmed purchases of the agency sale open settlement events by themselves, at the issuer.

It reads the purchases that its issuer end confirmed, from a position that it keeps, and has each settled: the issuer's
units go to the bank as nominee, the buyer's account of money pays the issuer. The units are issued first, exactly what
was confirmed, once for each answer. What is to be done is durable before anything is done, each step may be repeated,
and the ids of events follow from the purchase and a key of the bridge alone: killed anywhere, no purchase is settled
twice and none is left out.

The id is a keyed pseudonym: nothing on the chain says whose purchase it was, and only the bridge can make it again. An
application that comes again in another package is confirmed again the same and is the same sale, so bank, distributor
and serial make the id, and not the package.
"""

import gc
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog
import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.transaction import Transaction, make_call
from services.accounts.link import open_accounts
from services.accounts.port import AMOUNT_MAX, AccountSystem
from services.client.client import Client, open_client
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.client.lanes import one_shot_lane
from services.client.tasks import single_errors
from services.local.link import LocalLink
from services.local.service import LocalService
from services.local.service import serve as serve_local
from services.messages.logs import configure_logs, ready_file, stop_signals
from services.settlement.bridge_config import BRIDGE_SOCKET
from services.settlement.bridge_interface import (
    BridgeStatus,
    BridgeStatusQuery,
    ConfirmedAnswer,
    ConfirmedNext,
    ConfirmedPage,
    FailedSale,
    Purchase,
    Retried,
    Retry,
)
from services.settlement.bridge_store import BridgeStore, Issue, Sale, SaleState, open_bridge_store
from services.settlement.interfaces import (
    WAIT_MS_MAX,
    Ended,
    EndsQuery,
    EventsLink,
    EventsStatus,
    StatusQuery,
)
from services.settlement.states import Event, Outcome, State, Terms
from services.settlement.trader import Trade, Trader
from services.settlement.trades import CONTRACT

BATCH = 200
"""Sales that are placed together."""
VALIDITY_MS = 300_000
ENDS_WAIT_MS = 2_000
PAUSE_FIRST_MS, PAUSE_MAX_MS = 200, 15_000
ISSUES_MAX = 50
UNIT_DECIMALS = 2
CURRENCIES = {"156": "CNY", "344": "HKD", "840": "USD", "978": "EUR", "826": "GBP"}
"""ISO 4217, by digits."""
T = TypeVar("T")

REVERSED = "reversed"
"""Of a sale whose event was reversed by an operator."""
EXPIRED = "expired"
"""The code of an event whose transaction no block took in time: the next attempt follows by itself."""

log = structlog.get_logger("bridge")


@dataclass(frozen=True, slots=True)
class Bank:
    """A bank's account on the chain, 20 bytes, and the account of money that pays."""

    account: bytes
    payer: str


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """What the bridge runs with; :class:`services.settlement.bridge_config.BridgeFile` says what the fields mean."""

    run: Path
    data: Path
    key: bytes
    issuer: Path
    events: Path
    accounts_url: str
    accounts_token: str
    genesis: Genesis
    nodes: tuple[str, ...]
    signer: Signer
    payee: str
    prefix: str
    is_from_beginning: bool
    banks: Mapping[str, Bank]
    payers: Mapping[str, str]
    log_level: str = "info"

    @property
    def socket(self) -> Path:
        """Where people call."""
        return self.run / BRIDGE_SOCKET


class Bridge:
    """The bridge while it runs: :meth:`read_forever` and :meth:`settle_forever` beside each other."""

    def __init__(
        self,
        settings: BridgeSettings,
        store: BridgeStore,
        client: Client,
        issuer: LocalLink,
        events: EventsLink,
        accounts: AccountSystem,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._settings = settings
        self._now_ms = now_ms
        self._store = store
        self._client = client
        self._issuer = issuer
        self._events = events
        self._accounts = accounts
        self._trader: Trader | None = None
        self._defined: set[str] = set()
        self._work = trio.Event()
        self._trouble = {"reading": "", "settling": ""}

    def add_methods(self, service: LocalService) -> None:
        """Add ``status`` and ``retry``."""
        service.add("status", BridgeStatusQuery, self.status)
        service.add("retry", Retry, self.retry)

    # -- reading ---------------------------------------------------------------------------------------

    async def read_forever(self) -> None:
        """Keep purchases as they are confirmed; what cannot be taken stops the reading until it can."""
        while True:
            await self._patiently("reading", self.read)

    async def read(self, wait_ms: int = WAIT_MS_MAX) -> None:
        """Take one page of the issuer's answers.

        Raises:
            Unreachable, Refused, PeerError: the issuer end.
            LocalError: ``unknown_bank``, ``unknown_currency``: service.toml or this program knows it not;
                ``issuer_anew``: the issuer end has fewer answers than were read.
        """
        position = self._store.position
        if position is None:
            newest = (await self._confirmed(0, 0)).newest
            position = 0 if self._settings.is_from_beginning else newest
            self._store.take(position, [], [])
        page = await self._confirmed(position, wait_ms)
        if page.newest < position:
            if not self._settings.is_from_beginning:
                # What was confirmed before the first start was left alone, and cannot be told from what is new now.
                raise LocalError(
                    "issuer_anew", "the issuer end counts its answers anew: from_beginning has all settled"
                )
            log.warning("the issuer end counts its answers anew: all are read again", newest=page.newest)
            self._store.take(0, [], [])
            return
        issues: list[Issue] = []
        sales: list[Sale] = []
        for answer in page.items:
            self._add(answer, issues, sales)
        if page.position != position:
            self._store.take(page.position, issues, sales)
            if sales:
                log.info("purchases taken", count=len(sales), position=page.position)
            self._work.set()

    async def _confirmed(self, after: int, wait_ms: int) -> ConfirmedPage:
        timeout_ms = wait_ms + WAIT_MS_MAX
        return await self._issuer.call("confirmed", ConfirmedNext(after, wait_ms), ConfirmedPage, timeout_ms=timeout_ms)

    def _add(self, answer: ConfirmedAnswer, issues: list[Issue], sales: list[Sale]) -> None:
        """Add what an answer has of new purchases, and the units that they need."""
        made = {self._pseudonym("sale", item.bank, item.distributor, item.serial): item for item in answer.purchases}
        known = self._store.known([*made]) | {sale.id for sale in sales}
        issue = self._pseudonym("issue", answer.root.hex(), str(answer.round_number))
        units: dict[str, int] = {}
        for name in sorted(made.keys() - known):
            terms = self._terms(made[name])
            if not (terms.units > 0 and 0 < terms.price <= AMOUNT_MAX):
                log.error("a purchase is no trade and is left out", sale=name, units=terms.units, price=terms.price)
                continue
            units[terms.asset] = units.get(terms.asset, 0) + terms.units
            sales.append(Sale(name, issue, 1, terms))
        if units:
            issues.append(Issue(issue, dict(sorted(units.items()))))

    def _pseudonym(self, *parts: str) -> str:
        """Return what stands for something and says nothing of it, 34 characters."""
        text = b"\0".join(part.encode() for part in parts)
        return f"a-{hmac.digest(self._settings.key, text, 'sha256').hex()[:32]}"

    def _terms(self, purchase: Purchase) -> Terms:
        settings = self._settings
        bank = settings.banks.get(purchase.bank)
        if bank is None:
            raise LocalError("unknown_bank", f"service.toml has no [banks.{purchase.bank}]")
        if purchase.currency not in CURRENCIES:
            raise LocalError("unknown_currency", f"{purchase.product} is sold in currency {purchase.currency}")
        return Terms(
            seller=bytes(settings.signer.address),
            buyer=bank.account,
            asset=f"{settings.prefix}{purchase.product}",
            units=purchase.volume,
            price=purchase.amount,
            currency=CURRENCIES[purchase.currency],
            payer=settings.payers.get(purchase.transaction_account, bank.payer),
            payee=settings.payee,
        )

    # -- settling --------------------------------------------------------------------------------------

    async def settle_forever(self) -> None:
        """Have open sales settled, for ever."""
        pause_ms = PAUSE_FIRST_MS
        while True:
            self._work = trio.Event()
            changed = await self._patiently("settling", self.settle)
            if changed:
                pause_ms = PAUSE_FIRST_MS
                continue
            with trio.move_on_after(pause_ms / 1000):
                await self._work.wait()
                pause_ms = PAUSE_FIRST_MS
            pause_ms = min(2 * pause_ms, PAUSE_MAX_MS)

    async def settle(self) -> int:
        """Issue what is to be issued, place a batch of open sales, and return how many have ended.

        Raises:
            Unreachable, Refused, PeerError: chain, event system or account system; the same again is safe.
            LocalError: ``foreign_unit``.
        """
        foreign: LocalError | None = None
        for issue in self._store.unissued(ISSUES_MAX):
            try:
                await self._issue(issue)
            except LocalError as error:  # of these units alone: no other sale waits for them
                foreign = error
        ended = await self._place({sale.event: sale for sale in self._store.open_sales(BATCH)})
        self._store.put(ended)
        for sale in ended:
            if sale.state is SaleState.FAILED:
                log.warning("a sale failed", sale=sale.id, code=sale.code)
        if foreign is not None and not ended:
            raise foreign
        return len(ended)

    async def _place(self, sales: Mapping[str, Sale]) -> list[Sale]:
        """Place sales by their events, and return those that stand otherwise now."""
        if not sales:
            return []
        trader = await self._traded()
        trades = [Trade(name, self._settings.signer, sale.terms, VALIDITY_MS) for name, sale in sales.items()]
        ended: list[Sale] = []
        placed: list[str] = []
        for name, kept in zip(sales, await trader.place(trades), strict=True):
            if kept.event is None:
                ended.append(_failed(sales[name], kept.code))
            else:
                placed.append(name)
        if placed:
            events = await trader.wait_many(placed, timeout_ms=ENDS_WAIT_MS)
            ended += [after for name, event in events.items() if (after := _after(sales[name], event)) != sales[name]]
        return ended

    async def _traded(self) -> Trader:
        if self._trader is None:
            agent = (await self._events.call("status", StatusQuery(), EventsStatus)).agent
            self._trader = Trader(self._events, self._accounts, self._client, agent=agent, now_ms=self._now_ms)
        return self._trader

    async def _issue(self, issue: Issue) -> None:
        """Issue the units of an answer, once: a lane that a failed attempt has used up is followed by the next."""
        signer = self._settings.signer
        calls = []
        for unit, amount in issue.units.items():
            await self._define(unit)
            arguments: dict[str, Value] = {"unit": unit, "to": bytes(signer.address), "amount": amount}
            calls.append(make_call(CONTRACT, "issue", arguments))
        attempt = 0
        while True:
            attempt += 1
            fresh: list[Transaction] = []
            lane = one_shot_lane(f"bridge-issue:{issue.id}:{attempt}")
            try:
                outcome = await self._client.call_once(signer, calls, lane, on_signed=fresh.append)
            except Refused as error:
                if error.code != "once_used":
                    raise
                break  # issued before the bridge lost its data: the units are there
            if outcome.is_ok:
                break
            if fresh:
                outcome.check()
        self._store.issued(issue.id)
        log.info("units issued", units=sum(issue.units.values()), kinds=len(issue.units))

    async def _define(self, unit: str) -> None:
        """Define a unit that is not there yet."""
        if unit in self._defined:
            return
        signer = self._settings.signer
        try:
            known = await self._client.query(CONTRACT, "unit", {"unit": unit})
        except Refused as error:
            if error.code != "unknown_unit":
                raise
            arguments: dict[str, Value] = {"unit": unit, "decimals": UNIT_DECIMALS, "description": "fund units"}
            (await self._client.call(signer, CONTRACT, "define", arguments)).check()
        else:
            if not isinstance(known, dict) or known.get("issuer") != bytes(signer.address):
                raise LocalError("foreign_unit", f"{unit} is another account's: give service.toml another prefix")
        self._defined.add(unit)

    async def _patiently(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do something however long it takes until it can be done; what stands in its way is shown."""
        pause_ms = PAUSE_FIRST_MS
        while True:
            try:
                result = await work()
            except (Unreachable, Refused, PeerError, LocalError) as error:
                if error.code == "store_locked":
                    raise
                if (said := f"{error.code}: {error.message}") != self._trouble[what]:
                    log.warning("in trouble", doing=what, code=error.code, why=error.message)
                self._trouble[what] = said
            else:
                if self._trouble[what]:
                    log.info("goes on", doing=what)
                self._trouble[what] = ""
                return result
            await trio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, PAUSE_MAX_MS)

    # -- people ----------------------------------------------------------------------------------------

    async def status(self, params: BridgeStatusQuery) -> BridgeStatus:
        """Return how the bridge stands."""
        position = self._store.position
        failed = [
            FailedSale(
                sale.id,
                sale.event,
                sale.code,
                sale.terms.asset,
                sale.terms.units,
                sale.terms.price,
                sale.terms.currency,
                sale.terms.payer,
            )
            for sale in (self._store.failed(params.after, params.limit) if params.limit else [])
        ]
        return BridgeStatus(-1 if position is None else position, self._store.totals(), dict(self._trouble), failed)

    async def retry(self, params: Retry) -> Retried:
        """Open failed sales again: under a new event where the old one is over, else under the same.

        Raises:
            Unreachable: the event system.
        """
        count, after = 0, ""
        while page := self._store.failed(after, BATCH):
            after = page[-1].id
            sales = {sale.event: sale for sale in page if not params.sales or sale.id in params.sales}
            if sales:
                ended = await self._events.call("ends", EndsQuery([*sales]), Ended)
                over = {event.event for event in ended.items if _is_over(event)}
                again = [
                    msgspec.structs.replace(sale, attempt=sale.attempt + (name in over), state=SaleState.OPEN, code="")
                    for name, sale in sales.items()
                ]
                self._store.put(again)
                count += len(again)
        self._work.set()
        return Retried(count)


def _after(sale: Sale, event: Event) -> Sale:
    """Return how a sale stands after its event has ended, or waits for an operator."""
    match event.state, event.outcome:
        case State.COMPLETED, Outcome.PAID:
            return msgspec.structs.replace(sale, state=SaleState.SETTLED, code="")
        case State.COMPLETED, _:
            return _failed(sale, REVERSED)
        case State.CANCELLED, _ if event.code == EXPIRED:
            return msgspec.structs.replace(sale, attempt=sale.attempt + 1)
        case State.CANCELLED, _:
            return _failed(sale, event.code)
        case _:
            return sale


def _failed(sale: Sale, code: str) -> Sale:
    return msgspec.structs.replace(sale, state=SaleState.FAILED, code=code)


def _is_over(event: Event) -> bool:
    """Tell whether neither units nor money of an event will ever move again, and none stay moved."""
    return event.state is State.CANCELLED or event.outcome is Outcome.REVERSED


async def run(settings: BridgeSettings) -> None:
    """Bridge until SIGTERM or SIGINT.

    Raises:
        LocalError: ``already_running``, ``store_locked``, ``bad_config``.
        StorageError: the disk failed.
    """
    configure_logs(settings.log_level)
    # What is loaded by now stays for ever: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    with single_errors(), open_bridge_store(settings.data) as store:
        async with (
            stop_signals() as stopping,
            open_client(settings.genesis, settings.nodes) as client,
            open_accounts(settings.accounts_url, token=settings.accounts_token) as accounts,
            LocalLink(settings.issuer) as issuer,
            LocalLink(settings.events) as events,
        ):
            await serve(settings, Bridge(settings, store, client, issuer, events, accounts), stopping)
    log.info("stopped")


async def serve(
    settings: BridgeSettings,
    bridge: Bridge,
    stopping: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Bridge until ``stopping`` is set; errors as :func:`run`."""
    service = LocalService()
    bridge.add_methods(service)
    with single_errors(), ready_file(settings.run):
        async with trio.open_nursery() as background:
            background.start_soon(bridge.read_forever)
            background.start_soon(bridge.settle_forever)
            async with trio.open_nursery() as front:
                await front.start(serve_local, settings.socket, service, stopping)
                log.info("ready")
                task_status.started()
            background.cancel_scope.cancel()
