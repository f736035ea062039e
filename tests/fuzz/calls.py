"""JSON-RPC calls against running nodes, by HTTP and WebSocket, made from what ``rpc.discover`` says and bent.

Whatever is asked, a node answers with a result or a typed error, or closes; an answer that admits an internal
error is a finding.
"""

import base64
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec
import trio

from node.network.homes import NodeHome
from tests.fuzz.bombs import JSON_BOMBS
from tests.fuzz.live import Live, alarms_of
from tests.fuzz.mutate import STRANGE_JSON, draw, mutate_bytes, mutate_json, random_bytes
from tests.fuzz.samples import transaction_samples

ANSWER_S_MAX = 2.0
"""How long an answer is waited for; calls that wait are left, as impatient clients do."""
BODY_BYTES_SEEN_MAX = 64 * 1024 * 1024
WORKERS = 6
PIPELINE = 20
FINDINGS_MAX = 20
DEAF_CALLS = 200
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
"""The server speaks HTTP/2 to who begins with it, which nobody here needs."""
LAST_CALL = b'{"jsonrpc":"2.0","id":"last-call","method":"chain_status"}'
"""Said last on a WebSocket; by its answer the messages before it have been taken."""


@dataclass
class CallFuzz:
    """Throws calls at the nodes in turn; ``calls`` counts requests sent, batches by their elements."""

    live: Live
    random: Random
    calls: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    methods: list[dict[str, Any]] = field(default_factory=list)
    words: list[Any] = field(default_factory=list)
    """Values that mean something on this chain: hashes, names, heights, keys."""

    async def learn(self) -> None:
        """Ask the first node for its methods, and for values that exist."""
        home = self.live.nodes[0]
        document = await self._ask(home, "rpc.discover")
        self.methods = document["methods"]
        status = await self._ask(home, "chain_status")
        page = await self._ask(home, "chain_getBlocks", limit=5)
        validators = await self._ask(home, "consensus_validators")
        self.words = [
            *_leaves(status),
            *_leaves(page),
            *_leaves(validators),
            "tokens",
            "rights",
            "membership",
            "events",
        ]
        self.words += ["0x" + raw.hex() for raw in transaction_samples()]
        self.words += ["blocks", "consensus", "lanes/", "contracts/", 0, 1, 2, True, [], {}, "0:0", "1:2147483648"]

    async def throw(self, count: int) -> None:
        """Throw this many calls, by several workers at once."""
        goal = self.calls + count
        async with trio.open_nursery() as nursery:
            for number in range(WORKERS):
                nursery.start_soon(self._work, number, goal)

    async def _work(self, number: int, goal: int) -> None:
        while self.calls < goal:
            home = self.random.choice(self.live.nodes)
            way = self.random.choices((self._by_http, self._by_websocket, self._abuse), (40, 30, 30))[0]
            try:
                with trio.move_on_after(10 * ANSWER_S_MAX):
                    await way(home)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                self.ends["connections broken"] += 1

    async def _ask(self, home: NodeHome, method: str, **params: object) -> Any:
        stream = await trio.open_tcp_stream(home.rpc.host, home.rpc.port)
        async with stream:
            body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
            await stream.send_all(_post(body))
            _, answer = await _read_response(stream, bytearray())
        return json.loads(answer)["result"]

    async def stay_deaf(self, home: NodeHome) -> None:
        """Ask for much over one WebSocket after the other and read none of it, until cancelled (R75)."""
        topics = ("blocks", "transactions", "events", "consensus")
        said = [b'{"jsonrpc":"2.0","id":1,"method":"subscribe","params":["%s"]}' % topic.encode() for topic in topics]
        said += [b'{"jsonrpc":"2.0","id":2,"method":"rpc.discover"}'] * DEAF_CALLS
        while True:
            try:
                async with await trio.open_tcp_stream(home.rpc.host, home.rpc.port) as stream:
                    await stream.send_all(_upgrade())
                    self.ends["deaf subscribers"] += 1
                    while True:  # until the node, or the kernel for it, gives the connection up
                        await stream.send_all(b"".join(_websocket_frame(Random(1), 1, text) for text in said))
            except (OSError, trio.BrokenResourceError):
                await trio.lowlevel.checkpoint()

    # -- what is asked ---------------------------------------------------------------------------------------

    def _request(self) -> dict[str, Any]:
        """Return one request whose parameters fit their names, mostly."""
        method = self.random.choice(self.methods)
        params: dict[str, Any] = {}
        for item in method["params"]:
            if item["required"] or self.random.random() < 0.5:
                params[item["name"]] = self._value(item["name"], item["schema"])
        if "timeoutMs" in params or method["name"] in ("tx_wait", "state_get"):
            params["timeoutMs"] = self.random.choice((0, 1, 50))
        return {"jsonrpc": "2.0", "id": self.random.randrange(1_000), "method": method["name"], "params": params}

    def _value(self, name: str, schema: dict[str, Any]) -> Any:
        random = self.random
        if random.random() < 0.3:
            return random.choice(self.words)
        options = schema.get("anyOf", [schema])
        chosen = random.choice(options)
        if "enum" in chosen:
            return random.choice(chosen["enum"])
        match chosen.get("type"):
            case "boolean":
                return random.random() < 0.5
            case "integer":
                bounds = [chosen.get("minimum", 0), chosen.get("maximum", 5), 0, 1, 3, 2**53 - 1, -1, 2**64 - 1]
                return random.choice(bounds)
            case "string" if "pattern" in chosen:
                texts = [word for word in self.words if isinstance(word, str)]
                return random.choice(
                    (*texts[:200], "0x" + random.randbytes(32).hex(), "0x" + random.randbytes(20).hex())
                )
            case "array":
                return [self._value(name, chosen.get("items", {})) for _ in range(random.choice((0, 1, 2, 30)))]
            case "object":
                return {random.choice(("a", "unit", "account", "")): self._value(name, {}) for _ in range(3)}
            case "null":
                return None
            case _:
                return random.choice(self.words)

    def _body(self) -> tuple[bytes, int]:
        """Return a body and how many calls it holds."""
        chance = self.random.random()
        if chance < 0.55:
            return json.dumps(self._request()).encode(), 1
        if chance < 0.80:
            return mutate_json(self.random, self._request()), 1
        if chance < 0.90:
            batch = [self._request() for _ in range(self.random.choice((2, 5, 20)))]
            return mutate_json(self.random, batch) if self.random.random() < 0.3 else json.dumps(batch).encode(), len(
                batch
            )
        if chance < 0.91:
            return self.random.choice(list(JSON_BOMBS.values())), 1
        if chance < 0.95:
            text = self.random.choice(STRANGE_JSON)
            return b'{"jsonrpc":"2.0","id":1,"method":"' + b"x" * self.random.choice(
                (1, 70)
            ) + b'","params":' + text.encode("utf-8", "surrogatepass") + b"}", 1
        return random_bytes(self.random), 1

    def _check(self, answer: bytes) -> None:
        for document in _documents(answer):
            error = document.get("error")
            self.answers[error["data"]["code"] if error else "result"] += 1
        alarm = alarms_of(answer)
        if alarm and len(self.findings) < FINDINGS_MAX:
            self.findings.append(alarm)

    # -- by HTTP ---------------------------------------------------------------------------------------------

    async def _by_http(self, home: NodeHome) -> None:
        """Several calls over one connection, kept alive."""
        buffer = bytearray()
        async with await trio.open_tcp_stream(home.rpc.host, home.rpc.port) as stream:
            for _ in range(PIPELINE):
                body, count = self._body()
                await stream.send_all(_post(body))
                self.calls += count
                with trio.move_on_after(ANSWER_S_MAX) as scope:
                    status, answer = await _read_response(stream, buffer)
                    self.ends[f"http {status}"] += 1
                    self._check(answer)
                    if status not in (200, 204, 400, 403, 408, 413, 415):
                        self.findings.append(f"http {status} to {body[:200]!r}")
                if scope.cancelled_caught or status != 200:
                    self.ends["left without an answer"] += scope.cancelled_caught
                    return

    async def _abuse(self, home: NodeHome) -> None:
        """One connection that breaks HTTP in some way; the node may answer 4xx or close, and lives on."""
        body, _ = self._body()
        body = body[:4_096]
        async with await trio.open_tcp_stream(home.rpc.host, home.rpc.port) as stream:
            await stream.send_all(self.random.choice(_ABUSES)(self.random, body))
            self.calls += 1
            if self.random.random() < 0.5:
                await stream.send_eof()
            with trio.move_on_after(0.2):
                answer = await stream.receive_some(4_096)
                self.ends[f"abuse {answer[9:12].decode('latin-1') or 'closed'}"] += 1
                if answer[9:10] == b"5" and answer.startswith(b"HTTP"):
                    self.findings.append(f"a broken request is answered {answer[:200]!r}")

    # -- by WebSocket ----------------------------------------------------------------------------------------

    async def _by_websocket(self, home: NodeHome) -> None:
        """One WebSocket with several messages in a row, its answers read beside, its end sometimes rude."""
        async with await trio.open_tcp_stream(home.rpc.host, home.rpc.port) as stream:
            await stream.send_all(_upgrade())
            head = await stream.receive_some(4_096)
            if not head.startswith(b"HTTP/1.1 101"):
                self.ends["no websocket"] += 1
                return
            async with trio.open_nursery() as nursery:
                answered = trio.Event()
                nursery.start_soon(self._read_websocket, stream, answered, nursery.cancel_scope)
                try:
                    for _ in range(PIPELINE):
                        await stream.send_all(self._message())
                    if self.random.random() < 0.8:
                        await stream.send_all(_websocket_frame(Random(1), 1, LAST_CALL))
                        with trio.move_on_after(ANSWER_S_MAX):
                            await answered.wait()
                    if self.random.random() < 0.3:
                        await stream.send_all(mutate_bytes(self.random, self._message(), ()))
                        with trio.move_on_after(0.1):
                            await trio.sleep_forever()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self.ends["websockets closed by the node"] += 1
                nursery.cancel_scope.cancel()
        self.ends["websockets"] += 1

    async def _read_websocket(self, stream: trio.SocketStream, answered: trio.Event, scope: trio.CancelScope) -> None:
        seen = bytearray()
        try:
            while data := await stream.receive_some(1 << 16):
                seen += data
                if b'"internal"' in data and len(self.findings) < FINDINGS_MAX:
                    place = bytes(seen).rfind(b'"internal"')
                    self.findings.append(f"websocket: {bytes(seen)[max(0, place - 300) : place + 50]!r}")
                if b"last-call" in seen:
                    answered.set()
                del seen[:-400]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.ends["websockets broken"] += 1
        scope.cancel()

    def _message(self) -> bytes:
        chance = self.random.random()
        self.calls += 1
        if chance < 0.7:
            body, count = self._body()
            self.calls += count - 1
            return _websocket_frame(self.random, 1, body[: 1 << 16])
        if chance < 0.9:
            raws = [draw(self.random, transaction_samples()) for _ in range(self.random.randrange(4))]
            return _websocket_frame(self.random, 2, draw(self.random, [_binary(self.random, raws)]))
        opcode = self.random.choice((0, 1, 2, 3, 8, 9, 10, 15))
        return _websocket_frame(self.random, opcode, random_bytes(self.random)[: self.random.choice((5, 125, 4_096))])


