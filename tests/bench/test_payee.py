"""The payee benchmark: its goals, what it loads, and a small real run."""

import json

import msgspec
import pytest

from bench.payee import FEW, GOALS, MANY, Sizes, compare, main
from bench.payee_client import Ready, Task
from bench.payee_load import acquiring_of, identity_of
from cli.payee_trial import payee_trial
from services.payee.wording import EMULATED

SMALL = Sizes(few=10, many=60, clients=3, seconds=0.5, are_judged=False)


def test_goals_are_judged_on_the_row_with_many_merchants() -> None:
    few: dict[str, object] = {"row": FEW, "resolutions_per_s": 600.0, "lone_p50_ms": 2.0, "processor_ms": 2.0}
    many: dict[str, object] = {"row": MANY, "resolutions_per_s": 299.9, "lone_p50_ms": 20.0, "processor_ms": 3.02}
    compare(few, many)
    judged = [goal.judge([few, many]) for goal in GOALS]
    assert [item and (item["figure"], item["met"]) for item in judged] == [
        (299.9, "no"),
        (20.0, "yes"),
        (1.51, "no"),
        (10.0, "no"),
    ]


def test_merchants_differ_and_are_told_by_their_number() -> None:
    assert len({identity_of(number) for number in range(100)}) == 100
    assert acquiring_of(7) != acquiring_of(8)
    assert identity_of(7) == identity_of(7)


def test_what_processes_tell_each_other_travels_as_json() -> None:
    task = Task("genesis.json", ["http://a"], bytes(31), 9, bytes(64), 10, 2, 1)
    assert msgspec.json.decode(msgspec.json.encode(task), type=Task) == task
    assert msgspec.json.decode(msgspec.json.encode(Ready()), type=Ready) == Ready()


@pytest.mark.network
@pytest.mark.slow
def test_a_small_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(open_network=payee_trial, sizes=SMALL, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["emulated"], report["isolation"]) == (True, EMULATED)
    assert [(row["row"], row["merchants"], row["loaded"]) for row in report["rows"]] == [(FEW, 10, 10), (MANY, 60, 50)]
    for row in report["rows"]:
        assert row["resolutions_per_s"] > 0
        assert 0 < row["lone_p50_ms"] <= row["lone_p99_ms"]
        assert min(row["client_ms"], row["nodes_ms"], row["environments_ms"]) >= 0
    assert report["goals"] == []
