"""The handshake above TLS: both sides prove that they mean this chain, this connection and each other.

Under TLS 1.3 a client whose certificate the server refused looks connected to itself (R70), and a
middle box that ends TLS on both sides is invisible to either end. So three frames go each way::

    GREETING  [version, chain id, nonce]                 at once
    HELLO     [signature] over the transcript            after the peer's greeting was checked
    ACK       [signature] over the transcript, as ACK    after the peer's HELLO was checked

The transcript is (stage, signer's side, dialler's nonce, listener's nonce, SHA-256 of the signer's
certificate, SHA-256 of the peer's certificate as the signer's TLS saw it), signed with the TLS key for
``Purpose.HELLO`` on the chain. The side keeps a signature from being reflected, the stage keeps a HELLO
from passing as an ACK, the nonces keep it from being replayed. A session stands when an ACK was sent
and the peer's ACK was checked.

Both sides run the same machine::

    START --start--> GREETED --GREETING--> PROVEN --HELLO--> ACCEPTED --ACK--> DONE

Pure: the nonce is given in.
"""

from enum import Enum, auto
from typing import Annotated

import msgspec

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.errors import InvariantError, PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import SIGNATURE_BYTES, PrivateKey, PublicKey, Purpose
from consensus.ledger.merkle import HashBytes
from p2p.frames import HANDSHAKE_FRAME_BYTES_MAX, Frame, FrameKind

PROTOCOL_VERSION = 1
NONCE_BYTES = 32


class Side(Enum):
    """Who opened the connection."""

    DIALLER = "dialler"
    LISTENER = "listener"

    @property
    def other(self) -> "Side":
        """The side of the peer."""
        return Side.LISTENER if self is Side.DIALLER else Side.DIALLER


class HelloState(Enum):
    """Where a handshake stands; see the module's diagram."""

    START = auto()
    GREETED = auto()
    PROVEN = auto()
    ACCEPTED = auto()
    DONE = auto()


class _Greeting(Record, frozen=True):
    version: Annotated[int, msgspec.Meta(ge=0, le=65_535)]
    chain_id: HashBytes
    nonce: HashBytes


class _Proof(Record, frozen=True):
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class _Transcript(Record, frozen=True):
    stage: str
    side: str
    nonce_dialler: bytes
    nonce_listener: bytes
    certificate: bytes
    certificate_seen: bytes


_greeting_codec: RecordCodec[_Greeting] = RecordCodec(_Greeting, bytes_max=HANDSHAKE_FRAME_BYTES_MAX)
_proof_codec: RecordCodec[_Proof] = RecordCodec(_Proof, bytes_max=HANDSHAKE_FRAME_BYTES_MAX)
_transcript_codec: RecordCodec[_Transcript] = RecordCodec(_Transcript, bytes_max=HANDSHAKE_FRAME_BYTES_MAX)


