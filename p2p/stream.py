"""TLS over one TCP connection: Python's own TLS object between two buffers, and the socket.

trio has such a stream too. This one knows a single case, one task that reads and one that writes, and needs no
locks, no second deadline and no layer between it and the socket: a small frame costs its two ends two fifths
less. What is encrypted and checked, and how, is up to OpenSSL and the context in both.

An end of the connection that TLS did not announce is an end like any other: frames say their length, so that
half of one is never taken for a whole.
"""

import ssl

import trio

from p2p.recorder import RECEIVED, SENT, Tap

RECEIVE_BYTES = 64 * 1024
"""Encrypted bytes read at once."""


class TlsStream(trio.abc.Stream):
    """One side of a TLS connection; :meth:`do_handshake` comes first. It owns the transport.

    Raises trio's BrokenResourceError, with the error of TLS or of the socket as its cause. A ``tap`` gets to see what
    goes and comes in clear.
    """

    def __init__(
        self, transport: trio.SocketStream, context: ssl.SSLContext, *, server_side: bool, tap: Tap | None = None
    ) -> None:
        self._transport = transport
        self._socket = transport.socket
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._tap = tap
        self._unsent = b""
        """Encrypted bytes that the socket has not taken yet; whoever writes next begins with them."""

    async def do_handshake(self) -> None:
        """Agree on keys and check the peer's certificate by the context."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError as error:
                raise trio.BrokenResourceError from error
            else:
                await self._flush()
                return

    def certificate(self) -> bytes:
        """Return the peer's certificate as DER."""
        return self._tls.getpeercert(binary_form=True) or b""

    def protocol(self) -> str:
        """Return what both sides agreed to speak (ALPN), empty when nothing was said of it."""
        return self._tls.selected_alpn_protocol() or ""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what came, at most one TLS record; empty at the end. Pauses only to wait for the peer."""
        while True:
            try:
                data = self._tls.read(RECEIVE_BYTES if max_bytes is None else max_bytes)
            except ssl.SSLWantReadError:
                await self._fill()
            except ssl.SSLEOFError:
                return b""
            except ssl.SSLError as error:
                raise trio.BrokenResourceError from error
            else:
                if self._tap is not None:
                    self._tap.take(RECEIVED, data)
                return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send; a writer that is cancelled leaves the rest to the next one."""
        if self._tap is not None:
            self._tap.take(SENT, data)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._tls.write(rest) :]
        except ssl.SSLError as error:
            raise trio.BrokenResourceError from error
        await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """Return when the socket takes more."""
        await self._transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the socket without a word; a session says goodbye in frames."""
        await self._transport.aclose()

    async def _flush(self) -> None:
        self._unsent += self._outgoing.read()
        try:
            while self._unsent:
                sent = await self._socket.send(self._unsent)
                self._unsent = self._unsent[sent:]
        except OSError as error:
            raise trio.BrokenResourceError from error

    async def _fill(self) -> None:
        try:
            data = await self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            raise trio.BrokenResourceError from error
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
