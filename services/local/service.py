"""Typed methods behind a unix socket: JSON-RPC 2.0, one request a POST to ``/rpc``, for programs of the same user.

The socket's file has mode 0600 and appears when the program listens. Bytes travel in base64, parameters are decoded
straight into a type that checks them. A method that waits for news is given up when the program stops; all others
have ``STOP_MS_MAX``. A failed disk or a broken invariant is answered and then ends the program.
"""

import os
import socket
import stat
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import anycorn
import msgspec
import structlog
import trio
from anycorn.config import Config
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from consensus.ledger.errors import HansaError, InvariantError, LocalError, StorageError
from services.client.sockets import address_of
from services.client.tasks import single_errors

BODY_BYTES_MAX = 64 * 1024 * 1024
"""Size of a request and of an answer."""
BODIES_BYTES_MAX = 256 * 1024 * 1024
"""Size of all requests that are being received."""
REQUESTS_MAX = 256
"""Requests under way; who comes on top is refused with ``busy``."""
BACKLOG = 128
KEEP_ALIVE_S = 600
STOP_MS_MAX = 3_000
"""Time that requests under way have when the program stops."""

Params = TypeVar("Params", bound=msgspec.Struct)
Handler = Callable[[Any], Awaitable[object]]

log = structlog.get_logger("local")

_NUMBERS = {"parse_error": -32700, "invalid_request": -32600, "method_not_found": -32601, "invalid_params": -32602}
_NUMBERS |= {"internal": -32603}
_REFUSED = -32000


class _Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    jsonrpc: Literal["2.0"]
    method: str
    id: int | str | None = None
    params: msgspec.Raw = msgspec.Raw(b"{}")


@dataclass(frozen=True, slots=True)
class _Method:
    decoder: msgspec.json.Decoder[Any]
    handler: Handler
    is_waiting: bool


