"""The mempool: what it admits, in which order it hands out, what it lets go of, and why it refuses."""

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from consensus.ledger.errors import PeerError
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import ONE_SHOT_LANE_BYTES, Transaction, make_call
from contracts.runtime.execution import BlockContext, Executor
from node import verification
from node.mempool import Gone, Mempool, PoolLimits
from node.verification import Verifier
from tests.node.support import GENESIS_TIME_MS, make_consortium, make_executor

CONSORTIUM = make_consortium()
NOW_MS = GENESIS_TIME_MS + 1_000


class DictState:
    """A state in memory."""

    def __init__(self, entries: dict[bytes, bytes | None]) -> None:
        self.entries = entries

    def get(self, key: bytes) -> bytes | None:
        return self.entries.get(key)

    def scan(self, prefix: bytes, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        found = sorted(key for key in self.entries if key.startswith(prefix) and key >= start)
        return [(key, value) for key in found[:limit] if (value := self.entries[key]) is not None]


class Bench:
    """A pool above a state that blocks change."""

    def __init__(self, limits: PoolLimits | None = None) -> None:
        self.executor: Executor = make_executor()
        self.state = DictState(dict(self.executor.genesis_writes(CONSORTIUM.genesis)))
        self.pool = Mempool(self.executor, Verifier(), limits)
        self.height = 0
        self.written: list[bytes] = []

    def context(self) -> BlockContext:
        return BlockContext(CONSORTIUM.genesis.chain_id(), self.height + 1, NOW_MS, 0, "node-0")

    def add(self, transaction: Transaction) -> Transaction | None:
        return self.pool.add_untrusted(transaction.raw, self.state, self.context(), now_ms=0)

    def refusal(self, transaction: Transaction) -> str:
        with pytest.raises(PeerError) as error:
            self.add(transaction)
        return error.value.code

    def select(self, count_max: int = 100) -> list[Transaction]:
        return self.pool.select(count_max=count_max, bytes_max=1 << 20, calls_max=1_000, time_ms=NOW_MS)

    def commit(self, transactions: list[Transaction]) -> list[Transaction]:
        run = self.executor.execute(self.state, self.context(), transactions)
        self.state.entries.update(run.writes)
        self.written = list(run.writes)
        self.height += 1
        return self.pool.committed(transactions)


def note(name: str, sequence: int = 0, lane: bytes = b"", text: str = "", valid_ms: int = 60_000) -> Transaction:
    """A transaction that fails cheaply: what the pool does has nothing to do with its effects."""
    call = make_call("tokens", "transfer", {"unit": text or "x", "to": bytes(20), "amount": 1})
    return CONSORTIUM.sign(name, [call], sequence=sequence, lane=lane, valid_until_ms=NOW_MS + valid_ms)


def test_numbers_of_a_lane_come_out_in_order_whatever_order_they_came_in() -> None:
    bench = Bench()
    sent = [note("user-b", number) for number in range(4)]
    for transaction in (sent[2], sent[0], sent[3], sent[1]):
        bench.add(transaction)
    assert bench.select() == sent


def test_behind_a_gap_nothing_is_ready() -> None:
    bench = Bench()
    bench.add(note("user-b", 1))
    assert bench.select() == []
    assert not bench.pool.is_waiting
    assert bench.pool.gap_before(note("user-b", 1)) == 0
    bench.add(note("user-b", 0))
    assert bench.pool.is_waiting
    assert len(bench.select()) == 2


def test_senders_take_turns_and_who_was_served_stands_behind() -> None:
    bench = Bench()
    flood = [note("user-b", number) for number in range(5)]
    for transaction in flood:
        bench.add(transaction)
    other = note("user-e")
    bench.add(other)
    assert bench.select(count_max=3) == [flood[0], other, flood[1]]
    bench.commit([flood[0]])
    assert bench.select(count_max=2) == [other, flood[1]]


def test_the_same_again_is_no_error_and_no_second_entry() -> None:
    bench = Bench()
    assert bench.add(note("user-b")) is not None
    assert bench.add(note("user-b")) is None
    assert len(bench.pool) == 1


def test_every_refusal_says_why() -> None:
    bench = Bench(PoolLimits(transactions_per_sender_max=2, lane_window=10))
    assert bench.refusal(note("user-b", valid_ms=-1)) == "expired"
    assert bench.refusal(note("user-b", 10)) == "lane_gap"
    forged = note("user-b")
    forged_raw = forged.raw[:-1] + bytes([forged.raw[-1] ^ 1])
    with pytest.raises(PeerError, match="signature"):
        bench.pool.add_untrusted(forged_raw, bench.state, bench.context(), now_ms=0)
    bench.add(note("user-b"))
    assert bench.refusal(note("user-b", text="y")) == "lane_number_taken"
    bench.add(note("user-b", 1))
    assert bench.refusal(note("user-b", 2)) == "sender_full"
    bench.commit([note("user-b")])
    assert bench.refusal(note("user-b", text="z")) == "lane_used"


def test_a_full_pool_refuses_and_takes_again_when_a_block_has_made_room() -> None:
    bench = Bench(PoolLimits(transactions_max=1))
    bench.add(note("user-b"))
    assert bench.refusal(note("user-e")) == "pool_full"
    bench.commit([note("user-b")])
    assert bench.add(note("user-e")) is not None


def test_a_one_shot_lane_takes_one_and_the_loser_is_let_go() -> None:
    bench = Bench()
    lane = bytes(ONE_SHOT_LANE_BYTES)
    mine = note("user-b", lane=lane)
    bench.add(mine)
    rival = note("user-b", lane=lane, text="other")
    assert bench.commit([rival]) == [mine]
    assert bench.refusal(mine) == "lane_consumed"


def test_what_expires_is_let_go_and_is_not_handed_out_meanwhile() -> None:
    bench = Bench()
    brief = note("user-b", valid_ms=10)
    bench.add(brief)
    chosen = bench.pool.select(count_max=9, bytes_max=1 << 20, calls_max=9, time_ms=NOW_MS + 11)
    assert chosen == []
    assert bench.pool.gone(brief.id) is None
    assert bench.pool.expire(NOW_MS + 11) == [brief]
    assert bench.pool.gone(brief.id) == Gone("expired", NOW_MS + 10)
    assert len(bench.pool) == 0
    assert bench.pool.bytes_held == 0


def test_a_transaction_passed_by_often_and_long_is_overdue() -> None:
    bench = Bench(PoolLimits(passes_max=2, patience_ms=100))
    bench.add(note("user-e"))
    for number in range(3):
        bench.commit([note("user-b", number)])
    assert not bench.pool.is_overdue(now_ms=100)
    assert bench.pool.is_overdue(now_ms=101)
    bench.commit([note("user-e")])
    assert not bench.pool.is_overdue(now_ms=10_000)


def test_what_stood_in_two_refused_proposals_waits_for_a_block_without_others() -> None:
    bench = Bench()
    poison, other = note("user-b"), note("user-e")
    bench.add(poison)
    bench.add(other)
    bench.pool.refused([poison])
    assert bench.select() == [poison, other]
    bench.pool.refused([poison])
    assert bench.select() == [other]
    bench.commit([other])
    assert bench.select() == [poison]


def test_a_block_is_bounded_by_bytes_and_calls_but_never_empty_for_one_large_transaction() -> None:
    bench = Bench()
    sent = [note("user-b", number) for number in range(3)]
    for transaction in sent:
        bench.add(transaction)
    size = len(sent[0].raw)
    assert len(bench.pool.select(count_max=9, bytes_max=2 * size, calls_max=9, time_ms=NOW_MS)) == 2
    assert len(bench.pool.select(count_max=9, bytes_max=1 << 20, calls_max=1, time_ms=NOW_MS)) == 1
    assert len(bench.pool.select(count_max=9, bytes_max=1, calls_max=9, time_ms=NOW_MS)) == 1


def settle(*names: str) -> list[Transaction]:
    """One-shot transactions of one account, as many as names."""
    return [note("user-b", lane=name.encode().ljust(ONE_SHOT_LANE_BYTES, b"-")) for name in names]


def test_a_lane_that_was_served_stands_behind_the_sender_s_other_lanes() -> None:
    bench = Bench()
    flood = [note("user-b", number) for number in range(6)]
    [lone] = settle("lone")
    for transaction in [*flood, lone]:
        bench.add(transaction)
    first = bench.select(2)
    assert first == flood[:2]
    bench.commit(first)
    assert bench.select(2) == [lone, flood[2]]


def test_a_sender_s_flood_over_many_lanes_makes_no_honest_primary_overdue() -> None:
    bench = Bench(PoolLimits(passes_max=3, patience_ms=10))
    flood = settle(*[f"s{number}" for number in range(40)])
    for transaction in flood:
        bench.add(transaction)
    while chosen := bench.select(2):
        assert not bench.pool.is_overdue(now_ms=1_000)
        bench.commit(chosen)
    assert len(bench.pool) == 0


def test_a_sender_or_a_single_transaction_that_is_left_out_is_overdue() -> None:
    for theirs in ([], settle(*[f"s{number}" for number in range(30)])):
        bench = Bench(PoolLimits(passes_max=3, patience_ms=10))
        [censored] = settle("censored")
        bench.add(censored)
        for transaction in theirs:
            bench.add(transaction)
        for number in range(12):
            bench.commit([note("user-e", number), *theirs[2 * number : 2 * number + 2]])
        assert bench.pool.is_overdue(now_ms=1_000)
        assert not bench.pool.is_overdue(now_ms=5)


def test_what_waits_is_handed_on_again_in_turn_even_behind_others_that_stay() -> None:
    bench = Bench()
    stuck = [note("user-b", number) for number in (5, 6, 7)]
    free = [note("user-e", number) for number in range(3)]
    for transaction in [*stuck, *free]:
        bench.add(transaction)
    rounds = [bench.pool.waiting_since(now_ms, count_max=4) for now_ms in (1_000, 2_000, 3_000)]
    order = [item.raw for item in [*stuck, *free]]
    assert [raw for batch in rounds for raw in batch] == order * 2
    assert bench.pool.waiting_since(-1, count_max=4) == []


def test_a_block_of_one_long_lane_is_let_go_in_time_that_grows_with_the_block() -> None:
    bench = Bench()
    sent = [note("user-b", number) for number in range(300)]
    for transaction in reversed(sent):
        bench.add(transaction)
    lane = bench.pool._senders[sent[0].sender].lanes[b""]
    walked = 0

    class Entries(dict[int, object]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            nonlocal walked
            walked += len(self)
            return super().__iter__()

    lane.entries = Entries(lane.entries)  # type: ignore[assignment]
    bench.commit(sent[:200])
    assert len(bench.pool) == 100
    assert walked == 0
    assert bench.select(1) == [sent[200]]


@pytest.mark.parametrize("method", ["rotate_key", "suspend_account"])
def test_what_an_account_may_not_send_any_more_is_let_go(method: str) -> None:
    bench = Bench()
    keys = CONSORTIUM.account_keys
    sent = [note("shop", number) for number in (1, 2)]
    other = note("user-e")
    for transaction in [*sent, other]:
        bench.add(transaction)
    if method == "rotate_key":
        call = make_call("membership", method, {"new_public_key": PrivateKey.from_secret(5).public.compressed})
        bench.commit([CONSORTIUM.sign("shop", [call], valid_until_ms=NOW_MS + 60_000)])
    else:
        call = make_call("membership", method, {"account": keys["shop"].public.address})
        bench.commit([note("shop"), CONSORTIUM.sign("bank-a", [call], valid_until_ms=NOW_MS + 60_000)])
    assert bench.select() == [*sent, other] or bench.select() == [other, *sent]
    gone = bench.pool.accounts_changed(bench.written, bench.state)
    assert gone == sent
    assert bench.select() == [other]
    assert bench.pool._verifier.bytes_held == len(other.raw)


def test_memory_of_verified_transactions_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [note("user-b", number) for number in range(10)]
    monkeypatch.setattr(verification, "REMEMBERED_BYTES_MAX", 4 * len(sent[0].raw))
    bench = Bench()
    for transaction in sent:
        bench.add(transaction)
        assert bench.pool._verifier.bytes_held <= 4 * len(sent[0].raw)
    assert bench.select() == sent
    bench.commit(sent)
    assert bench.pool._verifier.bytes_held == 0


def test_another_signature_over_a_waiting_body_leaves_nothing_behind() -> None:
    bench = Bench()
    transaction = note("user-b")
    bench.add(transaction)
    held = bench.pool._verifier.bytes_held
    envelope = msgspec.msgpack.decode(transaction.raw)
    other = msgspec.msgpack.encode([envelope[0], note("user-e").signature])
    assert bench.pool.add_untrusted(other, bench.state, bench.context(), now_ms=0) is None
    assert bench.pool._verifier.bytes_held == held


SENDERS = ["user-b", "user-e", "shop"]
LANES = [b"", b"x"]
POOL = {
    (name, lane, sequence): note(name, sequence, lane) for name in SENDERS for lane in LANES for sequence in range(6)
}


class PoolMachine(RuleBasedStateMachine):
    """Whatever comes in whatever order: every selection executes, and nothing is lost or kept too long."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(PoolLimits(lane_window=5))
        self.next = {(name, lane): 0 for name in SENDERS for lane in LANES}
        self.waiting: set[bytes] = set()

    @rule(name=st.sampled_from(SENDERS), lane=st.sampled_from(LANES), sequence=st.integers(0, 5))
    def submit(self, name: str, lane: bytes, sequence: int) -> None:
        transaction = POOL[name, lane, sequence]
        first = self.next[name, lane]
        if first <= sequence < first + 5:
            added = self.bench.add(transaction)
            assert (added is None) == (transaction.id in self.waiting)
            self.waiting.add(transaction.id)
        else:
            assert self.bench.refusal(transaction) in {"lane_used", "lane_gap"}

    @rule(count_max=st.integers(1, 5))
    def block(self, count_max: int) -> None:
        chosen = self.bench.select(count_max)
        assert self.bench.commit(chosen) == []
        for transaction in chosen:
            self.waiting.discard(transaction.id)
            name = next(name for name in SENDERS if CONSORTIUM.account_keys[name].public.address == transaction.sender)
            self.next[name, transaction.body.lane] = transaction.body.sequence + 1

    @invariant()
    def holds_what_waits(self) -> None:
        assert len(self.bench.pool) == len(self.waiting)
        assert self.bench.pool.bytes_held == sum(
            len(transaction.raw) for transaction in POOL.values() if transaction.id in self.waiting
        )
        ready = any(
            POOL[name, lane, number].id in self.waiting for (name, lane), number in self.next.items() if number < 6
        )
        assert self.bench.pool.is_waiting == ready


PoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestPool = PoolMachine.TestCase
