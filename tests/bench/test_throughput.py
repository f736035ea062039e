"""The throughput benchmark: its figures by name, and what it refuses."""

import json

import pytest

from bench.harness import measure_verification
from bench.load import Samples
from bench.throughput import ROWS, main
from consensus.ledger.errors import LocalError


def test_quantiles() -> None:
    samples = Samples(latencies=[number / 1000 for number in range(1, 101)])
    assert (samples.quantile_ms(50), samples.quantile_ms(99)) == (51.0, 100.0)
    assert Samples(latencies=[0.5]).quantile_ms(99) == 500.0


def test_a_verification_takes_microseconds() -> None:
    assert 1e-6 < measure_verification() < 1e-2


def test_an_unknown_row_is_refused() -> None:
    with pytest.raises(LocalError) as caught:
        main(rows=["double"])
    assert caught.value.code == "bad_arguments"


@pytest.mark.network
@pytest.mark.slow
def test_every_figure_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(seconds=0.5, accounts=60, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    keys = ["signature_bound_tps", "single_tps", "envelope_tps", "calls_per_s_10", "calls_per_s_100"]
    keys += ["rights_per_s_100", "lone_p50_ms", "single_to_bound", "envelope_to_bound"]
    assert [key for key in keys if not report[key] > 0] == []
    assert [row["row"] for row in report["rows"]] == [row.name for row in ROWS]
    assert all(row["p99_ms"] >= row["p50_ms"] > 0 for row in report["rows"])
