"""Order files: the counted figures of the real ones, the classes, and everything that can be wrong with a file."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.errors import LocalError
from services.demo.orders import LineClass, OrderBook, classify, format_pounds, load_orders, parse_lines
from services.demo.synthetic import synthetic_day
from tests.conftest import data_folder

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"


def row(invoice: str = "1", code: str = "A", quantity: int = 1, price: str = "1.0", customer: str = "7.0") -> str:
    return f"{invoice},{code},THING,{quantity},2010-12-01 08:26:00,{price},{customer},United Kingdom\n"


def book_of(*rows: str) -> OrderBook:
    return classify(parse_lines(HEADER + "".join(rows), "a.csv"))


def figures(book: OrderBook, kind: LineClass) -> tuple[int, int, int]:
    tally = book.classes[kind]
    return tally.invoices, tally.lines, tally.amount_pence


def test_the_nine_days_have_the_counted_figures() -> None:
    book = load_orders(data_folder("orders"))
    assert (book.line_count, book.invoice_count, book.duplicate_count) == (25_281, 1_179, 352)
    assert figures(book, LineClass.CUSTOMER_ORDER) == (848, 15_885, 34_552_828)
    assert figures(book, LineClass.GUEST_ORDER) == (63, 8_872, 15_250_729)
    assert figures(book, LineClass.ZERO_ADJUSTMENT) == (125, 125, 0)
    assert figures(book, LineClass.VALUE_ADJUSTMENT) == (0, 0, 0)
    cancelled = [
        LineClass.CANCEL_WHOLE,
        LineClass.CANCEL_PART,
        LineClass.CANCEL_NONE,
        LineClass.CANCEL_NO_CUSTOMER,
    ]
    assert [book.classes[kind].lines for kind in cancelled] == [101, 1, 265, 32]
    assert book.cancel_invoices == {"whole": 32, "partly": 8, "not_at_all": 103}
    assert book.is_accounted
    assert len(book.orders) == 848
    assert format_pounds(sum(order.amount_pence for order in book.orders)) == "GBP 345,528.28"


def test_a_single_file_is_read_too() -> None:
    folder = data_folder("orders")
    lines = [load_orders(path).line_count for path in sorted(folder.glob("*.csv"))]
    assert (len(lines), sum(lines)) == (9, 25_281)


def test_classes_of_invoices() -> None:
    book = book_of(
        row("1"),
        row("2", customer=""),
        row("3", price="0.0", quantity=-5, customer=""),
        row("A4", price="-12.5", customer=""),
        row("5", quantity=-1),
        row("6", price="0.00"),
    )
    assert figures(book, LineClass.CUSTOMER_ORDER) == (1, 1, 100)
    assert figures(book, LineClass.GUEST_ORDER) == (1, 1, 100)
    assert figures(book, LineClass.ZERO_ADJUSTMENT) == (2, 2, 0)
    assert figures(book, LineClass.VALUE_ADJUSTMENT) == (2, 2, -1_350)
    assert book.is_accounted


def test_a_cancellation_takes_from_the_oldest_line_first() -> None:
    book = book_of(
        row("1", quantity=2, price="1.5"),
        row("2", quantity=3, price="2"),
        row("C3", quantity=-4, price="9.99"),
        row("C4", quantity=-4),
    )
    taken = [(item.number, item.order, item.amount_pence) for item in book.cancellations]
    assert taken == [("C3", "1", 300), ("C3", "2", 400), ("C4", "2", 200)]
    assert figures(book, LineClass.CANCEL_WHOLE) == (1, 1, -3_996)
    assert figures(book, LineClass.CANCEL_PART) == (1, 1, -400)
    assert book.cancel_invoices == {"whole": 1, "partly": 1, "not_at_all": 0}


@pytest.mark.parametrize(
    "cancellation",
    [row("C2", code="B"), row("C2", customer="8.0"), row("C2", code="a")],
    ids=["another code", "another customer", "another case"],
)
def test_a_cancellation_matches_customer_and_exact_code(cancellation: str) -> None:
    book = book_of(row("1"), cancellation.replace(",1,2010", ",-1,2010"))
    assert figures(book, LineClass.CANCEL_NONE)[1] == 1
    assert book.cancellations == ()


def test_a_cancellation_before_its_order_matches_nothing() -> None:
    early = row("C1", quantity=-1)
    assert book_of(early, row("2")).cancellations == ()
    late = row("2").replace("08:26", "08:25")
    assert len(book_of(early, late).cancellations) == 1


def test_guests_are_not_matched_and_gifts_give_nothing_back() -> None:
    assert book_of(row("1", customer=""), row("C2", quantity=-1, customer="")).cancellations == ()
    book = book_of(row("1"), row("1", code="B", price="0.0"), row("C2", code="B", quantity=-1, price="0.0"))
    assert figures(book, LineClass.CANCEL_WHOLE)[1] == 1
    assert book.cancellations == ()


def test_quotes_commas_and_the_old_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes((HEADER + row().replace("THING", '"BOX, ""LARGE"" \u00a35"')).encode("cp1252"))
    assert load_orders(path).line_count == 1
    lines = parse_lines(path.read_bytes().decode("cp1252"), "a.csv")
    assert lines[0].description == 'BOX, "LARGE" \u00a35'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a.csv line 1"),
        (HEADER, "holds no line"),
        (HEADER.replace("Country", "Land") + row(), "line 1"),
        (HEADER + row() + "1,2\n", "line 3: 2 columns"),
        (HEADER + row() + row(invoice="X1"), "line 3, column InvoiceNo"),
        (HEADER + row(code=""), "line 2, column StockCode"),
        (HEADER + row().replace(",1,2010", ",1.5,2010"), "line 2, column Quantity"),
        (HEADER + row(quantity=0), "line 2, column Quantity"),
        (HEADER + row(quantity=1_000_001), "line 2, column Quantity"),
        (HEADER + row("C1", quantity=1), "line 2, column Quantity"),
        (HEADER + row().replace("2010-12-01", "2010-13-01"), "line 2, column InvoiceDate"),
        (HEADER + row().replace(" 08:26:00", ""), "line 2, column InvoiceDate"),
        (HEADER + row(price="1,0").replace("1,0", '"1,0"'), "line 2, column UnitPrice"),
        (HEADER + row(price="1.005"), "line 2, column UnitPrice"),
        (HEADER + row(price="nan"), "line 2, column UnitPrice"),
        (HEADER + row(price="1e9"), "line 2, column UnitPrice"),
        (HEADER + row(price="1000000.01"), "line 2, column UnitPrice"),
        (HEADER + row(customer="Smith"), "line 2, column CustomerID"),
        (HEADER + row() + row(customer="8.0"), "line 3, column CustomerID"),
        (HEADER + row().replace("THING", '"THING'), "a.csv line"),
        (HEADER + row().replace("THING", '"T"HING'), "a.csv line 2"),
        (HEADER + row().replace("THING", "T" * 200_000), "a.csv line 2"),
    ],
)
def test_malformed_files_are_refused_with_place(text: str, said: str) -> None:
    with pytest.raises(LocalError) as caught:
        parse_lines(text, "a.csv")
    assert caught.value.code == "bad_orders"
    assert said in caught.value.message


def test_missing_empty_and_binary_places(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.csv").write_bytes(b"\x81\x8d" + HEADER.encode())
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nothing.csv", tmp_path / "empty", tmp_path / "broken"):
        with pytest.raises(LocalError) as caught:
            load_orders(path)
        assert caught.value.code == "bad_orders"


@given(st.text(alphabet='C0123456789,."\n-: ABZx', max_size=200))
def test_no_text_brings_the_parser_down(text: str) -> None:
    for content in (text, HEADER + text, HEADER + row() + text):
        with suppress(LocalError):
            assert classify(parse_lines(content, "a.csv")).is_accounted


@given(st.integers(min_value=0, max_value=2**32))
def test_synthetic_days_are_seeded_and_accounted(seed: int) -> None:
    text = synthetic_day(seed, order_count=30)
    assert text == synthetic_day(seed, order_count=30)
    book = classify(parse_lines(text, "day"))
    assert len(book.orders) == 30
    assert book.is_accounted


def test_a_synthetic_day_holds_every_class_of_the_real_ones() -> None:
    book = classify(parse_lines(synthetic_day(1), "day"))
    empty = [kind for kind, tally in book.classes.items() if not tally.lines]
    assert empty == [LineClass.VALUE_ADJUSTMENT]
