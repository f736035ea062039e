"""The issuer end (产品发行端): verifies every order of a package, books it, and signs one answer for all of them.

It asks its gateway for packages from a position that it keeps. A package's bookings, its signed answer and the position
are one write; after it the answer is given to the gateway until that has it. Killed anywhere, it gives the same answer
again and books nothing twice. Two issuer ends on one gateway cannot both be heard: the second ends with
``answer_exists``.
"""

import gc
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from consensus.ledger.errors import InvariantError, LocalError
from consensus.ledger.ids import ChainId
from services.agency.gateway import Ending, patiently
from services.agency.holdings import HoldingEntry, TotalEntry, UserEntry
from services.agency.interfaces import (
    AnswerSubmit,
    Done,
    Next,
    PackageArrived,
    PackagesNext,
    ProductQuery,
    ProductTerms,
    Status,
)
from services.agency.issuer_interface import (
    Allot,
    Allotted,
    ConfirmedAnswer,
    ConfirmedNext,
    ConfirmedPage,
    Holding,
    Holdings,
    HoldingsQuery,
    IssuerAnswer,
    IssuerPackage,
    IssuerPackageQuery,
    IssuerSummary,
    ProductTotal,
    Purchase,
    Registration,
    SummaryQuery,
    User,
    Users,
    UsersQuery,
)
from services.agency.issuer_machine import Desk, Products, products_of
from services.agency.issuer_store import BlindStore, IssuerStore, Kept, Unsent
from services.agency.orders import ALLOTMENT, Code
from services.agency.packages import Answer, Package, make_answer, orders_root, waiting_places
from services.agency.qualification import date_of
from services.client.answers import hex_of
from services.client.errors import Refused
from services.client.keystore import Signer
from services.client.tasks import single_errors
from services.local.link import LocalLink
from services.local.service import LocalService
from services.local.service import serve as serve_local
from services.local.vault import open_vault
from services.messages.logs import configure_logs, ready_file, stop_signals

PURCHASES = (Code.SUBSCRIPTION.confirmation, ALLOTMENT)
"""Codes of confirmations that a holder pays for."""
WAIT_MS = 20_000
PAGE = 4
RETRY_MS = 1_000
SCAN_MAX = 20_000
"""Entries that one page of ``holdings`` with a filter looks at."""

log = structlog.get_logger("issuer")


@dataclass(frozen=True, slots=True)
class IssuerSettings:
    """What an issuer end runs with.

    Args:
        name: of the program.
        organisation: the issuer, as ``membership`` spells it.
        run: folder of the socket and of the file that says ready.
        data: folder of its vault; ``key_file`` seals that.
        gateway: socket of the gateway.
        chain_id: signatures are for this chain.
        business: signs answers; the key that the chain has of the issuer.
        log_level: debug, info, warning or error.
    """

    name: str
    organisation: str
    run: Path
    data: Path
    key_file: Path
    gateway: Path
    chain_id: ChainId
    business: Signer
    log_level: str = "info"

    @property
    def socket(self) -> Path:
        """Where people call."""
        return self.run / "issuer.sock"


