"""Catching up: fetching final blocks from peers, one chunk at a time.

Only a certificate makes a node catch up, never a claimed height (R60, R61). A peer that answers late,
with nothing or with what does not hold is passed over for the next one (R63); blocks are checked and
committed one by one by the driver, the only writer, so a block that consensus delivers meanwhile is
applied once, and consensus goes on between two blocks.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import trio

from consensus.ledger.block import BLOCK_BYTES_MAX
from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import NodeName
from consensus.ledger.transaction import Natural
from node.results import serve_results_untrusted
from node.storage import layout
from node.storage.store import Store
from p2p.frames import FrameKind
from p2p.network import Network

CHUNK_BLOCKS_MAX = 256
CHUNK_BYTES_MAX = BLOCK_BYTES_MAX + 256 * 1024
ANSWER_TIMEOUT_S = 3.0
SLOW_SHARE = 0.3
"""An answer that took longer than this share of the time-out lets the next peer have its turn."""
HOLD_S = 1.0
"""How long a search that brings no block keeps this node from proposing: what began it may be a lie (SPEC P24)."""
SERVE_INTERVAL_S = 0.05
"""Time between two answers to one peer; committing a full chunk takes longer than that."""


class SyncRequest(Record, frozen=True):
    """Ask for final blocks from a height on."""

    number: Natural
    first_height: Natural


class FinalBlock(Record, frozen=True):
    """A block and the certificate that makes it final, both as stored."""

    block: bytes
    certificate: bytes


class SyncResponse(Record, frozen=True):
    """Consecutive final blocks from the height asked for; empty when there are none."""

    number: Natural
    blocks: Annotated[list[FinalBlock], msgspec.Meta(max_length=CHUNK_BLOCKS_MAX)]


request_codec: RecordCodec[SyncRequest] = RecordCodec(SyncRequest, bytes_max=64)
response_codec: RecordCodec[SyncResponse] = RecordCodec(SyncResponse, bytes_max=2 * CHUNK_BYTES_MAX)

Deliver = Callable[[NodeName, FinalBlock], Awaitable[bool]]
"""Checks and commits one block; false when it does not hold or does not follow, and the peer should be left."""


def serve_request_untrusted(payload: bytes, store: Store) -> bytes:
    """Return the answer to a peer's request.

    Raises:
        PeerError: ``malformed`` or ``too_large``.
    """
    request = request_codec.decode_untrusted(payload)
    blocks: list[FinalBlock] = []
    size = 0
    for height in range(request.first_height, request.first_height + CHUNK_BLOCKS_MAX):
        block = store.get(layout.at_height(layout.BLOCK, height))
        certificate = store.get(layout.at_height(layout.CERTIFICATE, height))
        if block is None or certificate is None:
            break
        size += len(block) + len(certificate)
        if blocks and size > CHUNK_BYTES_MAX:
            break
        blocks.append(FinalBlock(block, certificate))
    return response_codec.encode(SyncResponse(request.number, blocks))


class Server:
    """Answers peers that catch up, each one at a bounded rate: reading a chunk takes a while, asking does not."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next_s: dict[NodeName, float] = {}

    async def answer_untrusted(self, peer: NodeName, payload: bytes) -> bytes:
        """Return the final blocks that a peer asks for, after the pause that its last request left.

        Raises:
            PeerError: ``malformed`` or ``too_large``.
        """
        await self._pause(peer)
        return serve_request_untrusted(payload, self._store)

    async def answer_results_untrusted(self, peer: NodeName, payload: bytes) -> bytes:
        """Return the results of a block that a peer asks for, after the same pause.

        Raises:
            PeerError: ``malformed`` or ``too_large``.
        """
        await self._pause(peer)
        return serve_results_untrusted(payload, self._store)

    async def _pause(self, peer: NodeName) -> None:
        await trio.sleep_until(self._next_s.get(peer, 0.0))
        self._next_s[peer] = trio.current_time() + SERVE_INTERVAL_S


@dataclass(slots=True)
class _Question:
    """The one request under way."""

    peer: NodeName
    number: int
    answered: trio.Event = field(default_factory=trio.Event)
    blocks: Sequence[FinalBlock] = ()


class CatchUp:
    """Fetches what is missing below the newest certificate that consensus has seen.

    When no peer has more it gives up until consensus sees a certificate again, which it asks for.
    """

    def __init__(self, network: Network, deliver: Deliver, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._network = network
        self._deliver = deliver
        self._timeout_s = timeout_s
        self._target_height = 0
        self._height = 0
        self._source: NodeName | None = None
        self._failures: dict[NodeName, int] = {}
        """How often in a row a peer was of no use; who never failed is asked first."""
        self._wanted = trio.Event()
        self._moved_s = 0.0
        """When the search began, or brought its last block."""
        self._number = 0
        self._question: _Question | None = None

    @property
    def is_running(self) -> bool:
        """Whether a certificate names a height above ours."""
        return self._target_height > self._height

    @property
    def holds_back(self) -> bool:
        """Whether a proposal had better wait, because blocks that make it void are likely to come."""
        return self.is_running and trio.current_time() - self._moved_s < HOLD_S

    @property
    def target_height(self) -> int:
        """The height that the newest certificate names."""
        return self._target_height

    def want(self, height: int, source: NodeName) -> None:
        """Catch up to a certified height, asking first the peer that showed the certificate."""
        if height > self._target_height:
            if not self.is_running:
                self._moved_s = trio.current_time()
            self._target_height, self._source = height, source
        if self.is_running:
            self._wanted.set()

    def advanced(self, height: int) -> None:
        """Take note of the own height, however it came about."""
        self._height = height

    def answered_untrusted(self, peer: NodeName, payload: bytes) -> None:
        """Take the answer of the peer that was asked; what comes from another or too late is dropped unread.

        Raises:
            PeerError: ``malformed`` or ``too_large``.
        """
        question = self._question
        if question is None or peer != question.peer:
            return
        try:
            response = response_codec.decode_untrusted(payload)
        except PeerError:
            question.answered.set()
            raise
        if response.number == question.number:
            question.blocks = response.blocks
            question.answered.set()

    async def run(self) -> None:
        """Fetch whenever there is something to fetch, until cancelled."""
        while True:
            await self._wanted.wait()
            while self.is_running:
                before = self._height
                await self._round()
                if self._height == before:
                    self._target_height = before
            self._wanted = trio.Event()

    async def _round(self) -> None:
        """Ask each connected peer, beginning with the likeliest, for as long as it is of use."""
        peers = [peer.name for peer in self._network.peers() if peer.connected]
        peers.sort(key=lambda name: (self._failures.get(name, 0), name != self._source))
        for peer in peers:
            while self.is_running and await self._fetch(peer):
                pass

    async def _fetch(self, peer: NodeName) -> bool:
        """Ask one peer for the next chunk and commit it; tell whether to go on with this peer."""
        before, asked_s = self._height, trio.current_time()
        self._number += 1
        question = self._question = _Question(peer, self._number)
        request = SyncRequest(question.number, before + 1)
        if not self._network.send(peer, FrameKind.SYNC_REQUEST, request_codec.encode(request)):
            return False
        with trio.move_on_after(self._timeout_s):
            await question.answered.wait()
        self._question = None
        is_slow = trio.current_time() - asked_s > SLOW_SHARE * self._timeout_s
        for item in question.blocks:
            if not await self._deliver(peer, item):
                break
            self._moved_s = trio.current_time()
        if self._height > before:
            self._failures.pop(peer, None)
        else:
            self._failures[peer] = self._failures.get(peer, 0) + 1
        return self._height > before and not is_slow
