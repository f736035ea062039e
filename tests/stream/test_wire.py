"""Frames: what they say comes over as it was, within bounds, and nothing else is taken for a frame."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.errors import PeerError
from services.client.errors import Refused as RefusedError
from services.stream.challenges import CHALLENGE_MS_MAX, CHALLENGES_MAX, Challenges
from services.stream.frames import TOLD_MAX
from services.stream.outlet import coalesced
from services.stream.wire import (
    FRAME_BYTES_MAX,
    MESSAGES_MAX,
    Ask,
    Challenge,
    Close,
    Closed,
    Hello,
    Iterate,
    Refused,
    SaidFrame,
    Standing,
    Stored,
    Supplied,
    ToldFrame,
    hello_payload,
    said_codec,
    told_codec,
)

ids, signatures = st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64)
amounts = st.integers(0, 10**15)
said = st.one_of(
    st.builds(Hello, ids, ids, signatures),
    st.builds(Iterate, ids, st.binary(max_size=1_024)),
    st.builds(Close, ids, amounts, signatures),
    st.builds(Ask, ids),
)
texts = st.text(max_size=32)
told = st.one_of(
    st.builds(Challenge, ids),
    st.builds(Standing, ids, amounts, amounts, amounts, texts, texts),
    st.builds(Supplied, ids, amounts, amounts),
    st.builds(Stored, ids, amounts),
    st.builds(Refused, ids, st.from_regex(r"[a-z_]{1,64}", fullmatch=True), texts),
    st.builds(Closed, ids, amounts, signatures),
)


@given(st.lists(said, min_size=1, max_size=8), st.lists(told, min_size=1, max_size=8))
def test_frames_come_over_as_they_were(
    says: list[Hello | Iterate | Close | Ask],
    tells: list[Challenge | Standing | Supplied | Stored | Refused | Closed],
) -> None:
    assert said_codec.decode_untrusted(said_codec.encode(SaidFrame(says))).messages == says
    assert told_codec.decode_untrusted(told_codec.encode(ToldFrame(tells))).messages == tells


@given(st.lists(said, min_size=1, max_size=3), st.data())
def test_a_changed_frame_is_another_frame_or_none(
    says: list[Hello | Iterate | Close | Ask], data: st.DataObject
) -> None:
    raw = bytearray(said_codec.encode(SaidFrame(says)))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    with suppress(PeerError):
        assert said_codec.encode(said_codec.decode_untrusted(bytes(raw))) == bytes(raw)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "malformed"),
        (b"\xc1", "malformed"),
        (msgspec.msgpack.encode([[]]), "malformed"),
        (msgspec.msgpack.encode([[[4, bytes(32)]] * (MESSAGES_MAX + 1)]), "malformed"),
        (msgspec.msgpack.encode([[[4, bytes(31)]]]), "malformed"),
        (msgspec.msgpack.encode([[[4, bytes(32), 1]]]), "malformed"),
        (msgspec.msgpack.encode([[[7, bytes(32), 1, 1]]]), "malformed"),
        (msgspec.msgpack.encode([[[2, bytes(32), bytes(1_025)]]]), "malformed"),
        (bytes(FRAME_BYTES_MAX + 1), "too_large"),
    ],
)
def test_what_is_no_frame_of_a_payers(data: bytes, code: str) -> None:
    with pytest.raises(PeerError) as refused:
        said_codec.decode_untrusted(data)
    assert refused.value.code == code


def test_the_fullest_frame_to_a_payer_is_within_its_bound() -> None:
    largest = [
        Refused(bytes(32), "a" * 64, "\U0001f600" * 256),
        Standing(bytes(32), 10**15, 2**53, 2**53, "ä" * 32, "ä" * 64),
        Closed(bytes(32), 10**15, bytes(64)),
    ]
    for message in largest[1:]:
        assert len(told_codec.encode(ToldFrame([message] * TOLD_MAX))) <= FRAME_BYTES_MAX
    # Our own messages are plain: a character is a byte.
    plain = Refused(bytes(32), "a" * 64, "a" * 256)
    assert len(told_codec.encode(ToldFrame([plain] * TOLD_MAX))) <= FRAME_BYTES_MAX


def test_of_what_counts_in_all_the_last_is_told_in_its_place() -> None:
    one, two = bytes(32), bytes([1]) * 32
    waiting = [(1, Stored(one, 1)), (1, Stored(two, 1)), (2, Supplied(one, 1, 5)), (3, Stored(one, 2))]
    assert coalesced(waiting) == [(1, Stored(two, 1)), (2, Supplied(one, 1, 5)), (3, Stored(one, 2))]


def test_what_a_hello_signs_names_stream_and_nonce() -> None:
    assert hello_payload(b"a" * 32, b"b" * 32) == b"a" * 32 + b"b" * 32


def test_a_challenge_serves_once_within_its_time_and_there_are_not_too_many() -> None:
    now_ms = 1_000
    challenges = Challenges(lambda: now_ms)
    nonce, until_ms = challenges.give()
    late, _ = challenges.give()
    challenges.take(nonce)
    now_ms = until_ms + 1
    for spent in (nonce, late, bytes(32)):
        with pytest.raises(PeerError, match="was not given"):
            challenges.take(spent)
    for _ in range(CHALLENGES_MAX):
        challenges.give()
    with pytest.raises(RefusedError):
        challenges.give()
    now_ms += CHALLENGE_MS_MAX + 1
    challenges.give()
