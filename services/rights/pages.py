"""The business server's HTTP side: routes, who may call, size limits, errors.

By default it listens on loopback alone and answers only to ``Host`` names that it knows, so that a web page cannot
reach it through a name of its own (DNS rebinding). A request that a browser sends for another site's page carries that
site's ``Origin`` and is refused as well; no CORS header is ever sent.
"""

import hmac
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import msgspec
import structlog
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from consensus.ledger.errors import HansaError, InvariantError, PeerError
from services.client.errors import Refused
from services.rights.answers import Answer, Failed, Taken, Taker, failed
from services.rights.campaigns import Campaigns
from services.rights.events import Event, Kind
from services.rights.metrics import CONTENT_TYPE, BusinessMetrics
from services.rights.openapi import document, page
from services.rights.requests import (
    Decode,
    decode_any,
    decode_change_untrusted,
    decode_list_untrusted,
    decode_one_untrusted,
    decode_order,
    decode_redemption,
    is_id,
    is_list,
)

BODY_BYTES_MAX = 1024 * 1024
"""Size of a request's body; a list of 1,000 orders has about 100 KiB."""
BODIES_BYTES_MAX = 64 * 1024 * 1024
"""Size of all bodies that are being received."""
BODY_MS_MAX = 10_000
"""Time within which a whole request body must arrive."""
RETRY_AFTER_S = 1
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN_PATHS = frozenset({"/", "/openapi.json", "/healthz"})
"""What is answered without a token."""

STATUSES = {
    "malformed": 400,
    "bad_field": 400,
    "bad_token": 401,
    "unknown_host": 403,
    "not_allowed": 403,
    "unknown_campaign": 404,
    "unknown_event": 404,
    "unknown_path": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "too_large": 413,
    "bad_media_type": 415,
    "intake_full": 503,
    "store_full": 503,
    "center_unreachable": 503,
    "node_unreachable": 503,
    "node_timeout": 503,
    "outcome_unknown": 503,
    "pool_full": 503,
    "sender_full": 503,
}
"""HTTP status by error code; every other code is the contract's, or a conflict: 409."""

_KINDS = frozenset(kind.value for kind in Kind)
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_JSON_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}

log = structlog.get_logger("business")