def _documents(answer: bytes) -> list[dict[str, Any]]:
    """Return the single answers of a body; none for one that is not JSON-RPC."""
    if not answer.startswith((b"{", b"[")):
        return []
    documents = json.loads(answer)
    return [item for item in (documents if isinstance(documents, list) else [documents]) if "jsonrpc" in item]


def _leaves(document: Any) -> list[Any]:
    match document:
        case dict():
            return [leaf for key, item in document.items() for leaf in _leaves(item)]
        case list():
            return [leaf for item in document for leaf in _leaves(item)]
        case _:
            return [document]


def _binary(random: Random, raws: list[bytes]) -> bytes:
    return msgspec.msgpack.encode([random.randrange(100), raws, random.choice((0, 1, 100))])


def _post(body: bytes, *, host: bytes = b"localhost", length: bytes | None = None, extra: bytes = b"") -> bytes:
    size = b"%d" % len(body) if length is None else length
    head = b"POST /rpc HTTP/1.1\r\nhost: " + host + b"\r\ncontent-type: application/json\r\ncontent-length: " + size
    return head + b"\r\n" + extra + b"\r\n" + body


def _upgrade() -> bytes:
    key = base64.b64encode(os.urandom(16))
    head = b"GET /ws HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    return head + b"sec-websocket-version: 13\r\nsec-websocket-key: " + key + b"\r\n\r\n"


