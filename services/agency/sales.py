"""The sales end (第一业务端): gathers orders, drops what does not match, submits the rest, makes one record an order.

It calls its bank's gateway and nobody else. Orders wait in a *window* that ends after a set time, or at once. What
ends is judged (:mod:`services.agency.window`), kept as a plan, submitted under the plan's own name, and then stands in
blocks (:mod:`services.agency.records`). Killed between any two writes it goes on from there: the gateway answers the
same name with the first result, and news come from the position that was written with the one before. Orders are
taken whether the gateway is there or not. One lock holds submissions and news apart, so that no answer meets a package
that is not known yet.
"""

import gc
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog
import trio

from consensus.ledger.errors import InvariantError, LocalError
from services.agency.gateway import Ending, patiently
from services.agency.interfaces import (
    Next,
    OrdersSubmit,
    OrdersSubmitted,
    OutcomesNext,
    PackageOutcome,
    ProductQuery,
    ProductTerms,
)
from services.agency.orders import APPLICATION_BYTES_MAX, application_codec
from services.agency.qualification import date_of
from services.agency.records import BLOCK_ORDERS_MAX, PLAN_ORDERS_MAX, Placed, Plan, Store, Waiting
from services.agency.sales_interface import (
    ApplicationsTake,
    OrderQuery,
    OrderRecord,
    Orders,
    OrdersQuery,
    Profiles,
    ProfilesKept,
    ProfilesPut,
    ProfilesQuery,
    Progress,
    ProgressQuery,
    SalesSummary,
    SalesSummaryQuery,
    Taken,
    WindowClose,
    WindowClosed,
)
from services.agency.sales_store import SalesStore
from services.agency.window import Entry, judge, products_of
from services.client.errors import Refused
from services.client.tasks import single_errors
from services.local.link import LocalLink
from services.local.service import LocalService
from services.local.service import serve as serve_local
from services.local.vault import open_vault
from services.messages.logs import configure_logs, ready_file, stop_signals

NEWS_WAIT_MS = 20_000
NEWS_PAGE = 16
BATCH_BYTES = 12

log = structlog.get_logger("sales")


@dataclass(frozen=True, slots=True)
class SalesSettings:
    """What a sales end runs with.

    Args:
        name: of the program.
        organisation: the bank, as ``membership`` spells it.
        run: folder of the socket and of the file that says ready.
        data: folder of its vault; ``key_file`` seals that.
        gateway: the bank's gateway's socket.
        distributor: the bank's own code in orders, "" to take every one.
        window_ms: how long orders gather that nobody asks to send at once.
        log_level: debug, info, warning or error.
    """

    name: str
    organisation: str
    run: Path
    data: Path
    key_file: Path
    gateway: Path
    distributor: str = ""
    window_ms: int = 0
    log_level: str = "info"

    @property
    def socket(self) -> Path:
        """Where people and programs of the bank call."""
        return self.run / "sales.sock"