class Issuer:
    """The issuer end while it runs."""

    def __init__(
        self, settings: IssuerSettings, store: IssuerStore, gateway: LocalLink, *, now_ms: Callable[[], int]
    ) -> None:
        self._settings = settings
        self._store = store
        self._gateway = gateway
        self._now_ms = now_ms
        self._lock = trio.Lock()
        """Held by whoever reads the books, decides by them, and writes."""
        self._answered = trio.Event()

    def add_methods(self, service: LocalService) -> None:
        """Add what people ask of it, see :mod:`services.agency.issuer_interface`."""
        service.add("users", UsersQuery, self.users)
        service.add("holdings", HoldingsQuery, self.holdings)
        service.add("allot", Allot, self.allot)
        service.add("summary", SummaryQuery, self.summary)
        service.add("package", IssuerPackageQuery, self.package)
        service.add("confirmed", ConfirmedNext, self.confirmed, waits=True)

    # -- packages --------------------------------------------------------------------------------------

    async def answer_forever(self) -> None:
        """Answer packages as they come, for ever.

        Raises:
            LocalError: ``wrong_gateway``, ``answer_exists``.
            StorageError: the disk failed.
        """
        await patiently("gateway", self._check_gateway)
        await patiently("gateway", self._allot_waiting)
        while True:
            await patiently("gateway", self._submit_all)
            wait_ms = RETRY_MS if self._store.unsent else WAIT_MS
            page = await patiently("gateway", self._page(wait_ms))
            for arrived in page.items:
                await patiently("gateway", self._answering(arrived))
                await patiently("gateway", self._submit_all)

    def _page(self, wait_ms: int) -> Callable[[], Awaitable[PackagesNext]]:
        params = Next(self._store.position, wait_ms, PAGE)
        timeout_ms = 2 * WAIT_MS
        return lambda: self._gateway.call("packages_next", params, PackagesNext, timeout_ms=timeout_ms)

    def _answering(self, arrived: PackageArrived) -> Callable[[], Awaitable[None]]:
        return lambda: self.answer(arrived)

    async def answer(self, arrived: PackageArrived) -> None:
        """Book a package and keep its answer; one that was answered before is answered the same again."""
        package = _package(arrived)
        async with self._lock:
            if self._store.kept(package.root) is not None:
                await self._store.pass_again(arrived.position, package.root)
                return
            if orders_root(package.salts, package.applications) != package.root:
                raise InvariantError("the gateway offers a package that does not make its root")
            products = await self._products(package, products_of(package))
            books = self._store.books()
            desk = Desk(books, package.bank, products, today=date_of(self._now_ms()))
            confirmations = desk.confirm(package)
            previous = self._store.previous(package.bank)
            key, chain_id = self._settings.business.key, self._settings.chain_id
            answer = make_answer(key, chain_id, package, confirmations, previous=previous)
            places = waiting_places(confirmations)
            await self._store.keep_first(arrived.position, package, answer, places, books)
            self._tell_answered()
        log.info("package answered", bank=package.bank, root=package.root.hex(), **_reasons_logged(answer))

    async def _products(self, package: Package, codes: list[str]) -> Products:
        return {code: await self._product(code, package.bank) for code in codes}

    async def _product(self, product: str, bank: str) -> ProductTerms | None:
        """Return a product of ours as it stands; None for one that is not on the chain, or another issuer's."""
        try:
            found = await self._gateway.call("product", ProductQuery(product, bank), ProductTerms)
        except Refused as error:
            if error.code == "unknown_product":
                return None
            raise
        return found if found.issuer == self._settings.organisation else None

    async def _submit_all(self) -> None:
        """Give the gateway what it may not have, oldest first."""
        for item in [*self._store.unsent]:
            answer = self._store.answer(item.root, item.round_number)
            if answer is None:
                raise InvariantError("an answer that is to be sent is not kept")
            await self._submit(item, answer)

    async def _submit(self, item: Unsent, answer: Answer) -> None:
        params = AnswerSubmit(
            bank=answer.bank,
            root=answer.root,
            round_number=answer.round_number,
            places=answer.places,
            outcome_root=answer.outcome_root,
            previous=answer.previous,
            signature=answer.signature,
            confirmations=answer.confirmations,
        )
        try:
            await self._gateway.call("answer_submit", params, Done)
        except Refused as error:
            if error.code == "answer_exists":
                raise LocalError("answer_exists", f"{error.message}: is there a second issuer end?") from None
            log.error("answer not taken", code=error.code, root=answer.root.hex(), round=answer.round_number)
            return
        self._store.sent(item)

    async def _check_gateway(self) -> None:
        status = await self._gateway.call("status", {}, Status)
        if status.organisation != self._settings.organisation:
            raise LocalError("wrong_gateway", f"{self._settings.gateway} is a gateway of {status.organisation}")
        if (status.chain_id, status.business_key) != (hex_of(self._settings.chain_id), self._public_key()):
            raise LocalError("wrong_gateway", f"{self._settings.gateway} has another chain or another business key")

    def _public_key(self) -> str:
        return hex_of(self._settings.business.key.public.compressed)

    # -- allotments ------------------------------------------------------------------------------------

    async def allot(self, params: Allot) -> Allotted:
        """Fix a product's allotment, and answer what waited for it; the same again goes on where it ended.

        Raises:
            LocalError: ``already_allotted`` with another ratio, ``unknown_product``.
            Unreachable: the gateway; what is kept goes on at the next call or start.
        """
        product, ratio = params.product, params.ratio_basis_points
        async with self._lock:
            books = self._store.books()
            known = books.ratio(product)
            if known not in (None, ratio):
                raise LocalError("already_allotted", f"{product} was allotted at {known / 100:g} %")
            if known is None:
                if await self._product(product, self._settings.organisation) is None:
                    raise LocalError("unknown_product", f"{product} is none of our products")
                books.put_ratio(product, ratio)
                await self._store.keep_books(books)
                log.info("product allotted", product=product, ratio_basis_points=ratio)
        count = await self._allot_waiting()
        await self._submit_all()
        waiting = sum(product in _waiting_products(kept) for _, kept in self._waiting())
        return Allotted(product, ratio, count, waiting)

    async def _allot_waiting(self) -> int:
        """Answer all packages whose products are allotted; returns how many."""
        count = 0
        for number, kept in self._waiting():
            async with self._lock:
                if number not in self._store.waiting:
                    continue
                books = self._store.books()
                codes = _waiting_products(kept)
                if any(books.ratio(code) is None for code in codes):
                    continue
                package = kept.package
                products = await self._products(package, codes)
                desk = Desk(books, package.bank, products, today=date_of(self._now_ms()))
                answer = make_answer(
                    self._settings.business.key,
                    self._settings.chain_id,
                    package,
                    desk.allot(package, kept.places),
                    previous=self._store.previous(package.bank),
                    round_number=1,
                    places=kept.places,
                )
                await self._store.keep_allotment(number, kept, answer, books)
                self._tell_answered()
            count += 1
            log.info("package allotted", bank=package.bank, root=package.root.hex(), **_reasons_logged(answer))
        return count

    def _waiting(self) -> Iterator[tuple[int, Kept]]:
        """Yield the packages that wait, one read at a time: those of a large product do not fit into memory."""
        for number, root in sorted(self._store.waiting.items()):
            if (kept := self._store.kept(root)) is not None:
                yield number, kept

    def _tell_answered(self) -> None:
        """Wake who waits for the next answer."""
        self._answered.set()
        self._answered = trio.Event()

    async def confirmed(self, params: ConfirmedNext) -> ConfirmedPage:
        """Return the purchases of the answers after a number, once there is an answer or time is up."""
        if self._store.answers_count <= params.after:
            with trio.move_on_after(params.wait_ms / 1000):
                await self._answered.wait()
        answers = self._store.answers_after(params.after, params.limit)
        position = answers[-1][0] if answers else params.after
        items = [
            ConfirmedAnswer(number, answer.root, answer.round_number, purchases)
            for number, kept, answer in answers
            if (purchases := _purchases(kept, answer))
        ]
        return ConfirmedPage(items, position, self._store.answers_count)

    # -- people ----------------------------------------------------------------------------------------

    async def users(self, params: UsersQuery) -> Users:
        """Return registered users."""
        if params.ta_account:
            user = self._store.books().user(params.ta_account)
            return Users([_user(user)] if user else [], "")
        items: list[User] = []
        for cursor, entry in self._store.entries("user", params.after):
            if isinstance(entry, UserEntry):
                items.append(_user(entry))
            if len(items) == params.limit:
                return Users(items, cursor)
        return Users(items, "")

    async def holdings(self, params: HoldingsQuery) -> Holdings:
        """Return what is held."""
        items: list[Holding] = []
        for seen, (cursor, entry) in enumerate(self._store.entries("holding", params.after), 1):
            if isinstance(entry, HoldingEntry) and entry.units and _is_asked(entry, params):
                items.append(Holding(entry.ta_account, entry.distributor, entry.product, entry.units, entry.to))
            if len(items) == params.limit or seen == SCAN_MAX:
                return Holdings(items, cursor)
        return Holdings(items, "")

    async def summary(self, params: SummaryQuery) -> IssuerSummary:
        """Return how the issuer end stands."""
        numbers = self._store.books().numbers()
        totals = [entry for _, entry in self._store.entries("total", "") if isinstance(entry, TotalEntry)]
        totals.sort(key=lambda entry: entry.product)
        return IssuerSummary(
            issuer=self._settings.organisation,
            packages=numbers.packages,
            allotments=self._store.allotments_count,
            unsent=len(self._store.unsent),
            waiting=len(self._store.waiting),
            accepted=numbers.accepted,
            rejected=numbers.rejected,
            users=numbers.users,
            reasons=numbers.reasons,
            products=[
                ProductTotal(entry.product, entry.units_in, entry.units_out, entry.units_in - entry.units_out)
                for entry in totals
            ],
        )

    async def package(self, params: IssuerPackageQuery) -> IssuerPackage:
        """Return what became of a package.

        Raises:
            LocalError: ``unknown_package``.
        """
        kept = self._store.kept(params.root)
        if kept is None:
            raise LocalError("unknown_package", f"no package 0x{params.root.hex()} was answered here")
        unsent = {(item.root, item.round_number) for item in self._store.unsent}
        answers = [self._store.answer(params.root, number) for number in (0, 1)]
        return IssuerPackage(
            root=params.root,
            bank=kept.package.bank,
            epoch=kept.package.epoch,
            created_ms=kept.package.created_ms,
            count=len(kept.package.applications),
            is_waiting=bool(kept.places) and not kept.is_allotted,
            answers=[
                IssuerAnswer(
                    answer.round_number,
                    answer.outcome_root,
                    answer.previous,
                    (answer.root, answer.round_number) not in unsent,
                    _reasons(answer),
                )
                for answer in answers
                if answer is not None
            ],
        )


