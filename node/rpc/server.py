"""The HTTP side: routes, who may call from where, size limits, headers.

By default it listens on loopback alone and answers only to ``Host`` names that it knows, so that a web
page cannot reach it through a name of its own (DNS rebinding, R74). A request that a browser sends for
another site's page carries that site's ``Origin`` and is refused as well; no CORS header is ever sent.
"""

import ipaddress
import socket
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import cast

import anycorn
import trio
from anycorn.typing import ASGIFramework
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from consensus.ledger.errors import LocalError, PeerError
from node import owner
from node.owner import OwnerDesk
from node.rpc import listener
from node.rpc.backend import Backend
from node.rpc.context import Context
from node.rpc.dispatch import Dispatcher, Failure
from node.rpc.feed import Feed
from node.rpc.methods import methods, owner_methods
from node.rpc.metrics import CONTENT_TYPE, RpcMetrics
from node.rpc.protocol import BODY_BYTES_MAX, Json, encode_json, error_bytes
from node.rpc.render import hex_of
from node.rpc.session import run_session

CONNECTIONS_MAX = 512
BODY_MS_MAX = 10_000
"""Time within which a whole request body must arrive."""
KEEP_ALIVE_S = 15
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_STATIC = {"/": "index.html", "/style.css": "style.css", "/app.js": "app.js"}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class RpcConfig:
    """Where the RPC listens and whom it answers.

    Port 0 takes a free one. ``host_names`` are accepted in ``Host`` and ``Origin`` beside loopback's
    names and ``host`` itself. A host beyond loopback needs ``is_remote_allowed``: whoever sets it puts
    a TLS proxy with access rules before the node.
    """

    host: str = "127.0.0.1"
    port: int = 0
    host_names: frozenset[str] = frozenset()
    is_remote_allowed: bool = False
    connections_max: int = CONNECTIONS_MAX

    @property
    def accepted_names(self) -> frozenset[str]:
        """All names that a ``Host`` header may hold, without port, in lower case."""
        return LOOPBACK_NAMES | {self.host.lower()} | {name.lower() for name in self.host_names}


