"""The RPC's view of a real node: its chain, pool, engine and network."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence

import trio

from consensus.ledger.codec import Value
from consensus.ledger.ids import Address, ChainId, Hash, NodeName
from consensus.ledger.proof import Proof
from consensus.ledger.receipt import Receipt
from consensus.ledger.transaction import Transaction
from consensus.pbft.events import EngineStatus, Evidence, Head
from contracts.runtime.execution import BlockContext
from contracts.runtime.registry import Description
from contracts.runtime.state import StateReader
from node.chain import Chain
from node.clock import Clock
from node.driver import Commit
from node.environment import EnvironmentLink
from node.intake import Answer
from node.mempool import Mempool
from node.payees import PayeeDesk
from node.proofs import ProofMaker
from node.reader import HistoryEntry
from node.rpc.backend import Committed, Submission
from node.rpc.doctor import Facts
from node.rpc.explain import UNKNOWN, Explanation, explain_gone, explain_refusal, explain_waiting
from node.storage.layout import Location
from node.votes import Standing, VoteReport
from p2p.network import PeerStatus

SUBMIT_SLICE = 64
"""Transactions admitted at a stretch, before consensus gets its turn again."""
REFUSALS_REMEMBERED_MAX = 4_096
FRESH_BLOCKS_MAX = 2
"""Blocks kept as they were committed: whoever follows the chain need not read and decode them again."""


class NodeReads:
    """Reads of a chain's store, none of which sees a block that is still being written."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._fresh: dict[int, Committed] = {}

    def keep_fresh(self, commit: Commit) -> None:
        """Remember a block that has just become final, for those who ask at once."""
        block, execution = commit.candidate.block, commit.candidate.execution
        ids = tuple(transaction.id for transaction in commit.candidate.transactions)
        receipts = tuple(execution.receipts)
        self._fresh[block.height] = Committed(block, commit.certificate, ids, tuple(execution.counts), receipts)
        if len(self._fresh) > FRESH_BLOCKS_MAX:
            del self._fresh[next(iter(self._fresh))]

    def committed(self, height: int) -> Committed | None:
        """Return a block with certificate and receipts."""
        if (fresh := self._fresh.get(height)) is not None:
            return fresh
        reader = self._chain.reader
        block = reader.block(height) if height <= self._chain.head.header.height else None
        receipts = None if block is None else reader.receipts(height)
        if block is None or receipts is None:
            return None
        ids: list[Hash] = []
        place = 0
        for count in receipts.counts:
            ids.append(Hash(receipts.receipts[place].transaction_id))
            place += count
        return Committed(
            block, reader.certificate(height), tuple(ids), tuple(receipts.counts), tuple(receipts.receipts)
        )

    def height_of(self, block_hash: bytes) -> int | None:
        """Return the height of a committed block."""
        height = self._chain.reader.height_of(block_hash)
        return None if height is None or height > self._chain.head.header.height else height

    def locate(self, transaction_id: bytes) -> Location | None:
        """Return where a committed transaction stands; one whose block is being written is not yet."""
        location = self._chain.reader.locate(transaction_id)
        return None if location is None or location.height > self._chain.head.header.height else location

    def history(self, address: Address, *, before: tuple[int, int] | None, limit: int) -> list[HistoryEntry]:
        """Return an account's transactions, newest first."""
        newest = (self._chain.head.header.height + 1, 0)
        return self._chain.reader.history(address, before=min(before or newest, newest), limit=limit)

    def heights_with_event(self, contract: str, name: str, *, first_height: int) -> Iterator[int]:
        """Yield the heights that hold such an event."""
        return self._chain.reader.heights_with_event(contract, name, first_height=first_height)


