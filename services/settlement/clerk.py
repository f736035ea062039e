"""The agent's work on the chain: lifts the liens of paid trades, and gives back the units of those that cannot be paid.

Notices are dropped once what they ask for is proven, or registered as an event of its own, so that a crash at any point
repeats a step, and each step may be repeated: a lien ends once, a reversal's lane takes one transaction.

A lift that the chain refuses cannot come from a trade that this event system saw on this chain. Its notice is kept, the
log says so, :attr:`Clerk.trouble` shows the code, and it is tried again every ``REFUSED_PAUSE_MS``.
"""

from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio

from consensus.ledger.errors import HansaError, InvariantError, PeerError
from consensus.ledger.receipt import OK, Receipt
from consensus.ledger.transaction import decode_transaction_untrusted
from services.client.client import Client
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.client.submission import Submitter
from services.client.tasks import single_errors
from services.settlement import decision
from services.settlement.sending import send
from services.settlement.states import Event, Notice, State, Topic
from services.settlement.store import EventStore
from services.settlement.trades import give_back_call, lane_of, lift_call

LIFTS_MAX = 100
"""Liens that one transaction lifts."""
LANES = 4
"""Transactions of lifts under way at a time."""
GATHER_MS = 50
"""How long more lifts are waited for, to share a transaction: a trade is COMPLETED before its lien is lifted."""
NUMBERS_MAX = 20
"""Reversals of one trade that are looked up together."""
ATTEMPTS_MAX = 100
"""How often a change is decided anew, when others change its event meanwhile, before that is a fault."""
VALIDITY_MS = 60_000
"""For how long a reversal may be included; then another one takes its place."""
PAUSE_MIN_MS = 50
PAUSE_MAX_MS = 2_000
REFUSED_PAUSE_MS = 60_000

ENDED = frozenset({"", "lien_closed"})
"""Codes of a lift's receipt after which the lien is no more."""

log = structlog.get_logger("clerk")


