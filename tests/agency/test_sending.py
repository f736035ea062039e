"""What the command line does with registrations: the same again changes nothing, what never left goes anew."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from services.agency.interfaces import OrdersSubmit, OrdersSubmitted
from services.agency.orders import Application, Code
from services.agency.sales_interface import Progress, State
from services.agency.sending import Batch, Report, known_parts, register
from services.client.errors import Refused
from tests.agency.issuer_support import ADULT, application
from tests.agency.test_sales import Gateway, Memory, gateway_of, sales_end, take


@dataclass
class Opening(Gateway):
    """A gateway that has a channel for interface D only once it is opened."""

    is_open: bool = False

    async def submit(self, params: OrdersSubmit) -> OrdersSubmitted:
        if self.is_open:
            applications = [msgspec.structs.replace(item, interface="C-FUNDS") for item in params.applications]
            params = msgspec.structs.replace(params, applications=applications)
        return await super().submit(params)


def opening(serial: str, account: str, interface: str) -> Application:
    changes = {"product": "", "ta_account": account, "investor": ADULT, "amount": 0, "interface": interface}
    return application(serial, Code.OPEN_ACCOUNT, **changes)


def ignore(progress: Progress) -> None:
    """Nobody looks."""


def counts(report: Report) -> dict[str, int]:
    return {f"{total.state.value} {total.reason}".strip(): total.count for total in report.totals}


async def test_a_registration_that_was_dropped_goes_anew_and_no_other_one(tmp_path: Path) -> None:
    batch = Batch("users", [opening("near", "T1", "C-FUNDS"), opening("far", "T2", "D")])
    async with gateway_of(tmp_path, Opening()) as gateway, sales_end(tmp_path, Memory()) as link:
        closed = {"DROPPED no_channel": 1, "CONFIRMED": 1}
        for is_new in (True, True):  # the first, and a second attempt of the one that was dropped
            report, _ = await register(link, batch, ignore)
            assert (counts(report), report.count, report.is_new) == (closed, 2, is_new)
        gateway.is_open = True
        for is_new in (True, False):
            report, records = await register(link, batch, ignore)
            assert (counts(report), report.is_new, report.is_done) == ({"CONFIRMED": 2}, is_new, True)
            assert [item.application.ta_account for item in records] == ["T1", "T2"]
            assert {item.state for item in records} == {State.CONFIRMED}
        sent = [item.ta_account for package in gateway.packages.values() for item in package]
        assert sorted(sent) == ["T1", "T2"], "each once"


async def test_a_file_that_went_in_parts_is_found_by_its_name(tmp_path: Path) -> None:
    async with gateway_of(tmp_path, Gateway()), sales_end(tmp_path, Memory()) as link:
        for number, source in enumerate(("small", "large.0", "large.1")):
            await take(link, source, [application(f"n{number}")])
        assert await known_parts(link, "small") == ["small"]
        assert await known_parts(link, "large") == ["large.0", "large.1"]
        with pytest.raises(Refused) as caught:
            await known_parts(link, "never")
        assert caught.value.code == "unknown_source"
