"""The order of the queue: lanes, leases, retries and parking. Pure.

A message is in one of these places::

    chained ──► ready ──► leased ──► settling ──► ended
       ▲          ▲          │           │
       │          ├──────────┘           ├──► delayed   (RETRY: its lane waits with it)
       │          └───────────────────── │ ◄──┘
       └─────────────────────────────────┴──► parked    (PARK: its lane goes on without it)

*Chained* messages stand behind another one of their lane. Of what is *ready* the lowest sequence goes first. A lane
has one message that is ready, leased, settling or delayed, its *head*; so its messages go out one after the other. A
parked message comes back behind what waits in its lane by then, since that may be what it waits for.

*Settling* means that a verdict was taken and is being written: nothing follows from it before it is durable
(:meth:`QueueMachine.settled`).

In strict order there are no lanes. One consumer at a time holds leases, and gets messages in sequence; whenever one
of them has to go out again, by RETRY, an expired lease or a lost consumer, all later leases are taken back with it,
so that everything behind it goes out again too. Only a parked message is passed.

A message whose consumers vanished while they held it may be why, or may only have been beside what is. From half of
``losses_max`` losses on it is a *suspect*: it goes out alone, to a consumer that holds nothing else and gets nothing
else until it is settled. So one loss blames one message, and a dead letter ``consumer_lost`` ended its last consumers
by itself. With it the others are cleared, which were beside it.

Moments are milliseconds of a monotonic clock, but for ``due_ms`` of entries and changes, which is UTC. Bodies are kept
elsewhere: a message costs about 220 bytes here.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, merge, nsmallest
from itertools import islice
from typing import assert_never

from consensus.ledger.errors import InvariantError
from services.messages.port import Settlement, Verdict
from services.messages.store import Change, Entry, State

_FENCE_BITS = 32
CONSUMER_LOST = "consumer_lost"
"""Detail of a dead letter whose consumers vanished time and again while they held it, in the end it alone."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How often and how long: see :class:`services.messages.queue.QueueSettings`."""

    is_strict: bool
    attempts_max: int
    backoff_first_ms: int
    backoff_max_ms: int
    lease_ms: int
    losses_max: int

    def judge(self, settlement: Settlement, attempts: int, utc_ms: int) -> Change:
        """Return what becomes of a message by a verdict on its attempt number ``attempts``."""
        match settlement.verdict:
            case Verdict.DONE:
                state = State.DONE
            case Verdict.REFUSED:
                state = State.REFUSED
            case Verdict.DEAD:
                state = State.DEAD
            case Verdict.RETRY | Verdict.PARK:
                if attempts < self.attempts_max:
                    return Change(
                        settlement.sequence,
                        State.WAITING,
                        attempts,
                        settlement.detail,
                        due_ms=utc_ms + self._backoff_ms(attempts),
                        is_parked=settlement.verdict is Verdict.PARK,
                    )
                state = settlement.exhausted
            case _:
                assert_never(settlement.verdict)
        return Change(settlement.sequence, state, attempts, settlement.detail)

    def _backoff_ms(self, attempts: int) -> int:
        # The shift is bounded, or a huge attempts_max would make huge numbers.
        return min(self.backoff_first_ms << min(attempts - 1, 32), self.backoff_max_ms)


class _Message:
    """A waiting message; ``following`` is the next of its lane. ``attempts`` counts verdicts RETRY and PARK."""

    __slots__ = ("attempts", "following", "lane", "sequence")

    def __init__(self, sequence: int, lane: str, attempts: int) -> None:
        self.sequence = sequence
        self.lane = lane
        self.attempts = attempts
        self.following: _Message | None = None


class Holder:
    """A consumer as the machine knows it: its window, how much of it is unsettled, whether that is one suspect."""

    __slots__ = ("is_alone", "unsettled", "window")

    def __init__(self, window: int) -> None:
        self.is_alone = False
        self.unsettled = 0
        self.window = window

    def release(self) -> None:
        """Note that one of its leases has ended; a suspect was the only one."""
        self.unsettled -= 1
        self.is_alone = False


class Lease:
    """A message in a consumer's hands until ``deadline_ms``; ``is_settling`` once a verdict was taken."""

    __slots__ = ("deadline_ms", "fence", "holder", "is_settling", "message")

    def __init__(self, message: _Message, holder: Holder, fence: int, deadline_ms: int) -> None:
        self.message = message
        self.holder = holder
        self.fence = fence
        self.deadline_ms = deadline_ms
        self.is_settling = False

    @property
    def sequence(self) -> int:
        """The message's sequence."""
        return self.message.sequence

    @property
    def lane(self) -> str:
        """The message's lane."""
        return self.message.lane

    @property
    def attempt(self) -> int:
        """Which attempt it is, from 1."""
        return self.message.attempts + 1


