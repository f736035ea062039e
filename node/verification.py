"""Each transaction is decoded once and its signature checked once a node, however often its bytes arrive."""

from consensus.ledger.errors import PeerError
from consensus.ledger.keys import PublicKey
from consensus.ledger.transaction import Transaction, decode_transaction_untrusted
from contracts.runtime.accounts import load_account
from contracts.runtime.state import StateReader

REMEMBERED_MAX = 50_000


class Verifier:
    """Remembers decoded transactions and by which key their signature was found good.

    The memory is keyed on the full bytes, so a second signature over the same body, or one flipped bit,
    is a stranger.
    """

    def __init__(self) -> None:
        self._decoded: dict[bytes, Transaction] = {}
        self._verified: dict[bytes, bytes] = {}

    def decode_untrusted(self, raw: bytes) -> Transaction:
        """Return the decoded transaction.

        Raises:
            PeerError: as :func:`decode_transaction_untrusted` does.
        """
        known = self._decoded.get(raw)
        if known is not None:
            return known
        transaction = decode_transaction_untrusted(raw)
        if len(self._decoded) >= REMEMBERED_MAX:
            self._forget_oldest()
        self._decoded[transaction.raw] = transaction
        return transaction

    def check_signature_untrusted(self, transaction: Transaction, state: StateReader) -> None:
        """Check the signature against the key that the sender's account has in this state.

        Raises:
            PeerError: ``unknown_account`` or ``bad_signature``.
        """
        account = load_account(state, transaction.sender)
        if account is None:
            raise PeerError("unknown_account", f"no account 0x{transaction.sender.hex()}")
        if self._verified.get(transaction.raw) == account.public_key:
            return
        if not transaction.signed_by(PublicKey.load_untrusted(account.public_key)):
            raise PeerError("bad_signature", "the signature is not the sender's over these bytes")
        self._verified[transaction.raw] = account.public_key

    def forget(self, raw: bytes) -> None:
        """Drop what is known of a transaction that is final."""
        self._decoded.pop(raw, None)
        self._verified.pop(raw, None)

    def _forget_oldest(self) -> None:
        for raw in list(self._decoded)[: REMEMBERED_MAX // 8]:
            self.forget(raw)
