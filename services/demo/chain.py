"""The chain as the demo uses it: one door for writing through all nodes, and one to each node for looking."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import msgspec

from consensus.ledger.codec import Value
from consensus.ledger.genesis import Genesis
from services.client.answers import Answer, hex_of
from services.client.client import Client, open_client
from services.client.keystore import Signer
from services.client.outcome import Outcome

BLOCKS_PAGE = 100
RECEIPTS_PAGE = 50


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


class Chain:
    """A chain behind SDK clients, ``client`` for all nodes together; made by :func:`open_chain`."""

    def __init__(self, client: Client, nodes: Mapping[str, Client]) -> None:
        self.client = client
        self._nodes = nodes

    async def call(self, signer: Signer, method: str, arguments: dict[str, Value]) -> Outcome:
        """Call a method of the rights contract and wait for its proven receipt, which must be a success.

        Raises:
            Refused: the network or the contract said no.
        """
        return (await self.client.call(signer, "rights", method, arguments)).check()

    async def ask(self, method: str, arguments: dict[str, Value]) -> Value:
        """Ask a query of the rights contract."""
        return await self.client.query("rights", method, arguments)

    async def receipts_at(self, node: str, ids: Sequence[bytes]) -> list[tuple[ReceiptView, ...]]:
        """Return the receipts that one node has of each of these transactions; none where it knows none."""
        found: list[tuple[ReceiptView, ...]] = []
        for start in range(0, len(ids), RECEIPTS_PAGE):
            page = [hex_of(item) for item in ids[start : start + RECEIPTS_PAGE]]
            params: dict[str, object] = {"ids": page, "timeoutMs": 0}
            answers = await self._nodes[node].request("tx_wait", params, list[_Receipts])
            found += [tuple(answer.receipts) for answer in answers]
        return found

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
        return len((await self.client.outcome(transaction_id)).receipts)


@asynccontextmanager
async def open_chain(genesis: Genesis, urls: Mapping[str, str], first: Sequence[str]) -> AsyncIterator[Chain]:
    """Give the chain behind these nodes; what is not asked of one node goes to those in ``first`` first."""
    order = [*first, *(name for name in urls if name not in first)]
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_client(genesis, [urls[name] for name in order]))
        nodes = {name: await stack.enter_async_context(open_client(genesis, [url])) for name, url in urls.items()}
        yield Chain(client, nodes)