class QueueMachine:
    """Decides what goes out next and what a verdict means. It holds everything that waits, and nothing that ended."""

    def __init__(self, rules: Rules, epoch: int) -> None:
        """Begin empty; fences of a higher ``epoch`` are above all of a lower one."""
        self._rules = rules
        self._fence = epoch << _FENCE_BITS
        self._tails: dict[str, _Message] = {}
        self._fresh: deque[_Message] = deque()
        """Ready, in ascending order: what came in as the first of its lane."""
        self._returned: list[tuple[int, _Message]] = []
        """Ready, as a heap: what became ready in another way."""
        self._due: list[tuple[int, int, bool, _Message]] = []
        """Delayed and parked, as a heap: when (monotonic), sequence, whether it is parked."""
        self._leases: dict[int, Lease] = {}
        """By sequence, and since all leases are equally long in the order of their deadlines."""
        self._losses: dict[int, int] = {}
        """How often consumers vanished while they held a message."""
        self._delayed_count = 0
        self.parked_count = 0
        self.waiting_count = 0

    @property
    def ready_count(self) -> int:
        """How many messages could go out now."""
        return len(self._fresh) + len(self._returned)

    @property
    def leased_count(self) -> int:
        """How many messages are leased or being settled."""
        return len(self._leases)

    def add(self, sequence: int, lane: str) -> bool:
        """Take in a new message, behind all others; return whether it is ready."""
        self.waiting_count += 1
        if self._rules.is_strict:
            self._fresh.append(_Message(sequence, lane, 0))
            return True
        tail = self._tails.get(lane)
        if tail is None:
            self._tails[lane] = message = _Message(sequence, lane, 0)
            self._fresh.append(message)
            return True
        tail.following = self._tails[lane] = _Message(sequence, tail.lane, 0)
        return False

    def restore(self, entries: Iterable[Entry], now_ms: int, utc_ms: int) -> None:
        """Take in messages from the store: those that wait at the start, in ascending order, and dead letters again."""
        for entry in entries:
            self.waiting_count += 1
            message = _Message(entry.sequence, entry.lane, entry.attempts)
            # A wrong clock makes nobody wait longer than the longest back-off.
            wait_ms = min(entry.due_ms - utc_ms, self._rules.backoff_max_ms)
            if entry.is_parked:
                self._postpone(message, now_ms + max(wait_ms, 0), is_parked=True)
            elif not self._enter_lane(message):
                continue
            elif wait_ms > 0:
                self._postpone(message, now_ms + wait_ms, is_parked=False)
            elif self._fresh and self._fresh[-1].sequence > message.sequence:
                heappush(self._returned, (message.sequence, message))
            else:
                self._fresh.append(message)

    def next_sequence(self) -> int | None:
        """Return what goes out next, None if nothing is ready."""
        if self._rules.is_strict and self._delayed_count:
            return None
        if self._returned and not (self._fresh and self._fresh[0].sequence < self._returned[0][0]):
            return self._returned[0][0]
        return self._fresh[0].sequence if self._fresh else None

    def upcoming(self, limit: int) -> list[int]:
        """Return up to ``limit`` messages that are ready, the next one first."""
        returned = [sequence for sequence, _ in nsmallest(limit, self._returned)]
        fresh = [message.sequence for message in islice(self._fresh, limit)]
        return list(islice(merge(returned, fresh), limit))

    def may_lease(self, holder: Holder) -> bool:
        """Whether this consumer may get a message now."""
        if holder.is_alone or holder.unsettled >= holder.window:
            return False
        if holder.unsettled and self._is_suspect(self.next_sequence()):
            return False
        return not self._rules.is_strict or not self._leases or holder.unsettled > 0

    def lease(self, holder: Holder, now_ms: int) -> Lease:
        """Lease what goes out next; there must be something, and the consumer must be allowed to have it."""
        sequence = self.next_sequence()
        if sequence is None or not self.may_lease(holder):
            raise InvariantError("a lease without a message or without room for it")
        if self._returned and self._returned[0][0] == sequence:
            _, message = heappop(self._returned)
        else:
            message = self._fresh.popleft()
        self._fence += 1
        holder.unsettled += 1
        holder.is_alone = self._is_suspect(sequence)
        lease = self._leases[sequence] = Lease(message, holder, self._fence, now_ms + self._rules.lease_ms)
        return lease

    def settle(self, settlements: Sequence[Settlement], utc_ms: int) -> tuple[list[bool], list[Change]]:
        """Take verdicts; return which were taken, in the same order, and what has to be made durable for them."""
        taken = [False] * len(settlements)
        changes = []
        order: Iterable[int] = range(len(settlements))
        if self._rules.is_strict:
            # An earlier RETRY takes back what is later, also what the same call settles.
            order = sorted(order, key=lambda index: settlements[index].sequence)
        for index in order:
            settlement = settlements[index]
            lease = self._leases.get(settlement.sequence)
            if lease is None or lease.fence != settlement.fence or lease.is_settling:
                continue
            lease.is_settling = taken[index] = True
            change = self._rules.judge(settlement, lease.attempt, utc_ms)
            if change.state is State.WAITING and not change.is_parked and self._rules.is_strict:
                self._delayed_count += 1
                self._take_back_after(change.sequence)
            changes.append(change)
        return taken, changes

    def settled(self, changes: Iterable[Change], now_ms: int, utc_ms: int) -> None:
        """Go on after these changes, which are durable now."""
        for change in changes:
            lease = self._leases.pop(change.sequence)
            lease.holder.release()
            message = lease.message
            message.attempts = change.attempts
            if change.state is not State.WAITING:
                self.waiting_count -= 1
                self._losses.pop(change.sequence, None)
                self._leave_lane(message)
                continue
            if change.is_parked:
                self._leave_lane(message)
            elif self._rules.is_strict:
                self._delayed_count -= 1  # counted already when the verdict was taken
            # The clock may have been set between the verdict and now.
            wait_ms = min(max(change.due_ms - utc_ms, 0), self._rules.backoff_max_ms)
            self._postpone(message, now_ms + wait_ms, is_parked=change.is_parked)

    def lose(self, holder: Holder) -> list[Change]:
        """Take back what a consumer that is gone held; return what ends by it and has to be made durable."""
        changes = []
        for lease in self._unsettled_of(holder):
            losses = self._losses.get(lease.sequence, 0) + 1
            if losses >= self._rules.losses_max:
                self._losses.clear()
                lease.is_settling = True
                changes.append(Change(lease.sequence, State.DEAD, lease.attempt, CONSUMER_LOST))
            else:
                self._losses[lease.sequence] = losses
                self._take_back(lease)
        return changes

    def leave(self, holder: Holder) -> None:
        """Take back what a consumer held that goes in order: nothing is blamed for it."""
        for lease in self._unsettled_of(holder):
            self._take_back(lease)

    def give_back(self, sequence: int, fence: int) -> None:
        """Take back a lease that never reached its consumer, if it is still the newest."""
        lease = self._leases.get(sequence)
        if lease is not None and lease.fence == fence and not lease.is_settling:
            self._take_back(lease)

    def tick(self, now_ms: int) -> None:
        """Make ready whatever is due by now, and take back expired leases."""
        while self._due and self._due[0][0] <= now_ms:
            _, sequence, is_parked, message = heappop(self._due)
            if is_parked:
                self.parked_count -= 1
            else:
                self._delayed_count -= 1
            if not is_parked or self._enter_lane(message):
                heappush(self._returned, (sequence, message))
        expired = []
        for lease in self._leases.values():
            if lease.deadline_ms > now_ms:
                break
            if not lease.is_settling:
                expired.append(lease)
        for lease in expired:
            if self._leases.get(lease.sequence) is lease:
                self._take_back(lease)
                if self._rules.is_strict:
                    self._take_back_after(lease.sequence)

    def next_tick_ms(self) -> int | None:
        """Return when :meth:`tick` has something to do next, None if never."""
        moments = [self._due[0][0]] if self._due else []
        for lease in self._leases.values():
            if not lease.is_settling:
                moments.append(lease.deadline_ms)
                break
        return min(moments, default=None)

    def _unsettled_of(self, holder: Holder) -> list[Lease]:
        return [lease for lease in self._leases.values() if lease.holder is holder and not lease.is_settling]

    def _is_suspect(self, sequence: int | None) -> bool:
        return sequence is not None and self._losses.get(sequence, 0) >= self._rules.losses_max // 2

    def _enter_lane(self, message: _Message) -> bool:
        """Put a message behind its lane; return whether it is the lane's head."""
        if self._rules.is_strict:
            return True
        message.following = None
        tail = self._tails.get(message.lane)
        self._tails[message.lane] = message
        if tail is not None:
            tail.following = message
        return tail is None

    def _leave_lane(self, head: _Message) -> None:
        """Take the head out of its lane, and make the next one ready."""
        if self._rules.is_strict:
            return
        following = head.following
        if following is None:
            del self._tails[head.lane]
        else:
            head.following = None
            heappush(self._returned, (following.sequence, following))

    def _postpone(self, message: _Message, until_ms: int, *, is_parked: bool) -> None:
        heappush(self._due, (until_ms, message.sequence, is_parked, message))
        if is_parked:
            self.parked_count += 1
        else:
            self._delayed_count += 1

    def _take_back(self, lease: Lease) -> None:
        del self._leases[lease.sequence]
        lease.holder.release()
        heappush(self._returned, (lease.sequence, lease.message))

    def _take_back_after(self, sequence: int) -> None:
        later = [lease for lease in self._leases.values() if lease.sequence > sequence and not lease.is_settling]
        for lease in later:
            self._take_back(lease)