async def run(settings: IssuerSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        LocalError: it cannot start, or go on: ``already_running``, ``store_locked``, ``wrong_gateway``,
            ``answer_exists``, ….
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
    settings: IssuerSettings,
    vault: BlindStore,
    stopping: trio.Event,
    *,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    task_status: trio.TaskStatus[Issuer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until ``stopping`` is set; errors as for :func:`run`."""
    with single_errors():
        async with LocalLink(settings.gateway) as gateway, trio.open_nursery() as background:
            issuer = Issuer(settings, IssuerStore(vault), gateway, now_ms=now_ms)
            service, ending = LocalService(), Ending(stopping)
            issuer.add_methods(service)
            background.start_soon(ending.follow)
            background.start_soon(ending.guard, issuer.answer_forever)
            async with trio.open_nursery() as front:
                with ready_file(settings.run):
                    await front.start(serve_local, settings.socket, service, ending.event)
                    log.info("ready", organisation=settings.organisation)
                    task_status.started(issuer)
                    await ending.event.wait()
            background.cancel_scope.cancel()
        ending.check()


def _package(arrived: PackageArrived) -> Package:
    return Package(
        arrived.bank,
        arrived.issuer,
        arrived.epoch,
        arrived.created_ms,
        arrived.root,
        arrived.signature,
        arrived.salts,
        arrived.applications,
    )


def _waiting_products(kept: Kept) -> list[str]:
    return sorted({kept.package.applications[place].product for place in kept.places})


def _purchases(kept: Kept, answer: Answer) -> list[Purchase]:
    """Return what an answer confirms for good of subscriptions, at once (122) or by allotment (130)."""
    applications = kept.package.applications
    if answer.round_number:
        applications = [applications[place] for place in answer.places]
    return [
        Purchase(
            answer.bank,
            application.distributor,
            application.serial,
            application.product,
            application.transaction_account,
            confirmation.volume,
            confirmation.amount,
            application.currency,
        )
        for application, confirmation in zip(applications, answer.confirmations, strict=True)
        if confirmation.code in PURCHASES and confirmation.is_accepted and confirmation.is_final
    ]


def _reasons(answer: Answer) -> dict[str, int]:
    return dict(sorted(Counter(confirmation.reason for confirmation in answer.confirmations).items()))


def _reasons_logged(answer: Answer) -> dict[str, object]:
    rejected = {reason: count for reason, count in _reasons(answer).items() if reason}
    return {"count": len(answer.confirmations), "rejected": rejected}


def _user(entry: UserEntry) -> User:
    registrations = [
        Registration(item.distributor, item.bank, item.transaction_accounts) for item in entry.registrations
    ]
    return User(entry.ta_account, entry.investor, entry.is_open, registrations)


def _is_asked(entry: HoldingEntry, params: HoldingsQuery) -> bool:
    return params.ta_account in ("", entry.ta_account) and params.product in ("", entry.product)
