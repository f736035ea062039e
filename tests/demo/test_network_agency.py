"""The agency demo on real processes: it holds for the real file, its money reconciles, and it leaves nothing behind."""

from pathlib import Path

import pytest

from tests.conftest import data_folder
from tests.demo.test_network_rights import processes_below, run

pytestmark = [pytest.mark.network, pytest.mark.slow]

TOTAL, FOREIGN = 645_735_805, 39_611
"""1/100 CNY: what the file applies for, and of that what names another distributor."""


def test_the_file_reconciles_and_nothing_is_left(tmp_path: Path) -> None:
    (path,) = data_folder("fund").glob("OFD_*_03.txt")
    code, document = run(["demo", "agency", "--applications", str(path), "--json"], tmp_path)
    assert document["ok"] is True, document
    assert code == 0
    assert (document["orders"], document["amount"]) == (1_006, TOTAL)
    assert document["sums"] == {
        "confirmed": {"orders": 1_005, "amount": TOTAL - FOREIGN},
        "rejected by the issuer": {"orders": 0, "amount": 0},
        "dropped before sending": {"orders": 1, "amount": FOREIGN},
        "open": {"orders": 0, "amount": 0},
    }
    assert document["confirmed_amount"] == TOTAL - FOREIGN
    reasons = document["reasons"]
    assert isinstance(reasons, dict)
    assert {"minor", "unknown_user", "kind_forbidden", "insufficient_units", "foreign_distributor"} <= set(reasons)
    assert document["ends"] == {"CONFIRMED": 1_876, "DROPPED": 9, "ALLOTTED": 1, "REJECTED": 2}
    assert processes_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_malformed_file_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "OFD_996_H0_20170427_03.txt"
    path.write_bytes(b"OFDCFDAT\r\n")
    code, document = run(["demo", "agency", "--applications", str(path), "--json"], tmp_path)
    assert code == 2
    error = document["error"]
    assert isinstance(error, dict)
    assert error["code"] == "bad_fund_file"
