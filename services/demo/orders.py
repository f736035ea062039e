"""Order lines of a web shop, read from CSV files of the UCI "Online Retail" form and sorted into classes.

An order is all lines of one invoice. An invoice whose number begins with ``C`` cancels and names no
original, so each of its lines is matched, by customer and exact stock code, to earlier lines of customer
orders that still have quantity left, oldest first. What came of a match is a *cancellation*: (C invoice,
original order), with matched quantity × original price as its amount.

Every line belongs to exactly one :class:`LineClass`; the classes sum to the files' lines and amounts.
Amounts are integers in pence. Nothing here reads a clock or draws a random number.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from consensus.ledger.errors import LocalError

COLUMNS = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")

FILE_BYTES_MAX = 64 * 1024 * 1024
FILES_MAX = 400
LINES_MAX = 2_000_000
QUANTITY_MAX = 1_000_000
PRICE_PENCE_MAX = 10**8
ORDER_PENCE_MAX = 10**15
"""The largest amount that the rights contract takes."""

_INVOICE = re.compile(r"[CA]?[0-9]{1,12}")
_STOCK_CODE = re.compile(r"\S(.{0,62}\S)?")
_QUANTITY = re.compile(r"-?[0-9]{1,9}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}")
_PRICE = re.compile(r"(-?)([0-9]{1,9})(?:\.([0-9]{1,2})0*)?")
_CUSTOMER = re.compile(r"([0-9]{1,12})(?:\.0)?")
_EPOCH = datetime(1970, 1, 1)


class LineClass(StrEnum):
    """Where a line belongs; only the first class and the matched part of cancellations become events."""

    CUSTOMER_ORDER = "customer_order"
    GUEST_ORDER = "guest_order"
    ZERO_ADJUSTMENT = "zero_adjustment"
    VALUE_ADJUSTMENT = "value_adjustment"
    CANCEL_WHOLE = "cancel_matched_whole"
    CANCEL_PART = "cancel_matched_partly"
    CANCEL_NONE = "cancel_unmatched"
    CANCEL_NO_CUSTOMER = "cancel_without_customer"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file. ``customer`` is empty where none is named; ``time_s`` counts seconds since 1970."""

    invoice: str
    stock_code: str
    description: str
    quantity: int
    time_s: int
    price_pence: int
    customer: str
    country: str

    @property
    def amount_pence(self) -> int:
        """Quantity × price; negative for what is taken back."""
        return self.quantity * self.price_pence


@dataclass(frozen=True, slots=True)
class Order:
    """A customer's order; ``line_count`` lines make up its amount, which is above 0."""

    number: str
    customer: str
    time_s: int
    amount_pence: int
    line_count: int


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What one C invoice takes back of one order; above 0 and, over all of them, at most the order's amount."""

    number: str
    order: str
    time_s: int
    amount_pence: int


@dataclass(slots=True)
class Tally:
    """How much there is of a class."""

    invoices: int = 0
    lines: int = 0
    amount_pence: int = 0


@dataclass(frozen=True, slots=True)
class OrderBook:
    """What the files hold. ``line_count`` and ``amount_pence`` are counted while reading, apart from the classes.

    An invoice stands in each class that one of its lines is in; ``cancel_invoices`` counts every C invoice once:
    ``whole``, ``partly``, ``not_at_all``.
    """

    orders: tuple[Order, ...]
    cancellations: tuple[Cancellation, ...]
    classes: Mapping[LineClass, Tally]
    cancel_invoices: Mapping[str, int]
    invoice_count: int
    line_count: int
    duplicate_count: int
    amount_pence: int

    @property
    def is_accounted(self) -> bool:
        """Whether the classes sum to the files' lines and amount, and every C invoice is counted."""
        tallies = self.classes.values()
        return (sum(tally.lines for tally in tallies), sum(tally.amount_pence for tally in tallies)) == (
            self.line_count,
            self.amount_pence,
        )


def load_orders(path: Path) -> OrderBook:
    """Read a file, or all ``*.csv`` files of a folder in order of their names, and classify the lines.

    Raises:
        LocalError: ``bad_orders``, naming file, line and column; then nothing is kept.
    """
    paths = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not paths or len(paths) > FILES_MAX:
        raise LocalError("bad_orders", f"{path} holds {len(paths)} files *.csv, 1 to {FILES_MAX} can be read")
    lines: list[Line] = []
    for file in paths:
        lines.extend(parse_lines(_read_text(file), file.name))
        if len(lines) > LINES_MAX:
            raise LocalError("bad_orders", f"{file}: more than {LINES_MAX} lines in all")
    return classify(lines)


