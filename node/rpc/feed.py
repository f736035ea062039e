"""Follows the chain for all callers at once: recent blocks in memory, and those who wait for a transaction.

One task reads each new block once. Waiting and subscribing never touch consensus.
"""

from collections import OrderedDict
from collections.abc import Sequence
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
        place = self._receipt_places[index]
        receipts = self.committed.receipts[place : place + self.committed.receipt_counts[index]]
        failed = sum(receipt.status != OK for receipt in receipts)
        return {**transaction_json(transaction), "height": self.height, "index": index, "failedCount": failed}

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


@dataclass(slots=True, eq=False)
class _Ticket:
    """One caller who waits until all of some transactions are final."""

    missing: set[bytes]
    done: trio.Event = field(default_factory=trio.Event)


class Feed:
    """The newest blocks and the tickets of those who wait. ``run`` must be running."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._recent: dict[int, CommittedView] = {}
        self._old: OrderedDict[int, CommittedView] = OrderedDict()
        self._tickets: dict[bytes, list[_Ticket]] = {}
        self._advanced = trio.Event()
        self.height = backend.head().header.height

    async def run(self) -> None:
        """Read every new block until cancelled."""
        while True:
            await self._backend.wait_above(self.height)
            head = self._backend.head().header.height
            if not self._tickets:  # after a long catch-up nobody needs the blocks between
                self.height = max(self.height, head - RECENT_BLOCKS_MAX)
            while self.height < head:
                view = self.view(self.height + 1)
                if view is not None:
                    self._redeem(view.committed.transaction_ids)
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
            if len(self._recent) > RECENT_BLOCKS_MAX:
                del self._recent[min(self._recent)]
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
        if len(self._tickets) + len(missing) > WAITING_MAX:
            raise PeerError("too_many_waiting", f"{WAITING_MAX} transactions are waited for already")
        ticket = _Ticket(missing)
        for item in sorted(missing):
            self._tickets.setdefault(item, []).append(ticket)
        try:
            with trio.move_on_after(timeout_ms / 1000):
                await ticket.done.wait()
        finally:
            for item in ticket.missing:
                self._return(item, ticket)

    def _redeem(self, transaction_ids: Sequence[bytes]) -> None:
        for item in transaction_ids:
            for ticket in self._tickets.pop(item, ()):
                ticket.missing.discard(item)
                if not ticket.missing:
                    ticket.done.set()

    def _return(self, item: bytes, ticket: _Ticket) -> None:
        tickets = self._tickets.get(item, [])
        if ticket in tickets:
            tickets.remove(ticket)
        if not tickets:
            self._tickets.pop(item, None)
