"""The fault panel: how the account system is told to misbehave, for tests and demonstrations alone.

What goes wrong is drawn from a seeded generator of each fault, so that the same orders in the same sequence fail in
the same way. Faults are forgotten when the program ends.
"""

import random
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from services.accounts.port import Operation
from services.client.errors import Refused

FAULTS_MAX = 100
"""How many faults are in force at a time."""
DELAY_MS_MAX = 60_000
COUNT_MAX = 1_000_000

Kind = Literal["delay", "lose_answer", "answer_twice", "refuse", "down"]
"""``delay``: answer later. ``lose_answer``: do it, then drop the connection. ``answer_twice``: do it once more after it
was answered, as a late duplicate would. ``refuse``: refuse with ``code``, and do nothing. ``down``: drop the connection
and do nothing."""


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One way to misbehave, for requests that hold an order of ``operation``, "" for requests of any kind.

    Args:
        kind: what goes wrong.
        operation: whose orders meet it; the others of the same request share its fate, but for ``refuse``.
        count: how often it happens (for ``refuse``, to how many orders) before it is over; 0: until it is cleared.
        probability: how likely a request (an order) meets it, in 1/100.
        seed: of the generator that draws.
        delay_ms: of ``delay``.
        code: of ``refuse``.
    """

    kind: Kind
    operation: Literal["", "reserve", "pay", "release", "reverse"] = ""
    count: Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)] = 1
    probability: Annotated[int, msgspec.Meta(ge=1, le=100)] = 100
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 1
    delay_ms: Annotated[int, msgspec.Meta(ge=0, le=DELAY_MS_MAX)] = 1_000
    code: Annotated[str, msgspec.Meta(pattern=r"^[a-z_]{1,40}\Z")] = "account_frozen"


class FaultAt(Fault, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A fault in force, and how often it has happened."""

    happened: int = 0


class _Armed:
    """A fault with its generator and its count."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.happened = 0
        self._random = random.Random(fault.seed)

    def strikes(self, operations: Sequence[Operation]) -> bool:
        """Draw whether these meet it, and count it."""
        if self.fault.count and self.happened >= self.fault.count:
            return False
        if self.fault.operation and self.fault.operation not in operations:
            return False
        if self._random.randrange(100) >= self.fault.probability:
            return False
        self.happened += 1
        return True


class FaultPanel:
    """The faults in force, oldest first."""

    def __init__(self) -> None:
        self._armed: list[_Armed] = []

    def add(self, faults: Sequence[Fault]) -> None:
        """Put more in force; ``too_many_faults`` beyond ``FAULTS_MAX``."""
        if len(self._armed) + len(faults) > FAULTS_MAX:
            raise Refused("too_many_faults", f"at most {FAULTS_MAX} faults are in force at a time: clear them first")
        self._armed += [_Armed(fault) for fault in faults]

    def clear(self) -> None:
        """Forget all."""
        self._armed.clear()

    def shown(self) -> list[FaultAt]:
        """Return all faults in force, also those whose count is used up."""
        return [FaultAt(**msgspec.structs.asdict(armed.fault), happened=armed.happened) for armed in self._armed]

    def struck(self, kind: Kind, operations: Sequence[Operation]) -> Fault | None:
        """Return the first fault of a kind that a request with these operations meets now; it counts as happened."""
        return next(
            (armed.fault for armed in self._armed if armed.fault.kind == kind and armed.strikes(operations)), None
        )
