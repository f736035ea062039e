"""What partners of an agency sale sign, and the salted leaves under the roots that the chain keeps.

Contract, node and programs spell it the same: the hashes here are those that a contract gets from ``context.hash``
for the same parts, and a signature covers the 32 bytes of such a hash for its purpose on its chain.

An order's leaf and its outcome's leaf hide behind 32 random bytes of their own, since orders are small enough to be
guessed. Who discloses one order gives away its salt and no other's. Pure.
"""

from collections.abc import Sequence

from consensus.ledger.codec import Value, encode
from consensus.ledger.errors import LocalError
from consensus.ledger.ids import HASH_BYTES, Hash, tagged_hash

SALT_BYTES = 32
PACKAGE_ORDERS_MAX = 1_024
"""How many applications one package carries: one signature, one root, one anchor."""
FIRST_ANSWER = bytes(HASH_BYTES)
"""Stands for the answer before an issuer's first one to a bank."""


def agreement_hash(
    number: str,
    bank: str,
    issuers: Sequence[str],
    document: bytes,
    valid_from_ms: int,
    valid_until_ms: int,
    grace_ms: int,
) -> Hash:
    """Return what bank and issuers sign, for ``Purpose.AGREEMENT``.

    Args:
        number: the agreement's own, unique at its bank.
        bank: name of the selling organisation.
        issuers: names of the issuing organisations, ascending.
        document: SHA-256 of the paper that they agreed on; the chain sees nothing else of it.
        valid_from_ms: from when it counts, ms UTC.
        valid_until_ms: when its channels close by themselves, ms UTC.
        grace_ms: how long confirmations may still travel after a revocation.
    """
    return _hash("agreement", number, bank, [*issuers], document, valid_from_ms, valid_until_ms, grace_ms)


def terms_hash(
    bank: str, issuer: str, subject: str, version: int, terms: dict[str, Value], effective_ms: int, expires_ms: int
) -> Hash:
    """Return what both sides sign, for ``Purpose.TERMS``; ``version`` is the one that comes next for the subject."""
    return _hash("terms", bank, issuer, subject, version, terms, effective_ms, expires_ms)


def orders_hash(bank: str, issuer: str, epoch: int, root: bytes, count: int) -> Hash:
    """Return what a bank signs when it sends a package, for ``Purpose.ORDERS``."""
    return _hash("orders", bank, issuer, epoch, root, count)


def answer_hash(
    bank: str, issuer: str, epoch: int, root: bytes, round_number: int, outcome_root: bytes, previous: bytes
) -> Hash:
    """Return what an issuer signs when it answers a package, for ``Purpose.ANSWER``.

    ``round_number`` is 0 for the confirmations of the package's applications and 1 for the allotment of its initial
    subscriptions. ``previous`` is this hash of the issuer's answer to this bank before it, :data:`FIRST_ANSWER` for
    the first: whoever holds an answer can tell which one must stand before it.
    """
    return _hash("answer", bank, issuer, epoch, root, round_number, outcome_root, previous)


def order_leaf(salt: bytes, application: bytes) -> Hash:
    """Return the leaf of an application, in canonical bytes, under its package's orders' root.

    Raises:
        LocalError: ``bad_salt`` for one that has not 32 bytes: a byte more could be the application's first.
    """
    return tagged_hash("agency-order", _checked_salt(salt), application)


def outcome_leaf(salt: bytes, application_and_confirmation: bytes) -> Hash:
    """Return the leaf of the canonical pair [application, confirmation] under the outcome root.

    Raises:
        LocalError: ``bad_salt``.
    """
    return tagged_hash("agency-outcome", _checked_salt(salt), application_and_confirmation)


def _checked_salt(salt: bytes) -> bytes:
    if len(salt) != SALT_BYTES:
        raise LocalError("bad_salt", f"a salt has {SALT_BYTES} bytes, not {len(salt)}")
    return salt


def _hash(*parts: Value) -> Hash:
    return tagged_hash("contract-data", encode([*parts]))
