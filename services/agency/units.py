"""Money to units and back: integers alone, and every rounding is stated. Pure.

Money is in 1/100 of the currency, units in 1/100, a net asset value (NAV) in 1/10,000 of the currency for one unit, a
charge rate in basis points. So ``units = money · 10,000 / NAV`` without any other scale.

Rules:

- **U1** A buyer's charge is taken outside (外扣法): ``net = money · 10,000 / (10,000 + rate)``, rounded half up, and
  the charge is the rest of the money. So net and charge make the money, and a charge is never more than the money.
- **U2** Units bought are rounded down. What is too little for 1/100 of a unit stays in the fund: nobody gets units that
  were not paid for, at the cost of those who hold some already.
- **U3** Units sold are worth money rounded down, for the same reason. The charge is ``money · rate / 10,000``, rounded
  half up, and what is left is paid out.
- **U4** A conversion sells at the one NAV without a charge and buys at the other with that product's charge.

More money never buys fewer units, and more units never fetch less money.
"""

from dataclasses import dataclass

from consensus.ledger.errors import LocalError

NAV_SCALE = 10_000
BASIS_POINTS = 10_000
PAR_NAV = NAV_SCALE
"""1.0000: what one unit costs before a product has a net asset value."""


@dataclass(frozen=True, slots=True)
class Bought:
    """``money`` before the charge, ``charge`` out of it, ``units`` for what is left."""

    money: int
    charge: int
    units: int


@dataclass(frozen=True, slots=True)
class Sold:
    """``units`` given back, ``money`` paid out after the ``charge``."""

    units: int
    charge: int
    money: int


@dataclass(frozen=True, slots=True)
class Converted:
    """``units_out`` of one product fetch ``money``; what a ``charge`` leaves of it buys ``units_in`` of the other."""

    units_out: int
    money: int
    charge: int
    units_in: int


def buy(money: int, *, nav: int, charge_basis_points: int) -> Bought:
    """Return what money buys (U1, U2).

    Raises:
        LocalError: ``bad_amount`` for a negative amount or rate, or a NAV below 1.
    """
    _check(money, nav, charge_basis_points)
    divisor = BASIS_POINTS + charge_basis_points
    net = (2 * money * BASIS_POINTS + divisor) // (2 * divisor)
    return Bought(money, money - net, net * NAV_SCALE // nav)


def sell(units: int, *, nav: int, charge_basis_points: int) -> Sold:
    """Return what units fetch (U3).

    Raises:
        LocalError: ``bad_amount`` as :func:`buy`, and for a rate above the whole.
    """
    _check(units, nav, charge_basis_points)
    if charge_basis_points > BASIS_POINTS:
        raise LocalError("bad_amount", "a charge on what is sold is at most all of it")
    gross = units * nav // NAV_SCALE
    charge = (2 * gross * charge_basis_points + BASIS_POINTS) // (2 * BASIS_POINTS)
    return Sold(units, charge, gross - charge)


def convert(units: int, *, nav_out: int, nav_in: int, charge_basis_points: int) -> Converted:
    """Return what units of one product become in another (U4).

    Raises:
        LocalError: ``bad_amount`` as :func:`buy`.
    """
    money = sell(units, nav=nav_out, charge_basis_points=0).money
    bought = buy(money, nav=nav_in, charge_basis_points=charge_basis_points)
    return Converted(units, money, bought.charge, bought.units)


def _check(quantity: int, nav: int, charge_basis_points: int) -> None:
    if quantity < 0 or nav < 1 or charge_basis_points < 0:
        raise LocalError("bad_amount", f"{quantity} at a net asset value of {nav}, {charge_basis_points} basis points")
