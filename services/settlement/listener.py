"""Follows the chain block by block and hands what became of our transactions to the store.

A block counts once a quorum certified its header and all its receipts together have the header's root, whatever node
it came from: a node can hold blocks back, but not make an outcome up. What follows from the receipts is kept together
with the cursor, so that a block whose receipts were not taken is read again after a crash.

Notices of new blocks only say that it is worth asking. When a node tells nothing new for ``QUIET_MS``, and every
``FOLLOW_MS``, the others are asked for the next block, and one that has it is followed from then on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog
import trio

from consensus.ledger.block import (
    Header,
    check_certified_untrusted,
    check_successor_untrusted,
    decode_block_untrusted,
)
from consensus.ledger.errors import HansaError, InvariantError, PeerError
from consensus.ledger.merkle import list_root
from consensus.ledger.receipt import OK, Receipt, receipt_codec
from consensus.ledger.validators import ValidatorSet, certificate_codec
from services.client.answers import RawBlock, Subscribed, bytes_of
from services.client.client import Client
from services.client.connection import Connection
from services.client.errors import Refused, Unreachable
from services.client.reader import Reader, list_leaves_untrusted, raw_blocks
from services.settlement import decision
from services.settlement.states import Change, Event, Kind
from services.settlement.store import PAGE_MAX, Cursor, EventStore

BLOCKS_MAX = 32
"""Blocks that are read, and whose changes are kept, together."""
CHANGES_MAX = 500
"""Changes that are kept together."""
CURSOR_BLOCKS = 64
"""After so many blocks without a transaction of ours the cursor is kept all the same."""
ATTEMPTS_MAX = 100
"""How often a block is decided anew, when others change its events meanwhile, before that is a fault."""
QUIET_MS = 3_000
FOLLOW_MS = 30_000
"""How long one node is followed before the others are asked whether they have more: it may hold blocks back."""
UNSUBSCRIBE_MS = 500
PAUSE_MIN_MS = 50
PAUSE_MAX_MS = 2_000

T = TypeVar("T")

log = structlog.get_logger("listener")


@dataclass(frozen=True, slots=True)
class Certified:
    """What a block under a verified certificate says of one transaction; ``code`` why it failed."""

    is_ok: bool
    code: str
    height: int


@dataclass(frozen=True, slots=True)
class _Place:
    """A verified block: where reading stands.

    ``validators`` certify the next one; None: others than this one's, to be proven. The header of block 0 is not known.
    """

    height: int
    block_hash: bytes
    time_ms: int
    validators: ValidatorSet | None
    header: Header | None

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.height, self.block_hash)


class Listener:
    """Reads the chain into an event store; :meth:`run` it once."""

    def __init__(
        self, client: Client, store: EventStore, *, now_ms: Callable[[], int], quiet_ms: int = QUIET_MS
    ) -> None:
        """Listen at the client's nodes; ``now_ms`` (UTC) only dates changes."""
        self._quiet_s = quiet_ms / 1000
        self._reader = client.apart()
        self._nodes = [*client.each_node().values()]
        self._node = 0
        self._store = store
        self._now_ms = now_ms
        self._place: _Place | None = None
        self._kept_height = 0
        self._trouble = ""
        self._pause_ms = PAUSE_MIN_MS

    @property
    def height(self) -> int:
        """How far the chain was read, 0 before it began."""
        return 0 if self._place is None else self._place.height

    @property
    def time_ms(self) -> int:
        """The newest certified block time that was read, 0 before it began."""
        return 0 if self._place is None else self._place.time_ms

    @property
    def trouble(self) -> str:
        """Why nothing new comes from the chain, as a code; "" while it does."""
        return self._trouble

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen for ever, from where reading ended, the first time from the chain's head on.

        Started once it is known from where on: what becomes final after that is heard.

        Raises:
            StorageError: the store's disk failed.
        """
        while True:
            try:
                if self._place is None:
                    self._place = await self._begin()
                    self._kept_height = self._place.height
                    task_status.started()
                await self._follow(await self._nodes[self._node].connection())
                self._node = await self._node_ahead()
            except (Unreachable, Refused, PeerError) as error:
                await self._on_trouble(error)
                self._reader.leave_node()
                self._node = (self._node + 1) % len(self._nodes)

    # -- reading -------------------------------------------------------------------------------------------

    async def _begin(self) -> _Place:
        """Return the verified block to go on from, and keep it where there was none."""
        cursor = await self._store.cursor()
        if cursor is not None and cursor.height == 0:
            return self._genesis(cursor.block_hash)
        if cursor is not None:
            verified = await self._reader.prove_block(cursor.height)
            if verified.block_hash != cursor.block_hash:
                raise PeerError(
                    "cursor_conflict", f"block {cursor.height} is certified with another hash than was read"
                )
            return _place_of(verified.header, verified.validators)
        try:
            _, head = await self._reader.prove("chain_getBlock", {})
            place = _place_of(head.header, head.validators)
        except Refused as error:
            if error.code != "genesis_unsigned":
                raise
            place = self._genesis(bytes(32))
        await self._store.apply([], cursor=place.cursor)
        log.info("listening from the chain's head", height=place.height)
        return place

    def _genesis(self, block_hash: bytes) -> _Place:
        genesis = self._reader.genesis
        return _Place(0, block_hash, genesis.time_ms, genesis.validator_set(), None)

    async def _follow(self, connection: Connection) -> None:
        """Read from one node for a while; return early when it shows no new block, whatever it says."""
        async with connection.notifications() as heard:
            subscribed = await connection.request("subscribe", {"topic": "blocks"}, Subscribed)
            try:
                height, quiet_at, leave_at = -1, 0.0, trio.current_time() + FOLLOW_MS / 1000
                while True:
                    while await self._read_page(connection):
                        pass
                    if self.height > height:
                        height, quiet_at = self.height, trio.current_time() + self._quiet_s
                        self._on_progress()
                    with trio.move_on_at(min(quiet_at, leave_at)) as waited:
                        await heard.receive()
                    if waited.cancelled_caught:
                        return
                    _drain(heard)
            except trio.EndOfChannel:
                return  # fell behind with the notices, or the socket ended: the next request tells
            finally:
                if not connection.closed.is_set():
                    with trio.move_on_after(UNSUBSCRIBE_MS / 1000, shield=True):
                        await _unsubscribe(connection, subscribed.subscription)

    async def _read_page(self, connection: Connection) -> bool:
        """Read the blocks that follow, and tell whether there were some and may be more.

        Raises:
            PeerError: they are not the chain's.
            Unreachable: of the node or the database.
        """
        place = self._at
        start = place.height + 1
        answer = await raw_blocks(connection, start, BLOCKS_MAX)
        certified: dict[bytes, Certified] = {}
        for raw in answer.blocks:
            place, receipts = await self._verify(place, raw, self._nodes[self._node])
            certified |= _outcomes(receipts, place.height)
        if place.height >= start:
            await self._keep(certified, place)
            self._place = place
        return start <= place.height < answer.head

    async def _verify(self, parent: _Place, raw: RawBlock, node: Reader) -> tuple[_Place, list[Receipt]]:
        """Return the next block's place with its receipts, both under a certificate of a quorum.

        Who shows the block proves its validators too: another node may not have it.
        """
        validators = parent.validators or (await node.prove_block(parent.height + 1)).validators
        header, receipts = read_block_untrusted(raw, parent.header, validators)
        if (header.chain_id, header.height) != (self._reader.chain_id, parent.height + 1):
            raise PeerError("bad_answer", f"block {header.height} does not follow {parent.height} of this chain")
        return _place_of(header, validators), receipts

    async def _node_ahead(self) -> int:
        """Return the number of another node that shows a verified block more than was read, else the present one's."""
        ahead: list[int] = []

        async def ask(number: int) -> None:
            with trio.move_on_after(self._quiet_s):
                try:
                    connection = await self._nodes[number].connection()
                    answer = await raw_blocks(connection, self.height + 1, 1)
                    if answer.blocks:
                        await self._verify(self._at, answer.blocks[0], self._nodes[number])
                        ahead.append(number)
                except (Unreachable, Refused, PeerError):
                    return

        async with trio.open_nursery() as nursery:
            for number in range(len(self._nodes)):
                if number != self._node:
                    nursery.start_soon(ask, number)
        return ahead[0] if ahead else self._node

    # -- keeping -------------------------------------------------------------------------------------------

    async def _keep(self, certified: dict[bytes, Certified], place: _Place) -> None:
        """Keep what follows from certified outcomes, and where reading stands."""
        ids = list(certified)
        for _ in range(ATTEMPTS_MAX):
            changes = await self._decide(ids, certified)
            if not changes and place.height < self._kept_height + CURSOR_BLOCKS:
                return
            if await self._apply(changes, place.cursor):
                self._kept_height = place.height
                return
        raise InvariantError(f"the events of block {place.height} change all the time")

    async def _decide(self, ids: Sequence[bytes], certified: dict[bytes, Certified]) -> list[Change]:
        events: list[Event] = []
        for start in range(0, len(ids), PAGE_MAX):
            events += await self._store.find_transactions(ids[start : start + PAGE_MAX])
        originals = {event.original for event in events if event.kind is Kind.REVERSAL}
        trades = (
            {event.event: event for event in await self._store.find(sorted(originals)) if event} if originals else {}
        )
        changes: list[Change] = []
        for event in events:
            said, original = certified[event.transaction_id], trades.get(event.original)
            if decision.contradicts(event, original=original, is_ok=said.is_ok):
                log.error("certified against what is known", trade=event.event, state=event.state.value, **_told(said))
            changes += decision.on_certified(
                event, original=original, is_ok=said.is_ok, code=said.code, height=said.height, now_ms=self._now_ms()
            )
        return changes

    async def _apply(self, changes: Sequence[Change], cursor: Cursor) -> bool:
        """Keep changes, the cursor with the last of them; tell whether all were taken."""
        taken = True
        for start in range(0, len(changes), CHANGES_MAX) or (0,):
            part = changes[start : start + CHANGES_MAX]
            is_last = start + CHANGES_MAX >= len(changes)
            taken &= all(await self._store.apply(part, cursor=cursor if is_last and taken else None))
        return taken

    @property
    def _at(self) -> _Place:
        if self._place is None:
            raise InvariantError("reading has not begun")
        return self._place

    async def _on_trouble(self, error: HansaError) -> None:
        """Say what is new about it, and wait a little longer each time."""
        if error.code != self._trouble:
            log.warning("chain cannot be followed", code=error.code, why=error.message, height=self.height)
        self._trouble = error.code
        pause_ms, self._pause_ms = self._pause_ms, min(2 * self._pause_ms, PAUSE_MAX_MS)
        await trio.sleep(pause_ms / 1000)

    def _on_progress(self) -> None:
        if self._trouble:
            log.info("chain is followed again", after=self._trouble, height=self.height)
        self._trouble, self._pause_ms = "", PAUSE_MIN_MS


