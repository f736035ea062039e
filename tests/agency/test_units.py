"""Money to units and back, by the rules U1 to U4."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.errors import LocalError
from services.agency.units import BASIS_POINTS, NAV_SCALE, buy, convert, sell

money = st.integers(0, 10**16 - 1)
navs = st.integers(1, 10**9)
rates = st.integers(0, BASIS_POINTS)


def test_examples_of_the_market() -> None:
    """1,000.00 at a NAV of 1.0000 without a charge; 10,000.00 at 1.2345 with 1.5 %, taken outside."""
    assert (buy(100_000, nav=10_000, charge_basis_points=0).units) == 100_000
    bought = buy(1_000_000, nav=12_345, charge_basis_points=150)
    assert (bought.charge, bought.units) == (14_778, 798_073)
    sold = sell(798_073, nav=12_345, charge_basis_points=50)
    assert (sold.money + sold.charge, sold.charge) == (985_221, 4_926)


def test_the_charge_is_rounded_half_up() -> None:
    assert sell(100, nav=10_000, charge_basis_points=50).charge == 1
    assert sell(99, nav=10_000, charge_basis_points=50).charge == 0
    assert buy(3, nav=10_000, charge_basis_points=BASIS_POINTS).charge == 1


@given(money, navs, rates)
def test_nobody_gets_units_that_were_not_paid_for(amount: int, nav: int, rate: int) -> None:
    bought = buy(amount, nav=nav, charge_basis_points=rate)
    net = bought.money - bought.charge
    assert bought.money == amount
    assert 0 <= bought.charge <= amount
    assert bought.units * nav <= net * NAV_SCALE < (bought.units + 1) * nav


@given(money, navs, rates)
def test_what_is_sold_again_fetches_no_more_than_was_paid(amount: int, nav: int, rate: int) -> None:
    bought = buy(amount, nav=nav, charge_basis_points=rate)
    sold = sell(bought.units, nav=nav, charge_basis_points=rate)
    assert sold.charge >= 0
    assert sold.money >= 0
    assert sold.money + sold.charge <= amount - bought.charge


@given(money, money, navs, rates)
def test_more_never_gets_less(one: int, other: int, nav: int, rate: int) -> None:
    less, more = sorted((one, other))
    assert buy(less, nav=nav, charge_basis_points=rate).units <= buy(more, nav=nav, charge_basis_points=rate).units
    assert sell(less, nav=nav, charge_basis_points=rate).money <= sell(more, nav=nav, charge_basis_points=rate).money


@given(money, navs, navs, rates)
def test_a_conversion_makes_no_money(units: int, nav_out: int, nav_in: int, rate: int) -> None:
    converted = convert(units, nav_out=nav_out, nav_in=nav_in, charge_basis_points=rate)
    assert converted.money == units * nav_out // NAV_SCALE
    assert converted.units_in * nav_in <= (converted.money - converted.charge) * NAV_SCALE


def test_what_has_no_meaning_is_refused() -> None:
    for amount, nav, rate in ((-1, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(LocalError, match="basis points"):
            buy(amount, nav=nav, charge_basis_points=rate)
    with pytest.raises(LocalError, match="at most all"):
        sell(1, nav=1, charge_basis_points=BASIS_POINTS + 1)
