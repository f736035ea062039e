"""What the message centre gives to who publishes and to who consumes, in its own process or over the wire.

The queue of the centre (:mod:`services.messages.queue`) and the client of its program
(:mod:`services.messages.link`) both fill :class:`MessageCenter`, so that programs and tests take either.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from services.messages.store import NewMessage, Published, Record, State

PUBLISH_MESSAGES_MAX = 1_000
"""How many messages one call publishes."""
WINDOW_MAX = 1_024
"""How many deliveries one consumer may have unsettled."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message leased to a consumer. ``attempt`` counts from 1.

    ``fence`` rises with every lease of the whole queue, also over restarts: what is settled under a fence that
    is not the message's newest counts for nothing.
    """

    sequence: int
    fence: int
    attempt: int
    key: str
    lane: str
    body: bytes


class Verdict(StrEnum):
    """What a consumer says of a delivery."""

    DONE = "done"
    REFUSED = "refused"
    """For ever, with a typed reason: no attempt would change it."""
    DEAD = "dead"
    """Not understood: a dead letter at once."""
    RETRY = "retry"
    """Again later; until then its lane waits."""
    PARK = "park"
    """Again later; what follows in its lane may go first, since it may be what this one waits for."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """A consumer's verdict on a delivery. ``detail`` is a receipt in short or a reason, up to 1 KiB.

    ``exhausted`` is how a message that has had all its attempts ends after RETRY or PARK: DEAD or REFUSED.
    """

    sequence: int
    fence: int
    verdict: Verdict
    detail: str = ""
    exhausted: State = State.DEAD


@dataclass(frozen=True, slots=True)
class Stats:
    """How the queue stands. ``oldest_ms`` is the age of the oldest waiting message, 0 without one.

    ``delivered_count`` counts deliveries since the centre's start; ``leased`` and ``parked`` are part of ``waiting``.
    """

    waiting: int
    waiting_bytes: int
    leased: int
    parked: int
    done: int
    refused: int
    dead: int
    oldest_ms: int
    delivered_count: int
    consumers: int
    rate_per_s: float
    is_strict: bool


class Subscription(Protocol):
    """A consumer's side: ``async for delivery in subscription``, and settle each."""

    def __aiter__(self) -> "Subscription":
        """Return itself."""
        ...

    async def __anext__(self) -> Delivery:
        """Wait for the next delivery; ends when the centre does."""
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Settle deliveries, durably; False stands for one whose fence is not the newest."""
        ...


class MessageCenter(Protocol):
    """A durable queue with lanes, a pace, and ends that can be looked up."""

    async def publish(self, messages: Sequence[NewMessage]) -> list[Published]:
        """Keep 1 to 1,000 messages; they are durable when this returns. Answers come in the same order.

        Raises:
            Refused: ``store_full``: all or nothing; what waits has to drain first, or dead letters have to go.
            Unreachable: ``center_unreachable``: it is unknown what was kept; the same again is safe.
        """
        ...

    def consume(self, name: str, *, window: int) -> AbstractAsyncContextManager[Subscription]:
        """Receive deliveries for the time of the block, at most ``window`` of them unsettled at a time.

        At its end what is unsettled goes to whoever consumes next; unless the block ended by itself, it may be why, and
        what ends consumers time and again becomes a dead letter. Deliveries of all consumers together keep the
        centre's rate: no window of T seconds holds more than rate × T + 1 of them as the consumers receive them.
        """
        ...

    async def find(self, keys: Sequence[str]) -> list[Record | None]:
        """Return up to 1,000 messages by their keys; None where there is none, or none any more."""
        ...

    async def ended(self, state: State, after: int, limit: int) -> list[Record]:
        """Return up to ``limit`` (1,000) messages that ended so, above sequence ``after``, ascending."""
        ...

    async def replay(self, sequences: Sequence[int]) -> int:
        """Make dead letters wait again, with all attempts before them, and return how many there were."""
        ...

    async def discard(self, sequences: Sequence[int]) -> int:
        """Drop up to 1,000 dead letters for ever, and return how many there were; their keys are forgotten."""
        ...

    async def stats(self) -> Stats:
        """Return how the queue stands."""
        ...