class Clerk:
    """Does what LIFT and REVERSE notices ask for; :meth:`run` it once, :meth:`wake` it when there are new ones."""

    def __init__(self, client: Client, store: EventStore, signer: Signer, *, now_ms: Callable[[], int]) -> None:
        """Work with the agent's key; ``now_ms`` (UTC) dates reversals."""
        self._client = client
        self._store = store
        self._signer = signer
        self._now_ms = now_ms
        self._submitter = Submitter(client, signer, client.lanes(signer, count=LANES, prefix=b"lift"))
        self._bells = {Topic.LIFT: trio.Event(), Topic.REVERSE: trio.Event()}
        self._refused: dict[int, str] = {}
        self._retry_at = 0.0
        self._troubles = dict.fromkeys(self._bells, "")

    @property
    def trouble(self) -> str:
        """What stands in the way, as a code; "" while all notices are seen to."""
        refused = next(iter(self._refused.values()), "")
        return self._submitter.trouble or next(filter(None, self._troubles.values()), "") or refused

    def wake(self) -> None:
        """Look for notices now."""
        for bell in self._bells.values():
            bell.set()

    async def run(self) -> None:
        """Work for ever.

        Raises:
            StorageError: the store's disk failed.
        """
        with single_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve, Topic.LIFT, self._lift_some)
                nursery.start_soon(self._serve, Topic.REVERSE, self._reverse_some)

    async def _serve(self, topic: Topic, work: Callable[[], Awaitable[float]]) -> None:
        """Do a topic's work whenever there is some; ``work`` returns after how many seconds it is due again."""
        pause_ms = PAUSE_MIN_MS
        while True:
            self._bells[topic] = trio.Event()
            try:
                due_s = await work()
            except (Unreachable, Refused, PeerError) as error:
                self._on_trouble(topic, error)
                due_s, pause_ms = pause_ms / 1000, min(2 * pause_ms, PAUSE_MAX_MS)
            else:
                self._troubles[topic], pause_ms = "", PAUSE_MIN_MS
            with trio.move_on_after(due_s):
                await self._bells[topic].wait()

    def _on_trouble(self, topic: Topic, error: HansaError) -> None:
        if error.code != self._troubles[topic]:
            log.warning("notices cannot be seen to", topic=topic.value, code=error.code, why=error.message)
        self._troubles[topic] = error.code

    # -- lifts ---------------------------------------------------------------------------------------------

    async def _lift_some(self) -> float:
        """Lift the liens of all notices; return after how many seconds refused ones are tried again."""
        await trio.sleep(GATHER_MS / 1000)
        if trio.current_time() >= self._retry_at:
            self._retry_at = trio.current_time() + REFUSED_PAUSE_MS / 1000
            self._refused.clear()
        after = 0
        while True:
            notices = await self._store.notices((Topic.LIFT,), after, LIFTS_MAX * LANES)
            if not notices:
                break
            after = notices[-1].number
            batch = [notice for notice in notices if notice.number not in self._refused]
            with single_errors():
                async with trio.open_nursery() as nursery:
                    for start in range(0, len(batch), LIFTS_MAX):
                        nursery.start_soon(self._lift, batch[start : start + LIFTS_MAX])
        return max(0.0, self._retry_at - trio.current_time()) if self._refused else float("inf")

    async def _lift(self, notices: Sequence[Notice]) -> None:
        """Lift liens by one transaction and drop the notices of those that are no more."""
        events = await self._events(notices)
        outcome = await self._submitter.submit([lift_call(event.event, event.terms.seller) for event in events])
        done: list[int] = []
        for notice, receipt in zip(notices, outcome.receipts, strict=True):
            if _code(receipt) in ENDED:
                done.append(notice.number)
                continue
            self._refused[notice.number] = receipt.code
            log.error("lien cannot be lifted", trade=notice.event, code=receipt.code, height=outcome.height)
        await self._store.drop_notices(done)

    # -- reversals -----------------------------------------------------------------------------------------

    async def _reverse_some(self) -> float:
        """Register and send the reversals of all notices.

        Raises:
            Unreachable: no node answers.
            Refused: a node takes one of them not; it may be sent again.
        """
        while notices := await self._store.notices((Topic.REVERSE,), 0, LIFTS_MAX):
            trades = {trade.event: trade for trade in await self._events(notices) if decision.may_reverse(trade)}
            reversals = [await self._reversal(trade) for trade in trades.values()]
            refused = await self._send([event for event in reversals if event is not None])
            done = [notice.number for notice in notices if notice.event not in refused]
            await self._store.drop_notices(done)
            for trade, code in refused.items():
                raise Refused(code, f"the reversal of {trade} is not taken")
        return float("inf")

    async def _events(self, notices: Sequence[Notice]) -> list[Event]:
        events = [event for event in await self._store.find([notice.event for notice in notices]) if event is not None]
        if len(events) != len(notices):
            raise InvariantError("a notice without its event")
        return events

    async def _reversal(self, trade: Event) -> Event | None:
        """Return a trade's reversal that is under way, a new one where there is none; None once one took effect."""
        number = 1
        while True:
            names = [reversal_id(trade.event, number + step) for step in range(NUMBERS_MAX)]
            for event in await self._store.find(names):
                if event is None:
                    (kept,) = await self._store.register([self._signed(trade, number)])
                    return kept
                if event.state is State.REGISTERED:
                    return event
                if event.state is State.COMPLETED:
                    await self._end_trade(event)
                    return None
                number += 1

    async def _end_trade(self, reversal: Event) -> None:
        """End the trade of a reversal that took effect, where a crash came between the two."""
        for _ in range(ATTEMPTS_MAX):
            (trade,) = await self._store.find([reversal.original])
            changes = decision.on_certified(
                reversal, original=trade, is_ok=True, code="", height=reversal.height, now_ms=self._now_ms()
            )
            if not changes or all(await self._store.apply(changes)):
                return
        raise InvariantError(f"{reversal.original} changes all the time")

    def _signed(self, trade: Event, number: int) -> Event:
        """Return a trade's reversal, signed for the one-shot lane of its own id."""
        name = reversal_id(trade.event, number)
        call = give_back_call(trade.event, trade.terms.seller)
        lane = lane_of(name)
        transaction = self._client.sign(self._signer, [call], sequence=0, lane=lane, validity_ms=VALIDITY_MS)
        return decision.opened(
            name,
            trade.terms,
            transaction_id=bytes(transaction.id),
            raw=transaction.raw,
            valid_until_ms=transaction.body.valid_until_ms,
            now_ms=self._now_ms(),
            original=trade.event,
        )

    async def _send(self, reversals: Sequence[Event]) -> dict[str, str]:
        """Send reversals; return by trade the codes of those that the node does not take."""
        if not reversals:
            return {}
        answers = await send(self._client, [decode_transaction_untrusted(event.raw) for event in reversals])
        return {
            event.original: answer.code
            for event, answer in zip(reversals, answers, strict=True)
            if not answer.is_accepted
        }


def reversal_id(trade: str, number: int) -> str:
    """Return the id of a trade's reversal: ``TRADE.reverse``, the second ``TRADE.reverse2``."""
    return f"{trade}.reverse{number if number > 1 else ''}"


def _code(receipt: Receipt) -> str:
    return "" if receipt.status == OK else receipt.code
