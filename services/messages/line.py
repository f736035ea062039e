"""One connected socket of the message centre, for both ends: reads as it comes, writes without waiting.

What the kernel does not take at once waits in a bounded buffer, so that whoever sends is never held up and, when
cancelled, never leaves half a frame behind. A peer that takes nothing for ``UNREAD_MS_MAX`` is let go of.
"""

import socket
from contextlib import suppress
from pathlib import Path

import trio

from consensus.ledger.errors import LocalError
from services.client.errors import Unreachable
from services.messages.wire import FrameT, Reader

CONNECT_TIMEOUT_S = 3.0
READ_BYTES = 256 * 1024
UNSENT_BYTES_MAX = 64 * 1024 * 1024
"""What may wait for a peer that reads slowly; at the centre three of the largest answers."""
UNREAD_MS_MAX = 10_000
KEEP_ALIVE_S = 10
"""Silence after which the kernel asks whether a peer is still there."""
BACKLOG = 128
UNIX_PREFIX = "unix:"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Line:
    """A socket with its unsent bytes; :meth:`run` must run beside it, and ends with it."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        if connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, seconds in (("TCP_KEEPIDLE", KEEP_ALIVE_S), ("TCP_KEEPINTVL", KEEP_ALIVE_S // 3)):
                if hasattr(socket, option):
                    connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
        self._socket = connected
        self._unsent = bytearray()
        self._has_unsent = trio.Event()
        self._is_ending = False
        self.is_closed = False

    async def receive(self) -> bytes:
        """Return the next bytes, ``b""`` when the connection has ended."""
        is_first = True
        while not self.is_closed:
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                with suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_readable(self._socket)
                is_first = False
            except OSError:
                break
            else:
                if is_first:
                    await trio.lowlevel.checkpoint()
                return data
        await trio.lowlevel.checkpoint()
        return b""

    def send(self, data: bytes) -> None:
        """Send bytes, now or as soon as the peer takes them; on a line that has ended they are lost."""
        if self.is_closed:
            return
        if not self._unsent:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            if sent == len(data):
                return
            data = data[sent:]
        if len(self._unsent) + len(data) > UNSENT_BYTES_MAX:
            self.close()
            return
        self._unsent += data
        self._has_unsent.set()

    async def run(self) -> None:
        """Send what waits, until the line ends."""
        try:
            while not self.is_closed:
                while self._unsent and not self.is_closed:
                    with trio.move_on_after(UNREAD_MS_MAX / 1000) as patience, suppress(trio.ClosedResourceError):
                        await trio.lowlevel.wait_writable(self._socket)
                    if patience.cancelled_caught:
                        return
                    self._flush()
                if self._is_ending:
                    return
                self._has_unsent = trio.Event()
                await self._has_unsent.wait()
        finally:
            self.close()

    def finish(self) -> None:
        """End the line when everything is sent."""
        self._is_ending = True
        self._has_unsent.set()

    def _flush(self) -> None:
        if self.is_closed:
            return
        try:
            with memoryview(self._unsent) as view:
                sent = self._socket.send(view[:READ_BYTES])
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        del self._unsent[:sent]

    def close(self) -> None:
        """End the line at once: who reads it gets ``b""``."""
        if self.is_closed:
            return
        self.is_closed = True
        self._has_unsent.set()
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` (``[::1]:26801`` for IPv6), or path and -1 of ``unix:PATH``.

    Raises:
        LocalError: ``bad_address``.
    """
    if address.startswith(UNIX_PREFIX) and len(address) > len(UNIX_PREFIX):
        return address.removeprefix(UNIX_PREFIX), -1
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdecimal() or int(port) > 65_535:
        raise LocalError("bad_address", f"{address!r} is no address of a message centre, such as 127.0.0.1:26801")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def connect(address: str) -> Line:
    """Return a line to whoever listens at this address.

    Raises:
        LocalError: ``bad_address``.
        Unreachable: ``center_unreachable``: nobody does, or not in time.
    """
    host, port = split_address(address)
    stream: trio.SocketStream | None = None
    reason = f"no answer within {CONNECT_TIMEOUT_S} s"
    with trio.move_on_after(CONNECT_TIMEOUT_S):
        try:
            if port < 0:
                stream = await trio.open_unix_socket(host)
            else:
                stream = await trio.open_tcp_stream(host, port)
        except OSError as error:
            reason = error.strerror or str(error)
        except UnicodeError as error:  # the resolver's, about a name that no host can have
            reason = str(error)
    if stream is None:
        raise Unreachable(f"the message centre at {address} cannot be reached: {reason}", "center_unreachable")
    taken = stream.socket
    family, kind, protocol = taken.family, taken.type, taken.proto
    return Line(socket.socket(family, kind, protocol, fileno=taken.detach()))


async def next_frame(line: Line, reader: Reader[FrameT]) -> FrameT | None:
    """Return the next frame of a line, None at its end.

    Raises:
        PeerError: ``malformed`` or ``too_large``.
    """
    while (frame := reader.next_untrusted()) is None:
        data = await line.receive()
        if not data:
            return None
        reader.feed(data)
    return frame


def boot_id() -> str:
    """Return which start of which machine this is, empty where nobody says: who shares it shares a clock."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""
