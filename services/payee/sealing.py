"""What only a platform, the environments that it trusts, and who asked can open.

A *record* holds its content under the platform's key of an epoch, bound to identity, server and version. A *wrap* is
that key, encrypted to one environment. An *answer* is encrypted to the key that its query brought. Wraps and answers
share one construction: a fresh P-256 key, ECDH with the receiver's, HKDF-SHA256 (RFC 5869) over the shared secret
with all that the message is bound to as ``info``, and AES-256-GCM under the key and nonce that come of it. So a
fresh key is for one message, and whoever opens one finds out that any of it was altered.

Errors never hold what was sealed, nor a key. Pure: fresh keys and random bytes are given in.
"""

from collections.abc import Callable
from typing import Final, Self

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from consensus.ledger.codec import Value, encode
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.keys import GROUP_ORDER, PUBLIC_KEY_BYTES
from consensus.ledger.payees import (
    CIPHERTEXT_BYTES_MAX,
    AnswerContent,
    Content,
    answer_content_codec,
    commitment,
    content_codec,
    record_place,
)
from consensus.ledger.sealing import KEY_BYTES, NONCE_BYTES, TAG_BYTES

WRAP_BYTES: Final = PUBLIC_KEY_BYTES + KEY_BYTES + TAG_BYTES
"""A wrap: the fresh public key, then the encrypted key with its tag."""

RandomBytes = Callable[[int], bytes]


class ExchangeKey:
    """A P-256 private key for ECDH alone: an environment's for as long as it lives, or a fresh one for one message."""

    __slots__ = ("_key", "public")

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
        )
        """33 bytes, compressed."""

    @classmethod
    def generate(cls) -> Self:
        """Make a new key from the operating system's randomness."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_secret(cls, secret: bytes) -> Self:
        """Return the key with this number, 32 bytes, big-endian.

        Raises:
            LocalError: ``bad_key``.
        """
        number = int.from_bytes(secret, "big")
        if len(secret) != KEY_BYTES or not 0 < number < GROUP_ORDER:
            raise LocalError("bad_key", "an exchange key is a number of 32 bytes below the order of P-256")
        return cls(ec.derive_private_key(number, ec.SECP256R1()))

    def secret(self) -> bytes:
        """Return the number, 32 bytes, big-endian."""
        return self._key.private_numbers().private_value.to_bytes(KEY_BYTES, "big")

    def shared(self, other: bytes) -> bytes:
        """Return the secret that this key and another's compressed point have in common, 32 bytes.

        Raises:
            PeerError: ``bad_key``.
        """
        if len(other) != PUBLIC_KEY_BYTES:
            raise PeerError("bad_key", f"a compressed P-256 key has {PUBLIC_KEY_BYTES} bytes, not {len(other)}")
        try:
            # Not ``PublicKey``, whose cache is for keys that stay.
            point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), other)
        except (ValueError, UnsupportedAlgorithm):
            raise PeerError("bad_key", "these bytes are no point of P-256") from None
        return self._key.exchange(ec.ECDH(), point)


class EpochKey:
    """A platform's symmetric key of one epoch.

    It seals at most 2^32 records before two random nonces might meet (NIST SP 800-38D).
    """

    __slots__ = ("_cipher", "_key")

    def __init__(self, key: bytes) -> None:
        """Take 32 random bytes.

        Raises:
            LocalError: ``bad_key``.
        """
        if len(key) != KEY_BYTES:
            raise LocalError("bad_key", f"an epoch's key has {KEY_BYTES} bytes, not {len(key)}")
        self._key = key
        self._cipher = AESGCM(key)

    def secret(self) -> bytes:
        """Return the key itself, for the vault of its platform."""
        return self._key

    def seal_record(
        self, content: Content, *, identity: bytes, server: str, version: int, random_bytes: RandomBytes
    ) -> bytes:
        """Return a record's ciphertext: nonce ‖ ciphertext ‖ tag."""
        nonce = random_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(
            nonce, content_codec.encode(content), record_place(identity, server, version)
        )

    def open_record(self, ciphertext: bytes, *, identity: bytes, server: str, version: int) -> Content:
        """Return what a record holds; it need not be what the record commits to, see :func:`check_commitment`.

        Raises:
            PeerError: ``bad_record``: another key, another place, altered bytes, or no content inside.
        """
        if not NONCE_BYTES + TAG_BYTES <= len(ciphertext) <= CIPHERTEXT_BYTES_MAX:
            raise PeerError("bad_record", "a record's ciphertext has another size")
        nonce, place = ciphertext[:NONCE_BYTES], record_place(identity, server, version)
        try:
            return content_codec.decode_untrusted(self._cipher.decrypt(nonce, ciphertext[NONCE_BYTES:], place))
        except (InvalidTag, PeerError):
            raise PeerError("bad_record", "a record does not open with this key at this place") from None


