"""Catching up with peers that lie, stall, drip or have nothing, on a clock that jumps; and what a server hands out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import NodeName
from node import sync
from node.storage import layout
from node.storage.leveldb import LevelStore
from node.sync import CatchUp, FinalBlock, Server, SyncRequest, SyncResponse, request_codec, response_codec
from p2p.frames import FrameKind
from tests.node.support import pass_time

GOOD, OTHER, BAD = NodeName("good"), NodeName("other"), NodeName("bad")
Behaviour = Callable[[SyncRequest], Iterator[FinalBlock] | None]


@dataclass
class Peer:
    """What ``Network.peers`` says of one."""

    name: NodeName
    connected: bool = True


def block(height: int) -> FinalBlock:
    return FinalBlock(height.to_bytes(8, "big"), b"")


class Peers:
    """Stands for the network and the driver: peers with scripted answers, and a chain that is a number."""

    def __init__(self, nursery: trio.Nursery, height: int = 0) -> None:
        self.behaviours: dict[NodeName, Behaviour] = {}
        self.delays_s: dict[NodeName, float] = {}
        self.asked: list[NodeName] = []
        self.height = height
        self.arrived = trio.Event()
        self.awaited = 0
        self._nursery = nursery
        self.catch_up = CatchUp(self, self.deliver)  # type: ignore[arg-type]
        self.catch_up.advanced(height)

    def peers(self) -> list[Peer]:
        return [Peer(name) for name in sorted(self.behaviours)] + [Peer(NodeName("away"), connected=False)]

    def send(self, to: NodeName, kind: FrameKind, payload: bytes) -> bool:
        assert kind is FrameKind.SYNC_REQUEST
        self.asked.append(to)
        request = request_codec.decode_untrusted(payload)
        blocks = self.behaviours[to](request)
        if blocks is not None:
            response = SyncResponse(request.number, list(blocks))
            self._nursery.start_soon(self._answer, to, response_codec.encode(response))
        return True

    async def _answer(self, peer: NodeName, payload: bytes) -> None:
        await pass_time(self.delays_s.get(peer, 0.001))
        self.catch_up.answered_untrusted(peer, payload)

    async def deliver(self, peer: NodeName, item: FinalBlock) -> bool:
        await trio.lowlevel.checkpoint()
        height = int.from_bytes(item.block, "big")
        if height != self.height + 1:
            return height <= self.height
        self.height = height
        self.catch_up.advanced(height)
        if height == self.awaited:
            self.arrived.set()
        return True

    async def reach(self, height: int) -> None:
        self.awaited = height
        with trio.fail_after(600):
            await self.arrived.wait()


def honest(head: int, request: SyncRequest) -> Iterator[FinalBlock]:
    first = request.first_height
    return (block(height) for height in range(first, min(head + 1, first + sync.CHUNK_BLOCKS_MAX)))


def stalls(request: SyncRequest) -> None:
    return None


def empty(request: SyncRequest) -> Iterator[FinalBlock]:
    return iter(())


def lies(request: SyncRequest) -> Iterator[FinalBlock]:
    return iter([block(request.first_height + 7)])


def repeats(request: SyncRequest) -> Iterator[FinalBlock]:
    return iter([block(request.first_height - 1)])


def drips(request: SyncRequest) -> Iterator[FinalBlock]:
    return iter([block(request.first_height)])


async def test_two_thousand_blocks_come_in_chunks_from_one_peer(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    peers = Peers(nursery)
    peers.behaviours = {GOOD: partial(honest, 2_000), OTHER: partial(honest, 2_000)}
    nursery.start_soon(peers.catch_up.run)
    peers.catch_up.want(2_000, OTHER)
    await peers.reach(2_000)
    assert peers.asked == [OTHER] * 8
    assert not peers.catch_up.is_running


@pytest.mark.parametrize("behaviour", [stalls, empty, lies, repeats])
async def test_r63_a_useless_source_is_left_for_the_next_peer(
    nursery: trio.Nursery, autojump_clock: MockClock, behaviour: Behaviour
) -> None:
    peers = Peers(nursery)
    peers.behaviours = {BAD: behaviour, GOOD: partial(honest, 600)}
    nursery.start_soon(peers.catch_up.run)
    peers.catch_up.want(600, BAD)
    await peers.reach(600)
    assert peers.asked == [BAD] + [GOOD] * 3
    assert trio.current_time() < 4
    peers.behaviours[GOOD] = partial(honest, 700)
    peers.arrived = trio.Event()
    peers.catch_up.want(700, BAD)
    await peers.reach(700)
    assert peers.asked.count(BAD) == 1  # Who failed last time is asked last.


async def test_a_peer_that_drips_does_not_hold_the_others_back(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    peers = Peers(nursery)
    peers.behaviours = {BAD: drips, GOOD: partial(honest, 2_000)}
    peers.delays_s = {BAD: 2.9}
    nursery.start_soon(peers.catch_up.run)
    peers.catch_up.want(2_000, BAD)
    await peers.reach(2_000)
    assert trio.current_time() < 4


async def test_r60_a_target_beyond_what_anyone_has_is_given_up_until_the_next_certificate(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    peers = Peers(nursery)
    peers.behaviours = {GOOD: partial(honest, 10), OTHER: partial(honest, 10)}
    nursery.start_soon(peers.catch_up.run)
    peers.catch_up.want(2**60, GOOD)
    await peers.reach(10)
    await trio.testing.wait_all_tasks_blocked()
    await pass_time(60)
    assert not peers.catch_up.is_running
    assert len(peers.asked) <= 6
    peers.behaviours[GOOD] = partial(honest, 12)
    peers.arrived = trio.Event()
    peers.catch_up.want(12, GOOD)
    await peers.reach(12)


async def test_a_made_up_height_and_mute_peers_keep_nobody_from_proposing_for_long(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    peers = Peers(nursery)
    peers.behaviours = {NodeName(f"mute-{number}"): stalls for number in range(10)}
    nursery.start_soon(peers.catch_up.run)
    assert not peers.catch_up.holds_back
    peers.catch_up.want(2**60, NodeName("mute-0"))
    assert peers.catch_up.holds_back
    await pass_time(sync.HOLD_S / 2)
    peers.catch_up.want(2**61, NodeName("mute-1"))
    await pass_time(sync.HOLD_S / 2)
    assert peers.catch_up.is_running
    assert not peers.catch_up.holds_back


async def test_blocks_that_come_keep_a_node_from_proposing(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    peers = Peers(nursery)
    peers.behaviours = {GOOD: drips}
    peers.delays_s = {GOOD: 0.6}
    nursery.start_soon(peers.catch_up.run)
    peers.catch_up.want(10, GOOD)
    while peers.height < 9:
        await pass_time(0.1)
        assert peers.catch_up.holds_back
    await peers.reach(10)
    assert not peers.catch_up.holds_back


async def test_answers_of_peers_that_were_not_asked_do_not_count(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    peers = Peers(nursery)

    def floods(request: SyncRequest) -> Iterator[FinalBlock]:
        for _ in range(100):
            peers.catch_up.answered_untrusted(BAD, response_codec.encode(SyncResponse(request.number, [block(9)])))
            peers.catch_up.answered_untrusted(BAD, b"rubbish")
        return honest(300, request)

    peers.behaviours = {GOOD: floods, OTHER: stalls}
    nursery.start_soon(peers.catch_up.run)
    peers.catch_up.want(300, GOOD)
    await peers.reach(300)
    assert peers.asked == [GOOD, GOOD]


async def test_rubbish_from_the_peer_that_was_asked_is_an_error_and_costs_no_time(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    peers = Peers(nursery)

    def rubbish(request: SyncRequest) -> None:
        with pytest.raises(PeerError):
            peers.catch_up.answered_untrusted(BAD, b"\xc1")

    peers.behaviours = {BAD: rubbish, GOOD: partial(honest, 5)}
    nursery.start_soon(peers.catch_up.run)
    peers.catch_up.want(5, BAD)
    await peers.reach(5)
    assert trio.current_time() < 0.1


async def test_a_server_hands_out_what_it_has_in_bounded_chunks_and_not_faster_than_agreed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    store = LevelStore.open(tmp_path)
    for height in range(1, 301):
        body = b"x" * (sync.CHUNK_BYTES_MAX // 3) if height >= 291 else b"b"
        store.write([(layout.at_height(layout.BLOCK, height), body)])
        store.write([(layout.at_height(layout.CERTIFICATE, height), b"c")])
    server = Server(store)

    async def count(first_height: int) -> int:
        payload = request_codec.encode(SyncRequest(1, first_height))
        return len(response_codec.decode_untrusted(await server.answer_untrusted(GOOD, payload)).blocks)

    assert await count(1) == sync.CHUNK_BLOCKS_MAX
    assert await count(291) == 2
    assert await count(300) == 1
    assert [await count(height) for height in (0, 301, 2**63 - 1)] == [0, 0, 0]
    assert trio.current_time() == pytest.approx(5 * sync.SERVE_INTERVAL_S)
    with pytest.raises(PeerError):
        await server.answer_untrusted(GOOD, b"\xc1")
    store.close()
