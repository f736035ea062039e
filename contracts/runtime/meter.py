"""Steps: what a call may cost, counted the same on every node and never by a clock.

A step is about one plain statement. The loader puts a charge at the entry of every function and at every
turn of a loop, and routes what can grow (``*``, ``**``, joins, sorts, comparisons of lists, …) through
guards that charge before they work. State, events, calls and hashes charge by number and by bytes.

A meter that has run out stays so: every later charge raises again.
"""

from typing import NoReturn

from consensus.ledger.errors import HansaError

STEPS_PER_CALL_MAX = 200_000
STEPS_PER_TRANSACTION_MAX = 1_000_000
STEPS_PER_QUERY_MAX = 500_000
STEPS_GENESIS_MAX = 500_000_000
STEPS_PER_BLOCK_MAX = 8_000_000
"""A transaction may begin while its block has used fewer steps than this."""

DEPTH_MAX = 48
"""How deep a contract's functions may call each other; far below what the interpreter's stack holds."""
CALL_DEPTH_MAX = 6
"""How deep contracts may call contracts."""

GET_STEPS = 20
PUT_STEPS = 50
SCAN_STEPS = 40
SCAN_ENTRY_STEPS = 10
EMIT_STEPS = 20
CALL_STEPS = 30
HASH_STEPS = 10
KEY_STEPS = 200
"""For parsing a public key: a square root modulo p."""
VERIFY_STEPS = 800
"""For parsing a public key and checking a signature: 60 µs where ``KEY_STEPS`` pays for 16."""


class OutOfSteps(HansaError):
    """A call has used all its steps, or nested too deep; a contract cannot catch it."""

    def __init__(self) -> None:
        super().__init__("out_of_steps", "the call needs more steps, or nests deeper, than is allowed")


class Meter:
    """Counts steps down. One meter serves one executor, one call at a time; it is not for threads."""

    __slots__ = ("calls", "depth", "left", "limit")

    def __init__(self) -> None:
        self.limit = 0
        self.left = 0
        self.depth = 0
        self.calls = 0

    def begin(self, limit: int) -> None:
        """Start counting for a call that may use ``limit`` steps."""
        self.limit = limit
        self.left = limit
        self.depth = 0
        self.calls = 0

    @property
    def used(self) -> int:
        """Steps used since ``begin``, at most the limit."""
        return self.limit - max(self.left, 0)

    def charge(self, steps: int) -> None:
        """Count ``steps`` before the work that they pay for.

        Raises:
            OutOfSteps: the call has no steps left.
        """
        self.left -= steps
        if self.left < 0:
            self.stop()

    def tick(self, steps: int) -> bool:
        """Charge, and return True: the form that stands in expressions."""
        self.left -= steps
        if self.left < 0:
            self.stop()
        return True

    def stop(self) -> NoReturn:
        """Use up what is left and raise."""
        self.left = -1
        raise OutOfSteps
