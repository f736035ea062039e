"""The agency benchmark: its goals, and a small real run of every part."""

import json

import pytest

from bench.agency import GOALS, PARTS, Sizes, check_ends, main
from cli.agency_trial import agency_trial
from consensus.ledger.errors import InvariantError
from services.agency.sales_interface import Progress, State, Total
from tests.cli.support import fault, hansa


def test_goals_are_judged_where_their_rows_were_measured() -> None:
    rows: list[dict[str, object]] = [{"row": "file", "anchored_s": 5.5}, {"row": "packaged", "ratio": 3.0}]
    judged = [goal.judge(rows) for goal in GOALS]
    assert [item and (item["figure"], item["met"]) for item in judged] == [(5.5, "no"), None, (3.0, "yes")]


def test_orders_that_ended_otherwise_leave_no_figures() -> None:
    shown = Progress("x", 1, 2, [Total(State.CONFIRMED, "", 1, 5), Total(State.DROPPED, "minor", 1, 5)], 0, 0)
    check_ends(shown, State.CONFIRMED, 1)
    with pytest.raises(InvariantError):
        check_ends(shown, State.CONFIRMED, 2)


def test_unknown_rows_are_a_usage_error() -> None:
    assert fault(hansa("bench", "agency", "--rows", "speed"), 2) == "bad_arguments"


@pytest.mark.network
@pytest.mark.slow
def test_a_small_run_of_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = Sizes(runs=1, large=50, singles=16, latencies=2)
    assert main(open_network=agency_trial, sizes=sizes, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["row"]: row for row in report["rows"]}
    assert list(rows) == list(PARTS)
    assert len(report["goals"]) == len(GOALS)
    assert (rows["file"]["orders"], rows["large"]["orders"], rows["packaged"]["orders"]) == (1_006, 50, 16)
    for name in ("file", "large"):
        assert 0 < rows[name]["taken_s"] <= rows[name]["recorded_s"] <= rows[name]["anchored_s"]
    assert rows["packaged"]["ratio"] > 1, "a package costs less than its orders one by one"
