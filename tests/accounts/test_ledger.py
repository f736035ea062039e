"""What an order does: each cell of the port's table, each refusal, and histories against a second account system."""

import re
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from consensus.ledger.errors import InvariantError
from services.accounts.ledger import ISSUED_MAX, Account, Books
from services.accounts.port import AMOUNT_MAX, Operation, Order
from services.client.errors import Refused
from tests.accounts.model import TABLE, Model, code_of

RESERVE, PAY, RELEASE, REVERSE = Operation
WAYS: dict[str, list[tuple[Operation, ...]]] = {
    "nothing": [()],
    "reserved": [(RESERVE,)],
    "paid": [(PAY,), (RESERVE, PAY)],
    "released": [(RELEASE,), (RESERVE, RELEASE)],
    "reversed": [(PAY, REVERSE), (RESERVE, PAY, REVERSE)],
}
"""All ways to what the table calls so."""


def order(operation: Operation, event: str = "t-1", *, amount: int = 30, currency: str = "CNY", **names: str) -> Order:
    terms = {"payer": "buyer", "payee": "shop", **names}
    return Order(event, operation, terms["payer"], terms["payee"], amount, currency)


def books_of(*orders: Order) -> Books:
    """Books in which the buyer has 100, the shop 50, and these orders were done, one at each ms from 1,000 on."""
    books = Books(time_ms=999)
    for name, currency in (("buyer", "CNY"), ("shop", "CNY"), ("bank", "EUR")):
        books.open(name, currency)
    books.deposit("opening-buyer", "buyer", 100)
    books.deposit("opening-shop", "shop", 50)
    for one in orders:
        books.time_ms += 1
        assert books.run(one).is_done
    books.time_ms += 1
    return books


def parts(books: Books) -> tuple[int, int, int]:
    """What the buyer has available and held, and what the shop has."""
    buyer, shop = books.accounts["buyer"], books.accounts["shop"]
    assert shop.held == 0
    return buyer.available, buyer.held, shop.available


MOVES = {"held": (-30, 30, 0), "paid": (0, -30, 30), "available": (-30, 0, 30), "again": (30, -30, 0)}
MOVES |= {"tombstone": (0, 0, 0), "payer": (30, 0, -30)}
"""How balances move, by the last word of a cell."""


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize(("before", "way"), [(before, way) for before in WAYS for way in WAYS[before]])
def test_a_cell_of_the_table(before: str, way: tuple[Operation, ...], operation: Operation) -> None:
    """Words of the table: ``code``; ``done: …``; the same answer; ``code``, or the first answer; as another row."""
    books = books_of(*map(order, way))
    model = Model(dict.fromkeys(("buyer", "shop"), "CNY"), deposits=[("buyer", 100), ("shop", 50)])
    for step in way:
        assert model.run(order(step)) == "done"
    cell = model.cell(order(operation))
    balances, posted, now_ms = parts(books), len(books.entries), books.time_ms
    answer = books.run(order(operation))
    moved = tuple(after - first for after, first in zip(parts(books), balances, strict=True))
    if cell == "same":
        assert (answer.code, answer.time_ms, moved) == ("", 1_000 + way.index(operation), (0, 0, 0))
    elif cell.startswith("done"):
        word = "paid" if cell.endswith("what is held") else cell.split()[-1]
        assert (answer.code, answer.time_ms, moved) == ("", now_ms, MOVES[word])
        assert len(books.entries) - posted == (word != "tombstone")
    else:
        assert (answer.code, answer.time_ms, moved) == (code_of(cell), 0, (0, 0, 0))
        assert answer.code
        assert answer.message
        assert len(books.entries) == posted


def test_the_table_has_all_rows_and_cells() -> None:
    assert list(TABLE) == list(WAYS)
    assert all(list(row) == list(Operation) and all(row.values()) for row in TABLE.values())


def test_the_document_shows_the_same_table() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "settlement.md").read_text("utf-8")
    for before, row in TABLE.items():
        cells = [re.sub(r"^([a-z]+_?[a-z]+)(?=,|$)", r"`\1`", cell) for cell in row.values()]
        assert f"| {before} | {' | '.join(cells)} |" in text


