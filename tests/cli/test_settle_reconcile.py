"""``hansa settle reconcile`` and ``bridge`` where nothing runs: wrong arguments, the file of lines."""

import csv
import json
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import Result

from cli.settle_reconcile import COLUMNS, _csv_lines
from consensus.ledger.errors import LocalError, PeerError
from services.settlement.reconciling import Verdict
from services.settlement.report import Fault, Line
from tests.cli.support import hansa

RECONCILE = ("settle", "reconcile", "--network", "nothing")


def code_of(result: Result, exit_code: int) -> str:
    assert result.exit_code == exit_code, result.output
    return str(json.loads(result.stdout)["error"]["code"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--date", "yesterday"), "bad_date"),
        (("--date", "2026-02-30"), "bad_date"),
        (("--date", "2026-11-22", "--proofs", "p"), "usage"),
        (("--date", "2026-11-22", "--tolerance", "-1"), "usage"),
        ((), "usage"),
        (("--date", "2026-11-22"), "no_home"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: tuple[str, ...], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of(hansa(*RECONCILE, *arguments, "--json"), 2) == code
    assert list(tmp_path.iterdir()) == []


def test_a_bridge_that_does_not_run_is_said_to_be_startable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("status", "retry"):
        result = hansa("settle", "bridge", command, "--network", "nothing", "--json")
        assert code_of(result, 1) == "program_unreachable"
        assert "--with agency,settlement" in result.stdout


def test_the_file_of_lines_is_safe_for_spreadsheets_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "lines.csv"
    path.write_text("older")
    line = Line(
        event='=cmd|"x"!A1\n',
        verdict=Verdict.BROKEN,
        breaks=[Fault("unknown_event", "why"), Fault("units_differ", "too")],
        price=125_005,
        delivered_ms=1_700_000_000_000,
    )
    with _csv_lines(path) as on_line:
        on_line(line)
        assert path.read_text() == "older"
    with path.open(encoding="utf-8", newline="") as source:
        (row,) = csv.DictReader(source)
    assert tuple(row) == COLUMNS
    assert row["event"] == '"=cmd|\\"x\\"!A1\\n"'
    assert (row["breaks"], row["price"], row["paid"]) == ("unknown_event; units_differ", "1250.05", "0.00")
    assert (row["delivered"][:19], row["registered"]) == ("2023-11-14 22:13:20", "")
    with suppress(PeerError), _csv_lines(path) as on_line:
        on_line(line)
        on_line(line)
        raise PeerError("bad_proof", "in the middle")
    assert len(path.read_text().splitlines()) == 2
    assert [item.name for item in tmp_path.iterdir()] == ["lines.csv"]
    with pytest.raises(LocalError) as refusal, _csv_lines(tmp_path / "none" / "lines.csv"):
        pass
    assert refusal.value.code == "file_error"
