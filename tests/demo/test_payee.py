"""What the payee demo judges, on facts made by hand; and what it forges, against the contract."""

from dataclasses import replace

import pytest

from services.demo.payee_card import Report, draw_card, report_json
from services.demo.payee_facts import Accident, Candidates, Facts, Paid, Standing, judge
from services.demo.payee_forgeries import forgeries
from services.demo.payee_gather import Search, own_standings
from services.demo.payee_till import photograph
from services.demo.settlement_facts import Holding
from services.payee.codes import CodeTerms, make_code
from services.payee.interfaces import Acquiring, RecordRow
from services.payee.merchants import Merchant
from services.payee.wording import EMULATED
from tests.contracts.domain.payees import identity, make_payees

PAYMENTS = [
    Paid("payee-1", "wallet-p", "user-b", "merchant-m", 500, "PAID"),
    Paid("payee-2", "wallet-q", "user-e", "shop", 70, "PAID"),
]
STANDINGS = {"wallet-p": Standing("merchant-m", 2, 1, "ACTIVE"), "wallet-q": Standing("shop", 3, 1, "REMOVED")}
GOOD = Facts(
    printed="0002…",
    prints=["0002…", "0002…"],
    payments=PAYMENTS,
    moved={"payee-1": 500, "payee-2": 70},
    standings=STANDINGS,
    chain=STANDINGS,
    own={"wallet-p": STANDINGS["wallet-p"]},
    changes=(6, 6),
    money_before={name: Holding(1_000, 0) for name in ("user-b", "user-e", "merchant-m", "shop")},
    money_after={
        "user-b": Holding(500, 0),
        "user-e": Holding(930, 0),
        "merchant-m": Holding(1_500, 0),
        "shop": Holding(1_070, 0),
    },
    answers={"something": ("bad_code", "bad_code")},
    repeated=(20, 1, 1),
    is_again_the_same=True,
    candidates=[Candidates("without consent", {"wallet-p": False}, {"wallet-p": False})],
    accidents=[Accident("node bank-a", 2)],
    isolation={"bank-a": EMULATED, "issuer-c": EMULATED},
    leaks={},
    markers=9,
    controls=frozenset({"n1", "n2", "merchants"}),
    nodes=frozenset({"n1", "n2"}),
    seals={"n1": (9, b"r"), "n2": (9, b"r")},
)