def parse_lines(text: str, name: str) -> list[Line]:
    """Return the lines of one file's text; ``name`` is what errors call it.

    Raises:
        LocalError: ``bad_orders``, naming file, line and column.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines: list[Line] = []
    customers: dict[str, str] = {}
    try:
        header = next(reader, [])
        if sorted(header) != sorted(COLUMNS):
            raise LocalError("bad_orders", f"{name} line 1: the columns must be {','.join(COLUMNS)}")
        places = [header.index(column) for column in COLUMNS]
        for row in reader:
            where = f"{name} line {reader.line_num}"
            if len(row) != len(COLUMNS):
                raise LocalError("bad_orders", f"{where}: {len(row)} columns, {len(COLUMNS)} are needed")
            line = _parse_row([row[place] for place in places], where)
            if customers.setdefault(line.invoice, line.customer) != line.customer:
                raise _bad(where, "CustomerID", line.customer, "the customer of the invoice's other lines")
            lines.append(line)
    except csv.Error as error:
        raise LocalError("bad_orders", f"{name} line {reader.line_num}: {error}") from None
    if not lines:
        raise LocalError("bad_orders", f"{name} holds no line")
    return lines


def classify(lines: Sequence[Line]) -> OrderBook:
    """Sort lines into classes, matching cancellations to orders.

    Raises:
        LocalError: ``bad_orders`` for an order above 10^15 pence.
    """
    classes = {kind: Tally() for kind in LineClass}
    cancel_invoices = {"whole": 0, "partly": 0, "not_at_all": 0}
    orders: list[Order] = []
    cancellations: list[Cancellation] = []
    left: dict[tuple[str, str], list[_Left]] = {}
    invoices = _invoices(lines)
    for invoice in invoices:
        if invoice[0].invoice.startswith("C"):
            kinds, taken = _match(invoice, left)
            cancellations.extend(taken)
            cancel_invoices[_cancel_class(kinds)] += 1
        else:
            kind = _order_class(invoice)
            kinds = [kind] * len(invoice)
            if kind is LineClass.CUSTOMER_ORDER:
                orders.append(_order(invoice))
                for line in invoice:
                    key = (line.customer, line.stock_code)
                    left.setdefault(key, []).append(_Left(line.invoice, line.price_pence, line.quantity))
        for line, kind in zip(invoice, kinds, strict=True):
            classes[kind].lines += 1
            classes[kind].amount_pence += line.amount_pence
        for kind in dict.fromkeys(kinds):
            classes[kind].invoices += 1
    return OrderBook(
        orders=tuple(orders),
        cancellations=tuple(cancellations),
        classes=classes,
        cancel_invoices=cancel_invoices,
        invoice_count=len(invoices),
        line_count=len(lines),
        duplicate_count=len(lines) - len(set(lines)),
        amount_pence=sum(line.amount_pence for line in lines),
    )


@dataclass(slots=True)
class _Left:
    """How much of an order's line can still be cancelled."""

    order: str
    price_pence: int
    quantity: int


