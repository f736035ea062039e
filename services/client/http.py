"""JSON-RPC over plain HTTP, for places that let no WebSocket through. One request a call, no subscriptions."""

import itertools
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import httpx
import msgspec

from consensus.ledger.errors import LocalError, PeerError
from services.client.connection import (
    CONNECT_TIMEOUT_MS,
    MESSAGE_BYTES_MAX,
    REQUEST_TIMEOUT_MS,
    Parameters,
    T,
    decode_answer_untrusted,
)
from services.client.errors import Unreachable


class HttpTransport:
    """Sends each request as one POST to ``/rpc``; made by :func:`open_http`."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self._client = client
        self._ids = itertools.count(1)

    async def request(
        self, method: str, params: Parameters, kind: type[T], *, timeout_ms: int = REQUEST_TIMEOUT_MS
    ) -> T:
        """Send one request and return its result, decoded into ``kind``.

        Raises:
            Refused: the node answered with an error.
            Unreachable: no answer: the outcome is unknown.
            PeerError: ``bad_answer`` or ``too_large``.
        """
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params})
        timeout = httpx.Timeout(timeout_ms / 1000, connect=CONNECT_TIMEOUT_MS / 1000)
        try:
            async with self._client.stream("POST", self.url, content=body, timeout=timeout) as response:
                answer = bytearray()
                async for part in response.aiter_bytes():
                    answer += part
                    if len(answer) > MESSAGE_BYTES_MAX:
                        raise PeerError("too_large", f"{self.url} answers more than {MESSAGE_BYTES_MAX} bytes")
        except httpx.TimeoutException:
            raise Unreachable(
                f"{self.url} did not answer {method} within {timeout_ms} ms", code="node_timeout"
            ) from None
        except httpx.HTTPError as error:
            raise Unreachable(f"{self.url} cannot be reached: {error}") from None
        return decode_answer_untrusted(bytes(answer), kind, f"{self.url} {method}")


@asynccontextmanager
async def open_http(url: str, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[HttpTransport]:
    """Give a transport to ``http://HOST:PORT``, which keeps its connections alive for the time of the block.

    Raises:
        LocalError: ``bad_url``.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise LocalError("bad_url", f"{url} is no address of a node, such as http://127.0.0.1:26700")
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(verify=tls or True, headers=headers, trust_env=False) as client:
        yield HttpTransport(urlunsplit((parts.scheme, parts.netloc, "/rpc", "", "")), client)
