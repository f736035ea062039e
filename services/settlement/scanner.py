"""The scan: looks at stuck events at their time, asks all validators about them, and corrects by the rules.

Type 1 are REGISTERED events: what their transaction came to is asked of every validator, and
:func:`services.settlement.decision.decide` says what follows. Type 2 are ACCOUNT_PENDING ones: the account system is
notified again, until it has finished. This machine's clock says when an event is looked at, never what is decided.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, assert_never

import msgspec
import structlog
import trio

from consensus.ledger.errors import InvariantError, PeerError
from consensus.ledger.transaction import Transaction, decode_transaction_untrusted
from services.client.client import Client
from services.client.errors import Refused, Unreachable
from services.client.tasks import single_errors
from services.settlement import decision
from services.settlement.decision import Action, Resend, Take, Tally, Wait
from services.settlement.relay import Relay
from services.settlement.sending import send
from services.settlement.states import Change, Event, Kind, State
from services.settlement.store import EventStore

PAGE = 200
"""Events that are looked at, and changed, together."""
ASKED_MAX = 16
"""Events that validators are asked about side by side."""
FINISH_ATTEMPTS_MAX = 16
"""How often the end of a reversed trade is tried while others change the trade."""
ALARMS_MAX = 10_000
"""For how many events it is remembered what was said of them."""

log = structlog.get_logger("scan")


class Asks(Protocol):
    """Whoever asks all validators, see :class:`services.settlement.census.Census`."""

    async def ask(self, event: Event) -> Tally:
        """Return what all validators say about an event's transaction."""
        ...


