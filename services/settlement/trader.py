"""The transaction system: a trade is signed, registered, its money held, released; only then it is sent.

    sign → register (durable) → RESERVE in the account system → release (durable) → submit to any node → wait

Each step may be repeated, and so may the whole: what the event system keeps under an id counts, and its bytes are what
is sent. Many trades go together, a step at a time, also those of many tasks. Whoever dies in between leaves nothing
that the scan does not end.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import structlog
import trio

from consensus.ledger.errors import HansaError, InvariantError, LocalError, PeerError
from consensus.ledger.transaction import Transaction, decode_transaction_untrusted
from services.accounts.port import AccountSystem, Answer, Operation, Order
from services.client.client import VALIDITY_MS, Client
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.client.tasks import single_errors
from services.settlement.gathering import Ends, Gathering
from services.settlement.interfaces import (
    REGISTER_MAX,
    Cancel,
    EventAnswer,
    EventQuery,
    EventsLink,
    Kept,
    Register,
    Registered,
    Registration,
    Release,
)
from services.settlement.sending import send
from services.settlement.states import Event, State, Terms
from services.settlement.trades import deliver_call, lane_of, order_of

PAUSE_FIRST_MS = 50
PAUSE_MAX_MS = 1_000
SUBMIT_ATTEMPTS_MAX = 2
"""How often a transaction is offered to nodes that do not answer; then the scan sends it."""
MAY_PASS = frozenset({"pool_full", "sender_full", "lane_number_taken", "lane_used", "lane_consumed"})
"""Refusals of a node that say nothing about the trade: it is full, or has the very transaction already."""

log = structlog.get_logger("trader")


@dataclass(frozen=True, slots=True)
class Trade:
    """A trade to be made: its id, the seller's signer, what is traded, and how long its transaction is valid."""

    event: str
    signer: Signer
    terms: Terms
    validity_ms: int = VALIDITY_MS


