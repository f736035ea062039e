"""Catching up: fetching final blocks from peers, one chunk at a time.

Only a certificate makes a node catch up, never a claimed height (R60, R61). A peer that answers late,
with nothing or with what does not hold is passed over for the next one (R63); blocks are checked and
committed by the driver, the only writer, so a block that consensus delivers meanwhile is applied once.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import msgspec
import trio

from consensus.ledger.block import BLOCK_BYTES_MAX
from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.ids import NodeName
from consensus.ledger.transaction import Natural
from node.storage import layout
from node.storage.store import Store
from p2p.frames import FrameKind
from p2p.network import Network

CHUNK_BLOCKS_MAX = 256
CHUNK_BYTES_MAX = BLOCK_BYTES_MAX + 256 * 1024
ANSWER_TIMEOUT_S = 3.0


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

Deliver = Callable[[NodeName, Sequence[FinalBlock]], Awaitable[bool]]
"""Checks and commits a chunk; false when the peer's blocks did not hold or were of no use."""


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


class CatchUp:
    """Fetches what is missing below the newest certificate that consensus has seen."""

    def __init__(self, network: Network, deliver: Deliver) -> None:
        self._network = network
        self._deliver = deliver
        self._target_height = 0
        self._height = 0
        self._source: NodeName | None = None
        self._wanted = trio.Event()
        self._number = 0
        self._answers_in, self._answers_out = trio.open_memory_channel[tuple[NodeName, SyncResponse]](4)

    @property
    def is_running(self) -> bool:
        """Whether a certificate names a height above ours."""
        return self._target_height > self._height

    def want(self, height: int, source: NodeName) -> None:
        """Catch up to a certified height, asking first the peer that showed the certificate."""
        if height > self._target_height:
            self._target_height, self._source = height, source
        if self.is_running:
            self._wanted.set()

    def advanced(self, height: int) -> None:
        """Take note of the own height, however it came about."""
        self._height = height

    def answered_untrusted(self, peer: NodeName, payload: bytes) -> None:
        """Take a peer's answer; what nobody asked for or came too late is dropped.

        Raises:
            PeerError: ``malformed`` or ``too_large``.
        """
        response = response_codec.decode_untrusted(payload)
        if response.number == self._number:
            try:
                self._answers_in.send_nowait((peer, response))
            except trio.WouldBlock:
                return

    async def run(self) -> None:
        """Fetch whenever there is something to fetch, until cancelled."""
        while True:
            await self._wanted.wait()
            while self.is_running:
                await self._round()
            self._wanted = trio.Event()

    async def _round(self) -> None:
        """Ask each connected peer once, beginning with the likeliest, as long as they are of use."""
        peers = [peer.name for peer in self._network.peers() if peer.connected]
        if self._source in peers:
            peers.remove(self._source)
            peers.insert(0, self._source)
        for peer in peers:
            while self.is_running and await self._fetch(peer):
                pass
            if not self.is_running:
                return
        await trio.sleep(ANSWER_TIMEOUT_S / 10)

    async def _fetch(self, peer: NodeName) -> bool:
        """Ask one peer for the next chunk and commit it; tell whether that was of use."""
        self._number += 1
        request = SyncRequest(self._number, self._height + 1)
        self._network.send(peer, FrameKind.SYNC_REQUEST, request_codec.encode(request))
        response = await self._answer(peer)
        return response is not None and bool(response.blocks) and await self._deliver(peer, response.blocks)

    async def _answer(self, peer: NodeName) -> SyncResponse | None:
        with trio.move_on_after(ANSWER_TIMEOUT_S):
            while True:
                sender, response = await self._answers_out.receive()
                if sender == peer and response.number == self._number:
                    return response
        return None
