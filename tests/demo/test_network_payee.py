"""The payee demo on real processes: one print, two platforms, whatever dies, and nothing is left behind."""

from pathlib import Path

import pytest

from tests.demo.test_network_rights import processes_below, run

pytestmark = [pytest.mark.network, pytest.mark.slow]


def test_one_print_works_with_two_platforms_whatever_dies(tmp_path: Path) -> None:
    code, document = run(["demo", "payee", "--json"], tmp_path)
    assert document["ok"] is True, document
    assert code == 0
    assert (document["simulated"], document["emulated"]) == (True, True)
    assert document["isolation"] == "emulated, without hardware isolation"
    assert document["payments"] == {"wallet-p": 9, "wallet-q": 2}
    assert document["records"] == {
        "wallet-p": {"version": 3, "epoch": 2, "status": "ACTIVE"},
        "wallet-q": {"version": 2, "epoch": 1, "status": "REMOVED"},
    }
    assert document["repeated"] == {"asked": 20, "events": 1, "effects": 1}
    assert document["leaks"] == {}
    assert len(document["answers"]) == 20
    assert processes_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
