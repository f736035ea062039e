"""The issuer's decisions, by the rules I1 to I7, and its books, by H1 to H3."""

import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from consensus.ledger.errors import InvariantError
from services.agency.holdings import Books, Entry, HoldingEntry, Name, TakenEntry, UserEntry, entry_codec
from services.agency.issuer_machine import Desk, products_of
from services.agency.ofd.codes import UNNAMED, return_code
from services.agency.orders import Application, Code, Confirmation, Outcome, outcome_codec
from services.agency.packages import Package, waiting_places
from tests.agency.issuer_support import ADULT, TODAY, application, opening, package, product

PRODUCTS = {
    "000198": product(charge_basis_points=150, nav=12_345),
    "C00002": product("C00002", nav=20_000),
    "C00003": product("C00003", nav=0),
}


class Office:
    """The issuer's books on a dict, with every entry going through its bytes."""

    def __init__(self) -> None:
        self.entries: dict[Name, bytes] = {}
        self.waiting: list[tuple[Package, list[int], str]] = []

    def books(self) -> Books:
        def read(name: Name) -> Entry | None:
            value = self.entries.get(name)
            return None if value is None else entry_codec.decode_untrusted(value)

        return Books(read)

    def keep(self, books: Books) -> None:
        self.entries |= {name: entry_codec.encode(entry) for name, entry in books.changes().items()}

    def take(self, *applications: Application, bank: str = "bank-a") -> list[Confirmation]:
        sent = package(*applications, bank=bank)
        assert set(products_of(sent)) <= {*PRODUCTS, "F00001"}
        books = self.books()
        confirmations = Desk(books, bank, PRODUCTS, today=TODAY).confirm(sent)
        self.keep(books)
        if places := waiting_places(confirmations):
            self.waiting.append((sent, places, bank))
        return confirmations

    def allot(self, code: str, ratio: int) -> list[Confirmation]:
        books = self.books()
        books.put_ratio(code, ratio)
        self.keep(books)
        found = []
        for sent, places, bank in [*self.waiting]:
            books = self.books()
            if any(books.ratio(sent.applications[place].product) is None for place in places):
                continue
            found += Desk(books, bank, PRODUCTS, today=TODAY).allot(sent, places)
            self.keep(books)
            self.waiting.remove((sent, places, bank))
        return found

    def units(self, ta_account: str = "100000000001", code: str = "000198", at: str = "996", to: str = "") -> int:
        return self.books().units(ta_account, code, at, to)

    def all(self) -> Iterable[Entry]:
        return (entry_codec.decode_untrusted(value) for value in self.entries.values())


def opened() -> Office:
    office = Office()
    (confirmation,) = office.take(opening("R1"))
    assert (confirmation.code, confirmation.reason, confirmation.ta_account) == ("101", "", "100000000001")
    return office


def why(office: Office, order: Application, bank: str = "bank-a") -> str:
    return office.take(order, bank=bank)[0].reason


# -- orders ------------------------------------------------------------------------------------------------


def test_a_subscription_and_a_redemption() -> None:
    office = opened()
    (bought,) = office.take(application("A1", amount=1_000_000))
    assert (bought.code, bought.return_code, bought.amount, bought.charge, bought.volume, bought.nav) == (
        "122",
        "0000",
        1_000_000,
        14_778,
        798_073,
        12_345,
    )
    assert why(office, application("A2", "024", volume=798_074)) == "insufficient_units"
    (sold,) = office.take(application("A3", "024", volume=798_073))
    assert (sold.code, sold.amount, sold.charge) == ("124", 985_221 - 14_778, 14_778)
    assert office.units() == 0
    assert sold.ta_serial == f"{TODAY}{4:012d}"


