"""Frames: what is cut out of a stream is what was put in, and nothing large is kept on a promise."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.errors import LocalError, PeerError
from p2p.frames import FRAME_BYTES_MAX, HEADER_BYTES, Frame, FrameDecoder, FrameKind, encode_frame, encode_frames

frames = st.lists(st.builds(Frame, st.sampled_from(FrameKind), st.binary(max_size=300)), max_size=8)


def drain(decoder: FrameDecoder) -> list[Frame]:
    """Take all complete frames."""
    return list(iter(decoder.next_untrusted, None))


@given(frames, st.lists(st.integers(1, 400), max_size=20))
def test_any_cut_of_the_stream_gives_the_same_frames(sent, cuts):
    data = encode_frames(sent)
    decoder = FrameDecoder(payload_bytes_max=300)
    received = []
    for size in [*cuts, len(data)]:
        decoder.feed(data[:size])
        data = data[size:]
        received += drain(decoder)
    assert received == sent


@given(st.binary(max_size=400))
def test_garbage_is_frames_or_one_error(data):
    decoder = FrameDecoder(payload_bytes_max=300)
    decoder.feed(data)
    received = []
    with suppress(PeerError):
        while (frame := decoder.next_untrusted()) is not None:
            received.append(frame)
    assert data.startswith(encode_frames(received))


@pytest.mark.parametrize("size", [301, FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_r68_huge_length_is_refused_at_the_header(size):
    decoder = FrameDecoder(payload_bytes_max=300)
    decoder.feed(struct.pack(">IB", size, FrameKind.CONSENSUS))
    with pytest.raises(PeerError) as raised:
        decoder.next_untrusted()
    assert raised.value.code == "frame_too_large"


def test_largest_frame_passes_and_one_byte_more_is_our_own_error():
    decoder = FrameDecoder(payload_bytes_max=FRAME_BYTES_MAX)
    decoder.feed(encode_frame(FrameKind.SYNC_RESPONSE, bytes(FRAME_BYTES_MAX)))
    assert len(drain(decoder)[0].payload) == FRAME_BYTES_MAX
    with pytest.raises(LocalError) as raised:
        encode_frame(FrameKind.SYNC_RESPONSE, bytes(FRAME_BYTES_MAX + 1))
    assert raised.value.code == "frame_too_large"


def test_unknown_kind_is_refused():
    decoder = FrameDecoder(payload_bytes_max=300)
    decoder.feed(struct.pack(">IB", 0, 9))
    with pytest.raises(PeerError) as raised:
        decoder.next_untrusted()
    assert raised.value.code == "unknown_frame"


def test_limit_may_rise_between_two_frames_of_one_feed():
    decoder = FrameDecoder(payload_bytes_max=10)
    decoder.feed(encode_frame(FrameKind.ACK, bytes(10)) + encode_frame(FrameKind.CONSENSUS, bytes(200)))
    assert decoder.next_untrusted() == Frame(FrameKind.ACK, bytes(10))
    decoder.payload_bytes_max = 200
    assert decoder.next_untrusted() == Frame(FrameKind.CONSENSUS, bytes(200))


def test_layout_is_length_kind_payload():
    assert encode_frame(FrameKind.TRANSACTIONS, b"abc") == b"\0\0\0\3\2abc"
    assert HEADER_BYTES == 5
