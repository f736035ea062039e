"""The network between nodes, with real TLS over loopback: the good path, and everyone who must stay out."""

import gc
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import ChainId, NodeName
from node.network.ca import Authority
from p2p.frames import FRAME_BYTES_MAX, FrameDecoder, FrameKind, encode_frame
from p2p.handshake import Handshake, Handshaker
from p2p.hello_machine import Side, decode_bye_untrusted
from p2p.network import Network
from p2p.session import SessionLimits
from p2p.stream import TlsStream
from p2p.tls import TlsIdentity, Trust, client_context, server_context
from tests.p2p.support import CHAIN, HOST, LONG_AGO, Certificates, Inbox, free_port, make_network

A, B, C = NodeName("a"), NodeName("b"), NodeName("c")


@pytest.fixture
def certificates(tmp_path):
    """A consortium of three nodes."""
    return Certificates(tmp_path, "a", "b", "c")


@asynccontextmanager
async def running(*networks: Network) -> AsyncIterator[list[int]]:
    """Run networks and give their ports; they end when the block does."""
    async with trio.open_nursery() as nursery:
        ports = [
            await nursery.start(lambda task_status, n=network: n.run(task_status=task_status)) for network in networks
        ]
        yield ports
        nursery.cancel_scope.cancel()


async def converse(identity: TlsIdentity, trust: Trust, port: int, *data: bytes) -> str:
    """Connect as a client with this identity, send frames after TLS, and return the reason the node says."""
    with trio.fail_after(30):
        transport = await trio.open_tcp_stream(HOST, port)
        async with trio.SSLStream(transport, client_context(identity, trust), https_compatible=True) as stream:
            decoder = FrameDecoder(payload_bytes_max=FRAME_BYTES_MAX)
            with suppress(trio.BrokenResourceError):
                for item in data:
                    await stream.send_all(item)
                while received := await stream.receive_some():
                    decoder.feed(received)
                    while frame := decoder.next_untrusted():
                        if frame.kind is FrameKind.BYE:
                            return decode_bye_untrusted(frame.payload)
    return "closed"


async def test_two_nodes_exchange_frames_in_order(certificates):
    inbox_a, inbox_b = Inbox(), Inbox()
    limits = SessionLimits(clock_ms=0)  # the frames are counted
    b = make_network(certificates, "b", inbox_b, limits=limits)
    async with running(b) as [port]:
        a = make_network(certificates, "a", inbox_a, peers={"b": port}, limits=limits)
        async with running(a):
            await inbox_a.until(lambda: a.connected() == (B,))
            payloads = [b"%d" % number for number in range(1_000)]
            assert all(a.send(B, FrameKind.CONSENSUS, payload) for payload in payloads)
            await inbox_b.has(1_000)
            assert inbox_b.frames == [(A, FrameKind.CONSENSUS, payload) for payload in payloads]
            assert b.send(A, FrameKind.SYNC_REQUEST, b"hello")
            await inbox_a.has(1)
            assert inbox_a.frames == [(B, FrameKind.SYNC_REQUEST, b"hello")]
            [status] = a.peers()
            assert (status.name, status.state, status.dialled, status.organisation) == (B, "connected", True, "org-b")
            assert (status.frames_sent, status.frames_received, status.dropped) == (1_000, 1, 0)


