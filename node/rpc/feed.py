"""Follows the chain for all callers at once: recent blocks in memory, and those who wait for a transaction.

One task reads each new block once. Waiting and subscribing never touch consensus.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import trio

from consensus.ledger.errors import PeerError, StorageError
from consensus.ledger.receipt import OK
from consensus.ledger.transaction import decode_transaction_untrusted
from node.rpc.backend import Backend, Committed
from node.rpc.protocol import Json
from node.rpc.render import block_json, event_json, hex_of, transaction_json

RECENT_BLOCKS_MAX = 256
RECENT_TRANSACTIONS_MAX = 8_192
"""How many transactions and receipts the recent blocks in memory have together; the newest stays in any case."""
OLD_BLOCKS_MAX = 16
"""Blocks further back that stay in memory, those read last."""
WAITING_MAX = 100_000
"""How many transaction ids may be waited for at a time, over all callers."""


class CommittedView:
    """A committed block with the JSON of its parts, rendered once for all who ask."""

    def __init__(self, committed: Committed) -> None:
        self.committed = committed

    @property
    def height(self) -> int:
        """The block's height."""
        return self.committed.block.height

    @property
    def size(self) -> int:
        """How many transactions and receipts it holds in memory."""
        return len(self.committed.transaction_ids) + len(self.committed.receipts)

    @cached_property
    def block(self) -> dict[str, Json]:
        """The block as JSON."""
        return block_json(self.committed)

    @cached_property
    def transaction_items(self) -> list[dict[str, Json]]:
        """All transactions as JSON."""
        return [self.transaction_item(index) for index in range(len(self.committed.transaction_ids))]

    def transaction_item(self, index: int) -> dict[str, Json]:
        """Return one transaction as JSON, with its place and the number of its failed receipts.

        Raises:
            StorageError: ``corrupted``; a committed block holds nothing that does not decode.
        """
        try:
            transaction = decode_transaction_untrusted(self.committed.block.transactions[index])
        except PeerError as error:
            raise StorageError("corrupted", f"block {self.height} holds a broken transaction: {error}") from None
        failed = self.failed_count(index)
        return {**transaction_json(transaction), "height": self.height, "index": index, "failedCount": failed}

    def failed_count(self, index: int) -> int:
        """Return how many receipts of a transaction failed."""
        place = self._receipt_places[index]
        receipts = self.committed.receipts[place : place + self.committed.receipt_counts[index]]
        return sum(receipt.status != OK for receipt in receipts)

    @cached_property
    def _receipt_places(self) -> list[int]:
        return [0, *accumulate(self.committed.receipt_counts)]

    @cached_property
    def event_items(self) -> list[dict[str, Json]]:
        """The events as JSON in order; ``index`` counts them within the block."""
        header = self.committed.block.header
        return [
            {
                **event_json(event),
                "height": header.height,
                "index": index,
                "timeMs": header.time_ms,
                "transactionId": hex_of(transaction_id),
                "callIndex": call_index,
            }
            for index, (transaction_id, call_index, event) in enumerate(
                (receipt.transaction_id, receipt.call_index, event)
                for receipt in self.committed.receipts
                for event in receipt.events
            )
        ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a transaction became final, and how many of its receipts failed."""

    height: int
    failed_count: int


@dataclass(slots=True, eq=False)
class Ticket:
    """Someone who waits until all of some transactions are final; ``done`` is called then, and must not block."""

    missing: set[bytes]
    done: Callable[[], None]
    outcomes: dict[bytes, Outcome] = field(default_factory=dict)
    """Of those that became final while the ticket stood."""


class Feed:
    """The newest blocks and the tickets of those who wait. ``run`` must be running."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._recent: dict[int, CommittedView] = {}
        self._recent_size = 0
        self._old: OrderedDict[int, CommittedView] = OrderedDict()
        self._tickets: dict[bytes, list[Ticket]] = {}
        self._advanced = trio.Event()
        self.height = backend.head().header.height

    async def run(self) -> None:
        """Read every new block until cancelled."""
        while True:
            await self._backend.wait_above(self.height)
            head = self._backend.head().header.height
            if not self._tickets:
                self.height = head  # nobody waits for what is in these blocks
            while self.height < head:
                view = self.view(self.height + 1)
                if view is not None:
                    self._redeem(view)
                self.height += 1
                await trio.lowlevel.checkpoint()
            self._advanced.set()
            self._advanced = trio.Event()

    def view(self, height: int) -> CommittedView | None:
        """Return a committed block, from memory when it is recent; None above the head or when pruned."""
        view = self._recent.get(height) or self._old.get(height)
        if view is not None:
            return view
        committed = self._backend.final.committed(height)
        if committed is None:
            return None
        view = CommittedView(committed)
        if height + RECENT_BLOCKS_MAX > self.height:
            self._recent[height] = view
            self._recent_size += view.size
            while len(self._recent) > 1 and (
                len(self._recent) > RECENT_BLOCKS_MAX or self._recent_size > RECENT_TRANSACTIONS_MAX
            ):
                self._recent_size -= self._recent.pop(min(self._recent)).size
        else:
            self._old[height] = view
            if len(self._old) > OLD_BLOCKS_MAX:
                self._old.popitem(last=False)
        return view

    async def wait_above(self, height: int) -> None:
        """Return once the feed has read a block above this height."""
        while self.height <= height:
            await self._advanced.wait()

    async def wait_final(self, transaction_ids: Sequence[bytes], *, timeout_ms: int) -> None:
        """Return when all these transactions are final, or when time is up.

        Raises:
            PeerError: ``too_many_waiting``.
        """
        missing = {item for item in transaction_ids if self._backend.final.locate(item) is None}
        if not missing:
            await trio.lowlevel.checkpoint()
            return
        done = trio.Event()
        ticket = self._issue(missing, done.set)
        try:
            with trio.move_on_after(timeout_ms / 1000):
                await done.wait()
        finally:
            self.forget(ticket)

    def watch(self, transaction_ids: Sequence[bytes], done: Callable[[], None], *, since: int) -> Ticket | None:
        """Call ``done`` once, when all these transactions are final; None: they are already, and it was called.

        Args:
            transaction_ids: none of which was final at height ``since``.
            done: must not block.
            since: a height the head had; when this task has read no block above it, nothing is looked up.

        Raises:
            PeerError: ``too_many_waiting``.
        """
        missing = set(transaction_ids)
        if self.height > since:
            missing = {item for item in missing if self._backend.final.locate(item) is None}
            if not missing:
                done()
                return None
        return self._issue(missing, done)

    def forget(self, ticket: Ticket) -> None:
        """Take a ticket back; its ``done`` is not called any more."""
        for item in ticket.missing:
            tickets = self._tickets.get(item, [])
            if ticket in tickets:
                tickets.remove(ticket)
            if not tickets:
                self._tickets.pop(item, None)

    def _issue(self, missing: set[bytes], done: Callable[[], None]) -> Ticket:
        if len(self._tickets) + len(missing) > WAITING_MAX:
            raise PeerError("too_many_waiting", f"{WAITING_MAX} transactions are waited for already")
        ticket = Ticket(missing, done)
        for item in missing:
            self._tickets.setdefault(item, []).append(ticket)
        return ticket

    def _redeem(self, view: CommittedView) -> None:
        for index, item in enumerate(view.committed.transaction_ids):
            tickets = self._tickets.pop(item, None)
            if tickets is None:
                continue
            outcome = Outcome(view.height, view.failed_count(index))
            for ticket in tickets:
                ticket.outcomes[item] = outcome
                ticket.missing.discard(item)
                if not ticket.missing:
                    ticket.done()
