"""Business events: one spelling, one signature a batch, and a path for each that proves its place."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.codec import encode
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.merkle import ListProof, leaf_is_under
from services.rights.events import (
    AMOUNT_MAX,
    BATCH_EVENTS_MAX,
    SIGNED_EVENT_BYTES_MAX,
    Event,
    Kind,
    SignedEvent,
    apply_arguments,
    decode_signed_untrusted,
    event_codec,
    present_arguments,
    sign_events,
    signed_codec,
)
from tests.ledger.builders import CHAIN, flips, refusal

KEY = PrivateKey.from_secret(31)
SERVER = bytes(range(20))

ids = st.text("abc:.-_09", min_size=1, max_size=64)
items = st.dictionaries(ids, st.integers(1, 1_000_000), max_size=16).map(lambda held: sorted(held.items()))
events = st.builds(
    Event,
    kind=st.sampled_from([kind.value for kind in Kind]),
    reference=ids,
    number=st.text(min_size=1, max_size=64),
    user=ids | st.just(""),
    campaign=ids | st.just(""),
    amount=st.integers(0, AMOUNT_MAX),
    items=items,
    time_ms=st.integers(0, 2**62),
)


def order(number: int) -> Event:
    return Event("create", f"o{number}", "1", "u1", "sale", 100, [], 1_700_000_000_000)


@given(st.lists(events, min_size=1, max_size=9))
def test_each_event_comes_back_with_its_path_and_the_signature_of_all(batch: list[Event]) -> None:
    signed = sign_events(KEY, CHAIN, SERVER, batch)
    assert [decode_signed_untrusted(signed_codec.encode(item)) for item in signed] == signed
    assert [item.event for item in signed] == batch
    assert len({(item.root, item.signature) for item in signed}) == 1
    for index, item in enumerate(signed):
        assert (item.proof.index, item.proof.count) == (index, len(batch))
        assert KEY.public.verifies(item.signature, Purpose.BUSINESS_EVENTS, CHAIN, SERVER + item.root)


@given(events)
def test_an_event_is_the_canonical_list_of_its_fields(event: Event) -> None:
    fields = [event.kind, event.reference, event.number, event.user, event.campaign, event.amount]
    pairs = [[item, count] for item, count in event.items]
    assert event_codec.encode(event) == encode([*fields, pairs, event.time_ms])
    assert event.key == f"{event.kind}/{event.reference}/{event.number}"


def test_a_whole_batch_has_one_root() -> None:
    batch = [order(number) for number in range(BATCH_EVENTS_MAX)]
    signed = sign_events(KEY, CHAIN, SERVER, batch)
    assert all(leaf_is_under(signed[0].root, event_codec.encode(item.event), item.proof) for item in signed)
    assert {len(item.proof.path) for item in signed} == {8}


def test_no_byte_of_a_message_can_be_changed_and_still_be_signed() -> None:
    signed = sign_events(KEY, CHAIN, SERVER, [order(number) for number in range(5)])[3]
    for bad in flips(signed_codec.encode(signed)):
        code = refusal(decode_signed_untrusted, bad)
        assert code in ("", "malformed", "bad_proof")
        if not code:
            forged = decode_signed_untrusted(bad)
            payload = forged.server + forged.root
            assert not KEY.public.verifies(forged.signature, Purpose.BUSINESS_EVENTS, CHAIN, payload)


def test_a_path_to_another_root_or_place_is_refused() -> None:
    first, second = sign_events(KEY, CHAIN, SERVER, [order(1), order(2)])
    other = sign_events(KEY, CHAIN, SERVER, [order(1)])[0]
    for root, proof in (
        (first.root, second.proof),
        (other.root, first.proof),
        (first.root, ListProof(0, 1, [])),
        (first.root, ListProof(0, 2, [])),
    ):
        forged = SignedEvent(SERVER, root, first.signature, proof, first.event)
        assert refusal(decode_signed_untrusted, signed_codec.encode(forged)) == "bad_proof"


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": ""},
        {"reference": ""},
        {"reference": "a/b"},
        {"reference": "a\n"},
        {"number": ""},
        {"number": "x" * 65},
        {"amount": -1},
        {"amount": AMOUNT_MAX + 1},
        {"time_ms": -1},
        {"items": [("cup", 0)]},
        {"items": [("cup", 1_000_001)]},
        {"items": [("a b", 1)]},
        {"items": [("b", 1), ("a", 1)]},
        {"items": [("a", 1), ("a", 1)]},
        {"items": [(f"i{number:02}", 1) for number in range(17)]},
        {"user": "u" * SIGNED_EVENT_BYTES_MAX},
        {"time_ms": 2**63},
    ],
)
def test_events_that_cannot_be(fields: dict[str, Any]) -> None:
    good = {"kind": "create", "reference": "o1", "number": "1", "user": "u1", "campaign": "sale"}
    event = Event(**{**good, "amount": 1, "items": [], "time_ms": 1, **fields})
    signed = sign_events(KEY, CHAIN, SERVER, [event])[0]
    assert refusal(decode_signed_untrusted, signed_codec.encode(signed)) in ("malformed", "too_large")


def test_arguments_are_those_of_the_contract() -> None:
    event = Event("redeem", "r1", "1", "u1", "", 0, [("cup", 2), ("tea", 1)], 5)
    signed = sign_events(KEY, CHAIN, SERVER, [order(1), event])[1]
    assert present_arguments(signed) == {"server": SERVER, "root": signed.root, "signature": signed.signature}
    arguments = apply_arguments(signed, 7)
    assert arguments["items"] == {"cup": 2, "tea": 1}
    assert (arguments["index"], arguments["count"], arguments["path"]) == (1, 2, signed.proof.path)
    assert (arguments["share"], apply_arguments(signed)["share"]) == (7, 0)
