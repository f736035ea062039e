"""Identities as text: 16 bytes in Crockford's base32, 26 characters of 0-9 and a-z without i l o u. Pure."""

from consensus.ledger.errors import LocalError
from consensus.ledger.payees import IDENTITY_BYTES

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
IDENTITY_CHARACTERS = 26
_BITS = 5
_VALUES = {character: value for value, character in enumerate(ALPHABET)}


def identity_text(identity: bytes) -> str:
    """Return the 26 characters of an identity of 16 bytes."""
    if len(identity) != IDENTITY_BYTES:
        raise LocalError("bad_identity", f"an identity has {IDENTITY_BYTES} bytes, not {len(identity)}")
    number = int.from_bytes(identity, "big")
    return "".join(ALPHABET[number >> _BITS * place & 31] for place in reversed(range(IDENTITY_CHARACTERS)))


def identity_of(text: str) -> bytes:
    """Return the identity that these characters spell; each identity has one spelling.

    Raises:
        LocalError: ``bad_identity``.
    """
    if len(text) != IDENTITY_CHARACTERS or not set(text) <= _VALUES.keys():
        raise LocalError("bad_identity", f"an identity has {IDENTITY_CHARACTERS} characters of {ALPHABET}")
    number = 0
    for character in text:
        number = number << _BITS | _VALUES[character]
    if number >> 8 * IDENTITY_BYTES:
        raise LocalError("bad_identity", "these characters spell more than 16 bytes")
    return number.to_bytes(IDENTITY_BYTES, "big")