def test_what_stands_says_when_each_was_done() -> None:
    books = books_of(order(RESERVE), order(PAY), order(REVERSE), order(RELEASE, "t-2"))
    standing = books.standings["t-1"]
    times = (standing.reserved_ms, standing.paid_ms, standing.released_ms, standing.reversed_ms)
    assert (times, standing.is_tombstone) == ((1_000, 1_001, 0, 1_002), False)
    assert (books.standings["t-2"].released_ms, books.standings["t-2"].is_tombstone) == (1_003, True)
    assert [(entry.number, entry.operation, entry.debit, entry.credit) for entry in books.entries] == [
        (1, "deposit", "WORLD/outside", "buyer/available"),
        (2, "deposit", "WORLD/outside", "shop/available"),
        (3, "reserve", "buyer/available", "buyer/held"),
        (4, "pay", "buyer/held", "shop/available"),
        (5, "reverse", "shop/available", "buyer/available"),
    ]


@pytest.mark.parametrize("operation", [RESERVE, PAY])
@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"payer": "nobody"}, "unknown_account"),
        ({"payee": "nobody"}, "unknown_account"),
        ({"payer": "WORLD"}, "unknown_account"),
        ({"payee": "bank"}, "wrong_currency"),
        ({"payer": "bank"}, "wrong_currency"),
        ({"currency": "EUR"}, "wrong_currency"),
        ({"amount": 101}, "insufficient_funds"),
        ({"amount": AMOUNT_MAX}, "insufficient_funds"),
    ],
)
def test_what_is_refused_leaves_no_trace(operation: Operation, wrong: dict[str, str], code: str) -> None:
    books = books_of()
    assert books.run(order(operation, **wrong)).code == code  # type: ignore[arg-type]
    assert (books.standings, len(books.entries), parts(books)) == ({}, 2, (100, 0, 50))
    assert books.run(order(operation)).is_done


@pytest.mark.parametrize("name", ["buyer", "shop"])
def test_a_frozen_account_neither_pays_nor_is_paid_but_gets_its_hold_back(name: str) -> None:
    books = books_of(order(RESERVE), order(PAY, "t-2"), order(RESERVE, "t-3"))
    books.freeze(name, is_frozen=True)
    for one in (order(PAY), order(RESERVE, "t-9"), order(PAY, "t-9"), order(REVERSE, "t-2")):
        assert books.run(one).code == "account_frozen"
    assert books.run(order(RESERVE)).is_done  # it was done before
    assert books.run(order(RELEASE)).is_done
    books.freeze(name, is_frozen=False)
    assert books.run(order(PAY, "t-3")).is_done
    assert parts(books) == (40, 0, 110)


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize(
    "other", [{"payer": "shop"}, {"payee": "buyer"}, {"amount": 31}, {"currency": "EUR"}, {"payee": "nobody"}]
)
@pytest.mark.parametrize("way", [way for ways in WAYS.values() for way in ways if way])
def test_an_event_has_one_set_of_terms(way: tuple[Operation, ...], operation: Operation, other: dict[str, str]) -> None:
    books = books_of(*map(order, way))
    before = parts(books)
    assert books.run(order(operation, **other)).code == "operation_conflict"  # type: ignore[arg-type]
    assert parts(books) == before


def test_what_was_spent_meanwhile_cannot_go_back() -> None:
    books = books_of(order(PAY), order(PAY, "t-2", payer="shop", payee="buyer", amount=80))
    assert books.run(order(REVERSE)).code == "insufficient_funds"
    assert parts(books) == (150, 0, 0)


@pytest.mark.parametrize("operation", [RESERVE, PAY])
def test_what_is_held_pays_for_nothing_else(operation: Operation) -> None:
    books = books_of(order(RESERVE, amount=80))
    assert books.run(order(operation, "t-2", amount=21)).code == "insufficient_funds"
    assert books.run(order(operation, "t-2", amount=20)).is_done


def test_who_pays_himself_has_what_he_had() -> None:
    books = books_of(
        *(order(step, payee="buyer") for step in (RESERVE, PAY, REVERSE)), order(PAY, "t-2", payee="buyer")
    )
    assert parts(books) == (100, 0, 50)
    assert books.run(order(PAY, "t-3", payee="buyer", amount=101)).code == "insufficient_funds"


def test_accounts_are_opened_once_and_nobody_is_the_world() -> None:
    books = books_of()
    assert books.open("buyer", "CNY").available == 100
    for name, currency in (("buyer", "EUR"), ("WORLD", "CNY")):
        with pytest.raises(Refused) as refusal:
            books.open(name, currency)
        assert refusal.value.code == "account_exists"


def test_all_money_of_a_currency_fits_into_63_bits() -> None:
    books = books_of()
    books.deposit("d-1", "buyer", ISSUED_MAX - 150)
    with pytest.raises(Refused) as refusal:
        books.deposit("d-2", "shop", 1)
    assert refusal.value.code == "overflow"
    assert books.deposit("d-3", "bank", ISSUED_MAX).available == ISSUED_MAX  # another currency
    assert books.accounts["buyer"].available + 50 == ISSUED_MAX


