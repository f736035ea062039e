"""The network between nodes, with real TLS over loopback."""

import trio

from consensus.ledger.ids import NodeName
from p2p.frames import FrameKind
from tests.p2p.support import Certificates, Inbox, make_network

A, B, C = NodeName("a"), NodeName("b"), NodeName("c")


async def test_two_nodes_exchange_frames_in_order(tmp_path):
    certificates = Certificates(tmp_path, "a", "b")
    inbox_a, inbox_b = Inbox(), Inbox()
    b = make_network(certificates, "b", inbox_b)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(lambda task_status: b.run(task_status=task_status))
        a = make_network(certificates, "a", inbox_a, peers={"b": port})
        nursery.start_soon(a.run)
        await inbox_a.until(lambda: a.connected() == (B,))
        payloads = [b"%d" % number for number in range(1_000)]
        for payload in payloads:
            assert a.send(B, FrameKind.CONSENSUS, payload)
        await inbox_b.has(1_000)
        assert inbox_b.frames == [(A, FrameKind.CONSENSUS, payload) for payload in payloads]
        assert b.send(A, FrameKind.SYNC_REQUEST, b"hello")
        await inbox_a.has(1)
        assert inbox_a.frames == [(B, FrameKind.SYNC_REQUEST, b"hello")]
        status = a.peers()[0]
        assert (status.name, status.state, status.dialled) == (B, "connected", True)
        assert status.frames_sent == 1_000
        a.stop()
        await inbox_b.until(lambda: b.connected() == ())
        assert b.peers() == []
        b.stop()
