"""A node without consensus behind a real RPC server: real chain, LevelDB, mempool, sockets; tests make the blocks."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import trio
import wsproto
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, RejectConnection, Request, TextMessage

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import NodeName
from consensus.ledger.transaction import Transaction, make_call
from consensus.pbft.events import EngineStatus, Phase
from node.chain import Chain
from node.driver import Commit
from node.intake import Answer
from node.mempool import Mempool, PoolLimits
from node.rpc.node_backend import NodeBackend
from node.rpc.server import RpcConfig, serve_rpc
from node.storage.leveldb import LevelStore
from node.votes import VoteReport
from p2p.network import PeerStatus
from tests.node.support import GENESIS_TIME_MS, Consortium, extend, make_consortium, make_executor

CONSORTIUM = make_consortium()
TIMEOUT_S = 20


class FixedClock:
    """Time as the test sets it."""

    def __init__(self) -> None:
        self.ms = GENESIS_TIME_MS

    def wall_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


@dataclass
class TestNode:
    """Everything of a node but consensus and network."""

    __test__ = False

    store: LevelStore
    consortium: Consortium = CONSORTIUM
    clock: FixedClock = field(default_factory=FixedClock)
    view: int = 0
    peer_list: list[PeerStatus] = field(default_factory=list)
    is_ready: bool = True
    certified_height: int = 0
    limits: PoolLimits = field(default_factory=PoolLimits)

    def __post_init__(self) -> None:
        self.chain = Chain(self.store, self.consortium.genesis, make_executor())
        self.mempool = Mempool(self.chain.executor, self.chain.verifier, self.limits)
        self.backend = NodeBackend(
            name=NodeName("node-0"),
            chain=self.chain,
            mempool=self.mempool,
            clock=self.clock,
            submit=self._submit,
            engine_status=self.status,
            votes=lambda: VoteReport({}, {}, None, ()),
            peers=lambda: self.peer_list,
            is_ready=lambda: self.is_ready,
            certified_height=lambda: self.certified_height,
        )

    def _submit(self, raws: Sequence[bytes]) -> list[Answer]:
        return [self._submit_one(raw) for raw in raws]

    def _submit_one(self, raw: bytes) -> Answer:
        block = self.chain.next_block("", self.chain.head.header.time_ms + 1)
        try:
            self.mempool.add_untrusted(raw, self.chain.state, block, now_ms=self.clock.monotonic_ms())
            return Answer(self.chain.verifier.decode_untrusted(raw).id)
        except PeerError as error:
            try:
                transaction = self.chain.verifier.decode_untrusted(raw)
            except PeerError:
                return Answer(None, error.code, error.message)
            location = self.chain.reader.locate(transaction.id)
            if location is not None:
                return Answer(transaction.id, height=location.height)
            return Answer(transaction.id, error.code, error.message, valid_until_ms=transaction.body.valid_until_ms)

    def meet(self, *names: str) -> None:
        """Be connected with these nodes and no others."""
        self.peer_list = [PeerStatus(NodeName(name), "connected", "127.0.0.1:1", 0, "") for name in names]

    def commit(self, transactions: Sequence[Transaction] | None = None) -> int:
        """Make a block of the given transactions, or of what the mempool holds, and return its height."""
        time_ms = self.chain.head.header.time_ms + 10
        if transactions is None:
            transactions = self.mempool.select(count_max=500, bytes_max=1 << 20, calls_max=4_000, time_ms=time_ms)
        candidate = extend(self.chain, self.store, self.consortium, list(transactions))
        self.mempool.committed(candidate.transactions)
        self.mempool.accounts_changed(candidate.execution.writes, self.chain.state)
        self.mempool.expire(time_ms)
        self.backend.on_commit(Commit(candidate, self.consortium.certify(candidate)))
        return candidate.block.height

    def status(self) -> EngineStatus:
        """A healthy engine in the height after the head."""
        validators = self.chain.head.validators
        height = self.chain.head.header.height + 1
        return EngineStatus(
            height=height,
            view=self.view,
            phase=Phase.OPEN,
            primary=validators.primary(height, self.view),
            is_validator=True,
            validators=validators.names,
            quorum=validators.quorum,
            block_hash=None,
            prepares=(),
            commits=(),
            view_changes={},
            timeout_ms=1_000,
            deadline_in_ms=None,
            suspected=(),
            evidence=None,
            peers={},
        )

    def address(self, name: str) -> bytes:
        return self.consortium.account_keys[name].public.address

    def money(self) -> Transaction:
        """The unit ``cny``, with 1,000,000 of it in the hands of user-b."""
        define = make_call("tokens", "define", {"unit": "cny", "decimals": 2, "description": "yuan"})
        give = make_call("tokens", "issue", {"unit": "cny", "to": self.address("user-b"), "amount": 1_000_000})
        return self.consortium.sign("bank-a", [define, give])

    def transfer(self, sequence: int, amount: int = 1) -> Transaction:
        call = make_call("tokens", "transfer", {"unit": "cny", "to": self.address("user-e"), "amount": amount})
        return self.consortium.sign("user-b", [call], sequence=sequence)


@contextmanager
def make_node(
    folder: Path, limits: PoolLimits | None = None, consortium: Consortium = CONSORTIUM
) -> Iterator[TestNode]:
    """Give a node with its data in a folder."""
    store = LevelStore.open(folder / "data")
    try:
        yield TestNode(store, consortium, limits=limits or PoolLimits())
    finally:
        store.close()


@dataclass
class Server:
    """A running server."""

    node: TestNode
    port: int
    stopping: trio.Event
    stopped: trio.Event

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def post(self, content: bytes | str, **headers: str) -> httpx.Response:
        """Post a body to /rpc."""
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            return await client.post(
                self.url + "/rpc", content=content, headers={"content-type": "application/json", **headers}
            )

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            return await client.get(self.url + path)

    async def call(self, method: str, /, **params: object) -> Any:
        """Return a call's whole answer."""
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        return (await self.post(body)).json()

    async def result(self, method: str, /, **params: object) -> Any:
        """Return the result of a call that succeeds."""
        answer = await self.call(method, **params)
        assert "result" in answer, answer
        return answer["result"]

    async def code(self, method: str, /, **params: object) -> str:
        """Return the code of a call that fails."""
        answer = await self.call(method, **params)
        assert "error" in answer, answer
        code: str = answer["error"]["data"]["code"]
        return code


