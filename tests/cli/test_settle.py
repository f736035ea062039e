"""``hansa settle`` without a running network: help, usage, amounts, and how events look on a terminal."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.output import Output
from cli.place import Place
from cli.settle import settle
from cli.settle_events import _draw_list, _history_rows, show_event
from cli.settle_place import Price, age_text, decimal_text, event_json, history_json, money
from services.settlement.interfaces import EventAnswer
from services.settlement.states import Event, HistoryRow, Kind, Outcome, State, Terms, Wish
from tests.cli.support import fault, hansa

TRADE = ("trade", "--seller", "shop", "--buyer", "user-b", "--asset", "BOND-1", "--units", "10", "--price", "12.50")
NAMES = {b"s" * 20: "shop", b"b" * 20: "user-b"}
TIME_MS = 1_795_380_260_123
DAY_MS = 86_400_000
EVENT = Event(
    event="t-0123456789ab",
    kind=Kind.TRADE,
    original="",
    state=State.REGISTERED,
    outcome=Outcome.NONE,
    terms=Terms(b"s" * 20, b"b" * 20, "BOND-1", 10, 125_050, "CNY", "user-b", "shop"),
    transaction_id=bytes(32),
    raw=b"raw",
    valid_until_ms=TIME_MS + 60_000,
    is_released=False,
    wish=Wish.NONE,
    code="",
    is_flagged=False,
    attempts=0,
    due_ms=TIME_MS,
    height=0,
    version=1,
    registered_ms=TIME_MS,
    changed_ms=TIME_MS,
)


def leaves(command: click.Command, *names: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command below a group."""
    if not isinstance(command, click.Group):
        yield names
        return
    for name, child in command.commands.items():
        yield from leaves(child, *names, name)


def changed(**fields: object) -> Event:
    return msgspec.structs.replace(EVENT, **fields)


@pytest.mark.parametrize("command", [*leaves(settle)], ids=" ".join)
def test_every_command_explains_itself_within_80_columns(command: tuple[str, ...]) -> None:
    result = hansa("settle", *command, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "Example:" in result.stdout
    assert ("--json" in result.stdout) is (command[-1] != "serve")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--price", "0"),
        ("--price", "0.00"),
        ("--price", "-1"),
        ("--price", "1.234"),
        ("--price", "1e3"),
        ("--price", "1,250.00"),
        ("--price", "１"),
        ("--price", "10000000000000.01"),
        ("--price", ""),
        ("--units", "-1"),
        ("--units", "ten"),
        ("--units", "1.5"),
        ("--units", "0"),
        ("--units", str(2**63)),
        ("--asset", "a/b"),
        ("--asset", "../unit"),
        ("--currency", "cny"),
        ("--currency", "YUAN"),
        ("--event", "a b"),
        ("--event", ""),
        ("--event", "x" * 49),
        ("--event", "a.reverse"),
        ("--event", "a.reverse12"),
        ("--payer", "a/b"),
        ("--payee", ""),
        ("--validity", "9"),
        ("--validity", "3601"),
        ("--timeout", "0"),
    ],
)
def test_a_trade_with_wrong_words_is_refused_before_anything_is_asked(option: str, value: str) -> None:
    result = hansa("settle", *TRADE, option, value, "--json")
    assert result.exit_code == 2, result.output
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "usage"
    assert option in error["message"]


