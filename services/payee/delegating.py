"""Lets payers' clients sign queries for the platform, each with a key of its own and for a short while."""

from collections.abc import Callable

from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey, PublicKey, Purpose
from consensus.ledger.payees import delegation_hash
from services.payee.interfaces import Delegate, Delegated

DELEGATION_MS = 3_600 * 1_000
"""How long a delegation lasts; nobody can take it back, so it is short."""


class Delegator:
    """Signs delegations with the platform's key."""

    def __init__(self, server: str, chain_id: ChainId, key: PrivateKey, now_ms: Callable[[], int]) -> None:
        self.server = server
        self._chain_id = chain_id
        self._key = key
        self._now_ms = now_ms

    def delegate(self, params: Delegate) -> Delegated:
        """See :class:`services.payee.interfaces.Delegate`.

        Raises:
            PeerError: ``bad_key``.
        """
        key = bytes.fromhex(params.key.removeprefix("0x"))
        PublicKey.load_untrusted(key)
        until_ms = self._now_ms() + DELEGATION_MS
        signed = delegation_hash(self.server, key, until_ms)
        signature = self._key.sign(Purpose.PAYEE_PLATFORM, self._chain_id, signed)
        return Delegated(self.server, params.key, until_ms, f"0x{signature.hex()}")
