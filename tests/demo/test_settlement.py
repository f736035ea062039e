"""What the settlement demo asks for, and how it judges what came of it."""

from dataclasses import replace

import pytest

from services.demo.settlement_card import Report, report_json
from services.demo.settlement_facts import GIVEN_BACK, LIFTED, NO_LIEN, Accident, End, Facts, Holding, judge
from services.demo.settlement_script import NO_FUNDS, PAID, REVERSED, Deal, make_script
from services.settlement.states import Outcome, State

STEPS = ("REGISTERED", "ACCOUNT_PENDING", "COMPLETED")
DEALS = [
    Deal("a", "shop", "user-b", 3, 500, PAID),
    Deal("b", "shop", "user-e", 2, 400, REVERSED),
    Deal("c", "shop", "user-b", 1, 10**15, NO_FUNDS),
]
ENDS = {
    "a": End(State.COMPLETED, Outcome.PAID, "", STEPS, LIFTED, 3, True, False, 500),
    "b": End(State.COMPLETED, Outcome.REVERSED, "account_frozen", STEPS, GIVEN_BACK, 2, False, False, 0),
    "c": End(State.CANCELLED, "", "insufficient_funds", ("REGISTERED", "CANCELLED"), NO_LIEN, 0, False, False, 0),
}
GOOD = Facts(
    deals=DEALS,
    ends=ENDS,
    supply=(100, 100),
    units_before={"shop": Holding(90, 0), "user-b": Holding(10, 0), "user-e": Holding(0, 0)},
    units_after={"shop": Holding(87, 0), "user-b": Holding(13, 0), "user-e": Holding(0, 0)},
    money_before={"shop": Holding(0, 0), "user-b": Holding(900, 7), "user-e": Holding(400, 0)},
    money_after={"shop": Holding(500, 0), "user-b": Holding(400, 7), "user-e": Holding(400, 0)},
    answers={"something": ("bad_trade", "bad_trade")},
    repeated=(20, 1),
    accidents=[Accident("settle-events", 5)],
    silent_states=["REGISTERED", "REGISTERED"],
    flagged=1,
    reversals={"COMPLETED": 1},
    breaks=[],
    reconciled=2,
    seals={"n1": (9, b"r"), "n2": (9, b"r")},
)


def end(event: str, **fields: object) -> dict[str, End]:
    return {**ENDS, event: replace(ENDS[event], **fields)}  # type: ignore[arg-type]


def test_all_holds_where_all_is_well() -> None:
    assert [name for name, holds in judge(GOOD).items() if not holds] == []


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("every_trade_ended_as_it_must", {"ends": end("a", state=State.ACCOUNT_PENDING)}),
        ("every_trade_ended_as_it_must", {"ends": {"a": ENDS["a"], "b": ENDS["b"]}}),
        ("every_trade_ended_as_it_must", {"ends": end("c", code="expired")}),
        ("asset_and_money_moved_together", {"ends": end("a", is_paid=False)}),
        ("asset_and_money_moved_together", {"ends": end("a", lien="HELD")}),
        ("asset_and_money_moved_together", {"ends": end("a", lien_units=4)}),
        ("asset_and_money_moved_together", {"ends": end("b", is_paid=True)}),
        ("asset_and_money_moved_together", {"ends": end("c", lien=LIFTED)}),
        ("asset_and_money_moved_together", {"ends": end("c", is_held=True)}),
        ("registered_before_anything_else", {"ends": end("a", steps=STEPS[1:])}),
        ("exactly_four_states", {"ends": end("a", steps=(*STEPS, "PARKED"))}),
        ("units_conserved", {"units_after": {**GOOD.units_after, "shop": Holding(86, 0)}}),
        (
            "units_conserved",
            {"units_after": {"shop": Holding(87, 0), "user-b": Holding(10, 0), "user-e": Holding(3, 0)}},
        ),
        ("units_conserved", {"supply": (100, 101)}),
        ("money_conserved", {"money_after": {**GOOD.money_after, "user-b": Holding(399, 7)}}),
        ("nothing_left_aside", {"units_after": {**GOOD.units_after, "user-b": Holding(10, 3)}}),
        ("nothing_left_aside", {"money_after": {**GOOD.money_after, "user-e": Holding(0, 400)}}),
        ("paid_once", {"ends": end("a", paid=1_000)}),
        ("a_trade_asked_for_many_times_is_one", {"repeated": (20, 2)}),
        ("bad_input_refused", {"answers": {"something": ("", "bad_trade")}}),
        ("scan_alone_repairs", {"silent_states": ["REGISTERED", "COMPLETED"]}),
        ("operator_resolves_what_cannot_be_paid", {"flagged": 0}),
        ("operator_resolves_what_cannot_be_paid", {"reversals": {"COMPLETED": 2}}),
        ("ended_whatever_died", {"accidents": [Accident("settle-payer", 0)]}),
        ("reconciled_without_breaks", {"breaks": ["paid_twice a"]}),
        ("reconciled_without_breaks", {"reconciled": 0}),
        ("state_roots_agree", {"seals": {"n1": (9, b"r"), "n2": (9, b"s")}}),
    ],
)
def test_what_is_not_as_it_must_be_is_named(name: str, fields: dict[str, object]) -> None:
    assert not judge(replace(GOOD, **fields))[name]  # type: ignore[arg-type]


def test_the_object_says_what_the_card_says() -> None:
    report = Report(GOOD, 1, "SQLite", 100.04, 10, 0.5, 1.0, 2.0, "gone")
    shown = report_json(report, judge(GOOD))
    assert (shown["ok"], shown["simulated"], shown["trades"], shown["amount_paid"]) == (True, True, 3, 500)
    assert shown["ends"] == {
        "paid, units moved": 1,
        "given back, nothing paid": 1,
        "cancelled, neither moved": 1,
    }


def test_a_seed_draws_one_script_whose_trades_have_ids_of_their_own() -> None:
    script = make_script("run", trades=100, accidents=6, seed=3)
    assert script == make_script("run", trades=100, accidents=6, seed=3)
    assert script != make_script("run", trades=100, accidents=6, seed=4)
    assert len({deal.event for deal in script.deals}) == len(script.deals)
    assert all(len(deal.event) <= 48 and deal.seller != deal.buyer for deal in script.deals)
    paid = [deal for deal in script.deals if deal.wanted == PAID and deal not in script.thawed]
    assert len(paid) == 100


@pytest.mark.parametrize("trades", [1, 17, 18, 40])
def test_few_trades_are_played_too(trades: int) -> None:
    script = make_script("run", trades=trades, accidents=6, seed=1)
    assert script.plain
    assert script.silent
    assert all(script.rounds)
