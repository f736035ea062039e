"""The frames of the message centre: what goes in comes out, and what a peer sends costs no more than its limits."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.errors import LocalError, PeerError
from services.messages import wire
from services.messages.port import Delivery, Settlement, Stats, Verdict
from services.messages.store import NewMessage, Published, Record, State

MESSAGE = NewMessage("create/o-17/1", "order:o-17", b"body", b"m" * 32)
RECORD = Record(7, "create/o-17/1", "order:o-17", b"", State.DONE, 1, "17 0xab 4", 1_000, 2_000)
STATS = Stats(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 500.5, is_strict=True)
FROM_PEER: list[wire.FromPeer] = [
    wire.publish_of(1, [MESSAGE, NewMessage("k", "", b"")]),
    wire.Find(2, ["create/o-17/1"]),
    wire.Ended(3, State.DEAD, 17, 1_000),
    wire.Replay(4, [1, 2]),
    wire.Ask(5),
    wire.Settle(6, [Settlement(7, 1 << 33, Verdict.PARK, "unknown_order", State.REFUSED)]),
    wire.Received(1 << 33, 1 << 60),
    wire.Discard(7, [1, 2]),
    wire.Leave(),
]
FROM_CENTER: list[wire.FromCenter] = [
    wire.Welcome(wire.VERSION, is_same_machine=True),
    wire.kept_of(1, [Published(7, is_new=True), Published(8, is_new=False, is_conflict=True)]),
    wire.Records(2, [RECORD, None]),
    wire.Replayed(4, 2),
    wire.Discarded(4, 2),
    wire.Standing(5, STATS),
    wire.Settled(6, [True, False]),
    wire.Failure(7, "store_full", "what waits has to drain"),
    wire.deliver_of(Delivery(7, 1 << 33, 2, "create/o-17/1", "order:o-17", b"body"), 1 << 60),
]


def peer_reader(payload_bytes_max: int = wire.FRAME_BYTES_MAX) -> wire.Reader[wire.FromPeer]:
    return wire.Reader(wire.peer_decoder, payload_bytes_max=payload_bytes_max)


def frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4) + payload


@given(st.lists(st.sampled_from(FROM_PEER), max_size=8), st.data())
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    sent: list[wire.FromPeer], data: st.DataObject
) -> None:
    stream = b"".join(wire.encode(one) for one in sent)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=10)))
    reader, got = peer_reader(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        reader.feed(stream[begin:end])
        while (one := reader.next_untrusted()) is not None:
            got.append(one)
    assert got == sent


def test_every_answer_comes_out_as_it_went_in() -> None:
    reader = wire.Reader(wire.center_decoder, payload_bytes_max=wire.FRAME_BYTES_MAX)
    for one in FROM_CENTER:
        reader.feed(wire.encode(one))
        assert reader.next_untrusted() == one
    assert wire.published_of(FROM_CENTER[1]) == [
        Published(7, is_new=True),
        Published(8, is_new=False, is_conflict=True),
    ]  # type: ignore[arg-type]


def test_messages_keep_their_order_and_their_marks() -> None:
    messages = [NewMessage(f"k{number}", "lane", bytes([number]), bytes([number]) * 32) for number in range(100)]
    reader = peer_reader()
    reader.feed(wire.encode(wire.publish_of(1, messages)))
    got = reader.next_untrusted()
    assert isinstance(got, wire.Publish)
    assert wire.messages_of(got) == messages


def test_a_length_above_the_limit_is_refused_before_its_payload_comes() -> None:
    reader = peer_reader(payload_bytes_max=1_000)
    reader.feed((1_001).to_bytes(4))
    with pytest.raises(PeerError, match="1001 bytes, at most 1000") as refusal:
        reader.next_untrusted()
    assert refusal.value.code == "too_large"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x90",
        msgspec.msgpack.encode([99, 1]),
        msgspec.msgpack.encode([1, wire.VERSION, "name", "token", "boot", 0]),
        msgspec.msgpack.encode([2, 1, []]),
        msgspec.msgpack.encode([2, 1, [["k", "lane", b"body"]]]),
        msgspec.msgpack.encode([2, 1, [["k", "lane", b"b" * (16 * 1024 + 1), b""]]]),
        msgspec.msgpack.encode([2, 1, [["k" * 257, "lane", b"", b""]]]),
        msgspec.msgpack.encode([2, 1, [["k", "lane", b"", b"m" * 33]]]),
        msgspec.msgpack.encode([2, 1, [["k", "lane", b"", b""]] * 1_001]),
        msgspec.msgpack.encode([2, -1, [["k", "lane", b"", b""]]]),
        msgspec.msgpack.encode([4, 1, "sold", 0, 10]),
        msgspec.msgpack.encode([4, 1, "dead", 0, 1_001]),
        msgspec.msgpack.encode([8, 1, 1 << 63]),
        msgspec.msgpack.encode([3, 1, [b"\xff"]]),
        b"\x93\x03\x01\x91\xa1\xff",
        b"\x94\x03\x01\x90" + b"\x91" * 2_000 + b"\x90",
    ],
)
def test_what_is_no_frame_is_malformed(payload: bytes) -> None:
    reader = peer_reader()
    reader.feed(frame(payload))
    with pytest.raises(PeerError) as refusal:
        reader.next_untrusted()
    assert refusal.value.code == "malformed"


@given(st.binary(max_size=64))
def test_any_bytes_are_a_frame_or_a_typed_error(payload: bytes) -> None:
    for decoder in (wire.hello_decoder, wire.peer_decoder, wire.center_decoder):
        reader: wire.Reader[object] = wire.Reader(decoder, payload_bytes_max=64)
        reader.feed(frame(payload))
        with suppress(PeerError):
            reader.next_untrusted()


def test_what_follows_a_hello_in_one_feed_is_not_lost() -> None:
    hello = wire.Hello(wire.VERSION, "shop", "token", "boot", 0)
    greeting = wire.Reader(wire.hello_decoder, payload_bytes_max=wire.HELLO_BYTES_MAX)
    greeting.feed(wire.encode(hello) + wire.encode(FROM_PEER[1]) + b"\x00")
    assert greeting.next_untrusted() == hello
    reader = wire.Reader(wire.peer_decoder, payload_bytes_max=wire.FRAME_BYTES_MAX, rest=greeting.take_rest())
    assert reader.next_untrusted() == FROM_PEER[1]
    assert reader.take_rest() == b"\x00"


def test_the_largest_publish_and_the_largest_list_fit_a_frame() -> None:
    messages = [NewMessage("k" * 256, "l" * 128, b"b" * 16 * 1024, b"m" * 32)] * 1_000
    assert len(wire.encode(wire.publish_of(1, messages))) < wire.FRAME_BYTES_MAX
    record = Record(1 << 62, "k" * 256, "l" * 128, b"b" * 16 * 1024, State.DEAD, 1 << 30, "d" * 1_024, 1 << 62, 1 << 62)
    assert len(wire.encode(wire.Records(1, [record] * 1_000))) < wire.FRAME_BYTES_MAX


def test_what_is_too_large_does_not_go_out() -> None:
    with pytest.raises(LocalError) as refusal:
        wire.encode(wire.publish_of(1, [NewMessage("k", "", b"b" * wire.FRAME_BYTES_MAX)]))
    assert refusal.value.code == "too_large"
    for settlements in ([Settlement(1, 1, Verdict.DONE, "ß" * 513)], [Settlement(1, 1, Verdict.DONE)] * 1_001):
        with pytest.raises(LocalError) as refusal:
            wire.check_settlements(settlements)
        assert refusal.value.code == "too_large"
