"""The way out of the queue: one delivery after the other, at the pace, with bodies fetched just ahead of it.

A consumer *wants* a delivery, is handed one that is then *on its way*, and confirms its receipt; the next one, whoever
gets it, leaves no earlier than 1/rate after that receipt.
"""

import time
from collections import deque
from typing import Protocol

import trio

from consensus.ledger.errors import StorageError
from services.messages.bucket import Bucket
from services.messages.port import Delivery
from services.messages.queuemachine import Holder, QueueMachine
from services.messages.store import Store
from services.messages.timer import Timer

NS_PER_MS = 1_000_000
_BODIES_PAGE = 256
"""How many bodies are fetched at a time; the next ones once fewer than half of these are left."""
_BODIES_MAX = 2 * _BODIES_PAGE
"""How many bodies of new messages are kept, so that an idle queue reads nothing back."""
_SPIN_NS = 30_000
"""A wait shorter than this costs less than a timer."""


class Clock(Protocol):
    """What the queue knows of time."""

    def monotonic_ns(self) -> int:
        """Nanoseconds of a clock that never goes back; consumers on this machine read the same one."""
        ...

    def utc_ms(self) -> int:
        """Milliseconds since 1970, UTC."""
        ...

    async def wait_until(self, moment_ns: int) -> None:
        """Return at this moment of the monotonic clock, or just after it; one waiter at a time."""
        ...


class SystemClock:
    """The machine's clocks."""

    def __init__(self, timer: Timer) -> None:
        """Wait with this timer."""
        self._timer = timer

    def monotonic_ns(self) -> int:
        """See :class:`Clock`."""
        return time.monotonic_ns()

    def utc_ms(self) -> int:
        """See :class:`Clock`."""
        return time.time_ns() // NS_PER_MS

    async def wait_until(self, moment_ns: int) -> None:
        """See :class:`Clock`."""
        await self._timer.wait_until(moment_ns)


class Taker(Protocol):
    """Who takes deliveries: a consumer."""

    holder: Holder

    def hand(self, delivery: Delivery) -> None:
        """Take over a delivery; it is on its way now."""
        ...


class Dispatcher:
    """Hands out what the machine says, to who wants it, when the bucket allows."""

    def __init__(self, machine: QueueMachine, bucket: Bucket, store: Store, clock: Clock) -> None:
        """Share the machine with the queue, which adds and settles."""
        self.delivered_count = 0
        self._machine = machine
        self._bucket = bucket
        self._store = store
        self._clock = clock
        self._bodies: dict[int, tuple[str, bytes]] = {}
        """Keys and bodies of messages that are ready."""
        self._leased_bytes: dict[int, int] = {}
        self._wanting: deque[Taker] = deque()
        self._on_way: tuple[Taker, Delivery, int] | None = None
        """To whom, what, and when it left."""
        self._bodies_wanted = trio.Event()
        self._alarm = trio.CancelScope()
        self._alarm_ns: int | None = None

    def now_ms(self) -> int:
        """Return the monotonic time as the machine counts it."""
        return self._clock.monotonic_ns() // NS_PER_MS

    def offer(self, sequence: int, key: str, body: bytes) -> None:
        """Keep the body of a message that has just become ready, if all before it are here as well."""
        if len(self._bodies) < _BODIES_MAX and len(self._bodies) == self._machine.ready_count - 1:
            self._bodies[sequence] = key, body

    def release_bytes(self, sequence: int) -> int:
        """Return how many bytes the body of a message has that was leased and is settled now."""
        return self._leased_bytes.pop(sequence)

    def want(self, taker: Taker) -> None:
        """Note that a consumer wants a delivery; it may be handed one at once."""
        self._wanting.append(taker)
        self.pump()

    def want_no_more(self, taker: Taker, handed: Delivery | None) -> None:
        """Note that a consumer stopped waiting; what was handed to it in that moment never left, and goes out anew."""
        if taker in self._wanting:
            self._wanting.remove(taker)
        if handed is not None and self._on_way is not None and self._on_way[1] is handed:
            self._on_way = None
            self._machine.give_back(handed.sequence, handed.fence)
            self.pump()

    def received(self, taker: Taker, delivery: Delivery, at_ns: int | None) -> None:
        """Go on after a receipt at ``at_ns`` (None: now); what is not on its way to this consumer is passed over."""
        if self._on_way is None or self._on_way[0] is not taker or self._on_way[1].fence != delivery.fence:
            return
        now_ns = self._clock.monotonic_ns()
        # Nothing is received before it left, nor after it was confirmed.
        self._bucket.take(now_ns if at_ns is None else min(max(at_ns, self._on_way[2]), now_ns))
        self._on_way = None
        self.delivered_count += 1
        self.pump()

    def leave(self, taker: Taker) -> None:
        """Note that a consumer is gone. What is on its way to it may be read at any moment until now: it counts."""
        if taker in self._wanting:
            self._wanting.remove(taker)
        if self._on_way is not None and self._on_way[0] is taker:
            self.received(taker, self._on_way[1], None)
        else:
            self.pump()

    def pump(self) -> None:
        """Hand out the next delivery, if there is one, somebody wants it, and it may leave now."""
        if self._on_way is not None or not self._wanting:
            return
        machine = self._machine
        sequence = machine.next_sequence()
        if sequence is None:
            return
        taker = next((taker for taker in self._wanting if machine.may_lease(taker.holder)), None)
        if taker is None:
            return
        if sequence not in self._bodies:
            self._bodies_wanted.set()
            return
        ready_ns = self._bucket.ready_ns()
        while (now_ns := self._clock.monotonic_ns()) < ready_ns:
            if ready_ns - now_ns > _SPIN_NS:
                self._arm(ready_ns)
                return
        lease = machine.lease(taker.holder, now_ns // NS_PER_MS)
        key, body = self._bodies.pop(sequence)
        self._leased_bytes[sequence] = len(body)
        delivery = Delivery(sequence, lease.fence, lease.attempt, key, lease.lane, body)
        self._wanting.remove(taker)
        self._on_way = taker, delivery, now_ns
        if len(self._bodies) < _BODIES_PAGE // 2 and machine.ready_count > len(self._bodies):
            self._bodies_wanted.set()
        if self._alarm_ns is None:
            self.arm_tick()
        taker.hand(delivery)

    def arm_tick(self) -> None:
        """See to it that the machine is told of the time when it has something to do."""
        if (moment_ms := self._machine.next_tick_ms()) is not None:
            self._arm(moment_ms * NS_PER_MS)

    async def fetch(self) -> None:
        """Read the bodies of what goes out next, for ever."""
        while True:
            await self._bodies_wanted.wait()
            self._bodies_wanted = trio.Event()
            wanted = [sequence for sequence in self._machine.upcoming(_BODIES_PAGE) if sequence not in self._bodies]
            found = await self._store.bodies(wanted)
            if len(found) != len(wanted):
                raise StorageError("corrupted", f"{len(wanted) - len(found)} waiting messages have no body")
            self._bodies.update(found)
            self.pump()

    async def keep_time(self) -> None:
        """Wake up for the pace, for messages that are due again, and for leases that expire, for ever."""
        while True:
            self._machine.tick(self.now_ms())
            self.arm_tick()
            self.pump()
            with trio.CancelScope() as self._alarm:
                if self._alarm_ns is None:
                    await trio.sleep_forever()
                else:
                    await self._clock.wait_until(self._alarm_ns)
            self._alarm_ns = None

    def _arm(self, moment_ns: int) -> None:
        if self._alarm_ns is None or moment_ns < self._alarm_ns:
            self._alarm_ns = moment_ns
            self._alarm.cancel()
