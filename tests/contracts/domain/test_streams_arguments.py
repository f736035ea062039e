"""Whatever the arguments, streams answers or refuses by a code of its own; it never breaks."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.ledger.errors import Revert
from consensus.ledger.receipt import OK
from contracts.runtime.arguments import Argument
from contracts.runtime.state import MemoryState
from tests.contracts.domain.streams import PARTIES, Streams, id_of

BROKEN = ("contract_error", "out_of_steps")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)
INTEGERS = st.sampled_from([0, 1, 40, 900, 1_000, 60_000, 200_000, 10**15, 2**53, 2**63 - 1])


@pytest.fixture(scope="module")
def streams() -> Streams:
    """Three streams: open, burned, closed."""
    streams = Streams()
    for number in range(3):
        streams.open(streams.terms(number))
    streams.burn(id_of(streams.terms(1)))
    streams.call("alice", "close", **streams.consent(id_of(streams.terms(2)), 5, by="shop"))
    return streams


def ids(streams: Streams) -> st.SearchStrategy[bytes]:
    """Ids of streams, and one that is of none."""
    return st.sampled_from([*(bytes(id_of(streams.terms(number))) for number in range(3)), bytes(32)])


def raws(streams: Streams) -> st.SearchStrategy[bytes]:
    """Iterations, one with a byte changed, other transactions, and other bytes."""
    stream = bytes(id_of(streams.terms(1)))
    good = streams.iteration(stream, 40).raw
    other = streams.iteration(bytes(32), 1).raw
    return st.sampled_from([good, good, other, good[:-1], b"\xc0"]) | st.binary(min_size=1, max_size=50)


def values_of(streams: Streams, argument: Argument) -> st.SearchStrategy[Any]:
    """What an argument may be, by its name, else by its type."""
    by_name: dict[str, st.SearchStrategy[Any]] = {
        "stream": ids(streams),
        "raw": raws(streams),
        "signature": st.sampled_from([bytes(64), b"\xff" * 64, (1).to_bytes(32, "big") * 2]),
        "start": st.sampled_from(["", "a", "\0", "f" * 64]),
        "limit": st.sampled_from([1, 100, 0]),
        "payer": st.sampled_from([bytes(streams.chain.address(name)) for name in PARTIES] + [bytes(20)]),
        "service": st.sampled_from([bytes(streams.chain.address(name)) for name in PARTIES] + [bytes(20)]),
        "unit": st.sampled_from(["FEN", "NONE", "A/B"]),
        "what": st.sampled_from(["0.1 kWh", "", "\n"]),
    }
    return by_name.get(argument.name, INTEGERS if argument.type in ("int", "amount") else VALUES)


def asked(streams: Streams, query: str, arguments: dict[str, Any]) -> str:
    """Ask a query; return what it was refused with, "" for an answer."""
    try:
        streams.query(query, **arguments)
    except Revert as refusal:
        return refusal.code
    return ""


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_the_contract_never_breaks(streams: Streams, data: st.DataObject) -> None:
    """Each example meets the same state: what it does is undone."""
    chain = streams.chain
    contract = chain.registry.get("streams", 1)
    assert contract is not None
    method = data.draw(st.sampled_from(sorted(contract.methods.values(), key=lambda item: item.name)))
    strategies = {item.name: values_of(streams, item) for item in method.arguments}
    if data.draw(st.integers(0, 3)) == 3:
        strategies[data.draw(st.sampled_from(sorted(strategies)))] = VALUES
    arguments = {name: data.draw(strategy, name) for name, strategy in strategies.items()}
    if method.name == "open" and data.draw(st.booleans()):
        arguments = {**streams.offer(streams.terms(9)), **data.draw(st.fixed_dictionaries({}, optional=strategies))}
    if method.is_query:
        assert asked(streams, method.name, arguments) not in BROKEN
        return
    before = chain.state.entries()
    receipt = chain.call(data.draw(st.sampled_from(PARTIES)), "streams", method.name, **arguments)
    after, chain.state = chain.state.entries(), MemoryState(before)
    assert receipt.code not in BROKEN, chain.logs[-1:]
    if receipt.status != OK:
        assert all(name.startswith(b"lanes/") for name in after if before.get(name) != after[name])


def test_every_term_is_an_argument(streams: Streams) -> None:
    contract = streams.chain.registry.get("streams", 1)
    assert contract is not None
    names = [item.name for item in contract.methods["open"].arguments]
    assert names == [*msgspec.structs.asdict(streams.terms()), "signature"]