class Pages:
    """The endpoints over one taker of events."""

    def __init__(
        self,
        taker: Taker,
        campaigns: Campaigns,
        metrics: BusinessMetrics,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._taker = taker
        self._campaigns = campaigns
        self._metrics = metrics
        self._now_ms = now_ms
        self._receiving_bytes = 0

    def app(self) -> Starlette:
        """Return the routes."""
        routes = [
            Route("/orders", self._post(decode_order), methods=["POST"]),
            Route("/redemptions", self._post(decode_redemption), methods=["POST"]),
            Route("/events", self._post(decode_any), methods=["POST"]),
            *[
                Route(f"/orders/{{reference}}/{kind.value}", self._post_change(kind), methods=["POST"])
                for kind in (Kind.CANCEL, Kind.COMPLETE, Kind.REFUND)
            ],
            Route("/redemptions/{reference}/reverse", self._post_change(Kind.REVERSE), methods=["POST"]),
            Route("/events/{kind}/{reference}/{number}", self._follow),
            Route("/healthz", self._health),
            Route("/metrics", self._figures),
            Route("/openapi.json", _openapi),
            Route("/", _page),
        ]
        handlers = {HansaError: _on_error, HTTPException: _on_http, Exception: _on_bug}
        return Starlette(routes=routes, exception_handlers=cast(dict[type[Exception], object], handlers))  # type: ignore[arg-type]

    def _post(self, decode: Decode) -> Callable[[Request], Awaitable[Response]]:
        async def post(body: bytes, _: Request) -> Response:
            if is_list(body):
                answers = await self._take_list(decode_list_untrusted(body, decode, self._now_ms()))
                return _json(msgspec.json.encode(answers), 202)
            return await self._take_one(decode_one_untrusted(body, decode, self._now_ms()))

        return self._timed(post, is_body_needed=True)

    def _post_change(self, kind: Kind) -> Callable[[Request], Awaitable[Response]]:
        async def post(body: bytes, request: Request) -> Response:
            reference = request.path_params["reference"]
            return await self._take_one(decode_change_untrusted(kind, reference, body, self._now_ms()))

        return self._timed(post, is_body_needed=False)

    def _timed(
        self, answer: Callable[[bytes, Request], Awaitable[Response]], *, is_body_needed: bool
    ) -> Callable[[Request], Awaitable[Response]]:
        async def post(request: Request) -> Response:
            begin = trio.current_time()
            try:
                return await answer(await self._read(request, is_needed=is_body_needed), request)
            finally:
                self._metrics.request_seconds.observe(trio.current_time() - begin)

        return post

    async def _read(self, request: Request, *, is_needed: bool) -> bytes:
        size = _body_size_untrusted(request, is_needed=is_needed)
        if self._receiving_bytes + size > BODIES_BYTES_MAX:
            raise Refused("intake_full", f"bodies of {self._receiving_bytes} bytes are being received")
        self._receiving_bytes += size
        try:
            return await _read_body_untrusted(request)
        finally:
            self._receiving_bytes -= size

    async def _take_one(self, event: Event) -> Response:
        (answer,) = await self._take_list([event])
        if isinstance(answer, Failed):
            return _error_response(answer)
        return _json(msgspec.json.encode(answer), 202 if answer.chain is None else 200)

    async def _take_list(self, decoded: Sequence[Event | PeerError]) -> list[Answer]:
        """Take the events among these; in the place of others, and of those refused, stands why."""
        answers: list[Answer | None] = []
        events: list[Event] = []
        for item in decoded:
            if isinstance(item, PeerError):
                refusal: HansaError | None = item
            else:
                refusal = await self._campaigns.refusal(item.campaign) if item.kind == Kind.CREATE else None
            if refusal is not None:
                answers.append(failed(refusal))
            else:
                events.append(cast(Event, item))
                answers.append(None)
        taken = iter(await self._taker.take(events) if events else ())
        complete: list[Answer] = []
        for item, answer in zip(decoded, answers, strict=True):
            final = next(taken) if answer is None else answer
            complete.append(final)
            kind = "unknown" if isinstance(item, PeerError) else item.kind
            self._metrics.count(kind, _outcome(final))
        return complete

    async def _follow(self, request: Request) -> Response:
        kind, reference, number = (request.path_params[name] for name in ("kind", "reference", "number"))
        # The centre lets go of who asks for what cannot be a key, with everything that is under way.
        is_possible = kind in _KINDS and is_id(reference) and is_id(number)
        found = await self._taker.find(kind, reference, number) if is_possible else None
        if found is None:
            raise Refused("unknown_event", f"there is no event {kind}/{reference}/{number}")
        return _json(msgspec.json.encode(found))

    async def _health(self, _: Request) -> Response:
        await self._taker.check()
        return _json(b'{"ready":true}')

    async def _figures(self, _: Request) -> Response:
        return Response(self._metrics.render(), headers={**_HEADERS, "content-type": CONTENT_TYPE})


class Gate:
    """Turns away who has no token, comes under a name that this server does not have, or from another site's page."""

    def __init__(self, app: ASGIApp, *, names: frozenset[str], token: str) -> None:
        self._app = app
        self._names = names
        self._authorization = f"Bearer {token}".encode() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await _error_response(failed(refusal))(scope, receive, send)

    def _refusal(self, scope: Scope) -> HansaError | None:
        hosts, authorization = 0, b""
        for name, value in scope["headers"]:
            if name == b"host":
                hosts += 1
                if host_name(value.decode("latin-1")) not in self._names:
                    return PeerError("unknown_host", "this server has another name")
            elif name == b"origin":
                if host_name(value.decode("latin-1").partition("://")[2]) not in self._names:
                    return PeerError("unknown_host", "another site's page has no business here")
            elif name == b"authorization":
                authorization = value
        if hosts != 1:
            return PeerError("unknown_host", "a request names one host")
        is_open = not self._authorization or scope["path"] in OPEN_PATHS
        if not is_open and not hmac.compare_digest(authorization, self._authorization):
            return PeerError("bad_token", "needs the header `Authorization: Bearer TOKEN`")
        return None


def host_name(authority: str) -> str:
    """Return the name in ``HOST``, ``HOST:PORT`` or ``[IPV6]:PORT``, in lower case."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower()


def _body_size_untrusted(request: Request, *, is_needed: bool) -> int:
    """Return the most bytes that a body can have; one that is not needed, and not there, is of no type.

    Raises:
        PeerError: ``bad_media_type``, ``too_large``.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_chunked = "transfer-encoding" in request.headers
    length = request.headers.get("content-length", "0")
    is_absent = not is_needed and "content-type" not in request.headers and length == "0" and not is_chunked
    if media_type != "application/json" and not is_absent:
        raise PeerError("bad_media_type", "the body must be application/json")
    if is_chunked:
        return BODY_BYTES_MAX
    if not length.isdecimal() or int(length) > BODY_BYTES_MAX:
        raise PeerError("too_large", f"a body has at most {BODY_BYTES_MAX} bytes")
    return int(length)


async def _read_body_untrusted(request: Request) -> bytes:
    """Return the body.

    Raises:
        PeerError: ``too_large``, ``timeout`` when it does not arrive in time, ``malformed`` when it ends too soon.
    """
    body = bytearray()
    try:
        with trio.fail_after(BODY_MS_MAX / 1000):
            while True:
                message = await request.receive()
                if message["type"] != "http.request":
                    raise PeerError("malformed", "the body ends too soon")
                body += message.get("body", b"")
                if len(body) > BODY_BYTES_MAX:
                    raise PeerError("too_large", f"a body has at most {BODY_BYTES_MAX} bytes")
                if not message.get("more_body"):
                    return bytes(body)
    except trio.TooSlowError:
        raise PeerError("timeout", "the body did not arrive in time") from None


def _outcome(answer: Answer) -> str:
    if isinstance(answer, Taken):
        return "new" if answer.is_new else "repeated"
    return answer.error.code


def _json(content: bytes, status: int = 200) -> Response:
    return Response(content, status, headers=_JSON_HEADERS, media_type="application/json")


def _error_response(answer: Failed) -> Response:
    status = STATUSES.get(answer.error.code, 409)
    response = _json(msgspec.json.encode(answer), status)
    if status == 503:
        response.headers["retry-after"] = str(RETRY_AFTER_S)
    elif status == 401:
        response.headers["www-authenticate"] = "Bearer"
    elif status in (408, 413):
        response.headers["connection"] = "close"  # the rest of the body is not read
    return response


async def _on_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HansaError):
        raise InvariantError("this handler is for errors of ours")
    return _error_response(failed(error))


async def _on_http(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405:
        response = _error_response(failed(PeerError("method_not_allowed", "this path knows other methods")))
        response.headers.update(error.headers or {})
        return response
    return _error_response(failed(PeerError("unknown_path", "there is nothing here; GET / says what there is")))


async def _on_bug(_: Request, error: Exception) -> Response:
    """Answer for what should not have happened; the web server closes the connection after it."""
    log.error("a request failed", exc_info=error)
    return Response(b'{"error":{"code":"internal","message":"see the log"}}', 500, media_type="application/json")


async def _openapi(_: Request) -> Response:
    return _json(document())


async def _page(_: Request) -> Response:
    return Response(page(), headers=_HEADERS, media_type="text/html")
