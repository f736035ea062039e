"""One connection: read by the web server, until a WebSocket session takes it over.

anycorn speaks HTTP and answers the request that opens a WebSocket. What follows are messages by the thousand, and
its way for each of them, through two tasks and three layers, costs more than the message itself. So the
session takes the connection as soon as it knows whom it serves, and reads and writes it by itself.
"""

from collections.abc import Callable, Mapping
from typing import Any

import anyio.abc
import trio

RECEIVE_BYTES = 64 * 1024
_HEAD_ENDS = (b"\n\r\n", b"\n\n")


class Line(anyio.abc.ByteStream):
    """A stream that can be taken from the one who reads it.

    After :meth:`take_over` the first reader waits until the end of the connection; ``send`` is for whoever
    has the word: the web server answers the opening request, then the session speaks alone.
    """

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self._stream = stream
        self._reading = trio.CancelScope()
        self._is_taken = False
        self._is_free = trio.Event()
        """Set when the first reader has stopped reading."""
        self._closed = trio.Event()
        self._last = b""
        """The end of what the first reader got."""
        self._early = b""
        """What the first reader has received; it is not for it when the line has been taken meanwhile."""

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """Addresses and socket, for the web server."""
        return self._stream.extra_attributes

    async def take_over(self) -> bool:
        """Be the one who reads from now on; call before the opening request is answered.

        False when the peer did not wait for that answer, as RFC 6455 section 4.1 demands: the web server then holds
        the beginning of its messages.
        """
        self._is_taken = True
        self._reading.cancel()
        await self._is_free.wait()
        return self._last.endswith(_HEAD_ENDS)

    async def receive(self, max_bytes: int = RECEIVE_BYTES) -> bytes:
        """Receive bytes for the first reader; EndOfStream once the session is over."""
        while not self._is_taken:
            with trio.CancelScope() as self._reading:
                self._early = await self._stream.receive(max_bytes)
            if not self._is_taken:
                data, self._early = self._early, b""
                self._last = (self._last + data[-4:])[-4:]
                return data
        self._is_free.set()
        await self._closed.wait()
        raise anyio.EndOfStream

    async def receive_taken(self) -> bytes:
        """Receive bytes for the session that took over; empty at the end of the connection."""
        if self._early:
            data, self._early = self._early, b""
            return data
        try:
            return await self._stream.receive(RECEIVE_BYTES)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return b""

    async def send(self, item: bytes) -> None:
        """Send bytes."""
        await self._stream.send(item)

    async def send_eof(self) -> None:
        """Say that nothing more will be sent."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the socket, whoever reads or writes it."""
        self._closed.set()
        await self._stream.aclose()