@pytest.mark.parametrize("missing", ["--seller", "--buyer", "--asset", "--units", "--price"])
def test_a_trade_names_all_there_is_to_it(missing: str) -> None:
    index = TRADE.index(missing)
    result = hansa("settle", *TRADE[:index], *TRADE[index + 2 :])
    assert result.exit_code == 2
    assert missing in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("events", "list", "--state", "PAID"),
        ("events", "list", "--limit", "0"),
        ("events", "list", "--limit", "501"),
        ("events", "show"),
        ("events", "repair", "t-1"),
        ("events", "repair", "t-1", "--retry", "--reverse"),
        ("setup", "--database"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert hansa("settle", *arguments).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("events", "list"),
        ("events", "show", "t-1"),
        ("events", "repair", "t-1", "--retry"),
        ("events", "status"),
        TRADE,
    ],
    ids=" ".join,
)
def test_where_nothing_is_set_up_the_way_to_it_is_said(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = hansa("settle", *arguments, "--network", str(tmp_path))
    assert fault(result, 2) == "no_home"
    assert "hansa network up --with settlement" in result.stderr


def test_an_event_system_that_is_away_is_said_with_the_way_to_start_it(tmp_path: Path) -> None:
    result = hansa("settle", "events", "status", "--socket", str(tmp_path / "events.sock"))
    assert fault(result, 1) == "program_unreachable"
    assert "the event system does not answer" in result.stderr
    assert "hansa network up --with settlement" in result.stderr


@pytest.mark.parametrize("program", ["accounts", "center", "events", "payer"])
def test_a_program_without_its_folder_does_not_start(tmp_path: Path, program: str) -> None:
    assert fault(hansa("settle", program, "serve", "--home", str(tmp_path)), 2) == "no_home"
    (tmp_path / "service.toml").write_text('program = "business"\n')
    result = hansa("settle", program, "serve", "--home", str(tmp_path))
    assert fault(result, 2) == "bad_config"
    assert "is the folder of the business server" in result.stderr


def test_systems_are_completed_after_the_last_comma() -> None:
    words = {"_HANSA_COMPLETE": "bash_complete", "COMP_WORDS": "hansa network up --with rights,se", "COMP_CWORD": "4"}
    assert hansa(**words).stdout.split() == ["plain,rights,settlement"]


@given(st.integers(1, 10**15))
def test_amounts_are_read_as_they_are_written(cents: int) -> None:
    assert Price().convert(decimal_text(cents), None, None) == cents
    assert Price().convert(money(cents).replace(",", ""), None, None) == cents
    if cents % 10 == 0:
        assert Price().convert(decimal_text(cents)[:-1], None, None) == cents


@pytest.mark.parametrize(
    ("age_ms", "text"),
    [(-5, "0 s"), (1_499, "1 s"), (119_999, "120 s"), (120_000, "2 min"), (7_200_000, "2 h"), (10 * DAY_MS, "10 d")],
)
def test_ages_have_one_unit(age_ms: int, text: str) -> None:
    assert age_text(age_ms) == text


# -- what people see ---------------------------------------------------------------------------------------


def shown(
    event: Event, *history: HistoryRow, capsys: pytest.CaptureFixture[str], is_asked: bool = True
) -> tuple[str, str, int]:
    """Return what a trade's end looks like, what is said about it, and the exit code."""
    code = 0
    try:
        answer = EventAnswer(event, list(history))
        show_event(answer, Place(Path("none"), (), None), Output(as_json=False), is_asked=is_asked, must_end=is_asked)
    except click.exceptions.Exit as leaving:
        code = leaving.exit_code
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if len(line) > 80] == []
    return out, err, code


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize(
    ("fields", "words", "code"),
    [
        ({"state": State.COMPLETED, "outcome": Outcome.PAID, "height": 9}, "完成), paid", ""),
        ({"state": State.COMPLETED, "outcome": Outcome.REVERSED, "height": 9}, "the units went back", "event_reversed"),
        ({"state": State.CANCELLED, "code": "insufficient_funds"}, "has not the money", "insufficient_funds"),
        (
            {"state": State.CANCELLED, "code": "insufficient_funds", "height": 9},
            "has not so many units",
            "insufficient_funds",
        ),
        ({"state": State.CANCELLED, "code": "delivered_late", "is_flagged": True}, "repair", "delivered_late"),
        ({"state": State.ACCOUNT_PENDING, "code": "account_frozen", "is_flagged": True}, "repair", "account_frozen"),
        ({"state": State.ACCOUNT_PENDING, "is_flagged": True}, "repair", "event_flagged"),
        ({"state": State.ACCOUNT_PENDING}, "待账户系统处理", "event_unfinished"),
        ({"state": State.REGISTERED, "code": "ratio_unmet"}, "登记", "event_unfinished"),
    ],
)
def test_a_trades_end_is_said_in_words_and_by_the_exit_code(
    capsys: pytest.CaptureFixture[str], fields: dict[str, object], words: str, code: str
) -> None:
    out, err, exit_code = shown(changed(**fields), capsys=capsys)
    assert words in out
    assert "1,250.50 CNY (simulated money)" in out
    assert exit_code == bool(code)
    assert err.startswith(f"error {code}: ") if code else not err
    assert shown(changed(**fields), capsys=capsys, is_asked=False)[1:] == ("", 0)