@asynccontextmanager
async def serving(node: TestNode, config: RpcConfig | None = None) -> AsyncIterator[Server]:
    """Run the server for the time of the block; nothing may take longer than 20 s."""
    stopping, stopped = trio.Event(), trio.Event()
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[int]) -> None:
                await serve_rpc(node.backend, config or RpcConfig(), stopping=stopping, task_status=task_status)
                stopped.set()

            port = await nursery.start(serve)
            yield Server(node, port, stopping, stopped)
            stopping.set()


class WebSocketClient:
    """A WebSocket by hand, so that a test decides when it reads."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self.waiting: list[Any] = []
        self.status = 0
        self.close_code: int | None = None
        self._part: str | bytes = ""

    async def handshake(self, host: str, headers: list[tuple[bytes, bytes]]) -> None:
        await self.stream.send_all(self.protocol.send(Request(host=host, target="/ws", extra_headers=headers)))
        while not self.status:
            await self._receive_some()

    async def _receive_some(self) -> bool:
        data = await self.stream.receive_some(1 << 16)
        self.protocol.receive_data(bytes(data) or None)
        for event in self.protocol.events():
            if isinstance(event, AcceptConnection):
                self.status = 101
            elif isinstance(event, RejectConnection):
                self.status = event.status_code
            elif isinstance(event, TextMessage | BytesMessage):
                self._part = event.data if not self._part else self._part + event.data  # type: ignore[operator]
                if event.message_finished:
                    part, self._part = self._part, ""
                    self.waiting.append(json.loads(part) if isinstance(part, str) else bytes(part))
            elif isinstance(event, Ping):
                await self.stream.send_all(self.protocol.send(event.response()))
            elif isinstance(event, CloseConnection):
                self.close_code = event.code
        return bool(data)

    async def next(self) -> Any:
        """Return the next message: parsed JSON, or bytes; None when the socket ended."""
        while not self.waiting:
            if self.close_code is not None or not await self._receive_some():
                return None
        return self.waiting.pop(0)

    async def send(self, method: str, request_id: int = 1, **params: object) -> None:
        text = json.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        await self.send_text(text)

    async def send_text(self, text: str) -> None:
        await self.stream.send_all(self.protocol.send(TextMessage(text)))

    async def send_bytes(self, data: bytes) -> None:
        await self.stream.send_all(self.protocol.send(BytesMessage(data)))

    async def call(self, method: str, /, **params: object) -> Any:
        """Send a request and return its answer, which must be the next message."""
        await self.send(method, **params)
        return await self.next()


@asynccontextmanager
async def websocket(
    server: Server, *, host: str = "", headers: list[tuple[bytes, bytes]] | None = None, receive_bytes: int = 0
) -> AsyncIterator[WebSocketClient]:
    """Open a WebSocket; ``receive_bytes`` makes the socket's receive buffer small."""
    sock = trio.socket.socket()
    if receive_bytes:
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_bytes)
    await sock.connect(("127.0.0.1", server.port))
    stream = trio.SocketStream(sock)
    async with stream:
        client = WebSocketClient(stream)
        await client.handshake(host or f"127.0.0.1:{server.port}", headers or [])
        yield client