class HelloMachine:
    """One side of one handshake.

    Args:
        side: which side we are.
        chain_id: the chain we are on.
        key: the private key of our TLS certificate.
        fingerprint: SHA-256 of our certificate (DER), 32 bytes.
        peer_key: the public key in the certificate that the peer showed.
        peer_fingerprint: SHA-256 of that certificate, 32 bytes.
        nonce: 32 random bytes, used once.
    """

    def __init__(
        self,
        side: Side,
        chain_id: ChainId,
        *,
        key: PrivateKey,
        fingerprint: bytes,
        peer_key: PublicKey,
        peer_fingerprint: bytes,
        nonce: bytes,
    ) -> None:
        self._side = side
        self._chain_id = chain_id
        self._key = key
        self._fingerprint = fingerprint
        self._peer_key = peer_key
        self._peer_fingerprint = peer_fingerprint
        self._nonces = {side: nonce}
        self._state = HelloState.START

    @property
    def state(self) -> HelloState:
        """Where the handshake stands."""
        return self._state

    @property
    def is_done(self) -> bool:
        """Whether both sides have accepted each other."""
        return self._state is HelloState.DONE

    def start(self) -> list[Frame]:
        """Return the frames to send first."""
        if self._state is not HelloState.START:
            raise InvariantError("a handshake starts once")
        self._state = HelloState.GREETED
        greeting = _Greeting(PROTOCOL_VERSION, self._chain_id, self._nonces[self._side])
        return [Frame(FrameKind.GREETING, _greeting_codec.encode(greeting))]

    def receive_untrusted(self, frame: Frame) -> list[Frame]:
        """Take one frame of the peer and return what to send next.

        Raises:
            PeerError: ``unsupported_version``, ``wrong_chain``, ``bad_hello``, ``unexpected_frame``,
                ``malformed``, ``too_large``; or the peer's own code when it said BYE.
        """
        if frame.kind is FrameKind.BYE:
            raise PeerError("refused_by_peer", f"the peer refuses: {decode_bye_untrusted(frame.payload)}")
        match self._state, frame.kind:
            case HelloState.GREETED, FrameKind.GREETING:
                self._check_greeting_untrusted(frame.payload)
                self._state = HelloState.PROVEN
                return [self._proof(FrameKind.HELLO)]
            case HelloState.PROVEN, FrameKind.HELLO:
                self._check_proof_untrusted(FrameKind.HELLO, frame.payload)
                self._state = HelloState.ACCEPTED
                return [self._proof(FrameKind.ACK)]
            case HelloState.ACCEPTED, FrameKind.ACK:
                self._check_proof_untrusted(FrameKind.ACK, frame.payload)
                self._state = HelloState.DONE
                return []
            case _:
                raise PeerError("unexpected_frame", f"{frame.kind.name} while {self._state.name.lower()}")

    def _check_greeting_untrusted(self, payload: bytes) -> None:
        greeting = _greeting_codec.decode_untrusted(payload)
        if greeting.version != PROTOCOL_VERSION:
            raise PeerError("unsupported_version", f"the peer speaks version {greeting.version}")
        if greeting.chain_id != self._chain_id:
            raise PeerError("wrong_chain", "the peer is on another chain")
        if greeting.nonce == self._nonces[self._side]:
            raise PeerError("bad_hello", "the peer sends our own nonce back")
        self._nonces[self._side.other] = greeting.nonce

    def _proof(self, stage: FrameKind) -> Frame:
        transcript = self._transcript(stage, self._side, self._fingerprint, self._peer_fingerprint)
        return Frame(stage, _proof_codec.encode(_Proof(self._key.sign(Purpose.HELLO, self._chain_id, transcript))))

    def _check_proof_untrusted(self, stage: FrameKind, payload: bytes) -> None:
        proof = _proof_codec.decode_untrusted(payload)
        transcript = self._transcript(stage, self._side.other, self._peer_fingerprint, self._fingerprint)
        if not self._peer_key.verifies(proof.signature, Purpose.HELLO, self._chain_id, transcript):
            raise PeerError("bad_hello", f"the signature of the peer's {stage.name} does not hold")

    def _transcript(self, stage: FrameKind, signer: Side, certificate: bytes, certificate_seen: bytes) -> bytes:
        return _transcript_codec.encode(
            _Transcript(
                stage=stage.name,
                side=signer.value,
                nonce_dialler=self._nonces[Side.DIALLER],
                nonce_listener=self._nonces[Side.LISTENER],
                certificate=certificate,
                certificate_seen=certificate_seen,
            )
        )


BYE_BYTES_MAX = 64


def encode_bye(code: str) -> Frame:
    """Return the frame that says why a side closes."""
    return Frame(FrameKind.BYE, code.encode("ascii")[:BYE_BYTES_MAX])


def decode_bye_untrusted(payload: bytes) -> str:
    """Return the peer's code, or ``unclear`` for what is none. Its truth is the peer's affair."""
    text = payload[:BYE_BYTES_MAX].decode("ascii", errors="replace")
    return text if text.replace("_", "").isalnum() and text.isascii() and text.islower() else "unclear"