class LocalService:
    """The methods of one program; :func:`serve` puts them on a socket."""

    def __init__(self) -> None:
        self._methods: dict[str, _Method] = {}
        self._calls = msgspec.json.Decoder(_Call)
        self._encoder = msgspec.json.Encoder()
        self._waiting: set[trio.CancelScope] = set()
        self._is_stopping = False
        self._failure: StorageError | InvariantError | None = None
        self._failed = trio.Event()

    def add(
        self, name: str, params: type[Params], handler: Callable[[Params], Awaitable[object]], *, waits: bool = False
    ) -> None:
        """Add a method: its parameters' type and what answers it, with a Struct or anything JSON.

        Args:
            waits: it may wait for news, and is given up with the code ``stopping`` when the program stops.
        """
        if name in self._methods:
            raise InvariantError(f"two methods are called {name}")
        self._methods[name] = _Method(msgspec.json.Decoder(params), handler, waits)

    async def answer(self, body: bytes) -> bytes:
        """Return the response to one request; it is an error object where the request or its method fails."""
        call_id: int | str | None = None
        try:
            call = self._decode(body)
            call_id = call.id
            result = await self._run(call)
            data = self._encoder.encode({"jsonrpc": "2.0", "id": call_id, "result": result})
            if len(data) > BODY_BYTES_MAX:
                raise LocalError("answer_too_large", f"an answer has at most {BODY_BYTES_MAX} bytes: ask for less")
            return data
        except HansaError as error:
            if isinstance(error, StorageError | InvariantError):
                log.error("failed", code=error.code, why=error.message)
                self._failure = self._failure or error
                self._failed.set()
            return self._error(call_id, error.code, error.message)
        except Exception as error:
            # Its text may hold what a caller sent, and logs never do.
            places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
            log.error("a method is broken", error=type(error).__name__, places=places)
            return self._error(call_id, "internal", "a bug: the program's log says more")

    def stop(self) -> None:
        """Give up whatever waits for news, also what comes from now on."""
        self._is_stopping = True
        for scope in self._waiting:
            scope.cancel()

    async def until_stopped(self, stopping: trio.Event) -> None:
        """Wait until ``stopping`` is set or a method has failed for good; then :meth:`stop`."""
        async with trio.open_nursery() as nursery:

            async def watch(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch, stopping)
            nursery.start_soon(watch, self._failed)
        self.stop()

    def check(self) -> None:
        """Raise what a method has failed with for good."""
        if self._failure is not None:
            raise self._failure

    def _decode(self, body: bytes) -> _Call:
        try:
            return self._calls.decode(body)
        except msgspec.ValidationError as error:
            raise LocalError("invalid_request", str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise LocalError("parse_error", str(error)) from None

    async def _run(self, call: _Call) -> object:
        method = self._methods.get(call.method)
        if method is None:
            raise LocalError(
                "method_not_found", f"there is no {call.method[:64]}; there are: {', '.join(self._methods)}"
            )
        try:
            params = method.decoder.decode(call.params)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise LocalError("invalid_params", f"{call.method}: {error}") from None
        if not method.is_waiting:
            return await method.handler(params)
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                if self._is_stopping:
                    scope.cancel()
                return await method.handler(params)
            finally:
                self._waiting.discard(scope)
        raise HansaError("stopping", "the program stops")

    def _error(self, call_id: int | str | None, code: str, message: str) -> bytes:
        content = {"code": _NUMBERS.get(code, _REFUSED), "message": message, "data": {"code": code}}
        return self._encoder.encode({"jsonrpc": "2.0", "id": call_id, "error": content})


async def serve(
    path: Path,
    service: LocalService,
    stopping: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on the socket ``path`` until ``stopping`` is set.

    Raises:
        LocalError: ``already_running`` where another process answers there, ``bad_address``.
        StorageError, InvariantError: a method has failed for good.
    """
    room = _Room()

    async def post(request: Request) -> Response:
        try:
            with room.place(request):
                answer = await service.answer(await room.read(request))
        except HansaError as error:
            answer = service._error(None, error.code, error.message)
        except ClientDisconnect:
            answer = b""
        return Response(answer, media_type="application/json")

    config = Config()
    config.accesslog = config.errorlog = None
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.keep_alive_max_requests = 2**31
    config.graceful_timeout = STOP_MS_MAX / 1000
    app = Starlette(routes=[Route("/rpc", post, methods=["POST"])])
    with single_errors(), _listening(path) as listening:
        config.bind = [f"fd://{os.dup(listening.fileno())}"]
        until_stopped = partial(service.until_stopped, stopping)
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(anycorn.serve, app, config, shutdown_trigger=until_stopped))  # type: ignore[arg-type]
            task_status.started()
    service.check()


class _Room:
    """Bounds how many requests are under way, and how many bytes of them are being received."""

    def __init__(self) -> None:
        self._requests = 0
        self._bytes = 0

    @contextmanager
    def place(self, request: Request) -> Iterator[None]:
        """Take a place for a request; ``busy`` when there is none."""
        if self._requests >= REQUESTS_MAX or self._bytes >= BODIES_BYTES_MAX:
            raise LocalError("busy", f"{self._requests} requests are under way")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def read(self, request: Request) -> bytes:
        """Return a request's body; ``too_large`` beyond the bound."""
        body = bytearray()
        try:
            async with aclosing(request.stream()) as parts:
                async for part in parts:
                    body += part
                    self._bytes += len(part)
                    if len(body) > BODY_BYTES_MAX:
                        raise LocalError("too_large", f"a request has at most {BODY_BYTES_MAX} bytes")
        finally:
            self._bytes -= len(body)
        return bytes(body)


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """Listen under ``path``; what a killed program left there is replaced, what answers is left alone.

    The socket is made under another name, so that ``path`` never names one with another mode or that refuses.
    """
    draft = path.with_name(f".{path.name}.new")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_nobody_answers(path)
            draft.unlink(missing_ok=True)
            with address_of(draft) as address:
                listening.bind(address)
            draft.chmod(0o600)
            listening.listen(BACKLOG)
            draft.replace(path)
        except OSError as error:
            raise LocalError("bad_address", f"cannot listen on {path}: {error.strerror}") from None
        own = path.stat().st_ino
        try:
            yield listening
        finally:
            with suppress(OSError):
                if path.stat().st_ino == own:
                    path.unlink()
    finally:
        listening.close()


def _check_nobody_answers(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise LocalError("bad_address", f"{path} is no socket, and is left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, address_of(path) as address:
        probe.setblocking(False)  # a full backlog is somebody too
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            pass
    raise LocalError("already_running", f"another program answers on {path}")