class Scanner:
    """Scans every ``interval_ms``, and when woken; :meth:`run` it once, or :meth:`scan` by hand."""

    def __init__(
        self,
        store: EventStore,
        census: Asks,
        client: Client,
        relay: Relay,
        *,
        interval_ms: int,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._census = census
        self._client = client
        self._relay = relay
        self._interval_ms = interval_ms
        self._now_ms = now_ms
        self._bell = trio.Event()
        self._trouble = ""
        self._alarms: dict[str, str] = {}

    @property
    def trouble(self) -> str:
        """Why the last pass could not do all it should, as a code; "" when it could."""
        return self._trouble

    def wake(self) -> None:
        """Scan now."""
        self._bell.set()

    async def run(self) -> None:
        """Scan for ever."""
        while True:
            self._bell = trio.Event()
            await self.scan()
            with trio.move_on_after(self._interval_ms / 1000):
                await self._bell.wait()

    async def scan(self) -> int:
        """Look at every event whose time has come, drain the outbox, and return how many were looked at.

        Raises:
            Unreachable: ``database_unreachable``.
            StorageError: the disk failed.
        """
        seen: set[str] = set()
        trouble = ""
        while True:
            page = await self._store.due(self._now_ms(), PAGE, ahead_ms=decision.PAUSE_MAX_MS)
            fresh = [event for event in page if event.event not in seen]
            if fresh:
                seen.update(event.event for event in fresh)
                trouble = await self._look(fresh) or trouble
            if len(fresh) < PAGE:  # what is left was changed by somebody else meanwhile, and waits for the next pass
                break
        self._trouble = trouble
        await self._relay.drain()
        return len(seen)

    async def _look(self, events: Sequence[Event]) -> str:
        """Look at a page of events; return what stood in the way, as a code."""
        asked = [event for event in events if event.state is State.REGISTERED]
        tallies, trouble = await self._ask(asked)
        originals = await self._originals(asked)
        changes: list[Change] = []
        resent: dict[str, Transaction] = {}
        now_ms = self._now_ms()
        for event in asked:
            action = decision.decide(event, tallies[event.event], original=originals.get(event.original), now_ms=now_ms)
            changes += self._changes(event, action, now_ms)
            if isinstance(action, Resend):
                resent[event.event] = decode_transaction_untrusted(event.raw)
        decided = {change.after.event for change in changes}  # also trades, by their reversals
        changes += [
            self._remind(event, now_ms)
            for event in events
            if event.state is State.ACCOUNT_PENDING and event.event not in decided
        ]
        taken = await self._store.apply(changes)
        lost = {change.after.event for change, is_taken in zip(changes, taken, strict=True) if not is_taken}
        for event in asked:
            if event.original in lost and event.event not in lost:
                await self._finish_reversal(event.event)
        sent = [transaction for name, transaction in resent.items() if name not in lost]
        return await self._send(sent) or trouble

    def _remind(self, event: Event, now_ms: int) -> Change:
        """Return an event's reminder: without a notice while the centre takes none, or they would pile up here."""
        change = decision.remind(event, now_ms=now_ms)
        return msgspec.structs.replace(change, topics=()) if self._relay.trouble else change

    def _changes(self, event: Event, action: Action, now_ms: int) -> tuple[Change, ...]:
        match action:
            case Take(changes=changes):
                log.info("scan decides", trade=event.event, why=changes[0].why, state=changes[0].after.state.value)
                self._alarms.pop(event.event, None)
                return changes
            case Wait() | Resend():
                self._alarm(event, action.why, action.alarm)
                return (decision.look_again(event, action, now_ms=now_ms),)
            case _:
                assert_never(action)

    def _alarm(self, event: Event, why: str, alarm: str) -> None:
        """Say what an operator should see, once for each event and reason."""
        if not alarm or self._alarms.get(event.event) == alarm:
            return
        if len(self._alarms) >= ALARMS_MAX:
            self._alarms.clear()
        self._alarms[event.event] = alarm
        log.warning("event is stuck", trade=event.event, alarm=alarm, why=why, attempts=event.attempts)

    async def _ask(self, events: Sequence[Event]) -> tuple[dict[str, Tally], str]:
        """Return the tallies by event, empty ones where nobody could be asked; and why not."""
        tallies: dict[str, Tally] = {}
        troubles: list[str] = []
        places = trio.Semaphore(ASKED_MAX)

        async def ask(event: Event) -> None:
            async with places:
                try:
                    tallies[event.event] = await self._census.ask(event)
                except (Unreachable, Refused, PeerError) as error:
                    if not troubles and error.code != self._trouble:
                        log.warning("validators cannot be asked", code=error.code, why=error.message)
                    troubles.append(error.code)
                    tallies[event.event] = Tally((), ratio=1, time_ms=0)

        with single_errors():
            async with trio.open_nursery() as nursery:
                for event in events:
                    nursery.start_soon(ask, event)
        return tallies, troubles[0] if troubles else ""

    async def _finish_reversal(self, reversal: str) -> None:
        """End the trade of a reversal that took effect, after somebody else changed the trade meanwhile."""
        for _ in range(FINISH_ATTEMPTS_MAX):
            (event,) = await self._store.find([reversal])
            if event is None or event.state is not State.COMPLETED:
                return
            (original,) = await self._store.find([event.original])
            changes = decision.on_certified(
                event, original=original, is_ok=True, code="", height=event.height, now_ms=self._now_ms()
            )
            if all(await self._store.apply(changes)):
                return
        log.error("a reversed trade is not ended", trade=reversal)

    async def _originals(self, events: Sequence[Event]) -> dict[str, Event]:
        """Return the trades of reversals by id."""
        ids = list(dict.fromkeys(event.original for event in events if event.kind is Kind.REVERSAL))
        found = await self._store.find(ids) if ids else []
        if any(event is None for event in found):
            raise InvariantError("a reversal without its trade")
        return {event.event: event for event in found if event is not None}

    async def _send(self, transactions: Sequence[Transaction]) -> str:
        """Send transactions again as they are; what a node does not take comes up in a later pass."""
        if not transactions:
            return ""
        try:
            self._client.leave_node()  # the one that had them may have taken them and kept them to itself
            answers = await send(self._client, transactions)
        except (Unreachable, Refused, PeerError) as error:
            if error.code != self._trouble:
                log.warning("transactions cannot be sent again", code=error.code, why=error.message)
            return error.code
        codes = sorted({answer.code for answer in answers if not answer.is_accepted})
        log.info("sent again", count=len(answers), refused=codes)
        return ""