async def test_largest_frame_arrives_and_a_larger_one_is_our_own_error(certificates):
    inbox_a, inbox_b = Inbox(), Inbox()
    b = make_network(certificates, "b", inbox_b)
    async with running(b) as [port]:
        a = make_network(certificates, "a", inbox_a, peers={"b": port})
        async with running(a):
            await inbox_a.until(lambda: a.connected() == (B,))
            block = bytes(range(256)) * (FRAME_BYTES_MAX // 256)
            assert a.broadcast(FrameKind.CONSENSUS, block) == 1
            await inbox_b.has(1)
            assert inbox_b.frames[0][2] == block
            with pytest.raises(LocalError, match="frame holds at most"):
                a.send(B, FrameKind.CONSENSUS, block + b"x")


async def test_orderly_stop_delivers_what_was_queued(certificates):
    inbox_a, inbox_b = Inbox(), Inbox()
    b = make_network(certificates, "b", inbox_b)
    async with running(b) as [port]:
        a = make_network(certificates, "a", inbox_a, peers={"b": port})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.run)
            await inbox_a.until(lambda: a.connected() == (B,))
            for _ in range(100):
                a.send(B, FrameKind.TRANSACTIONS, bytes(1_000))
            a.stop()
        await inbox_b.until(lambda: b.connected() == ())
        assert len(inbox_b.frames) == 100
        assert a.connected() == ()


async def test_nodes_that_dial_each_other_settle_on_one_session(certificates):
    """What was queued is lost with a session that gives way, so it is said again until it arrives."""
    ports = {"a": free_port(), "b": free_port(), "c": free_port()}
    inboxes = {name: Inbox() for name in ports}
    networks = {
        name: make_network(certificates, name, inboxes[name], port=ports[name], peers=ports, second_dial_ms=1)
        for name in ports
    }

    def is_settled() -> bool:
        dialled = {(name, peer.name): peer.dialled for name in networks for peer in networks[name].peers()}
        return all(dialled[pair] is not dialled[pair[::-1]] for pair in dialled) and all(
            {peer for peer, _, _ in inbox.frames} == {A, B, C} - {name} for name, inbox in inboxes.items()
        )

    async with running(*networks.values()):
        with trio.fail_after(60):
            while not is_settled():
                for network in networks.values():
                    network.broadcast(FrameKind.CONSENSUS, b"hello")
                await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("restarted", ["a", "b"])
async def test_nodes_meet_again_after_either_was_restarted(certificates, restarted):
    ports = {"a": free_port(), "b": free_port()}
    inboxes = {"a": Inbox(), "b": Inbox()}
    stays = "b" if restarted == "a" else "a"

    def make(name: str) -> Network:
        return make_network(certificates, name, inboxes[name], port=ports[name], peers=ports)

    network = make(stays)
    async with running(network):
        for payload in (b"first life", b"second life"):
            peer = make(restarted)
            async with running(peer):
                await inboxes[stays].until(lambda: network.connected() == (NodeName(restarted),))
                await inboxes[restarted].until(lambda peer=peer: peer.connected() == (NodeName(stays),))
                peer.send(NodeName(stays), FrameKind.CONSENSUS, payload)
                await inboxes[stays].until(
                    lambda payload=payload: inboxes[stays].frames[-1:] != [] and inboxes[stays].frames[-1][2] == payload
                )
            await inboxes[stays].until(lambda: network.connected() == ())


def forged(certificates: Certificates, what: str) -> TlsIdentity:
    """Return an identity that must not get in."""
    match what:
        case "unknown root":
            return certificates.identity("a", root=Authority.create("org-a", now=certificates.now))
        case "expired":
            return certificates.identity("a", now=LONG_AGO)
        case "foreign organisation":
            return certificates.identity("a", root=certificates.roots["org-c"], organisation="org-a")
        case _:
            return certificates.identity("a", root=certificates.roots["org-c"], organisation="org-x")


@pytest.mark.parametrize("what", ["unknown root", "expired", "foreign organisation", "unknown organisation"])
async def test_r70_wrong_certificate_never_makes_a_session(certificates, what):
    """Under TLS 1.3 the refused client is through with TLS; it must not believe that it has a session."""
    inbox_a, inbox_b = Inbox(), Inbox()
    b = make_network(certificates, "b", inbox_b)
    async with running(b) as [port]:
        a = make_network(certificates, "a", inbox_a, peers={"b": port}, identity=forged(certificates, what))
        dialled = await failed_dial(a)
        assert dialled in {"tls_failed", "connection_lost", "refused_by_peer"}
        assert (a.connected(), b.connected()) == ((), ())


