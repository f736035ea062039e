"""What the event system does when it is called: registers, releases, cancels, takes answers, shows, repairs.

A caller's word becomes a change by the pure rules of :mod:`services.settlement.decision`; where somebody was faster it
is decided anew. What is checked of a registered transaction: that its bytes are exactly the delivery of these terms, to
this chain, under our agent, in the event's one-shot lane, and for how long it is valid. Its signature is left to the
chain: with a wrong one it is never included, and ends CANCELLED by proof of absence.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import trio

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.transaction import decode_transaction_untrusted
from services.accounts.port import Answer, Operation
from services.local.service import LocalService
from services.settlement import decision
from services.settlement.interfaces import (
    AnswersPut,
    AnswersTaken,
    Cancel,
    Ended,
    EndsQuery,
    EventAnswer,
    EventQuery,
    EventsPage,
    EventsQuery,
    Kept,
    Register,
    Registered,
    Registration,
    Release,
    Repair,
)
from services.settlement.states import Change, Event, Kind, State
from services.settlement.store import Selection
from services.settlement.trades import VALIDITY_MS_MAX, is_delivery
from services.settlement.watched import WatchedStore

VALIDITY_MS_MIN = 10_000
"""A transaction that is valid for less would hardly be included before its validity ends."""
CLOCKS_MS_MAX = 10_000
"""How far this machine's clock and the chain's time may lie apart."""
EVENT_CHARACTERS_MAX = 48
"""Of a trade's id: the rest is for its reversals."""
NOT_HELD = frozenset({"already_paid", "operation_conflict"})
"""Refusals of a RELEASE that asking again does not mend: nothing is held for this trade."""
CHANGE_ATTEMPTS_MAX = 16
"""How often a change is decided anew because somebody else was faster."""

log = structlog.get_logger("events")

_REVERSAL_ID = re.compile(r"\.reverse[0-9]*\Z")


@dataclass(frozen=True, slots=True)
class Rules:
    """What registered transactions are checked against: our chain, and the agent that holds their liens."""

    chain_id: ChainId
    agent: bytes


