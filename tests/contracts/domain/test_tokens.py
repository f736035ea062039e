"""tokens: every method, every refusal, and a machine that plays it against a model."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from consensus.ledger.codec import INTEGER_MAX, encode
from consensus.ledger.errors import PeerError
from contracts.runtime.contract import AMOUNT_MAX
from tests.contracts.domain.support import Door, address

HOLDERS = ["issuer", "alice", "bob"]
STRANGER = b"\1" * 20


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
    tokens.fails("unknown_account", "alice", "transfer", unit="EUR", to=STRANGER, amount=1)
    tokens.fails("unknown_account", "issuer", "issue", unit="EUR", to=STRANGER, amount=1)
    tokens.call("alice", "reserve", unit="EUR", key="k", amount=1)
    tokens.fails("unknown_account", "alice", "commit", unit="EUR", key="k", to=STRANGER)


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


def deliver(tokens: Door, event: str = "e-1", *, fails: str = "", **changed: Any) -> None:
    """Deliver 300 of alice's to bob under the agent carol, or see it fail."""
    terms = {"unit": "EUR", "to": address("bob"), "amount": 300, "event": event, "agent": address("carol")}
    if fails:
        tokens.fails(fails, "alice", "deliver", **{**terms, **changed})
    else:
        tokens.call("alice", "deliver", **{**terms, **changed})


def lien_of(**changed: Any) -> dict[str, Any]:
    lien = {"seller": address("alice"), "event": "e-1", "unit": "EUR", "to": address("bob"), "amount": 300}
    return {**lien, "agent": address("carol"), "status": "HELD", **changed}


def test_what_is_delivered_is_the_buyers_and_out_of_its_hands(tokens: Door) -> None:
    deliver(tokens)
    name, data = tokens.events()[0]
    assert name == "delivered"
    assert data == {key: value for key, value in lien_of().items() if key != "status"}
    assert (balance(tokens, "alice"), balance(tokens, "bob")) == ((700, 0), (0, 300))
    assert tokens.query("lien", seller=address("alice"), event="e-1") == lien_of()
    tokens.fails("insufficient_funds", "bob", "transfer", unit="EUR", to=address("carol"), amount=1)
    tokens.fails("unknown_reservation", "bob", "release", unit="EUR", key="e-1")
    for name in ("alice", "bob", "issuer"):
        for method in ("lift", "give_back"):
            tokens.fails("not_allowed", name, method, seller=address("alice"), event="e-1")


@pytest.mark.parametrize(
    ("method", "told", "status", "ends"),
    [
        ("lift", "lifted", "LIFTED", ((700, 0), (300, 0))),
        ("give_back", "given_back", "GIVEN_BACK", ((1_000, 0), (0, 0))),
    ],
)
def test_a_lien_ends_once(tokens: Door, method: str, told: str, status: str, ends: Any) -> None:
    deliver(tokens)
    assert tokens.call("carol", method, seller=address("alice"), event="e-1") == 300
    said = {key: value for key, value in lien_of().items() if key not in {"status", "agent"}}
    assert tokens.events() == [(told, said)]
    assert (balance(tokens, "alice"), balance(tokens, "bob")) == ends
    assert tokens.query("lien", seller=address("alice"), event="e-1") == lien_of(status=status)
    for again in ("lift", "give_back"):
        tokens.fails("lien_closed", "carol", again, seller=address("alice"), event="e-1")
    deliver(tokens, fails="lien_exists")


def test_an_event_serves_each_seller_once(tokens: Door) -> None:
    deliver(tokens)
    deliver(tokens, fails="lien_exists")
    deliver(tokens, fails="lien_exists", to=address("issuer"), amount=1)
    tokens.call("issuer", "issue", unit="EUR", to=address("bob"), amount=50)
    tokens.call("bob", "deliver", unit="EUR", to=address("alice"), amount=50, event="e-1", agent=address("carol"))
    assert tokens.call("carol", "lift", seller=address("bob"), event="e-1") == 50
    assert tokens.query("lien", seller=address("alice"), event="e-1") == lien_of()


def test_liens_beside_reservations(tokens: Door) -> None:
    """A holder's reserved amount is one number; ending a lien leaves what the holder set aside by itself."""
    tokens.call("issuer", "issue", unit="EUR", to=address("bob"), amount=50)
    tokens.call("bob", "reserve", unit="EUR", key="e-1", amount=50)
    deliver(tokens)
    assert balance(tokens, "bob") == (0, 350)
    tokens.call("carol", "give_back", seller=address("alice"), event="e-1")
    assert balance(tokens, "bob") == (0, 50)
    assert tokens.call("bob", "release", unit="EUR", key="e-1") == 50


def test_a_delivery_needs_three_accounts(tokens: Door) -> None:
    deliver(tokens, fails="same_account", to=address("alice"))
    deliver(tokens, fails="same_account", agent=address("alice"))
    deliver(tokens, fails="same_account", agent=address("bob"))
    deliver(tokens, fails="unknown_account", to=STRANGER)
    deliver(tokens, fails="unknown_account", agent=STRANGER)