def test_a_part_below_zero_is_a_bug_and_no_answer() -> None:
    books = books_of(order(RESERVE))
    books.accounts["buyer"] = msgspec.structs.replace(books.accounts["buyer"], held=0)
    with pytest.raises(InvariantError):
        books.run(order(PAY))


NAMES = ("a", "b", "c", "far", "nobody")


class Histories(RuleBasedStateMachine):
    """Orders of a few events in any sequence, doubled and late; freezing; deposits: the books and the model agree."""

    def __init__(self) -> None:
        super().__init__()
        self.books = Books(time_ms=1)
        self.model = Model()
        self.answers: dict[tuple[str, Operation], object] = {}

    @initialize(amounts=st.lists(st.integers(1, 60), min_size=4, max_size=4))
    def open(self, amounts: list[int]) -> None:
        for name, amount in zip(NAMES, amounts, strict=False):
            self.model.currencies[name] = "EUR" if name == "far" else "CNY"
            self.books.open(name, self.model.currencies[name])
            self.deposit(name, amount)

    @rule(name=st.sampled_from(NAMES[:4]), amount=st.integers(1, 20))
    def deposit(self, name: str, amount: int) -> None:
        self.books.deposit(f"d-{len(self.model.deposits)}", name, amount)
        self.model.deposits.append((name, amount))

    @rule(
        event=st.sampled_from(["t-1", "t-2", "t-3", "t-4"]),
        operation=st.sampled_from(Operation),
        other=st.sampled_from([None] * 6 + ["payer", "payee", "amount", "currency"]),
    )
    def run(self, event: str, operation: Operation, other: str | None) -> None:
        number = int(event[-1])
        terms = {"payer": NAMES[number % 2], "payee": NAMES[2 - number % 3], "amount": 9 * number, "currency": "CNY"}
        if event == "t-4" and other is None:
            terms["payee"] = "nobody"
        elif other is not None:
            terms |= {other: {"payer": "b", "payee": "far", "amount": 7, "currency": "EUR"}[other]}
        wanted = Order(event, operation, **terms)  # type: ignore[arg-type]
        self.books.time_ms += 1
        answer, expected = self.books.run(wanted), self.model.run(wanted)
        if expected == "same":
            assert answer == self.answers[event, operation]
        elif expected == "done":
            assert (answer.code, answer.time_ms) == ("", self.books.time_ms)
            self.answers[event, operation] = answer
        else:
            assert (answer.code, answer.time_ms) == (expected, 0)

    @rule(name=st.sampled_from(NAMES[:3]))
    def freeze(self, name: str) -> None:
        self.model.frozen ^= {name}
        self.books.freeze(name, is_frozen=name in self.model.frozen)

    @invariant()
    def nothing_is_made_or_lost(self) -> None:
        expected = self.model.balances()
        for account in self.books.accounts.values():
            assert (account.available, account.held) == (
                expected[account.id, "available"],
                expected[account.id, "held"],
            )
            assert min(account.available, account.held) >= 0
        posted: Counter[tuple[str, str]] = Counter()
        for entry in self.books.entries:
            assert entry.amount > 0
            posted[entry.debit, entry.currency] -= entry.amount
            posted[entry.credit, entry.currency] += entry.amount
        assert {currency: -posted["WORLD/outside", currency] for currency in ("CNY", "EUR")} == {
            "CNY": self.books.issued.get("CNY", 0),
            "EUR": self.books.issued.get("EUR", 0),
        }
        for account in self.books.accounts.values():
            for part in ("available", "held"):
                assert posted[f"{account.id}/{part}", account.currency] == getattr(account, part)
        keys = [(entry.event, entry.operation) for entry in self.books.entries]
        assert len(keys) == len(set(keys))
        assert [entry.number for entry in self.books.entries] == list(range(1, len(keys) + 1))


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=40)


def test_accounts_and_what_stands_survive_being_kept_and_read() -> None:
    books = books_of(order(RESERVE))
    again = Books(
        msgspec.json.decode(msgspec.json.encode(list(books.accounts.values())), type=list[Account]),
        books.standings.values(),
        issued=books.issued,
        last=books.last,
        time_ms=books.time_ms,
    )
    assert again.run(order(PAY)) == books.run(order(PAY))
    assert again.entries[-1] == books.entries[-1]
