"""The chain of one node: makes candidate blocks, checks those of others, and commits what is decided.

Everything here is synchronous and knows no network and no clock: the time of a block is given. A block
is executed once, before it is voted on; the result waits as a :class:`Candidate` until the block is
decided, and then becomes one synced batch. Only the driver calls it, from one task.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from consensus.ledger import state_tree
from consensus.ledger.block import (
    BLOCK_BYTES_MAX,
    BLOCK_TRANSACTIONS_MAX,
    FORMAT_VERSION,
    Block,
    Header,
    check_successor_untrusted,
    genesis_block,
    receipts_root,
    transactions_root,
    uptime_after,
    writes_root,
)
from consensus.ledger.errors import InvariantError, LocalError, PeerError, StorageError
from consensus.ledger.genesis import Genesis
from consensus.ledger.ids import ChainId, Hash
from consensus.ledger.state_tree import TreeUpdate, should_seal
from consensus.ledger.transaction import Transaction
from consensus.ledger.validators import Certificate, certificate_codec
from consensus.pbft.events import Head
from contracts.runtime.execution import BlockContext, Execution, Executor
from node.reader import ChainReader
from node.stages import Stage, Stages
from node.state import RecentState, SealedState
from node.storage import layout
from node.storage.layout import Location, Receipts, Writes
from node.storage.store import Store, Write
from node.verification import Verifier

CANDIDATES_MAX = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A block with everything that executing it gave. ``tree`` is there when the block seals the state."""

    block: Block
    transactions: tuple[Transaction, ...]
    execution: Execution
    tree: TreeUpdate | None


class ResultMismatch(PeerError):
    """Executing a block gives another result than its header says.

    ``differences``: field → (ours, theirs). ``candidate`` is the block with our results.
    """

    def __init__(self, candidate: Candidate, theirs: Header) -> None:
        ours = candidate.block.header
        self.candidate = candidate
        self.differences = {
            field: (getattr(ours, field), getattr(theirs, field))
            for field in Header.__struct_fields__
            if getattr(ours, field) != getattr(theirs, field)
        }
        super().__init__("result_mismatch", f"executing the block gives another {', '.join(self.differences)}")


