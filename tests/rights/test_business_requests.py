"""What callers post, as events: pure."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.errors import PeerError
from services.messages.store import Record, State
from services.rights.events import AMOUNT_MAX, Event, Kind, event_codec
from services.rights.intake import followed, mark_of
from services.rights.requests import (
    Decode,
    decode_any,
    decode_change_untrusted,
    decode_list_untrusted,
    decode_one_untrusted,
    decode_order,
    decode_redemption,
)
from tests.fuzz.bombs import JSON_BOMBS

TIME_MS = 1_700_000_000_000
SERVER = bytes(range(20))
IDS = st.text("abcXYZ019._:-", min_size=1, max_size=64)
AMOUNTS = st.integers(1, AMOUNT_MAX)
ABOUT_ORDER = ("cancel", "complete", "refund")


@st.composite
def posted(draw: st.DrawFn) -> tuple[dict[str, Any], Event]:
    """Return a post, and the event that it is, said anew."""
    kind = draw(st.sampled_from([kind.value for kind in Kind]))
    reference, number = draw(IDS), draw(IDS)
    amount = draw(st.none() | AMOUNTS)
    body: dict[str, Any] = {"kind": kind, "event": number}
    user = campaign = ""
    items: dict[str, int] = {}
    match kind:
        case "create":
            amount, user, campaign = draw(AMOUNTS), draw(IDS), draw(IDS)
            body |= {"order": reference, "user": user, "campaign": campaign}
        case "redeem":
            user = draw(IDS)
            items = draw(st.dictionaries(IDS, st.integers(1, 1_000_000), min_size=not amount, max_size=16))
            body |= {"redemption": reference, "user": user} | ({"items": items} if items else {})
        case _:
            body["order" if kind in ABOUT_ORDER else "redemption"] = reference
    if amount is not None:
        body["amount"] = amount
    listed = sorted(items.items())
    return body, Event(kind, reference, number, user, campaign, amount or 0, listed, TIME_MS)


@given(posted())
def test_a_post_is_the_event_that_it_says(post: tuple[dict[str, Any], Event]) -> None:
    body, event = post
    assert decode_one_untrusted(msgspec.json.encode(body), decode_any, TIME_MS) == event
    assert event_codec.decode_untrusted(event_codec.encode(event)) == event


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(posted(), st.data())
def test_a_spoilt_post_is_refused_or_still_an_event(post: tuple[dict[str, Any], Event], data: st.DataObject) -> None:
    body, event = post
    field = data.draw(st.sampled_from([*body, "new"]))
    spoilt = {**body, field: data.draw(JSON)}
    try:
        decoded = decode_one_untrusted(msgspec.json.encode(spoilt), decode_any, TIME_MS)
    except PeerError as error:
        code = error.code
    else:
        code = ""
    assert code in ("", "bad_field")
    if code:
        return
    assert field != "new"
    assert type(decoded.amount) is int
    assert 0 <= decoded.amount <= AMOUNT_MAX
    assert event_codec.decode_untrusted(event_codec.encode(decoded)) == decoded
    assert decoded == event or spoilt != body


@pytest.mark.parametrize(
    ("decode", "body", "twice"),
    [
        (decode_order, b'{"order":"a","order":"b","user":"u","campaign":"c","amount":1}', "order"),
        (decode_order, b'{"order":"a","\\u006frder":"b","user":"u","campaign":"c","amount":1}', "order"),
        (decode_redemption, b'{"redemption":"r","user":"u","items":{"tea":1,"tea":2}}', "tea"),
        (decode_any, b'{"kind":"cancel","order":"a","kind":"cancel"}', "kind"),
    ],
)
def test_a_field_that_stands_twice_is_refused(decode: Decode, body: bytes, twice: str) -> None:
    with pytest.raises(PeerError) as refused:
        decode_one_untrusted(body, decode, TIME_MS)
    assert (refused.value.code, refused.value.message) == ("malformed", f"`{twice}` twice")
    (listed,) = decode_list_untrusted(b"[" + body + b"]", decode, TIME_MS)
    assert isinstance(listed, PeerError)
    assert (listed.code, listed.message) == ("malformed", f"`{twice}` twice")


def test_a_change_says_its_amount_once() -> None:
    with pytest.raises(PeerError) as refused:
        decode_change_untrusted(Kind.CANCEL, "o-1", b'{"amount":1,"amount":2}', TIME_MS)
    assert (refused.value.code, refused.value.message) == ("malformed", "`amount` twice")


@pytest.mark.parametrize("kind", [{"kind": "reverse"}, {"kind": 1}, {}])
def test_a_kind_that_is_none_is_told_which_there_are(kind: dict[str, Any]) -> None:
    with pytest.raises(PeerError) as refused:
        decode_one_untrusted(msgspec.json.encode({**kind, "redemption": "r"}), decode_any, TIME_MS)
    assert refused.value.code == "bad_field"
    assert all(known.value in refused.value.message for known in Kind)


def decode_all_ways(body: bytes) -> None:
    for decode in (
        lambda: decode_one_untrusted(body, decode_any, TIME_MS),
        lambda: decode_one_untrusted(body, decode_order, TIME_MS),
        lambda: decode_one_untrusted(body, decode_redemption, TIME_MS),
        lambda: decode_list_untrusted(body, decode_any, TIME_MS),
        lambda: decode_change_untrusted(Kind.CANCEL, "o-1", body, TIME_MS),
    ):
        with suppress(PeerError):
            decode()


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder(body: bytes) -> None:
    decode_all_ways(body)


@pytest.mark.parametrize("name", JSON_BOMBS)
def test_no_bomb_breaks_the_decoder(name: str) -> None:
    bomb = JSON_BOMBS[name]
    for body in (bomb, b"[" + bomb + b"]", b'{"order":' + bomb + b"}", b'[{"kind":' + bomb + b"}]"):
        decode_all_ways(body)


@given(posted(), posted())
def test_events_have_one_mark_iff_they_say_the_same(
    first: tuple[dict[str, Any], Event], second: tuple[dict[str, Any], Event]
) -> None:
    (_, one), (_, other) = first, second
    later = Event(one.kind, one.reference, one.number, one.user, one.campaign, one.amount, one.items, TIME_MS + 5)
    assert mark_of(SERVER, one) == mark_of(SERVER, later)
    said = [(event.user, event.campaign, event.amount, event.items) for event in (one, other)]
    assert (mark_of(SERVER, one) == mark_of(SERVER, other)) == (said[0] == said[1])
    assert mark_of(SERVER, one) != mark_of(bytes(20), one)


TRANSACTION = f"0x{'ab' * 32}"


@pytest.mark.parametrize(
    ("state", "detail", "height", "result", "code", "message"),
    [
        (State.WAITING, "", None, "", None, None),
        (State.WAITING, f"unknown_order 7 {TRANSACTION} 3", 7, "", "unknown_order", "unknown order"),
        (State.DONE, f"7 {TRANSACTION} 3 created=5", 7, "created=5", None, None),
        (State.DONE, "", None, "", None, None),
        (State.REFUSED, f"quota_exceeded 7 {TRANSACTION} 3", 7, "", "quota_exceeded", "quota exceeded"),
        (State.DEAD, "malformed no event at all", None, "", "malformed", "no event at all"),
        (State.DEAD, "consumer_lost", None, "", "consumer_lost", "consumer lost"),
    ],
)
def test_how_an_event_stands_follows_from_its_messages_record(
    state: State, detail: str, height: int | None, result: str, code: str | None, message: str | None
) -> None:
    stands = followed(Record(1, "create/o-1/1", "order:o-1", b"", state, 2, detail, 10, 20))
    assert (stands.event_id, stands.state, stands.attempts) == ("create/o-1/1", state.value, 2)
    assert (stands.chain.height if stands.chain else None) == height
    assert stands.result == result
    assert ((stands.error.code, stands.error.message) if stands.error else (None, None)) == (code, message)