async def failed_dial(network: Network) -> str:
    """Run a network until its first dial has failed and return the code."""
    async with running(network):
        with trio.fail_after(30):
            while not network.peers()[0].last_error:
                await trio.lowlevel.checkpoint()
        return network.peers()[0].last_error


async def test_dialler_refuses_a_listener_with_a_wrong_certificate(certificates):
    b = make_network(
        certificates,
        "b",
        Inbox(),
        identity=certificates.identity("b", root=certificates.roots["org-c"], organisation="org-b"),
    )
    async with running(b) as [port]:
        a = make_network(certificates, "a", Inbox(), peers={"b": port})
        assert await failed_dial(a) == "untrusted_certificate"


async def test_dialler_refuses_another_member_at_the_address(certificates):
    c = make_network(certificates, "c", Inbox())
    async with running(c) as [port]:
        a = make_network(certificates, "a", Inbox(), peers={"b": port})
        assert await failed_dial(a) == "unexpected_peer"
        assert c.connected() == ()


async def test_peer_of_another_chain_is_refused_on_both_sides(certificates):
    b = make_network(certificates, "b", Inbox())
    async with running(b) as [port]:
        a = make_network(certificates, "a", Inbox(), peers={"b": port}, chain_id=ChainId(b"\x99" * 32))
        assert await failed_dial(a) in {"wrong_chain", "refused_by_peer"}
        assert b.connected() == ()


async def test_node_that_the_chain_does_not_admit_learns_so(certificates):
    b = make_network(certificates, "b", Inbox(), admits=lambda name, organisation, fingerprint: name != "a")
    async with running(b) as [port]:
        a = make_network(certificates, "a", Inbox(), peers={"b": port})
        assert await failed_dial(a) == "refused_by_peer"


async def test_r71_revocation_ends_a_live_session_and_keeps_the_peer_out(certificates):
    inbox_a, inbox_b = Inbox(), Inbox()
    revoked: set[bytes] = set()
    b = make_network(certificates, "b", inbox_b, admits=lambda name, organisation, print_: print_ not in revoked)
    identity = certificates.identity("a")
    async with running(b) as [port]:
        a = make_network(certificates, "a", inbox_a, peers={"b": port}, identity=identity)
        async with running(a):
            await inbox_a.until(lambda: a.connected() == (B,))
            await inbox_b.until(lambda: b.connected() == (A,))
            b.recheck()
            assert b.connected() == (A,)
            revoked.add(identity.fingerprint)
            b.recheck()
            await inbox_b.until(lambda: b.connected() == ())
            await inbox_a.until(lambda: a.connected() == ())
            assert a.peers()[0].last_error == "not_admitted"
            with trio.fail_after(30):
                while a.peers()[0].last_error != "refused_by_peer":
                    await trio.lowlevel.checkpoint()


async def test_penalised_peer_is_cut_off_for_a_while(certificates):
    inbox_a, inbox_b = Inbox(), Inbox()
    b = make_network(certificates, "b", inbox_b)
    async with running(b) as [port]:
        a = make_network(certificates, "a", inbox_a, peers={"b": port})
        async with running(a):
            await inbox_b.until(lambda: b.connected() == (A,))
            refusals = [b.penalise(A, "bad_signature") for _ in range(5)]
            assert (refusals[0], any(refusals)) == (False, True)
            await inbox_b.until(lambda: b.connected() == ())
            with trio.fail_after(30):
                while a.peers()[0].last_error != "refused_by_peer":
                    await trio.lowlevel.checkpoint()
            assert b.connected() == ()


async def test_strangers_leave_no_memory_behind(certificates):
    """OpenSSL holds tens of kilobytes behind each stream, and the collector, knowing nothing of them, may be late."""
    gc.collect()
    gc.disable()
    try:
        node = make_network(certificates, "a", Inbox(), handshakes_max=16, handshake_ms_max=500)
        async with running(node) as [port], AsyncExitStack() as strangers:
            for _ in range(300):
                stranger = await strangers.enter_async_context(await trio.open_tcp_stream(HOST, port))
            with trio.fail_after(30), suppress(trio.BrokenResourceError):
                await stranger.receive_some()  # all but the newest have been cut off by now
            streams = sum(type(item) is TlsStream for item in gc.get_objects())
        assert streams < 50
    finally:
        gc.enable()


