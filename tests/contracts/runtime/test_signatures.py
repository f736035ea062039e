"""Context.verifies: a contract judges signatures of this chain, for their purpose alone, at a fixed price."""

import pytest

from consensus.ledger.codec import Value, decode
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey, Purpose
from contracts.runtime.meter import VERIFY_STEPS
from tests.contracts.runtime.samples import contract_of
from tests.contracts.support import Chain, make_registry

SOURCE = contract_of(
    "return context.verifies(key, signature, purpose, payload)",
    arguments="key: bytes, signature: bytes, purpose: str, payload: bytes",
)
SIGNER = PrivateKey.from_secret(3)
PAYLOAD = b"what is signed"


@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain(make_registry(SOURCE))


def signed(chain: Chain, **changes: Value) -> dict[str, Value]:
    signature = SIGNER.sign(Purpose.SEAT, chain.chain_id, PAYLOAD)
    return {
        "key": SIGNER.public.compressed,
        "signature": signature,
        "purpose": "seat",
        "payload": PAYLOAD,
        **changes,
    }


def test_a_signature_of_this_chain_and_purpose(chain: Chain) -> None:
    assert chain.ok("alice", "sample", "run", **signed(chain)) is True


def test_any_other_signature(chain: Chain) -> None:
    elsewhere = SIGNER.sign(Purpose.SEAT, ChainId(bytes(32)), PAYLOAD)
    for changes in (
        {"payload": PAYLOAD + b"!"},
        {"purpose": "commit"},
        {"key": PrivateKey.from_secret(4).public.compressed},
        {"signature": elsewhere},
        {"signature": bytes(64)},
        {"signature": b""},
    ):
        assert chain.ok("alice", "sample", "run", **signed(chain, **changes)) is False, changes


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("bad_key", {"key": b"\2" * 32}),
        ("bad_key", {"key": b"\2" + b"\xff" * 32}),
        ("contract_error", {"purpose": "anything"}),
    ],
)
def test_what_is_no_key_or_purpose_is_refused(chain: Chain, code: str, changes: dict[str, Value]) -> None:
    assert chain.fails("alice", "sample", "run", **signed(chain, **changes)) == code


def test_the_price_does_not_depend_on_what_was_seen_before(chain: Chain) -> None:
    key = PrivateKey.from_secret(77_777).public.compressed
    receipts = [chain.call("alice", "sample", "run", **signed(chain, key=key)) for _ in range(2)]
    assert decode(receipts[0].values[0]) is False
    assert VERIFY_STEPS < receipts[0].steps == receipts[1].steps < VERIFY_STEPS + 200
