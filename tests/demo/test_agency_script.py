"""What the agency demo sends: everybody who buys has an account, serials are one each, and the seed decides."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consensus.ledger.errors import LocalError
from services.agency.ofd.reader import read_path
from services.agency.ofd.synthetic import orders_file
from services.agency.orders import Code
from services.agency.qualification import age_on
from services.demo.agency_facts import DROPPED
from services.demo.agency_script import make_script
from tests.conftest import data_folder


def path() -> Path:
    (found,) = data_folder("fund").glob("OFD_*_03.txt")
    return found


def test_the_file_becomes_orders_with_an_account_each() -> None:
    script = make_script(read_path(path()), "file", seed=1)
    assert len(script.applications) == 1_006
    assert sum(item.amount for item in script.applications) == 645_735_805
    foreign = [item for item in script.applications if script.wanted[item.serial] == (DROPPED, "foreign_distributor")]
    assert [(item.distributor, item.amount) for item in foreign] == [("196", 39_611)]
    opened = {item.ta_account for item in script.accounts}
    assert {item.ta_account for item in script.applications} <= opened
    assert len(opened) == len(script.accounts) == 862 + 5
    serials = [item.serial for item in (*script.applications, *script.accounts)]
    serials += [order.application.serial for order in (*script.people, *script.later)]
    assert len(set(serials)) == len(serials) == len(script.wanted)
    assert len({item.investor.certificate_number for item in script.accounts if item.investor}) == len(opened)
    date = script.applications[0].date
    investors = {item.ta_account: item.investor for item in script.accounts if item.investor}
    assert [who for who, item in investors.items() if age_on(item.birth_date, date) < 18] == ["minor-1", "pretender-1"]
    assert list(script.profiles) == ["pretender-1"], "the bank takes this one for older"
    assert age_on(script.profiles["pretender-1"].birth_date, date) >= 18


def test_the_seed_decides() -> None:
    file = read_path(path())
    assert make_script(file, "file", seed=1) == make_script(file, "file", seed=1)
    assert make_script(file, "file", seed=2).accounts != make_script(file, "file", seed=1).accounts


@pytest.mark.parametrize("changes", [{"products": ("F00001",)}, {"code": Code.REDEMPTION}, {}])
def test_a_file_that_cannot_be_played_is_refused_before_anything_is_started(changes: dict[str, Any]) -> None:
    file = orders_file(1, orders=3, accounts=2, **changes)
    with pytest.raises(LocalError) as caught:
        make_script(file if changes else replace(file, records=[]), "file", seed=1)
    assert caught.value.code == "bad_fund_file"