async def test_r69_500_mute_sockets_keep_nobody_out_and_are_closed(certificates, mock_clock):
    """They come from the address of a peer, which is not refused for what strangers do there."""
    mock_clock.rate = 0.1  # a handshake has 500 ms on this clock
    inbox = Inbox()
    b = make_network(certificates, "b", inbox, peers={"a": free_port()}, handshake_ms_max=500, second_dial_ms=60_000)

    async def come_and_go() -> None:
        async with running(make_network(certificates, "a", Inbox(), peers={"b": port})):
            await inbox.until(lambda: b.connected() == (A,))
        await inbox.until(lambda: b.connected() == ())

    async with running(b) as [port], AsyncExitStack() as strangers:
        mute = [await strangers.enter_async_context(await trio.open_tcp_stream(HOST, port)) for _ in range(500)]
        await come_and_go()
        mock_clock.jump(0.5)
        with trio.fail_after(30):
            for stream in mute:
                with suppress(trio.BrokenResourceError):
                    assert await stream.receive_some() == b""
        await come_and_go()


async def test_oldest_handshake_gives_way_to_a_newer_one(certificates):
    b = make_network(certificates, "b", Inbox(), handshake_ms_max=60_000, handshakes_max=4)
    async with running(b) as [port], AsyncExitStack() as strangers:
        mute = [await strangers.enter_async_context(await trio.open_tcp_stream(HOST, port)) for _ in range(10)]
        with trio.fail_after(30):
            for stream in mute[:6]:
                with suppress(trio.BrokenResourceError):
                    assert await stream.receive_some() == b""


def handshaker(certificates: Certificates, name: str) -> Handshaker:
    """Return what shakes hands for a node that the test plays."""
    identity = certificates.identity(name)
    return Handshaker(
        chain_id=CHAIN,
        identity=identity,
        trust=certificates.trust,
        server_context=server_context(identity, certificates.trust),
        client_context=client_context(identity, certificates.trust),
        welcome=lambda peer, side: None,
        timeout_ms=5_000,
    )


async def test_session_dialled_by_the_smaller_name_stays(certificates):
    inbox_a, inbox_b = Inbox(), Inbox()
    b = make_network(certificates, "b", inbox_b)
    async with running(b) as [port_b]:
        a = make_network(certificates, "a", inbox_a, peers={"b": port_b})
        async with running(a) as [port_a]:
            await inbox_a.until(lambda: a.connected() == (B,))
            second = await trio.open_tcp_stream(HOST, port_a)
            with pytest.raises(PeerError, match="duplicate_session"):
                await handshaker(certificates, "b").shake(second, Side.DIALLER)
            assert a.peers()[0].dialled
            assert a.send(B, FrameKind.CONSENSUS, b"still here")
            await inbox_b.has(1)


async def test_newer_session_of_the_same_dialler_stays(certificates):
    inbox = Inbox()
    b = make_network(certificates, "b", inbox)
    async with running(b) as [port]:
        played = handshaker(certificates, "a")
        first = await played.shake(await trio.open_tcp_stream(HOST, port), Side.DIALLER)
        await inbox.until(lambda: b.connected() == (A,))
        second = await played.shake(await trio.open_tcp_stream(HOST, port), Side.DIALLER)
        assert await said_bye(first) == "duplicate_session"
        await second.stream.send_all(encode_frame(FrameKind.CONSENSUS, b"hello"))
        await inbox.has(1)
        assert b.connected() == (A,)
        for handshake in (first, second):
            await trio.aclose_forcefully(handshake.stream)