class NodeBackend:
    """Fills ``node.rpc.backend.Backend``. Tell it of every commit and of every view that is entered.

    Args:
        name: the node's own name.
        chain, mempool, clock: of the node.
        submit: the intake's way in.
        engine_status: a snapshot of the consensus engine.
        votes: what is known of the validators' votes.
        peers: the network's view of the other nodes.
        is_ready: whether the node takes part already.
        standing: what the chain lets the node do with its vote key.
        evidence: what validators have been proven guilty of lately, oldest first.
        certified_height: the highest block that a certificate has been seen for.
        private_figures: what the private channels count, for ``/metrics``.
        environment: the link to the node's trusted environment.
    """

    def __init__(
        self,
        *,
        name: NodeName,
        chain: Chain,
        mempool: Mempool,
        clock: Clock,
        submit: Callable[[Sequence[bytes]], list[Answer]],
        engine_status: Callable[[], EngineStatus],
        votes: Callable[[], VoteReport],
        peers: Callable[[], list[PeerStatus]],
        is_ready: Callable[[], bool],
        standing: Callable[[], Standing] = lambda: Standing.VOTING,
        evidence: Callable[[], Sequence[Evidence]] = tuple,
        certified_height: Callable[[], int] = lambda: 0,
        private_figures: Callable[[], dict[str, int]] = dict,
        environment: EnvironmentLink | None = None,
    ) -> None:
        self._name = name
        self._chain = chain
        self._mempool = mempool
        self._clock = clock
        self._submit = submit
        self._engine_status = engine_status
        self._votes = votes
        self._peers = peers
        self._is_ready = is_ready
        self._standing = standing
        self._evidence = evidence
        self._certified_height = certified_height
        self._private_figures = private_figures
        self.final = NodeReads(chain)
        self._proofs = ProofMaker(chain)
        self.payees = PayeeDesk(chain, self._proofs, environment, self.settled)
        self._committed = trio.Event()
        self._consensus_changes = 0
        self._consensus_changed = trio.Event()
        self._refusals: OrderedDict[bytes, Answer] = OrderedDict()

    # -- what the node tells ---------------------------------------------------------------------------

    def on_commit(self, commit: Commit) -> None:
        """Take note that the chain has a new head; the driver's ``on_commit`` calls this."""
        self.final.keep_fresh(commit)
        self._committed.set()
        self._committed = trio.Event()
        self.on_consensus()

    def on_consensus(self) -> None:
        """Take note that the engine entered another height or view."""
        self._consensus_changes += 1
        self._consensus_changed.set()
        self._consensus_changed = trio.Event()

    # -- who ------------------------------------------------------------------------------------------

    @property
    def chain_id(self) -> ChainId:
        """The chain served."""
        return self._chain.chain_id

    @property
    def network_name(self) -> str:
        """The name in the genesis document."""
        return self._chain.genesis.name

    @property
    def node_name(self) -> NodeName:
        """The node's own name."""
        return self._name

    @property
    def is_ready(self) -> bool:
        """Whether the node takes part."""
        return self._is_ready()

    # -- reading --------------------------------------------------------------------------------------

    def head(self) -> Head:
        """Return the newest committed block's header."""
        return self._chain.head

    async def wait_above(self, height: int) -> None:
        """Return once the head is above this height."""
        while self._chain.head.header.height <= height:
            await self._committed.wait()

    async def settled(self) -> None:
        """Return once no block is being written, so that head, state and indexes agree (R76)."""
        while self._chain.is_committing:
            await self._committed.wait()

    def state(self) -> StateReader:
        """Return the newest state."""
        return self._chain.state

    def query(self, contract: str, method: str, arguments: dict[str, Value]) -> Value:
        """Run a contract's query on the newest state."""
        return self._chain.executor.query(self._chain.state, self._next_block(), contract, method, arguments)

    def simulate(self, transaction: Transaction) -> list[Receipt]:
        """Execute a transaction on the newest state and forget the effects."""
        return self._chain.executor.simulate(self._chain.state, self._next_block(), transaction)

    def contracts(self) -> list[Description]:
        """Return the active contracts' descriptions."""
        registry = self._chain.executor.registry
        active = registry.active(self._chain.state, self._chain.head.header.height + 1)
        described = (registry.describe(name, active[name].version) for name in sorted(active))
        return [description for description in described if description is not None]

    def prove_block(self, height: int) -> Proof:
        """Return the proof that a block is final."""
        return self._proofs.block(height)

    def prove_transaction(self, location: Location) -> Proof:
        """Return the proof that a transaction stands in its block."""
        return self._proofs.transaction(location)

    def prove_receipt(self, location: Location, receipt_index: int) -> Proof:
        """Return the proof of one of a transaction's receipts."""
        return self._proofs.receipt(location, receipt_index)

    def prove_state(self, key: bytes) -> Proof:
        """Return the proof of a state value or its absence."""
        return self._proofs.state(key)

    # -- submitting -----------------------------------------------------------------------------------

    async def submit(self, transactions: Sequence[bytes]) -> list[Submission]:
        """Offer transactions to the pool, some at a stretch."""
        answers: list[Answer] = []
        for start in range(0, len(transactions), SUBMIT_SLICE):
            if start:
                await trio.lowlevel.checkpoint()
            answers += self._submit(transactions[start : start + SUBMIT_SLICE])
        return [self._submission(answer) for answer in answers]

    def explain(self, transaction_id: bytes) -> Explanation:
        """Say where a transaction is that is not committed."""
        waiting = self._mempool.waiting(transaction_id)
        if waiting is not None:
            height = self._chain.head.header.height
            return explain_waiting(waiting, self.facts(), wall_ms=self._clock.wall_ms(), head_height=height)
        gone = self._mempool.gone(transaction_id)
        if gone is not None:
            return explain_gone(gone)
        refusal = self._refusals.get(transaction_id)
        if refusal is None:
            return UNKNOWN
        head_time_ms = self._chain.head.header.time_ms
        return explain_refusal(refusal, wall_ms=self._clock.wall_ms(), head_time_ms=head_time_ms)

    def _submission(self, answer: Answer) -> Submission:
        if answer.transaction_id is not None:
            self._refusals.pop(answer.transaction_id, None)
            if answer.code:
                self._refusals[answer.transaction_id] = answer
                if len(self._refusals) > REFUSALS_REMEMBERED_MAX:
                    self._refusals.popitem(last=False)
        return Submission(answer.transaction_id or b"", answer.code, answer.message, answer.height)

    def _next_block(self) -> BlockContext:
        time_ms = max(self._clock.wall_ms(), self._chain.head.header.time_ms + 1)
        return self._chain.next_block(self._name, time_ms)

    # -- operation ------------------------------------------------------------------------------------

    def consensus(self) -> EngineStatus:
        """Return the engine's state."""
        return self._engine_status()

    def facts(self) -> Facts:
        """Return what the doctor judges."""
        return Facts(
            node=self._name,
            now_ms=self._clock.monotonic_ms(),
            status=self._engine_status(),
            votes=self._votes(),
            peers=tuple(self._peers()),
            standing=self._standing(),
            evidence=tuple(self._evidence()),
            certified_height=self._certified_height(),
        )

    async def wait_consensus(self, seen: int) -> int:
        """Return the number of changes of height or view, once it is above ``seen``."""
        while self._consensus_changes <= seen:
            await self._consensus_changed.wait()
        return self._consensus_changes

    def peers(self) -> list[PeerStatus]:
        """Return all other nodes."""
        return self._peers()

    def stages(self) -> Mapping[str, float]:
        """Return the seconds of processor time that each stage of the node's work took so far."""
        return self._chain.stages.report()

    def gauges(self) -> dict[str, int]:
        """Return figures for ``/metrics``."""
        status = self._engine_status()
        return {
            "mempool_transactions": len(self._mempool),
            "mempool_bytes": self._mempool.bytes_held,
            "consensus_height": status.height,
            "consensus_view": status.view,
            "validators": len(status.validators),
            "quorum": status.quorum,
            **self._private_figures(),
            **self.payees.figures(),
        }
