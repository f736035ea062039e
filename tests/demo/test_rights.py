"""The rights demo's story and verdict, on replicas without processes."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from consensus.ledger.errors import LocalError
from services.demo import rights
from services.demo.orders import OrderBook, classify
from services.demo.rights import main
from tests.demo.support import NAMES, Replicas, network_of, open_replicas

INVARIANTS = [
    "state_roots_agree",
    "heights_agree",
    "receipts_found",
    "nothing_failed",
    "repeats_change_nothing",
    "rights_conserved",
    "quota_held",
    "lines_accounted",
    "killed_validator_returned",
    "frozen_primary_replaced",
]


def run_demo(
    replicas: Replicas, capsys: pytest.CaptureFixture[str], **options: object
) -> tuple[int, dict[str, object]]:
    code = main(
        open_network=network_of(replicas),
        chain_opener=partial(open_replicas, replicas),
        as_json=True,
        **options,  # type: ignore[arg-type]
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    document = json.loads(lines[0])
    assert isinstance(document, dict)
    return code, document


def test_everything_holds(capsys: pytest.CaptureFixture[str]) -> None:
    replicas = Replicas()
    code, document = run_demo(replicas, capsys)
    assert code == 0
    assert document["ok"] is True
    assert document["invariants"] == dict.fromkeys(INVARIANTS, True)
    figures = document["rights"]
    assert isinstance(figures, dict)
    assert figures["clawedBack"] > 0
    assert figures["revoked"] > 0
    assert figures["redeemed"] > 0
    assert figures["reserved"] == 0
    assert [accident for accident, _ in replicas.accidents] == ["kill", "start", "freeze", "resume"]
    assert replicas.accidents[0][1] == NAMES[-1]
    assert replicas.accidents[2][1] != NAMES[0]


@pytest.mark.parametrize("name", INVARIANTS)
def test_a_broken_invariant_is_named_and_exits_1(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rights, "AGREE_ATTEMPTS", 2)
    if name == "lines_accounted":

        def lose_a_line(lines: list[object]) -> OrderBook:
            return replace(classify(lines), line_count=len(lines) + 1)  # type: ignore[arg-type]

        monkeypatch.setattr(rights, "classify", lose_a_line)
    code, document = run_demo(Replicas(flaw=name), capsys)
    invariants = document["invariants"]
    assert isinstance(invariants, dict)
    assert code == 1
    assert document["ok"] is False
    assert invariants[name] is False


def test_the_card_says_what_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    replicas = Replicas(flaw="rights_conserved")
    assert main(open_network=network_of(replicas), chain_opener=partial(open_replicas, replicas)) == 1
    shown = capsys.readouterr()
    assert "rights conserved" in shown.out
    assert "BROKEN" in shown.out
    assert "customer orders" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize("limit", [1, 2, 20])
def test_a_few_orders_are_enough(limit: int, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run_demo(Replicas(), capsys, limit=limit)
    assert document["orders_played"] == limit
    assert document["ok"] is True, document["invariants"]
    assert code == 0


def test_a_second_performance_on_the_same_network(capsys: pytest.CaptureFixture[str]) -> None:
    replicas = Replicas()
    assert run_demo(replicas, capsys)[0] == 0
    code, document = run_demo(replicas, capsys, seed=2)
    assert code == 0, document["invariants"]


def test_bad_orders_stop_before_anything_is_started(tmp_path: Path) -> None:
    replicas = Replicas()
    (tmp_path / "a.csv").write_text("InvoiceNo,StockCode\n")
    with pytest.raises(LocalError) as caught:
        main(open_network=network_of(replicas), chain_opener=partial(open_replicas, replicas), orders=tmp_path)
    assert caught.value.code == "bad_orders"
    assert replicas.log == []
