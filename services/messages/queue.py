"""The queue of the message centre: a store, the order of :mod:`.queuemachine`, the way out of :mod:`.dispatch`.

One task writes: whatever is published or settled while a write is under way becomes the next write, so that many
callers share one sync of the disk. Others fetch bodies ahead of delivery, keep time, and forget what ended long ago.
"""

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace

import trio

from consensus.ledger.errors import LocalError
from services.client.errors import Refused, Unreachable
from services.client.tasks import single_errors
from services.messages.bucket import Bucket
from services.messages.dispatch import Clock, Dispatcher, SystemClock
from services.messages.port import PUBLISH_MESSAGES_MAX, WINDOW_MAX, Delivery, Settlement, Stats, Subscription
from services.messages.queuemachine import Holder, QueueMachine, Rules
from services.messages.store import (
    BODY_BYTES_MAX,
    DETAIL_BYTES_MAX,
    KEY_BYTES_MAX,
    LANE_BYTES_MAX,
    MARK_BYTES_MAX,
    Change,
    NewMessage,
    Published,
    Record,
    State,
    Store,
)
from services.messages.timer import open_timer

ASKED_MAX = 1_000
"""How many keys, ends or dead letters one call is about."""
CONSUMERS_MAX = 256
_WRITE_MESSAGES_MAX = 2_000
"""How many messages one write appends, and how many changes it makes: whoever waits behind it waits that long."""
_ENTRIES_PAGE = 5_000
_FORGET_EACH = 500
"""How many ends there are between two looks at what may be forgotten."""

