"""A lean HTTP/1.1 client for load: requests made beforehand, kept-alive connections over raw sockets.

It costs its machine as little as may be, since it shares the processors with what it measures. It speaks what
the business server answers: a Content-Length and no chunks.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import trio

from consensus.ledger.errors import PeerError
from services.client.errors import Unreachable
from services.client.tasks import single_errors

ANSWER_BYTES_MAX = 4 * 1024 * 1024
ANSWER_TIMEOUT_S = 60
_CHUNK = 256 * 1024
_LENGTH = b"content-length:"


@dataclass(slots=True)
class Answers:
    """What came back: ``latencies_ms`` of each answer in the order of their coming, how many of each status.

    ``seconds`` is the time from the first request to the last answer.
    """

    latencies_ms: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0

    def quantile_ms(self, percent: int) -> float:
        """Return the latency that so many of a hundred answers did not exceed."""
        ordered = sorted(self.latencies_ms) or [0.0]
        return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 1)

    def rate_per_s(self, per_request: int = 1) -> float:
        """Return how many orders a second were answered, with so many in a request."""
        return len(self.latencies_ms) * per_request / max(1e-9, self.seconds)

    def check(self, status: int = 202) -> "Answers":
        """Return itself where every answer has this status.

        Raises:
            PeerError: ``bad_answer``: there are no figures then.
        """
        if set(self.statuses) != {status}:
            raise PeerError("bad_answer", f"answers have the statuses {self.statuses}, {status} was expected")
        return self


def post_request(path: str, body: object, *, token: str = "") -> bytes:
    """Return the bytes of a POST of a JSON body."""
    content = msgspec.json.encode(body)
    head = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"]
    head += [f"authorization: Bearer {token}"] if token else []
    return ("\r\n".join([*head, f"content-length: {len(content)}", "", ""])).encode() + content


def order_of(number: int, *, campaign: str, prefix: str, amount: int = 100, users: int = 1_000) -> dict[str, object]:
    """Return an order as it is posted; orders of one prefix are told apart by their number."""
    user = f"{prefix}-u{number % users}"
    return {"order": f"{prefix}-{number}", "user": user, "campaign": campaign, "amount": amount}


class HttpConnection:
    """One kept-alive connection, one request at a time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body of its answer.

        Raises:
            Unreachable: the connection broke, or no answer came in time: it is unknown what was kept.
            PeerError: ``bad_answer``.
        """
        try:
            with trio.fail_after(ANSWER_TIMEOUT_S):
                await self._stream.send_all(request)
                return await self._receive()
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            raise Unreachable(f"the business server gave no answer: {error!r}") from None

    async def _receive(self) -> tuple[int, bytes]:
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += await self._more(len(data))
        head = data[:end].lower()
        at = head.find(_LENGTH)
        text = head[at + len(_LENGTH) :].split(b"\r\n", 1)[0].strip()
        if at < 0 or not text.isdigit():
            raise PeerError("bad_answer", "an answer without a Content-Length")
        size = end + 4 + int(text)
        if size > ANSWER_BYTES_MAX:
            raise PeerError("bad_answer", f"an answer of {size} bytes")
        parts, have = [data[end + 4 :]], len(data)
        while have < size:
            parts.append(await self._more(have))
            have += len(parts[-1])
        return int(head[9:12]), b"".join(parts)

    async def _more(self, have: int) -> bytes:
        data = await self._stream.receive_some(_CHUNK)
        if not data or have > ANSWER_BYTES_MAX:
            raise Unreachable("the business server has closed the connection")
        return bytes(data)


async def drive(
    host: str, port: int, requests: Iterable[bytes], *, connections: int, seconds: float = float("inf")
) -> Answers:
    """Send requests, one in flight on each connection, until there are no more of them or the time is over.

    Raises:
        Unreachable, PeerError: what a connection raised first; there are no figures then.
    """
    answers = Answers()
    source = iter(requests)
    try:
        streams = [await trio.open_tcp_stream(host, port) for _ in range(connections)]
    except OSError as error:
        raise Unreachable(f"{host}:{port} cannot be reached: {error}") from None
    began = time.perf_counter()
    try:
        with single_errors():
            async with trio.open_nursery() as nursery:
                for stream in streams:
                    nursery.start_soon(_drive_one, HttpConnection(stream), source, answers, began + seconds)
    finally:
        for stream in streams:
            await trio.aclose_forcefully(stream)
    answers.seconds = time.perf_counter() - began
    return answers


async def _drive_one(connection: HttpConnection, source: Iterator[bytes], answers: Answers, ends_at: float) -> None:
    for request in source:
        began = time.perf_counter()
        if began >= ends_at:
            return
        status, _ = await connection.ask(request)
        answers.latencies_ms.append((time.perf_counter() - began) * 1000)
        answers.statuses[status] = answers.statuses.get(status, 0) + 1


def order_requests(orders: Sequence[dict[str, object]], *, per_request: int = 1, token: str = "") -> list[bytes]:
    """Return requests that post these orders, so many in each; one alone goes without a list around it."""
    if per_request == 1:
        return [post_request("/orders", order, token=token) for order in orders]
    starts = range(0, len(orders), per_request)
    return [post_request("/orders", orders[start : start + per_request], token=token) for start in starts]
