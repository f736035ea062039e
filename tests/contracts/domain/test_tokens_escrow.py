"""tokens: what a contract holds for its callers under keys of its own, and that nobody else moves it."""

from typing import Any

import pytest

from consensus.ledger.codec import Value
from tests.contracts.domain.support import Door, address
from tests.contracts.support import Chain, make_registry

VAULT = """
from typing import Any

from consensus.ledger.codec import Value
from contracts.runtime.contract import Context, Contract, method


class Vault(Contract):
    name = "NAME"
    version = 1

    @method
    def put(self, context: Context, unit: str, key: str, amount: int) -> Any:
        return context.call("tokens", "escrow", unit=unit, key=key, amount=amount)

    @method
    def pay(self, context: Context, unit: str, key: str, to: bytes, amount: int) -> Any:
        return context.call("tokens", "pay_escrow", unit=unit, key=key, to=to, amount=amount)
"""
"""A contract that puts aside and pays whatever it is told to."""


@pytest.fixture
def chain() -> Chain:
    chain = Chain(make_registry(VAULT.replace("NAME", "vault"), VAULT.replace("NAME", "safe")))
    chain.ok("issuer", "tokens", "define", unit="EUR")
    chain.ok("issuer", "tokens", "issue", unit="EUR", to=address("alice"), amount=1_000)
    return chain


def available(chain: Chain, name: str) -> int:
    balance: Any = chain.query("tokens", "balance", unit="EUR", account=address(name))
    assert balance["reserved"] == 0
    amount: int = balance["available"]
    return amount


def held(chain: Chain, contract: str = "vault", key: str = "k") -> Value:
    return chain.query("tokens", "escrowed", unit="EUR", contract=contract, key=key)


def test_a_contract_holds_and_pays(chain: Chain) -> None:
    assert chain.ok("alice", "vault", "put", unit="EUR", key="k", amount=300) == 300
    assert chain.ok("alice", "vault", "put", unit="EUR", key="k", amount=50) == 350
    assert (available(chain, "alice"), held(chain)) == (650, 350)
    assert chain.ok("bob", "vault", "pay", unit="EUR", key="k", to=address("carol"), amount=100) == 250
    assert (available(chain, "carol"), held(chain)) == (100, 250)
    assert chain.ok("bob", "vault", "pay", unit="EUR", key="k", to=address("alice"), amount=250) == 0
    assert (available(chain, "alice"), held(chain)) == (900, 0)
    assert not [key for key in chain.state.entries() if key.startswith(b"tokens/escrow/")]
    assert chain.ok("alice", "vault", "put", unit="EUR", key="k", amount=1) == 1


def test_a_contract_pays_what_it_holds_itself_under_that_key_and_no_more(chain: Chain) -> None:
    chain.ok("alice", "vault", "put", unit="EUR", key="k", amount=300)
    to: dict[str, Value] = {"to": bytes(address("bob"))}
    for contract, key, amount in (("vault", "k", 301), ("vault", "other", 1), ("safe", "k", 1)):
        code = chain.fails("alice", contract, "pay", unit="EUR", key=key, amount=amount, **to)
        assert code == "insufficient_escrow"
    assert chain.fails("alice", "vault", "pay", unit="EUR", key="k", to=b"\1" * 20, amount=1) == "unknown_account"
    assert chain.fails("alice", "vault", "pay", unit="EUR", key="k", amount=0, **to) == "bad_arguments"
    assert (held(chain), available(chain, "bob")) == (300, 0)


def test_only_contracts_put_and_pay(chain: Chain) -> None:
    """A transaction's own call names no contract, and so none whose money it could touch."""
    chain.ok("alice", "vault", "put", unit="EUR", key="k", amount=300)
    assert chain.fails("alice", "tokens", "escrow", unit="EUR", key="k", amount=1) == "not_allowed"
    paying: dict[str, Value] = {"unit": "EUR", "key": "k", "to": bytes(address("alice")), "amount": 1}
    assert chain.fails("alice", "tokens", "pay_escrow", **paying) == "not_allowed"
    assert held(chain) == 300


def test_only_what_is_available_is_put(chain: Chain) -> None:
    chain.ok("alice", "tokens", "reserve", unit="EUR", key="r", amount=800)
    assert chain.fails("alice", "vault", "put", unit="EUR", key="k", amount=201) == "insufficient_funds"
    assert chain.fails("alice", "vault", "put", unit="NONE", key="k", amount=1) == "unknown_unit"
    assert chain.fails("alice", "vault", "put", unit="EUR", key="k", amount=0) == "bad_arguments"
    assert chain.ok("alice", "vault", "put", unit="EUR", key="k", amount=200) == 200


def test_escrows_are_listed_for_those_who_add_a_units_amounts_up(chain: Chain) -> None:
    for contract, key, amount in (("vault", "b", 2), ("vault", "a/x", 1), ("safe", "a", 3)):
        chain.ok("alice", contract, "put", unit="EUR", key=key, amount=amount)
    listed = [
        {"contract": "safe", "key": "a", "amount": 3},
        {"contract": "vault", "key": "a/x", "amount": 1},
        {"contract": "vault", "key": "b", "amount": 2},
    ]
    assert chain.query("tokens", "escrows", unit="EUR") == listed
    assert chain.query("tokens", "escrows", unit="EUR", start="vault/a/x\0") == listed[2:]
    assert chain.query("tokens", "escrows", unit="EUR", limit=1) == listed[:1]
    assert chain.query("tokens", "escrows", unit="NONE") == []


def test_an_escrow_tells_what_moved(chain: Chain) -> None:
    door = Door("vault", chain)
    door.call("alice", "put", unit="EUR", key="k", amount=300)
    fields: dict[str, Any] = {"unit": "EUR", "contract": "vault", "key": "k", "amount": 300}
    assert door.events() == [("escrowed", {**fields, "holder": address("alice")})]
    door.call("bob", "pay", unit="EUR", key="k", to=address("bob"), amount=300)
    assert door.events() == [("escrow_paid", {**fields, "to": address("bob")})]