class Trader:
    """Makes trades.

    Args:
        events: the link to the event system.
        accounts: the account system.
        client: of the chain; any node will do.
        agent: the account that holds the liens, the event system's.
        now_ms: this machine's clock, UTC.
    """

    def __init__(
        self,
        events: EventsLink,
        accounts: AccountSystem,
        client: Client,
        *,
        agent: bytes,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._events = events
        self._accounts = accounts
        self._client = client
        self._agent = agent
        self._now_ms = now_ms
        self._ends = Ends(events)
        self._registering = Gathering(self._register_all, size_max=REGISTER_MAX)
        self._holding = Gathering(self._hold_all, size_max=REGISTER_MAX)
        self._releasing = Gathering(self._release_all, size_max=REGISTER_MAX)
        self._submitting = Gathering(self._submit_all, size_max=REGISTER_MAX)

    # -- trades ----------------------------------------------------------------------------------------

    async def trade(self, trade: Trade, *, timeout_ms: int = VALIDITY_MS) -> EventAnswer:
        """Make one trade and return it, with its history, when it has ended, needs an operator, or time is up.

        Raises:
            Refused: ``bad_trade``, ``event_conflict``: nothing was registered.
            Unreachable: the event system, see :meth:`place`.
            LocalError: ``bad_trade``.
        """
        (kept,) = await self.place([trade])
        if kept.event is None:
            raise Refused(kept.code, kept.message)
        return await self.wait(trade.event, timeout_ms=timeout_ms)

    async def place(self, trades: Sequence[Trade]) -> list[Kept]:
        """Bring up to ``REGISTER_MAX`` trades to the chain; return each as it stands then, in order.

        ``code`` says why one went no further. ``accounts_unreachable``, ``node_unreachable`` and a node's refusal leave
        it to the scan, which ends it by proof once its transaction is no longer valid, if nothing comes of it.

        Raises:
            Refused: the event system takes nothing now.
            Unreachable: ``program_unreachable``, ``program_timeout``: it is not known what it took; the same again
                is safe. Nothing was sent that was not registered and released.
            LocalError: ``bad_trade``: more than ``REGISTER_MAX``, or terms that are none.
        """
        if not 0 < len(trades) <= REGISTER_MAX:
            raise LocalError("bad_trade", f"{len(trades)} trades, 1 to {REGISTER_MAX} go together")
        registrations = [_checked(Registration(trade.event, trade.terms, self.sign(trade).raw)) for trade in trades]
        kept = dict(enumerate(await self._registering.ask(registrations)))
        await self._hold(kept)
        await self._release(kept)
        await self._submit(kept)
        return [kept[index] for index in range(len(trades))]

    def sign(self, trade: Trade) -> Transaction:
        """Return the signed delivery of a trade, in the one-shot lane of its event.

        Raises:
            LocalError: ``bad_trade``.
        """
        try:
            call = deliver_call(trade.event, trade.terms, self._agent)
            lane = lane_of(trade.event)
            return self._client.sign(trade.signer, [call], sequence=0, lane=lane, validity_ms=trade.validity_ms)
        except (LocalError, InvariantError) as error:
            raise LocalError("bad_trade", f"{trade.event} cannot be signed: {error.message}") from None

    # -- waiting ---------------------------------------------------------------------------------------

    async def wait(self, event: str, *, timeout_ms: int = VALIDITY_MS) -> EventAnswer:
        """Return an event when it has ended or needs an operator, or as it stands when time is up.

        The event system may come and go meanwhile.

        Raises:
            Refused: ``unknown_event``.
            Unreachable: the event system does not answer when time is up.
        """
        await self.wait_many([event], timeout_ms=timeout_ms)
        return await self._events.call("event", EventQuery(event), EventAnswer)

    async def wait_many(self, events: Sequence[str], *, timeout_ms: int = VALIDITY_MS) -> dict[str, Event]:
        """Return those of up to ``REGISTER_MAX`` events that ended or need an operator, when all did or time is up.

        The event system may come and go meanwhile.

        Raises:
            Refused: ``unknown_event``.
        """
        ended: dict[str, Event] = {}

        async def wait(event: str) -> None:
            pause_ms = PAUSE_FIRST_MS
            while event not in ended:
                try:
                    ended[event] = await self._ends.wait(event)
                except Unreachable:
                    await trio.sleep(pause_ms / 1000)
                    pause_ms = min(2 * pause_ms, PAUSE_MAX_MS)

        with trio.move_on_after(timeout_ms / 1000), single_errors():
            async with trio.open_nursery() as nursery:
                for event in events:
                    nursery.start_soon(wait, event)
        return ended

    # -- steps -----------------------------------------------------------------------------------------

    async def _hold(self, kept: dict[int, Kept]) -> None:
        """Hold the buyers' money of what was not released; give up what is refused."""
        waiting = {index: item.event for index, item in kept.items() if item.event and self._may_hold(item.event)}
        if not waiting:
            return
        try:
            answers = await self._reserve([*waiting.values()])
        except (Unreachable, Refused) as error:
            for index, event in waiting.items():
                kept[index] = Kept(event, error.code, error.message)
            return
        refused: dict[str, list[int]] = {}
        for index, answer in zip(waiting, answers, strict=True):
            if not answer.is_done:
                kept[index] = Kept(waiting[index], answer.code, answer.message)
                refused.setdefault(answer.code, []).append(index)
        for code, indexes in refused.items():
            names = [waiting[index].event for index in indexes]
            given_up = _whole(await self._events.call("cancel", Cancel(names, code), Registered), len(names))
            for index, item in zip(indexes, given_up, strict=True):
                # Released by another run of the same trade: its money was held then, so it goes on as it stands.
                kept[index] = Kept(item.event) if item.code else Kept(item.event, code, kept[index].message)

    async def _reserve(self, events: Sequence[Event]) -> list[Answer]:
        """Ask until the account system answers, or the first transaction's validity is over.

        Raises:
            Unreachable, Refused: it is over.
        """
        until_ms = min(event.valid_until_ms for event in events)
        orders = [order_of(event.event, Operation.RESERVE, event.terms) for event in events]
        pause_ms, trouble = PAUSE_FIRST_MS, ""
        while True:
            try:
                return await self._holding.ask(orders)
            except (Unreachable, Refused) as error:
                if self._now_ms() + pause_ms >= until_ms:
                    raise
                if error.code != trouble:
                    log.warning("account system in trouble", code=error.code, why=error.message)
                trouble = error.code
            await trio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, PAUSE_MAX_MS)

    def _may_hold(self, event: Event) -> bool:
        """Tell whether money is to be held for an event now: later its transaction could not be included any more."""
        is_open = event.state is State.REGISTERED and not event.is_released
        return is_open and event.valid_until_ms > self._now_ms()

    async def _release(self, kept: dict[int, Kept]) -> None:
        """Release what is held."""
        held = [
            (index, item.event)
            for index, item in kept.items()
            if item.event is not None and not item.code and self._may_hold(item.event)
        ]
        if held:
            released = await self._releasing.ask([event.event for _, event in held])
            for (index, _), item in zip(held, released, strict=True):
                kept[index] = item

    async def _submit(self, kept: dict[int, Kept]) -> None:
        """Send what was released and is not decided yet: the bytes that are kept. A refusal is for the scan."""
        released = {
            index: item.event
            for index, item in kept.items()
            if item.event is not None and item.event.is_released and item.event.state is State.REGISTERED
        }
        if not released:
            return
        error: HansaError | None = None
        for _ in range(SUBMIT_ATTEMPTS_MAX):
            try:
                codes = await self._submitting.ask([event.raw for event in released.values()])
                kept |= {
                    index: Kept(event, code, f"a node refuses the transaction: {code}")
                    for (index, event), code in zip(released.items(), codes, strict=True)
                    if code and code not in MAY_PASS
                }
                return
            except (Unreachable, Refused, PeerError) as failure:
                error = failure
                self._client.leave_node()
                await self._client.pause()
        if error is not None:
            log.warning("chain in trouble", code=error.code, why=error.message)
            for index, event in released.items():
                kept[index] = Kept(event, error.code, error.message)

    # -- calls for many --------------------------------------------------------------------------------

    async def _register_all(self, registrations: list[Registration]) -> list[Kept]:
        return _whole(await self._events.call("register", Register(registrations), Registered), len(registrations))

    async def _hold_all(self, orders: list[Order]) -> list[Answer]:
        return await self._accounts.run(orders)

    async def _release_all(self, events: list[str]) -> list[Kept]:
        return _whole(await self._events.call("release", Release(events), Registered), len(events))

    async def _submit_all(self, raws: list[bytes]) -> list[str]:
        """Send transactions, each once; return for each why the node refuses it, "" where it does not."""
        transactions = [decode_transaction_untrusted(raw) for raw in dict.fromkeys(raws)]
        answers = await send(self._client, transactions)
        codes = {transaction.raw: answer.code for transaction, answer in zip(transactions, answers, strict=True)}
        return [codes[raw] for raw in raws]


def _checked(registration: Registration) -> Registration:
    """Return what the event system will understand: a call with anything else is refused with all that it brings."""
    try:
        return msgspec.json.decode(msgspec.json.encode(registration), type=Registration)
    except (msgspec.MsgspecError, OverflowError) as error:
        raise LocalError("bad_trade", f"{registration.event[:64]}: {error}") from None


def _whole(answer: Registered, count: int) -> list[Kept]:
    if len(answer.items) != count:
        raise PeerError("bad_answer", f"the event system answers {len(answer.items)} of {count} trades")
    return answer.items