def test_a_history_goes_on_in_lines_of_its_own_and_names_the_day_where_it_changes() -> None:
    long = "scan: 2 of 3 validators say failed, 1 is behind, and so it waits"
    rows = [
        HistoryRow("t", 1, "", "REGISTERED", "", "", "registered", [], TIME_MS),
        HistoryRow("t", 2, "REGISTERED", "REGISTERED", "", "ratio_unmet", long, [], TIME_MS + 1_000),
        HistoryRow("t", 3, "REGISTERED", "CANCELLED", "", "expired", "chain: expired", [], TIME_MS + DAY_MS),
    ]
    lines = [*_history_rows({**event_json(EVENT, NAMES), "history": history_json(rows)})]
    assert lines[0] == ("20:44:20.123", "REGISTERED", "registered")
    assert [line[:2] for line in lines[1:4]] == [("20:44:21.123", "REGISTERED"), ("", ""), ("", "")]
    assert " ".join(str(line[2]) for line in lines[1:4]) == f"{long} (ratio_unmet)"
    assert lines[4] == ("2026-11-23 20:44:20", "CANCELLED", "chain: expired")


def test_a_list_shows_first_who_needs_an_operator(capsys: pytest.CaptureFixture[str]) -> None:
    from cli.output import console

    events = [
        changed(state=State.COMPLETED, outcome=Outcome.PAID),
        changed(state=State.CANCELLED, code="insufficient_funds"),
        changed(event="t-0123456789ab.reverse", original=EVENT.event, kind=Kind.REVERSAL, state=State.COMPLETED),
        changed(state=State.ACCOUNT_PENDING, attempts=3),
        changed(state=State.ACCOUNT_PENDING, code="insufficient_funds", is_flagged=True, attempts=17),
        changed(state=State.CANCELLED, code="delivered_late", is_flagged=True),
    ]
    rows: list[dict[str, Any]] = [{**event_json(event, NAMES), "ageMs": 61_000} for event in events]
    _draw_list(console(), rows)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith(("Need", "Unfinished", "Finished", " t-"))]
    assert [line.split()[0] for line in lines if line[0] != " "] == ["Need", "Unfinished", "Finished"]
    assert ["17" in line for line in lines[1:3]] == [True, False]
    assert "delivered_late" in lines[2]
    assert [line.split()[1] for line in lines[-3:]] == ["PAID", "insufficient_funds", "gave"]
    assert max(map(len, out.splitlines())) <= 80


def test_finished_events_of_long_ids_are_still_a_table_within_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    from cli.output import console

    events = [changed(event=f"a-{number:032x}", state=State.CANCELLED, code="insufficient_funds") for number in (1, 2)]
    _draw_list(console(), [{**event_json(event, NAMES), "ageMs": 0} for event in events])
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "insufficient_funds" in line and "1,250.50" in line]) == 2
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("command", [("settle", "setup"), ("demo", "settlement"), ("bench", "settlement")])
def test_a_database_of_another_kind_is_refused_without_its_password(command: tuple[str, str]) -> None:
    result = hansa(*command, "--database", "mysql://user:hunter2@host/name")
    assert result.exit_code == 2
    assert "postgresql://USER@HOST/NAME" in result.output
    assert "hunter2" not in result.output
