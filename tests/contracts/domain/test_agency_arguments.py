"""Whatever the arguments, cooperation and evidence answer or refuse by a code of their own; neither ever breaks."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.ledger.errors import Revert
from consensus.ledger.receipt import OK
from contracts.runtime.arguments import Argument
from contracts.runtime.state import MemoryState
from tests.contracts.domain.agency import TERMS, VOTE_KEYS, Agency, key, make_agency
from tests.contracts.domain.support import shared_registry
from tests.contracts.support import START_MS

NAMES = ["bank-a", "bank-b", "issuer-c", "issuer-d", "issuer-f", "permission", "nobody"]
ROOT = b"r" * 32
BROKEN = ("contract_error", "out_of_steps")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)
HASHES = st.sampled_from([ROOT, bytes(32), b"o" * 32])
SIGNATURES = st.sampled_from([bytes(64), b"\xff" * 64, (1).to_bytes(32, "big") * 2])
KEYS = st.sampled_from([key(300).public.compressed, VOTE_KEYS["bank-a"].public.compressed, b"\2" + b"\xff" * 32])
ISSUERS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True).map(sorted)
FIELDS = st.fixed_dictionaries({name: st.just(value) | VALUES for name, value in TERMS.items()})
TIMES = st.sampled_from([0, START_MS, START_MS + 3_600_000, 2**53])
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "bank": st.sampled_from([*["bank-a"] * 15, *NAMES]),
    "issuer": st.sampled_from([*["issuer-c"] * 15, *NAMES]),
    "organisation": st.sampled_from(NAMES),
    "node": st.sampled_from([*NAMES, "spare-a"]),
    "issuers": ISSUERS,
    "interface": st.sampled_from(["C-FUNDS", "F-FUNDS"]),
    "product": st.sampled_from(["000198", "X"]),
    "product_type": st.sampled_from(["money-market", "a"]),
    "currency": st.just("156"),
    "subject": st.sampled_from(["product:000198", "product:X", "type:a"]),
    "terms": FIELDS | st.dictionaries(st.sampled_from([*TERMS, "more"]), VALUES, max_size=8),
    "signatures": ISSUERS.flatmap(lambda names: st.fixed_dictionaries(dict.fromkeys(names, SIGNATURES))),
    "valid_from_ms": TIMES,
    "valid_until_ms": TIMES,
    "effective_ms": TIMES,
    "expires_ms": TIMES,
    "date": st.sampled_from([19_000_101, 20_260_101]),
    "business_key": KEYS,
    "channel_key": KEYS,
    "key": KEYS,
    "signature": SIGNATURES,
    "orders_signature": SIGNATURES | st.just(b""),
    "answer_signature": SIGNATURES | st.just(b""),
    "outcome_root": HASHES | st.just(b""),
    "previous": HASHES | st.just(b""),
    "start": st.sampled_from(["", "a", "b/", "\0", "\u9999", "f" * 64]),
}
BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "bytes": HASHES,
    "int": st.sampled_from([1, 1, 1, 0, 2]),
    "text": st.sampled_from(["1", "2", ""]),
    "bool": st.booleans(),
}
CALLERS = ["bank-a", "bank-a", "issuer-c", "issuer-c", "issuer-f", "permission", "clerk-a"]
METHODS = [
    (contract, method)
    for contract in ("cooperation", "evidence")
    for method in shared_registry().newest()[["cooperation", "evidence"].index(contract)].methods.values()
]


@pytest.fixture(scope="module")
def agency() -> Agency:
    agency = make_agency()
    agency.open()
    agency.enact()
    agency.call("bank-a", "propose_terms", **agency.terms("bank-a", 2))
    agency.put_anchor("bank-a", ROOT)
    return agency


def values_of(argument: Argument) -> st.SearchStrategy[Any]:
    """What an argument may be, by its name, else by its type."""
    by_type = BY_TYPE.get(argument.type, VALUES)
    return by_type if (argument.name, argument.type) == ("start", "int") else BY_NAME.get(argument.name, by_type)


def asked(agency: Agency, contract: str, query: str, arguments: dict[str, Any]) -> str:
    """Ask a query; return what it was refused with, "" for an answer."""
    try:
        agency.chain.query(contract, query, **arguments)
    except Revert as refusal:
        return refusal.code
    return ""


@given(data=st.data())
@settings(max_examples=800, deadline=None)
def test_neither_contract_breaks(agency: Agency, data: st.DataObject) -> None:
    """Each example meets the same state: what it does is undone."""
    chain = agency.chain
    before = chain.state.entries()
    known = {name: [ROOT, *(item[name] for item in agency.query(f"{name}s"))] for name in ("application", "proposal")}
    contract, method = data.draw(st.sampled_from(METHODS))
    strategies = {item.name: values_of(item) for item in method.arguments}
    strategies |= {name: st.sampled_from(known[name]) for name in known if name in strategies}
    if strategies and data.draw(st.integers(0, 3)) == 3:
        strategies[data.draw(st.sampled_from(sorted(strategies)))] = VALUES
    arguments = {name: data.draw(strategy, name) for name, strategy in strategies.items()}
    if method.is_query:
        assert asked(agency, contract, method.name, arguments) not in BROKEN
        return
    receipt = chain.call(data.draw(st.sampled_from(CALLERS)), contract, method.name, **arguments)
    after, chain.state = chain.state.entries(), MemoryState(before)
    assert receipt.code not in BROKEN, chain.logs[-1:]
    if receipt.status != OK:
        assert all(name.startswith(b"lanes/") for name in after if before.get(name) != after[name])
