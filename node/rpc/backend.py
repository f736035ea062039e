"""What the RPC needs of a node: the port that ``node_backend`` and the tests' in-memory node fill."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from consensus.ledger.block import Block
from consensus.ledger.codec import Value
from consensus.ledger.ids import Address, ChainId, Hash, NodeName
from consensus.ledger.proof import Proof
from consensus.ledger.receipt import Receipt
from consensus.ledger.transaction import Transaction
from consensus.ledger.validators import Certificate
from consensus.pbft.events import EngineStatus, Head
from contracts.runtime.registry import Description
from contracts.runtime.state import StateReader
from node.payees import PayeeDesk
from node.reader import HistoryEntry
from node.rpc.doctor import Facts
from node.rpc.explain import Explanation
from node.storage.layout import Location
from p2p.network import PeerStatus


@dataclass(frozen=True, slots=True)
class Committed:
    """A final block with all that its commit stored. ``certificate`` is None for genesis alone.

    ``transaction_ids`` and ``receipt_counts`` go with ``block.transactions``; ``receipts`` holds the
    receipts of all transactions one after the other.
    """

    block: Block
    certificate: Certificate | None
    transaction_ids: tuple[Hash, ...]
    receipt_counts: tuple[int, ...]
    receipts: tuple[Receipt, ...]


@dataclass(frozen=True, slots=True)
class Submission:
    """What the mempool says to one transaction.

    ``code`` is empty when it is accepted or already final; ``height`` is set when it is final. The id is
    empty for bytes that are no transaction.
    """

    transaction_id: bytes
    code: str = ""
    message: str = ""
    height: int | None = None


class FinalReads(Protocol):
    """Committed blocks and where to find what in them. Nothing above the head is ever returned."""

    def committed(self, height: int) -> Committed | None:
        """Return a block with certificate and receipts, or None above the head and for pruned heights."""
        ...

    def height_of(self, block_hash: bytes) -> int | None:
        """Return the height of the committed block with this hash."""
        ...

    def locate(self, transaction_id: bytes) -> Location | None:
        """Return where a committed transaction stands."""
        ...

    def history(self, address: Address, *, before: tuple[int, int] | None, limit: int) -> list[HistoryEntry]:
        """Return transactions that an account sent, newest first, below the place (height, index)."""
        ...

    def heights_with_event(self, contract: str, name: str, *, first_height: int) -> Iterator[int]:
        """Yield in ascending order the heights from ``first_height`` on that hold such an event."""
        ...


class Backend(Protocol):
    """A node as the RPC sees it. Reads are of committed data, quick, and never block on consensus."""

    @property
    def chain_id(self) -> ChainId:
        """The chain served."""
        ...

    @property
    def network_name(self) -> str:
        """The name in the genesis document."""
        ...

    @property
    def node_name(self) -> NodeName:
        """The node's own name."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether the node has opened its data and takes part."""
        ...

    @property
    def final(self) -> FinalReads:
        """Reads of committed blocks."""
        ...

    @property
    def payees(self) -> PayeeDesk:
        """Queries for payees."""
        ...

    def head(self) -> Head:
        """Return the newest committed block's header, with the validators of the next."""
        ...

    async def wait_above(self, height: int) -> None:
        """Return once the head is above this height."""
        ...

    async def settled(self) -> None:
        """Return once no block is being written, so that head, state and indexes agree (R76)."""
        ...

    async def submit(self, transactions: Sequence[bytes]) -> list[Submission]:
        """Offer transactions to the mempool, in order; answers in the same order."""
        ...

    def explain(self, transaction_id: bytes) -> Explanation:
        """Say where a transaction is that is not committed."""
        ...

    def state(self) -> StateReader:
        """Return a view of the newest committed state; used before the next checkpoint, then dropped."""
        ...

    def query(self, contract: str, method: str, arguments: dict[str, Value]) -> Value:
        """Run a contract's query on the newest state.

        Raises:
            Revert: with the contract's or the runtime's code.
        """
        ...

    def simulate(self, transaction: Transaction) -> list[Receipt]:
        """Execute a transaction on the newest state and forget the effects.

        Raises:
            PeerError: with the code by which a block could not hold it.
        """
        ...

    def contracts(self) -> list[Description]:
        """Return the active contracts' descriptions, by name."""
        ...

    def prove_block(self, height: int) -> Proof:
        """Return the proof that a block is final.

        Raises:
            LocalError: ``not_found``, or ``genesis_unsigned`` for block 0.
        """
        ...

    def prove_transaction(self, location: Location) -> Proof:
        """Return the proof that a transaction stands in its block."""
        ...

    def prove_receipt(self, location: Location, receipt_index: int) -> Proof:
        """Return the proof of the receipt at this place among its transaction's receipts."""
        ...

    def prove_state(self, key: bytes) -> Proof:
        """Return the proof of a state value, or its absence, at the sealed height."""
        ...

    def consensus(self) -> EngineStatus:
        """Return the engine's state."""
        ...

    def facts(self) -> Facts:
        """Return what the doctor judges."""
        ...

    async def wait_consensus(self, seen: int) -> int:
        """Return the number of changes of height or view since the start, once it is above ``seen``."""
        ...

    def peers(self) -> list[PeerStatus]:
        """Return all other nodes, connected or not, by name."""
        ...

    def stages(self) -> Mapping[str, float]:
        """Return the seconds of processor time that each stage of the node's work took so far."""
        ...

    def gauges(self) -> dict[str, int]:
        """Return figures for ``/metrics``, for example ``mempool_transactions``; names in snake_case."""
        ...
