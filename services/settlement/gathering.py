"""Calls of many tasks made as few: what is asked for while a call is under way goes together in the next one.

Who comes when nothing is under way does not wait. There is no task of its own: one of those who ask makes the call for
all, and where that one is cancelled another takes its place.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeVar

import msgspec
import trio

from consensus.ledger.errors import HansaError
from services.accounts.port import EventId
from services.client.errors import Refused
from services.settlement.interfaces import REGISTER_MAX, Ended, EndsQuery, EventsLink
from services.settlement.states import Event

ItemT = TypeVar("ItemT")
AnswerT = TypeVar("AnswerT")

POLLS_MAX = 8
"""Calls that wait for ends at a time."""
POLL_MS = 1_000
"""How long such a call waits: so long a newcomer may have to, where all of them wait for what is stuck."""


class _Ticket(Generic[ItemT, AnswerT]):
    """What one asker wants, and in the end has: answers or an error."""

    __slots__ = ("answers", "bell", "error", "items")

    def __init__(self, items: Sequence[ItemT]) -> None:
        self.items = items
        self.bell = trio.Event()
        self.answers: list[AnswerT] | None = None
        self.error: HansaError | None = None

    def ring(self) -> None:
        """Wake the asker."""
        self.bell.set()
        self.bell = trio.Event()


class Gathering(Generic[ItemT, AnswerT]):
    """One call at a time, of all that has gathered, up to ``size_max`` items; answers come in the items' order."""

    def __init__(self, call: Callable[[list[ItemT]], Awaitable[list[AnswerT]]], *, size_max: int) -> None:
        self._call = call
        self._size_max = size_max
        self._is_busy = False
        self._waiting: dict[_Ticket[ItemT, AnswerT], None] = {}

    async def ask(self, items: Sequence[ItemT]) -> list[AnswerT]:
        """Return the answers to up to ``size_max`` items; what a call raises, all whose items it had raise."""
        ticket: _Ticket[ItemT, AnswerT] = _Ticket(items)
        self._waiting[ticket] = None
        try:
            while True:
                if ticket.error is not None:
                    raise ticket.error
                if ticket.answers is not None:
                    return ticket.answers
                if self._is_busy:
                    await ticket.bell.wait()
                else:
                    await self._lead()
        finally:
            self._waiting.pop(ticket, None)
            self._wake_next()

    async def _lead(self) -> None:
        """Make one call with the first of all who wait."""
        self._is_busy = True
        group: list[_Ticket[ItemT, AnswerT]] = []
        try:
            await trio.lowlevel.checkpoint()  # whoever comes in the same moment is taken along
            group = self._first()
            answers = iter(await self._call([item for ticket in group for item in ticket.items]))
            for ticket in group:
                ticket.answers = [next(answers) for _ in ticket.items]
        except HansaError as error:
            for ticket in group:
                ticket.error = error
        finally:
            self._is_busy = False
            for ticket in group:
                ticket.ring()

    def _first(self) -> list[_Ticket[ItemT, AnswerT]]:
        group: list[_Ticket[ItemT, AnswerT]] = []
        size = 0
        for ticket in self._open():
            size += len(ticket.items)
            if group and size > self._size_max:
                break
            group.append(ticket)
        return group

    def _open(self) -> Iterator[_Ticket[ItemT, AnswerT]]:
        return (ticket for ticket in self._waiting if ticket.answers is None and ticket.error is None)

    def _wake_next(self) -> None:
        if not self._is_busy and (ticket := next(self._open(), None)) is not None:
            ticket.ring()


class _Waiter:
    """One task that waits for the end of one event; ``is_polled`` while a call does so for it."""

    __slots__ = ("bell", "end", "event", "is_polled", "is_unknown")

    def __init__(self, event: str) -> None:
        self.event = event
        self.is_polled = False
        self.bell = trio.Event()
        self.end: Event | None = None
        self.is_unknown = False

    def ring(self) -> None:
        """Wake the task."""
        self.bell.set()
        self.bell = trio.Event()


class Ends:
    """Waits for the ends of events for many tasks, by few calls of ``ends``."""

    def __init__(self, events: EventsLink) -> None:
        self._events = events
        self._waiters: dict[_Waiter, None] = {}
        self._polls = 0

    async def wait(self, event: str) -> Event:
        """Return an event once it is finished or needs an operator.

        Raises:
            Unreachable: the event system does not answer.
            Refused: ``unknown_event``, ``busy``.
        """
        try:
            waiter = _Waiter(msgspec.convert(event, EventId))
        except msgspec.ValidationError:  # a call that names it would be refused with all that it asks for
            raise Refused("unknown_event", f"{event[:64]!r} is no event's id") from None
        self._waiters[waiter] = None
        try:
            while waiter.end is None:
                if waiter.is_unknown:
                    raise Refused("unknown_event", f"there is no event {event}")
                if waiter.is_polled or self._polls >= POLLS_MAX:
                    await waiter.bell.wait()
                else:
                    await self._poll()
            return waiter.end
        finally:
            del self._waiters[waiter]

    async def _poll(self) -> None:
        """Make one call for the first of all for whom none is under way."""
        group = [waiter for waiter in self._waiters if not waiter.is_polled and waiter.end is None][:REGISTER_MAX]
        names = list(dict.fromkeys(waiter.event for waiter in group))
        for waiter in group:
            waiter.is_polled = True
        self._polls += 1
        try:
            answer = await self._events.call("ends", EndsQuery(names, POLL_MS), Ended)
            ends = {event.event: event for event in answer.items}
            for waiter in group:
                waiter.end = ends.get(waiter.event)
                waiter.is_unknown = waiter.event in answer.unknown
        finally:
            self._polls -= 1
            for waiter in group:
                waiter.is_polled = False
            for waiter in self._waiters:
                waiter.ring()