class Chain:
    """Blocks, state and indexes of one node above its store."""

    def __init__(self, store: Store, genesis: Genesis, executor: Executor) -> None:
        self.genesis = genesis
        self.chain_id: ChainId = genesis.chain_id()
        self.executor = executor
        self.stages = Stages()
        self.verifier = Verifier(self.stages)
        self.reader = ChainReader(store)
        self.state = RecentState(SealedState(store))
        self._store = store
        self.tree = state_tree.NodeCache(_TreeNodes(self.state.sealed))
        self._candidates: dict[Hash, Candidate] = {}
        self._sealed_time_ms = genesis.time_ms
        self.is_committing = False
        """Whether a batch is on its way to the disk, so that store and memory may disagree."""
        self.head = self._open()

    # -- opening ---------------------------------------------------------------------------------------

    def _open(self) -> Head:
        stored_chain = self._store.get(layout.META_CHAIN)
        if stored_chain is None:
            return self._begin()
        if self._store.get(layout.META_FORMAT) != layout.FORMAT:
            raise LocalError("wrong_format", "the data were written by another version of the store's layout")
        if stored_chain != self.chain_id:
            raise LocalError(
                "wrong_chain",
                f"the data belong to chain 0x{stored_chain.hex()}, the genesis file to 0x{self.chain_id.hex()}",
            )
        return self._resume()

    def _begin(self) -> Head:
        """Write block 0: the state that the genesis document describes, sealed."""
        writes = self.executor.genesis_writes(self.genesis)
        tree = state_tree.update(self.tree, writes)
        validators = self.genesis.validator_set()
        block = genesis_block(
            self.chain_id,
            time_ms=self.genesis.time_ms,
            proposer=validators.validators[0].name,
            validators_hash=validators.hash(),
            writes=writes,
            sealed_root=tree.root,
        )
        execution = Execution(receipts=[], counts=[], writes=writes, validators=validators, steps=0)
        candidate = Candidate(block, (), execution, tree)
        batch = [
            (layout.META_FORMAT, layout.FORMAT),
            (layout.META_CHAIN, self.chain_id),
            (layout.at_height(layout.VALIDATORS, 1), validators.encode()),
            *self._records(candidate, None),
        ]
        self._store.write(batch)
        return self._adopt_state(candidate, None)

    def _resume(self) -> Head:
        """Read the head and make again in memory what the store was not yet given of the state."""
        height, stored_height = self._stored_height(layout.META_HEAD), self._stored_height(layout.META_STATE)
        block = self._stored_block(stored_height)
        self._check_sealed(block, state_tree.tree_root(self.tree))
        for later in range(stored_height + 1, height + 1):
            block = self._stored_block(later)
            self.state.extend(self._writes_of(block))
            if block.header.sealed_height == later:
                tree = state_tree.update(self.tree, self.state.tail)
                self._check_sealed(block, tree.root)
                self._adopt_seal(block, tree)
        changes = self.reader.validator_changes()
        if not changes or changes[-1][1].hash() != block.header.next_validators_hash:
            raise StorageError("corrupted", f"the validator set stored last is not the one of block {height}")
        certificate = self.reader.certificate(height)
        if height > 0 and (certificate is None or certificate.block_hash != block.hash):
            raise StorageError("corrupted", f"block {height} lacks its certificate")
        return Head(block.header, block.hash, certificate, changes[-1][1], block.is_quiet)

    def _stored_height(self, key: bytes) -> int:
        stored = self._store.get(key)
        if stored is None:
            raise StorageError("corrupted", f"the record {layout.describe(key)} is missing")
        return int.from_bytes(stored, "big")

    def _stored_block(self, height: int) -> Block:
        block = self.reader.block(height)
        if block is None:
            raise StorageError("corrupted", f"block {height} is missing")
        return block

    def _writes_of(self, block: Block) -> dict[bytes, bytes | None]:
        """Return the writes of a block, as its header vouches for them."""
        writes = self.reader.writes(block.height)
        if writes is None or writes_root(writes) != block.header.writes_root:
            raise StorageError("corrupted", f"the writes of block {block.height} are not those of its header")
        return writes

    def _check_sealed(self, block: Block, root: Hash) -> None:
        """Refuse a state tree that is not the one this block sealed."""
        if (block.header.sealed_height, block.header.sealed_root) != (block.height, root):
            raise StorageError("corrupted", f"the state tree is not that of block {block.height}")
        self._sealed_time_ms = block.header.time_ms

    # -- making and checking blocks --------------------------------------------------------------------

    def build(
        self, proposer: str, time_ms: int, transactions: Sequence[Transaction]
    ) -> tuple[Candidate, list[tuple[Transaction, PeerError]]]:
        """Execute transactions above the head and return the block they make, and which of them cannot stand in it.

        The caller gives a time above the head's. Once a block has used its steps the rest stays out of
        it and is not reported: it waits for the next one.
        """
        context = self.next_block(proposer, time_ms)
        run = self.executor.begin(self.state, context)
        taken: list[Transaction] = []
        refused: list[tuple[Transaction, PeerError]] = []
        with self.stages.timed(Stage.EXECUTE):
            for transaction in transactions:
                try:
                    self.verifier.check_signature_untrusted(transaction, self.state)
                    run.apply(transaction)
                except PeerError as error:
                    if error.code == "block_too_heavy":
                        break
                    refused.append((transaction, error))
                else:
                    taken.append(transaction)
            execution = run.finish()
        root = transactions_root([transaction.leaf for transaction in taken])
        return self._remember(self._assemble(context, tuple(taken), root, execution)), refused

    def check_untrusted(self, block: Block) -> Candidate:
        """Execute another's block above the head and compare every result with its header.

        Raises:
            PeerError: ``bad_header``, ``wrong_chain``, ``too_large``, ``result_mismatch``, or what is wrong
                with one of its transactions.
        """
        known = self._candidates.get(block.hash)
        if known is not None and known.block.transactions == block.transactions:
            return known
        check_successor_untrusted(self.head.header, self.head.hash, block.header)
        if self.head.validators.vote_key(block.header.proposer) is None:
            raise PeerError("bad_header", f"{block.header.proposer} is no validator")
        transactions = self.check_body_untrusted(block)
        context = self.next_block(block.header.proposer, block.header.time_ms)
        with self.stages.timed(Stage.EXECUTE):
            for transaction in transactions:
                self.verifier.check_signature_untrusted(transaction, self.state)
            execution = self.executor.execute(self.state, context, transactions)
        candidate = self._assemble(context, transactions, block.header.transactions_root, execution)
        if candidate.block.header != block.header:
            raise ResultMismatch(candidate, block.header)
        return self._remember(candidate)

    def check_body_untrusted(self, block: Block) -> tuple[Transaction, ...]:
        """Check that the transactions are those that the header commits to; a certificate says it of the header alone.

        Raises:
            PeerError: ``too_large``, ``bad_header``, or what is wrong with the bytes of a transaction.
        """
        if len(block.transactions) > BLOCK_TRANSACTIONS_MAX:
            raise PeerError("too_large", f"{len(block.transactions)} transactions in a block")
        if sum(map(len, block.transactions)) > BLOCK_BYTES_MAX:
            raise PeerError("too_large", f"a block has at most {BLOCK_BYTES_MAX} bytes of transactions")
        transactions = tuple(self.verifier.decode_untrusted(raw) for raw in block.transactions)
        if block.header.transactions_root != transactions_root([item.leaf for item in transactions]):
            raise PeerError("bad_header", "the transactions root does not fit the transactions")
        return transactions

    def candidate(self, block_hash: Hash) -> Candidate | None:
        """Return a block that was built or checked above the present head."""
        return self._candidates.get(block_hash)

    def next_block(self, proposer: str, time_ms: int) -> BlockContext:
        """Return what contracts will know of the block above the head."""
        parent = self.head.header
        return BlockContext(
            chain_id=self.chain_id,
            height=parent.height + 1,
            time_ms=time_ms,
            uptime_ms=uptime_after(parent, time_ms),
            proposer=proposer,
        )

    def _assemble(
        self, context: BlockContext, transactions: tuple[Transaction, ...], root: bytes, execution: Execution
    ) -> Candidate:
        """Return the block of these transactions, under their root, whose header says what executing gave."""
        parent = self.head.header
        with self.stages.timed(Stage.SEAL):
            tree = self._sealed_by(execution, context.time_ms, is_quiet=not transactions)
        with self.stages.timed(Stage.ROOTS):
            header = Header(
                version=FORMAT_VERSION,
                chain_id=self.chain_id,
                height=context.height,
                parent_hash=self.head.hash,
                time_ms=context.time_ms,
                uptime_ms=context.uptime_ms,
                proposer=context.proposer,
                transactions_root=root,
                receipts_root=receipts_root(execution.receipts),
                writes_root=writes_root(execution.writes),
                validators_hash=parent.next_validators_hash,
                next_validators_hash=execution.validators.hash(),
                sealed_height=parent.sealed_height if tree is None else context.height,
                sealed_root=parent.sealed_root if tree is None else tree.root,
            )
            block = Block.of(header, [transaction.raw for transaction in transactions])
        return Candidate(block, transactions, execution, tree)

    def _sealed_by(self, execution: Execution, time_ms: int, *, is_quiet: bool) -> TreeUpdate | None:
        """Return the tree with all unsealed writes when the rule says that this block seals."""
        tail = self.state.tail
        pending = len(tail) + sum(key not in tail for key in execution.writes)
        due = should_seal(quiet=is_quiet, unsealed_writes=pending, time_ms=time_ms, sealed_time_ms=self._sealed_time_ms)
        if not due:
            return None
        return state_tree.update(self.tree, {**tail, **execution.writes})

    def _remember(self, candidate: Candidate) -> Candidate:
        if len(self._candidates) >= CANDIDATES_MAX:
            del self._candidates[next(iter(self._candidates))]
        self._candidates[candidate.block.hash] = candidate
        return candidate

    # -- committing ------------------------------------------------------------------------------------

    def commit_batch(self, candidate: Candidate, certificate: Certificate) -> list[Write]:
        """Return everything that makes the block final on disk, to be written as one synced batch."""
        block = candidate.block
        if block.header.parent_hash != self.head.hash:
            raise InvariantError(f"block {block.height} is committed above another parent")
        if certificate.block_hash != block.hash or certificate.height != block.height:
            raise InvariantError(f"the certificate of block {block.height} names another block")
        self.is_committing = True
        return self._records(candidate, certificate)

    def adopt(self, candidate: Candidate, certificate: Certificate) -> Head:
        """Make a block the head in memory; call it once its batch is on the disk."""
        self.head = self._adopt_state(candidate, certificate)
        self.is_committing = False
        self._candidates.clear()
        for raw in candidate.block.transactions:
            self.verifier.forget(raw)
        return self.head

    def _adopt_state(self, candidate: Candidate, certificate: Certificate | None) -> Head:
        block = candidate.block
        self.state.extend(candidate.execution.writes)
        if candidate.tree is not None:
            is_stored = self.state.sealed.is_due(is_quiet=block.is_quiet)
            self._adopt_seal(block, candidate.tree)
            if is_stored:
                self.state.sealed.stored()
        return Head(block.header, block.hash, certificate, candidate.execution.validators, block.is_quiet)

    def _adopt_seal(self, block: Block, tree: TreeUpdate) -> None:
        self.state.seal(tree.nodes)
        self.tree.apply(tree.nodes)
        self._sealed_time_ms = block.header.time_ms

    def _records(self, candidate: Candidate, certificate: Certificate | None) -> list[Write]:
        block, execution = candidate.block, candidate.execution
        height = block.height
        pairs = [(key, execution.writes[key]) for key in sorted(execution.writes)]
        receipts = Receipts(execution.receipts, execution.counts)
        batch: list[Write] = [
            (layout.at_height(layout.BLOCK, height), block.encode()),
            (layout.at_height(layout.RECEIPTS, height), layout.receipts_codec.encode(receipts)),
            (layout.at_height(layout.WRITES, height), layout.writes_codec.encode(Writes(pairs))),
            (layout.BLOCK_INDEX + block.hash, layout.number(height)),
            (layout.META_HEAD, layout.number(height)),
        ]
        if certificate is not None:
            batch.append((layout.at_height(layout.CERTIFICATE, height), certificate_codec.encode(certificate)))
        if block.header.next_validators_hash != block.header.validators_hash:
            batch.append((layout.at_height(layout.VALIDATORS, height + 1), execution.validators.encode()))
        batch.extend(_index_records(candidate))
        sealed = self.state.sealed
        if candidate.tree is not None and sealed.is_due(is_quiet=block.is_quiet):
            batch.extend(sealed.records({**self.state.tail, **execution.writes}, candidate.tree.nodes))
            batch.append((layout.META_STATE, layout.number(height)))
        return batch


class _TreeNodes:
    """The nodes of the sealed state's tree."""

    def __init__(self, sealed: SealedState) -> None:
        self._sealed = sealed

    def get(self, path: bytes) -> bytes | None:
        """Return the node at a path."""
        return self._sealed.node(path)


def _index_records(candidate: Candidate) -> list[Write]:
    """Return the index entries of a block: by transaction, by account, by event."""
    height = candidate.block.height
    execution = candidate.execution
    batch: list[Write] = []
    receipt_index = 0
    for index, transaction in enumerate(candidate.transactions):
        count = execution.counts[index]
        location = Location(height, index, receipt_index, count)
        batch.append((layout.TRANSACTION + transaction.id, layout.location_codec.encode(location)))
        batch.append((layout.history_key(transaction.sender, height, index), transaction.id))
        receipt_index += count
    kinds = {(event.contract, event.name) for receipt in execution.receipts for event in receipt.events}
    batch.extend((layout.event_key(contract, name, height), b"") for contract, name in sorted(kinds))
    return batch
