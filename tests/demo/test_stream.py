"""What the stream demo judges, on facts made by hand, and what its card says."""

from dataclasses import replace

import msgspec
import pytest

from consensus.ledger.streams import StreamRecord
from services.demo.stream_card import Report, draw_card, report_json
from services.demo.stream_facts import Accident, Facts, Session, judge

RECORD = StreamRecord(
    payer=b"p" * 20,
    service=b"s" * 20,
    payer_key=b"k" * 33,
    unit="SIM-FEN",
    deposit=1_000,
    taken=0,
    paid=80,
    fine=100,
    is_fined=False,
    settled_by=b"t" * 32,
    terms_hash=b"h" * 32,
    credit=0,
    window_ms=60_000,
    withdraw_at_uptime_ms=0,
    opened_at_ms=1,
    status="CLOSED",
)
BURNED = msgspec.structs.replace(RECORD, taken=48, paid=48, is_fined=True, settled_by=b"", status="OPEN")
CHARGED = Session("charged", "service-first", 8, 40, 200, 80, 10, 1, "count", False, True, RECORD, 0)
CHEATED = Session("burned", "payment-first", 8, 40, 6, 48, 5, 1, "number", True, True, BURNED, 852)
GOOD = Facts(
    sessions=[CHARGED, CHEATED],
    wanted_iterations=200,
    payer=-80 - 148 - 852,
    service=80 + 148,
    others=0,
    supply=(9_000, 9_000),
    answers={"again": ("nothing_due", "nothing_due")},
    accidents=[Accident("payer", 5)],
    seals={"n1": (9, b"r"), "n2": (9, b"r")},
)


def test_all_holds_where_all_is_well() -> None:
    assert [name for name, holds in judge(GOOD).items() if not holds] == []


def with_first(**fields: object) -> dict[str, object]:
    """Return the sessions of which the first is otherwise."""
    return {"sessions": [replace(CHARGED, **fields), CHEATED]}  # type: ignore[arg-type]


def with_record(session: Session, **fields: object) -> dict[str, object]:
    """Return the sessions of which one is otherwise on the chain."""
    changed = replace(session, record=msgspec.structs.replace(session.record, **fields))
    return {"sessions": [changed if item is session else item for item in GOOD.sessions]}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("many_iterations_one_upload", {"wanted_iterations": 201}),
        ("many_iterations_one_upload", with_first(uploads=2)),
        ("many_iterations_one_upload", with_first(uploads=0)),
        ("many_iterations_one_upload", {"sessions": []}),
        ("every_session_is_paid_what_was_due", with_first(due=88)),
        ("every_session_is_paid_what_was_due", with_first(due=72)),
        ("every_session_is_paid_what_was_due", {"sessions": []}),
        ("nobody_loses_more_than_a_step", with_first(units=16)),
        ("nobody_loses_more_than_a_step", with_first(units=4)),
        ("fined_where_the_number_was_burned", with_record(CHEATED, is_fined=False)),
        ("fined_where_the_number_was_burned", with_record(CHARGED, is_fined=True)),
        ("fined_where_the_number_was_burned", {"sessions": [CHARGED]}),
        ("iterations_hold_offline", with_first(is_verified=False)),
        ("deposits_are_accounted_for", with_first(escrow=1)),
        ("deposits_are_accounted_for", with_record(CHEATED, taken=49)),
        ("deposits_are_accounted_for", {"sessions": [CHARGED, replace(CHEATED, escrow=853)]}),
        ("value_conserved", {"service": 229}),
        ("value_conserved", {"payer": -1_079}),
        ("value_conserved", {"others": 1}),
        ("value_conserved", {"supply": (9_000, 9_001)}),
        ("bad_input_refused", {"answers": {"again": ("", "nothing_due")}}),
        ("bad_input_refused", {"answers": {}}),
        ("went_on_whatever_died", {"accidents": [Accident("payer", 0)]}),
        ("went_on_whatever_died", {"accidents": []}),
        ("state_roots_agree", {"seals": {"n1": (9, b"r"), "n2": (9, b"s")}}),
    ],
)
def test_what_is_not_as_it_must_be_is_named(name: str, fields: dict[str, object]) -> None:
    assert not judge(replace(GOOD, **fields))[name]  # type: ignore[arg-type]


def test_a_loss_of_one_step_is_what_was_agreed() -> None:
    for units in (10 + 5, 10 - 5):
        assert judge(replace(GOOD, **with_first(units=units)))["nobody_loses_more_than_a_step"]  # type: ignore[arg-type]


def test_card_and_object_say_what_became_of_each_session(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(GOOD, "SIM-FEN", "0.1 kWh", 1, 2.0, 3.0, "gone")
    invariants = judge(GOOD)
    shown = report_json(report, invariants)
    assert (shown["ok"], shown["simulated"], shown["unit"]) == (True, True, "SIM-FEN")
    sessions = shown["sessions"]
    assert isinstance(sessions, list)
    assert [(item["uploads"], item["paid"], item["fine"], item["escrow"]) for item in sessions] == [
        (1, 80, 0, 0),
        (1, 48, 100, 852),
    ]
    draw_card(report, invariants)
    drawn = capsys.readouterr().out
    for word in ("simulated money", "SIM-FEN", "852 held until", "every invariant holds", "payer (5 iterations"):
        assert word in drawn
    wrong = {"a second iteration": ("", "sequence_used")}
    draw_card(replace(report, facts=replace(GOOD, answers=wrong)), {**invariants, "bad_input_refused": False})
    drawn = capsys.readouterr().out
    assert "instead of" in drawn
    assert "BROKEN" in drawn
