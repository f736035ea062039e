"""From a fresh TCP connection to a proven peer: TLS, then hello, within a deadline and bounded bytes."""

import secrets
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import trio

from consensus.ledger.errors import InvariantError, PeerError
from consensus.ledger.ids import ChainId, NodeName
from p2p.frames import FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX, FrameDecoder, FrameKind, encode_frames
from p2p.hello_machine import NONCE_BYTES, HelloMachine, Side, encode_bye
from p2p.recorder import FrameRecorder
from p2p.stream import TlsStream
from p2p.tls import PRIVATE, PUBLIC, PeerIdentity, TlsIdentity, Trust, tls_error

RECEIVE_BYTES = 4_096

Welcome: TypeAlias = Callable[[PeerIdentity, Side], None]
"""Raises PeerError when a proven peer may not have a session; asked before our ACK, so that the peer learns why."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """A proven peer. ``decoder`` may already hold frames that came with its ACK; the stream belongs to the caller.

    ``protocol`` is what the connection is for, see ``p2p.tls``.
    """

    identity: PeerIdentity
    stream: TlsStream
    decoder: FrameDecoder
    protocol: str = PUBLIC


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshaker:
    """Shakes hands in the name of one node on one chain.

    ``private_welcome`` and ``private_context`` are those of private connections, where the node has any. A
    ``recorder`` writes down what goes over all of them.
    """

    chain_id: ChainId
    identity: TlsIdentity
    trust: Trust
    server_context: ssl.SSLContext
    client_context: ssl.SSLContext
    welcome: Welcome
    timeout_ms: int
    private_welcome: Welcome | None = None
    private_context: ssl.SSLContext | None = None
    recorder: FrameRecorder | None = None

    async def shake(
        self,
        transport: trio.SocketStream,
        side: Side,
        *,
        expected: NodeName | None = None,
        protocol: str = PUBLIC,
    ) -> Handshake:
        """Return the proven peer; the transport is closed when that fails.

        Args:
            transport: a connection that has not been used yet.
            side: whether we opened it.
            expected: the name the peer must prove, when we know whom we dialled.
            protocol: what we dial for; a listener takes what the dialler asks for.

        Raises:
            PeerError: ``handshake_timeout``, ``connection_lost``, ``tls_failed``, ``untrusted_certificate``,
                ``unexpected_peer``, ``no_private_channels``, what the welcome raises, or a code of
                ``p2p.hello_machine``.
        """
        context = self._context(side, protocol)
        tap = None if self.recorder is None else self.recorder.tap()
        stream = TlsStream(transport, context, server_side=side is Side.LISTENER, tap=tap)
        done: Handshake | None = None
        try:
            with trio.fail_after(self.timeout_ms / 1000):
                done = await self._shake(stream, side, expected, protocol)
        except trio.TooSlowError:
            raise PeerError("handshake_timeout", "the handshake took too long") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise tls_error(error) from None
        finally:
            if done is None:
                await trio.aclose_forcefully(stream)
        return done

    def _context(self, side: Side, protocol: str) -> ssl.SSLContext:
        if side is Side.LISTENER:
            return self.server_context
        if protocol == PUBLIC:
            return self.client_context
        if self.private_context is None:
            raise InvariantError("a node without private channels dials for one")
        return self.private_context

    async def _shake(self, stream: TlsStream, side: Side, expected: NodeName | None, wanted: str) -> Handshake:
        await stream.do_handshake()
        decoder = FrameDecoder(payload_bytes_max=HANDSHAKE_FRAME_BYTES_MAX)
        try:
            identity = self.trust.identify_untrusted(stream.certificate())
            if expected is not None and identity.name != expected:
                raise PeerError("unexpected_peer", f"{identity.name} answers at the address of {expected}")
            protocol = stream.protocol() or PUBLIC
            if side is Side.DIALLER and protocol != wanted:
                raise PeerError("no_private_channels", f"{identity.name} takes no private connections")
            welcome = self.private_welcome if protocol == PRIVATE else self.welcome
            await self._say_hello(stream, side, identity, decoder, welcome or self.welcome)
        except PeerError as error:
            if error.code != "refused_by_peer":
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                    await stream.send_all(encode_frames([encode_bye(error.code)]))
            raise
        decoder.payload_bytes_max = FRAME_BYTES_MAX
        return Handshake(identity, stream, decoder, protocol)

    async def _say_hello(
        self, stream: TlsStream, side: Side, peer: PeerIdentity, decoder: FrameDecoder, welcome: Welcome
    ) -> None:
        machine = HelloMachine(
            side,
            self.chain_id,
            key=self.identity.key,
            fingerprint=self.identity.fingerprint,
            peer_key=peer.key,
            peer_fingerprint=peer.fingerprint,
            nonce=secrets.token_bytes(NONCE_BYTES),
        )
        await stream.send_all(encode_frames(machine.start()))
        while not machine.is_done:
            frame = decoder.next_untrusted()
            if frame is None:
                data = await stream.receive_some(RECEIVE_BYTES)
                if not data:
                    raise PeerError("connection_lost", "the peer closed within the handshake")
                decoder.feed(data)
                continue
            answer = machine.receive_untrusted(frame)
            if any(item.kind is FrameKind.ACK for item in answer):
                welcome(peer, side)
            if answer:
                await stream.send_all(encode_frames(answer))
