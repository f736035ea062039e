"""Where a node's processor time goes, stage by stage, counted a block at a time.

Seconds of the thread that does the work, so that a busy machine does not show as slow code. What no stage
counts is the network, the web server and the event loop.
"""

import time
from enum import StrEnum

from consensus.ledger.keys import PublicKey
from consensus.ledger.transaction import Transaction

SAMPLE = 64
"""Reading the clock twice costs a fiftieth of a verification: one of so many is timed, and counts for all."""


class Stage(StrEnum):
    """A stage of a transaction's way through a node."""

    VERIFY = "verify"
    """The signatures of transactions."""
    ADMIT = "admit"
    """Decoding them, looking up sender and lane, taking them into the pool."""
    PROPOSE = "propose"
    """Choosing what a block takes."""
    EXECUTE = "execute"
    ROOTS = "roots"
    """Of transactions, receipts and writes; encoding the block."""
    SEAL = "seal"
    """The state tree."""
    RECORDS = "records"
    """What the store is given of a block."""
    WRITE = "write"
    """LevelDB's log and table in memory, and the sync; not its compaction, which has a thread of its own."""
    ADOPT = "adopt"
    """The new state in memory."""
    POOL = "pool"
    """Letting go of what is final, and answering who waits for it."""


_VERIFYING = (Stage.ADMIT, Stage.EXECUTE)
"""Where signatures are checked: those of the pool, and those of blocks that a node catches up with."""


class _Span:
    """One stretch of work. A generator would cost as much as all else here."""

    __slots__ = ("_began_s", "_seconds", "_stage", "_verified_s")

    def __init__(self, seconds: dict[Stage, float], stage: Stage) -> None:
        self._seconds = seconds
        self._stage = stage

    def __enter__(self) -> None:
        self._verified_s = self._seconds[Stage.VERIFY]
        self._began_s = time.thread_time()

    def __exit__(self, *_: object) -> None:
        spent_s = time.thread_time() - self._began_s
        if self._stage in _VERIFYING:
            spent_s -= self._seconds[Stage.VERIFY] - self._verified_s
        self._seconds[self._stage] += spent_s


class Stages:
    """Adds up seconds. Each stage is counted by one thread at a time."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(Stage, 0.0)
        self._verifications = 0

    def timed(self, stage: Stage) -> "_Span":
        """Count what this thread works inside a ``with``; signatures that are checked there count for themselves."""
        return _Span(self._seconds, stage)

    def verified(self, transaction: Transaction, key: PublicKey) -> bool:
        """Tell whether the transaction is signed by this key."""
        self._verifications += 1
        if self._verifications % SAMPLE:
            return transaction.signed_by(key)
        began_s = time.thread_time()
        is_good = transaction.signed_by(key)
        self._seconds[Stage.VERIFY] += SAMPLE * (time.thread_time() - began_s)
        return is_good

    def report(self) -> dict[str, float]:
        """Return the seconds of each stage, none of which contains another."""
        return {str(stage): max(0.0, seconds) for stage, seconds in self._seconds.items()}
