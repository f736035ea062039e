"""Anchoring: few transactions for many packages, each found on the chain; the size of what bank and issuer compute."""

import time
from pathlib import Path

import trio

from services.agency.interfaces import PackageState, RootQuery
from tests.agency.world import BANK, ISSUER, answer_next, application, outcomes, submit, world


async def test_packages_that_wait_together_share_a_transaction(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        # The chain stands still while the first anchor is under way: the others gather behind it.
        submitted = await submit(bank, *(application(number) for number in range(3 * 1_024 + 5)))
        assert [len(package.serials) for package in submitted.packages] == [1_024, 1_024, 1_024, 5]
        found.node.is_deciding = False
        place = 0
        for _ in submitted.packages:
            place, _ = await answer_next(issuer, place)
        assert [item.kind for item in await outcomes(bank, 4)] == ["answered"] * 4
        found.node.is_deciding = True
        found.node.wake()
        anchored = [item for item in await outcomes(bank, 4, after=4) if item.kind == "anchored"]
        assert {item.root for item in anchored} == {package.root for package in submitted.packages}
        assert len({item.transaction_id for item in anchored}) <= 2
        for package in submitted.packages:
            state = await bank.call("package", RootQuery(package.root), PackageState)
            assert state.rounds[0].status == "MUTUAL"


async def test_a_package_of_a_thousand_orders_costs_a_bank_little(tmp_path: Path) -> None:
    """Both gateways together, and the test as issuer end, take far less than the bank alone may."""
    orders = [application(number) for number in range(1_006)]
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        with trio.fail_after(30):
            before_s = time.process_time()
            await submit(bank, *orders)
            await answer_next(issuer)
            assert [item.kind for item in await outcomes(bank, 2)] == ["answered", "anchored"]
            assert time.process_time() - before_s < 2.0
