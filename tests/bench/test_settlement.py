"""The settlement benchmark: its goals, and a small real run of every part."""

import json

import pytest

from bench.goals import percentiles
from bench.settlement import GOALS, PARTS, Sizes, main
from cli.settlement_trial import settlement_trial
from tests.cli.support import fault, hansa

SMALL = Sizes(trades=20, batch=10, in_flight=2, alone=2, finished_few=100, finished_many=2_000, stuck=10)


def test_goals_are_judged_where_their_rows_were_measured() -> None:
    rows: list[dict[str, object]] = [
        {"row": "sqlite", "events_per_s": 99.9, "alone_p50_ms": 150.0},
        {"row": "scan postgresql", "many_ms": 1_000.1, "ratio": 1.0},
    ]
    judged = [goal.judge(rows) for goal in GOALS]
    assert [item and (item["figure"], item["met"]) for item in judged] == [
        (99.9, "no"),
        None,
        (150.0, "yes"),
        None,
        None,
        (1_000.1, "no"),
        (1.0, "yes"),
    ]


def test_the_worst_of_few_times_is_their_99th_percentile() -> None:
    assert percentiles([3.0, 1.0, 2.0]) == {"p50_ms": 2.0, "p99_ms": 3.0, "max_ms": 3.0}
    assert percentiles([float(at) for at in range(200)])["p99_ms"] == 197.0


def test_unknown_rows_are_a_usage_error() -> None:
    assert fault(hansa("bench", "settlement", "--rows", "speed"), 2) == "bad_arguments"


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.usefixtures("postgres_server")
def test_a_small_run_of_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(open_network=settlement_trial, sizes=SMALL, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["row"]: row for row in report["rows"]}
    assert list(rows) == [*PARTS[:2], "scan sqlite", "scan postgresql"]
    assert len(report["goals"]) == len(GOALS)
    assert report["simulated"] is True
    assert report["postgresql_to_sqlite"] > 0
    for name in PARTS[:2]:
        assert rows[name]["trades"] == SMALL.trades
        assert 0 < rows[name]["alone_p50_ms"] <= rows[name]["alone_p99_ms"]