_BOUNDS = {
    "rate_per_s": (0.001, 1_000_000),
    "attempts_max": (1, 1_000_000),
    "backoff_first_ms": (1, 3_600_000),
    "backoff_max_ms": (1, 86_400_000),
    "lease_ms": (100, 86_400_000),
    "losses_max": (2, 1_000_000),
    "waiting_max": (1, 10_000_000),
    "waiting_bytes_max": (BODY_BYTES_MAX, 1 << 40),
    "dead_max": (1, 10_000_000),
    "ended_keep_max": (0, 100_000_000),
    "ended_keep_ms": (0, 10 * 365 * 86_400_000),
}


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """How the queue behaves.

    Args:
        rate_per_s: deliveries per second over all consumers.
        is_strict: one global order to one consumer at a time, instead of one order a lane.
        attempts_max: how many verdicts RETRY or PARK end a message; the waits between them add up to more than a lease,
            since what a parked one waits for may be in the hands of a consumer that hangs.
        backoff_first_ms: wait after the first of these; it doubles with each.
        backoff_max_ms: the longest wait.
        lease_ms: how long a consumer may keep a delivery unsettled before it goes out again.
        losses_max: a message whose consumer vanished so often while it held it becomes a dead letter; from half of
            it on it is delivered alone.
        waiting_max: how many messages may wait before publishing is refused.
        waiting_bytes_max: the same in bytes of their bodies.
        dead_max: how many dead letters may be kept before publishing is refused; what waits by then may add to them.
        ended_keep_max: how many done and refused messages are remembered, at most.
        ended_keep_ms: and for how long.
    """

    rate_per_s: float = 1_000.0
    is_strict: bool = False
    attempts_max: int = 11
    backoff_first_ms: int = 100
    backoff_max_ms: int = 30_000
    lease_ms: int = 60_000
    losses_max: int = 32
    waiting_max: int = 250_000
    waiting_bytes_max: int = 256 * 1024 * 1024
    dead_max: int = 100_000
    ended_keep_max: int = 200_000
    ended_keep_ms: int = 7 * 86_400_000

    def validate(self) -> None:
        """Check all fields.

        Raises:
            LocalError: ``bad_config`` naming the field.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = _BOUNDS.get(field.name, (False, True))
            if not low <= value <= high:
                raise LocalError("bad_config", f"{field.name} is {value}, allowed is {low} to {high}")
        if self.backoff_first_ms > self.backoff_max_ms:
            raise LocalError("bad_config", "backoff_first_ms is more than backoff_max_ms")

    def rules(self) -> Rules:
        """Return what the machine needs of it."""
        return Rules(
            is_strict=self.is_strict,
            attempts_max=self.attempts_max,
            backoff_first_ms=self.backoff_first_ms,
            backoff_max_ms=self.backoff_max_ms,
            lease_ms=self.lease_ms,
            losses_max=self.losses_max,
        )


class _Ticket:
    """What a caller waits for: its part of a write, with ``size`` bytes of bodies.

    At its end ``answers`` are there, or the ``refusal`` of the store.
    """

    __slots__ = ("answers", "changes", "event", "is_done", "messages", "refusal", "size")

    def __init__(self, *, messages: Sequence[NewMessage] = (), changes: Sequence[Change] = (), size: int = 0) -> None:
        self.messages = messages
        self.changes = changes
        self.size = size
        self.event = trio.Event()
        self.answers: list[Published] = []
        self.refusal: Refused | None = None
        self.is_done = False

    def finish(self) -> None:
        """Wake who waits for it."""
        self.is_done = True
        self.event.set()


class Consumer:
    """One consumer's side of the queue; made by :meth:`Queue.attach`. Fills the port's Subscription."""

    def __init__(self, queue: "Queue", dispatcher: Dispatcher, name: str, window: int) -> None:
        """Made by :meth:`Queue.attach` only."""
        self.name = name
        self.holder = Holder(window)
        self._queue = queue
        self._dispatcher = dispatcher
        self._is_attached = True
        self._handed: Delivery | None = None
        self._changed = trio.Event()

    async def next_delivery(self) -> Delivery:
        """Return a delivery that may be sent now; it is then on its way until :meth:`received` or :meth:`detach`.

        Before either, no consumer gets another one. One task at a time may wait here.

        Raises:
            Unreachable: ``center_unreachable``: the queue has closed, or the consumer was detached.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._is_attached:
            self._dispatcher.want(self)
        while self._handed is None:
            if not self._is_attached:
                raise _closed()
            self._changed = trio.Event()
            try:
                await self._changed.wait()
            except trio.Cancelled:
                handed, self._handed = self._handed, None
                self._dispatcher.want_no_more(self, handed)
                raise
        delivery, self._handed = self._handed, None
        if not self._is_attached:
            raise _closed()  # it was taken back before it could leave
        return delivery

    def received(self, delivery: Delivery, at_ns: int | None = None) -> None:
        """Confirm the receipt of what is on its way to this consumer; anything else is passed over.

        ``at_ns`` is when, by the machine's monotonic clock; None is now.
        """
        self._dispatcher.received(self, delivery, at_ns)

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """See :meth:`Queue.settle`."""
        return await self._queue.settle(settlements)

    def detach(self, *, is_orderly: bool = False) -> None:
        """Go: what is unsettled goes to whoever consumes next, what is on its way counts as received now.

        Unless it is orderly, what is unsettled may be why we go, and has lost a consumer.
        """
        if self._is_attached:
            self._is_attached = False
            self._queue.detached(self, is_orderly=is_orderly)
            self._changed.set()

    def hand(self, delivery: Delivery) -> None:
        """Take over a delivery from the dispatcher."""
        self._handed = delivery
        self._changed.set()

    def __aiter__(self) -> "Consumer":
        """Return itself."""
        return self

    async def __anext__(self) -> Delivery:
        """Return the next delivery, and confirm it at once."""
        try:
            delivery = await self.next_delivery()
        except Unreachable:
            raise StopAsyncIteration from None
        self.received(delivery)
        return delivery