def _invoices(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the lines by invoice, the invoices in order of their first line's time, then of appearance."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line.invoice, []).append(line)
    return sorted(found.values(), key=lambda invoice: invoice[0].time_s)


def _order_class(invoice: Sequence[Line]) -> LineClass:
    amounts = [line.amount_pence for line in invoice]
    if not any(amounts):
        return LineClass.ZERO_ADJUSTMENT
    if min(amounts) < 0 or invoice[0].invoice.startswith("A"):
        return LineClass.VALUE_ADJUSTMENT
    return LineClass.CUSTOMER_ORDER if invoice[0].customer else LineClass.GUEST_ORDER


def _cancel_class(kinds: Sequence[LineClass]) -> str:
    if all(kind is LineClass.CANCEL_WHOLE for kind in kinds):
        return "whole"
    return "partly" if {LineClass.CANCEL_WHOLE, LineClass.CANCEL_PART} & set(kinds) else "not_at_all"


def _order(invoice: Sequence[Line]) -> Order:
    first = invoice[0]
    amount = sum(line.amount_pence for line in invoice)
    if amount > ORDER_PENCE_MAX:
        raise LocalError("bad_orders", f"order {first.invoice} is worth more than {ORDER_PENCE_MAX} pence")
    return Order(first.invoice, first.customer, first.time_s, amount, len(invoice))


def _match(
    invoice: Sequence[Line], left: Mapping[tuple[str, str], list[_Left]]
) -> tuple[list[LineClass], list[Cancellation]]:
    """Return the class of each line of a C invoice, and what it takes back of each order."""
    kinds: list[LineClass] = []
    amounts: dict[str, int] = {}
    for line in invoice:
        if not line.customer:
            kinds.append(LineClass.CANCEL_NO_CUSTOMER)
            continue
        wanted = -line.quantity
        for original in left.get((line.customer, line.stock_code), []):
            taken = min(wanted, original.quantity)
            if taken > 0:
                original.quantity -= taken
                wanted -= taken
                amounts[original.order] = amounts.get(original.order, 0) + taken * original.price_pence
        if wanted == 0:
            kinds.append(LineClass.CANCEL_WHOLE)
        else:
            kinds.append(LineClass.CANCEL_PART if wanted < -line.quantity else LineClass.CANCEL_NONE)
    first = invoice[0]
    # An original given away for nothing leaves nothing to take back.
    events = [Cancellation(first.invoice, order, first.time_s, pence) for order, pence in amounts.items() if pence]
    return kinds, events


def _read_text(path: Path) -> str:
    """Return a file's text: UTF-8, else Windows-1252 as the original export has it."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise LocalError("bad_orders", f"{path} has more than {FILE_BYTES_MAX} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise LocalError("bad_orders", f"{path}: {error.strerror}") from None
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise LocalError("bad_orders", f"{path} is neither UTF-8 nor Windows-1252 text")


def _parse_row(row: Sequence[str], where: str) -> Line:
    """Return the line of a row whose fields stand in the order of :data:`COLUMNS`."""
    invoice, stock_code, description, quantity_text, date, price_text, customer_text, country = row
    if not _INVOICE.fullmatch(invoice):
        raise _bad(where, "InvoiceNo", invoice, "digits, after C for a cancellation or A for an adjustment")
    if not _STOCK_CODE.fullmatch(stock_code):
        raise _bad(where, "StockCode", stock_code, "a code of up to 64 characters")
    quantity = int(quantity_text) if _QUANTITY.fullmatch(quantity_text) else 0
    if not 0 < abs(quantity) <= QUANTITY_MAX:
        raise _bad(where, "Quantity", quantity_text, f"an integer up to {QUANTITY_MAX} and not 0")
    if invoice.startswith("C") and quantity > 0:
        raise _bad(where, "Quantity", quantity_text, "negative on a cancellation")
    customer = _CUSTOMER.fullmatch(customer_text)
    if customer_text and not customer:
        raise _bad(where, "CustomerID", customer_text, "a number, or empty for a guest")
    return Line(
        invoice,
        stock_code,
        description,
        quantity,
        _seconds(date, where),
        _pence(price_text, where),
        customer[1] if customer else "",
        country,
    )


def _seconds(text: str, where: str) -> int:
    try:
        if _DATE.fullmatch(text):
            return int((datetime.fromisoformat(text) - _EPOCH).total_seconds())
    except ValueError:
        pass
    raise _bad(where, "InvoiceDate", text, "a time as 2010-12-01 08:26:00")


def _pence(text: str, where: str) -> int:
    match = _PRICE.fullmatch(text)
    pence = int(match[2]) * 100 + int((match[3] or "").ljust(2, "0")) if match else PRICE_PENCE_MAX + 1
    if match is None or pence > PRICE_PENCE_MAX:
        raise _bad(where, "UnitPrice", text, f"pounds with up to two decimals, at most {PRICE_PENCE_MAX // 100}")
    return -pence if match[1] else pence


def _bad(where: str, column: str, text: str, expected: str) -> LocalError:
    shown = text if len(text) <= 40 else text[:37] + "..."
    return LocalError("bad_orders", f"{where}, column {column}: {shown!r} is not {expected}")


def format_pounds(pence: int) -> str:
    """Return an amount as people write it, ``GBP 345,528.28``."""
    sign = "-" if pence < 0 else ""
    return f"{sign}GBP {abs(pence) // 100:,}.{abs(pence) % 100:02d}"
