"""Whatever the arguments, payees answers or refuses by a code of its own; it never breaks."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.ledger.errors import Revert
from consensus.ledger.receipt import OK
from contracts.runtime.arguments import Argument
from contracts.runtime.state import MemoryState
from tests.contracts.domain.payees import MEASUREMENT, ROLES, Payees, identity, key, make_payees

BROKEN = ("contract_error", "out_of_steps")
NAMES = st.sampled_from([*["wallet-p"] * 9, *ROLES, "nobody"])
SIGNATURES = st.sampled_from([bytes(64), b"\xff" * 64, (1).to_bytes(32, "big") * 2])
KEYS = st.sampled_from([key(100).public.compressed, key(900).public.compressed, b"\2" + b"\xff" * 32])
ENVIRONMENTS = st.lists(st.sampled_from(["bank-a", "issuer-c", "nowhere"]), min_size=1, max_size=3, unique=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "identity": st.sampled_from([identity(0), identity(0), identity(1)]),
    "server": NAMES,
    "name": st.sampled_from(["bank-a", "issuer-c", "nowhere"]),
    "wraps": ENVIRONMENTS.map(lambda names: dict.fromkeys(names, b"wrap")),
    "signatures": ENVIRONMENTS.flatmap(lambda names: st.fixed_dictionaries(dict.fromkeys(names, SIGNATURES))),
    "measurement": st.sampled_from([MEASUREMENT, bytes(32)]),
    "ciphertext": st.sampled_from([b"c", bytes(4_096)]),
    "start": st.sampled_from(["", "a", "b/", "\0", "\u9999", "f" * 64]),
    "limit": st.sampled_from([1, 100, 0]),
    **dict.fromkeys(("key", "new_key", "exchange_key", "signing_key"), KEYS),
    **dict.fromkeys(
        ("signature", "old_signature", "new_signature", "platform_signature", "merchant_signature"), SIGNATURES
    ),
}
BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "bytes": st.sampled_from([bytes(32), b"h" * 32]),
    "int": st.sampled_from([1, 2, 3, 0, 999_999, 2**63 - 1]),
    "text": st.sampled_from(["1", ""]),
    "bool": st.booleans(),
}


@pytest.fixture(scope="module")
def payees() -> Payees:
    payees = make_payees()
    for server in ("wallet-p", "wallet-q"):
        payees.call(server, "add_record", **payees.record(server=server))
    payees.call("wallet-q", "remove_record", **payees.removal(2, by="platform", server="wallet-q"))
    return payees


def values_of(argument: Argument) -> st.SearchStrategy[Any]:
    """What an argument may be, by its name, else by its type."""
    return BY_NAME.get(argument.name, BY_TYPE.get(argument.type, VALUES))


def asked(payees: Payees, query: str, arguments: dict[str, Any]) -> str:
    """Ask a query; return what it was refused with, "" for an answer."""
    try:
        payees.query(query, **arguments)
    except Revert as refusal:
        return refusal.code
    return ""


@given(data=st.data())
@settings(max_examples=600, deadline=None)
def test_the_contract_never_breaks(payees: Payees, data: st.DataObject) -> None:
    """Each example meets the same state: what it does is undone."""
    chain = payees.chain
    contract = chain.registry.get("payees", 1)
    assert contract is not None
    method = data.draw(st.sampled_from(sorted(contract.methods.values(), key=lambda item: item.name)))
    strategies = {item.name: values_of(item) for item in method.arguments}
    if strategies and data.draw(st.integers(0, 3)) == 3:
        strategies[data.draw(st.sampled_from(sorted(strategies)))] = VALUES
    arguments = {name: data.draw(strategy, name) for name, strategy in strategies.items()}
    if method.is_query:
        assert asked(payees, method.name, arguments) not in BROKEN
        return
    before = chain.state.entries()
    receipt = chain.call(data.draw(NAMES.filter(lambda name: name != "nobody")), "payees", method.name, **arguments)
    after, chain.state = chain.state.entries(), MemoryState(before)
    assert receipt.code not in BROKEN, chain.logs[-1:]
    if receipt.status != OK:
        assert all(name.startswith(b"lanes/") for name in after if before.get(name) != after[name])
