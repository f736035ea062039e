"""The charts of the benchmarks: drawn from reports, measured where those lack figures."""

import json
from pathlib import Path

import pytest

from bench.charts import CHARTS, main, stage_figures
from bench.harness import Usage
from bench.load import Samples
from bench.pictures import draw
from consensus.ledger.errors import LocalError
from tests.cli.support import answer, fault, hansa

ROW = {"row": "envelope", "tps": 4_321.0, "calls_per_s": 5_432.0, "p50_ms": 123.0, "p99_ms": 987.0}
SCALE = {
    "ok": True,
    "cores": 2,
    "verify_us": 50.0,
    "keys": [{"keys": 10_000, **ROW}, {"keys": 1_000_000, **ROW}],
    "validators": [{"validators": 4, **ROW}, {"validators": 10, **ROW}],
}
REPORT = SCALE | {
    "batch": [{"transactions_a_frame": 1, **ROW}, {"transactions_a_frame": 50, **ROW}],
    "calls": [{"calls_a_signature": 3, **ROW}, {"calls_a_signature": 100, **ROW}],
    "latency": [{"percent": 10, "offered_tps": 400, **ROW}, {"percent": 90, "offered_tps": 3_600, **ROW}],
    "stages": [{"row": "single", "stages_us_per_call": {"verify": 45.6, "network and the rest": 77.0}}],
}


@pytest.mark.parametrize(
    ("chart", "shown"),
    [
        ("batch", ["4,321", ">50<", "bound by signatures: 10,000"]),
        ("calls", ["5,432", ">100<"]),
        ("latency", ["123", "987", ">90<", "% of 4,000"]),
        ("stages", ["verify: 45.6", "network and the rest: 77", "single"]),
        ("keys", ["5,432", "1,000,000", "10,000"]),
        ("validators", ["4,321", ">4<", ">10<", ">10,000<", ">4,000<"]),
    ],
)
def test_each_chart_shows_its_figures(chart: str, shown: list[str]) -> None:
    picture = draw(chart, REPORT)
    assert [text for text in shown if text not in picture] == []


@pytest.mark.parametrize("chart", CHARTS)
def test_a_report_without_the_figures_is_refused(chart: str) -> None:
    for report in ({"cores": 2, "verify_us": 50}, REPORT | {chart: [{"row": "x"}]}, REPORT | {chart: 3}):
        with pytest.raises(LocalError) as caught:
            draw(chart, report)
        assert caught.value.code == "bad_arguments"


def test_what_no_stage_counts_is_the_rest() -> None:
    used = Usage(wall_s=1, nodes_s=4.0, client_s=0, stages={"verify": 1.0, "seal": 2.0})
    row = stage_figures("single", Samples(calls_in_all=10_000), used, nodes=4)
    assert row["stages_us_per_call"] == {"verify": 25.0, "seal": 50.0, "network and the rest": 25.0}
    with pytest.raises(LocalError):
        stage_figures("single", Samples(calls_in_all=1), Usage(wall_s=1, nodes_s=1, client_s=1), nodes=4)


def test_charts_of_earlier_reports_are_drawn_without_measuring(tmp_path: Path) -> None:
    for name, report in (("scale", SCALE), ("charts", REPORT)):
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    files = [argument for name in ("scale", "charts") for argument in ("--from", str(tmp_path / f"{name}.json"))]
    result = answer(hansa("bench", "charts", "--out", str(tmp_path / "made" / "here"), *files, "--json"))
    assert result["files"] == [str(tmp_path / "made" / "here" / f"{chart}.svg") for chart in CHARTS]
    assert all(Path(path).read_text().startswith("<svg") for path in result["files"])
    result = hansa("bench", "charts", "--out", str(tmp_path), *files)
    assert result.exit_code == 0
    assert "verify" in result.stdout
    assert "4,321" in result.stdout


def test_what_is_no_chart_and_no_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no report")
    assert fault(hansa("bench", "charts", "--only", "pie"), 2) == "bad_arguments"
    assert fault(hansa("bench", "charts", "--from", str(tmp_path / "text")), 2) == "bad_arguments"
    assert fault(hansa("bench", "charts", "--from", str(tmp_path / "nothing")), 2) == "file_error"


@pytest.mark.network
@pytest.mark.slow
def test_charts_are_measured_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.load.RAMP_S", 0.1)
    only = ["batch", "latency", "stages"]
    assert main(only=only, folder=tmp_path, seconds=0.3, accounts=250, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["transactions_a_frame"] for row in report["batch"]] == [1, 5, 20, 50, 200]
    assert [row["percent"] for row in report["latency"]] == [10, 25, 50, 75, 90]
    stages = {row["row"]: row["stages_us_per_call"] for row in report["stages"]}
    assert all(times["execute"] > 0 for times in stages.values())
    assert (
        stages["envelope"]["verify"] > 0
    )  # one verification of many is timed; other rows have too few in so short a time
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(only)
