"""The plan of the rights demo: seeded, and expecting what the contract really does, in whatever order it comes."""

import pytest

from services.demo.invariants import judge
from services.demo.orders import OrderBook, classify, parse_lines
from services.demo.rights_machine import (
    Plan,
    expected_figures,
    make_plan,
    misfits,
    streams_of,
    total_figures,
    with_repeats,
)
from services.demo.synthetic import synthetic_day
from services.messages.store import State
from services.rights.events import Kind
from tests.conftest import data_folder
from tests.demo.support import play

SALT = b"salt"


def day(seed: int) -> OrderBook:
    return classify(parse_lines(synthetic_day(seed), "day"))


def plan_of(book: OrderBook, seed: int, salt: bytes = SALT) -> Plan:
    return make_plan(book, seed=seed, run="run", salt=salt)


@pytest.mark.parametrize("seed", range(6))
def test_the_contract_does_what_the_model_expects(seed: int) -> None:
    performance = play(seed=seed)
    plan = performance.script.plan
    ends = {deed.key: (deed.state, deed.code) for deed in (*plan.deeds, *performance.script.misfits)}
    assert {key: (end.state, end.code) for key, end in performance.ends.items()} == ends
    assert [name for name, holds in judge(performance.facts()).items() if not holds] == []


@pytest.mark.slow
def test_the_nine_days_do_what_the_model_expects() -> None:
    performance = play(data_folder("orders"))
    plan, book = performance.script.plan, performance.script.book
    taken_back = {(deed.reference, deed.number) for deed in plan.deeds if deed.kind in (Kind.CANCEL, Kind.REFUND)}
    assert (plan.count(Kind.CREATE), len(taken_back), len(book.cancellations)) == (848, 43, 43)
    assert sum(plan.quotas.values()) == 34_552_828
    assert [name for name, holds in judge(performance.facts()).items() if not holds] == []


def test_same_seed_same_plan() -> None:
    assert plan_of(day(1), 3) == plan_of(day(1), 3)
    assert plan_of(day(1), 3) != plan_of(day(1), 4)


def test_a_seed_decides_the_same_whatever_the_names() -> None:
    def amounts(run: str, salt: bytes) -> list[tuple[object, ...]]:
        plan = make_plan(day(1), seed=3, run=run, salt=salt)
        parts = [(deed.kind, deed.reference.partition("-")[2], deed.amount, deed.items) for deed in plan.deeds]
        return [*parts, len(plan.repeats), *plan.quotas.values()]

    assert amounts("a", b"a") == amounts("b", b"b")


def test_every_way_of_every_kind_is_played() -> None:
    plans = [plan_of(day(seed), seed) for seed in range(6)]
    deeds = [deed for plan in plans for deed in plan.deeds]
    assert {deed.kind for deed in deeds} == set(Kind)
    assert any(deed.kind is Kind.COMPLETE and deed.amount for deed in deeds), "in part"
    assert {bool(deed.items) for deed in deeds if deed.kind is Kind.REDEEM} == {True, False}
    assert {deed.items[0][0] for deed in deeds if deed.items} == {"coffee", "umbrella"}
    assert {bool(deed.amount) for deed in deeds if deed.kind is Kind.REVERSE} == {True, False}
    assert {deed.kind for plan in plans for deed in plan.returns} == {Kind.CANCEL, Kind.REFUND, Kind.REVERSE}
    assert all(min(plan.quotas.values()) > 0 for plan in plans)
    assert all(plan.repeats for plan in plans)
    assert any(completes_early(plan) for plan in plans)


def completes_early(plan: Plan) -> bool:
    """Tell whether some order completes before it is created."""
    created: set[str] = set()
    for deed in plan.burst:
        if deed.kind is Kind.COMPLETE and deed.reference not in created:
            return True
        created.add(deed.reference)
    return False


def test_some_seed_leaves_a_debt_and_some_return_claws_back() -> None:
    totals = []
    for seed in range(6):
        book = day(seed)
        totals.append(total_figures(expected_figures(book, plan_of(book, seed), run="run", salt=SALT)))
    assert any(total.debt for total in totals)
    assert all(total.clawedBack and total.redeemed for total in totals)
    assert any(total.revoked for total in totals)


def test_each_order_stays_with_one_poster_in_its_order() -> None:
    plan = plan_of(day(1), 1)
    posted = [*with_repeats(plan.burst, plan.repeats), *misfits(plan, run="run")]
    streams = streams_of(posted, 4)
    assert sorted(map(repr, posted)) == sorted(repr(deed) for stream in streams for deed in stream)
    for reference in {deed.reference for deed in posted}:
        (own,) = [mine for stream in streams if (mine := [deed for deed in stream if deed.reference == reference])]
        assert own == [deed for deed in posted if deed.reference == reference]


def test_a_repeat_comes_after_what_it_repeats() -> None:
    plan = plan_of(day(1), 1)
    posted = [deed.key for deed in with_repeats(plan.burst, plan.repeats)]
    assert {key for key in posted if posted.count(key) == 2} == plan.repeats
    assert len(posted) == len(plan.burst) + len(plan.repeats)


def test_misfits_fail_in_every_way() -> None:
    plan = plan_of(day(1), 1)
    assert {(deed.state, deed.code) for deed in misfits(plan, run="run")} == {
        (State.REFUSED, "order_state"),
        (State.REFUSED, "insufficient_rights"),
        (State.DEAD, "unknown_order"),
        (State.DEAD, "unknown_redemption"),
    }


def test_no_customer_number_reaches_the_chain() -> None:
    book = day(1)
    plan = plan_of(book, 1)
    customers = {order.customer for order in book.orders}
    assert not customers & {part for deed in plan.deeds for part in (deed.user, deed.reference, deed.number)}
    other = plan_of(book, 1, b"another")
    assert not {deed.user for deed in plan.deeds} & {deed.user for deed in other.deeds} - {""}
