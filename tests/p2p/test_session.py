"""One session over streams in memory, against a peer that the test plays itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import pytest
import trio
import trio.testing

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import PrivateKey
from p2p.frames import FRAME_BYTES_MAX, Frame, FrameDecoder, FrameKind, encode_frame
from p2p.hello_machine import encode_bye
from p2p.penalties import PenaltyBook
from p2p.session import SendQueue, Session, SessionLimits
from p2p.tls import PeerIdentity
from tests.p2p.support import Inbox

PEER = PeerIdentity(NodeName("b"), "org-b", bytes(32), PrivateKey.from_secret(1).public)


@dataclass
class Bench:
    """A session that runs, and the peer's end of its stream."""

    session: Session
    peer: trio.abc.Stream
    inbox: Inbox
    blamed: list[str]
    ended: trio.Event = field(default_factory=trio.Event)
    decoder: FrameDecoder = field(default_factory=lambda: FrameDecoder(payload_bytes_max=FRAME_BYTES_MAX))

    async def next_frame(self) -> Frame:
        """Return the next frame that the peer receives."""
        with trio.fail_after(60):
            while (frame := self.decoder.next_untrusted()) is None:
                data = await self.peer.receive_some()
                assert data, "the session closed its stream"
                self.decoder.feed(data)
            return frame


@asynccontextmanager
async def running(
    limits: SessionLimits | None = None, handler=None, stream_pair=trio.testing.memory_stream_pair
) -> AsyncIterator[Bench]:
    """Run a session while the test plays its peer; it must have ended when the test is through."""
    ours, theirs = stream_pair()
    inbox, blamed, book = Inbox(), [], PenaltyBook()

    def blame(name: NodeName, code: str) -> bool:
        blamed.append(code)
        return book.add(name, code, now_s=0.0)

    session = Session(
        identity=PEER,
        stream=ours,
        decoder=FrameDecoder(payload_bytes_max=FRAME_BYTES_MAX),
        handler=handler or inbox.handle,
        blame=blame,
        limits=replace(limits or SessionLimits(), clock_ms=0),
        address="memory",
        dialled=True,
        connected_since_ms=0,
    )

    bench = Bench(session, theirs, inbox, blamed)

    async def run() -> None:
        await session.run()
        await ours.aclose()
        bench.ended.set()

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield bench


async def test_frames_keep_their_order_and_travel_in_one_batch():
    async with running() as bench:
        sent = [Frame(FrameKind.CONSENSUS, b"%d" % number) for number in range(1_000)]
        for kind, payload in sent:
            bench.session.send(kind, encode_frame(kind, payload))
        first = await bench.peer.receive_some()
        bench.decoder.feed(first)
        assert [await bench.next_frame() for _ in sent] == sent
        assert bench.session.counters.frames_sent == 1_000
        await bench.peer.aclose()
    assert bench.session.reason == "connection_lost"


async def test_votes_overtake_transactions():
    async with running() as bench:
        for kind in (FrameKind.TRANSACTIONS, FrameKind.SYNC_RESPONSE, FrameKind.CONSENSUS):
            bench.session.send(kind, encode_frame(kind, b"x"))
        kinds = [(await bench.next_frame()).kind for _ in range(3)]
        assert kinds == [FrameKind.CONSENSUS, FrameKind.TRANSACTIONS, FrameKind.SYNC_RESPONSE]
        await bench.peer.aclose()


def test_full_queue_drops_the_oldest_vote_and_the_newest_transaction():
    queue = SendQueue(SessionLimits(queue_frames_max=3))
    for number in range(5):
        assert queue.put(FrameKind.CONSENSUS, b"v%d" % number)
    assert [queue.put(FrameKind.TRANSACTIONS, b"t%d" % number) for number in range(5)] == [True] * 3 + [False] * 2
    assert queue.take_batch() == (6, b"v2v3v4t0t1t2")
    assert (queue.dropped, queue.frame_count, queue.byte_count) == (4, 0, 0)


def test_queue_is_bounded_in_bytes_but_takes_any_single_frame():
    queue = SendQueue(SessionLimits(queue_bytes_max=100, batch_bytes_max=100))
    assert queue.put(FrameKind.TRANSACTIONS, bytes(500))
    assert not queue.put(FrameKind.TRANSACTIONS, bytes(1))
    assert queue.put(FrameKind.CONSENSUS, bytes(60))
    assert queue.put(FrameKind.CONSENSUS, bytes(60))
    assert (queue.dropped, queue.byte_count) == (2, 560)
    assert [queue.take_batch()[0] for _ in range(3)] == [1, 1, 0]


