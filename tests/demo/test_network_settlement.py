"""The settlement demo on real processes: both or neither, whatever dies, and nothing is left behind."""

from pathlib import Path

import pytest

from tests.demo.test_network_rights import processes_below, run

pytestmark = [pytest.mark.network, pytest.mark.slow]


def test_both_or_neither_whatever_dies_and_nothing_is_left(tmp_path: Path) -> None:
    code, document = run(["demo", "settlement", "--trades", "60", "--json"], tmp_path)
    assert document["ok"] is True, document
    assert code == 0
    assert document["simulated"] is True
    assert document["ends"] == {
        "paid, units moved": 63,
        "given back, nothing paid": 3,
        "cancelled, neither moved": 6,
    }
    assert document["states"] == {"COMPLETED": 66, "CANCELLED": 6}
    assert document["repeated"] == {"asked": 20, "effects": 1}
    assert document["reversals"] == {"COMPLETED": 3}
    assert document["breaks"] == []
    assert processes_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
