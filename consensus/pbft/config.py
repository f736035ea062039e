"""All that can be set on an engine."""

from dataclasses import dataclass

from consensus.ledger.errors import LocalError
from consensus.ledger.ids import NodeName
from consensus.pbft.signing import Signer, Verifier


@dataclass(frozen=True, slots=True)
class Config:
    """One node's engine. Times are ms by the clock of ``Tick``; none of them may differ for safety to hold (R39).

    Attributes:
        name: This node's name in the validator set; a name outside the set observes.
        signer: Signs with the vote key of that name.
        verifier: Verifies everyone's votes.
        timeout_ms: How long view 0 may take without a commit; doubles with every view.
        timeout_ms_max: Where the doubling ends.
        suspect_timeout_ms: The same for a primary that failed its last turn (SPEC P20).
        quiet_after_ms: After a block with transactions, a quiet block follows when nothing else does.
        heartbeat_ms: After a quiet block, the next one when nothing else comes.
        resend_ms: How long nothing may happen before the others are asked for what is missing.
        status_ms: How often the others are asked anyway.
    """

    name: NodeName
    signer: Signer
    verifier: Verifier
    timeout_ms: int = 1_000
    timeout_ms_max: int = 8_000
    suspect_timeout_ms: int = 200
    quiet_after_ms: int = 1_000
    heartbeat_ms: int = 30_000
    resend_ms: int = 200
    status_ms: int = 1_000

    def validate(self) -> None:
        """Check every field.

        Raises:
            LocalError: ``bad_config`` naming the field.
        """
        if not 1 <= len(self.name) <= 32:
            raise LocalError("bad_config", "name has 1 to 32 characters")
        bounds = {
            "timeout_ms": (self.timeout_ms, 10, 60_000),
            "timeout_ms_max": (self.timeout_ms_max, self.timeout_ms, 600_000),
            "suspect_timeout_ms": (self.suspect_timeout_ms, 1, self.timeout_ms),
            "quiet_after_ms": (self.quiet_after_ms, 1, 3_600_000),
            "heartbeat_ms": (self.heartbeat_ms, self.quiet_after_ms, 3_600_000),
            "resend_ms": (self.resend_ms, 1, self.timeout_ms),
            "status_ms": (self.status_ms, self.resend_ms, 60_000),
        }
        for field, (value, low, high) in bounds.items():
            if not low <= value <= high:
                raise LocalError("bad_config", f"{field} is {value}, allowed are {low} to {high}")