async def serve_rpc(
    backend: Backend,
    config: RpcConfig,
    *,
    stopping: trio.Event,
    desk: OwnerDesk | None = None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until ``stopping`` is set, with a ``desk`` on the owner's socket too; ``started`` gives the port.

    Raises:
        LocalError: ``port_in_use``, ``bad_address``, ``rpc_not_loopback``, ``socket_in_use``, ``file_error``.
        StorageError, InvariantError: a read met them; the node must stop.
    """
    if not config.is_remote_allowed and not _is_loopback(config.host):
        raise LocalError(
            "rpc_not_loopback",
            f"{config.host} is no loopback address; let a TLS proxy with access rules stand before the node",
        )
    failure = Failure()
    feed = Feed(backend)
    metrics = RpcMetrics(backend)
    serve = partial(listener.serve, connections_max=config.connections_max, metrics=metrics, stopping=stopping)
    public = Dispatcher(Context(backend, feed), metrics, failure)
    guarded = HostGuard(make_app(public, stopping), config.accepted_names)
    listening = listener.open_socket(config.host, config.port)
    local = None if desk is None else _open_owner_socket(desk, listening)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run)
        nursery.start_soon(_raise_when_failed, failure)
        task_status.started(listening.getsockname()[1])
        async with trio.open_nursery() as serving:
            serving.start_soon(serve, listening, cast(ASGIFramework, guarded), server_config())
            if desk is not None and local is not None:
                context = Context(backend, feed, owner=desk, table=methods.joined(owner_methods))
                private = Dispatcher(context, metrics, failure, body_bytes_max=owner.BODY_BYTES_MAX)
                app = cast(ASGIFramework, make_app(private, stopping))
                try:
                    await serve(local, app, server_config())
                finally:
                    desk.path.unlink(missing_ok=True)
        nursery.cancel_scope.cancel()


def _open_owner_socket(desk: OwnerDesk, listening: socket.socket) -> socket.socket:
    try:
        return listener.open_unix_socket(desk.path)
    except LocalError:
        listening.close()
        raise


def server_config() -> anycorn.Config:
    """Return anycorn's settings: quiet, bounded, without compression, whose bombs would pass the size limit."""
    config = anycorn.Config()
    config.errorlog = None
    config.alpn_protocols = ["http/1.1"]
    config.h2_max_concurrent_streams = 1  # who begins with HTTP/2 gets it, and no more requests at a time than others
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.websocket_max_message_size = BODY_BYTES_MAX
    config.websocket_permessage_deflate = False
    return config


def make_app(dispatcher: Dispatcher, stopping: trio.Event) -> Starlette:
    """Return the routes."""
    pages = _load_pages()
    context, backend = dispatcher.context, dispatcher.context.backend

    async def call(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _json(error_bytes(None, PeerError("invalid_request", "the body must be application/json")), 415)
        try:
            body = await _read_body_untrusted(request, dispatcher.body_bytes_max)
        except PeerError as error:
            return _json(error_bytes(None, error), 413 if error.code == "too_large" else 408, is_last=True)
        except ClientDisconnect:
            return Response(status_code=400)
        answer = await dispatcher.answer_body(body)
        return _json(answer) if answer else Response(status_code=204)

    async def list_methods(_: Request) -> Response:
        listed: Json = {"methods": {name: method.summary for name, method in sorted(context.table.methods.items())}}
        return _json(encode_json(listed))

    async def health(_: Request) -> Response:
        ready = backend.is_ready
        state: dict[str, Json] = {
            "ready": ready,
            "votes": backend.consensus().is_validator,
            "seated": backend.node_name in backend.head().validators.names,
            "validators": len(backend.head().validators.names),
            "quorum": backend.head().validators.quorum,
            "node": backend.node_name,
            "chainId": hex_of(backend.chain_id),
            "height": backend.head().header.height,
            "peers": sum(peer.connected for peer in backend.peers()),
        }
        return _json(encode_json(state), 200 if ready else 503)

    async def metrics(_: Request) -> Response:
        return Response(dispatcher.metrics.render(), headers={**_HEADERS, "content-type": CONTENT_TYPE})

    async def page(request: Request) -> Response:
        content, media_type = pages[request.url.path]
        return Response(content, headers=_HEADERS, media_type=media_type)

    async def session(websocket: WebSocket) -> None:
        await run_session(websocket, dispatcher, stopping)

    return Starlette(
        routes=[
            Route("/rpc", call, methods=["POST"]),
            Route("/rpc", list_methods, methods=["GET"]),
            Route("/healthz", health),
            Route("/metrics", metrics),
            *[Route(path, page) for path in pages],
            WebSocketRoute("/ws", session),
        ]
    )


class HostGuard:
    """Turns away requests under names that this server does not have, and those of other sites' pages."""

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        headers: list[tuple[bytes, bytes]] = scope.get("headers", [])
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        is_known = len(hosts) == 1 and host_name(hosts[0]) in self._names
        if is_known and all(host_name(origin.partition("://")[2]) in self._names for origin in origins):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocket(scope, receive, send).close()
        else:
            await Response("unknown host or origin\n", 403, headers=_HEADERS)(scope, receive, send)


def host_name(authority: str) -> str:
    """Return the name in ``HOST``, ``HOST:PORT`` or ``[IPV6]:PORT``, in lower case."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower()


async def _read_body_untrusted(request: Request, bytes_max: int) -> bytes:
    """Return the body.

    Raises:
        PeerError: ``too_large``, or ``timeout`` when it does not arrive in time.
    """
    body = bytearray()
    try:
        with trio.fail_after(BODY_MS_MAX / 1000):
            async with aclosing(request.stream()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > bytes_max:
                        raise PeerError("too_large", f"a body has at most {bytes_max} bytes")
    except trio.TooSlowError:
        raise PeerError("timeout", "the body did not arrive in time") from None
    return bytes(body)


def _json(content: bytes, status: int = 200, *, is_last: bool = False) -> Response:
    headers = {**_HEADERS, "connection": "close"} if is_last else _HEADERS
    return Response(content, status, headers=headers, media_type="application/json")


def _load_pages() -> dict[str, tuple[bytes, str]]:
    folder = files("node.rpc") / "static"
    return {path: ((folder / name).read_bytes(), _TYPES[name.rpartition(".")[2]]) for path, name in _STATIC.items()}


async def _raise_when_failed(failure: Failure) -> None:
    await failure.happened.wait()
    if failure.error is not None:
        raise failure.error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