def test_an_initial_subscription_is_acknowledged_and_allotted_once() -> None:
    office = opened()
    orders = [application("A1", "020", product="C00003"), application("A2"), application("A3", "020", product="C00003")]
    first = office.take(*orders)
    assert [(item.code, item.is_final, item.amount, item.volume) for item in first] == [
        ("120", False, 100_00, 0),
        ("122", True, 100_00, 7980),
        ("120", False, 100_00, 0),
    ]
    assert why(office, application("A4", "002", product="")) == "account_in_use"
    allotted = office.allot("C00003", 3_333)
    assert [(item.serial, item.code, item.amount, item.volume, item.nav) for item in allotted] == [
        ("A1", "130", 3333, 3333, 10_000),
        ("A3", "130", 3333, 3333, 10_000),
    ]
    assert all(item.is_final for item in allotted)
    assert why(office, application("A5", "020", product="C00003")) == "product_closed"
    assert office.take(orders[0])[0] == allotted[0]


def test_an_initial_subscription_that_came_in_two_packages_is_allotted_once() -> None:
    office = opened()
    order = application("A1", "020", product="C00003")
    assert office.take(order) == office.take(order)
    one, other = office.allot("C00003", 10_000)
    assert one == other
    assert office.units(code="C00003") == office.books().total("C00003").units_in == 100_00


