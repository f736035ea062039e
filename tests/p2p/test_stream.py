"""The TLS stream of sessions, against trio's own and against a connection that breaks or lies."""

import socket
import ssl
from pathlib import Path

import pytest
import trio
import trio.testing

from p2p.stream import TlsStream
from p2p.tls import client_context, server_context
from tests.p2p.support import Certificates

LARGE = bytes(range(256)) * 8_192  # 2 MiB: many TLS records, and more than a socket takes at once


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The settings of two nodes, who accepts and who dials."""
    certificates = Certificates(tmp_path, "a", "b")
    return (
        server_context(certificates.identity("a"), certificates.trust),
        client_context(certificates.identity("b"), certificates.trust),
    )


async def pair(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> tuple[TlsStream, trio.SSLStream]:
    """Return our accepting end of a connection, and trio's dialling one."""
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    stream = TlsStream(ours, contexts[0], server_side=True)
    peer = trio.SSLStream(theirs, contexts[1], https_compatible=True)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.do_handshake)
            await peer.do_handshake()
    return stream, peer


async def read(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    data = b""
    with trio.fail_after(20):
        while len(data) < count:
            part = await stream.receive_some()
            assert part, "the stream ended"
            data += part
    return data


async def test_both_ways_at_once_and_in_many_records(contexts) -> None:
    stream, peer = await pair(contexts)
    async with stream, peer, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, LARGE)
        nursery.start_soon(peer.send_all, LARGE[::-1])
        assert await read(peer, len(LARGE)) == LARGE
        assert await read(stream, len(LARGE)) == LARGE[::-1]
        await stream.send_all(b"")
        await stream.send_all(b"after nothing")
        assert await read(peer, 13) == b"after nothing"


async def test_both_see_the_certificate(contexts) -> None:
    stream, peer = await pair(contexts)
    async with stream, peer:
        assert stream.certificate().startswith(b"\x30\x82")
        assert peer.version() == "TLSv1.3"
        assert peer.getpeercert(binary_form=True) != stream.certificate()


@pytest.mark.parametrize("is_announced", [True, False])
async def test_the_end_is_empty_bytes(contexts, is_announced: bool) -> None:
    stream, peer = await pair(contexts)
    async with stream, trio.open_nursery() as nursery:
        if is_announced:
            nursery.start_soon(peer.unwrap)  # says so, and waits for us to say the same
        else:
            await trio.aclose_forcefully(peer)
        with trio.fail_after(20):
            assert await stream.receive_some() == b""
        nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(peer)


async def test_a_connection_that_was_reset_is_broken(contexts) -> None:
    stream, peer = await pair(contexts)
    async with stream:
        await stream.send_all(b"never read")
        await trio.aclose_forcefully(peer)
        for use in (stream.receive_some, lambda: stream.send_all(LARGE)):
            with pytest.raises(trio.BrokenResourceError):
                await use()


async def test_changed_bytes_break_the_stream(contexts) -> None:
    stream, peer = await pair(contexts)
    async with stream, peer:
        await peer.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some()
        assert isinstance(caught.value.__cause__, ssl.SSLError)


async def test_a_cancelled_writer_leaves_its_rest_to_the_next(contexts) -> None:
    stream, peer = await pair(contexts)
    async with stream, peer, trio.open_nursery() as nursery:
        async with trio.open_nursery() as writing:
            writing.start_soon(stream.send_all, LARGE)
            await trio.testing.wait_all_tasks_blocked()
            writing.cancel_scope.cancel()
        nursery.start_soon(stream.send_all, b"more")
        assert await read(peer, len(LARGE) + 4) == LARGE + b"more"


async def test_a_peer_that_speaks_something_else_is_an_error_of_tls(contexts) -> None:
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    async with TlsStream(ours, contexts[0], server_side=True) as stream, theirs:
        await theirs.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.do_handshake()
        assert isinstance(caught.value.__cause__, ssl.SSLError)