def _websocket_frame(random: Random, opcode: int, payload: bytes) -> bytes:
    """Return a masked frame; seldom with a wrong mask bit, reserved bits, a length that is not its own."""
    bits = 0x80 if random.random() < 0.95 else random.choice((0x00, 0xC0, 0xF0))
    mask = random.randbytes(4)
    size = len(payload) if random.random() < 0.99 else random.choice((0, 2**31, 2**63, 2**64 - 1))
    if size < 126:
        head = bytes([bits | opcode, 0x80 | size])
    elif size < 1 << 16:
        head = bytes([bits | opcode, 0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([bits | opcode, 0x80 | 127]) + size.to_bytes(8, "big")
    repeated = mask * (len(payload) // 4 + 1)
    masked = (int.from_bytes(payload, "big") ^ int.from_bytes(repeated[: len(payload)], "big")).to_bytes(
        len(payload), "big"
    )
    return head + mask + masked


_ABUSES: tuple[Callable[[Random, bytes], bytes], ...] = (
    lambda random, body: _post(
        body, host=random.choice((b"evil.example", b"localhost.evil", b"", b"127.0.0.1@evil", b"\xff"))
    ),
    lambda random, body: _post(body, extra=b"origin: http://evil.example\r\n"),
    lambda random, body: _post(body, extra=b"host: localhost\r\n"),
    lambda random, body: _post(body, length=random.choice((b"-1", b"1e9", b"99999999999999999999", b"", b"4, 5"))),
    lambda random, body: _post(body, length=b"%d" % (len(body) + 10)),
    lambda random, body: _post(body, length=b"999999999"),
    lambda random, body: _post(body, extra=b"transfer-encoding: chunked\r\n"),
    lambda random, body: _post(b"zz\r\n" + body, extra=b"transfer-encoding: chunked\r\n"),
    lambda random, body: _post(body).replace(b"application/json", b"text/plain"),
    lambda random, body: _post(body).replace(b"POST", random.choice((b"PUT", b"DELETE", b"GET", b"CONNECT", b"\0"))),
    lambda random, body: _post(body).replace(
        b"/rpc", random.choice((b"/../etc/passwd", b"/ws", b"*", b"/" + b"a" * 9_000))
    ),
    lambda random, body: _post(body)[: random.randrange(1, 200)],
    lambda random, body: _post(body, extra=b"x: " + b"y" * 70_000 + b"\r\n"),
    lambda random, body: _post(body, extra=b"a: b\r\n" * 3_000),
    lambda random, body: mutate_bytes(random, _post(body), ()),
    lambda random, body: mutate_bytes(random, _upgrade(), ()),
    lambda random, body: _upgrade() + body,
    lambda random, body: HTTP2_PREFACE + body,
    lambda random, body: HTTP2_PREFACE + b"".join(_http2_frame(random) for _ in range(random.randrange(1, 9))),
    lambda random, body: b"\x16\x03\x01" + body,
    lambda random, body: random_bytes(random),
)


def _http2_frame(random: Random) -> bytes:
    payload = random.choice((b"", random.randbytes(random.choice((1, 4, 5, 8, 40))), b"\x82\x86\x84\x41\x09localhost"))
    stream = random.choice((0, 1, 1, 3, 2, 2**31 - 1)).to_bytes(4, "big")
    return (
        len(payload).to_bytes(3, "big")
        + bytes([random.randrange(12), random.choice((0, 1, 4, 5, 255))])
        + stream
        + payload
    )


async def _read_response(stream: trio.SocketStream, buffer: bytearray) -> tuple[int, bytes]:
    """Return status and body of one response; ``buffer`` keeps what came beyond it."""
    while b"\r\n\r\n" not in buffer:
        await _more(stream, buffer)
    head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
    size = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            size = int(value)
    del buffer[: len(buffer) - len(rest)]
    while len(buffer) < size:
        await _more(stream, buffer)
    body = bytes(buffer[:size])
    del buffer[:size]
    return int(head[9:12]), body


async def _more(stream: trio.SocketStream, buffer: bytearray) -> None:
    data = await stream.receive_some(1 << 16)
    if not data or len(buffer) > BODY_BYTES_SEEN_MAX:
        raise trio.BrokenResourceError("the node closed the connection")
    buffer += data
