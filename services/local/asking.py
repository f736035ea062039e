"""The other end of :mod:`services.local.pages`: a client asks a program over HTTP, in JSON, within bounds.

Whatever leaves open what was done is ``Unreachable``, so that callers tell it from a refusal: the same again is safe
wherever a program says so.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import httpx
import msgspec
import trio

from consensus.ledger.errors import LocalError
from services.client.errors import Refused, Unreachable
from services.local.pages import Failed

ANSWER_BYTES_MAX = 4 * 1024 * 1024
CONNECT_MS_MAX = 5_000
ANSWER_MS_MAX = 60_000
"""How long an answer may take; a database server that is away is waited for meanwhile."""
CONNECTIONS_MAX = 32
IDLE_S_MAX = 10
"""How long a connection is kept that nobody uses: less than the other side keeps it."""
CODE_CHARACTERS_MAX, MESSAGE_CHARACTERS_MAX = 64, 1_000
"""How much of a refusal is kept."""
OK, SERVER_ERRORS = range(200, 300), 500
"""HTTP statuses: those of an answer, and the first that leaves open what was done."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Program:
    """What is asked: its root URL, its name in words, and the code of its being unreachable."""

    url: str
    name: str
    code: str


class ProgramLink:
    """Asks one program; made by :func:`open_program`. All calls raise ``Unreachable`` and ``Refused``."""

    def __init__(self, client: httpx.AsyncClient, program: Program) -> None:
        self._client = client
        self._program = program

    async def post(self, path: str, content: object, kind: type[T]) -> T:
        """Return the answer to a POST of JSON."""
        return await self.ask("POST", path, msgspec.json.encode(content), kind)

    async def ask(self, verb: str, path: str, body: bytes | None, kind: type[T]) -> T:
        """Return the answer to a request, whose body is JSON if there is one.

        Raises:
            Refused: with the program's code.
            Unreachable: it is unknown what was done.
        """
        try:
            status, answer = await self._fetch(verb, path, body)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise self.unreachable(str(error) or type(error).__name__) from None
        try:
            if status in OK:
                return msgspec.json.decode(answer, type=kind)
            problem = msgspec.json.decode(answer, type=Failed).error
            code, message = problem.code[:CODE_CHARACTERS_MAX], problem.message[:MESSAGE_CHARACTERS_MAX]
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise self.unreachable(f"answers {status}, and what nobody can read: {error}") from None
        if status >= SERVER_ERRORS:
            raise self.unreachable(f"{code}: {message}")
        raise Refused(code, message)

    def unreachable(self, why: str) -> Unreachable:
        """Return the error of an answer that says nothing about what was done."""
        return Unreachable(f"{self._program.name} {self._program.url}: {why}", self._program.code)

    async def _fetch(self, verb: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Return status and content of an answer; ``Unreachable`` if it is too long."""
        headers = {} if body is None else {"content-type": "application/json"}
        request = self._client.build_request(verb, self._program.url + path, content=body, headers=headers)
        if body is not None:
            request.stream = _Body(body)
        answer = bytearray()
        with trio.CancelScope() as enough:
            response = await self._client.send(request, stream=True)
            async with aclosing(response):
                async for part in response.aiter_bytes():
                    answer += part
                    if len(answer) > ANSWER_BYTES_MAX:
                        enough.cancel()  # the generators below end at their next read, which a raise would not do
                return response.status_code, bytes(answer)
        raise self.unreachable(f"answers more than {ANSWER_BYTES_MAX} bytes")


class _Body(httpx.AsyncByteStream):
    """A request's body, once; httpx's own is a generator, which a connection that is lost leaves unfinished."""

    def __init__(self, content: bytes) -> None:
        self._parts = iter((content,))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for part in self._parts:
            return part
        raise StopAsyncIteration


@asynccontextmanager
async def open_program(
    program: Program, *, token: str = "", answer_ms_max: int | None = None
) -> AsyncIterator[ProgramLink]:
    """Give a link to a program at ``http://HOST:PORT``; nothing is asked before the first call.

    ``answer_ms_max`` is in place of ``ANSWER_MS_MAX``.

    Raises:
        LocalError: ``bad_url``.
    """
    try:
        base = httpx.URL(program.url)
    except httpx.InvalidURL:
        base = httpx.URL()
    if base.scheme not in ("http", "https") or not base.host or base.path != "/":
        raise LocalError("bad_url", f"{program.url} is no address of a {program.name}, such as http://127.0.0.1:26902")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    timeout = httpx.Timeout((answer_ms_max or ANSWER_MS_MAX) / 1000, connect=CONNECT_MS_MAX / 1000)
    limits = httpx.Limits(
        max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX, keepalive_expiry=IDLE_S_MAX
    )
    async with httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits, trust_env=False) as client:
        yield ProgramLink(client, Program(str(base).rstrip("/"), program.name, program.code))