def test_a_delivery_of_what_is_not_there(tokens: Door) -> None:
    deliver(tokens, fails="insufficient_funds", amount=1_001)
    deliver(tokens, fails="unknown_unit", unit="USD")
    tokens.call("alice", "reserve", unit="EUR", key="k", amount=701)
    deliver(tokens, fails="insufficient_funds")
    tokens.fails("unknown_lien", "carol", "lift", seller=address("alice"), event="e-1")
    tokens.fails("unknown_lien", "carol", "give_back", seller=address("alice"), event="e-1")
    tokens.refuses("unknown_lien", "lien", seller=address("alice"), event="e-1")


@pytest.mark.parametrize("amount", [0, -1, AMOUNT_MAX + 1, INTEGER_MAX, "1", True, None, b"\1"])
def test_bad_amounts_of_a_delivery(tokens: Door, amount: Any) -> None:
    deliver(tokens, fails="bad_arguments", amount=amount)


@pytest.mark.parametrize("event", ["", "x" * 65, 7, None])
def test_bad_events_of_a_delivery(tokens: Door, event: Any) -> None:
    deliver(tokens, event, fails="bad_arguments")


def test_the_largest_supply_passes_through_a_lien(tokens: Door) -> None:
    """Balances of one unit add up to at most 2^63 - 1, so that no delivery overflows."""
    for holder in ("alice", "bob"):
        half = encode([INTEGER_MAX // 2, 0])
        tokens.chain.state.apply({f"tokens/balance/EUR/{address(holder).hex()}".encode(): half})
    tokens.chain.state.apply({b"tokens/supply/EUR": encode(INTEGER_MAX)})
    deliver(tokens, amount=AMOUNT_MAX)
    assert tokens.call("carol", "lift", seller=address("alice"), event="e-1") == AMOUNT_MAX
    assert balance(tokens, "bob") == (INTEGER_MAX // 2 + AMOUNT_MAX, 0)


def test_a_suspension_stops_acts_and_not_claims(tokens: Door) -> None:
    """A suspended buyer still receives, and what it received is lifted or goes back; a suspended agent acts no more."""
    deliver(tokens, "e-1")
    deliver(tokens, "e-2")
    tokens.chain.ok("admin-a", "membership", "suspend_account", account=address("bob"))
    deliver(tokens, "e-3")
    tokens.call("carol", "lift", seller=address("alice"), event="e-1")
    tokens.call("carol", "give_back", seller=address("alice"), event="e-2")
    tokens.chain.ok("admin-b", "membership", "suspend_account", account=address("carol"))
    with pytest.raises(PeerError) as refusal:
        tokens.call("carol", "lift", seller=address("alice"), event="e-3")
    assert refusal.value.code == "account_suspended"


def test_liens_come_in_pages_of_one_seller(tokens: Door) -> None:
    for event in ("b", "a", "c"):
        deliver(tokens, event)
    assert tokens.query("liens", seller=address("alice"), start="b") == [lien_of(event="b"), lien_of(event="c")]
    assert tokens.query("liens", seller=address("alice"), limit=1) == [lien_of(event="a")]
    assert tokens.query("liens", seller=address("bob")) == []


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
        self.liens: dict[tuple[str, str], tuple[str, int]] = {}
        self.ended: set[tuple[str, str]] = set()
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

    @rule(sender=holders, to=holders, event=keys, amount=amounts)
    def deliver(self, sender: str, to: str, event: str, amount: int) -> None:
        code = "" if self.available[sender] >= amount else "insufficient_funds"
        if (sender, event) in self.liens or (sender, event) in self.ended:
            code = "lien_exists"
        code = "same_account" if sender == to else code
        if self.expect(code, sender, "deliver", to=address(to), amount=amount, event=event, agent=address("carol")):
            self.available[sender] -= amount
            self.liens[sender, event] = (to, amount)

    @rule(
        seller=holders,
        event=keys,
        method=st.sampled_from(["lift", "give_back"]),
        by=st.sampled_from([*HOLDERS, "carol"]),
    )
    def end_lien(self, seller: str, event: str, method: str, by: str) -> None:
        arguments = {"seller": address(seller), "event": event}
        if (seller, event) not in self.liens:
            code = "unknown_lien"
            if (seller, event) in self.ended:
                code = "lien_closed" if by == "carol" else "not_allowed"
            self.tokens.fails(code, by, method, **arguments)
        elif by != "carol":
            self.tokens.fails("not_allowed", by, method, **arguments)
        else:
            to, amount = self.liens.pop((seller, event))
            assert self.tokens.call(by, method, **arguments) == amount
            self.available[to if method == "lift" else seller] += amount
            self.ended.add((seller, event))

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
            reserved += sum(amount for buyer, amount in self.liens.values() if buyer == holder)
            assert answer == {"available": self.available[holder], "reserved": reserved}
            assert answer["available"] >= 0
            total += answer["available"] + answer["reserved"]
        assert total == self.supply == self.tokens.query("unit", unit="EUR")["supply"]


TestTokensMachine = TokensMachine.TestCase
TestTokensMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
