"""The transactions that wait: admitted once, kept by sender and lane, handed out fairly.

Pure bookkeeping: no clock, no network. A transaction may wait behind a gap of its lane; only what is
next in its lane counts as *ready*. Blocks take one ready transaction of each sender in turn, so that one
sender's flood costs the others nothing but their share. All bounds are named, and every refusal says why.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import Hash
from consensus.ledger.transaction import Transaction
from contracts.runtime.accounts import account_key
from contracts.runtime.execution import BlockContext, Executor, check_sender
from contracts.runtime.lanes import load_lane
from contracts.runtime.state import StateReader
from node.verification import Verifier

GONE_REMEMBERED_MAX = 8_192
"""How many transactions that waited in vain are remembered, the newest."""


REFUSALS_MAX = 2
"""After how many proposals that came to nothing a transaction waits for a block without others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """How much may wait."""

    transactions_max: int = 20_000
    bytes_max: int = 64 * 1024 * 1024
    transactions_per_sender_max: int = 8_000
    lane_window: int = 4_096
    """How far a number may lie ahead of its lane's next one."""
    passes_max: int = 16
    """How many blocks in a row may leave out a sender who waits, or a transaction whose turn it is."""
    patience_ms: int = 2_000
    """How long a ready transaction must have waited besides."""


@dataclass(slots=True)
class Entry:
    """One waiting transaction; ``arrival_ms`` on the monotonic clock.

    ``ready_after`` is the number of blocks committed when it became next in its lane, None before.
    ``turn`` is how many transactions of its sender may be served from then on before it was left out.
    ``repeated_ms`` orders what is handed on again: the arrival, later the last repetition. ``refusals``
    counts the own proposals with it that came to nothing.
    """

    transaction: Transaction
    arrival_ms: int
    repeated_ms: int
    ready_after: int | None = None
    turn: int = 0
    refusals: int = 0


@dataclass(frozen=True, slots=True)
class Gone:
    """Why a transaction that waited here will never be included: a refusal's code, and how long it was valid."""

    code: str
    valid_until_ms: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """How a transaction waits, for people.

    ``gap`` is the number its lane waits for that is not here, ``ahead`` how many earlier numbers wait before
    it; ``passed`` counts the blocks since it became next in its lane, 0 before. ``of_sender`` and ``in_pool``
    count what waits, ``is_set_back`` says that proposals with it came to nothing too often.
    """

    entry: Entry
    gap: int | None
    ahead: int
    passed: int
    of_sender: int
    in_pool: int
    is_set_back: bool


@dataclass(slots=True)
class _Lane:
    next: int
    entries: dict[int, Entry] = field(default_factory=dict)


@dataclass(slots=True)
class _Sender:
    lanes: OrderedDict[bytes, _Lane] = field(default_factory=OrderedDict)
    count: int = 0
    served: int = 0
    served_after: int = 0
    """Number of blocks committed when a block last held something of this sender."""


