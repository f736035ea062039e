"""What grows: goals, ratios, and a small real run of every part."""

import json

import pytest

from bench.harness import Usage, stages_in
from bench.scale import PARTS, Goal, Sizes, keys_goals, main, sizes_of_state, validators_goals
from consensus.ledger.errors import LocalError
from tests.cli.support import fault, hansa


@pytest.mark.parametrize(
    ("floor", "aim", "figures"),
    [
        (2, 4, {1.9: "neither", 2: "floor", 3.9: "floor", 4: "aim"}),
        (300, 200, {301: "neither", 300: "floor", 200: "aim"}),
    ],
)
def test_a_goal_is_met_from_its_side(floor: float, aim: float, figures: dict[float, str]) -> None:
    goal = Goal(name="g", unit="", floor=floor, aim=aim)
    assert {figure: goal.judge(figure)["met"] for figure in figures} == figures


def test_more_keys_are_judged_against_the_fewest_by_row() -> None:
    points = [
        {"keys": keys, "row": row, "calls_per_s": rate}
        for keys, row, rate in [(10, "a", 100), (10, "b", 50), (99, "a", 1), (1_000, "a", 90), (1_000, "b", 20)]
    ]
    assert [(goal["name"], goal["figure"], goal["met"]) for goal in keys_goals(points)] == [
        ("a with 1,000 keys ÷ 10", 0.9, "floor"),
        ("b with 1,000 keys ÷ 10", 0.4, "neither"),
    ]


def test_more_validators_are_judged_by_the_cost_of_one() -> None:
    counts = [{"validators": count, "us_per_node": cost} for count, cost in [(4, 200), (7, 190), (10, 270)]]
    assert [(goal["figure"], goal["met"]) for goal in validators_goals(counts)] == [(0.95, "aim"), (1.35, "neither")]


def test_sizes_of_the_state() -> None:
    assert sizes_of_state(1_000_000) == (10_000, 100_000, 1_000_000)
    assert sizes_of_state(50_000) == (10_000, 50_000)


def test_what_was_used_between_two_moments() -> None:
    before = Usage(wall_s=10, nodes_s=5, client_s=1, stages={"verify": 2})
    used = Usage(wall_s=14, nodes_s=10, client_s=2, stages={"verify": 4.5, "seal": 1}).since(before)
    assert (used.processor_s, used.cores_used) == (6, 1.5)
    assert used.stages == {"verify": 2.5, "seal": 1}


def test_a_calls_share_of_the_stages_on_one_node() -> None:
    used = Usage(wall_s=1, nodes_s=4.0, client_s=0, stages={"verify": 1.0, "seal": 2.0})
    assert used.stages_us(calls=10_000, nodes=4) == {"verify": 25.0, "seal": 50.0, "network and the rest": 25.0}
    less = Usage(wall_s=1, nodes_s=2.9, client_s=0, stages={"verify": 1.0, "seal": 2.0})
    assert less.stages_us(calls=10_000, nodes=4)["network and the rest"] == 0.0, "ticks are coarser than stages"
    assert Usage(wall_s=1, nodes_s=4.0, client_s=0).stages_us(calls=10, nodes=4) == {}


def test_stages_are_read_from_what_a_node_exports() -> None:
    text = '# TYPE hansa_stage_seconds counter\nhansa_stage_seconds_total{stage="verify"} 1.5\nhansa_height 3.0\n'
    assert stages_in(text) == {"verify": 1.5}
    assert stages_in("hansa_height 3.0\n") == {}


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(LocalError) as caught:
        main(rows=["keys", "speed"])
    assert caught.value.code == "bad_arguments"
    assert fault(hansa("bench", "scale", "--rows", "speed"), 2) == "bad_arguments"


@pytest.mark.network
@pytest.mark.slow
def test_every_part_has_its_figures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.load.RAMP_S", 0.1)
    sizes = Sizes(seconds=0.3, keys=(200, 800), transactions=200, up_rounds=1, validators=(1, 2), accounts=60)
    assert main(sizes=sizes, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) >= set(PARTS)
    assert [(row["keys"], row["row"]) for row in report["keys"]] == [
        (keys, row) for keys in (200, 800) for row in ("envelope", "calls_100", "envelope_spread", "calls_100_spread")
    ]
    assert all(memory["rss"] >= memory["pss"] > 10 for memory in report["memory"]["nodes_mib"].values())
    assert report["memory"]["transactions"] >= 200
    assert 0 < report["catch_up"]["ready_s"] <= report["catch_up"]["caught_up_s"]
    assert report["up"]["init_s"] > 0
    assert report["up"]["up_s"] > 0
    assert [row["validators"] for row in report["validators"]] == [1, 2]
    assert all(row["stages_us_per_call"]["execute"] > 0 for row in report["keys"] + report["validators"])
    assert len(report["figures"]) == 8
    assert all(row["figure"] > 0 and row["met"] in ("aim", "floor", "neither") for row in report["figures"])
