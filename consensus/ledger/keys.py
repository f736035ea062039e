"""P-256 keys and signatures: one curve for clients, votes and TLS, one domain for each use.

A signature is 64 bytes, r ‖ s, big-endian, with s in the lower half of the group order, made
deterministically (RFC 6979). What is signed is ``hansa ‖ version ‖ chain id ‖ purpose ‖ payload``, so
that a signature made for one purpose or one chain says nothing anywhere else.
"""

from enum import StrEnum
from functools import lru_cache
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import Address, ChainId, account_address

GROUP_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
SIGNATURE_BYTES = 64
PUBLIC_KEY_BYTES = 33

_SIGN = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
_VERIFY = ec.ECDSA(hashes.SHA256())
_FORMAT_VERSION = b"\x01"


class Purpose(StrEnum):
    """What a signature is for.

    A key is for one group of purposes only: clients (``TRANSACTION`` and those of streams), votes, sessions, business
    events, business agreements (from ``AGREEMENT`` to ``ANSWER``), private channels, payees: a merchant's, a
    platform's, an environment's.
    """

    TRANSACTION = "transaction"
    PROPOSAL = "proposal"
    PREPARE = "prepare"
    COMMIT = "commit"
    VIEW_CHANGE = "view-change"
    NEW_VIEW = "new-view"
    HELLO = "hello"
    GENESIS = "genesis"
    SEAT = "seat"
    BUSINESS_EVENTS = "business-events"
    AGREEMENT = "agreement"
    TERMS = "terms"
    ORDERS = "orders"
    ANSWER = "answer"
    CHANNEL_MESSAGE = "channel-message"
    CHANNEL_RECEIPT = "channel-receipt"
    PAYEE_MERCHANT = "payee-merchant"
    PAYEE_CODE = "payee-code"
    PAYEE_PLATFORM = "payee-platform"
    PAYEE_QUERY = "payee-query"
    PAYEE_QUOTE = "payee-quote"
    PAYEE_ANSWER = "payee-answer"
    STREAM_TERMS = "stream-terms"
    STREAM_CLOSE = "stream-close"
    STREAM_HELLO = "stream-hello"


def signed_bytes(purpose: Purpose, chain_id: ChainId, payload: bytes) -> bytes:
    """Return the bytes that a signature of this purpose covers."""
    return b"hansa" + _FORMAT_VERSION + chain_id + purpose.encode("ascii") + b"\0" + payload


class PublicKey:
    """A P-256 public key, known by its 33 compressed bytes (SEC 1)."""

    __slots__ = ("_key", "compressed")

    def __init__(self, key: ec.EllipticCurvePublicKey, compressed: bytes) -> None:
        self._key = key
        self.compressed = compressed

    @staticmethod
    def load_untrusted(compressed: bytes) -> "PublicKey":
        """Return the key for 33 compressed bytes; objects are cached, since building one costs a square root.

        Raises:
            PeerError: ``bad_key``.
        """
        return _load_public_key(bytes(compressed))

    @property
    def address(self) -> Address:
        """The address of an account created with this key."""
        return account_address(self.compressed)

    def verifies(self, signature: bytes, purpose: Purpose, chain_id: ChainId, payload: bytes) -> bool:
        """Tell whether this is the signature of exactly these bytes; false for high s and for any malformed one."""
        if len(signature) != SIGNATURE_BYTES:
            return False
        r = int.from_bytes(signature[:32], "big")
        s = int.from_bytes(signature[32:], "big")
        if not (0 < r < GROUP_ORDER and 0 < s <= GROUP_ORDER // 2):
            return False
        try:
            self._key.verify(encode_dss_signature(r, s), signed_bytes(purpose, chain_id, payload), _VERIFY)
        except InvalidSignature:
            return False
        return True


@lru_cache(maxsize=65_536)
def _load_public_key(compressed: bytes) -> PublicKey:
    if len(compressed) != PUBLIC_KEY_BYTES:
        raise PeerError("bad_key", f"a compressed P-256 key has {PUBLIC_KEY_BYTES} bytes, not {len(compressed)}")
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), compressed)
    except (ValueError, UnsupportedAlgorithm):
        raise PeerError("bad_key", "these bytes are no point of P-256") from None
    return PublicKey(key, compressed)


class PrivateKey:
    """A P-256 private key that signs for one of the purposes."""

    __slots__ = ("_key", "public")

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
        self.public = PublicKey.load_untrusted(point)

    @classmethod
    def generate(cls) -> Self:
        """Make a new key from the operating system's randomness."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_secret(cls, secret: int) -> Self:
        """Derive a key from a number in 1…n−1; for tests and simulations that must be repeatable."""
        return cls(ec.derive_private_key(secret, ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes, passphrase: bytes | None = None) -> Self:
        """Load a PKCS#8 key.

        Raises:
            LocalError: ``wrong_passphrase`` or ``bad_key``.
        """
        try:
            key = serialization.load_pem_private_key(pem, passphrase)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            encrypted = b"ENCRYPTED" in pem
            raise LocalError("wrong_passphrase" if encrypted else "bad_key", str(error)) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise LocalError("bad_key", "the file holds no P-256 private key")
        return cls(key)

    def to_pem(self, passphrase: bytes | None) -> bytes:
        """Return the key as PKCS#8, in clear only when the passphrase is None.

        Raises:
            LocalError: ``empty_passphrase``.
        """
        if passphrase == b"":
            raise LocalError("empty_passphrase", "an empty passphrase protects nothing")
        encryption: serialization.KeySerializationEncryption = (
            serialization.BestAvailableEncryption(passphrase)
            if passphrase is not None
            else serialization.NoEncryption()
        )
        return self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)

    @property
    def exchange(self) -> ec.EllipticCurvePrivateKey:
        """The key object of ``cryptography``, for certificates."""
        return self._key

    def sign(self, purpose: Purpose, chain_id: ChainId, payload: bytes) -> bytes:
        """Return the 64-byte signature of the payload for this purpose on this chain."""
        r, s = decode_dss_signature(self._key.sign(signed_bytes(purpose, chain_id, payload), _SIGN))
        return r.to_bytes(32, "big") + min(s, GROUP_ORDER - s).to_bytes(32, "big")
