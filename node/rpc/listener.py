"""Accepts connections for anycorn, over TCP or a unix socket: bounded in number, and ended for good at a stop.

anycorn's own accept loop ends with the first EMFILE, knows no limit, and shields its writes from
cancellation, so that one peer who does not read would hold up a stop. This one waits for room, hands
each connection to anycorn, from whose ``state`` a WebSocket takes it over, and closes the sockets under
those that do not end in time. The kernel drops a peer that is gone, or that takes nothing of what it is
sent for ``UNREAD_MS_MAX``; anycorn's own WebSocket pings stay off, since each keeps its connection's place
for an interval after the end.
"""

import errno
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import anyio.abc
import structlog
import trio
from anycorn.app_wrappers import ASGIWrapper
from anycorn.config import Config
from anycorn.tcp_server import TCPServer
from anycorn.typing import ASGIFramework
from anycorn.worker_context import WorkerContext

from consensus.ledger.errors import LocalError
from node.rpc.line import Line
from node.rpc.metrics import RpcMetrics
from node.sockets import short_name

BACKLOG = 128
SEND_BUFFER_BYTES = 256 * 1024
"""What the kernel may hold for a peer that reads slowly; Linux doubles the number."""
UNREAD_MS_MAX = 10_000
KEEP_ALIVE_S = 30
"""Silence after which the kernel asks whether a peer is still there."""
STOP_MS_MAX = 2_000
"""Time that connections have to end when the server stops."""
EXHAUSTED_PAUSE_MS = 100
"""Pause before the next accept when the machine lacks descriptors or memory."""

log = structlog.get_logger("rpc")

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def open_socket(host: str, port: int) -> socket.socket:
    """Bind and listen; port 0 takes a free one.

    Raises:
        LocalError: ``port_in_use`` or ``bad_address``.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # accepted sockets inherit these
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_S)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE_S // 3)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS_MAX)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        code = "port_in_use" if error.errno == errno.EADDRINUSE else "bad_address"
        raise LocalError(code, f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listening


def open_unix_socket(path: Path) -> socket.socket:
    """Bind a socket file with mode 0600 and listen; one that nobody listens on any more is replaced.

    Raises:
        LocalError: ``socket_in_use`` when somebody listens there, ``file_error``.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with short_name(path) as name:
            if path.is_socket():
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                    if probe.connect_ex(name) == 0:
                        raise LocalError("socket_in_use", f"another program listens on {path}")
                path.unlink()
            listening.bind(name)
        path.chmod(0o600)  # nobody can connect before it listens
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise LocalError("file_error", f"cannot listen on {path}: {error.strerror}") from None
    except LocalError:
        listening.close()
        raise
    return listening


async def serve(
    listening: socket.socket,
    app: ASGIFramework,
    config: Config,
    *,
    connections_max: int,
    metrics: RpcMetrics,
    stopping: trio.Event,
) -> None:
    """Serve until ``stopping`` is set, then let connections end for ``STOP_MS_MAX`` and close the rest."""
    context = WorkerContext(max_requests=None)
    wrapped = ASGIWrapper(app)
    room = trio.Semaphore(connections_max)
    open_lines: set[Line] = set()

    async def run(connection: socket.socket) -> None:
        try:
            line = Line(await anyio.abc.SocketStream.from_socket(connection))
            open_lines.add(line)
            try:
                with metrics.connections.track_inprogress():
                    # What it uses of a socket's stream, a line has.
                    stream = cast(anyio.abc.SocketStream, line)
                    await TCPServer(wrapped, config, context, {"line": line}, stream).run()
            finally:
                open_lines.discard(line)
        finally:
            connection.close()
            room.release()

    with trio.socket.from_stdlib_socket(listening) as accepting:
        async with trio.open_nursery() as guard:
            guard.start_soon(_abort_at_end, open_lines)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accept_nursery:
                    accept_nursery.start_soon(_accept_forever, accepting, room, run, connections)
                    await stopping.wait()
                    accept_nursery.cancel_scope.cancel()
                accepting.close()
                await context.terminated.set()
                connections.cancel_scope.deadline = trio.current_time() + STOP_MS_MAX / 1000
                guard.cancel_scope.deadline = connections.cancel_scope.deadline
            guard.cancel_scope.cancel()


async def _abort_at_end(lines: set[Line]) -> None:
    """Wait to be cancelled, then close the sockets under those who still write to them."""
    try:
        await trio.sleep_forever()
    finally:
        for line in list(lines):
            with trio.CancelScope() as scope:
                scope.cancel()  # closing comes first in aclose, and nothing after it matters
                await line.aclose()


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
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        nursery.start_soon(run, connection)
