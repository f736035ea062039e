"""A node without consensus whose chain has payees, and environments on real sockets that do as a test tells them."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.payees import (
    Answer,
    AskQuote,
    Mode,
    Query,
    QueryBody,
    answer_codec,
    ask_codec,
    query_codec,
    query_hash,
)
from consensus.ledger.states import ProvenStates, StatesChecker
from node.environment import EnvironmentLink
from node.payees import PayeeDesk, Resolution
from node.proofs import ProofMaker
from node.rpc.listener import open_unix_socket
from services.payee.enclave import Environment
from services.payee.sealing import ExchangeKey, open_answer
from tests.contracts.domain.payees import ACCOUNT_KEYS, MEASUREMENT, VOTE_KEYS, identity
from tests.node.rpc.support import TestNode, make_node
from tests.node.support import Consortium
from tests.payee.resolving import PayeeWorld, environment_keys

EXCHANGE = ExchangeKey.from_secret(bytes(31) + b"\7")
SETTINGS = 'name = "bank-a"\nsocket = "run/environment.sock"\n'

Stream = trio.SocketStream
Serve = Callable[["Puppet", Stream], Awaitable[None]]


async def receive(stream: Stream) -> bytes:
    """Return the next frame's content; EOFError at the end."""
    size = int.from_bytes(await exactly(stream, 4), "big")
    return await exactly(stream, size)


async def exactly(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await stream.receive_some(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


async def honest(puppet: "Puppet", stream: Stream) -> None:
    """Answer all asks as an environment does."""
    while True:
        await stream.send_all(frame(puppet.tell(await receive(stream))))


@dataclass
class Puppet:
    """An environment with its real keys; ``serve`` is what it does with each connection."""

    environment: Environment
    serve: Serve = honest
    connections: int = 0
    asks: list[bytes] = field(default_factory=list)
    """What it was asked beside quotes, in order."""

    def tell(self, ask: bytes) -> bytes:
        """Answer truthfully."""
        if not isinstance(ask_codec.decode_untrusted(ask), AskQuote):
            self.asks.append(ask)
        return self.environment.tell(ask)

    async def run(self, path: Path, *, task_status: trio.TaskStatus[None]) -> None:
        """Listen until cancelled."""
        listening = open_unix_socket(path)
        try:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
            await trio.serve_listeners(self._handle, [listener], task_status=task_status)  # type: ignore[arg-type]
        finally:
            listening.close()
            os.unlink(path)

    async def _handle(self, stream: Stream) -> None:
        self.connections += 1
        async with stream:
            with suppress(EOFError, trio.BrokenResourceError):
                await self.serve(self, stream)


@dataclass
class Site:
    """A node, its environment, and everybody's keys."""

    node: TestNode
    world: PayeeWorld
    home: Path
    nursery: trio.Nursery
    link: EnvironmentLink
    puppet: Puppet
    _taken: int = 0
    _running: trio.CancelScope | None = None

    @property
    def desk(self) -> PayeeDesk:
        """The node's desk for payees."""
        return self.node.backend.payees

    @property
    def socket(self) -> Path:
        """Where the environment listens."""
        return self.home / "run" / "environment.sock"

    def take(self, *, is_sealed: bool = True) -> None:
        """Bring to the node's chain what was called in the world since, a block each, then a quiet one."""
        sent = self.world.chain.sent
        for transaction in sent[self._taken :]:
            self.node.commit([transaction])
        self._taken = len(sent)
        if is_sealed:
            self.node.commit([])

    def configure(self, text: str = SETTINGS) -> None:
        """Write ``environment.toml``."""
        (self.home / "environment.toml").write_text(text)

    async def start(self, puppet: Puppet | None = None) -> None:
        """Let an environment listen."""
        self._running = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            assert self._running is not None
            with self._running:
                await (puppet or self.puppet).run(self.socket, task_status=task_status)

        await self.nursery.start(run)

    def kill(self) -> None:
        """End the environment that listens, with its connections."""
        assert self._running is not None
        self._running.cancel()

    def query(
        self,
        *,
        server: str = "wallet-p",
        merchant: int = 0,
        mode: Mode = Mode.TARGET,
        signer: PrivateKey | None = None,
        nonce: int = 0,
        chain_id: bytes | None = None,
    ) -> Query:
        """Return a signed query."""
        chain = self.node.chain
        body = QueryBody(
            chain_id or chain.chain_id,
            server,
            identity(merchant),
            mode,
            EXCHANGE.public,
            nonce.to_bytes(16, "big"),
            self.node.clock.ms,
        )
        key = signer or self.world.platforms[server]
        return Query(body, key.sign(Purpose.PAYEE_QUERY, chain.chain_id, query_hash(body)), None)

    async def resolve(self, query: Query | None = None) -> Resolution:
        """Ask the node."""
        return await self.desk.resolve(query_codec.encode(query or self.query()))

    def proven(self, resolution: Resolution) -> ProvenStates:
        """Return what a resolution proves to whoever has the genesis document."""
        return StatesChecker(self.world.chain.genesis).check_untrusted(resolution.states)

    def opened(self, resolution: Resolution) -> tuple[str, list[tuple[str, bytes | None]]]:
        """Return what the answer says: its code, and each platform's plaintext."""
        answer: Answer = answer_codec.decode_untrusted(resolution.answer)
        content = open_answer(
            answer.sealed,
            query=answer.query,
            environment=answer.environment,
            height=answer.height,
            exchange_key=answer.exchange_key,
            own=EXCHANGE,
        )
        return content.code, [
            (one.server, None if one.content is None else one.content.plaintext) for one in content.served
        ]


@asynccontextmanager
async def make_site(folder: Path) -> AsyncIterator[Site]:
    """Give a node that has two platforms' records of merchant 0 and an environment that listens and is registered."""
    world = PayeeWorld()
    world.add("wallet-p")
    world.add("wallet-q", is_shareable=True)
    consortium = Consortium(world.chain.genesis, VOTE_KEYS, ACCOUNT_KEYS)
    with make_node(folder, consortium=consortium) as node:
        link = EnvironmentLink(folder / "environment.toml", node.chain.chain_id)
        node.backend.payees = PayeeDesk(node.chain, ProofMaker(node.chain), link, node.backend.settled)
        environment = Environment(
            world.chain.genesis,
            "bank-a",
            environment_keys("bank-a"),
            measurement=MEASUREMENT,
            clock_ms=lambda: node.clock.ms,
        )
        async with trio.open_nursery() as nursery:
            site = Site(node, world, folder, nursery, link, Puppet(environment))
            nursery.start_soon(link.run)
            site.take()
            site.configure()
            await site.start()
            yield site
            nursery.cancel_scope.cancel()