class Mempool:
    """What waits to be proposed, and what became of what waited in vain."""

    def __init__(self, executor: Executor, verifier: Verifier, limits: PoolLimits | None = None) -> None:
        self._executor = executor
        self._verifier = verifier
        self._limits = limits or PoolLimits()
        self._entries: OrderedDict[Hash, Entry] = OrderedDict()
        self._senders: OrderedDict[bytes, _Sender] = OrderedDict()
        self._bytes = 0
        self._blocks = 0
        self._ready: OrderedDict[Hash, Entry] = OrderedDict()
        self._gone: OrderedDict[Hash, Gone] = OrderedDict()
        self._valid_until_ms_min = 0
        """No waiting transaction ends before this time."""

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

    def waiting(self, transaction_id: bytes) -> Waiting | None:
        """Return how a transaction waits, None when it does not wait here."""
        entry = self._entries.get(Hash(transaction_id))
        if entry is None:
            return None
        body, sender = entry.transaction.body, self._senders[entry.transaction.sender]
        lane = sender.lanes[body.lane]
        return Waiting(
            entry=entry,
            gap=self.gap_before(entry.transaction),
            ahead=sum(lane.next <= number < body.sequence for number in lane.entries),
            passed=0 if entry.ready_after is None else self._blocks - entry.ready_after,
            of_sender=sender.count,
            in_pool=len(self._entries),
            is_set_back=entry.refusals >= REFUSALS_MAX,
        )

    def gone(self, transaction_id: bytes) -> Gone | None:
        """Return why a transaction waits no longer without being included, if that was lately."""
        return self._gone.get(Hash(transaction_id))

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
            waiting = self._entries.get(transaction.id)
            if waiting is not None:
                if waiting.transaction.raw != raw:
                    self._verifier.forget(raw)
                return None
            next_number = self._check(transaction, state, block)
        except PeerError:
            self._verifier.forget(raw)
            raise
        self._insert(transaction, next_number=next_number, now_ms=now_ms)
        return transaction

    def _check(self, transaction: Transaction, state: StateReader, block: BlockContext) -> int:
        """Refuse what may not wait here; return the number that its lane takes next."""
        limits, body = self._limits, transaction.body
        if len(self._entries) >= limits.transactions_max or self._bytes + len(transaction.raw) > limits.bytes_max:
            raise PeerError("pool_full", f"{len(self._entries)} transactions wait already; try again later")
        next_number = body.sequence
        try:
            self._executor.admit(state, transaction, time_ms=block.time_ms, chain_id=block.chain_id)
        except PeerError as error:
            if error.code != "lane_gap":
                raise
            next_number = _next_number(state, transaction)
        sender = self._senders.get(transaction.sender)
        if sender is not None and sender.count >= limits.transactions_per_sender_max:
            raise PeerError("sender_full", f"{sender.count} transactions of this account wait already")
        if body.sequence >= next_number + limits.lane_window:
            raise PeerError("lane_gap", f"number {body.sequence} lies too far ahead of {next_number}")
        lane = None if sender is None else sender.lanes.get(body.lane)
        if lane is not None and body.sequence in lane.entries:
            raise PeerError("lane_number_taken", f"another transaction with number {body.sequence} waits in this lane")
        self._verifier.check_signature_untrusted(transaction, state)
        return next_number

    def _insert(self, transaction: Transaction, *, next_number: int, now_ms: int) -> None:
        body = transaction.body
        sender = self._senders.setdefault(transaction.sender, _Sender())
        lane = sender.lanes.get(body.lane)
        if lane is None:
            lane = sender.lanes[body.lane] = _Lane(next_number)
        entry = Entry(transaction, now_ms, repeated_ms=now_ms)
        lane.entries[body.sequence] = entry
        sender.count += 1
        self._bytes += len(transaction.raw)
        ends_ms = body.valid_until_ms
        self._valid_until_ms_min = min(self._valid_until_ms_min, ends_ms) if self._entries else ends_ms
        self._entries[transaction.id] = entry
        self._mark_ready(sender, lane)

    def _mark_ready(self, sender: _Sender, lane: _Lane) -> None:
        """Start the clock of the transaction that its lane waits for."""
        entry = lane.entries.get(lane.next)
        if entry is not None and entry.ready_after is None:
            entry.ready_after = self._blocks
            # Nodes may have received a sender's transactions in another order: twice its place is its turn.
            entry.turn = sender.served + 2 * sender.count
            self._ready[entry.transaction.id] = entry

    # -- handing out -----------------------------------------------------------------------------------

    def select(self, *, count_max: int, bytes_max: int, calls_max: int, time_ms: int) -> list[Transaction]:
        """Return ready transactions in the order they may be executed, senders taking turns.

        Nothing is removed: what a block takes leaves the pool when the block is committed. What stood in
        ``REFUSALS_MAX`` proposals that came to nothing travels only when nothing else is ready, so that one
        transaction that no block can hold does not spoil them all.
        """
        limits = {"count_max": count_max, "bytes_max": bytes_max, "calls_max": calls_max}
        trusted = self._select(refusals_max=REFUSALS_MAX - 1, time_ms=time_ms, **limits)
        return trusted or self._select(refusals_max=None, time_ms=time_ms, **limits)

    def _select(
        self, *, refusals_max: int | None, count_max: int, bytes_max: int, calls_max: int, time_ms: int
    ) -> list[Transaction]:
        taken: list[Transaction] = []
        turns: deque[Iterator[Transaction]] = deque()
        newcomers = iter(self._senders.values())
        bytes_left, calls_left = bytes_max, calls_max
        while len(taken) < count_max:
            # Everyone has a first turn before anyone has a second one.
            sender = next(newcomers, None)
            if sender is None and not turns:
                break
            turn = turns.popleft() if sender is None else self._of_sender(sender, time_ms, refusals_max)
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

    def _of_sender(self, sender: _Sender, time_ms: int, refusals_max: int | None) -> Iterator[Transaction]:
        for lane in sender.lanes.values():
            number = lane.next
            while (entry := lane.entries.get(number)) is not None:
                if entry.transaction.body.valid_until_ms < time_ms:
                    break
                if refusals_max is not None and entry.refusals > refusals_max:
                    break
                yield entry.transaction
                number += 1

    @property
    def is_waiting(self) -> bool:
        """Whether something is ready to be proposed."""
        return bool(self._ready)

    def is_overdue(self, *, now_ms: int) -> bool:
        """Whether blocks have left out the oldest ready transaction for too long and too often.

        While its sender is served, a transaction waits behind the sender's others without harm: one who
        floods many lanes must not make an honest primary look like a censor.
        """
        entry = next(iter(self._ready.values()), None)
        if entry is None or entry.ready_after is None:
            return False
        sender = self._senders[entry.transaction.sender]
        passed_since = entry.ready_after
        if sender.served < entry.turn:
            passed_since = max(passed_since, sender.served_after)
        waited_ms = now_ms - entry.arrival_ms
        return self._blocks - passed_since > self._limits.passes_max and waited_ms > self._limits.patience_ms

    def waiting_since(self, before_ms: int, *, count_max: int) -> list[bytes]:
        """Return transactions that came before this moment, as they travel, in turn.

        What is returned stands behind all others then, so that what waits behind a gap for an hour does
        not keep the rest from being handed on again.
        """
        oldest: list[bytes] = []
        for entry in list(islice(self._entries.values(), count_max)):
            if entry.repeated_ms > before_ms:
                break
            entry.repeated_ms = before_ms
            self._entries.move_to_end(entry.transaction.id)
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
            address, body = transaction.sender, transaction.body
            sender = self._senders.get(address)
            if sender is None:
                continue
            sender.served += 1
            sender.served_after = self._blocks
            self._senders.move_to_end(address)
            lane = sender.lanes.get(body.lane)
            if lane is None:
                continue
            sender.lanes.move_to_end(body.lane)
            for number in range(lane.next, body.sequence + 1):
                if number in lane.entries:
                    gone = self._drop(address, sender, body.lane, number)
                    if gone.id != transaction.id:
                        self._remember(gone, "lane_used")
                        dropped.append(gone)
            lane.next = max(lane.next, body.sequence + 1)
            if lane.entries:
                self._mark_ready(sender, lane)
        return dropped

    def accounts_changed(self, written: Iterable[bytes], state: StateReader) -> list[Transaction]:
        """Drop and return what accounts whose records a block wrote may not send any more, or signed with a former key.

        Otherwise it would wait here until its validity ends, and a primary be blamed for leaving it out.

        Args:
            written: state keys that the block wrote.
            state: the newest state.
        """
        prefix = account_key(b"")
        keys = {key for key in written if key.startswith(prefix)}
        addresses = [address for address in self._senders if account_key(address) in keys] if keys else []
        return [gone for address in addresses for gone in self._recheck(address, state)]

    def _recheck(self, address: bytes, state: StateReader) -> list[Transaction]:
        gone: list[Transaction] = []
        lanes = self._senders[address].lanes.values()
        for transaction in [entry.transaction for lane in lanes for entry in lane.entries.values()]:
            try:
                check_sender(state, transaction)
                self._verifier.check_unchanged_untrusted(transaction, state)
            except PeerError as error:
                self.remove(transaction, code=error.code)
                gone.append(transaction)
        return gone

    def expire(self, time_ms: int) -> list[Transaction]:
        """Drop and return what may no longer stand in a block of this time."""
        if time_ms <= self._valid_until_ms_min:
            return []
        late = [
            entry.transaction for entry in self._entries.values() if entry.transaction.body.valid_until_ms < time_ms
        ]
        for transaction in late:
            self.remove(transaction, code="expired")
        ends = (entry.transaction.body.valid_until_ms for entry in self._entries.values())
        self._valid_until_ms_min = min(ends, default=0)
        return late

    def remove(self, transaction: Transaction, *, code: str) -> None:
        """Drop one transaction, wherever it waits; ``code`` says why it will never be included."""
        if transaction.id in self._entries:
            self._remember(transaction, code)
            sender = self._senders[transaction.sender]
            self._drop(transaction.sender, sender, transaction.body.lane, transaction.body.sequence)

    def _remember(self, transaction: Transaction, code: str) -> None:
        self._gone[transaction.id] = Gone(code, transaction.body.valid_until_ms)
        if len(self._gone) > GONE_REMEMBERED_MAX:
            self._gone.popitem(last=False)

    def refused(self, transactions: Sequence[Transaction]) -> None:
        """Take note that a proposal with these transactions came to nothing."""
        for transaction in transactions:
            entry = self._entries.get(transaction.id)
            if entry is not None:
                entry.refusals += 1

    def _drop(self, address: bytes, sender: _Sender, lane_name: bytes, number: int) -> Transaction:
        lane = sender.lanes[lane_name]
        transaction = lane.entries.pop(number).transaction
        del self._entries[transaction.id]
        self._ready.pop(transaction.id, None)
        self._verifier.forget(transaction.raw)
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
