"""Nonces that payers sign to say that a stream is theirs: each for one request, within a minute."""

import secrets
from collections.abc import Callable

from consensus.ledger.errors import PeerError
from services.client.errors import Refused
from services.stream.wire import NONCE_BYTES

CHALLENGE_MS_MAX = 60_000
CHALLENGES_MAX = 16_384
"""Nonces that wait to be signed; the oldest makes room for a new one once its time has passed."""


class Challenges:
    """Gives nonces and takes each back once."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._until: dict[bytes, int] = {}

    def give(self) -> tuple[bytes, int]:
        """Return a new nonce and until when it can be signed, ms UTC.

        Raises:
            Refused: ``busy``: too many wait.
        """
        now_ms = self._now_ms()
        while self._until and next(iter(self._until.values())) < now_ms:
            self._until.pop(next(iter(self._until)))
        if len(self._until) >= CHALLENGES_MAX:
            raise Refused("busy", "too many challenges wait to be signed")
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._until[nonce] = now_ms + CHALLENGE_MS_MAX
        return nonce, self._until[nonce]

    def take(self, nonce: bytes) -> None:
        """Use a nonce up.

        Raises:
            PeerError: ``bad_challenge``: it was never given, was used, or is too old.
        """
        if self._until.pop(nonce, 0) < self._now_ms():
            raise PeerError("bad_challenge", "this nonce was not given, or was used, or is too old")
