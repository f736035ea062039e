"""A seeded synthetic trading day of the same form as the real order files, for a demo without data.

The same seed gives the same text, byte for byte, on every machine.
"""

import csv
import io
from datetime import datetime, timedelta
from random import Random

from services.demo.orders import COLUMNS

ORDERS_DEFAULT = 160
_OPENING = datetime(2024, 11, 29, 8, 0)
_TRADING_SECONDS = 11 * 3600
_CUSTOMERS = 70
_PRODUCTS = tuple(
    (f"{22000 + 7 * number}{'' if number % 9 else 'B'}", name)
    for number, name in enumerate(
        f"{colour} {thing}"
        for colour in ("WHITE", "RED", "BLUE, PALE", "GREEN", "RETROSPOT")
        for thing in ("LANTERN", "TEA TOWEL", 'BOX "LARGE"', "CANDLE HOLDER", "LUNCH BAG", "DOORMAT", "MUG", "BUNTING")
    )
)


def synthetic_day(seed: int, *, order_count: int = ORDERS_DEFAULT) -> str:
    """Return the CSV text of a day with ``order_count`` invoices of customers.

    Among them stand guests' invoices, stock adjustments of no value, and cancellations: some match an
    earlier order whole, some partly, some not at all, some without a customer.
    """
    random = Random(seed)
    rows: list[list[object]] = []
    bought: list[tuple[str, str, str, int, str]] = []
    number = 600_000
    for index in range(order_count):
        at = _OPENING + timedelta(seconds=_TRADING_SECONDS * index // order_count)
        customer = f"{12_000 + 17 * random.randrange(_CUSTOMERS)}.0"
        number += random.randint(1, 3)
        for code, name in random.sample(_PRODUCTS, random.randint(1, 8)):
            quantity, price = random.choice((1, 2, 4, 6, 12, 24)), _price(random)
            rows.append([number, code, name, quantity, at, price, customer, "United Kingdom"])
            bought.append((code, name, customer, quantity, price))
        if random.random() < 0.08:
            number += 1
            for code, name in random.sample(_PRODUCTS, random.randint(2, 20)):
                rows.append([number, code, name, random.randint(1, 5), at, _price(random), "", "United Kingdom"])
        if random.random() < 0.08:
            number += 1
            code, _ = random.choice(_PRODUCTS)
            rows.append([number, code, "damaged", -random.randint(1, 60), at, "0.0", "", "United Kingdom"])
        if random.random() < 0.22:
            number += 1
            rows.extend(_cancellation(random, f"C{number}", at, bought))
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    return text.getvalue()


def _price(random: Random) -> str:
    """Return a price with two decimals, or with one where the second is 0, as the real files have it."""
    pence = random.choice((42, 85, 125, 165, 210, 250, 295, 375, 495, 850, 1275))
    return f"{pence // 100}.{pence % 100:02d}".removesuffix("0")


def _cancellation(
    random: Random, number: str, at: datetime, bought: list[tuple[str, str, str, int, str]]
) -> list[list[object]]:
    code, name, customer, quantity, price = random.choice(bought)
    kind = random.choice(("whole", "whole", "some", "more", "unknown", "guest"))
    taken = {"some": max(1, quantity // 2), "more": quantity + 50}.get(kind, quantity)
    if kind == "unknown":
        code, name = "M", "Manual"
    return [[number, code, name, -taken, at, price, "" if kind == "guest" else customer, "United Kingdom"]]