class Engine:
    """The methods of ``events.sock`` but ``status``.

    Args:
        chain_time_ms: the newest certified block time that is known, 0 for none.
        on_repair: hears that an operator wants something done at once.
        now_ms: this machine's clock, UTC.
    """

    def __init__(
        self,
        store: WatchedStore,
        rules: Rules,
        *,
        chain_time_ms: Callable[[], int],
        on_repair: Callable[[], None],
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._rules = rules
        self._chain_time_ms = chain_time_ms
        self._on_repair = on_repair
        self._now_ms = now_ms

    def add_methods(self, service: LocalService) -> None:
        """Add the methods, see :mod:`services.settlement.interfaces`."""
        service.add("register", Register, self.register)
        service.add("release", Release, self.release)
        service.add("cancel", Cancel, self.cancel)
        service.add("answers_put", AnswersPut, self.answers_put)
        service.add("event", EventQuery, self.event, waits=True)
        service.add("ends", EndsQuery, self.ends, waits=True)
        service.add("events", EventsQuery, self.events)
        service.add("repair", Repair, self.repair)

    # -- trades ----------------------------------------------------------------------------------------

    async def register(self, params: Register) -> Registered:
        """Keep trades; what is kept under an id for longer is answered instead of what comes now."""
        items: list[Kept | Event] = [self._checked(trade) for trade in params.trades]
        kept = iter(await self._store.register([item for item in items if isinstance(item, Event)]))
        refused = [trade.event for trade, item in zip(params.trades, items, strict=True) if isinstance(item, Kept)]
        known = await self._found(refused) if refused else {}
        answers: list[Kept] = []
        for trade, item in zip(params.trades, items, strict=True):
            if isinstance(item, Event):
                answers.append(_same(trade, next(kept)))
            else:
                found = known.get(trade.event)
                answers.append(item if found is None else _same(trade, found))
        return Registered(answers)

    async def release(self, params: Release) -> Registered:
        """Let transactions be sent, of events that nobody cancelled."""
        now_ms = self._now_ms()
        return Registered(await self._change(params.events, lambda event: decision.on_release(event, now_ms=now_ms)))

    async def cancel(self, params: Cancel) -> Registered:
        """Give up events that were not released."""
        now_ms = self._now_ms()
        return Registered(
            await self._change(params.events, lambda event: decision.on_cancel(event, params.code, now_ms=now_ms))
        )

    async def answers_put(self, params: AnswersPut) -> AnswersTaken:
        """Take what the account system said; about events that are not here, nothing."""
        waiting = dict(enumerate(params.answers))
        changed, again = [False] * len(params.answers), [False] * len(params.answers)
        for _ in range(CHANGE_ATTEMPTS_MAX):
            if not waiting:
                break
            found = await self._found([answer.event for answer in waiting.values()])
            now_ms = self._now_ms()
            changes: dict[int, Change] = {}
            for index, answer in waiting.items():
                event = found.get(answer.event)
                if event is None:
                    continue
                again[index] = _is_held(event, answer)
                change = decision.on_answer(event, answer, now_ms=now_ms)
                if change is not None:
                    changes[index] = change
            taken = await self._store.apply([*changes.values()]) if changes else []
            lost = [index for index, is_taken in zip(changes, taken, strict=True) if not is_taken]
            for index in changes:
                changed[index] = index not in lost
            waiting = {index: waiting[index] for index in lost}
        if waiting:
            raise LocalError("busy", "others change the same events all the time")
        return AnswersTaken(changed, again)

    async def repair(self, params: Repair) -> Kept:
        """Do what an operator asks for an unfinished event."""
        now_ms = self._now_ms()
        (kept,) = await self._change(
            [params.event], lambda event: decision.on_repair(event, params.action, now_ms=now_ms)
        )
        if kept.code:
            raise LocalError(kept.code, kept.message)
        self._on_repair()
        return kept

    def _checked(self, trade: Registration) -> Event | Kept:
        terms = trade.terms
        try:
            transaction = decode_transaction_untrusted(trade.raw)
        except PeerError as error:
            return _bad(f"the transaction's bytes are none: {error.message}")
        body = transaction.body
        if len(trade.event) > EVENT_CHARACTERS_MAX or _REVERSAL_ID.search(trade.event):
            return _bad(f"an id has up to {EVENT_CHARACTERS_MAX} characters and does not end like a reversal's")
        if body.chain_id != self._rules.chain_id:
            return _bad("the transaction is for another chain")
        if not terms.units > 0 or terms.seller == terms.buyer or terms.payer == terms.payee:
            return _bad("a trade has units, two parties, and two accounts")
        if not is_delivery(transaction, trade.event, terms, self._rules.agent):
            return _bad("the transaction is not the delivery of these terms under our agent")
        now_ms, chain_ms = self._now_ms(), self._chain_time_ms()
        ends_ms = body.valid_until_ms
        if ends_ms < min(now_ms, chain_ms or now_ms) + VALIDITY_MS_MIN - CLOCKS_MS_MAX:
            return _bad("the transaction's validity is over, or nearly")
        if ends_ms > max(now_ms, chain_ms) + VALIDITY_MS_MAX + CLOCKS_MS_MAX:
            return _bad("the transaction is valid for more than an hour")
        return decision.opened(
            trade.event,
            terms,
            transaction_id=bytes(transaction.id),
            raw=trade.raw,
            valid_until_ms=ends_ms,
            now_ms=now_ms,
        )

    async def _change(self, ids: Sequence[str], decide: Callable[[Event], Change | None]) -> list[Kept]:
        """Change each event as it is decided, and anew where somebody was faster; in the order of ``ids``."""
        kept: dict[str, Kept] = {}
        waiting = list(dict.fromkeys(ids))
        for _ in range(CHANGE_ATTEMPTS_MAX):
            found = await self._found(waiting)
            changes: list[Change] = []
            for name in waiting:
                event = found.get(name)
                if event is None:
                    kept[name] = Kept(None, "unknown_event", f"there is no event {name}")
                    continue
                try:
                    change = decide(event)
                except LocalError as error:
                    kept[name] = Kept(event, error.code, error.message)
                    continue
                if change is None:
                    kept[name] = Kept(event)
                else:
                    changes.append(change)
            taken = await self._store.apply(changes) if changes else []
            kept |= {
                change.after.event: Kept(change.after)
                for change, is_taken in zip(changes, taken, strict=True)
                if is_taken
            }
            waiting = [name for name in waiting if name not in kept]
            if not waiting:
                return [kept[name] for name in ids]
        raise LocalError("busy", "others change the same events all the time")

    async def _found(self, ids: Sequence[str]) -> dict[str, Event]:
        return {event.event: event for event in await self._store.find(list(dict.fromkeys(ids))) if event is not None}

    # -- looking ---------------------------------------------------------------------------------------

    async def event(self, params: EventQuery) -> EventAnswer:
        """Return an event with its history, once its version is above one; waits for that."""
        with self._store.watch([params.event]) as watch:
            event = await self._one(params.event)
            with trio.move_on_after(params.wait_ms / 1000) as waited:
                while event.version <= params.after_version and not event.is_finished:
                    (event,) = await watch.next()
        if waited.cancelled_caught:
            event = await self._one(params.event)
        return EventAnswer(event, await self._store.history(params.event))

    async def _one(self, name: str) -> Event:
        (event,) = await self._store.find([name])
        if event is None:
            raise LocalError("unknown_event", f"there is no event {name}")
        return event

    async def ends(self, params: EndsQuery) -> Ended:
        """Return those events that need no more waiting for; waits for the first."""
        with self._store.watch(params.events) as watch:
            found = await self._found(params.events)
            unknown = [name for name in params.events if name not in found]
            events = [event for event in found.values() if is_end(event)]
            with trio.move_on_after(params.wait_ms / 1000):
                while not events and not unknown:
                    events = [event for event in await watch.next() if is_end(event)]
        return Ended(events, unknown)

    async def events(self, params: EventsQuery) -> EventsPage:
        """Return a page of events."""
        selection = Selection(params.state, params.is_flagged, params.from_ms, params.until_ms)
        items = await self._store.listed(selection, params.after, params.limit)
        return EventsPage(items, items[-1].event if len(items) == params.limit else "")


def is_end(event: Event) -> bool:
    """Tell whether waiting for an event has an end: it is finished, or needs an operator."""
    return event.is_finished or event.is_flagged


def _is_held(event: Event, answer: Answer) -> bool:
    """Tell whether a cancelled trade's money is not given back yet: no scan looks at such an event any more."""
    if event.state is not State.CANCELLED or answer.operation is not Operation.RELEASE or answer.is_done:
        return False
    log.error("a cancelled trade's money is not released", trade=event.event, code=answer.code, why=answer.message)
    return answer.code not in NOT_HELD


def _same(trade: Registration, kept: Event) -> Kept:
    """Return what is kept under a trade's id, or that it is another one.

    Its bytes are not looked at: what a clock that is wrong, or late, signed again does no harm.
    """
    if (kept.kind, kept.terms) != (Kind.TRADE, trade.terms):
        return Kept(None, "event_conflict", f"{kept.event} is another trade; another one needs an id of its own")
    return Kept(kept)


def _bad(message: str) -> Kept:
    return Kept(None, "bad_trade", message)
