"""The port between a queue and what keeps its messages; two stores fill it, and one test suite holds for both.

A store knows nothing of lanes, leases or rates: it keeps records by sequence number and finds them by key.
Whatever a method changes is durable when it returns, whole or not at all. One process at a time owns a store:
:meth:`Store.open` takes the next *epoch*, and every change of an owner with an older one fails with ``fenced``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

KEY_BYTES_MAX = 256
LANE_BYTES_MAX = 128
BODY_BYTES_MAX = 16 * 1024
MARK_BYTES_MAX = 32
DETAIL_BYTES_MAX = 1_024
"""What is said about an end: a receipt in short, or a reason."""


class State(StrEnum):
    """Where a message is. WAITING is the only state it is delivered from; the others are ends."""

    WAITING = "waiting"
    DONE = "done"
    REFUSED = "refused"
    """The chain said no, for ever: a typed code."""
    DEAD = "dead"
    """Given up after its attempts, or not understood: a dead letter, until it is replayed."""


@dataclass(frozen=True, slots=True)
class NewMessage:
    """What a publisher hands in.

    Args:
        key: what makes it this message, for ever; up to 256 bytes of UTF-8. The same again is no second message.
        lane: messages of one lane are delivered one after the other; up to 128 bytes.
        body: up to 16 KiB.
        mark: what a repeat is told by from another message under the same key, also when the body is long gone; up to
            32 bytes. Empty stands for the body's SHA-256; who signs each body anew marks what it says instead.
    """

    key: str
    lane: str
    body: bytes
    mark: bytes = b""


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a :class:`NewMessage`: its place, and whether it is new.

    ``is_conflict`` says that the key stands for a message with another mark, which was kept.
    """

    sequence: int
    is_new: bool
    is_conflict: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A waiting message without its body: ``due_ms`` (UTC, 0: at once) is when it may go out after ``attempts``.

    One that is *parked* lets later messages of its lane pass.
    """

    sequence: int
    lane: str
    attempts: int = 0
    due_ms: int = 0
    is_parked: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A message as the store knows it. ``detail`` is what its end, or its last failure, said: up to 1 KiB.

    ``published_ms`` and ``ended_ms`` (0 while waiting) are UTC. ``body`` is empty once it is done or refused and
    the store has let go of it.
    """

    sequence: int
    key: str
    lane: str
    body: bytes
    state: State
    attempts: int
    detail: str
    published_ms: int
    ended_ms: int


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of a waiting message: an end, or WAITING with its next attempt not before ``due_ms``."""

    sequence: int
    state: State
    attempts: int
    detail: str = ""
    due_ms: int = 0
    is_parked: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """How many messages are in each state, and how many bytes the waiting bodies have."""

    waiting: int
    done: int
    refused: int
    dead: int
    waiting_bytes: int


class Store(Protocol):
    """Messages that survive a crash.

    Every method raises StorageError where the disk or the server behind it fails, and ``fenced`` where another
    owner has opened the store since.
    """

    async def open(self) -> int:
        """Take the store over and return the epoch, higher than any before."""
        ...

    async def append(self, messages: Sequence[NewMessage], now_ms: int) -> list[Published]:
        """Keep messages behind all others, in this order; answers come in the same order.

        A key that is known, in any state, gives its first place and appends nothing; also twice in one call.

        Raises:
            Refused: ``store_full``: the store has no room now, and has kept nothing of it.
        """
        ...

    async def entries(self, after: int, limit: int) -> list[Entry]:
        """Return up to ``limit`` waiting messages with sequences above ``after``, ascending."""
        ...

    async def bodies(self, sequences: Sequence[int]) -> dict[int, tuple[str, bytes]]:
        """Return key and body of those of these messages that wait."""
        ...

    async def change(self, changes: Sequence[Change], now_ms: int) -> None:
        """Apply changes to waiting messages; one of a message that does not wait any more is passed over."""
        ...

    async def find(self, keys: Sequence[str]) -> list[Record | None]:
        """Return the messages with these keys, None where there is none, or none any more."""
        ...

    async def ended(self, state: State, after: int, limit: int) -> list[Record]:
        """Return up to ``limit`` messages that ended so, with sequences above ``after``, ascending."""
        ...

    async def revive(self, sequences: Sequence[int]) -> list[Entry]:
        """Make those of these that are dead letters wait again, with no attempts, and return them."""
        ...

    async def discard(self, sequences: Sequence[int]) -> int:
        """Drop those of these that are dead letters, and return how many there were; their keys are new again."""
        ...

    async def counts(self) -> Counts:
        """Return how much there is of everything."""
        ...

    async def forget(self, ended_before_ms: int, keep_max: int) -> int:
        """Drop what was done or refused before then, and all but the newest ``keep_max`` of it; return how many.

        Dead letters stay until :meth:`discard`. A key that was dropped is new again: whoever relies on keys for longer
        keeps them elsewhere.
        """
        ...

    async def close(self) -> None:
        """Let go of files and connections."""
        ...