class SalesEnd:
    """The program without its socket."""

    def __init__(self, settings: SalesSettings, store: Store, gateway: LocalLink, *, now_ms: Callable[[], int]) -> None:
        self._settings = settings
        self._store = SalesStore(store)
        self._gateway = gateway
        self._now_ms = now_ms
        self._sending = trio.Lock()
        self._closing = trio.Event()
        self._closes_at_ms: int | None = None
        self._changed = trio.Event()
        # A version of another life must not pass for one of this.
        self._version = now_ms()

    # -- methods ---------------------------------------------------------------------------------------

    def add_methods(self, service: LocalService) -> None:
        """Add what the socket offers."""
        service.add("applications_take", ApplicationsTake, self.take)
        service.add("window_close", WindowClose, self.close)
        service.add("progress", ProgressQuery, self.progress, waits=True)
        service.add("orders", OrdersQuery, self.orders)
        service.add("order", OrderQuery, self.order)
        service.add("summary", SalesSummaryQuery, self.summary)
        service.add("profiles_put", ProfilesPut, self.put_profiles)
        service.add("profiles", ProfilesQuery, self.profiles)

    async def take(self, params: ApplicationsTake) -> Taken:
        """Add applications to the window; ``window_full``, ``too_large`` for an application beyond its bound."""
        if any(len(application_codec.encode(item)) > APPLICATION_BYTES_MAX for item in params.applications):
            raise LocalError("too_large", f"an application has at most {APPLICATION_BYTES_MAX} bytes")
        known = await self._store.take(params.source, params.creator, params.applications)
        if known is None:
            self._tell()
        if params.closes:
            self._close_at(0)
        elif self._store.window_count():
            self._close_at(self._now_ms() + self._settings.window_ms)
        if known is None:
            log.info("taken", orders=len(params.applications))
            return Taken(params.source, len(params.applications), is_new=True)
        return Taken(params.source, known.count, is_new=False)

    async def close(self, params: WindowClose) -> WindowClosed:
        """End the window."""
        count = self._store.window_count()
        self._close_at(0)
        return WindowClosed(count)

    async def progress(self, params: ProgressQuery) -> Progress:
        """Return how a source stands, waiting for news; ``unknown_source``."""
        with trio.move_on_after(params.wait_ms / 1000):
            while params.after == self._version:
                await self._changed.wait()
        return self._store.progress(params.source, self._version)

    async def orders(self, params: OrdersQuery) -> Orders:
        """Return a page of orders."""
        return self._store.orders(params)

    async def order(self, params: OrderQuery) -> OrderRecord:
        """Return one order; ``unknown_order``."""
        return self._store.order(params.serial)

    async def summary(self, params: SalesSummaryQuery) -> SalesSummary:
        """Return totals."""
        return self._store.summary(self._settings.organisation)

    async def put_profiles(self, params: ProfilesPut) -> ProfilesKept:
        """Add or replace profiles."""
        return ProfilesKept(await self._store.put_profiles(params.profiles))

    async def profiles(self, params: ProfilesQuery) -> Profiles:
        """Return a page of profiles."""
        return self._store.profiles(params)

    # -- the window ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send what windows leave over and take news, for ever."""
        async with self._sending:
            for number, plan in [*self._store.plans()]:
                await self._send(number, plan)
        if self._store.window_count():
            self._close_at(self._now_ms() + self._settings.window_ms)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_forever)
            nursery.start_soon(self._take_news_forever)

    def _close_at(self, time_ms: int) -> None:
        if self._closes_at_ms is None or time_ms < self._closes_at_ms:
            self._closes_at_ms = time_ms
            self._closing.set()

    async def _close_forever(self) -> None:
        while True:
            while self._closes_at_ms is None or self._closes_at_ms > self._now_ms():
                self._closing = trio.Event()
                left_ms = 3_600_000 if self._closes_at_ms is None else self._closes_at_ms - self._now_ms()
                with trio.move_on_after(left_ms / 1000):
                    await self._closing.wait()
            self._closes_at_ms = None
            while await self._send_some():
                pass

    async def _send_some(self) -> bool:
        """Judge and submit up to four packages' worth; tell whether there was anything."""
        async with self._sending:
            rows, count = list[Waiting](), 0
            for waiting in self._store.window():
                if rows and count + len(waiting.row.applications) > PLAN_ORDERS_MAX:
                    break
                rows.append(waiting)
                count += len(waiting.row.applications)
            if not rows:
                return False
            entries = [Entry(item, waiting.row.creator) for waiting in rows for item in waiting.row.applications]
            products = {
                product: await patiently("gateway", lambda product=product: self._product(product))  # type: ignore[misc]
                for product in products_of([entry.application for entry in entries])
            }
            verdicts = judge(
                entries,
                products=products,
                find_profile=self._store.profile,
                is_known=self._store.is_known,
                distributor=self._settings.distributor,
                today=date_of(self._now_ms()),
            )
            plan = Plan(secrets.token_hex(BATCH_BYTES), [waiting.number for waiting in rows], verdicts)
            await self._store.keep_plan(plan)
            await self._send(plan.rows[0], plan)
        return True

    async def _product(self, product: str) -> ProductTerms | None:
        try:
            query = ProductQuery(product, self._settings.organisation)
            return await self._gateway.call("product", query, ProductTerms)
        except Refused as error:
            if error.code in ("unknown_product", "invalid_params"):
                return None
            raise

    async def _send(self, number: int, plan: Plan) -> None:
        """Submit what a plan lets through, and put its orders into blocks."""
        placed: list[Placed] = []
        for row in self._store.rows_of(plan):
            for place, application in enumerate(row.applications):
                verdict = plan.verdicts[len(placed)]
                judged = msgspec.structs.replace(application, terms_version=verdict.terms_version)
                placed.append(Placed(row.source, row.first + place, verdict.reason, judged))
        sent = {order.application.serial: order for order in placed if not order.reason}
        dropped = [order for order in placed if order.reason]
        blocks: list[tuple[bytes, str, list[Placed]]] = []
        if sent:
            batch = OrdersSubmit(plan.batch, [order.application for order in sent.values()])
            result = await patiently("gateway", lambda: self._gateway.call("orders_submit", batch, OrdersSubmitted))
            for package in result.packages:
                blocks.append((package.root, package.issuer, [sent.pop(serial) for serial in package.serials]))
            for refused in result.refused:
                dropped.append(msgspec.structs.replace(sent.pop(refused.serial), reason=refused.code))
            if sent:
                raise InvariantError("the gateway has left orders of a batch out")
        for first in range(0, len(dropped), BLOCK_ORDERS_MAX):
            blocks.append((b"", "", dropped[first : first + BLOCK_ORDERS_MAX]))
        await self._store.settle(number, plan, blocks)
        self._tell()
        log.info("sent", orders=len(placed), dropped=len(dropped), packages=sum(1 for root, _, _ in blocks if root))

    # -- news ------------------------------------------------------------------------------------------

    async def _take_news_forever(self) -> None:
        while True:
            after = self._store.head.position
            query = Next(after, NEWS_WAIT_MS, NEWS_PAGE)
            news = await patiently(
                "gateway",
                lambda query=query: self._gateway.call("outcomes_next", query, OutcomesNext),  # type: ignore[misc]
            )
            for item in news.items:
                async with self._sending:
                    await self._on_news(item)
                self._tell()

    async def _on_news(self, item: PackageOutcome) -> None:
        store, position = self._store, item.position
        if not store.is_package(item.root):
            # Somebody else submitted it to this gateway.
            log.warning("news of a package that was not sent from here", root=item.root.hex())
            await store.skip(position)
            return
        match item.kind:
            case "answered" | "allotted":
                await store.answered(position, item.root, item.round_number, item.places, item.confirmations)
            case "refused":
                await store.refused(position, item.root, item.code)
            case "anchored":
                await store.anchored(position, item.root, item.round_number, item.transaction_id, item.height)
            case _:
                raise LocalError("bad_answer", f"the gateway tells of {item.kind[:32]}")
        log.info("news", kind=item.kind, root=item.root.hex(), round=item.round_number)

    def _tell(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = trio.Event()


async def run(settings: SalesSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        LocalError: it cannot start: ``already_running``, ``store_locked``, ….
        StorageError: the disk failed.
    """
    configure_logs(settings.log_level)
    # What is loaded by now stays for ever: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    with single_errors():
        async with stop_signals() as stopping, open_vault(settings.data, settings.key_file) as vault:
            await serve(settings, vault, stopping)
    log.info("stopped")


async def serve(
    settings: SalesSettings,
    store: Store,
    stopping: trio.Event,
    *,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    task_status: trio.TaskStatus[SalesEnd] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until ``stopping`` is set; errors as for :func:`run`."""
    with single_errors():
        async with LocalLink(settings.gateway) as gateway, trio.open_nursery() as background:
            end, service = SalesEnd(settings, store, gateway, now_ms=now_ms), LocalService()
            end.add_methods(service)
            ending = Ending(stopping)
            background.start_soon(ending.follow)
            background.start_soon(ending.guard, end.run)
            async with trio.open_nursery() as front:
                with ready_file(settings.run):
                    await front.start(serve_local, settings.socket, service, ending.event)
                    log.info("ready", organisation=settings.organisation)
                    task_status.started(end)
                    await ending.event.wait()
            background.cancel_scope.cancel()
        ending.check()
