"""The stream benchmark: its goals, its payers, and a small real run."""

import json

import pytest

from bench.stream import FEW, GOALS, MANY, PARTS, PRICE, QUICK, compare, main
from bench.stream_client import LoadStream, Stamps
from cli.stream_trial import stream_trial
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey
from consensus.ledger.streams import Terms, read_iteration_untrusted

CHAIN = ChainId(bytes(32))
KEY = PrivateKey.from_secret(7)
TERMS = Terms(
    payer=bytes(KEY.public.address),
    service=bytes(20),
    number=1,
    what="0.1 kWh",
    unit="U",
    deposit=1_000,
    fine=0,
    price=PRICE,
    step_max=PRICE,
    credit=0,
    mode=1,
    count_max=0,
    amount_max=0,
    duration_ms_max=0,
    window_ms=3_600_000,
    validity_ms=600_000,
    margin_ms=1_000,
    step_ms=1_000,
    offer_until_ms=0,
)


def test_goals_are_judged_on_their_rows() -> None:
    first: dict[str, object] = {"row": FEW, "steps": 1_000, "nodes_ms": 10.0}
    last: dict[str, object] = {"row": MANY, "steps": 1_020, "nodes_ms": 15.0}
    compare(first, last)
    rows = [{"row": "frames", "iterations_per_s": 2_999.9}, {"row": "alone", "p50_ms": 5.0}, first, last]
    judged = [goal.judge(rows) for goal in GOALS]
    assert [item and (item["figure"], item["met"]) for item in judged] == [
        (2_999.9, "no"),
        None,
        (5.0, "yes"),
        None,
        (1.02, "no"),
        (1.5, "yes"),
    ]


@pytest.mark.parametrize("signed", [0, 2, 5])
def test_iterations_rise_by_one_price_whether_signed_before_or_when_they_go(signed: int) -> None:
    stream = LoadStream(TERMS, KEY, CHAIN)
    stream.sign(signed)
    raws = [stream.next().raw for _ in range(4)]
    read = [
        read_iteration_untrusted(raw, chain_id=CHAIN, payer=TERMS.payer, stream=stream.id, key=KEY.public).due
        for raw in raws
    ]
    assert read == [PRICE, 2 * PRICE, 3 * PRICE, 4 * PRICE]


def test_what_is_stored_before_or_after_the_time_does_not_count() -> None:
    stream = LoadStream(TERMS, KEY, CHAIN)
    early, within, late = Stamps(float("inf"), float("inf")), Stamps(0, float("inf")), Stamps(0, 0)
    assert [stamps.note(stream, PRICE) for stamps in (early, within, late)] == [True, True, False]
    assert [len(stamps.times_ms) for stamps in (early, within, late)] == [0, 1, 0]
    assert not Stamps(0, float("inf"), due_max=PRICE).note(stream, PRICE)


@pytest.mark.network
@pytest.mark.slow
def test_a_small_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(open_network=stream_trial, rows=PARTS, sizes=QUICK, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["row"]: row for row in report["rows"]}
    assert list(rows) == ["stream", "each", "frames", "apart", "http", "alone", FEW, MANY]
    assert min(rows[name]["iterations_per_s"] for name in ("frames", "apart", "http")) > 0
    assert rows["alone"]["iterations"] == QUICK.alone
    assert (rows["stream"]["transactions"], rows["each"]["transactions"]) == (2, QUICK.payments)
    assert (rows[FEW]["steps"], rows[MANY]["opened"]) == (rows[MANY]["steps"], QUICK.openings)
    assert report["simulated"]
    assert report["goals"] == []