def check_commitment(content: Content, committed: bytes) -> None:
    """Raise PeerError ``bad_commitment`` unless a record commits to this content."""
    if commitment(content.salt, content.plaintext) != committed:
        raise PeerError("bad_commitment", "a record opens to something else than it commits to")


def wrap_epoch_key(
    key: EpochKey, *, server: str, epoch: int, environment: str, exchange_key: bytes, fresh: ExchangeKey
) -> bytes:
    """Return an epoch's key encrypted to an environment's exchange key (33 bytes), ``WRAP_BYTES`` long.

    Raises:
        PeerError: ``bad_key`` where the exchange key is none.
    """
    place: list[Value] = ["payee-wrap", server, epoch, environment]
    return fresh.public + _seal(fresh, exchange_key, place, key.secret())


def unwrap_epoch_key(wrap: bytes, *, server: str, epoch: int, environment: str, exchange: ExchangeKey) -> EpochKey:
    """Return the key that a platform has wrapped for the environment with this exchange key.

    Raises:
        PeerError: ``wrong_key``: wrapped for another key, place or epoch, altered, or no wrap.
    """
    if len(wrap) != WRAP_BYTES:
        raise PeerError("wrong_key", f"a wrapped key has {WRAP_BYTES} bytes, not {len(wrap)}")
    place: list[Value] = ["payee-wrap", server, epoch, environment]
    return EpochKey(_open(exchange, wrap[:PUBLIC_KEY_BYTES], place, wrap[PUBLIC_KEY_BYTES:]))


def seal_answer(
    content: AnswerContent, *, query: bytes, environment: str, height: int, exchange_key: bytes, fresh: ExchangeKey
) -> bytes:
    """Return an answer's content encrypted to the exchange key of a query, which is named by its hash.

    Raises:
        PeerError: ``bad_key`` where the exchange key is none.
    """
    return _seal(
        fresh, exchange_key, ["payee-answer", query, environment, height], answer_content_codec.encode(content)
    )


def open_answer(
    sealed: bytes, *, query: bytes, environment: str, height: int, exchange_key: bytes, own: ExchangeKey
) -> AnswerContent:
    """Return an answer's content; ``exchange_key`` is the answer's, ``own`` the one made for the query.

    Raises:
        PeerError: ``wrong_key``: encrypted to another key or query, or altered; ``malformed``: no content inside.
    """
    opened = _open(own, exchange_key, ["payee-answer", query, environment, height], sealed)
    try:
        return answer_content_codec.decode_untrusted(opened)
    except PeerError:
        raise PeerError("malformed", "an answer holds no content") from None


def derived(secret: bytes, info: bytes, *, bytes_count: int, salt: bytes | None = None) -> bytes:
    """Return so many bytes of HKDF-SHA256 (RFC 5869)."""
    return HKDF(hashes.SHA256(), bytes_count, salt, info).derive(secret)


def _seal(fresh: ExchangeKey, receiver: bytes, place: list[Value], value: bytes) -> bytes:
    key, nonce = _agreed(fresh, receiver, [*place, fresh.public, receiver])
    return AESGCM(key).encrypt(nonce, value, None)


def _open(own: ExchangeKey, sender: bytes, place: list[Value], sealed: bytes) -> bytes:
    try:
        key, nonce = _agreed(own, sender, [*place, sender, own.public])
        return AESGCM(key).decrypt(nonce, sealed, None)
    except (InvalidTag, PeerError):
        raise PeerError("wrong_key", "what is sealed to a key does not open with this one at this place") from None


def _agreed(own: ExchangeKey, other: bytes, info: list[Value]) -> tuple[bytes, bytes]:
    """Return key and nonce for one message between two keys."""
    made = derived(own.shared(other), encode(info), bytes_count=KEY_BYTES + NONCE_BYTES)
    return made[:KEY_BYTES], made[KEY_BYTES:]