def test_a_conversion_passes_through_money() -> None:
    office = opened()
    office.take(application("A1"))
    (converted,) = office.take(application("A2", "036", volume=7980, target_product="C00002"))
    money = 7980 * 12_345 // 10_000
    assert (converted.code, converted.amount, converted.volume, converted.nav) == ("136", money, money // 2, 20_000)
    assert (office.units(), office.units(code="C00002")) == (0, money // 2)
    assert why(office, application("A3", "036", volume=1, target_product="C00002")) == "insufficient_units"
    assert why(office, application("A4", "002", product="")) == "account_in_use"


def test_a_custody_transfer_at_once_and_in_two_steps() -> None:
    office = opened()
    (joined,) = office.take(opening("J1", code="008", distributor="777", transaction_account="T7"))
    assert joined.code == "108"
    office.take(application("A1"))
    transfer = application("A2", "026", volume=1000, target_distributor="777")
    assert office.take(transfer)[0].volume == 1000
    assert (office.units(), office.units(at="777")) == (6980, 1000)
    assert why(office, application("A3", "026", volume=1, target_distributor="555")) == "bad_target"
    assert why(office, application("A4", "026", volume=1, target_distributor="996")) == "bad_target"
    assert why(office, application("A5", "028", volume=6980, target_distributor="777")) == ""
    assert (office.units(), office.units(to="777")) == (0, 6980)
    claim = application("A6", "027", volume=6981, distributor="777", target_distributor="996")
    assert why(office, claim) == "insufficient_units"
    assert why(office, replace(claim, serial="A7", volume=6980)) == ""
    assert (office.units(to="777"), office.units(at="777")) == (0, 7980)


def test_an_order_is_answered_once() -> None:
    office = opened()
    order = application("A1")
    (first,) = office.take(order)
    entries = dict(office.entries)
    (again,) = office.take(order)
    assert again == first
    assert {name for name in office.entries if office.entries[name] != entries.get(name)} <= {("numbers",)}
    assert office.units() == first.volume
    assert why(office, application("A1", amount=200_00)) == "duplicate_serial"
    assert office.take(order)[0] == first


def test_whose_order_it_is() -> None:
    office = opened()
    office.take(opening("R2", ta_account="200000000002", distributor="777"), bank="bank-b")
    assert why(office, application("A1", distributor="777")) == "foreign_distributor"
    assert why(office, application("A1", distributor="196")) == "foreign_distributor"
    assert why(office, application("A1", distributor="")) == "foreign_distributor"
    assert why(office, application("A1", ta_account="300000000003")) == "unknown_user"
    assert why(office, application("A2", ta_account="200000000002")) == "unknown_user"
    office.take(opening("R3", ta_account="400000000004", distributor="778"))
    assert why(office, application("A3", distributor="778")) == "unknown_account"
    assert why(office, opening("R4", ta_account="500000000005", distributor="777")) == "foreign_distributor"


def test_what_no_product_takes() -> None:
    office = opened()
    assert why(office, application("A1", product="C00003")) == "no_price"
    assert why(office, application("A2", product="F00001")) == "unknown_product"
    assert why(office, application("A3", "099")) == "not_supported"
    assert why(office, application("A4", terms_version=1)) == "stale_terms"
    office.take(application("A5"))
    assert why(office, application("A6", "024", product="C00003", volume=1)) == "no_price"
    assert office.take(application("A7", "900"))[0].code == "000"


# -- accounts ----------------------------------------------------------------------------------------------


def test_accounts_open_change_and_close() -> None:
    office = opened()
    assert why(office, opening("R2")) == "account_exists"
    assert why(office, opening("R3", ta_account="3", investor=None)) == "identity_missing"
    assert (
        why(office, opening("R4", ta_account="4", investor=replace(ADULT, birth_date=2000_13_01))) == "identity_missing"
    )
    (made,) = office.take(opening("R5", ta_account=""))
    assert made.ta_account == "980000000001"
    assert why(office, opening("R6", ta_account="")) == "account_exists"
    changed = replace(ADULT, risk_class=5)
    assert why(office, opening("R7", code="003", investor=changed)) == ""
    user = office.books().user("100000000001")
    assert user is not None
    assert user.investor == changed
    assert why(office, opening("R8", code="003", ta_account="nobody")) == "unknown_account"
    office.take(application("A1"))
    assert why(office, application("C1", "002", product="")) == "account_in_use"
    office.take(application("A2", "024", volume=7980))
    assert why(office, application("C2", "002", product="")) == ""
    assert why(office, application("C3", "002", product="")) == "account_closed"
    assert why(office, application("A3")) == "account_closed"
    assert why(office, opening("R9")) == "account_exists"
    assert office.books().numbers().users == 1


def test_a_trading_account_needs_the_certificate() -> None:
    office = opened()
    stranger = replace(ADULT, certificate_number="999")
    other = {"code": "008", "distributor": "777", "transaction_account": "T7"}
    assert why(office, opening("J1", investor=stranger, **other), bank="bank-b") == "unknown_account"
    assert why(office, opening("J2", ta_account="nobody", **other), bank="bank-b") == "unknown_account"
    assert why(office, opening("J3", **other), bank="bank-b") == ""
    assert why(office, opening("J4", **other), bank="bank-b") == "account_exists"
    assert why(office, application("C1", "002", product="")) == "account_in_use"
    assert why(office, opening("J5", **other)) == "foreign_distributor"


def test_the_books_refuse_what_no_rule_allows() -> None:
    books = opened().books()
    user = books.user("100000000001")
    assert user is not None
    with pytest.raises(InvariantError, match="cannot change"):
        books.move(user, "000198", "996", -1)
    with pytest.raises(InvariantError, match="less than nothing"):
        books.use(user, -1)


def test_more_than_a_field_holds_is_refused() -> None:
    office = opened()
    most = 10**16 - 1
    assert why(office, application("A1", product="C00002", amount=most, is_warned=True)) == ""
    PRODUCTS["C00002"] = product("C00002", nav=1)
    try:
        assert why(office, application("A2", product="C00002", amount=most)) == "amount_too_large"
    finally:
        PRODUCTS["C00002"] = product("C00002", nav=20_000)


# -- the whole ---------------------------------------------------------------------------------------------

ACCOUNTS = ("100000000001", "200000000002", "300000000003")
DISTRIBUTORS = ("996", "777")
serials = st.integers(1, 400).map(lambda number: f"S{number}")


class IssuerMachine(RuleBasedStateMachine):
    """Orders of any kind by a few holders; what is confirmed must be what is held."""

    def __init__(self) -> None:
        super().__init__()
        self.office = Office()
        self.confirmed: dict[tuple[str, str], Confirmation] = {}
        self.orders: dict[tuple[str, str], Application] = {}
        self.money: dict[str, int] = {}

    @initialize()
    def begin(self) -> None:
        for number, account in enumerate(ACCOUNTS[:2]):
            self.send(opening(f"B{number}", account))
            self.send(opening(f"B{number}", account, code="008", distributor="777"))
            self.send(application(f"C{number}", ta_account=account, amount=400_00))

    def send(self, *orders: Application) -> None:
        unique = list({order.serial: order for order in orders}.values())
        entries = dict(self.office.entries)
        waiting = [*self.office.waiting]
        answers = self.office.take(*unique)
        after, self.office.entries, self.office.waiting = self.office.entries, entries, waiting
        assert self.office.take(*unique) == answers, "the same package, the same bytes"
        assert self.office.entries == after
        for order, answer in zip(unique, answers, strict=True):
            self.note(order, answer)

    def note(self, order: Application, answer: Confirmation) -> None:
        key = (order.distributor, order.serial)
        before = self.orders.get(key)
        if before is not None and before != order:
            assert answer.reason == "duplicate_serial"
        elif answer.reason != "foreign_distributor":
            assert self.confirmed.setdefault(key, answer) == answer
            self.orders[key] = order

    @rule(serial=serials, account=st.sampled_from(ACCOUNTS), distributor=st.sampled_from(DISTRIBUTORS))
    def register(self, serial: str, account: str, distributor: str) -> None:
        code = Code.OPEN_ACCOUNT if distributor == "996" else Code.ADD_TRADING_ACCOUNT
        self.send(opening(serial, account, code=str(code), distributor=distributor))

    @rule(serial=serials, account=st.sampled_from(ACCOUNTS))
    def close(self, serial: str, account: str) -> None:
        self.send(application(serial, "002", ta_account=account, product=""))

    @rule(
        serial=serials,
        other=serials,
        account=st.sampled_from(ACCOUNTS),
        distributor=st.sampled_from(DISTRIBUTORS),
        code=st.sampled_from(["022", "020", "024", "036", "026", "027", "028"]),
        amount=st.integers(0, 500_00),
        volume=st.integers(0, 300_00),
        fund=st.sampled_from(["000198", "C00002", "C00003"]),
    )
    def trade(
        self, serial: str, other: str, account: str, distributor: str, code: str, amount: int, volume: int, fund: str
    ) -> None:
        there = "777" if distributor == "996" else "996"
        order = application(
            serial,
            code,
            ta_account=account,
            distributor=distributor,
            target_distributor=there,
            amount=amount,
            volume=volume,
            product=fund,
            target_product="C00002" if fund == "000198" else "000198",
            is_warned=True,
        )
        self.send(order, replace(order, serial=other))

    @precondition(lambda self: self.orders)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        self.send(self.orders[data.draw(st.sampled_from(sorted(self.orders)))])

    @rule(ratio=st.integers(1, 10_000))
    def allot(self, ratio: int) -> None:
        if self.office.books().ratio("C00003") is None:
            for answer in self.office.allot("C00003", ratio):
                self.finish(answer)

    def finish(self, answer: Confirmation) -> None:
        (key,) = [key for key, known in self.confirmed.items() if known.serial == answer.serial and not known.is_final][
            :1
        ]
        self.confirmed[key] = answer

    @invariant()
    def nothing_is_below_zero_and_units_are_conserved(self) -> None:
        held: dict[str, int] = {}
        uses: dict[str, int] = {}
        for entry in self.office.all():
            if isinstance(entry, HoldingEntry):
                assert entry.units >= 0
                held[entry.product] = held.get(entry.product, 0) + entry.units
                uses[entry.ta_account] = uses.get(entry.ta_account, 0) + (entry.units > 0)
            elif isinstance(entry, TakenEntry) and not entry.confirmation.is_final:
                account = entry.confirmation.ta_account
                uses[account] = uses.get(account, 0) + 1
        confirmed: dict[str, int] = {}
        for key, answer in self.confirmed.items():
            for fund, units in _effects(self.orders[key], answer):
                confirmed[fund] = confirmed.get(fund, 0) + units
        for fund in PRODUCTS:
            total = self.office.books().total(fund)
            assert held.get(fund, 0) == total.units_in - total.units_out == confirmed.get(fund, 0)
        for entry in self.office.all():
            if isinstance(entry, UserEntry):
                assert entry.in_use == uses.get(entry.ta_account, 0)


def _effects(order: Application, answer: Confirmation) -> list[tuple[str, int]]:
    if not answer.is_accepted:
        return []
    match answer.code:
        case "122" | "130":
            return [(order.product, answer.volume)]
        case "124":
            return [(order.product, -answer.volume)]
        case "136":
            return [(order.product, -order.volume), (order.target_product, answer.volume)]
        case _:
            return []


def test_units_are_conserved_whatever_is_applied_for() -> None:
    limits = settings(max_examples=40, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(IssuerMachine, settings=limits)


EXTREMES = st.sampled_from([0, 1, 99, 10**15, 10**16 - 1]) | st.integers(0, 10**16 - 1)
WILD = st.builds(
    replace,
    st.just(application("A1")),
    serial=st.from_regex(r"[A-Za-z0-9_-]{1,24}", fullmatch=True),
    code=st.sampled_from(list(Code)) | st.from_regex(r"[0-9]{3}", fullmatch=True),
    interface=st.sampled_from(["C-FUNDS", "F-FUNDS"]),
    product=st.sampled_from([*PRODUCTS, "F00001", ""]),
    target_product=st.sampled_from([*PRODUCTS, "F00001", ""]),
    ta_account=st.sampled_from(["100000000001", "200000000002", "", "x"]),
    distributor=st.sampled_from(["996", "777", "", "行行行"]),
    target_distributor=st.sampled_from(["996", "777", ""]),
    amount=EXTREMES,
    volume=EXTREMES,
    date=st.integers(0, 99_991_231),
    time=st.integers(0, 235_959),
    terms_version=st.integers(0, 3),
    is_warned=st.booleans(),
    investor=st.none() | st.just(ADULT) | st.just(replace(ADULT, birth_date=0, name="")),
)


@settings(max_examples=80)
@given(st.lists(WILD, min_size=1, max_size=6, unique_by=lambda order: order.serial), st.integers(1, 10**12))
def test_whatever_is_applied_for_is_answered_in_form(orders: list[Application], nav: int) -> None:
    office = opened()
    office.take(opening("J1", code="008", distributor="777"), application("A0", product="C00002", is_warned=True))
    products = {code: replace(item, nav=nav, terms_before=item.terms) for code, item in PRODUCTS.items()}
    sent = package(*orders)
    answers = Desk(office.books(), "bank-a", products, today=TODAY).confirm(sent)
    for order, answer in zip(orders, answers, strict=True):
        outcome = Outcome(order, answer)
        assert outcome_codec.decode_untrusted(outcome_codec.encode(outcome)) == outcome
        assert (answer.reason == "") == answer.is_accepted
        assert return_code(answer.reason) == answer.return_code != UNNAMED


def test_a_full_package_takes_no_time() -> None:
    """1,024 orders in at most 150 ms on an idle machine; this bound leaves room for a busy one."""
    office = Office()
    accounts = [f"1{number:011d}" for number in range(1024)]
    office.take(*(opening(f"R{number}", account) for number, account in enumerate(accounts)))
    orders = package(*(application(f"A{number}", ta_account=account) for number, account in enumerate(accounts)))
    books = office.books()
    begin = time.perf_counter()
    confirmations = Desk(books, "bank-a", PRODUCTS, today=TODAY).confirm(orders)
    duration = time.perf_counter() - begin
    assert all(item.is_accepted for item in confirmations)
    assert duration < 1.0, f"{duration * 1000:.0f} ms"
