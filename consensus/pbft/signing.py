"""The two ports through which the engine signs and verifies, and the real ones behind them."""

from typing import Protocol

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey, PublicKey, Purpose

VERIFIED_MAX = 4096
"""Signatures a ``KeyVerifier`` remembers as valid."""


class Signer(Protocol):
    """Signs with this node's vote key, for one chain."""

    @property
    def public_key(self) -> bytes:
        """The compressed vote key, 33 bytes."""

    def sign(self, purpose: Purpose, payload: bytes) -> bytes:
        """Return the 64-byte signature."""


class Verifier(Protocol):
    """Verifies votes of one chain."""

    def verifies(self, key: bytes, purpose: Purpose, payload: bytes, signature: bytes) -> bool:
        """Tell whether ``signature`` is that of ``key`` (33 bytes) for exactly this purpose and payload."""


class KeySigner:
    """Signs with a P-256 key."""

    def __init__(self, key: PrivateKey, chain_id: ChainId) -> None:
        self._key = key
        self._chain_id = chain_id

    @property
    def public_key(self) -> bytes:
        """The compressed vote key, 33 bytes."""
        return self._key.public.compressed

    def sign(self, purpose: Purpose, payload: bytes) -> bytes:
        """Return the 64-byte signature."""
        return self._key.sign(purpose, self._chain_id, payload)


class KeyVerifier:
    """Verifies P-256 signatures and remembers the valid ones by all their bytes, the oldest forgotten first."""

    def __init__(self, chain_id: ChainId, verified_max: int = VERIFIED_MAX) -> None:
        if verified_max < 1:
            raise LocalError("bad_config", "a verifier remembers at least one signature")
        self._chain_id = chain_id
        self._verified_max = verified_max
        self._verified: dict[tuple[bytes, Purpose, bytes, bytes], None] = {}

    def verifies(self, key: bytes, purpose: Purpose, payload: bytes, signature: bytes) -> bool:
        """Tell whether ``signature`` is that of ``key`` for exactly this purpose and payload."""
        entry = (key, purpose, payload, signature)
        if entry in self._verified:
            return True
        try:
            public_key = PublicKey.load_untrusted(key)
        except PeerError:
            return False
        if not public_key.verifies(signature, purpose, self._chain_id, payload):
            return False
        if len(self._verified) >= self._verified_max:
            del self._verified[next(iter(self._verified))]
        self._verified[entry] = None
        return True
