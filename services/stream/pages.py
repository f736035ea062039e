"""A service party's side for payers: offers, challenges, frames, iterations and standings over HTTP."""

import msgspec
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from consensus.ledger.codec import decode_untrusted
from consensus.ledger.errors import HansaError, InvariantError, PeerError, StorageError
from consensus.ledger.ids import HASH_BYTES
from consensus.ledger.streams import ITERATION_BYTES_MAX
from consensus.ledger.transaction import decode_transaction_untrusted
from services.client.tasks import single_errors
from services.local import pages
from services.local.pages import (
    Bodies,
    Gate,
    decoded_untrusted,
    error_handlers,
    error_response,
    json_response,
    read_body_untrusted,
)
from services.stream.desk import Desk
from services.stream.frames import run_websocket
from services.stream.metrics import CONTENT_TYPE
from services.stream.openapi import document
from services.stream.owner import Owner
from services.stream.service_interface import (
    FRAME_MEDIA_TYPE,
    ITERATION_MEDIA_TYPE,
    ChallengeGiven,
    OfferWanted,
    Ready,
    StoredShown,
    StreamQuery,
)
from services.stream.wire import FRAME_BYTES_MAX, Iterate, Refused, Stored, ToldFrame, said_codec, told_codec

STATUSES = {
    **pages.STATUSES,
    **dict.fromkeys(("bad_offer", "bad_iteration", "bad_signature", "wrong_chain", "wrong_stream", "bad_lane"), 400),
    "bad_version": 400,
    "unknown_stream": 404,
    **dict.fromkeys(("busy", "node_unreachable", "node_timeout", "stale_states", "height_not_reached"), 503),
    "chain_unseen": 503,
    **dict.fromkeys(("bad_certificate", "bad_proof", "bad_answer", "database_unreachable"), 503),
    **dict.fromkeys(("disk_full", "disk_failed", "corrupted"), 503),
    "invariant": 500,
}
ITERATIONS_PATH = "/iterations"
_HEADERS = (
    (b"content-type", b"application/json"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)


class StreamGate(Gate):
    """A :class:`services.local.pages.Gate` that lets a WebSocket pass on the same terms as a request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] == "websocket" and self._refusal(scope) is None:
            await self._app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Express:
    """Answers ``POST /iterations`` by itself and leaves the rest to the routes, whose way costs more than the work."""

    def __init__(self, pages: "Pages", app: ASGIApp) -> None:
        self._pages = pages
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] != ITERATIONS_PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            content = await self._pages.iterate(scope, receive)
        except HansaError as error:
            if isinstance(error, StorageError | InvariantError):
                self._pages.fail(error)
            await error_response(error, STATUSES)(scope, receive, send)
            return
        headers = [*_HEADERS, (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


class Pages:
    """The endpoints over the desk."""

    def __init__(self, desk: Desk, owner: Owner, stopping: trio.Event) -> None:
        self._desk = desk
        self._owner = owner
        self._stopping = stopping
        self._bodies = Bodies()
        self.failed = trio.Event()
        """Set with ``failure``, the first error of the disk or a broken invariant: only a new start helps."""
        self.failure: StorageError | InvariantError | None = None

    def app(self) -> ASGIApp:
        """Return the routes."""
        routes = [
            Route("/frames", self._frame, methods=["POST"]),
            WebSocketRoute("/frames", self._converse),
            Route("/offers", self._offer, methods=["POST"]),
            Route("/challenges", self._challenge, methods=["POST"]),
            Route("/streams/{stream}", self._stream),
            Route("/healthz", self._health),
            Route("/metrics", self._figures),
            *(Route(path, _interface) for path in ("/", "/openapi.json")),
        ]
        handlers = {**error_handlers(STATUSES), StorageError: self._on_failure, InvariantError: self._on_failure}
        return Express(self, Starlette(routes=routes, exception_handlers=handlers))

    async def iterate(self, scope: Scope, receive: Receive) -> bytes:
        """Take one iteration, whose transaction names its stream, and return the answer as JSON.

        Raises:
            PeerError: it is refused. Refused, Unreachable: the same again is safe.
            StorageError: it cannot be kept.
        """
        begin = trio.current_time()
        raw = await _binary_untrusted(scope, receive, ITERATION_MEDIA_TYPE, ITERATION_BYTES_MAX)
        stream = _stream_of_untrusted(raw)
        outlet = self._desk.outlet()
        await self._desk.hear([Iterate(stream, raw)], outlet, None)
        told = await outlet.take_all()
        self._owner.metrics.iteration_seconds.observe(trio.current_time() - begin)
        for message in told:
            match message:
                case Stored(_, due):
                    return _stored.encode(StoredShown(f"0x{stream.hex()}", due))
                case Refused(_, code, text):
                    raise PeerError(code, text)
                case _:
                    continue
        raise InvariantError("an iteration is stored or refused")

    async def _frame(self, request: Request) -> Response:
        body = await _binary_untrusted(request.scope, request.receive, FRAME_MEDIA_TYPE, FRAME_BYTES_MAX)
        frame = said_codec.decode_untrusted(body)
        outlet = self._desk.outlet()
        try:
            await self._desk.hear(frame.messages, outlet, None)
            told = await outlet.take_all()
        finally:
            self._desk.leave(outlet)
        if not told:
            return Response(status_code=204)  # a close that changes nothing has no answer of its own
        return Response(told_codec.encode(ToldFrame(told)), media_type=FRAME_MEDIA_TYPE)

    async def _converse(self, websocket: WebSocket) -> None:
        try:
            with single_errors():
                await run_websocket(websocket, self._desk, self._stopping)
        except (StorageError, InvariantError) as error:
            self.fail(error)

    async def _offer(self, request: Request) -> Response:
        wanted = decoded_untrusted(await self._bodies.read(request), _wanted)
        return _said(await self._owner.offer(wanted))

    async def _challenge(self, _: Request) -> Response:
        nonce, until_ms = self._desk.challenges.give()
        return _said(ChallengeGiven(f"0x{nonce.hex()}", until_ms))

    async def _stream(self, request: Request) -> Response:
        text = request.path_params["stream"]
        try:
            query = msgspec.convert({"stream": text}, StreamQuery)
        except msgspec.ValidationError:
            raise PeerError("unknown_stream", f"a stream is 0x and {2 * HASH_BYTES} hexadecimal digits") from None
        return _said(await self._owner.stream(query))

    async def _health(self, _: Request) -> Response:
        return _said(Ready(self._owner.account))

    async def _figures(self, _: Request) -> Response:
        return Response(self._owner.figures(), headers={"content-type": CONTENT_TYPE, "cache-control": "no-store"})

    async def _on_failure(self, _: Request, error: Exception) -> Response:
        if not isinstance(error, StorageError | InvariantError):
            raise InvariantError("this handler is for what ends the program")
        self.fail(error)
        return error_response(error, STATUSES)

    def fail(self, error: StorageError | InvariantError) -> None:
        """End the program with this error, unless it ends with another one already."""
        self.failure = self.failure or error
        self.failed.set()


def _stream_of_untrusted(raw: bytes) -> bytes:
    """Return the stream that an iteration's call names; all else of it is checked where that stream is known."""
    arguments = decode_untrusted(decode_transaction_untrusted(raw).body.calls[0].arguments)
    stream = arguments.get("stream") if isinstance(arguments, dict) else None
    if not isinstance(stream, bytes) or len(stream) != HASH_BYTES:
        raise PeerError("bad_iteration", "it names no stream")
    return stream


async def _binary_untrusted(scope: Scope, receive: Receive, media_type: str, bytes_max: int) -> bytes:
    """Return a body of this type.

    Raises:
        PeerError: ``bad_media_type``, ``too_large``, ``timeout``, ``malformed``.
    """
    given = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    if given.partition(b";")[0].strip().lower() != media_type.encode():
        raise PeerError("bad_media_type", f"the body must be {media_type}")
    return await read_body_untrusted(receive, bytes_max)


async def _interface(_: Request) -> Response:
    return json_response(document())


def _said(content: msgspec.Struct) -> Response:
    return json_response(msgspec.json.encode(content))


_stored = msgspec.json.Encoder()
_wanted = msgspec.json.Decoder(OfferWanted)
