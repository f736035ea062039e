"""Cheap signatures behind the engine's ports: a keyed hash of 64 bytes instead of P-256 (70 µs a pair).

Only who holds a signer can sign for its key; the verifier knows all secrets and belongs to the simulator.
"""

from hashlib import blake2b

from consensus.ledger.keys import PrivateKey, Purpose


def _signature(secret: bytes, purpose: Purpose, payload: bytes, chain: bytes = b"") -> bytes:
    return blake2b(purpose.encode() + b"\0" + payload, key=secret, person=chain).digest()


class CheapSigner:
    """Signs in the name of one vote key, on the chain of the simulation or on another."""

    def __init__(self, key: PrivateKey, secret: bytes, chain: bytes = b"") -> None:
        self._public_key = key.public.compressed
        self._secret = secret
        self._chain = chain

    @property
    def public_key(self) -> bytes:
        """The compressed vote key, 33 bytes."""
        return self._public_key

    def sign(self, purpose: Purpose, payload: bytes) -> bytes:
        """Return 64 bytes."""
        return _signature(self._secret, purpose, payload, self._chain)


class CheapVerifier:
    """Verifies by signing again."""

    def __init__(self, secrets: dict[bytes, bytes]) -> None:
        self._secrets = secrets

    def learn(self, key: bytes, secret: bytes) -> None:
        """Know one more key."""
        self._secrets[key] = secret

    def verifies(self, key: bytes, purpose: Purpose, payload: bytes, signature: bytes) -> bool:
        """Tell whether the signature was made for this key, purpose and payload."""
        secret = self._secrets.get(key)
        return secret is not None and signature == _signature(secret, purpose, payload)
