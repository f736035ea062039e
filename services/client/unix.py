"""JSON-RPC to a program of the same machine over its unix socket: the connection is made when needed, and kept."""

import itertools
from contextlib import ExitStack, aclosing
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import msgspec

from consensus.ledger.errors import PeerError
from services.client.connection import T, decode_answer_untrusted
from services.client.errors import Refused, Unreachable
from services.client.sockets import address_of

ANSWER_BYTES_MAX = 64 * 1024 * 1024
CONNECT_TIMEOUT_MS = 3_000
CALL_TIMEOUT_MS = 30_000
"""How long an answer is waited for; longer than any method waits for news."""
CONNECTIONS_MAX = 64

_BROKEN = frozenset({"stopping", "node_failed"})
"""Codes of a program that ends: nothing is known about the request."""


class _Body(httpx.AsyncByteStream):
    """A request's bytes in one part. Not a generator, as httpx has it: a call that is cancelled leaves none behind."""

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        data, self._data = self._data, None
        if data is None:
            raise StopAsyncIteration
        return data


class UnixLink:
    """Calls the program behind a socket. Every failure to reach it says that the outcome is unknown."""

    def __init__(
        self, path: Path, *, unreachable: str = "program_unreachable", timeout: str = "program_timeout"
    ) -> None:
        """Name the socket, and the codes under which its program is missing or slow; nothing is connected yet."""
        self.path = path
        self._unreachable = unreachable
        self._timeout = timeout
        self._ids = itertools.count(1)
        self._open = ExitStack()
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        """Give the link itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; the next call makes new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
        self._open.close()

    async def call(self, method: str, params: object, kind: type[T], *, timeout_ms: int = CALL_TIMEOUT_MS) -> T:
        """Call a method with a Struct or a dict of parameters, and return its result as ``kind``.

        Raises:
            Refused: the program answers with an error.
            Unreachable: it does not answer, or stops; the outcome is unknown.
            PeerError: ``bad_answer`` or ``too_large``.
        """
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params})
        timeout = httpx.Timeout(timeout_ms / 1000, connect=CONNECT_TIMEOUT_MS / 1000)
        answer = bytearray()
        try:
            client = self._connected()
            headers = {"content-type": "application/json", "content-length": str(len(body)), "host": "localhost"}
            request = httpx.Request("POST", "http://localhost/rpc", headers=headers, stream=_Body(body))
            request.extensions["timeout"] = timeout.as_dict()
            async with aclosing(await client.send(request, stream=True)) as response:
                async for part in response.aiter_bytes():
                    answer += part
                    if len(answer) > ANSWER_BYTES_MAX:
                        raise PeerError("too_large", f"{self.path} answers more than {ANSWER_BYTES_MAX} bytes")
        except httpx.TimeoutException:
            message = f"{self.path} did not answer {method} within {timeout_ms} ms"
            raise Unreachable(message, code=self._timeout) from None
        except (httpx.HTTPError, OSError) as error:
            raise Unreachable(f"nobody answers on {self.path}: {error}", code=self._unreachable) from None
        if response.status_code != httpx.codes.OK:
            raise PeerError("bad_answer", f"{self.path} answers with HTTP status {response.status_code}")
        try:
            return decode_answer_untrusted(bytes(answer), kind, f"{self.path.name} {method}")
        except Refused as error:
            if error.code in _BROKEN:
                raise Unreachable(f"{self.path}: {error.message}", code=self._unreachable) from None
            raise

    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            address = self._open.enter_context(address_of(self.path))
            limits = httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX)
            transport = httpx.AsyncHTTPTransport(uds=address, limits=limits, verify=False, trust_env=False)
            self._client = httpx.AsyncClient(transport=transport, trust_env=False)
        return self._client
