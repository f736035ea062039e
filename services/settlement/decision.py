"""What is done with an event, from what is known: pure, and complete. The table stands in ``docs/settlement.md``.

Three places decide. :func:`on_certified` hears of a receipt under a verified certificate, :func:`on_answer` of what
the account system said, and :func:`decide` looks at one stuck event with the answers of all validators.
"""

from dataclasses import dataclass
from enum import StrEnum

from services.settlement.states import Change


class Verdict(StrEnum):
    """What one validator's answer is worth."""

    SUCCEEDED = "succeeded"
    """A receipt that says so, under a certificate that holds."""
    FAILED = "failed"
    """A receipt of failure, under a certificate that holds."""
    ABSENT = "absent"
    """Proven at a sealed root whose block time is past the transaction's validity: the lane is unused, or another's."""
    HELD = "held"
    """It waits there, or may still come: nothing is decided."""
    UNKNOWN = "unknown"
    """Unreachable, behind, or without an opinion."""
    LIAR = "liar"
    """It claims what it cannot prove."""


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """One validator's answer about one transaction; ``code`` of a failed receipt, ``height`` of the block."""

    validator: str
    verdict: Verdict
    code: str = ""
    height: int = 0


@dataclass(frozen=True, slots=True)
class Tally:
    """What all validators of the current set answer about one transaction; ``ratio`` of them must agree.

    ``time_ms`` is the newest block time under a certificate that was seen meanwhile.
    """

    answers: tuple[NodeAnswer, ...]
    ratio: int
    time_ms: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done yet; ``alarm`` says what an operator should see, "" while all is as it should be."""

    why: str
    alarm: str = ""


@dataclass(frozen=True, slots=True)
class Resend:
    """Send the identical bytes again."""

    why: str


@dataclass(frozen=True, slots=True)
class Take:
    """Take these changes, all of them in one transaction; the first is the event's own."""

    changes: tuple[Change, ...]


Action = Wait | Resend | Take
