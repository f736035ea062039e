"""Shorthand for tests of one contract, over the test chain of the real executor."""

from functools import cache
from typing import Any

import pytest

from consensus.ledger.codec import decode
from consensus.ledger.errors import Revert
from consensus.ledger.receipt import Receipt
from contracts.runtime.registry import Registry
from tests.contracts.support import KEYS, Chain, make_registry


@cache
def shared_registry() -> Registry:
    """Return the shipped contracts, loaded once for all tests."""
    return make_registry()


def address(name: str) -> bytes:
    """Return the address of an account that every test chain begins with."""
    return KEYS[name].public.address


class Door:
    """One contract of a chain; every call is a block of its own."""

    def __init__(self, contract: str, chain: Chain | None = None) -> None:
        self.chain = chain or Chain(registry=shared_registry())
        self.contract = contract
        self.receipt: Receipt | None = None

    def call(self, sender: str, method: str, **arguments: Any) -> Any:
        """Commit one call that must succeed and return its value; ``receipt`` then tells of it."""
        self.receipt = self.chain.call(sender, self.contract, method, **arguments)
        assert self.receipt.code == "", f"{method} failed with {self.receipt.code}: {self.chain.logs[-1:]}"
        return decode(self.receipt.values[0])

    def events(self) -> list[tuple[str, Any]]:
        """Return name and fields of the last call's events."""
        assert self.receipt is not None
        return [(event.name, decode(event.data)) for event in self.receipt.events]

    def query(self, method: str, **arguments: Any) -> Any:
        """Return the answer of a query; raises Revert."""
        return self.chain.query(self.contract, method, **arguments)

    def fails(self, code: str, sender: str, method: str, **arguments: Any) -> None:
        """Commit one call and see it fail with this code and leave the contract's state as it was."""
        before = self.records()
        assert self.chain.fails(sender, self.contract, method, **arguments) == code
        assert self.records() == before

    def refuses(self, code: str, method: str, **arguments: Any) -> None:
        """Ask a query and see it fail with this code."""
        with pytest.raises(Revert) as refusal:
            self.query(method, **arguments)
        assert refusal.value.code == code

    def records(self) -> dict[bytes, bytes]:
        """Return the contract's whole state."""
        prefix = self.contract.encode() + b"/"
        return {key: value for key, value in self.chain.state.entries().items() if key.startswith(prefix)}
