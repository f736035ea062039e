"""The sales end: what it sends, drops and records, and that it may die at every write. The gateway is a double."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
import trio

from consensus.ledger.errors import LocalError
from services.agency.interfaces import (
    Next,
    OrdersSubmit,
    OrdersSubmitted,
    OutcomesNext,
    PackageOutcome,
    ProductQuery,
    ProductTerms,
    Refused,
    Sent,
)
from services.agency.orders import Application, Code, Confirmation, Investor
from services.agency.sales import SalesSettings, serve
from services.agency.sales_interface import (
    ApplicationsTake,
    OrderQuery,
    OrderRecord,
    Orders,
    OrdersQuery,
    Profile,
    Profiles,
    ProfilesKept,
    ProfilesPut,
    ProfilesQuery,
    Progress,
    ProgressQuery,
    SalesSummary,
    SalesSummaryQuery,
    State,
    Taken,
)
from services.client.errors import Refused as Refusal
from services.local.link import LocalLink
from services.local.service import LocalService
from services.local.service import serve as serve_local
from tests.agency.issuer_support import ADULT, application, product
from tests.agency.world import MemoryStore

ISSUER = "issuer-c"
WAIT_S = 20


class Memory(MemoryStore):
    def blind(self, *parts: str) -> bytes:
        return sha256("\0".join(parts).encode()).digest()[:16]


@dataclass
class Gateway:
    """Answers the first round at once, and anchors it; keeps news for ever, as the real one does."""

    batches: dict[str, OrdersSubmitted] = field(default_factory=dict)
    packages: dict[bytes, list[Application]] = field(default_factory=dict)
    news: list[PackageOutcome] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)
    is_silent: bool = False
    refusal: str = ""

    def service(self) -> LocalService:
        service = LocalService()
        service.add("product", ProductQuery, self.product)
        service.add("orders_submit", OrdersSubmit, self.submit)
        service.add("outcomes_next", Next, self.next, waits=True)
        return service

    async def product(self, params: ProductQuery) -> ProductTerms:
        self.asked.append(params.product)
        if params.product == "NONE":
            raise LocalError("unknown_product", "no such product")
        return product(params.product, interface="D" if params.product == "FAR" else "C-FUNDS")

    async def submit(self, params: OrdersSubmit) -> OrdersSubmitted:
        known = self.batches.get(params.batch)
        if known is not None:
            return known
        refused = [Refused(item.serial, "no_channel", "") for item in params.applications if item.interface == "D"]
        sent = [item for item in params.applications if item.interface != "D"]
        packages = []
        for first in range(0, len(sent), 1_024):
            chunk = sent[first : first + 1_024]
            root = sha256(f"{params.batch}{first}".encode()).digest()
            self.packages[root] = chunk
            packages.append(Sent(root, "bank-a", ISSUER, 1, [item.serial for item in chunk]))
        self.batches[params.batch] = OrdersSubmitted(packages, refused)
        for package in packages:
            if self.refusal:
                self.tell("refused", package.root, code=self.refusal)
            elif not self.is_silent:
                self.answer(package.root)
        return self.batches[params.batch]

    def answer(self, root: bytes) -> None:
        self.tell("answered", root, confirmations=[confirmed(item) for item in self.packages[root]])
        self.tell("anchored", root, transaction_id=b"t" * 32, height=7)

    def tell(self, kind: str, root: bytes, **facts: object) -> None:
        self.news.append(PackageOutcome(len(self.news) + 1, kind, root, "bank-a", ISSUER, **facts))  # type: ignore[arg-type]
        self.changed.set()
        self.changed = trio.Event()

    async def next(self, params: Next) -> OutcomesNext:
        with trio.move_on_after(params.wait_ms / 1000):
            while len(self.news) <= params.after:
                await self.changed.wait()
        return OutcomesNext(self.news[params.after : params.after + params.limit])


def confirmed(item: Application, reason: str = "", code: str = "") -> Confirmation:
    """Reject what asks for an odd amount; open accounts under a number of the issuer's."""
    reason = reason or ("insufficient_units" if item.amount % 2 else "")
    account = item.ta_account or "TA1"
    accepted = (0, 0) if reason else (item.amount, item.amount)
    digits = "9052" if reason else "0000"
    return Confirmation(
        *(
            item.serial,
            code or Code(item.code).confirmation,
            f"N{item.serial}"[:20],
            account,
            digits,
            reason,
            *accepted,
        ),
        *(10_000, 0, 20261122, item.code != Code.INITIAL_SUBSCRIPTION),
    )


