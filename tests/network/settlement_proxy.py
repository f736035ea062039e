"""Between two programs: forwards bytes, and has an accident at the n-th piece of one direction.

A piece is what one read brings, which is a request or an answer, or a part of a large one. ``BEFORE`` an accident the
piece has not reached its receiver, and never does; ``AFTER`` it has been handed on just now. Before an answer is
handed on, what was asked for has been done and nobody knows it.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import trio

READ_BYTES = 256 * 1024
Accident = Callable[[], Awaitable[None]]


class Way(StrEnum):
    """Which direction a piece goes."""

    REQUEST = "request"
    ANSWER = "answer"


class Side(StrEnum):
    """Whether the accident happens before or after a piece is handed on."""

    BEFORE = "before"
    AFTER = "after"


class Proxy:
    """Stands in front of a server; made by :func:`tcp_proxy` and :func:`unix_proxy`."""

    def __init__(self, name: str, connect: Callable[[], Awaitable[trio.SocketStream]]) -> None:
        self.name = name
        self.counts: Counter[Way] = Counter()
        self.happened = trio.Event()
        self.alter: Callable[[bytes], bytes] = bytes
        """What becomes of answers on their way; it must not change how long they are."""
        self._connect = connect
        self._armed: tuple[Way, Side, int, Accident] | None = None

    def arm(self, way: Way, side: Side, number: int, accident: Accident) -> None:
        """Let an accident happen at the ``number``-th piece from now on, counted from 1."""
        self.reset()
        self._armed = (way, side, number, accident)

    def reset(self) -> None:
        """Count from nought again, without an accident."""
        self.counts.clear()
        self.happened = trio.Event()
        self._armed = None

    def disarm(self) -> bool:
        """Let no accident happen any more; False if one has begun already."""
        is_armed, self._armed = self._armed is not None, None
        return is_armed

    async def serve(self, client: trio.SocketStream) -> None:
        """Forward one connection until either side ends it."""
        async with client:
            try:
                server = await self._connect()
            except OSError:
                return  # it is down, as its callers see by our closing
            async with server, trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, client, server, Way.REQUEST, nursery.cancel_scope)
                nursery.start_soon(self._pump, server, client, Way.ANSWER, nursery.cancel_scope)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, way: Way, connection: trio.CancelScope
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(READ_BYTES):
                self.counts[way] += 1
                if way is Way.ANSWER:
                    data = self.alter(data)
                accident = self._due(way)
                if accident is not None and accident[0] is Side.BEFORE:
                    await accident[1]()
                    break
                await sink.send_all(data)
                if accident is not None:
                    await accident[1]()
                    break
        connection.cancel()

    def _due(self, way: Way) -> tuple[Side, Accident] | None:
        """Return the accident that this piece meets; it happens once."""
        if self._armed is None or (way, self.counts[way]) != (self._armed[0], self._armed[2]):
            return None
        _, side, _, accident = self._armed
        self._armed = None
        happened = self.happened

        async def have() -> None:
            with trio.CancelScope(shield=True):
                await accident()
            happened.set()

        return side, have


async def tcp_proxy(nursery: trio.Nursery, name: str, target: str, port: int = 0) -> tuple[Proxy, str]:
    """Stand in front of ``HOST:PORT`` or an ``http://`` root on a port of our own; return how we are reached."""
    url = urlsplit(target if "://" in target else f"//{target}")
    host, at = url.hostname or "", url.port or 0

    async def connect() -> trio.SocketStream:
        return await trio.open_tcp_stream(host, at)

    proxy = Proxy(name, connect)
    (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, proxy.serve, [listener])
    place = f"127.0.0.1:{listener.socket.getsockname()[1]}"
    return proxy, f"{url.scheme}://{place}" if url.scheme else place


async def unix_proxy(nursery: trio.Nursery, name: str, target: Path, path: Path) -> Proxy:
    """Stand in front of a socket on a path of our own."""

    async def connect() -> trio.SocketStream:
        return await trio.open_unix_socket(str(target))

    proxy = Proxy(name, connect)
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(str(path))
    listening.listen(64)
    nursery.start_soon(trio.serve_listeners, proxy.serve, [trio.SocketListener(listening)])
    return proxy
