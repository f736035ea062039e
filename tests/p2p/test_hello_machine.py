"""The hello: two machines back to back, and every way in which a peer can bend it."""

from dataclasses import dataclass, replace

import pytest

from consensus.ledger.errors import InvariantError, PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey
from p2p.frames import Frame, FrameKind
from p2p.hello_machine import HelloMachine, HelloState, Side, decode_bye_untrusted, encode_bye

CHAIN = ChainId(b"\x11" * 32)
OTHER_CHAIN = ChainId(b"\x22" * 32)
KEY_A, KEY_B, KEY_C = (PrivateKey.from_secret(secret) for secret in (11, 12, 13))
PRINT_A, PRINT_B, PRINT_C = b"\xaa" * 32, b"\xbb" * 32, b"\xcc" * 32


@dataclass(frozen=True)
class Setting:
    """What one side of a handshake knows; the defaults are an honest dialler A that talks to B."""

    side: Side = Side.DIALLER
    chain_id: ChainId = CHAIN
    key: PrivateKey = KEY_A
    fingerprint: bytes = PRINT_A
    peer_key: PrivateKey = KEY_B
    peer_fingerprint: bytes = PRINT_B
    nonce: bytes = b"\x01" * 32

    def machine(self) -> HelloMachine:
        """Return the machine of this side."""
        return HelloMachine(
            self.side,
            self.chain_id,
            key=self.key,
            fingerprint=self.fingerprint,
            peer_key=self.peer_key.public,
            peer_fingerprint=self.peer_fingerprint,
            nonce=self.nonce,
        )


DIALLER = Setting()
LISTENER = Setting(
    side=Side.LISTENER,
    key=KEY_B,
    fingerprint=PRINT_B,
    peer_key=KEY_A,
    peer_fingerprint=PRINT_A,
    nonce=b"\x02" * 32,
)


def converse(dialler: HelloMachine, listener: HelloMachine) -> None:
    """Carry frames to and fro until both are silent."""
    to_listener, to_dialler = dialler.start(), listener.start()
    while to_listener or to_dialler:
        arrived, to_listener = to_listener, []
        for frame in arrived:
            to_dialler += listener.receive_untrusted(frame)
        arrived, to_dialler = to_dialler, []
        for frame in arrived:
            to_listener += dialler.receive_untrusted(frame)


def test_two_honest_sides_accept_each_other():
    dialler, listener = DIALLER.machine(), LISTENER.machine()
    converse(dialler, listener)
    assert dialler.is_done
    assert listener.is_done


@pytest.mark.parametrize(
    ("listener", "code"),
    [
        (replace(LISTENER, chain_id=OTHER_CHAIN), "wrong_chain"),
        (replace(LISTENER, key=KEY_C), "bad_hello"),
        (replace(LISTENER, fingerprint=PRINT_C), "bad_hello"),
        (replace(LISTENER, peer_fingerprint=PRINT_C), "bad_hello"),
        (replace(LISTENER, side=Side.DIALLER), "bad_hello"),
        (replace(LISTENER, nonce=DIALLER.nonce), "bad_hello"),
    ],
    ids=["chain", "key", "own certificate", "certificate seen (a middle box)", "side", "echoed nonce"],
)
def test_each_bent_fact_is_refused(listener, code):
    with pytest.raises(PeerError) as raised:
        converse(DIALLER.machine(), listener.machine())
    assert raised.value.code == code


def test_r70_each_side_alone_refuses_who_saw_another_certificate_than_its_own():
    """Here the dialler saw the certificate of a box in the middle; the listener notices without its help."""
    dialler, listener = replace(DIALLER, peer_fingerprint=PRINT_C).machine(), LISTENER.machine()
    [greeting_d], [greeting_l] = dialler.start(), listener.start()
    [hello] = dialler.receive_untrusted(greeting_l)
    listener.receive_untrusted(greeting_d)
    with pytest.raises(PeerError) as raised:
        listener.receive_untrusted(hello)
    assert raised.value.code == "bad_hello"


