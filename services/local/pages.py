"""What the HTTP pages of our programs have in common: who may call, bodies within bounds, errors as JSON.

By default a program listens on loopback alone and answers only to ``Host`` names that it knows, so that a web page
cannot reach it through a name of its own (DNS rebinding). A request that a browser sends for another site's page
carries that site's ``Origin`` and is refused as well; no CORS header is ever sent.
"""

import hmac
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import structlog
import trio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from consensus.ledger.errors import HansaError, InvariantError, PeerError
from services.client.errors import Refused

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

STATUSES: Mapping[str, int] = {
    "malformed": 400,
    "bad_field": 400,
    "bad_token": 401,
    "unknown_host": 403,
    "not_allowed": 403,
    "unknown_path": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "too_large": 413,
    "bad_media_type": 415,
    "intake_full": 503,
}
"""HTTP status by error code, of what every program says; a code that nobody lists is a conflict: 409."""

_JSON_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}

T = TypeVar("T")

log = structlog.get_logger("web")


class Problem(msgspec.Struct, frozen=True):
    """Why something was refused; ``code`` is one of ``docs/errors.md``."""

    code: str
    message: str

    def __post_init__(self) -> None:
        """Say a code in words where nothing else is known: of a refusal the chain keeps the code alone."""
        if self.message == self.code:
            msgspec.structs.force_setattr(self, "message", self.code.replace("_", " "))


class Failed(msgspec.Struct, frozen=True):
    """The answer in place of what was asked for."""

    error: Problem


def failed(error: HansaError) -> Failed:
    """Return the answer that an error is."""
    return Failed(Problem(error.code, error.message))


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
            await error_response(refusal)(scope, receive, send)

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


class Bodies:
    """Receives requests' bodies: each of JSON, in time, and within a bound, as all of them together."""

    def __init__(self) -> None:
        self._receiving_bytes = 0

    async def read(self, request: Request, *, is_needed: bool = True) -> bytes:
        """Return a request's body; one that is not needed may be absent.

        Raises:
            PeerError: ``bad_media_type``, ``too_large``, ``timeout``, ``malformed``.
            Refused: ``intake_full`` while too much is being received.
        """
        size = _body_size_untrusted(request, is_needed=is_needed)
        if self._receiving_bytes + size > BODIES_BYTES_MAX:
            raise Refused("intake_full", f"bodies of {self._receiving_bytes} bytes are being received")
        self._receiving_bytes += size
        try:
            return await read_body_untrusted(request.receive, BODY_BYTES_MAX)
        finally:
            self._receiving_bytes -= size


def decoded_untrusted(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return what a body says, in which no field stands twice.

    Raises:
        PeerError: ``malformed``, or ``bad_field`` with the field's path.
    """
    try:
        content = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise PeerError("bad_field", str(error)) from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerError("malformed", str(error)) from None
    check_once(body)
    return content


def check_once(body: bytes) -> None:
    """Refuse a body, known to be JSON, in which a field stands twice: msgspec takes the last, others may not.

    Raises:
        PeerError: ``malformed``.
    """
    try:
        _decode_once(body.decode())
    except ValueError as error:
        raise PeerError("malformed", str(error)) from None


def _once(pairs: list[tuple[str, object]]) -> None:
    names = {name for name, _ in pairs}
    if len(names) < len(pairs):
        twice = next(name for name in names if sum(name == other for other, _ in pairs) > 1)
        raise ValueError(f"`{twice}` twice")


_decode_once = json.JSONDecoder(object_pairs_hook=_once).decode


def json_response(content: bytes, status: int = 200) -> Response:
    """Return JSON that nobody keeps."""
    return Response(content, status, headers=_JSON_HEADERS, media_type="application/json")


def error_response(error: HansaError | Failed, statuses: Mapping[str, int] = STATUSES) -> Response:
    """Return an error as JSON, with the status that its code has."""
    answer = error if isinstance(error, Failed) else failed(error)
    status = statuses.get(answer.error.code, 409)
    response = json_response(msgspec.json.encode(answer), status)
    if status == 503:
        response.headers["retry-after"] = str(RETRY_AFTER_S)
    elif status == 401:
        response.headers["www-authenticate"] = "Bearer"
    elif status in (408, 413):
        response.headers["connection"] = "close"  # the rest of the body is not read
    return response


def error_handlers(statuses: Mapping[str, int]) -> Any:
    """Return what starlette calls for errors: ours, those of its routes, and bugs."""

    async def on_error(_: Request, error: Exception) -> Response:
        if not isinstance(error, HansaError):
            raise InvariantError("this handler is for errors of ours")
        return error_response(error, statuses)

    return {HansaError: on_error, HTTPException: _on_http, Exception: _on_bug}


async def _on_http(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405:
        response = error_response(PeerError("method_not_allowed", "this path knows other methods"))
        response.headers.update(error.headers or {})
        return response
    return error_response(PeerError("unknown_path", "there is nothing here; GET / says what there is"))


async def _on_bug(_: Request, error: Exception) -> Response:
    """Answer for what should not have happened; the web server closes the connection after it."""
    log.error("a request failed", exc_info=error)
    return Response(b'{"error":{"code":"internal","message":"see the log"}}', 500, media_type="application/json")


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


async def read_body_untrusted(receive: Receive, bytes_max: int) -> bytes:
    """Return a request's body of at most so many bytes.

    Raises:
        PeerError: ``too_large``, ``timeout`` when it does not arrive in time, ``malformed`` when it ends too soon.
    """
    body = bytearray()
    try:
        with trio.fail_after(BODY_MS_MAX / 1000):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise PeerError("malformed", "the body ends too soon")
                body += message.get("body", b"")
                if len(body) > bytes_max:
                    raise PeerError("too_large", f"a body has at most {bytes_max} bytes")
                if not message.get("more_body"):
                    return bytes(body)
    except trio.TooSlowError:
        raise PeerError("timeout", "the body did not arrive in time") from None