async def said_bye(handshake: Handshake) -> str:
    """Read until the node says why it ends the session."""
    with trio.fail_after(30):
        while True:
            while (frame := handshake.decoder.next_untrusted()) is None:
                handshake.decoder.feed(await handshake.stream.receive_some())
            if frame.kind is FrameKind.BYE:
                return decode_bye_untrusted(frame.payload)


async def test_tls_without_hello_is_closed_in_time(certificates):
    b = make_network(certificates, "b", Inbox(), handshake_ms_max=300)
    async with running(b) as [port]:
        assert await converse(certificates.identity("a"), certificates.trust, port) == "closed"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xff\xff\xff\x40", "frame_too_large"),
        (encode_frame(FrameKind.GREETING, bytes(2_000)), "frame_too_large"),
        (b"GET / HTTP/1.1\r\n\r\n", "frame_too_large"),
        (encode_frame(FrameKind.GREETING, b"\x90"), "malformed"),
        (encode_frame(FrameKind.CONSENSUS, b""), "unexpected_frame"),
        (encode_frame(FrameKind.ACK, b""), "unexpected_frame"),
        (b"\0\0\0\0\x07", "unknown_frame"),
    ],
    ids=[
        "r68 huge length",
        "larger than a hello",
        "http",
        "r67 missing fields",
        "frame before hello",
        "ack first",
        "kind",
    ],
)
async def test_garbage_after_tls_is_answered_with_a_code(certificates, data, code):
    b = make_network(certificates, "b", Inbox())
    async with running(b) as [port]:
        assert await converse(certificates.identity("a"), certificates.trust, port, data) == code


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\xff\xff" + bytes(100), b"GET / HTTP/1.0\r\n\r\n", bytes(5_000), b"\x80"]
)
async def test_garbage_instead_of_tls_closes_the_connection_and_nothing_else(certificates, data):
    inbox_b = Inbox()
    b = make_network(certificates, "b", inbox_b, handshake_ms_max=500)
    async with running(b) as [port]:
        async with await trio.open_tcp_stream(HOST, port) as stream:
            with trio.fail_after(30), suppress(trio.BrokenResourceError):
                await stream.send_all(data)
                while await stream.receive_some():
                    pass
        a = make_network(certificates, "a", Inbox(), peers={"b": port})
        async with running(a):
            await inbox_b.until(lambda: b.connected() == (A,))


async def test_client_without_certificate_or_with_tls_1_2_is_refused(certificates):
    b = make_network(certificates, "b", Inbox())
    async with running(b) as [port]:
        naked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        naked.check_hostname = False
        naked.verify_mode = ssl.CERT_NONE
        old = client_context(certificates.identity("a"), certificates.trust)
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        for context in (naked, old):
            transport = await trio.open_tcp_stream(HOST, port)
            stream = trio.SSLStream(transport, context, https_compatible=True)
            with trio.fail_after(30), suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
            await trio.aclose_forcefully(stream)
        assert b.connected() == ()


async def test_error_of_a_handler_is_charged_and_the_session_lives(certificates):
    inbox_a = Inbox()

    async def handle(peer: NodeName, kind: FrameKind, payload: bytes) -> None:
        await inbox_a.handle(peer, kind, payload)
        raise PeerError("malformed")

    b = make_network(certificates, "b", Inbox(), handler=handle)
    async with running(b) as [port]:
        a = make_network(certificates, "a", inbox_a, peers={"b": port})
        async with running(a):
            await inbox_a.until(lambda: a.connected() == (B,))
            a.send(B, FrameKind.CONSENSUS, b"1")
            await inbox_a.has(1)
            a.send(B, FrameKind.CONSENSUS, b"2")
            await inbox_a.has(2)
            assert b.peers()[0].penalty_points in range(20, 51)
            assert b.connected() == (A,)


async def test_port_in_use_is_a_typed_error(certificates):
    b = make_network(certificates, "b", Inbox())
    async with running(b) as [port]:
        with pytest.raises(LocalError) as raised:
            await make_network(certificates, "a", Inbox(), port=port).run()
        assert raised.value.code == "port_in_use"