def test_own_hello_sent_back_is_refused():
    machine = DIALLER.machine()
    machine.start()
    [hello] = machine.receive_untrusted(LISTENER.machine().start()[0])
    with pytest.raises(PeerError) as raised:
        machine.receive_untrusted(hello)
    assert raised.value.code == "bad_hello"


def test_own_hello_is_no_answer_even_under_our_own_certificate():
    machine = replace(DIALLER, peer_key=KEY_A, peer_fingerprint=PRINT_A).machine()
    machine.start()
    [hello] = machine.receive_untrusted(LISTENER.machine().start()[0])
    with pytest.raises(PeerError) as raised:
        machine.receive_untrusted(hello)
    assert raised.value.code == "bad_hello"


def test_hello_of_an_earlier_connection_is_refused():
    listener = LISTENER.machine()
    greeting = listener.start()[0]
    [recorded] = listener.receive_untrusted(DIALLER.machine().start()[0])
    later = replace(DIALLER, nonce=b"\x03" * 32).machine()
    later.start()
    later.receive_untrusted(greeting)
    with pytest.raises(PeerError) as raised:
        later.receive_untrusted(recorded)
    assert raised.value.code == "bad_hello"


def test_hello_does_not_pass_as_ack():
    dialler, listener = DIALLER.machine(), LISTENER.machine()
    [greeting_d], [greeting_l] = dialler.start(), listener.start()
    dialler.receive_untrusted(greeting_l)
    [hello] = listener.receive_untrusted(greeting_d)
    dialler.receive_untrusted(hello)
    assert dialler.state is HelloState.ACCEPTED
    with pytest.raises(PeerError) as raised:
        dialler.receive_untrusted(Frame(FrameKind.ACK, hello.payload))
    assert raised.value.code == "bad_hello"


@pytest.mark.parametrize("kind", FrameKind)
def test_r04_every_frame_kind_at_every_state_is_expected_or_refused(kind):
    expected = {HelloState.GREETED: FrameKind.GREETING, HelloState.PROVEN: FrameKind.HELLO}
    expected[HelloState.ACCEPTED] = FrameKind.ACK
    steps = [Frame(FrameKind.GREETING, b""), Frame(FrameKind.HELLO, b""), Frame(FrameKind.ACK, b"")]
    for depth in range(len(steps)):
        dialler, listener = DIALLER.machine(), LISTENER.machine()
        frames, to_listener = listener.start(), dialler.start()
        for _ in range(depth):
            to_dialler = [answer for frame in to_listener for answer in listener.receive_untrusted(frame)]
            to_listener = [answer for frame in frames for answer in dialler.receive_untrusted(frame)]
            frames = to_dialler
        with pytest.raises(PeerError) as raised:
            dialler.receive_untrusted(Frame(kind, b"\x93\x01\x02"))
        want = "malformed" if expected.get(dialler.state) is kind else "unexpected_frame"
        assert raised.value.code == ("refused_by_peer" if kind is FrameKind.BYE else want)


@pytest.mark.parametrize("payload", [b"", b"\x90", b"\x93\x02\xc4\x00\xc4\x00", b"\xc1", bytes(900)])
def test_r67_greetings_with_missing_or_wrong_fields_are_malformed(payload):
    machine = DIALLER.machine()
    machine.start()
    with pytest.raises(PeerError) as raised:
        machine.receive_untrusted(Frame(FrameKind.GREETING, payload))
    assert raised.value.code == "malformed"


def test_other_protocol_version_is_named():
    machine = DIALLER.machine()
    machine.start()
    payload = bytearray(LISTENER.machine().start()[0].payload)
    payload[1] = 2
    with pytest.raises(PeerError) as raised:
        machine.receive_untrusted(Frame(FrameKind.GREETING, bytes(payload)))
    assert raised.value.code == "unsupported_version"


def test_starting_twice_is_our_own_error():
    machine = DIALLER.machine()
    machine.start()
    with pytest.raises(InvariantError):
        machine.start()


def test_bye_carries_a_code_and_nothing_else():
    assert decode_bye_untrusted(encode_bye("wrong_chain").payload) == "wrong_chain"
    for payload in (b"", b"\xff\xfe", b"<b>x</b>", b"Two words", b"\x1b[31m"):
        assert decode_bye_untrusted(payload) == "unclear"
