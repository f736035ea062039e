"""Encryption of what lies on a disk: AES-256-GCM under one key, a random nonce for each value, its place bound to it.

The randomness is given in (``secrets.token_bytes``). A key seals at most 2^32 values before random nonces might meet
(NIST SP 800-38D); whoever keeps a store counts on that.
"""

from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consensus.ledger.errors import LocalError, StorageError

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16


class Sealer:
    """Seals values for the places where they are kept, and opens them there and nowhere else."""

    def __init__(self, key: bytes, random_bytes: Callable[[int], bytes]) -> None:
        """Take a key of 32 bytes, and where random bytes come from, so many at a time.

        Raises:
            LocalError: ``bad_key``.
        """
        if len(key) != KEY_BYTES:
            raise LocalError("bad_key", f"a key for sealing has {KEY_BYTES} bytes, not {len(key)}")
        self._cipher = AESGCM(key)
        self._random_bytes = random_bytes

    def seal(self, place: bytes, value: bytes) -> bytes:
        """Return nonce ‖ ciphertext ‖ tag of a value that is kept at this place."""
        nonce = self._random_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, value, place)

    def open(self, place: bytes, sealed: bytes) -> bytes:
        """Return the value.

        Raises:
            StorageError: ``not_sealed_here``: another key, another place, or altered bytes.
        """
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place)
        except (InvalidTag, ValueError):
            raise StorageError("not_sealed_here", "a sealed value does not open with this key at this place") from None
