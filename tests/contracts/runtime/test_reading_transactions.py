"""Context.transaction: a contract reads a signed transaction of its chain that never ran, and what lane it runs in."""

from typing import Any

import pytest

from consensus.ledger.codec import Value
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import EACH, Call, Transaction, make_call, sign_transaction
from contracts.runtime.meter import STEPS_PER_CALL_MAX, VERIFY_STEPS
from tests.contracts.runtime.samples import contract_of
from tests.contracts.support import Chain, make_registry

SOURCE = contract_of("return context.transaction(raw, key)", arguments="raw: bytes, key: bytes")
LANE = contract_of("return context.lane_name")
SIGNER = PrivateKey.from_secret(3)
KEY = SIGNER.public.compressed
CALLS = [make_call("one", "first", {"a": 1, "b": b"x"}), make_call("two", "second", {})]


@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain(make_registry(SOURCE))


def signed(chain: Chain, *calls: Call, lane: bytes = b"\5" * 32, chain_id: ChainId | None = None) -> Transaction:
    """Return a transaction of the signer that nobody has sent."""
    return sign_transaction(
        SIGNER,
        chain_id or chain.chain_id,
        list(calls) or CALLS,
        sequence=0 if len(lane) == 32 else 7,
        valid_until_ms=12_345,
        lane=lane,
        mode=EACH,
    )


def test_what_a_transaction_says(chain: Chain) -> None:
    """Expired, of an account that is not there, to contracts that are none: it is read all the same."""
    transaction = signed(chain)
    calls: list[Value] = [
        {"contract": "one", "method": "first", "arguments": {"a": 1, "b": b"x"}},
        {"contract": "two", "method": "second", "arguments": {}},
    ]
    assert chain.ok("alice", "sample", "run", raw=transaction.raw, key=KEY) == {
        "id": bytes(transaction.id),
        "sender": bytes(SIGNER.public.address),
        "lane": b"\5" * 32,
        "sequence": 0,
        "validUntilMs": 12_345,
        "mode": EACH,
        "calls": calls,
    }
    told: Any = chain.ok("alice", "sample", "run", raw=signed(chain, lane=b"side").raw, key=KEY)
    assert (told["lane"], told["sequence"]) == (b"side", 7)


def test_what_is_no_transaction_of_this_chain_and_key(chain: Chain) -> None:
    raw = signed(chain).raw
    foreign = signed(chain, chain_id=ChainId(bytes(32))).raw
    unreadable = signed(chain, Call("one", "first", b"\xc1")).raw
    unordered = signed(chain, Call("one", "first", b"\x82\xa1b\x01\xa1a\x01")).raw
    for bytes_ in (b"", b"\xc0", raw[:-1], raw + b"\0", foreign, unreadable, unordered, bytes(64) + raw):
        assert chain.fails("alice", "sample", "run", raw=bytes_, key=KEY) == "bad_transaction"
    other = PrivateKey.from_secret(4).public.compressed
    assert chain.fails("alice", "sample", "run", raw=raw, key=other) == "bad_transaction"
    for key in (b"\2" * 32, b"\2" + b"\xff" * 32, b""):
        assert chain.fails("alice", "sample", "run", raw=raw, key=key) == "bad_key"


def test_reading_costs_a_signature_and_every_byte(chain: Chain) -> None:
    def steps(raw: bytes) -> int:
        return chain.call("alice", "sample", "run", raw=raw, key=KEY).steps

    small, large = signed(chain).raw, signed(chain, Call("one", "first", b"\xc5\x4e\x20" + bytes(20_000))).raw
    assert steps(small) > VERIFY_STEPS + len(small)
    assert steps(large) - steps(small) >= len(large) - len(small)
    # Where the steps end, nothing was read.
    values: list[Value] = [0] * 60_000
    huge = signed(chain, *[make_call("one", "first", {"v": values})] * 4).raw
    assert len(huge) > STEPS_PER_CALL_MAX
    assert chain.fails("alice", "sample", "run", raw=huge, key=KEY) == "out_of_steps"


@pytest.mark.parametrize("lane", [b"", b"side", b"\6" * 32])
def test_a_contract_knows_the_lane_it_runs_in(lane: bytes) -> None:
    chain = Chain(make_registry(LANE))
    [receipt] = chain.submit("alice", make_call("sample", "run", {}), lane=lane)
    assert receipt.values == [b"\xc4" + bytes([len(lane)]) + lane]
