"""A running account system in this process, and what its tests ask of it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import trio

from services.accounts.link import AccountsLink, open_accounts
from services.accounts.port import Operation, Order
from services.accounts.program import AccountsSettings, serve

TOKEN = "between programs"
JSON = {"content-type": "application/json"}
RESERVE, PAY, RELEASE, REVERSE = Operation


def order(operation: Operation, event: str = "t-1", *, amount: int = 30, currency: str = "CNY", **names: str) -> Order:
    """Return an order of the buyer's for the shop, but for what is said."""
    terms = {"payer": "buyer", "payee": "shop", **names}
    return Order(event, operation, terms["payer"], terms["payee"], amount, currency)


@dataclass
class World:
    """What the tests hold: ``link`` as the payer has one, ``http`` for what it would never send."""

    link: AccountsLink
    http: httpx.AsyncClient
    port: int
    stopping: trio.Event

    async def post(self, path: str, body: Any, status: int = 200) -> Any:
        """Post JSON, see the status and that the money is simulated, return the answer."""
        return self._seen(await self.http.post(path, json=body), status)

    async def get(self, path: str, status: int = 200) -> Any:
        """Get JSON, likewise."""
        return self._seen(await self.http.get(path), status)

    @staticmethod
    def _seen(answer: httpx.Response, status: int) -> Any:
        assert answer.status_code == status, answer.text
        assert answer.headers["hansa-money"] == "simulated"
        content = answer.json()
        assert status >= 400 or content["simulated"] is True
        return content


@asynccontextmanager
async def world_in(
    folder: Path, *, database: str = "", faults: bool = True, accounts: Sequence[str] = ("buyer", "shop")
) -> AsyncIterator[World]:
    """Serve an account system whose accounts have 1,000.00 CNY each."""
    settings = AccountsSettings(
        host="127.0.0.1",
        port=0,
        token=TOKEN,
        run=folder / "run",
        database=database or f"sqlite:///{folder}/data/accounts.db",
        is_fault_panel_open=faults,
    )
    (folder / "data").mkdir(exist_ok=True)
    stopping = trio.Event()
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve, settings, stopping)
        url = f"http://127.0.0.1:{port}"
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with (
            open_accounts(url, token=TOKEN) as link,
            httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as http,
        ):
            await link.open([(name, "CNY") for name in accounts])
            for name in accounts:
                await link.deposit(name, 100_000, key=f"opening-{name}")
            yield World(link, http, port, stopping)
        stopping.set()
