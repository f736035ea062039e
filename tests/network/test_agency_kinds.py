"""Every kind of application on a running network, from gateway to gateway: what it makes of holdings."""

from pathlib import Path

import msgspec
import pytest
import trio

from services.agency.interfaces import Next, OrdersSubmit, OrdersSubmitted, OutcomesNext, PackageOutcome
from services.agency.issuer_interface import Allot, Allotted, Holdings, HoldingsQuery
from services.agency.orders import Application, Code, Confirmation, Investor
from services.demo.agency_network import BANK_GATEWAY, ISSUER_END, SALES
from services.local.link import LocalLink
from tests.network.agency_system import SETTLE_S, System, application, running_agency

pytestmark = [pytest.mark.network, pytest.mark.slow]

HERE, THERE = "996", "777"
HOLDER = "holder-of-all"
INVESTOR = Investor("user b", "0", "110101198001010017", 1980_01_01, 4)
MONEY, SHARES, NEW = "000198", "C00002", "C00003"


class Exchange:
    """The bank's gateway, asked without the bank's sales end; only the issuer judges what goes out."""

    def __init__(self, gateway: LocalLink) -> None:
        self._gateway = gateway
        self._after = 0
        self._batches = 0

    async def skip(self) -> None:
        """Leave out the news so far."""
        while page := (await self._gateway.call("outcomes_next", Next(self._after, 0, 64), OutcomesNext)).items:
            self._after = page[-1].position

    async def send(self, *orders: Application) -> list[Confirmation]:
        """Send one package and return its confirmations."""
        self._batches += 1
        submitted = OrdersSubmit(f"kinds-{self._batches}", [*orders])
        sent = await self._gateway.call("orders_submit", submitted, OrdersSubmitted)
        assert (len(sent.packages), sent.refused) == (1, [])
        return (await self.news("answered", sent.packages[0].root)).confirmations

    async def news(self, kind: str, root: bytes | None = None) -> PackageOutcome:
        """Return the next news of a kind."""
        with trio.fail_after(SETTLE_S):
            while True:
                page = await self._gateway.call("outcomes_next", Next(self._after, 10_000, 1), OutcomesNext)
                for item in page.items:
                    self._after = item.position
                    if item.kind == kind and root in (None, item.root):
                        return item


def order(serial: str, code: Code, **changes: object) -> Application:
    return application(serial, code.value, HOLDER, **{"terms_version": 1, **changes})


def about_account(serial: str, code: Code, **changes: object) -> Application:
    return order(serial, code, **{"product": "", "investor": INVESTOR, "terms_version": 0, **changes})


async def held(system: System) -> dict[tuple[str, str], int]:
    async with LocalLink(system.trial.socket(ISSUER_END)) as link:
        page = await link.call("holdings", HoldingsQuery(ta_account=HOLDER), Holdings)
    return {
        (item.product, f"{item.distributor}>{item.to}" if item.to else item.distributor): item.units
        for item in page.items
    }


def ends(confirmations: list[Confirmation]) -> list[tuple[str, str]]:
    return [(item.code, item.reason) for item in confirmations]


async def test_every_kind_is_confirmed_and_makes_the_holdings_it_should(tmp_path: Path) -> None:
    async with running_agency(tmp_path / "net") as system, LocalLink(system.trial.socket(BANK_GATEWAY)) as gateway:
        await system.kill(SALES)
        bank = Exchange(gateway)
        await bank.skip()

        opened = await bank.send(
            about_account("a1", Code.OPEN_ACCOUNT),
            about_account("a2", Code.ADD_TRADING_ACCOUNT, distributor=THERE),
            about_account("a3", Code.CHANGE_ACCOUNT, investor=msgspec.structs.replace(INVESTOR, risk_class=5)),
            about_account("a4", Code.OPEN_ACCOUNT),
        )
        assert ends(opened) == [("101", ""), ("108", ""), ("103", ""), ("101", "account_exists")]

        bought = await bank.send(
            order("b1", Code.SUBSCRIPTION, amount=100_00),
            order("b2", Code.INITIAL_SUBSCRIPTION, product=NEW, amount=50_00),
        )
        assert ends(bought) == [("122", ""), ("120", "")]
        moved = await bank.send(
            order("c1", Code.REDEMPTION, volume=10_00),
            order("c2", Code.REDEMPTION, volume=90_01),
            order("c3", Code.CONVERSION, volume=20_00, target_product=SHARES),
            order("c4", Code.CUSTODY_TRANSFER, volume=15_00, target_distributor=THERE),
            order("c5", Code.CUSTODY_TRANSFER_OUT, volume=25_00, target_distributor=THERE),
            order("c6", Code.CUSTODY_TRANSFER, volume=1, target_distributor="555"),
        )
        assert ends(moved) == [
            ("124", ""),
            ("124", "insufficient_units"),
            ("136", ""),
            ("126", ""),
            ("128", ""),
            ("126", "bad_target"),
        ]
        shares = 1976 * 10_000 // 15_230  # 20.00 less a charge of 1.2 % outside, rounded: 19.76
        expected = {
            (MONEY, HERE): 30_00,
            (MONEY, THERE): 15_00,
            (MONEY, f"{HERE}>{THERE}"): 25_00,
            (SHARES, HERE): shares,
        }
        assert await held(system) == expected

        taken = await bank.send(
            order("d1", Code.CUSTODY_TRANSFER_IN, volume=25_00, distributor=THERE, target_distributor=HERE),
            about_account("d2", Code.CLOSE_ACCOUNT),
        )
        assert ends(taken) == [("127", ""), ("102", "account_in_use")]
        async with LocalLink(system.trial.socket(ISSUER_END)) as issuer:
            assert (await issuer.call("allot", Allot(NEW, 5_000), Allotted)).packages == 1
        (allotted,) = (await bank.news("allotted")).confirmations
        assert (allotted.code, allotted.amount, allotted.volume + allotted.charge) == ("130", 25_00, 25_00)
        assert await held(system) == {
            (MONEY, HERE): 30_00,
            (MONEY, THERE): 40_00,
            (SHARES, HERE): shares,
            (NEW, HERE): allotted.volume,
        }
