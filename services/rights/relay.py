"""From deliveries to verdicts: gathers events, brings them to the chain in packs, settles each by its receipt.

Nothing here is durable. What is held when the program ends is delivered again, and the contract answers an event
that it knows with its first result.

    reader      takes deliveries while there is room; what cannot be decoded is a dead letter at once
    dispatcher  one pack whenever a lane is free and enough has come, or the first has lingered
    carriers    one a lane: submit, wait for proven receipts, judge
    settler     tells the centre, as many verdicts at once as have gathered
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import structlog
import trio

from consensus.ledger.codec import decode_untrusted
from consensus.ledger.errors import PeerError
from consensus.ledger.receipt import OK
from services.client.errors import Unreachable
from services.client.outcome import Outcome
from services.client.submission import Submitter
from services.messages.port import (
    PUBLISH_MESSAGES_MAX,
    WINDOW_MAX,
    Delivery,
    MessageCenter,
    Settlement,
    Subscription,
    Verdict,
)
from services.messages.store import State
from services.rights.events import SignedEvent, decode_signed_untrusted
from services.rights.figures import Figures
from services.rights.packing import Pack, Place, Presented, pack
from services.rights.shares import ShareTable
from services.rights.verdicts import Judgement, detail_of, judge, short

SETTLE_TIMEOUT_S = 2.0
CENTER_PAUSE_S = 0.5
HELD_MAX = 2 * WINDOW_MAX
"""How many deliveries are held unsettled; leases that run out bring more than the window."""

log = structlog.get_logger("rights-server")


@dataclass(frozen=True, slots=True)
class Limits:
    """How events become transactions.

    Args:
        pack_max: events in a transaction.
        linger_ms: how long the first of them waits for others while a lane is free.
        lanes: transactions under way at a time, unless the centre keeps one order over all events: then 1.
    """

    pack_max: int = 100
    linger_ms: int = 20
    lanes: int = 4


@dataclass(frozen=True, slots=True)
class _Held:
    """An event under way; ``since_s`` is when it was delivered."""

    sequence: int
    key: str
    signed: SignedEvent
    since_s: float


@dataclass(frozen=True, slots=True)
class _Judged:
    """What is to be said of a message, under whatever fence is its newest then."""

    sequence: int
    key: str
    judgement: Judgement
    detail: str


class Relay:
    """One subscription's way to the chain; :meth:`run` it once."""

    def __init__(
        self,
        center: MessageCenter,
        subscription: Subscription,
        submitter: Submitter,
        *,
        limits: Limits,
        table: ShareTable,
        figures: Figures,
    ) -> None:
        self._center = center
        self._subscription = subscription
        self._submitter = submitter
        self._limits = limits
        self._table = table
        self._figures = figures
        self._presented = Presented()
        self._held: dict[int, Delivery] = {}
        """By sequence what is unsettled, as it was delivered last."""
        self._waiting: deque[_Held] = deque()
        self._judged: list[_Judged] = []
        self._has_waiting = trio.Event()
        self._has_judged = trio.Event()
        self._has_room = trio.Event()
        self._is_cut_off = False
        self._is_ending = False

    async def run(self, stopping: trio.Event, *, stop_timeout_s: float) -> None:
        """Relay until ``stopping`` is set or the subscription ends; then wait for what is under way, up to a time.

        What is not settled then is delivered again to whoever consumes next.
        """
        async with trio.open_nursery() as settling:
            settling.start_soon(self._settle_forever)
            async with trio.open_nursery() as carrying:
                async with trio.open_nursery() as reading:
                    reading.start_soon(self._dispatch_forever, carrying)
                    reading.start_soon(_cancel_when, stopping, reading.cancel_scope)
                    await self._read()
                    reading.cancel_scope.cancel()
                carrying.cancel_scope.deadline = trio.current_time() + stop_timeout_s
            self._is_ending = True
            self._has_judged.set()
            settling.cancel_scope.deadline = trio.current_time() + SETTLE_TIMEOUT_S

    # -- reading ---------------------------------------------------------------------------------------

    async def _read(self) -> None:
        async for delivery in self._subscription:
            self._take(delivery)
            while len(self._held) >= HELD_MAX:
                self._has_room = trio.Event()
                await self._has_room.wait()

    def _take(self, delivery: Delivery) -> None:
        """Hold a delivery; one that is held already has a newer fence now, under which it will be settled.

        Another key under its sequence is another message, of a centre that has begun anew: it takes the place.
        """
        is_new = not self._holds(delivery.sequence, delivery.key)
        self._held[delivery.sequence] = delivery
        if not is_new:
            self._figures.came_again()
            return
        self._figures.held.set(len(self._held))
        try:
            signed = decode_signed_untrusted(delivery.body)
        except PeerError as error:
            log.warning("not understood", sequence=delivery.sequence, key=delivery.key, code=error.code)
            detail = f"{error.code} {error.message}"
            self._end(delivery.sequence, delivery.key, judge(error.code), detail, trio.current_time())
            return
        self._waiting.append(_Held(delivery.sequence, delivery.key, signed, trio.current_time()))
        if len(self._waiting) in (1, self._limits.pack_max):
            self._has_waiting.set()

    def _holds(self, sequence: int, key: str) -> bool:
        return sequence in self._held and self._held[sequence].key == key

    # -- transactions ----------------------------------------------------------------------------------

    async def _dispatch_forever(self, carrying: trio.Nursery) -> None:
        lanes = trio.Semaphore(await self._lanes_count())
        while True:
            await lanes.acquire()
            await self._gather()
            carrying.start_soon(self._carry, lanes, *self._next_pack())

    async def _lanes_count(self) -> int:
        """Return how many transactions may be under way: one where the centre keeps one order over all events."""
        while True:
            await self._wait_for(1)
            try:
                return 1 if (await self._center.stats()).is_strict else self._limits.lanes
            except Unreachable as error:
                log.warning("centre in trouble", code=error.code, why=error.message)
                await trio.sleep(CENTER_PAUSE_S)

    async def _gather(self) -> None:
        """Return when there is a full pack, or the first event of one has lingered."""
        await self._wait_for(1)
        with trio.move_on_at(self._waiting[0].since_s + self._limits.linger_ms / 1000):
            await self._wait_for(self._limits.pack_max)

    async def _wait_for(self, count: int) -> None:
        while len(self._waiting) < count:
            self._has_waiting = trio.Event()
            await self._has_waiting.wait()

    def _next_pack(self) -> tuple[list[_Held], Pack]:
        candidates = list(islice(self._waiting, self._limits.pack_max))
        packed = pack(
            [held.signed for held in candidates],
            [self._table.share_of(held.signed.event) for held in candidates],
            self._presented,
        )
        for _ in packed.places:
            self._waiting.popleft()
        return candidates[: len(packed.places)], packed

    async def _carry(self, lanes: trio.Semaphore, events: Sequence[_Held], packed: Pack) -> None:
        """Bring one pack to the chain and judge its events."""
        self._figures.under_way.inc()
        try:
            outcome = await self._submitter.submit(packed.calls)
        finally:
            self._figures.under_way.dec()
            lanes.release()
        self._figures.final()
        for held, place in zip(events, packed.places, strict=True):
            self._judge(held, place, outcome)

    def _judge(self, held: _Held, place: Place, outcome: Outcome) -> None:
        receipt, root = outcome.receipts[place.call_index], (held.signed.server, held.signed.root)
        is_new = place.present_indexes and root not in self._presented
        if is_new and any(outcome.receipts[index].status == OK for index in place.present_indexes):
            self._presented.add(root)
        code, judgement = receipt.code, judge(receipt.code)
        if code == "unknown_root":
            why = next((item for index in place.present_indexes if (item := outcome.receipts[index].code)), "")
            if why:  # it says more than that the root is unknown
                code, judgement = why, judge(why)
            else:
                self._presented.forget(root)
                judgement = (Verdict.RETRY, State.DEAD)
        result = decode_untrusted(receipt.values[0]) if receipt.status == OK and receipt.values else None
        detail = detail_of(code, outcome.height, outcome.transaction.id, place.call_index, result)
        self._end(held.sequence, held.key, judgement, detail, held.since_s)

    # -- settling --------------------------------------------------------------------------------------

    def _end(self, sequence: int, key: str, judgement: Judgement, detail: str, since_s: float) -> None:
        self._figures.judged(judgement[0], trio.current_time() - since_s)
        self._judged.append(_Judged(sequence, key, judgement, short(detail)))
        self._has_judged.set()

    async def _settle_forever(self) -> None:
        while not self._is_ending or self._judged:
            await self._has_judged.wait()
            self._has_judged = trio.Event()
            judged, self._judged = self._judged, []
            for start in range(0, len(judged), PUBLISH_MESSAGES_MAX):
                await self._settle(judged[start : start + PUBLISH_MESSAGES_MAX])
            self._figures.held.set(len(self._held))
            self._has_room.set()

    async def _settle(self, judged: Sequence[_Judged]) -> None:
        """Tell the centre what was judged. What it does not hear it delivers again."""
        judged = [item for item in judged if self._holds(item.sequence, item.key)]
        batch = [
            Settlement(
                item.sequence, self._held[item.sequence].fence, item.judgement[0], item.detail, item.judgement[1]
            )
            for item in judged
        ]
        try:
            accepted = await self._subscription.settle(batch)
        except Unreachable as error:
            accepted = [False] * len(batch)
            if not self._is_cut_off:
                log.warning("centre in trouble", code=error.code, why=error.message)
            self._is_cut_off = True
        else:
            if self._is_cut_off:
                log.info("centre answers again")
            self._is_cut_off = False
        for item, said, is_accepted in zip(judged, batch, accepted, strict=True):
            if not self._holds(item.sequence, item.key):
                continue  # the centre has begun anew meanwhile
            newest = self._held[said.sequence]
            if is_accepted or newest.fence == said.fence:
                del self._held[said.sequence]
                if newest.fence != said.fence:  # it came for its next attempt before we heard that this one counts
                    self._take(newest)
            else:  # it was delivered again meanwhile
                self._judged.append(item)
                self._has_judged.set()


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
