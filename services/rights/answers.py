"""What the business server answers, and the port that takes events: the intake, or direct submission."""

from collections.abc import Sequence
from typing import Literal, Protocol
from urllib.parse import quote

import msgspec

from services.local.pages import Failed, Problem
from services.rights.events import Event


class Chain(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Where an event stands in the chain: block height, transaction id (0x-hex) and the call's place in it."""

    height: int
    transaction_id: str
    call_index: int


class Taken(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An event that is kept: its id, and where to follow it; ``isNew`` is false where it had come before.

    ``chain`` is known at once only where the server submits directly and waits.
    """

    event_id: str
    follow: str
    is_new: bool
    chain: Chain | None = None


Answer = Taken | Failed


class Followed(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """How an event stands: ``waiting``, ``done``, ``refused`` for ever with ``error``, or a ``dead`` letter.

    Times are UTC in ms, 0 where they are not yet or not any more known. ``result`` is what the contract returned, in
    short.
    """

    event_id: str
    state: Literal["waiting", "done", "refused", "dead"]
    attempts: int
    taken_ms: int = 0
    ended_ms: int = 0
    chain: Chain | None = None
    result: str = ""
    error: Problem | None = None


class Taker(Protocol):
    """Takes events for good."""

    async def take(self, events: Sequence[Event]) -> list[Answer]:
        """Keep 1 to 1,000 events and answer each, in the same order.

        Raises:
            Refused: ``store_full`` or ``intake_full``: none was taken, later there may be room.
            Unreachable: it is unknown which were taken; the same again is safe.
        """
        ...

    async def find(self, kind: str, reference: str, number: str) -> Followed | None:
        """Return how an event stands, None where it is not known.

        Raises:
            Unreachable: nobody can be asked.
        """
        ...

    async def check(self) -> None:
        """Return if events can be taken at present.

        Raises:
            Unreachable: what takes them in the end cannot be reached.
        """
        ...


def taken(event: Event, *, is_new: bool, chain: Chain | None = None) -> Taken:
    """Return the answer for an event that is kept."""
    return Taken(event_id=event.key, follow=f"/events/{quote(event.key)}", is_new=is_new, chain=chain)
