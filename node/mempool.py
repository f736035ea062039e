"""The transactions that wait: admitted once, kept by sender and lane, handed out fairly.

Pure bookkeeping: no clock, no network. A transaction may wait behind a gap of its lane; only what is
next in its lane counts as *ready*. Blocks take one ready transaction of each sender in turn, so that one
sender's flood costs the others nothing but their share. All bounds are named, and every refusal says why.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import Hash
from consensus.ledger.transaction import Transaction
from contracts.runtime.execution import BlockContext, Executor
from contracts.runtime.lanes import load_lane
from contracts.runtime.state import StateReader
from node.verification import Verifier


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """How much may wait."""

    transactions_max: int = 20_000
    bytes_max: int = 64 * 1024 * 1024
    transactions_per_sender_max: int = 8_000
    lane_window: int = 4_096
    """How far a number may lie ahead of its lane's next one."""
    passes_max: int = 16
    """By how many blocks a ready transaction may be passed before it counts as overdue; a full pool
    drains in fewer."""
    patience_ms: int = 2_000
    """How long a ready transaction must have waited besides."""


@dataclass(slots=True)
class Entry:
    """One waiting transaction; ``arrival_ms`` on the monotonic clock.

    ``ready_after`` is the number of blocks committed when it became next in its lane, None before.
    """

    transaction: Transaction
    arrival_ms: int
    ready_after: int | None = None


@dataclass(slots=True)
class _Lane:
    next: int
    entries: dict[int, Entry] = field(default_factory=dict)


@dataclass(slots=True)
class _Sender:
    lanes: OrderedDict[bytes, _Lane] = field(default_factory=OrderedDict)
    count: int = 0


