"""Names for the kinds of bytes and numbers that travel through the house, and the hash behind them."""

from hashlib import sha256
from typing import NewType

Hash = NewType("Hash", bytes)
"""32 bytes, SHA-256."""

Address = NewType("Address", bytes)
"""20 bytes that name an account for life, whatever becomes of its key."""

ChainId = NewType("ChainId", bytes)
"""32 bytes: the hash of the genesis document."""

NodeName = NewType("NodeName", str)
"""A node's name as in genesis and membership, for example ``bank-a``: 1 to 32 of ``a-z 0-9 -``."""

HASH_BYTES = 32
ADDRESS_BYTES = 20
ZERO_HASH = Hash(bytes(HASH_BYTES))


def tagged_hash(domain: str, *parts: bytes) -> Hash:
    """SHA-256 of ``hansa:DOMAIN\\0`` and the parts, so that no two kinds of data share a hash.

    The parts are joined as they are: all but the last must have a length fixed by the domain.
    """
    return Hash(sha256(b"hansa:" + domain.encode("ascii") + b"\0" + b"".join(parts)).digest())


def account_address(public_key: bytes) -> Address:
    """Return the address of an account created with this compressed P-256 key (33 bytes)."""
    return Address(tagged_hash("account", public_key)[:ADDRESS_BYTES])
