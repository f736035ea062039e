"""Each transaction is decoded once and its signature checked once a node, however often its bytes arrive."""

from collections import OrderedDict
from dataclasses import dataclass

from consensus.ledger.errors import PeerError
from consensus.ledger.keys import PublicKey
from consensus.ledger.transaction import Transaction, decode_transaction_untrusted
from contracts.runtime.accounts import load_account
from contracts.runtime.state import StateReader
from node.stages import Stages

REMEMBERED_MAX = 50_000
REMEMBERED_BYTES_MAX = 128 * 1024 * 1024
"""Twice what the pool holds at the most: what waits is still known when a block brings it."""


@dataclass(slots=True)
class _Known:
    transaction: Transaction
    key: bytes = b""
    """The public key (33 bytes) by which the signature was found good, empty before that."""


class Verifier:
    """Remembers decoded transactions and by which key their signature was found good.

    The memory is keyed on the full bytes, so a second signature over the same body, or one flipped bit,
    is a stranger. It is bounded in number and bytes; what came first is forgotten first.
    """

    def __init__(self, stages: Stages | None = None) -> None:
        self._stages = stages or Stages()
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._bytes = 0

    @property
    def bytes_held(self) -> int:
        """Sum of the sizes of all transactions remembered."""
        return self._bytes

    def decode_untrusted(self, raw: bytes) -> Transaction:
        """Return the decoded transaction.

        Raises:
            PeerError: as :func:`decode_transaction_untrusted` does.
        """
        known = self._known.get(raw)
        if known is not None:
            return known.transaction
        transaction = decode_transaction_untrusted(raw)
        self._known[transaction.raw] = _Known(transaction)
        self._bytes += len(raw)
        while len(self._known) > REMEMBERED_MAX or self._bytes > REMEMBERED_BYTES_MAX:
            self.forget(next(iter(self._known)))
        return transaction

    def check_signature_untrusted(self, transaction: Transaction, state: StateReader) -> None:
        """Check the signature against the key that the sender's account has in this state.

        Raises:
            PeerError: ``unknown_account`` or ``bad_signature``.
        """
        key = _key_in_force(transaction, state)
        known = self._known.get(transaction.raw)
        if known is not None and known.key == key:
            return
        if not self._stages.verified(transaction, PublicKey.load_untrusted(key)):
            raise PeerError("bad_signature", "the signature is not the sender's over these bytes")
        if known is not None:
            known.key = key

    def check_unchanged_untrusted(self, transaction: Transaction, state: StateReader) -> None:
        """Check that the key which the signature was good for is still in force, mostly without verifying again.

        Raises:
            PeerError: ``unknown_account`` or ``bad_signature``.
        """
        known = self._known.get(transaction.raw)
        if known is None or not known.key:
            self.check_signature_untrusted(transaction, state)
        elif known.key != _key_in_force(transaction, state):
            raise PeerError("bad_signature", "the sender's key has been replaced")

    def forget(self, raw: bytes) -> None:
        """Drop what is known of a transaction that is final or refused."""
        if self._known.pop(raw, None) is not None:
            self._bytes -= len(raw)


def _key_in_force(transaction: Transaction, state: StateReader) -> bytes:
    account = load_account(state, transaction.sender)
    if account is None:
        raise PeerError("unknown_account", f"no account 0x{transaction.sender.hex()}")
    return account.public_key
