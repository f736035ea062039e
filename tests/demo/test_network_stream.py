"""The stream demo on real processes: 200 iterations and one upload, whatever dies, and nothing is left behind."""

from pathlib import Path

import pytest

from tests.demo.test_network_rights import processes_below, run

pytestmark = [pytest.mark.network, pytest.mark.slow]


def test_a_car_pays_200_times_and_one_payment_reaches_the_chain(tmp_path: Path) -> None:
    code, document = run(["demo", "stream", "--json"], tmp_path)
    assert document["ok"] is True, document
    assert code == 0
    sessions = document["sessions"]
    assert isinstance(sessions, list)
    assert [(item["title"], item["uploads"], item["fine"]) for item in sessions] == [
        ("charged", 1, 0),
        ("burned", 1, 1_000),
        ("watched", 1, 0),
    ]
    assert sessions[0]["iterations"] == 200
    assert (sessions[0]["status"], sessions[0]["escrow"]) == ("CLOSED", 0)
    accidents = document["accidents"]
    assert isinstance(accidents, list)
    assert [item["name"] for item in accidents] == ["payer", "service party", "node bank-a"]
    assert processes_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