class Mempool:
    """What waits to be proposed."""

    def __init__(self, executor: Executor, verifier: Verifier, limits: PoolLimits | None = None) -> None:
        self._executor = executor
        self._verifier = verifier
        self._limits = limits or PoolLimits()
        self._entries: dict[Hash, Entry] = {}
        self._senders: OrderedDict[bytes, _Sender] = OrderedDict()
        self._bytes = 0
        self._blocks = 0
        self._ready: deque[Hash] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, transaction_id: bytes) -> bool:
        return transaction_id in self._entries

    @property
    def bytes_held(self) -> int:
        """Sum of the sizes of all waiting transactions."""
        return self._bytes

    def entry(self, transaction_id: bytes) -> Entry | None:
        """Return what is known of a waiting transaction."""
        return self._entries.get(Hash(transaction_id))

    def gap_before(self, transaction: Transaction) -> int | None:
        """Return the number its lane waits for when that one is not here, None when the way is free."""
        sender = self._senders.get(transaction.sender)
        lane = None if sender is None else sender.lanes.get(transaction.body.lane)
        if lane is None:
            return None
        for number in range(lane.next, transaction.body.sequence):
            if number not in lane.entries:
                return number
        return None

    def add_untrusted(self, raw: bytes, state: StateReader, block: BlockContext, *, now_ms: int) -> Transaction | None:
        """Admit a transaction; return it, or None when the same one waits already.

        Args:
            raw: the transaction as it travels.
            state: the newest state.
            block: the block that it could stand in first.
            now_ms: the monotonic clock.

        Raises:
            PeerError: why it is refused: what decoding, the sender's account, its signature or its lane
                say, or ``pool_full``, ``sender_full``, ``lane_gap``, ``lane_number_taken``.
        """
        transaction = self._verifier.decode_untrusted(raw)
        try:
            if transaction.id in self._entries:
                return None
            self._check(transaction, state, block)
        except PeerError:
            self._verifier.forget(raw)
            raise
        self._insert(transaction, state, now_ms)
        return transaction

    def _check(self, transaction: Transaction, state: StateReader, block: BlockContext) -> None:
        limits, body = self._limits, transaction.body
        if len(self._entries) >= limits.transactions_max or self._bytes + len(transaction.raw) > limits.bytes_max:
            raise PeerError("pool_full", f"{len(self._entries)} transactions wait already; try again later")
        try:
            self._executor.admit(state, transaction, time_ms=block.time_ms, chain_id=block.chain_id)
        except PeerError as error:
            if error.code != "lane_gap":
                raise
        sender = self._senders.get(transaction.sender)
        if sender is not None and sender.count >= limits.transactions_per_sender_max:
            raise PeerError("sender_full", f"{sender.count} transactions of this account wait already")
        next_number = _next_number(state, transaction)
        if body.sequence >= next_number + limits.lane_window:
            raise PeerError("lane_gap", f"number {body.sequence} lies too far ahead of {next_number}")
        lane = None if sender is None else sender.lanes.get(body.lane)
        if lane is not None and body.sequence in lane.entries:
            raise PeerError("lane_number_taken", f"another transaction with number {body.sequence} waits in this lane")
        self._verifier.check_signature_untrusted(transaction, state)

    def _insert(self, transaction: Transaction, state: StateReader, now_ms: int) -> None:
        body = transaction.body
        sender = self._senders.setdefault(transaction.sender, _Sender())
        lane = sender.lanes.get(body.lane)
        if lane is None:
            lane = sender.lanes[body.lane] = _Lane(_next_number(state, transaction))
        entry = Entry(transaction, now_ms)
        lane.entries[body.sequence] = entry
        sender.count += 1
        self._bytes += len(transaction.raw)
        self._entries[transaction.id] = entry
        self._mark_ready(lane)

    def _mark_ready(self, lane: _Lane) -> None:
        """Start the clock of the transaction that its lane waits for."""
        entry = lane.entries.get(lane.next)
        if entry is not None and entry.ready_after is None:
            entry.ready_after = self._blocks
            self._ready.append(entry.transaction.id)

    # -- handing out -----------------------------------------------------------------------------------

    def select(self, *, count_max: int, bytes_max: int, calls_max: int, time_ms: int) -> list[Transaction]:
        """Return ready transactions in the order they may be executed, senders taking turns.

        Nothing is removed: what a block takes leaves the pool when the block is committed.
        """
        taken: list[Transaction] = []
        turns: deque[Iterator[Transaction]] = deque()
        newcomers = iter(self._senders.values())
        bytes_left, calls_left = bytes_max, calls_max
        while len(taken) < count_max:
            # Everyone has a first turn before anyone has a second one.
            sender = next(newcomers, None)
            if sender is None and not turns:
                break
            turn = turns.popleft() if sender is None else self._of_sender(sender, time_ms)
            transaction = next(turn, None)
            if transaction is None:
                continue
            bytes_left -= len(transaction.raw)
            calls_left -= len(transaction.body.calls)
            if taken and (bytes_left < 0 or calls_left < 0):
                break
            taken.append(transaction)
            turns.append(turn)
        return taken

    def _of_sender(self, sender: _Sender, time_ms: int) -> Iterator[Transaction]:
        for lane in sender.lanes.values():
            number = lane.next
            while (entry := lane.entries.get(number)) is not None:
                if entry.transaction.body.valid_until_ms < time_ms:
                    break
                yield entry.transaction
                number += 1

    @property
    def is_waiting(self) -> bool:
        """Whether something is ready to be proposed."""
        return self._oldest_ready() is not None

    def is_overdue(self, *, now_ms: int) -> bool:
        """Whether blocks have passed the oldest ready transaction by too often and for too long."""
        entry = self._oldest_ready()
        if entry is None or entry.ready_after is None:
            return False
        passes = self._blocks - entry.ready_after
        waited_ms = now_ms - entry.arrival_ms
        return passes > self._limits.passes_max and waited_ms > self._limits.patience_ms

    def _oldest_ready(self) -> Entry | None:
        while self._ready:
            entry = self._entries.get(self._ready[0])
            if entry is not None:
                return entry
            self._ready.popleft()
        return None

    def waiting_since(self, before_ms: int, *, count_max: int) -> list[bytes]:
        """Return the oldest transactions that came before this moment, as they travel."""
        oldest: list[bytes] = []
        for entry in self._entries.values():
            if len(oldest) == count_max or entry.arrival_ms > before_ms:
                break
            oldest.append(entry.transaction.raw)
        return oldest

    # -- letting go ------------------------------------------------------------------------------------

    def committed(self, transactions: Sequence[Transaction]) -> list[Transaction]:
        """Let go of what a block made final and of what it made impossible; return the latter.

        The lanes that the block advanced move on; another transaction under a number that is taken now,
        and whatever is past its validity, can never be included any more.
        """
        self._blocks += 1
        dropped: list[Transaction] = []
        for transaction in transactions:
            sender = self._senders.get(transaction.sender)
            lane = None if sender is None else sender.lanes.get(transaction.body.lane)
            if sender is None or lane is None:
                continue
            lane.next = transaction.body.sequence + 1
            for number in [number for number in lane.entries if number < lane.next]:
                gone = self._drop(transaction.sender, sender, transaction.body.lane, number)
                if gone.id != transaction.id:
                    dropped.append(gone)
            if transaction.body.lane in sender.lanes:
                self._mark_ready(lane)
            if transaction.sender in self._senders:
                self._senders.move_to_end(transaction.sender)
        return dropped

    def expire(self, time_ms: int) -> list[Transaction]:
        """Drop and return what may no longer stand in a block of this time."""
        late = [
            entry.transaction for entry in self._entries.values() if entry.transaction.body.valid_until_ms < time_ms
        ]
        for transaction in late:
            self.remove(transaction)
        return late

    def remove(self, transaction: Transaction) -> None:
        """Drop one transaction, wherever it waits."""
        if transaction.id in self._entries:
            sender = self._senders[transaction.sender]
            self._drop(transaction.sender, sender, transaction.body.lane, transaction.body.sequence)

    def postpone(self, transactions: Sequence[Transaction]) -> None:
        """Let the senders of a proposal that was refused twice wait behind all others."""
        for transaction in transactions:
            if transaction.sender in self._senders:
                self._senders.move_to_end(transaction.sender)

    def _drop(self, address: bytes, sender: _Sender, lane_name: bytes, number: int) -> Transaction:
        lane = sender.lanes[lane_name]
        transaction = lane.entries.pop(number).transaction
        del self._entries[transaction.id]
        self._bytes -= len(transaction.raw)
        sender.count -= 1
        if not lane.entries:
            del sender.lanes[lane_name]
        if not sender.count:
            del self._senders[address]
        return transaction


def _next_number(state: StateReader, transaction: Transaction) -> int:
    """Return the number that the transaction's lane accepts next."""
    record = load_lane(state, transaction.sender, transaction.body.lane)
    return 0 if record is None else record.next