class Queue:
    """Fills :class:`services.messages.port.MessageCenter` in this process; made by :func:`open_queue`."""

    def __init__(self, store: Store, settings: QueueSettings, clock: Clock, epoch: int) -> None:
        """Made by :func:`open_queue` only."""
        self._store = store
        self._settings = settings
        self._clock = clock
        self._machine = QueueMachine(settings.rules(), epoch)
        bucket = Bucket(settings.rate_per_s, start_ns=clock.monotonic_ns())
        self.dispatcher = Dispatcher(self._machine, bucket, store, clock)
        self._consumers: set[Consumer] = set()
        self._tickets: deque[_Ticket] = deque()
        self._write_wanted, self._forget_wanted = trio.Event(), trio.Event()
        self._pending_count = self._pending_bytes = 0
        """What is published and not in the machine yet."""
        self._waiting_bytes = 0
        self._ended_count = self._dead_count = 0
        self._oldest_after = 0
        """Nothing up to this sequence waits: whoever looks for the oldest passes over its dead letters once only."""
        self._is_closed = False

    async def publish(self, messages: Sequence[NewMessage]) -> list[Published]:
        """See the port.

        Raises:
            Refused: ``store_full``, also for what is known already.
            Unreachable: ``center_unreachable``: the queue closed under the call.
            LocalError: ``too_large``: beyond a limit of the port.
        """
        size = _checked_bytes(messages)
        settings = self._settings
        if self._dead_count >= settings.dead_max:
            raise Refused(
                "store_full",
                f"{self._dead_count} dead letters are kept; replay or discard them: hansa rights dead-letters",
            )
        if (
            self._machine.waiting_count + self._pending_count + len(messages) > settings.waiting_max
            or self._waiting_bytes + self._pending_bytes + size > settings.waiting_bytes_max
        ):
            raise Refused("store_full", f"{self._machine.waiting_count} messages wait; they have to drain first")
        ticket = _Ticket(messages=messages, size=size)
        self._pending_count += len(messages)
        self._pending_bytes += size
        await self._written(ticket)
        return ticket.answers

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Settle deliveries, durably, whoever asks; False stands for one whose fence is not the newest.

        Raises:
            Unreachable: ``center_unreachable``: the queue closed under the call.
            LocalError: ``bad_settlement``: what has used up its attempts is to end in a state that is no such end.
        """
        if any(settlement.exhausted not in (State.DEAD, State.REFUSED) for settlement in settlements):
            raise LocalError("bad_settlement", "a message whose attempts are used up ends dead or refused")
        taken, changes = self._machine.settle([_shortened(item) for item in settlements], self._clock.utc_ms())
        if changes:
            await self._written(_Ticket(changes=changes))
        else:
            await trio.lowlevel.checkpoint()
        return taken

    @asynccontextmanager
    async def consume(self, name: str, *, window: int) -> AsyncIterator[Subscription]:
        """See the port; every delivery is confirmed when the consumer takes it."""
        consumer = self.attach(name, window=window)
        try:
            yield consumer
            consumer.detach(is_orderly=True)
        finally:
            consumer.detach()

    def attach(self, name: str, *, window: int) -> Consumer:
        """Add a consumer that confirms receipts itself, with up to ``window`` (1 to 1,024) unsettled deliveries.

        Raises:
            LocalError: ``bad_window``.
            Refused: ``too_many_consumers``.
            Unreachable: ``center_unreachable``: the queue is closed.
        """
        if not 1 <= window <= WINDOW_MAX:
            raise LocalError("bad_window", f"a window is 1 to {WINDOW_MAX}")
        if len(self._consumers) >= CONSUMERS_MAX:
            raise Refused("too_many_consumers", f"{CONSUMERS_MAX} consumers are there")
        if self._is_closed:
            raise _closed()
        consumer = Consumer(self, self.dispatcher, name, window)
        self._consumers.add(consumer)
        return consumer

    def detached(self, consumer: Consumer, *, is_orderly: bool) -> None:
        """See :meth:`Consumer.detach`."""
        self._consumers.discard(consumer)
        if is_orderly:
            self._machine.leave(consumer.holder)
        elif changes := self._machine.lose(consumer.holder):
            self._ask(_Ticket(changes=changes))
        self.dispatcher.leave(consumer)

    async def find(self, keys: Sequence[str]) -> list[Record | None]:
        """See the port."""
        _check_asked(len(keys))
        return await self._store.find(keys)

    async def ended(self, state: State, after: int, limit: int) -> list[Record]:
        """See the port."""
        _check_asked(limit)
        if state is State.WAITING:  # no end; a peer may ask for it all the same
            return []
        return await self._store.ended(state, after, limit)

    async def replay(self, sequences: Sequence[int]) -> int:
        """See the port."""
        _check_asked(len(sequences))
        with trio.CancelScope(shield=True):  # what the store has revived must get into the machine
            entries = await self._store.revive(sequences)
            bodies = await self._store.bodies([entry.sequence for entry in entries])
        self._dead_count -= len(entries)
        self._oldest_after = 0
        self._waiting_bytes += sum(len(body) for _, body in bodies.values())
        self._machine.restore(entries, self.dispatcher.now_ms(), self._clock.utc_ms())
        self.dispatcher.pump()
        return len(entries)

    async def discard(self, sequences: Sequence[int]) -> int:
        """See the port."""
        _check_asked(len(sequences))
        with trio.CancelScope(shield=True):  # what the store has dropped must be counted
            count = await self._store.discard(sequences)
        self._dead_count -= count
        return count

    async def stats(self) -> Stats:
        """See the port."""
        counts = await self._store.counts()
        oldest_ms = 0
        after = self._oldest_after
        # The store knows when a message came by its key, and its key by its sequence.
        for entry in await self._store.entries(after, 1) if counts.waiting else ():
            if self._oldest_after == after:  # nothing was replayed meanwhile
                self._oldest_after = entry.sequence - 1
            bodies = await self._store.bodies([entry.sequence])
            for record in await self._store.find([key for key, _ in bodies.values()]):
                oldest_ms = max(self._clock.utc_ms() - record.published_ms, 0) if record else 0
        return Stats(
            waiting=counts.waiting,
            waiting_bytes=counts.waiting_bytes,
            leased=self._machine.leased_count,
            parked=self._machine.parked_count,
            done=counts.done,
            refused=counts.refused,
            dead=counts.dead,
            oldest_ms=oldest_ms,
            delivered_count=self.dispatcher.delivered_count,
            consumers=len(self._consumers),
            rate_per_s=self._settings.rate_per_s,
            is_strict=self._settings.is_strict,
        )

    async def restore(self) -> None:
        """Read what waits in the store, before anything else is done."""
        after = 0
        while entries := await self._store.entries(after, _ENTRIES_PAGE):
            self._machine.restore(entries, self.dispatcher.now_ms(), self._clock.utc_ms())
            after = entries[-1].sequence
        counts = await self._store.counts()
        self._waiting_bytes, self._dead_count = counts.waiting_bytes, counts.dead

    async def write(self) -> None:
        """Make durable what is published and settled, as much at a time as has gathered, for ever."""
        while True:
            await self._write_wanted.wait()
            self._write_wanted = trio.Event()
            while self._tickets:
                batch = self._gathered()
                utc_ms = self._clock.utc_ms()
                if messages := [message for ticket in batch for message in ticket.messages]:
                    try:
                        answers = await self._store.append(messages, utc_ms)
                    except Refused as refusal:
                        self._refused(batch, refusal)
                    else:
                        self._appended(batch, messages, answers)
                if changes := [change for ticket in batch for change in ticket.changes]:
                    await self._store.change(changes, utc_ms)
                    self._changed(batch, changes, utc_ms)
                for _ in batch:
                    self._tickets.popleft()
                self.dispatcher.pump()

    async def forget(self) -> None:
        """Drop what ended long ago, at the start and whenever enough has ended since, for ever."""
        while True:
            settings = self._settings
            await self._store.forget(self._clock.utc_ms() - settings.ended_keep_ms, settings.ended_keep_max)
            await self._forget_wanted.wait()
            self._forget_wanted = trio.Event()

    def close(self) -> None:
        """End all subscriptions, and answer whoever waits that it is unknown what was kept."""
        self._is_closed = True
        for consumer in list(self._consumers):
            consumer.detach()
        for ticket in self._tickets:
            ticket.event.set()

    async def _written(self, ticket: _Ticket) -> None:
        self._ask(ticket)
        await ticket.event.wait()
        if not ticket.is_done:
            raise _closed()
        if ticket.refusal is not None:
            raise Refused(ticket.refusal.code, ticket.refusal.message)

    def _ask(self, ticket: _Ticket) -> None:
        if self._is_closed:
            ticket.event.set()
        else:
            self._tickets.append(ticket)
            self._write_wanted.set()

    def _gathered(self) -> list[_Ticket]:
        """Take as many tickets as one write serves; they stay in sight of :meth:`close` until they are done."""
        batch: list[_Ticket] = []
        weight = 0
        for ticket in self._tickets:
            weight += len(ticket.messages) + len(ticket.changes)
            if batch and weight > _WRITE_MESSAGES_MAX:
                break
            batch.append(ticket)
        return batch

    def _appended(self, batch: list[_Ticket], messages: list[NewMessage], answers: list[Published]) -> None:
        place = 0
        for ticket in batch:
            if ticket.messages:
                ticket.answers = answers[place : place + len(ticket.messages)]
                place += len(ticket.messages)
                self._finish_publish(ticket)
        for message, answer in zip(messages, answers, strict=True):
            if answer.is_new:
                self._waiting_bytes += len(message.body)
                if self._machine.add(answer.sequence, message.lane):
                    self.dispatcher.offer(answer.sequence, message.key, message.body)

    def _refused(self, batch: list[_Ticket], refusal: Refused) -> None:
        for ticket in batch:
            if ticket.messages:
                ticket.refusal = refusal
                self._finish_publish(ticket)

    def _finish_publish(self, ticket: _Ticket) -> None:
        self._pending_count -= len(ticket.messages)
        self._pending_bytes -= ticket.size
        ticket.finish()

    def _changed(self, batch: list[_Ticket], changes: list[Change], utc_ms: int) -> None:
        self._machine.settled(changes, self.dispatcher.now_ms(), utc_ms)
        for change in changes:
            size = self.dispatcher.release_bytes(change.sequence)
            if change.state is not State.WAITING:
                self._waiting_bytes -= size
                self._ended_count += 1
                self._dead_count += change.state is State.DEAD
        if self._ended_count >= _FORGET_EACH:
            self._ended_count = 0
            self._forget_wanted.set()
        self.dispatcher.arm_tick()
        for ticket in batch:
            if ticket.changes:
                ticket.finish()


@asynccontextmanager
async def open_queue(store: Store, settings: QueueSettings, clock: Clock | None = None) -> AsyncIterator[Queue]:
    """Open the store and run a queue on it for the time of the block; ``clock`` None is the machine's.

    Raises:
        LocalError: ``bad_config``, or what opening the store raises.
        StorageError: the store failed; out of this block, while calls under way raise Unreachable.
    """
    settings.validate()
    with open_timer() as timer, single_errors():
        clock = clock or SystemClock(timer)
        epoch = await store.open()
        try:
            queue = Queue(store, settings, clock, epoch)
            await queue.restore()
            async with trio.open_nursery() as nursery:
                try:
                    for task in (queue.write, queue.forget, queue.dispatcher.fetch, queue.dispatcher.keep_time):
                        nursery.start_soon(task)
                    yield queue
                finally:
                    queue.close()
                    nursery.cancel_scope.cancel()
        finally:
            await store.close()


def _closed() -> Unreachable:
    return Unreachable("the queue is closed", "center_unreachable")


def _shortened(settlement: Settlement) -> Settlement:
    """Cut an overlong detail, at a character's border."""
    if len(settlement.detail) * 4 <= DETAIL_BYTES_MAX or len(settlement.detail.encode()) <= DETAIL_BYTES_MAX:
        return settlement
    detail = settlement.detail.encode()[:DETAIL_BYTES_MAX].decode(errors="ignore")
    return replace(settlement, detail=detail)


def _checked_bytes(messages: Sequence[NewMessage]) -> int:
    """Check the limits of a publish, and return how many bytes its bodies have."""
    if not 1 <= len(messages) <= PUBLISH_MESSAGES_MAX:
        raise LocalError("too_large", f"{len(messages)} messages, one call publishes 1 to {PUBLISH_MESSAGES_MAX}")
    size = 0
    for message in messages:
        if (
            not 1 <= len(message.key.encode()) <= KEY_BYTES_MAX
            or len(message.lane.encode()) > LANE_BYTES_MAX
            or len(message.mark) > MARK_BYTES_MAX
            or len(message.body) > BODY_BYTES_MAX
        ):
            raise LocalError(
                "too_large",
                f"a key has 1 to {KEY_BYTES_MAX} bytes, a lane up to {LANE_BYTES_MAX}, a mark {MARK_BYTES_MAX}, "
                f"a body {BODY_BYTES_MAX}",
            )
        size += len(message.body)
    return size


def _check_asked(count: int) -> None:
    if count > ASKED_MAX:
        raise LocalError("too_large", f"one call asks about up to {ASKED_MAX} messages")