@asynccontextmanager
async def sales_end(
    folder: Path,
    store: Memory,
    *,
    window_ms: int = 0,
    distributor: str = "996",
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> AsyncIterator[LocalLink]:
    """Run a sales end for the time of the block."""
    settings = SalesSettings(
        "sales", "bank-a", folder / "run", folder, folder / "key", folder / "gateway.sock", distributor, window_ms
    )
    stopping = trio.Event()
    async with LocalLink(settings.socket) as link, trio.open_nursery() as nursery:
        await nursery.start(partial(serve, settings, store, stopping, now_ms=now_ms))
        yield link
        await link.aclose()
        stopping.set()


@asynccontextmanager
async def gateway_of(folder: Path, gateway: Gateway) -> AsyncIterator[Gateway]:
    stopping = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_local, folder / "gateway.sock", gateway.service(), stopping)
        yield gateway
        stopping.set()


async def take(link: LocalLink, source: str, applications: list[Application], **changes: object) -> Taken:
    params = ApplicationsTake(source, applications, **changes)  # type: ignore[arg-type]
    return await link.call("applications_take", params, Taken)


async def settled(link: LocalLink, source: str, is_done: Callable[[Progress], bool] | None = None) -> Progress:
    """Wait until nothing of a source waits for anything."""
    version = 0
    with trio.fail_after(WAIT_S):
        while True:
            shown = await link.call("progress", ProgressQuery(source, version, 5_000), Progress)
            if is_done(shown) if is_done else shown.waiting == shown.unanchored == 0:
                return shown
            version = shown.version


async def know(link: LocalLink, *accounts: str, investor: Investor = ADULT) -> None:
    profiles = [Profile(account, ISSUER, investor) for account in accounts]
    assert (await link.call("profiles_put", ProfilesPut(profiles), ProfilesKept)).new == len(accounts)


async def orders_of(link: LocalLink, **query: object) -> list[OrderRecord]:
    """Return all orders, three a page."""
    found: list[OrderRecord] = []
    after = ""
    while True:
        page = await link.call("orders", OrdersQuery(after=after, limit=3, **query), Orders)  # type: ignore[arg-type]
        found += page.items
        if not page.next:
            return found
        after = page.next


def ends(records: list[OrderRecord]) -> dict[str, tuple[str, str]]:
    return {record.application.serial: (record.state.value, record.reason) for record in records}


MIXED = [
    application("good", amount=200_00, ta_account="T1"),
    application("odd", amount=201_01, ta_account="T1"),
    application("stranger", ta_account="T9"),
    application("foreign", distributor="196", ta_account="T1"),
    application("good", ta_account="T1"),
    application("nothing", product="NONE", ta_account="T1"),
    application("far", interface="D", product="FAR", ta_account="T1"),
]
MIXED_ENDS = {
    "good": ("CONFIRMED", ""),
    "odd": ("REJECTED", "insufficient_units"),
    "stranger": ("DROPPED", "unknown_user"),
    "foreign": ("DROPPED", "foreign_distributor"),
    "nothing": ("DROPPED", "unknown_product"),
    "far": ("DROPPED", "no_channel"),
}


async def test_each_order_has_one_record_with_its_reason(tmp_path: Path) -> None:
    store = Memory()
    async with gateway_of(tmp_path, Gateway()) as gateway, sales_end(tmp_path, store) as link:
        await know(link, "T1")
        assert await take(link, "file", MIXED, creator="996") == Taken("file", len(MIXED), is_new=True)
        shown = await settled(link, "file")
        assert {(total.state.value, total.reason, total.count) for total in shown.totals} == {
            *((*end, 1) for end in MIXED_ENDS.values()),
            ("DROPPED", "duplicate_serial", 1),
        }
        assert sum(total.amount for total in shown.totals) == sum(item.amount for item in MIXED)
        records = await orders_of(link)
        assert len(records) == len(MIXED)
        kept = [record for record in records if record.reason != "duplicate_serial"]
        assert ends(kept) == MIXED_ENDS
        for record in kept:
            assert await link.call("order", OrderQuery(record.application.serial), OrderRecord) == record
            assert (record.confirmation is not None, bool(record.anchors)) == (bool(record.root), bool(record.root))
        assert ends(await orders_of(link, state=State.REJECTED)) == {"odd": MIXED_ENDS["odd"]}
        assert await orders_of(link, source="other") == []
        assert sorted(set(gateway.asked)) == ["000198", "FAR", "NONE"]
        assert len(gateway.asked) == 3, "a product is asked for once a window"
        (sent,) = gateway.packages.values()
        assert [item.terms_version for item in sent] == [2, 2]


