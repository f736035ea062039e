"""tokens: every method, every refusal, and a machine that plays it against a model."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from consensus.ledger.codec import INTEGER_MAX, encode
from contracts.runtime.contract import AMOUNT_MAX
from tests.contracts.domain.support import Door, address

HOLDERS = ["issuer", "alice", "bob"]


@pytest.fixture
def tokens() -> Door:
    door = Door("tokens")
    door.call("issuer", "define", unit="EUR", decimals=2, description="Euro")
    door.call("issuer", "issue", unit="EUR", to=address("alice"), amount=1_000)
    return door


def balance(tokens: Door, account: str) -> tuple[int, int]:
    answer = tokens.query("balance", unit="EUR", account=address(account))
    return answer["available"], answer["reserved"]


def test_unit_and_supply(tokens: Door) -> None:
    expected = {"unit": "EUR", "issuer": address("issuer"), "decimals": 2, "description": "Euro", "supply": 1_000}
    assert tokens.query("unit", unit="EUR") == expected
    tokens.call("issuer", "define", unit="PTS")
    assert [unit["unit"] for unit in tokens.query("units")] == ["EUR", "PTS"]
    assert [unit["unit"] for unit in tokens.query("units", start="F")] == ["PTS"]
    assert [unit["unit"] for unit in tokens.query("units", limit=1)] == ["EUR"]


def test_transfer_touches_two_balances_and_nothing_else(tokens: Door) -> None:
    before = tokens.records()
    tokens.call("alice", "transfer", unit="EUR", to=address("bob"), amount=300, memo="invoice 7")
    after = tokens.records()
    changed = {key for key in after if after[key] != before.get(key)}
    assert changed == {f"tokens/balance/EUR/{address(name).hex()}".encode() for name in ("alice", "bob")}
    assert (balance(tokens, "alice"), balance(tokens, "bob")) == ((700, 0), (300, 0))
    name, data = tokens.events()[0]
    assert name == "transferred"
    assert data == {
        "unit": "EUR",
        "sender": address("alice"),
        "to": address("bob"),
        "amount": 300,
        "memo": "invoice 7",
    }


def test_transfer_to_oneself_changes_nothing_but_needs_the_funds(tokens: Door) -> None:
    before = tokens.records()
    tokens.call("alice", "transfer", unit="EUR", to=address("alice"), amount=1_000)
    assert tokens.records() == before
    tokens.fails("insufficient_funds", "alice", "transfer", unit="EUR", to=address("alice"), amount=1_001)


def test_reserve_commit_release(tokens: Door) -> None:
    tokens.call("alice", "reserve", unit="EUR", key="order/7", amount=400)
    tokens.call("alice", "reserve", unit="EUR", key="order/8", amount=100)
    assert balance(tokens, "alice") == (500, 500)
    tokens.fails("insufficient_funds", "alice", "transfer", unit="EUR", to=address("bob"), amount=501)
    assert tokens.query("reservation", unit="EUR", account=address("alice"), key="order/7") == 400
    assert tokens.call("alice", "commit", unit="EUR", key="order/7", to=address("bob")) == 400
    assert tokens.call("alice", "release", unit="EUR", key="order/8") == 100
    assert (balance(tokens, "alice"), balance(tokens, "bob")) == ((600, 0), (400, 0))
    assert tokens.query("reservation", unit="EUR", account=address("alice"), key="order/7") == 0
    for method in ("commit", "release"):
        arguments = {"to": address("bob")} if method == "commit" else {}
        tokens.fails("reservation_closed", "alice", method, unit="EUR", key="order/7", **arguments)
    tokens.fails("reservation_exists", "alice", "reserve", unit="EUR", key="order/7", amount=1)


def test_commit_to_oneself(tokens: Door) -> None:
    tokens.call("alice", "reserve", unit="EUR", key="k", amount=400)
    tokens.call("alice", "commit", unit="EUR", key="k", to=address("alice"))
    assert balance(tokens, "alice") == (1_000, 0)


def test_a_reservation_is_its_holders_alone(tokens: Door) -> None:
    tokens.call("alice", "reserve", unit="EUR", key="k", amount=400)
    tokens.fails("unknown_reservation", "bob", "commit", unit="EUR", key="k", to=address("bob"))
    tokens.fails("unknown_reservation", "bob", "release", unit="EUR", key="k")


def test_names_with_a_slash_reach_no_foreign_record(tokens: Door) -> None:
    """unit "EUR/HOLDER" with key "k" would spell the record of unit "EUR" with key "CALLER/k"."""
    tokens.call("alice", "reserve", unit="EUR", key=f"{address('bob').hex()}/k", amount=400)
    unit = f"EUR/{address('alice').hex()}"
    tokens.fails("bad_arguments", "bob", "commit", unit=unit, key="k", to=address("bob"))
    tokens.fails("bad_arguments", "bob", "release", unit=unit, key="k")


def test_burn_and_overflow(tokens: Door) -> None:
    tokens.call("alice", "transfer", unit="EUR", to=address("issuer"), amount=600)
    assert tokens.call("issuer", "burn", unit="EUR", amount=600) == 400
    tokens.fails("insufficient_funds", "issuer", "burn", unit="EUR", amount=1)
    tokens.chain.state.apply({b"tokens/supply/EUR": encode(INTEGER_MAX - 10)})
    tokens.fails("overflow", "issuer", "issue", unit="EUR", to=address("alice"), amount=11)
    assert tokens.call("issuer", "issue", unit="EUR", to=address("alice"), amount=10) == INTEGER_MAX


def test_who_may(tokens: Door) -> None:
    tokens.fails("not_allowed", "alice", "define", unit="USD")
    tokens.fails("unit_exists", "issuer", "define", unit="EUR")
    tokens.fails("not_allowed", "alice", "issue", unit="EUR", to=address("alice"), amount=1)
    tokens.fails("not_allowed", "alice", "burn", unit="EUR", amount=1)


def test_recipients_are_accounts(tokens: Door) -> None:
    stranger = b"\1" * 20
    tokens.fails("unknown_account", "alice", "transfer", unit="EUR", to=stranger, amount=1)
    tokens.fails("unknown_account", "issuer", "issue", unit="EUR", to=stranger, amount=1)
    tokens.call("alice", "reserve", unit="EUR", key="k", amount=1)
    tokens.fails("unknown_account", "alice", "commit", unit="EUR", key="k", to=stranger)


def test_unknown_unit(tokens: Door) -> None:
    to = address("bob")
    tokens.fails("unknown_unit", "alice", "transfer", unit="USD", to=to, amount=1)
    tokens.fails("unknown_unit", "alice", "reserve", unit="USD", key="k", amount=1)
    tokens.fails("unknown_unit", "issuer", "issue", unit="USD", to=to, amount=1)
    tokens.fails("unknown_unit", "issuer", "burn", unit="USD", amount=1)
    tokens.fails("unknown_reservation", "alice", "commit", unit="USD", key="k", to=to)
    tokens.refuses("unknown_unit", "unit", unit="USD")
    tokens.refuses("unknown_unit", "balance", unit="USD", account=to)
    tokens.refuses("unknown_unit", "balances", unit="USD")
    tokens.refuses("unknown_reservation", "reservation", unit="EUR", account=to, key="k")


@pytest.mark.parametrize("amount", [0, -1, AMOUNT_MAX + 1, INTEGER_MAX, "1", True, None, b"\1"])
def test_bad_amounts(tokens: Door, amount: Any) -> None:
    tokens.fails("bad_arguments", "alice", "transfer", unit="EUR", to=address("bob"), amount=amount)


@pytest.mark.parametrize("unit", ["", "-EUR", "a/b", "a b", "EUR\n", "€", "x" * 65])
def test_bad_units(tokens: Door, unit: str) -> None:
    tokens.fails("bad_arguments", "issuer", "define", unit=unit)


def test_balances_come_in_pages(tokens: Door) -> None:
    tokens.call("alice", "transfer", unit="EUR", to=address("bob"), amount=1)
    tokens.call("alice", "reserve", unit="EUR", key="k", amount=9)
    expected = sorted([(address("alice"), 990, 9), (address("bob"), 1, 0)])
    page = tokens.query("balances", unit="EUR")
    assert [(item["account"], item["available"], item["reserved"]) for item in page] == expected
    assert tokens.query("balances", unit="EUR", start=expected[1][0].hex()) == page[1:]
    assert tokens.query("balances", unit="EUR", limit=1) == page[:1]


class TokensMachine(RuleBasedStateMachine):
    """Random calls against a model of plain dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Door("tokens")
        self.tokens.call("issuer", "define", unit="EUR")
        self.available = dict.fromkeys(HOLDERS, 100)
        for holder in HOLDERS:
            self.tokens.call("issuer", "issue", unit="EUR", to=address(holder), amount=100)
        self.reservations: dict[tuple[str, str], int] = {}
        self.closed: set[tuple[str, str]] = set()
        self.supply = 300

    def expect(self, code: str, sender: str, method: str, **arguments: Any) -> bool:
        """Call; tell whether it succeeded, after checking that it failed exactly as foretold."""
        if code:
            self.tokens.fails(code, sender, method, unit="EUR", **arguments)
        else:
            self.tokens.call(sender, method, unit="EUR", **arguments)
        return not code

    holders = st.sampled_from(HOLDERS)
    keys = st.sampled_from(["a", "b"])
    amounts = st.integers(1, 60)

    @rule(to=holders, amount=amounts)
    def issue(self, to: str, amount: int) -> None:
        self.expect("", "issuer", "issue", to=address(to), amount=amount)
        self.available[to] += amount
        self.supply += amount

    @rule(amount=amounts)
    def burn(self, amount: int) -> None:
        code = "" if self.available["issuer"] >= amount else "insufficient_funds"
        if self.expect(code, "issuer", "burn", amount=amount):
            self.available["issuer"] -= amount
            self.supply -= amount

    @rule(sender=holders, to=holders, amount=amounts)
    def transfer(self, sender: str, to: str, amount: int) -> None:
        code = "" if self.available[sender] >= amount else "insufficient_funds"
        if self.expect(code, sender, "transfer", to=address(to), amount=amount):
            self.available[sender] -= amount
            self.available[to] += amount

    @rule(sender=holders, key=keys, amount=amounts)
    def reserve(self, sender: str, key: str, amount: int) -> None:
        code = "" if self.available[sender] >= amount else "insufficient_funds"
        if (sender, key) in self.reservations or (sender, key) in self.closed:
            code = "reservation_exists"
        if self.expect(code, sender, "reserve", key=key, amount=amount):
            self.available[sender] -= amount
            self.reservations[sender, key] = amount

    def closing_code(self, sender: str, key: str) -> str:
        if (sender, key) in self.closed:
            return "reservation_closed"
        return "" if (sender, key) in self.reservations else "unknown_reservation"

    @rule(sender=holders, key=keys, to=holders)
    def commit(self, sender: str, key: str, to: str) -> None:
        if self.expect(self.closing_code(sender, key), sender, "commit", key=key, to=address(to)):
            self.available[to] += self.reservations.pop((sender, key))
            self.closed.add((sender, key))

    @rule(sender=holders, key=keys)
    def release(self, sender: str, key: str) -> None:
        if self.expect(self.closing_code(sender, key), sender, "release", key=key):
            self.available[sender] += self.reservations.pop((sender, key))
            self.closed.add((sender, key))

    @rule(data=st.data())
    @precondition(lambda self: self.supply)
    def overdraw(self, data: st.DataObject) -> None:
        sender = data.draw(self.holders)
        self.expect("insufficient_funds", sender, "transfer", to=address("alice"), amount=self.supply + 1)

    @invariant()
    def conserved(self) -> None:
        total = 0
        for holder in HOLDERS:
            answer = self.tokens.query("balance", unit="EUR", account=address(holder))
            reserved = sum(amount for (owner, _), amount in self.reservations.items() if owner == holder)
            assert answer == {"available": self.available[holder], "reserved": reserved}
            assert answer["available"] >= 0
            total += answer["available"] + answer["reserved"]
        assert total == self.supply == self.tokens.query("unit", unit="EUR")["supply"]


TestTokensMachine = TokensMachine.TestCase
TestTokensMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
