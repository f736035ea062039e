"""The validators of one height, with everything about them looked up once."""

from consensus.ledger.ids import NodeName
from consensus.ledger.keys import Purpose
from consensus.ledger.validators import ValidatorSet
from consensus.pbft.signing import Verifier


class Roster:
    """A validator set with its keys by name, n, f and q (SPEC P1)."""

    def __init__(self, validators: ValidatorSet, verifier: Verifier) -> None:
        self.validators = validators
        self.names = validators.names
        self.size = validators.size
        self.faulty_max = validators.faulty_max
        self.quorum = validators.quorum
        self._keys = {validator.name: validator.vote_key for validator in validators.validators}
        self._verifier = verifier

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def has_key(self, name: str, public_key: bytes) -> bool:
        """Tell whether this member votes with this key (33 bytes)."""
        return self._keys.get(name) == public_key

    def primary(self, height: int, view: int) -> NodeName:
        """Return who proposes at this height and view (P2)."""
        return self.names[(height + view) % self.size]

    def verifies(self, signer: str, purpose: Purpose, payload: bytes, signature: bytes) -> bool:
        """Tell whether this is a member's valid signature; false for everyone who is no member."""
        key = self._keys.get(signer)
        return key is not None and self._verifier.verifies(key, purpose, payload, signature)