async def test_a_foreign_order_takes_nobody_s_serial_away(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, Gateway()), sales_end(tmp_path, Memory()) as link:
        await know(link, "T1")
        foreign = [application(serial, distributor="196", ta_account="T1") for serial in ("one", "two", "three")]
        own = [application(serial, ta_account="T1") for serial in ("one", "two")]
        await take(link, "file", [*foreign, own[0]], creator="996")
        await settled(link, "file")
        await take(link, "other", own, creator="996")
        await settled(link, "other")
        found = [(item.application.serial, item.reason) for item in await orders_of(link, source="other")]
        assert sorted(found) == [("one", "duplicate_serial"), ("two", "")]
        for serial, distributor in (("one", "996"), ("two", "996"), ("three", "196")):
            record = await link.call("order", OrderQuery(serial), OrderRecord)
            assert record.application.distributor == distributor


async def test_the_same_source_changes_nothing_and_a_serial_counts_once(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, Gateway()) as gateway, sales_end(tmp_path, Memory()) as link:
        await know(link, "T1")
        first = [application("one", ta_account="T1")]
        await take(link, "file", first)
        before = await settled(link, "file")
        assert (await take(link, "file", first)).is_new is False
        assert await settled(link, "file") == before
        await take(link, "other", first)
        (total,) = (await settled(link, "other")).totals
        assert (total.state, total.reason) == (State.DROPPED, "duplicate_serial")
        assert (await link.call("order", OrderQuery("one"), OrderRecord)).source == "file"
        assert len(gateway.packages) == 1


async def test_an_opened_account_may_buy_until_it_is_closed(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, Gateway()), sales_end(tmp_path, Memory()) as link:
        opening = application("open", Code.OPEN_ACCOUNT, product="", ta_account="", investor=ADULT, amount=0)
        await take(link, "a", [opening, application("early", ta_account="TA1")])
        await settled(link, "a")
        await take(link, "b", [application("buy", ta_account="TA1")])
        await settled(link, "b")
        profiles = await link.call("profiles", ProfilesQuery(), Profiles)
        assert [(item.ta_account, item.investor) for item in profiles.items] == [("TA1", ADULT)]
        closing = application("close", Code.CLOSE_ACCOUNT, product="", ta_account="TA1", investor=ADULT, amount=0)
        await take(link, "c", [closing])
        await settled(link, "c")
        await take(link, "d", [application("late", ta_account="TA1")])
        await settled(link, "d")
        assert ends(await orders_of(link)) == {
            "open": ("CONFIRMED", ""),
            "early": ("DROPPED", "unknown_user"),
            "buy": ("CONFIRMED", ""),
            "close": ("CONFIRMED", ""),
            "late": ("DROPPED", "unknown_user"),
        }
        assert (await link.call("summary", SalesSummaryQuery(), SalesSummary)).profiles == 0


async def test_an_allotment_is_a_second_confirmation(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, Gateway()) as gateway, sales_end(tmp_path, Memory()) as link:
        await know(link, "T1")
        orders = [application(f"n{at}", Code.INITIAL_SUBSCRIPTION, ta_account="T1") for at in range(3)]
        await take(link, "new", orders)
        await settled(link, "new")
        (root,) = gateway.packages
        allotted = [confirmed(orders[0], code="130"), confirmed(orders[2], "product_closed", "130")]
        gateway.tell("allotted", root, round_number=1, places=[0, 2], confirmations=allotted)
        await settled(link, "new", lambda shown: any(total.state is State.ALLOTTED for total in shown.totals))
        records = await orders_of(link)
        assert [record.allotment for record in records] == [allotted[0], None, allotted[1]]
        assert [record.state for record in records] == [State.ALLOTTED, State.CONFIRMED, State.REJECTED]


async def test_a_package_that_is_never_taken_is_rejected_and_an_answer_undoes_that(tmp_path: Path) -> None:
    async with (
        gateway_of(tmp_path, Gateway(refusal="channel_revoked")) as gateway,
        sales_end(tmp_path, Memory()) as link,
    ):
        await know(link, "T1")
        await take(link, "file", [application("one", ta_account="T1")])
        await settled(link, "file", lambda shown: shown.waiting == 0)
        assert ends(await orders_of(link)) == {"one": ("REJECTED", "channel_revoked")}
        (root,) = gateway.packages
        gateway.answer(root)
        await settled(link, "file", lambda shown: shown.totals[0].state is State.CONFIRMED)


