"""Accepts connections for anycorn: bounded in number, with little ado per request, and an end when the server stops.

anycorn's own accept loop knows no limit and ends with the first EMFILE, and its writes are shielded from cancellation,
so that one peer who does not read would hold up a stop. Per request it starts and cancels a task that watches for idle
connections, and sends head and body of an answer by themselves; here a deadline and one write do.
"""

import errno
import socket
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any, cast

import anycorn
import anyio
import anyio.abc
import structlog
import trio
from anycorn.app_wrappers import ASGIWrapper
from anycorn.events import Closed, Event, RawData
from anycorn.tcp_server import TCPServer
from anycorn.typing import ASGIFramework
from anycorn.worker_context import AnyioSingleTask, WorkerContext
from prometheus_client import Gauge

from consensus.ledger.errors import LocalError

CONNECTIONS_MAX = 512
BACKLOG = 512
HEAD_BYTES_MAX = 16 * 1024
"""Size of a request's line and headers."""
WEBSOCKET_BYTES_MAX = 64 * 1024
"""Size of a message on a WebSocket, where a program has one."""
SEND_BUFFER_BYTES = 256 * 1024
"""What the kernel may hold for a peer that reads slowly; Linux doubles the number."""
UNREAD_MS_MAX = 10_000
KEEP_ALIVE_S = 30
"""How long a connection may be idle, or take for the head of a request."""
REQUESTS_MAX = 1_000_000
"""How many requests one connection brings before it is closed."""
STOP_MS_MAX = 5_000
"""Time that requests under way have when the server stops."""
EXHAUSTED_PAUSE_MS = 100
"""Pause before the next accept when the machine lacks descriptors or memory."""

log = structlog.get_logger("web")

_HEAD = b"HTTP/1.1 "
_HEAD_MORE_FOLLOW = b"HTTP/1.1 1"
"""How the heads of answers begin that are not the last ones of a request, 100 Continue above all."""
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def open_socket(host: str, port: int) -> socket.socket:
    """Bind and listen; port 0 takes a free one.

    Raises:
        LocalError: ``port_in_use`` or ``bad_address``.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # accepted sockets inherit these
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS_MAX)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = error.strerror if isinstance(error, OSError) else "no port number"
        raise LocalError(
            "port_in_use" if in_use else "bad_address", f"cannot listen on {host}:{port}: {reason}"
        ) from None
    return listening


async def serve(listening: socket.socket, app: ASGIFramework, *, connections: Gauge, stopping: trio.Event) -> None:
    """Serve until ``stopping`` is set; then requests under way have ``STOP_MS_MAX``, idle connections end at once."""
    context = WorkerContext(max_requests=None)
    wrapped = ASGIWrapper(app)
    config = server_config()
    room = trio.Semaphore(CONNECTIONS_MAX)
    idle: set[_Idle] = set()
    streams: set[anyio.abc.SocketStream] = set()

    async def run(connection: socket.socket) -> None:
        try:
            stream = await anyio.abc.SocketStream.from_socket(connection)
            streams.add(stream)
            try:
                with connections.track_inprogress(), trio.CancelScope() as scope:
                    server = _Server(wrapped, config, context, {}, stream)
                    watch = _Idle(scope, idle)
                    # Of a task of its own it uses these two methods alone.
                    server.idle_task = cast(AnyioSingleTask, watch)
                    server.send_lock = anyio.Lock(fast_acquire=True)
                    await server.run()
            finally:
                streams.discard(stream)
        finally:
            connection.close()
            room.release()

    with trio.socket.from_stdlib_socket(listening) as accepting:
        async with trio.open_nursery() as guard:
            guard.start_soon(_abort_at_end, streams)
            async with trio.open_nursery() as serving:
                async with trio.open_nursery() as accept_nursery:
                    accept_nursery.start_soon(_accept_forever, accepting, room, run, serving)
                    await stopping.wait()
                    accept_nursery.cancel_scope.cancel()
                accepting.close()
                await context.terminated.set()  # no connection takes another request
                for watch in list(idle):
                    watch.end()
                serving.cancel_scope.deadline = trio.current_time() + STOP_MS_MAX / 1000
                guard.cancel_scope.deadline = serving.cancel_scope.deadline
            guard.cancel_scope.cancel()


def server_config() -> anycorn.Config:
    """Return anycorn's settings: HTTP/1.1, quiet and bounded."""
    config = anycorn.Config()
    config.errorlog = None
    config.h11_max_incomplete_size = HEAD_BYTES_MAX
    config.include_server_header = False
    config.websocket_max_message_size = WEBSOCKET_BYTES_MAX
    config.websocket_permessage_deflate = False
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.keep_alive_max_requests = REQUESTS_MAX
    return config


class _Idle:
    """Ends a connection that has been idle for ``KEEP_ALIVE_S``: in the place of a task that does."""

    def __init__(self, scope: trio.CancelScope, idle: set["_Idle"]) -> None:
        self._scope = scope
        self._idle = idle

    async def restart(self, task_group: object, action: object) -> None:
        """Begin to count: the connection is idle."""
        self._scope.deadline = trio.current_time() + KEEP_ALIVE_S
        self._idle.add(self)

    async def stop(self) -> None:
        """Count no more: there is a request."""
        self._scope.deadline = inf
        self._idle.discard(self)

    def end(self) -> None:
        """End the connection, since it is idle."""
        self._scope.cancel()


class _Server(TCPServer):
    """One connection of HTTP/1.1, which sends the head of an answer together with what comes after it."""

    _head = b""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._reading = trio.CancelScope()

    async def _read_data(self) -> None:
        """Read requests. Nobody gets HTTP/2 by asking: there an idle connection would never end."""
        self.protocol.protocol._check_protocol = _keep_protocol  # type: ignore[union-attr, method-assign]
        with self._reading:
            await super()._read_data()

    async def protocol_send(self, event: Event) -> None:
        """Send what the protocol has to send; a final answer's head waits for its body or its end, and one comes."""
        if isinstance(event, RawData):
            if not self._head and event.data.startswith(_HEAD) and not event.data.startswith(_HEAD_MORE_FOLLOW):
                self._head = event.data
                return
            event, self._head = RawData(self._head + event.data), b""
            if not event.data:
                return
        await super().protocol_send(event)
        if isinstance(event, Closed):
            # Who has read the beginning of one more request waits until it may be begun, and it never may.
            self._reading.cancel()


async def _keep_protocol(_: object) -> None:
    """Pass over what asks for HTTP/2; as HTTP/1.1 the request is answered, or refused for what it lacks."""


async def _abort_at_end(streams: set[anyio.abc.SocketStream]) -> None:
    """Wait to be cancelled, then close the sockets under those who still write to them."""
    try:
        await trio.sleep_forever()
    finally:
        for stream in list(streams):
            with trio.CancelScope() as scope:
                scope.cancel()  # closing comes first in aclose, and nothing after it matters
                await stream.aclose()


async def _accept_forever(
    accepting: trio.socket.SocketType,
    room: trio.Semaphore,
    run: Callable[[socket.socket], Awaitable[None]],
    nursery: trio.Nursery,
) -> None:
    """Start ``run`` for each connection, as soon as there is room for it."""
    while True:
        await room.acquire()
        try:
            accepted, _ = await accepting.accept()
        except OSError as error:
            room.release()
            if error.errno in _EXHAUSTED:
                log.error("no descriptors for another connection", errno=error.errno)
                await trio.sleep(EXHAUSTED_PAUSE_MS / 1000)
            continue  # else the peer left before it was accepted
        connection = socket.socket(fileno=accepted.detach())
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        nursery.start_soon(run, connection)