def read_block_untrusted(
    raw: RawBlock, parent: Header | None, validators: ValidatorSet
) -> tuple[Header, list[Receipt]]:
    """Return header and receipts of the block after ``parent`` (None: block 0) that these validators certified.

    Raises:
        PeerError: ``bad_certificate``, ``bad_header``, ``bad_proof``, ``malformed``, ``too_large``, ``wrong_chain``.
    """
    header = decode_block_untrusted(bytes_of(raw.raw)).header
    if parent is not None:
        check_successor_untrusted(parent, parent.hash(), header)
    certificate = certificate_codec.decode_untrusted(bytes_of(raw.certificate_raw or "0x"))
    check_certified_untrusted(header, certificate, validators)
    leaves = list_leaves_untrusted(bytes_of(raw.receipts_raw))
    if list_root(leaves) != header.receipts_root:
        raise PeerError("bad_proof", f"these are not the receipts of block {header.height}")
    return header, [receipt_codec.decode_untrusted(leaf) for leaf in leaves]


def _place_of(header: Header, validators: ValidatorSet) -> _Place:
    """Return a certified block as a place; ``validators`` certified it."""
    is_same = header.next_validators_hash == header.validators_hash
    return _Place(header.height, header.hash(), header.time_ms, validators if is_same else None, header)


def _outcomes(receipts: Sequence[Receipt], height: int) -> dict[bytes, Certified]:
    """Return by transaction what its receipts say; one failed call is a failure."""
    outcomes: dict[bytes, Certified] = {}
    for receipt in receipts:
        known = outcomes.get(receipt.transaction_id)
        if known is None or known.is_ok:
            outcomes[receipt.transaction_id] = Certified(receipt.status == OK, receipt.code, height)
    return outcomes


def _told(said: Certified) -> dict[str, object]:
    return {"is_ok": said.is_ok, "code": said.code, "height": said.height}


def _drain(heard: trio.MemoryReceiveChannel[tuple[str, bytes]]) -> None:
    """Forget notices that came meanwhile: the next page answers them all."""
    try:
        while True:
            heard.receive_nowait()
    except trio.WouldBlock:
        return


async def _unsubscribe(connection: Connection, subscription: int) -> None:
    try:
        await connection.request("unsubscribe", {"subscription": subscription}, object)
    except (Unreachable, Refused, PeerError):
        return