async def test_orders_gather_until_the_window_ends(tmp_path: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    async with (
        gateway_of(tmp_path, Gateway()) as gateway,
        sales_end(tmp_path, Memory(), window_ms=50, now_ms=lambda: now_ms) as link,
    ):
        await know(link, "T1")
        for at in range(5):
            await take(link, f"till-{at}", [application(f"o{at}", ta_account="T1")], closes=False)
        assert (await link.call("order", OrderQuery("o3"), OrderRecord)).state is State.NEW
        assert [record.state for record in await orders_of(link)] == [State.NEW] * 5
        now_ms += 50
        for at in range(5):
            await settled(link, f"till-{at}")
        assert [len(sent) for sent in gateway.packages.values()] == [5]


async def test_more_than_a_package_goes_in_several(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, Gateway()) as gateway, sales_end(tmp_path, Memory()) as link:
        await know(link, "T1")
        await take(link, "many", [application(f"o{at}", ta_account="T1") for at in range(5_000)])
        shown = await settled(link, "many")
        assert [(total.state, total.count) for total in shown.totals] == [(State.CONFIRMED, 5_000)]
        assert sorted(len(sent) for sent in gateway.packages.values()) == [904, 1_024, 1_024, 1_024, 1_024]


@pytest.mark.parametrize("is_written", [False, True])
async def test_it_may_die_at_every_write(tmp_path: Path, is_written: bool) -> None:
    deaths = 0
    while True:
        deaths += 1
        folder = tmp_path / f"{deaths}"
        folder.mkdir()
        store = Memory()
        store.is_written = is_written
        store.data = dict(await profiles_alone(folder))
        store.dies_at = deaths
        async with gateway_of(folder, Gateway()) as gateway:
            is_dead = await lives_until_it_dies(folder, store)
            store.dies_at = 0
            async with sales_end(folder, store) as link:
                await take(link, "file", MIXED, creator="996")
                await settled(link, "file")
                records = [item for item in await orders_of(link) if item.reason != "duplicate_serial"]
                assert ends(records) == MIXED_ENDS, deaths
                assert len(await orders_of(link)) == len(MIXED)
                summary = await link.call("summary", SalesSummaryQuery(), SalesSummary)
                assert sum(total.count for total in summary.totals) == len(MIXED)
                assert len(gateway.packages) == 1, deaths
        if not is_dead:
            assert deaths > 5
            return


async def profiles_alone(folder: Path) -> dict[bytes, bytes]:
    store = Memory()
    async with sales_end(folder, store) as link:
        await know(link, "T1")
    return store.data


async def lives_until_it_dies(folder: Path, store: Memory) -> bool:
    """Send the file; return whether the program died of a write."""
    try:
        async with sales_end(folder, store) as link:
            await take(link, "file", MIXED, creator="996")
            await settled(link, "file")
    except BaseExceptionGroup:
        return store.writes >= store.dies_at
    except Refusal:
        return True
    return False


async def test_what_is_unknown_has_a_code(tmp_path: Path) -> None:
    async with sales_end(tmp_path, Memory()) as link:
        for method, params, code in (
            ("progress", ProgressQuery("x"), "unknown_source"),
            ("order", OrderQuery("x"), "unknown_order"),
            ("orders", msgspec.structs.replace(OrdersQuery(), after="zz"), "invalid_params"),
            ("orders", msgspec.structs.replace(OrdersQuery(), after=f"k-{2**64}-1"), "invalid_params"),
            ("profiles", msgspec.structs.replace(ProfilesQuery(), after="abc"), "invalid_params"),
        ):
            with pytest.raises(Refusal) as caught:
                await link.call(method, params, Progress)
            assert caught.value.code == code


async def test_orders_are_taken_while_the_gateway_is_away(tmp_path: Path) -> None:
    async with sales_end(tmp_path, Memory()) as link:
        with trio.fail_after(WAIT_S):
            await know(link, "T1")
            for at in range(3):
                await take(link, f"till-{at}", [application(f"o{at}", ta_account="T1")])
            assert ends(await orders_of(link)) == {f"o{at}": ("NEW", "") for at in range(3)}
            assert ends(await orders_of(link, source="till-1")) == {"o1": ("NEW", "")}
        async with gateway_of(tmp_path, Gateway()):
            for at in range(3):
                await settled(link, f"till-{at}")
            assert ends(await orders_of(link, source="till-1")) == {"o1": ("CONFIRMED", "")}
            await link.aclose()
