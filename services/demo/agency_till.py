"""A bank's till as demo, benchmark and tests use it: brings orders to the sales end, waits for what becomes of them.

Programs may be away at any time: whatever is asked is asked again until somebody answers.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio

from services.agency.interfaces import Disclosed, DiscloseQuery, Status, StatusQuery
from services.agency.orders import Application, Investor
from services.agency.sales_interface import (
    PROFILES_MAX,
    SALES_PAGE_MAX,
    ApplicationsTake,
    OrderQuery,
    OrderRecord,
    Orders,
    OrdersQuery,
    Profile,
    ProfilesKept,
    ProfilesPut,
    Progress,
    ProgressQuery,
    SalesSummary,
    SalesSummaryQuery,
    State,
    Taken,
)
from services.client.errors import Unreachable
from services.local.link import LocalLink

WAIT_MS = 5_000
POLL_S = 0.05
AWAY_S = 60
"""How long a program may be away."""

T = TypeVar("T")


class Till:
    """Asks the sales end of a bank, and its gateway; made by :func:`open_till`."""

    def __init__(self, sales: LocalLink, gateway: LocalLink) -> None:
        self._sales = sales
        self._gateway = gateway

    async def bring(
        self, source: str, applications: Sequence[Application], *, creator: str = "", closes: bool = True
    ) -> Taken:
        """Bring orders under the name of their source; they are durable at the sales end when this returns."""
        params = ApplicationsTake(source, [*applications], creator, closes)
        return await patiently(lambda: self._sales.call("applications_take", params, Taken))

    async def until(
        self, source: str, is_enough: Callable[[Progress], bool] | None = None, *, timeout_s: float = AWAY_S
    ) -> Progress:
        """Wait until enough of a source is done, by default all, and return how it stands.

        Raises:
            Unreachable: ``program_timeout``: it takes longer.
        """
        version = 0
        with trio.move_on_after(timeout_s):
            while True:
                query = ProgressQuery(source, version, WAIT_MS)
                shown = await patiently(lambda query=query: self._sales.call("progress", query, Progress))  # type: ignore[misc]
                if (is_enough or is_done)(shown):
                    return shown
                version = shown.version
        raise Unreachable(f"{source} is not settled after {timeout_s:g} s", code="program_timeout")

    async def send(self, source: str, applications: Sequence[Application], *, creator: str = "") -> Progress:
        """Bring orders, and wait until all are anchored or dropped."""
        await self.bring(source, applications, creator=creator)
        return await self.until(source)

    async def records(self, source: str = "", state: State | None = None) -> list[OrderRecord]:
        """Return the records of a source, or of all."""
        found: list[OrderRecord] = []
        after = ""
        while True:
            query = OrdersQuery(state, source, after, SALES_PAGE_MAX)
            page = await patiently(lambda query=query: self._sales.call("orders", query, Orders))  # type: ignore[misc]
            found += page.items
            after = page.next
            if not after:
                return found

    async def record(self, serial: str) -> OrderRecord:
        """Return the record of one order; ``unknown_order``."""
        return await patiently(lambda: self._sales.call("order", OrderQuery(serial), OrderRecord))

    async def know(self, issuer: str, profiles: dict[str, Investor]) -> None:
        """Tell the sales end of an issuer's users."""
        items = [Profile(account, issuer, investor) for account, investor in profiles.items()]
        for first in range(0, len(items), PROFILES_MAX):
            put = ProfilesPut(items[first : first + PROFILES_MAX])
            await patiently(lambda put=put: self._sales.call("profiles_put", put, ProfilesKept))  # type: ignore[misc]

    async def summary(self) -> SalesSummary:
        """Return how the sales end stands."""
        return await patiently(lambda: self._sales.call("summary", SalesSummaryQuery(), SalesSummary))

    async def status(self) -> Status:
        """Return how the gateway stands."""
        return await patiently(lambda: self._gateway.call("status", StatusQuery(), Status))

    async def disclose(self, record: OrderRecord) -> dict[str, object]:
        """Return what proves an order, as a file would hold it."""
        query = DiscloseQuery(record.root, record.application.serial)
        return (await patiently(lambda: self._gateway.call("disclose", query, Disclosed))).document


def is_done(shown: Progress) -> bool:
    """Tell whether nothing of a source waits for anything."""
    return not shown.waiting and not shown.unanchored


@asynccontextmanager
async def open_till(sales: Path, gateway: Path) -> AsyncIterator[Till]:
    """Give a till at the sockets of a bank's two programs."""
    async with LocalLink(sales) as sales_link, LocalLink(gateway) as gateway_link:
        yield Till(sales_link, gateway_link)


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until somebody answers, for a while."""
    ends_at = trio.current_time() + AWAY_S
    while True:
        try:
            return await ask()
        except Unreachable:
            if trio.current_time() > ends_at:
                raise
        await trio.sleep(POLL_S)
