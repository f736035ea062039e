"""The plan of the rights demo: seeded, in order, and expecting what the contract really does."""

import pytest

from consensus.ledger.codec import Value
from consensus.ledger.receipt import OK
from consensus.ledger.transaction import EACH, make_call
from services.demo.orders import OrderBook, classify, load_orders, parse_lines
from services.demo.rights import figures_of
from services.demo.rights_machine import Kind, campaign_of, expected_figures, pack, plan_events, total_figures
from services.demo.synthetic import synthetic_day
from tests.conftest import data_folder
from tests.contracts.support import Chain

SALT = b"salt"


def day(seed: int) -> OrderBook:
    return classify(parse_lines(synthetic_day(seed), "day"))


def play(book: OrderBook, seed: int) -> None:
    """Play a schedule through the contract and compare every user's balance with the model."""
    schedule = plan_events(book, seed=seed, salt=SALT)
    expected = expected_figures(book, schedule, salt=SALT)
    chain = Chain()
    chain.ok("shop", "rights", "open_campaign", campaign=campaign_of("run"), quota=schedule.quota)
    for batch in pack(schedule.events, lane_count=4, calls_max=50):
        calls = [make_call("rights", event.kind.value, event.arguments("run")) for event in batch.events]
        receipts = chain.submit("shop", *calls, lane=b"%d" % batch.lane, mode=EACH)
        assert [receipt.code for receipt in receipts if receipt.status != OK] == []
    total = total_figures(expected)
    assert total.is_conserved
    assert figures_of(chain.query("rights", "totals")) == total
    for user, figures in expected.items():
        assert figures.is_conserved
        assert figures_of(chain.query("rights", "balance", user=user)) == figures


@pytest.mark.parametrize("seed", range(6))
def test_the_contract_does_what_the_model_expects(seed: int) -> None:
    play(day(seed), seed)


@pytest.mark.slow
def test_the_nine_days_do_what_the_model_expects() -> None:
    book = load_orders(data_folder("orders"))
    schedule = plan_events(book, seed=1, salt=SALT)
    assert schedule.count(Kind.CREATE) == 848
    assert schedule.count(Kind.CANCEL) == len(book.cancellations) == 43
    play(book, seed=1)


def test_same_seed_same_schedule() -> None:
    assert plan_events(day(1), seed=3, salt=SALT) == plan_events(day(1), seed=3, salt=SALT)
    assert plan_events(day(1), seed=3, salt=SALT) != plan_events(day(1), seed=4, salt=SALT)


def test_some_seed_leaves_a_debt_and_some_cancellation_claws_back() -> None:
    totals = []
    for seed in range(6):
        book = day(seed)
        schedule = plan_events(book, seed=seed, salt=SALT)
        totals.append(total_figures(expected_figures(book, schedule, salt=SALT)))
    assert any(total.debt for total in totals)
    assert all(total.clawedBack and total.revoked and total.redeemed for total in totals)


def test_lanes_keep_each_users_order() -> None:
    schedule = plan_events(day(1), seed=1, salt=SALT)
    batches = pack(schedule.events, lane_count=8, calls_max=7)
    assert max(len(batch.events) for batch in batches) <= 7
    assert sorted(map(repr, schedule.events)) == sorted(repr(event) for batch in batches for event in batch.events)
    for user in {event.user for event in schedule.events}:
        sent = [(batch.lane, event) for batch in batches for event in batch.events if event.user == user]
        assert len({lane for lane, _ in sent}) == 1
        assert [event for _, event in sent] == [event for event in schedule.events if event.user == user]


def test_no_customer_number_reaches_the_chain() -> None:
    book = day(1)
    schedule = plan_events(book, seed=1, salt=SALT)
    customers = {order.customer for order in book.orders}
    shown: list[Value] = [value for event in schedule.events for value in event.arguments("run").values()]
    assert not customers & {value for value in shown if isinstance(value, str)}
    other = plan_events(book, seed=1, salt=b"another")
    assert not {event.user for event in schedule.events} & {event.user for event in other.events}
