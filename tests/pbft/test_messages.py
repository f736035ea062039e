"""Messages as bytes: one spelling each, nothing else decodes, and nothing that decodes breaks an engine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import Purpose
from consensus.ledger.validators import Certificate
from consensus.pbft.events import Received, Tick
from consensus.pbft.messages import (
    MESSAGE_BYTES_MAX,
    VIEW_MAX,
    BlockBody,
    Decided,
    FetchBlock,
    Message,
    Prepare,
    Status,
    decode_message_untrusted,
    encode_message,
)
from consensus.pbft.signing import KeySigner, KeyVerifier
from tests.pbft.cluster import CHAIN, key_of
from tests.pbft.solo import Solo


def samples() -> list[Message]:
    solo = Solo()
    block = solo.block(b"t", b"u")
    prepared = solo.prepared(block)
    changes = [solo.view_change("b", 2), solo.view_change("c", 2, prepared), solo.view_change("d", 2)]
    return [
        solo.propose(block),
        solo.prepare("c", block),
        solo.commit("c", block),
        *changes,
        solo.new_view(2, changes, prepared),
        solo.new_view(2, changes[:1]),
        Decided(solo.certificate(block)),
        FetchBlock(1, block.hash),
        BlockBody(block.record()),
        Status(1, 2, True),
    ]


SAMPLES = samples()
ENCODED = [encode_message(message) for message in SAMPLES]


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert decode_message_untrusted(encode_message(message)) == message


@pytest.mark.parametrize("data", ENCODED)
def test_r66_r67_cut_or_extended_bytes_do_not_decode(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(PeerError):
            decode_message_untrusted(data[:length])
    with pytest.raises(PeerError):
        decode_message_untrusted(data + b"\xc0")


@given(st.sampled_from(ENCODED), st.integers(0, 10_000), st.integers(1, 255))
def test_r09_a_flipped_byte_fails_or_is_another_message(data: bytes, position: int, flip: int) -> None:
    position %= len(data)
    changed = data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :]
    try:
        message = decode_message_untrusted(changed)
    except PeerError:
        return
    assert encode_message(message) == changed


def test_r04_every_tag_with_every_body_fails_or_fits() -> None:
    for data in ENCODED:
        for tag in range(12):
            try:
                message = decode_message_untrusted(data[:1] + bytes([tag]) + data[2:])
            except PeerError:
                continue
            assert type(message).__struct_config__.tag == tag


@given(
    st.lists(st.tuples(st.sampled_from(range(len(ENCODED))), st.integers(0, 10_000), st.integers(0, 255)), max_size=30)
)
def test_r66_an_engine_survives_whatever_decodes(choices: list[tuple[int, int, int]]) -> None:
    solo = Solo()
    solo.tick()
    for index, position, flip in choices:
        data = ENCODED[index]
        position %= len(data)
        changed = data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :]
        try:
            message = decode_message_untrusted(changed)
        except PeerError:
            continue
        for sender in ("b", "c", "stranger"):
            solo.step(Received(NodeName(sender), message))
        solo.step(Tick(solo.now_ms))


@pytest.mark.parametrize(
    "message",
    [
        Status(-1, 0, False),
        Status(0, VIEW_MAX + 1, False),
        Prepare(1, 0, bytes(31), "a", bytes(64)),
        Prepare(1, 0, bytes(32), "a", bytes(65)),
        Prepare(1, 0, bytes(32), "A", bytes(64)),
        Prepare(1, 0, bytes(32), "", bytes(64)),
        Decided(Certificate(1, 0, bytes(32), [])),
    ],
)
def test_r16_values_out_of_range_do_not_decode(message: Message) -> None:
    with pytest.raises(PeerError) as caught:
        decode_message_untrusted(encode_message(message))
    assert caught.value.code == "malformed"


def test_a_huge_message_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(PeerError) as caught:
        decode_message_untrusted(bytes(MESSAGE_BYTES_MAX + 1))
    assert caught.value.code == "too_large"


def test_the_verifier_remembers_no_more_than_it_may() -> None:
    signer, verifier = KeySigner(key_of("a"), CHAIN), KeyVerifier(CHAIN, 2)
    key = signer.public_key
    signatures = [(bytes([number]), signer.sign(Purpose.COMMIT, bytes([number]))) for number in range(5)]
    for _ in range(2):
        for payload, signature in signatures:
            assert verifier.verifies(key, Purpose.COMMIT, payload, signature)
            assert not verifier.verifies(key, Purpose.PREPARE, payload, signature)
            assert not verifier.verifies(key, Purpose.COMMIT, payload + b"x", signature)
            assert not verifier.verifies(bytes(33), Purpose.COMMIT, payload, signature)
    assert len(verifier._verified) == 2