def test_all_holds_where_all_is_well() -> None:
    assert [name for name, holds in judge(GOOD, isolation=EMULATED).items() if not holds] == []


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("one_print_serves_all_platforms", {"prints": ["0002…", "0003…"]}),
        ("one_print_serves_all_platforms", {"prints": []}),
        ("one_print_serves_all_platforms", {"payments": PAYMENTS[:1]}),
        ("every_payment_paid", {"payments": [PAYMENTS[0], replace(PAYMENTS[1], state="OPEN")]}),
        ("every_payment_paid", {"payments": []}),
        ("an_order_is_paid_once", {"repeated": (20, 1, 2)}),
        ("an_order_is_paid_once", {"repeated": (20, 2, 1)}),
        ("an_order_is_paid_once", {"repeated": (0, 0, 0)}),
        ("an_order_is_paid_once", {"is_again_the_same": False}),
        ("an_order_is_paid_once", {"moved": {"payee-1": 1_000, "payee-2": 70}}),
        ("an_order_is_paid_once", {"moved": {**GOOD.moved, "payee-3": 1}}),
        ("an_order_is_paid_once", {"payments": [PAYMENTS[0], replace(PAYMENTS[1], event="payee-1")]}),
        ("money_conserved", {"money_after": {**GOOD.money_after, "shop": Holding(1_071, 0)}}),
        ("money_conserved", {"money_after": {**GOOD.money_after, "nobody": Holding(1, 0)}}),
        ("records_are_what_both_signed", {"chain": {**STANDINGS, "wallet-p": Standing("merchant-m", 3, 1, "ACTIVE")}}),
        ("records_are_what_both_signed", {"chain": {"wallet-p": STANDINGS["wallet-p"]}}),
        ("records_are_what_both_signed", {"own": {"wallet-p": Standing("thief", 2, 1, "ACTIVE")}}),
        ("records_are_what_both_signed", {"own": STANDINGS}),
        ("every_change_is_on_the_chain", {"changes": (6, 7)}),
        ("bad_input_refused", {"answers": {"something": ("", "bad_code")}}),
        ("bad_input_refused", {"answers": {}}),
        ("others_see_what_the_merchant_allows", {"candidates": [Candidates("t", {"wallet-p": True}, {})]}),
        ("others_see_what_the_merchant_allows", {"candidates": []}),
        ("answered_whatever_died", {"accidents": [Accident("node bank-a", 0)]}),
        ("environments_say_what_they_are", {"isolation": {"bank-a": EMULATED, "issuer-c": "hardware"}}),
        ("environments_say_what_they_are", {"isolation": {}}),
        ("nothing_in_the_clear_on_any_disk", {"leaks": {"T-1": ["n1/log"]}}),
        ("nothing_in_the_clear_on_any_disk", {"markers": 0}),
        ("nothing_in_the_clear_on_any_disk", {"controls": frozenset({"n1", "merchants"})}),
        ("state_roots_agree", {"seals": {"n1": (9, b"r"), "n2": (9, b"s")}}),
    ],
)
def test_what_is_not_as_it_must_be_is_named(name: str, fields: dict[str, object]) -> None:
    assert not judge(replace(GOOD, **fields), isolation=EMULATED)[name]  # type: ignore[arg-type]


def test_card_and_object_say_what_is_emulated_and_what_is_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    search = Search(9, GOOD.controls, {}, 2_000_000)
    report = Report(GOOD, search, [4.0, 5.0, 9.0], 1.0, 2.0, "gone")
    invariants = judge(GOOD, isolation=EMULATED)
    shown = report_json(report, invariants)
    assert (shown["ok"], shown["simulated"], shown["emulated"], shown["isolation"]) == (True, True, True, EMULATED)
    assert (shown["payments"], shown["amount_paid"]) == ({"wallet-p": 1, "wallet-q": 1}, 570)
    draw_card(report, invariants)
    drawn = capsys.readouterr().out
    for word in ("emulated, without", "hardware isolation", "simulated money", "CNY 5.00", "every invariant holds"):
        assert word in drawn
    wrong = {"a forged record": ("", "bad_signature")}
    draw_card(replace(report, facts=replace(GOOD, answers=wrong)), {**invariants, "bad_input_refused": False})
    drawn = capsys.readouterr().out
    assert "instead of" in drawn
    assert "BROKEN" in drawn


def test_own_records_are_the_active_ones_of_the_identity() -> None:
    acquiring = Acquiring(account="shop", name="Tea", currency="CNY")
    rows = {
        "wallet-p": [
            RecordRow("me", 2, 1, False, False, acquiring),
            RecordRow("other", 1, 1, False, False, acquiring),
        ],
        "wallet-q": [RecordRow("me", 3, 1, False, True, None)],
    }
    assert own_standings(rows, "me") == {"wallet-p": Standing("shop", 2, 1, "ACTIVE")}


def test_a_print_is_read_from_a_photo_of_it() -> None:
    code = make_code(identity(1), CodeTerms(name="TEAHOUSE"), chain_id=make_payees().chain.chain_id)
    assert photograph(code.text) == code.text


def test_forgeries_are_refused_for_what_they_are() -> None:
    world = make_payees()
    world.call("wallet-p", "add_record", **world.record())
    merchant = Merchant("m", identity(0), world.merchants[identity(0)])
    for forgery in forgeries(world.chain.chain_id, merchant, "wallet-p", version=1, epoch=1):
        world.fails(forgery.wanted, "wallet-p", "add_record", **forgery.arguments)
