"""The order of the queue: a test a rule, and a model that watches it through crashes, losses and late verdicts."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consensus.ledger.errors import InvariantError
from services.messages.port import Settlement, Verdict
from services.messages.queuemachine import CONSUMER_LOST, Holder, Lease, QueueMachine, Rules
from services.messages.store import Change, Entry, State

RULES = Rules(is_strict=False, attempts_max=3, backoff_first_ms=100, backoff_max_ms=300, lease_ms=1_000, losses_max=3)
STRICT = Rules(is_strict=True, attempts_max=3, backoff_first_ms=100, backoff_max_ms=300, lease_ms=1_000, losses_max=3)
UTC_MS = 1_700_000_000_000


class Bench:
    """A machine whose writes succeed at once; monotonic time and UTC run together."""

    def __init__(self, rules: Rules = RULES, *, lanes: str = "") -> None:
        self.machine = QueueMachine(rules, epoch=1)
        self.holder = Holder(window=100)
        self.now_ms = 0
        self.leases: dict[int, Lease] = {}
        self.changes: list[Change] = []
        for sequence, lane in enumerate(lanes, start=1):
            self.machine.add(sequence, lane)

    def wait(self, time_ms: int) -> None:
        self.now_ms += time_ms
        self.machine.tick(self.now_ms)

    def take(self, holder: Holder | None = None) -> Lease:
        lease = self.machine.lease(holder or self.holder, self.now_ms)
        self.leases[lease.sequence] = lease
        return lease

    def take_all(self, holder: Holder | None = None) -> list[int]:
        """Lease whatever may be leased, and return the sequences."""
        taken = []
        while self.machine.next_sequence() is not None and self.machine.may_lease(holder or self.holder):
            taken.append(self.take(holder).sequence)
        return taken

    def settle(self, sequence: int, verdict: Verdict, exhausted: State = State.DEAD) -> bool:
        lease = self.leases[sequence]
        return self.settle_many([Settlement(sequence, lease.fence, verdict, "why", exhausted)])[0]

    def settle_many(self, settlements: list[Settlement]) -> list[bool]:
        taken, changes = self.machine.settle(settlements, UTC_MS + self.now_ms)
        self.changes += changes
        self.machine.settled(changes, self.now_ms, UTC_MS + self.now_ms)
        return taken


def test_what_came_first_goes_first() -> None:
    assert Bench(lanes="abcd").take_all() == [1, 2, 3, 4]


def test_a_lane_waits_for_the_end_of_its_earlier_one() -> None:
    bench = Bench(lanes="aabab")
    assert bench.take_all() == [1, 3]
    bench.settle(3, Verdict.DONE)
    assert bench.take_all() == [5]
    for end in (Verdict.REFUSED, Verdict.DEAD):
        bench.settle(min(bench.leases), end)
        (following,) = bench.take_all()
        bench.leases = {following: bench.leases[following]}
    assert following == 4


def test_nothing_follows_from_a_verdict_before_it_is_durable() -> None:
    bench = Bench(lanes="aa")
    lease = bench.take()
    _, changes = bench.machine.settle([Settlement(1, lease.fence, Verdict.DONE)], UTC_MS)
    bench.wait(10_000)
    assert bench.take_all() == []
    bench.machine.settled(changes, bench.now_ms, UTC_MS)
    assert bench.take_all() == [2]


def test_what_became_free_goes_before_what_came_later() -> None:
    bench = Bench(lanes="aabc")
    bench.take()
    bench.settle(1, Verdict.DONE)
    assert bench.machine.upcoming(10) == [2, 3, 4]
    assert bench.machine.upcoming(2) == [2, 3]
    assert bench.take_all() == [2, 3, 4]


def test_a_retry_holds_its_lane_up_and_no_other() -> None:
    bench = Bench(lanes="aab")
    bench.take()
    assert bench.settle(1, Verdict.RETRY)
    assert bench.take_all() == [3]
    bench.wait(99)
    assert bench.take_all() == []
    bench.wait(1)
    assert bench.machine.ready_count == 1
    assert bench.take().attempt == 2
    bench.settle(1, Verdict.DONE)
    assert bench.take_all() == [2]


def test_a_parked_message_lets_its_lane_pass_and_comes_back_behind_it() -> None:
    bench = Bench(lanes="aaa")
    bench.take()
    bench.settle(1, Verdict.PARK)
    assert bench.machine.parked_count == 1
    assert bench.take_all() == [2]
    bench.wait(100)
    assert bench.machine.parked_count == 0
    assert bench.take_all() == []
    bench.settle(2, Verdict.DONE)
    assert bench.take_all() == [3]
    bench.settle(3, Verdict.DONE)
    assert bench.take_all() == [1]


def test_a_parked_message_whose_lane_is_empty_comes_back_by_itself() -> None:
    bench = Bench(lanes="ab")
    bench.take()
    bench.settle(1, Verdict.PARK)
    bench.machine.add(3, "a")
    assert bench.take_all() == [2, 3]
    bench.settle(3, Verdict.DONE)
    bench.wait(100)
    assert bench.take_all() == [1]


def test_waits_double_up_to_the_longest() -> None:
    bench = Bench(Rules(False, 6, 100, 300, 1_000, 3), lanes="a")
    for attempt, wait_ms in enumerate((100, 200, 300, 300, 300), start=1):
        assert bench.take().attempt == attempt
        bench.settle(1, Verdict.PARK if attempt % 2 else Verdict.RETRY)
        assert bench.changes[-1].due_ms == UTC_MS + bench.now_ms + wait_ms
        bench.wait(wait_ms - 1)
        assert bench.machine.next_sequence() is None
        bench.wait(1)
    assert bench.machine.next_sequence() == 1


@pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.PARK])
@pytest.mark.parametrize("set_ms", [-3_600_000, 3_600_000])
def test_a_clock_that_is_set_while_a_verdict_is_written_makes_nobody_wait_longer_than_the_longest(
    verdict: Verdict, set_ms: int
) -> None:
    bench = Bench(lanes="a")
    lease = bench.take()
    _, changes = bench.machine.settle([Settlement(1, lease.fence, verdict)], UTC_MS)
    bench.machine.settled(changes, bench.now_ms, UTC_MS + set_ms)
    bench.wait(RULES.backoff_max_ms)
    assert bench.take_all() == [1]


@pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.PARK])
@pytest.mark.parametrize("exhausted", [State.DEAD, State.REFUSED])
def test_attempts_end(verdict: Verdict, exhausted: State) -> None:
    bench = Bench(lanes="aa")
    for _ in range(3):
        bench.wait(300)
        assert bench.take().sequence == 1
        bench.settle(1, verdict, exhausted)
        bench.machine.next_sequence() == 2 and bench.settle(bench.take().sequence, Verdict.DONE)
    assert bench.changes[-2 if verdict is Verdict.RETRY else -1] == Change(1, exhausted, 3, "why")
    assert bench.machine.waiting_count == 0


def test_an_expired_lease_goes_out_again_and_uses_up_no_attempt() -> None:
    bench = Bench(lanes="ab")
    first = bench.take()
    bench.wait(999)
    assert bench.machine.next_sequence() == 2
    bench.wait(1)
    second = bench.take()
    assert (second.sequence, second.attempt) == (1, 1)
    assert second.fence > first.fence
    assert bench.settle_many([Settlement(1, first.fence, Verdict.DONE)]) == [False]
    assert bench.settle_many([Settlement(1, second.fence, Verdict.DONE)]) == [True]


def test_a_verdict_counts_once() -> None:
    bench = Bench(lanes="a")
    done = Settlement(1, bench.take().fence, Verdict.DONE)
    assert bench.settle_many([done, done]) == [True, False]
    assert bench.settle_many([done]) == [False]
    assert bench.settle_many([Settlement(99, done.fence, Verdict.DONE)]) == [False]


def test_fences_of_a_later_owner_are_above_all_of_an_earlier_one() -> None:
    earlier, later = QueueMachine(RULES, epoch=1), QueueMachine(RULES, epoch=2)
    holder = Holder(100)
    for sequence in range(1, 100):
        earlier.add(sequence, str(sequence))
        last = earlier.lease(holder, 0)
    later.add(1, "a")
    assert later.lease(Holder(1), 0).fence > last.fence


def test_a_window_bounds_what_is_unsettled() -> None:
    bench = Bench(lanes="abcdef")
    narrow = Holder(window=2)
    assert bench.take_all(narrow) == [1, 2]
    bench.settle(2, Verdict.RETRY)
    assert bench.take_all(narrow) == [3]
    bench.wait(1_000)
    assert narrow.unsettled == 0


def test_what_a_lost_consumer_held_goes_to_another() -> None:
    bench = Bench(replace(RULES, losses_max=4), lanes="abca")
    lost, other = Holder(2), Holder(10)
    assert bench.take_all(lost) == [1, 2]
    assert bench.machine.lose(lost) == []
    assert lost.unsettled == 0
    assert bench.take_all(other) == [1, 2, 3]


def test_what_a_lost_consumer_had_settled_stays_settled() -> None:
    bench = Bench(lanes="a")
    lost = Holder(2)
    lease = bench.take(lost)
    _, changes = bench.machine.settle([Settlement(1, lease.fence, Verdict.DONE)], UTC_MS)
    assert bench.machine.lose(lost) == []
    assert bench.take_all() == []
    bench.machine.settled(changes, 0, UTC_MS)
    assert bench.machine.waiting_count == 0


def test_a_message_that_ends_its_consumers_is_a_dead_letter() -> None:
    bench = Bench(lanes="aa")
    for _ in range(2):
        lost = Holder(1)
        assert bench.take(lost).sequence == 1
        assert bench.machine.lose(lost) == []
    lost = Holder(1)
    bench.take(lost)
    (change,) = bench.machine.lose(lost)
    assert (change.sequence, change.state, change.detail) == (1, State.DEAD, CONSUMER_LOST)
    assert bench.take_all() == []
    bench.machine.settled([change], 0, UTC_MS)
    assert bench.take_all() == [2]


def bench_of_suspects(lanes: str) -> Bench:
    """Return a bench whose messages have lost two consumers together; the fourth loss makes a dead letter."""
    bench = Bench(replace(RULES, losses_max=4), lanes=lanes)
    for _ in range(2):
        lost = Holder(10)
        bench.take_all(lost)
        assert bench.machine.lose(lost) == []
    return bench


def test_what_may_end_consumers_goes_out_alone_so_that_one_loss_blames_one() -> None:
    bench = bench_of_suspects("abc")
    for _ in range(2):
        lost = Holder(10)
        assert bench.take_all(lost) == [1]
        changes = bench.machine.lose(lost)
    assert [(change.sequence, change.detail) for change in changes] == [(1, CONSUMER_LOST)]
    bench.machine.settled(changes, 0, UTC_MS)
    assert bench.take_all() == [2, 3], "those beside it are cleared"


def test_a_suspect_that_is_settled_makes_way_for_the_next() -> None:
    bench = bench_of_suspects("abc")
    bench.machine.add(4, "d")
    first, second = Holder(10), Holder(10)
    assert (bench.take_all(first), bench.take_all(second)) == ([1], [2])
    for sequence in (1, 2):
        bench.settle(sequence, Verdict.DONE)
    assert bench.take_all(first) == [3]
    assert bench.take_all(second) == [4]
    assert bench.take_all(first) == []
    bench.settle(3, Verdict.DONE)
    bench.machine.add(5, "e")
    assert bench.take_all(first) == [5]


def test_a_suspect_waits_for_a_consumer_with_empty_hands() -> None:
    bench = Bench(replace(RULES, losses_max=2), lanes="ab")
    lost = Holder(1)
    bench.take(lost)
    busy = Holder(10)
    assert bench.take_all(busy) == [2]
    assert bench.machine.lose(lost) == []
    assert bench.take_all(busy) == []
    bench.settle(2, Verdict.DONE)
    assert bench.take_all(busy) == [1]


def test_a_consumer_that_goes_in_order_blames_nothing() -> None:
    bench = Bench(lanes="ab")
    for _ in range(2 * RULES.losses_max):
        leaving = Holder(10)
        assert bench.take_all(leaving) == [1, 2]
        bench.machine.leave(leaving)
        assert leaving.unsettled == 0


def test_what_never_left_goes_out_again_under_another_fence() -> None:
    bench = Bench(lanes="a")
    first = bench.take()
    bench.machine.give_back(1, first.fence)
    bench.machine.give_back(1, first.fence)
    second = bench.take()
    assert second.fence > first.fence
    bench.machine.give_back(1, first.fence)
    assert bench.settle_many([Settlement(1, second.fence, Verdict.DONE)]) == [True]


def test_what_waits_at_the_start_waits_as_before() -> None:
    bench = Bench()
    bench.machine.restore(
        [
            Entry(3, "a", attempts=1, due_ms=UTC_MS + 100),
            Entry(4, "a"),
            Entry(5, "b", attempts=2, due_ms=UTC_MS + 200, is_parked=True),
            Entry(6, "b"),
            Entry(7, "c", attempts=1, due_ms=UTC_MS + 10**12),
            Entry(8, "d", attempts=1, due_ms=UTC_MS - 10),
        ],
        0,
        UTC_MS,
    )
    assert (bench.machine.waiting_count, bench.machine.parked_count) == (6, 1)
    assert bench.take_all() == [6, 8]
    bench.settle(6, Verdict.DONE)
    bench.wait(100)
    assert bench.take_all() == [3]
    assert bench.leases[3].attempt == 2
    bench.settle(3, Verdict.DONE)
    bench.wait(100)
    assert bench.take_all() == [4, 5]
    # A clock that was wrong makes nobody wait longer than the longest wait.
    bench.wait(100)
    assert bench.take_all() == [7]


def test_dead_letters_that_wait_again_stand_behind_their_lane() -> None:
    bench = Bench(lanes="abc")
    for sequence in (1, 2):
        bench.take()
        bench.settle(sequence, Verdict.DEAD)
    bench.machine.add(4, "a")
    bench.machine.restore([Entry(1, "a"), Entry(2, "b")], 0, UTC_MS)
    assert bench.take_all() == [2, 3, 4]
    bench.settle(4, Verdict.DONE)
    assert bench.take_all() == [1]


def test_a_lease_needs_a_message_and_room() -> None:
    with pytest.raises(InvariantError):
        Bench().take()
    bench = Bench(lanes="ab")
    with pytest.raises(InvariantError):
        bench.take(Holder(window=0))


def test_it_says_when_it_has_something_to_do() -> None:
    bench = Bench(lanes="abc")
    assert bench.machine.next_tick_ms() is None
    bench.take()
    bench.wait(10)
    bench.take()
    assert bench.machine.next_tick_ms() == 1_000
    bench.settle(1, Verdict.DONE)
    assert bench.machine.next_tick_ms() == 1_010
    bench.settle(2, Verdict.RETRY)
    assert bench.machine.next_tick_ms() == 110


def test_strict_order_knows_no_lanes_and_one_consumer() -> None:
    bench = Bench(STRICT, lanes="abaab")
    first, second = Holder(3), Holder(3)
    assert bench.take_all(first) == [1, 2, 3]
    assert bench.take_all(second) == []
    bench.settle(2, Verdict.DONE)
    assert bench.take_all(second) == []
    assert bench.take_all(first) == [4]
    for sequence in (1, 3, 4):
        bench.settle(sequence, Verdict.DONE)
    assert bench.take_all(second) == [5]


def test_in_strict_order_a_retry_takes_back_everything_later() -> None:
    bench = Bench(STRICT, lanes="abcd")
    assert bench.take_all() == [1, 2, 3, 4]
    stale = {sequence: lease.fence for sequence, lease in bench.leases.items()}
    answers = bench.settle_many(
        [
            Settlement(4, stale[4], Verdict.DONE),
            Settlement(2, stale[2], Verdict.RETRY),
            Settlement(1, stale[1], Verdict.DONE),
            Settlement(3, stale[3], Verdict.DONE),
        ]
    )
    assert answers == [False, True, True, False]
    assert bench.take_all() == []
    bench.wait(100)
    assert bench.take_all() == [2, 3, 4]


def test_in_strict_order_an_expired_lease_takes_back_everything_later() -> None:
    bench = Bench(STRICT, lanes="abc")
    bench.take()
    bench.wait(500)
    bench.take()
    bench.wait(500)
    assert bench.take_all() == [1, 2, 3]


def test_in_strict_order_only_parked_messages_are_passed() -> None:
    bench = Bench(STRICT, lanes="abc")
    narrow = Holder(1)
    bench.take(narrow)
    bench.settle(1, Verdict.PARK)
    assert bench.take_all(narrow) == [2]
    bench.wait(100)
    bench.settle(2, Verdict.DONE)
    assert bench.take_all(narrow) == [1]


# ---------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Kept:
    """What the model knows of a message that is durable. ``was_passed`` once it was parked or revived."""

    sequence: int
    lane: str
    state: State = State.WAITING
    attempts: int = 0
    due_ms: int = 0
    is_parked: bool = False
    was_passed: bool = False
    ends: int = 0
    losses: int = 0
    """How many consumers have vanished with it since the last crash, or since a dead letter cleared it."""


@dataclass(slots=True)
class Model:
    """The content of a store, and what went out since the last crash."""

    messages: dict[int, Kept] = field(default_factory=dict)
    out: dict[int, tuple[Lease, Holder]] = field(default_factory=dict)
    """Leases that the model holds to be valid."""
    fence_max: int = 0

    def waiting(self) -> Iterator[Kept]:
        return (message for message in self.messages.values() if message.state is State.WAITING)


class QueueRuns(RuleBasedStateMachine):
    """Drives the machine as the queue does, with a store in the model, and judges every lease by the rules."""

    queue_rules = RULES

    @initialize()
    def begin(self) -> None:
        self.model = Model()
        self.epoch = 0
        self.now_ms = 0
        self.stale: list[tuple[int, int]] = []
        self.unwritten: list[Change] = []
        self.holders: list[Holder] = []
        self.restart()

    def restart(self) -> None:
        self.epoch += 1
        self.stale += [(sequence, lease.fence) for sequence, (lease, _) in self.model.out.items()]
        self.model.out = {}
        self.unwritten = []
        self.holders = []
        for kept in self.model.messages.values():
            kept.losses = 0
        self.machine = QueueMachine(self.queue_rules, self.epoch)
        entries = [
            Entry(kept.sequence, kept.lane, kept.attempts, kept.due_ms, kept.is_parked)
            for kept in sorted(self.model.waiting(), key=lambda kept: kept.sequence)
        ]
        self.machine.restore(entries, self.now_ms, UTC_MS + self.now_ms)
        self.machine.tick(self.now_ms)

    @rule(lanes=st.lists(st.sampled_from("abcd"), min_size=1, max_size=6))
    def publish(self, lanes: list[str]) -> None:
        for lane in lanes:
            sequence = len(self.model.messages) + 1
            self.model.messages[sequence] = Kept(sequence, lane)
            self.machine.add(sequence, lane)

    @precondition(lambda self: len(self.holders) < 3)
    @rule(window=st.integers(1, 5))
    def come(self, window: int) -> None:
        self.holders.append(Holder(window))

    @precondition(lambda self: self.holders)
    @rule(pick=st.integers(0, 9), count=st.integers(1, 5))
    def deliver(self, pick: int, count: int) -> None:
        holder = self.holders[pick % len(self.holders)]
        for _ in range(count):
            if self.machine.next_sequence() is None or not self.machine.may_lease(holder):
                return
            upcoming = self.machine.upcoming(1)
            lease = self.machine.lease(holder, self.now_ms)
            assert upcoming == [lease.sequence]
            self.judge(lease, holder)
            self.model.out[lease.sequence] = lease, holder

    def judge(self, lease: Lease, holder: Holder) -> None:
        model, kept = self.model, self.model.messages[lease.sequence]
        assert kept.state is State.WAITING
        assert kept.sequence not in model.out, "one message in two hands"
        assert kept.due_ms <= UTC_MS + self.now_ms
        assert lease.fence > model.fence_max
        assert (lease.lane, lease.attempt) == (kept.lane, kept.attempts + 1)
        model.fence_max = lease.fence
        held = [one for _, one in model.out.values()]
        beside = [self.model.messages[other] for other, (_, one) in model.out.items() if one is holder]
        assert len(beside) < holder.window
        assert not beside or not any(self.is_suspect(one) for one in (kept, *beside)), "a suspect is not alone"
        if self.queue_rules.is_strict:
            assert all(one is holder for one in held)
            for other in model.waiting():
                is_out = other.is_parked and other.due_ms > UTC_MS + self.now_ms
                assert other.sequence >= kept.sequence or other.sequence in model.out or is_out
        else:
            lane = [other for other in model.waiting() if other.lane == kept.lane and other is not kept]
            assert not any(other.sequence in model.out for other in lane), "two of a lane at once"
            assert all(other.sequence > kept.sequence or other.was_passed for other in lane)

    def is_suspect(self, kept: Kept) -> bool:
        return kept.losses >= self.queue_rules.losses_max // 2

    @precondition(lambda self: self.model.out and not self.unwritten)
    @rule(
        picks=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(Verdict)), min_size=1, max_size=4),
        exhausted=st.sampled_from([State.DEAD, State.REFUSED]),
    )
    def settle(self, picks: list[tuple[int, Verdict]], exhausted: State) -> None:
        out = list(self.model.out.values())
        settlements = [
            Settlement(lease.sequence, lease.fence, verdict, "", exhausted)
            for lease, verdict in ((out[pick % len(out)][0], verdict) for pick, verdict in picks)
        ]
        taken, self.unwritten = self.machine.settle(settlements, UTC_MS + self.now_ms)
        accepted = [one for one, is_taken in zip(settlements, taken, strict=True) if is_taken]
        assert sorted(one.sequence for one in accepted) == sorted(change.sequence for change in self.unwritten)
        if self.queue_rules.is_strict:
            self.take_back_after([change for change in self.unwritten if change.state is State.WAITING])
        else:
            assert {one.sequence for one in accepted} == {one.sequence for one in settlements}

    def take_back_after(self, changes: list[Change]) -> None:
        """In strict order a RETRY makes all later leases void but those that are being settled."""
        settling = {change.sequence for change in self.unwritten}
        first = min((change.sequence for change in changes if not change.is_parked), default=1 << 62)
        self.forget_leases(sequence for sequence in self.model.out if sequence > first and sequence not in settling)

    def forget_leases(self, sequences: Iterator[int]) -> None:
        for sequence in list(sequences):
            lease, _ = self.model.out.pop(sequence)
            self.stale.append((sequence, lease.fence))

    @precondition(lambda self: self.unwritten)
    @rule()
    def written(self) -> None:
        """The verdicts that were taken are durable now."""
        changes, self.unwritten = self.unwritten, []
        for change in changes:
            kept = self.model.messages[change.sequence]
            assert kept.state is State.WAITING
            assert change.attempts <= self.queue_rules.attempts_max
            kept.state, kept.attempts, kept.due_ms = change.state, change.attempts, change.due_ms
            kept.is_parked = change.is_parked
            kept.was_passed |= change.is_parked
            kept.ends += change.state is not State.WAITING
            if kept.ends:
                kept.losses = 0
            self.model.out.pop(change.sequence)
        self.machine.settled(changes, self.now_ms, UTC_MS + self.now_ms)
        self.machine.tick(self.now_ms)

    @precondition(lambda self: self.stale)
    @rule(pick=st.integers(0, 99))
    def settle_late(self, pick: int) -> None:
        sequence, fence = self.stale[pick % len(self.stale)]
        assert self.machine.settle([Settlement(sequence, fence, Verdict.DONE)], UTC_MS) == ([False], [])

    @precondition(lambda self: self.holders and not self.unwritten)
    @rule(pick=st.integers(0, 9))
    def lose(self, pick: int) -> None:
        holder = self.holders.pop(pick % len(self.holders))
        held = [self.model.messages[sequence] for sequence, (_, one) in self.model.out.items() if one is holder]
        assert len(held) <= 1 or not any(self.is_suspect(kept) for kept in held), "one of many is blamed"
        self.unwritten = self.machine.lose(holder)
        ending = {change.sequence for change in self.unwritten}
        for kept in held:
            kept.losses += 1
            assert (kept.sequence in ending) == (kept.losses >= self.queue_rules.losses_max)
        if ending:
            for kept in self.model.messages.values():
                kept.losses = 0
        self.forget_leases(kept.sequence for kept in held if kept.sequence not in ending)

    @precondition(lambda self: self.holders and not self.unwritten)
    @rule(pick=st.integers(0, 9), window=st.integers(1, 5))
    def crash_again(self, pick: int, window: int) -> None:
        """A consumer comes, takes what it can, and vanishes; another one takes what it held."""
        self.holders.append(Holder(window))
        self.deliver(len(self.holders) - 1, window)
        self.lose(len(self.holders) - 1)
        self.deliver(pick, window)

    @precondition(lambda self: self.holders)
    @rule(pick=st.integers(0, 9))
    def leave(self, pick: int) -> None:
        holder = self.holders.pop(pick % len(self.holders))
        settling = {change.sequence for change in self.unwritten}
        self.machine.leave(holder)
        held = [sequence for sequence, (_, one) in self.model.out.items() if one is holder and sequence not in settling]
        self.forget_leases(iter(held))

    @rule(time_ms=st.sampled_from([1, 50, 100, 300, 999, 1_000, 5_000]))
    def wait(self, time_ms: int) -> None:
        self.now_ms += time_ms
        moment = self.machine.next_tick_ms()
        before = self.machine.ready_count
        self.machine.tick(self.now_ms)
        if moment is None or moment > self.now_ms:
            assert self.machine.ready_count == before
        settling = {change.sequence for change in self.unwritten}
        expired = [
            sequence
            for sequence, (lease, _) in self.model.out.items()
            if lease.deadline_ms <= self.now_ms and sequence not in settling
        ]
        first = min(expired, default=1 << 62)
        self.forget_leases(
            sequence
            for sequence in self.model.out
            if sequence in expired or (self.queue_rules.is_strict and sequence > first and sequence not in settling)
        )

    @rule()
    def crash(self) -> None:
        """What was taken and not written is forgotten."""
        self.restart()

    @precondition(lambda self: any(kept.state is State.DEAD for kept in self.model.messages.values()))
    @rule()
    def replay(self) -> None:
        dead = [kept for kept in self.model.messages.values() if kept.state is State.DEAD]
        for kept in dead:
            kept.state, kept.attempts, kept.due_ms, kept.is_parked = State.WAITING, 0, 0, False
            kept.was_passed = True
            kept.ends -= 1
        entries = [Entry(kept.sequence, kept.lane) for kept in dead]
        self.machine.restore(entries, self.now_ms, UTC_MS + self.now_ms)

    @invariant()
    def nothing_is_lost_and_nothing_ends_twice(self) -> None:
        assert self.machine.waiting_count == sum(1 for _ in self.model.waiting())
        assert self.machine.leased_count == len(self.model.out)
        assert all(kept.ends == (kept.state is not State.WAITING) for kept in self.model.messages.values())

    def teardown(self) -> None:
        """Whatever happened, one good consumer brings everything to an end."""
        self.written() if self.unwritten else None
        for holder in list(self.holders):
            self.machine.lose(holder)
        self.restart()
        self.holders = [Holder(3)]
        for _ in range(3 * len(self.model.messages) + 10):
            self.deliver(0, 3)
            if self.model.out:
                self.settle([(0, Verdict.DONE)], State.DEAD)
                self.written()
            self.wait(300)
        assert not any(self.model.waiting())


class StrictQueueRuns(QueueRuns):
    queue_rules = STRICT


BUDGET = settings(max_examples=60, stateful_step_count=60)
TestQueueRuns = QueueRuns.TestCase
TestQueueRuns.settings = BUDGET
TestStrictQueueRuns = StrictQueueRuns.TestCase
TestStrictQueueRuns.settings = BUDGET
