"""All four programs of a bank and an issuer together, over real sockets and a real chain: a file's whole way."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from services.agency import issuer as issuer_end
from services.agency import sales as sales_end
from services.agency.disclosure import decode_disclosure_untrusted, verify_disclosure
from services.agency.interfaces import Disclosed, DiscloseQuery
from services.agency.issuer_interface import IssuerSummary, SummaryQuery
from services.agency.ofd.mapping import applications_of
from services.agency.ofd.synthetic import orders_file, registrations
from services.agency.orders import Application
from services.agency.sales_interface import (
    ApplicationsTake,
    OrderQuery,
    OrderRecord,
    Orders,
    OrdersQuery,
    Progress,
    ProgressQuery,
    SalesSummary,
    SalesSummaryQuery,
    State,
    Taken,
)
from services.client.keystore import Signer
from services.local.link import LocalLink
from services.local.vault import open_vault
from tests.agency.test_gateway import log_count, sent_messages, until_held
from tests.agency.world import BANK, BUSINESS, CONSORTIUM, INTERFACE, ISSUER, PRODUCT, World, application, ending, world

WAIT_S = 60


@asynccontextmanager
async def ends(found: World) -> AsyncIterator[tuple[LocalLink, LocalLink]]:
    """Run both business ends beside their gateways; give their sockets."""
    homes = {name: found.folder / f"{name}-end" for name in (BANK, ISSUER)}
    paths = {
        name: {"run": home / "run", "data": home / "data", "key_file": home / "key"} for name, home in homes.items()
    }
    sales = sales_end.SalesSettings(
        "sales", BANK, **paths[BANK], gateway=found.settings(BANK).socket, distributor="996"
    )
    issuer = issuer_end.IssuerSettings(
        "issuer",
        ISSUER,
        **paths[ISSUER],
        gateway=found.settings(ISSUER).socket,
        chain_id=CONSORTIUM.genesis.chain_id(),
        business=Signer.of("business", BUSINESS[ISSUER]),
    )
    stopping = trio.Event()
    now_ms = found.clock.now_ms

    async def run_sales(task_status: trio.TaskStatus[sales_end.SalesEnd]) -> None:
        async with open_vault(sales.data, sales.key_file) as vault:
            await sales_end.serve(sales, vault, stopping, now_ms=now_ms, task_status=task_status)

    async def run_issuer(task_status: trio.TaskStatus[issuer_end.Issuer]) -> None:
        async with open_vault(issuer.data, issuer.key_file) as vault:
            await issuer_end.serve(issuer, vault, stopping, now_ms=now_ms, task_status=task_status)

    async with (
        found.gateway(BANK),
        found.gateway(ISSUER),
        LocalLink(sales.socket) as bank,
        LocalLink(issuer.socket) as other,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(run_sales)
        await nursery.start(run_issuer)
        with ending(stopping) as failed:
            yield bank, other
    failed.check()


async def send(sales: LocalLink, source: str, applications: Sequence[Application], creator: str = "996") -> Progress:
    """Send orders and return how they stand once all is answered and anchored."""
    await sales.call("applications_take", ApplicationsTake(source, [*applications], creator), Taken)
    after = 0
    with trio.fail_after(WAIT_S):
        while True:
            shown = await sales.call("progress", ProgressQuery(source, after, 10_000), Progress)
            if not shown.waiting and not shown.unanchored:
                return shown
            after = shown.version


def told(progress: Progress) -> dict[tuple[str, str], int]:
    """Return the counts by state and reason."""
    return {(total.state.value, total.reason): total.count for total in progress.totals}


async def test_a_file_s_orders_and_money_reconcile_between_both_ends_and_the_chain(tmp_path: Path) -> None:
    orders = applications_of(orders_file(7), {PRODUCT: INTERFACE})
    total = sum(order.amount for order in orders)
    async with world(tmp_path) as found:
        await found.agree()
        async with ends(found) as (sales, issuer):
            accounts = registrations(orders, 7, interface=INTERFACE, distributor="996")
            registered = await send(sales, "accounts", accounts)
            assert told(registered) == {("CONFIRMED", ""): len(accounts)}
            sent = await send(sales, "file", orders)
            assert told(sent) == {("CONFIRMED", ""): 1_005, ("DROPPED", "foreign_distributor"): 1}
            assert sum(item.amount for item in sent.totals) == total
            assert await log_count(found) == 2, "one anchor for the accounts' package, one for the orders'"

            assert await send(sales, "file", orders) == sent, "the same file again doubles nothing"
            assert len(sent_messages(found, BANK)) == 2

            record = await sales.call("order", OrderQuery(orders[0].serial), OrderRecord)
            assert record.confirmation is not None
            assert record.confirmation.volume == record.application.amount, "at a net asset value of 1"
            books = await issuer.call("summary", SummaryQuery(), IssuerSummary)
            assert books.users == len(accounts)
            (product,) = books.products
            accepted = sum(item.amount for item in sent.totals if item.state is State.CONFIRMED)
            assert (product.units, product.units_out) == (accepted, 0)
            summary = await sales.call("summary", SalesSummaryQuery(), SalesSummary)
            assert summary.packages == 2


async def test_each_order_that_does_not_take_effect_has_its_reason(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        await found.agree()
        async with ends(found) as (sales, _):
            base = [application(number) for number in range(4)]
            accounts = registrations(base, 3, interface=INTERFACE, distributor="996")
            await send(sales, "accounts", accounts, creator="")
            await send(sales, "buy", base)
            mixed = [
                application(0, serial="less", code="024", amount=0, volume=5_000),
                application(1, serial="more", code="024", amount=0, volume=10**9),
                application(99, serial="stranger"),
                application(2, serial="kind", code="020"),
                application(3, serial="product", product="NONE01"),
                application(3, serial="good"),
            ]
            shown = await send(sales, "mixed", mixed)
            page = await sales.call("orders", OrdersQuery(source="mixed"), Orders)
            found_ends = {item.application.serial: (item.state.value, item.reason) for item in page.items}
            assert found_ends == {
                "less": ("CONFIRMED", ""),
                "more": ("REJECTED", "insufficient_units"),
                "stranger": ("DROPPED", "unknown_user"),
                "kind": ("DROPPED", "kind_forbidden"),
                "product": ("DROPPED", "unknown_product"),
                "good": ("CONFIRMED", ""),
            }
            assert sum(total.count for total in shown.totals) == len(mixed)


async def test_terms_that_change_in_flight_and_a_channel_that_is_revoked_in_flight(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        await found.agree()
        async with ends(found) as (sales, _), LocalLink(found.settings(BANK).socket) as gateway:
            accounts = registrations([application(0)], 3, interface=INTERFACE, distributor="996")
            await send(sales, "accounts", accounts)
            found.wire.is_holding = True
            params = ApplicationsTake("late", [application(0, serial="late")], "996")
            await sales.call("applications_take", params, Taken)
            await until_held(found)
            await found.agree(version=2, ageMin=20)
            found.wire.release()
            assert told(await send(sales, "late", params.applications)) == {("REJECTED", "stale_terms"): 1}
            assert told(await send(sales, "next", [application(0, serial="next")])) == {("CONFIRMED", ""): 1}

            found.wire.is_holding = True
            await sales.call("applications_take", ApplicationsTake("gone", [application(0, serial="gone")]), Taken)
            await until_held(found)
            await found.revoke()
            found.wire.release()
            assert told(await send(sales, "gone", params.applications)) == {("REJECTED", "channel_revoked"): 1}
            shown = await send(sales, "after", [application(0, serial="after")])
            assert told(shown) == {("DROPPED", "channel_revoked"): 1}

            record = await sales.call("order", OrderQuery("next"), OrderRecord)
            found.node.decide()
            answer = await gateway.call("disclose", DiscloseQuery(record.root, "next"), Disclosed)
            verdict = verify_disclosure(
                decode_disclosure_untrusted(msgspec.json.encode(answer.document)), CONSORTIUM.genesis
            )
            assert (verdict.status, verdict.confirmation) == ("MUTUAL", record.confirmation)
