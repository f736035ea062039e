"""The chain as the demo uses it: one door for writing through all nodes, and one to each node for looking.

:class:`Chain` is a port, so that tests can put replicas without processes behind the same story;
:class:`RpcChain` is the real one, made of SDK clients.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from consensus.ledger.codec import Value
from consensus.ledger.genesis import Genesis
from consensus.ledger.transaction import EACH, Call, Transaction
from services.client.answers import Answer, hex_of
from services.client.client import Client, open_client
from services.client.keystore import Signer
from services.client.outcome import Final

VALIDITY_MS = 10 * 60_000
BLOCKS_PAGE = 100


@dataclass(frozen=True, slots=True)
class Seal:
    """The newest state that a node can prove, at ``height``; ``root`` has 32 bytes."""

    height: int
    root: bytes


class ReceiptView(Answer, frozen=True):
    """One receipt as a node shows it."""

    status: str
    code: str
    values: list[object]


class BlockView(Answer, frozen=True):
    """A block as a node shows it; ``view`` of its certificate is above 0 when a primary was replaced."""

    height: int
    proposer: str
    transaction_count: int
    view: int


class PrimaryView(Answer, frozen=True):
    """Who proposes next, as a node sees it."""

    height: int
    view: int
    primary: str


class Chain(Protocol):
    """What the demo needs of a chain; ``node`` is a validator's name."""

    def sign(self, signer: Signer, calls: Sequence[Call], *, lane: bytes, sequence: int) -> Transaction:
        """Sign calls that stand each for itself."""
        ...

    async def lane_next(self, signer: Signer, lane: bytes) -> int:
        """Return the number that a lane expects next."""
        ...

    async def submit(self, transactions: Sequence[Transaction]) -> list[str]:
        """Submit to whichever node answers; return a refusal's code for each, empty when accepted."""
        ...

    async def wait_final(self, ids: Sequence[bytes], *, timeout_ms: int) -> list[Final]:
        """Wait until all these are final on the node that answers."""
        ...

    async def finals_at(self, node: str, ids: Sequence[bytes], *, timeout_ms: int) -> list[Final]:
        """Wait until all these are final on one node."""
        ...

    async def receipts_at(self, node: str, transaction_id: bytes) -> list[ReceiptView]:
        """Return a final transaction's receipts; empty when the node knows none."""
        ...

    async def query_at(self, node: str, contract: str, method: str, arguments: dict[str, Value]) -> Value:
        """Ask one node a contract's query."""
        ...

    async def seal_at(self, node: str, key: str, *, height_min: int) -> Seal:
        """Return a node's newest seal of at least this height, after checking its proof of a state key."""
        ...

    async def height_at(self, node: str) -> int:
        """Return a node's height."""
        ...

    async def primary_at(self, node: str) -> PrimaryView:
        """Return who proposes next, as a node sees it."""
        ...

    async def blocks_at(self, node: str, *, first: int, last: int) -> list[BlockView]:
        """Return the blocks of these heights in order."""
        ...

    async def prove(self, transaction_id: bytes) -> int:
        """Check the proofs of all receipts of a transaction and return how many there are."""
        ...


class _Receipts(Answer, frozen=True):
    receipts: list[ReceiptView] = msgspec.field(default_factory=list)


class _Height(Answer, frozen=True):
    height: int


class _Certificate(Answer, frozen=True):
    view: int


class _Block(Answer, frozen=True):
    height: int
    proposer: str
    transaction_count: int
    certificate: _Certificate | None = None


class _Blocks(Answer, frozen=True):
    blocks: list[_Block]


class RpcChain:
    """A chain behind SDK clients; made by :func:`open_chain`."""

    def __init__(self, client: Client, nodes: Mapping[str, Client]) -> None:
        self._client = client
        self._nodes = nodes

    def sign(self, signer: Signer, calls: Sequence[Call], *, lane: bytes, sequence: int) -> Transaction:
        """Sign calls that stand each for itself."""
        return self._client.sign(signer, calls, lane=lane, sequence=sequence, mode=EACH, validity_ms=VALIDITY_MS)

    async def lane_next(self, signer: Signer, lane: bytes) -> int:
        """Return the number that a lane expects next."""
        return await self._client.lane_next(signer.address, lane)

    async def submit(self, transactions: Sequence[Transaction]) -> list[str]:
        """Submit to whichever node answers; return a refusal's code for each, empty when accepted."""
        return [answer.code for answer in await self._client.submit_many(transactions)]

    async def wait_final(self, ids: Sequence[bytes], *, timeout_ms: int) -> list[Final]:
        """Wait until all these are final on the node that answers."""
        return await self._client.wait_final(ids, timeout_ms=timeout_ms)

    async def finals_at(self, node: str, ids: Sequence[bytes], *, timeout_ms: int) -> list[Final]:
        """Wait until all these are final on one node."""
        return await self._nodes[node].wait_final(ids, timeout_ms=timeout_ms)

    async def receipts_at(self, node: str, transaction_id: bytes) -> list[ReceiptView]:
        """Return a final transaction's receipts; empty when the node knows none."""
        params: dict[str, object] = {"ids": [hex_of(transaction_id)], "timeoutMs": 0}
        return (await self._nodes[node].request("tx_wait", params, list[_Receipts]))[0].receipts

    async def query_at(self, node: str, contract: str, method: str, arguments: dict[str, Value]) -> Value:
        """Ask one node a contract's query."""
        return await self._nodes[node].query(contract, method, arguments)

    async def seal_at(self, node: str, key: str, *, height_min: int) -> Seal:
        """Return a node's newest seal of at least this height, after checking its proof of a state key."""
        header = (await self._nodes[node].state(key, height_min=height_min)).verified.header
        return Seal(header.sealed_height, header.sealed_root)

    async def height_at(self, node: str) -> int:
        """Return a node's height."""
        return (await self._nodes[node].request("chain_status", {}, _Height)).height

    async def primary_at(self, node: str) -> PrimaryView:
        """Return who proposes next, as a node sees it."""
        return await self._nodes[node].request("consensus_status", {}, PrimaryView)

    async def blocks_at(self, node: str, *, first: int, last: int) -> list[BlockView]:
        """Return the blocks of these heights in order."""
        found: list[BlockView] = []
        while first <= last:
            limit = min(BLOCKS_PAGE, last - first + 1)
            params: dict[str, object] = {"start": first, "limit": limit, "order": "ascending"}
            page = await self._nodes[node].request("chain_getBlocks", params, _Blocks)
            for block in page.blocks:
                view = block.certificate.view if block.certificate else 0
                found.append(BlockView(block.height, block.proposer, block.transaction_count, view))
            first += max(1, len(page.blocks))
        return found

    async def prove(self, transaction_id: bytes) -> int:
        """Check the proofs of all receipts of a transaction and return how many there are."""
        return len((await self._client.outcome(transaction_id)).receipts)


@asynccontextmanager
async def open_chain(genesis: Genesis, urls: Mapping[str, str], first: Sequence[str]) -> AsyncIterator[RpcChain]:
    """Give the chain behind these nodes; what is not asked of one node goes to those in ``first`` first."""
    order = [*first, *(name for name in urls if name not in first)]
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_client(genesis, [urls[name] for name in order]))
        nodes = {name: await stack.enter_async_context(open_client(genesis, [url])) for name, url in urls.items()}
        yield RpcChain(client, nodes)