async def test_orderly_end_sends_what_waits_and_the_reason():
    async with running() as bench:
        bench.session.send(FrameKind.CONSENSUS, encode_frame(FrameKind.CONSENSUS, b"last"))
        bench.session.finish("shutting_down")
        assert not bench.session.send(FrameKind.CONSENSUS, b"")
        assert await bench.next_frame() == Frame(FrameKind.CONSENSUS, b"last")
        assert await bench.next_frame() == encode_bye("shutting_down")
    assert bench.session.reason == "shutting_down"


async def test_bye_of_the_peer_ends_the_session_with_its_code():
    async with running() as bench:
        await bench.peer.send_all(encode_frame(*encode_bye("not_admitted")))
    assert (bench.session.reason, bench.blamed) == ("not_admitted", [])


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xff\xff\xff\x01", "frame_too_large"),
        (b"\0\0\0\0\x63", "unknown_frame"),
        (b"GET / HTTP/1.1\r\n\r\n", "frame_too_large"),
        (encode_frame(FrameKind.HELLO, b"again"), "unexpected_frame"),
    ],
    ids=["huge length", "unknown kind", "another protocol", "type confusion"],
)
async def test_broken_frames_end_the_session_with_a_reason_and_a_penalty(data, code):
    async with running() as bench:
        await bench.peer.send_all(data)
        assert await bench.next_frame() == encode_bye(code)
    assert (bench.session.reason, bench.blamed) == (code, [code])


async def test_errors_of_the_handler_are_charged_until_the_peer_is_refused():
    async def refuse(peer: NodeName, kind: FrameKind, payload: bytes) -> None:
        raise PeerError(payload.decode())

    async with running(handler=refuse) as bench:
        for _ in range(10):
            await bench.peer.send_all(encode_frame(FrameKind.CONSENSUS, b"odd"))
        assert await bench.next_frame() == encode_bye("refused_for_a_while")
    assert bench.blamed == ["odd"] * 10


async def test_other_errors_of_the_handler_come_out():
    async def crash(peer: NodeName, kind: FrameKind, payload: bytes) -> None:
        raise RuntimeError("a bug")

    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError), flatten_subgroups=True, allow_unwrapped=True):
        async with running(handler=crash) as bench:
            await bench.peer.send_all(encode_frame(FrameKind.CONSENSUS, b""))


async def test_idle_session_says_keep_alive_and_a_silent_peer_is_given_up(autojump_clock):
    async with running() as bench:
        assert await bench.next_frame() == Frame(FrameKind.KEEP_ALIVE, b"")
        began = trio.current_time()
        await bench.peer.send_all(encode_frame(FrameKind.KEEP_ALIVE, b""))
        await bench.ended.wait()
    assert bench.session.reason == "silent"
    assert trio.current_time() - began == pytest.approx(15, abs=1)
    assert bench.inbox.frames == []


async def test_peer_that_talks_but_does_not_read_is_given_up(autojump_clock):
    async with running(stream_pair=trio.testing.lockstep_stream_pair) as bench:
        bench.session.send(FrameKind.CONSENSUS, encode_frame(FrameKind.CONSENSUS, b""))
        while not bench.ended.is_set():
            with suppress(trio.BrokenResourceError):
                await bench.peer.send_all(encode_frame(FrameKind.KEEP_ALIVE, b""))
            with trio.move_on_after(1):
                await bench.ended.wait()
    assert bench.session.reason == "not_reading"


async def test_a_peer_is_not_silent_while_we_do_not_listen(autojump_clock):
    async def wait(peer: NodeName, kind: FrameKind, payload: bytes) -> None:
        with trio.move_on_after(60):
            await trio.Event().wait()

    async with running(handler=wait) as bench:
        began = trio.current_time()
        await bench.peer.send_all(encode_frame(FrameKind.CONSENSUS, b""))
        await bench.ended.wait()
    assert bench.session.reason == "silent"
    assert trio.current_time() - began == pytest.approx(60 + 15, abs=1)


async def test_busy_handler_slows_the_peer_down():
    gate = trio.Event()
    taken: list[bytes] = []

    async def wait(peer: NodeName, kind: FrameKind, payload: bytes) -> None:
        taken.append(payload)
        await gate.wait()

    async with running(handler=wait, stream_pair=trio.testing.lockstep_stream_pair) as bench:
        sent: list[int] = []

        async def send() -> None:
            for number in range(10):
                await bench.peer.send_all(encode_frame(FrameKind.CONSENSUS, b"%d" % number))
                sent.append(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            assert (taken, sent) == ([b"0"], [0])
            gate.set()
        bench.session.finish("done")
        assert await bench.next_frame() == encode_bye("done")
    assert len(taken) == 10
