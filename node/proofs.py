"""Makes proofs out of what a node holds: a certified header, what it commits to, and the set changes since genesis."""

from collections.abc import Sequence

from consensus.ledger import state_tree
from consensus.ledger.errors import LocalError, StorageError
from consensus.ledger.proof import (
    BlockClaim,
    Claim,
    Proof,
    SetChange,
    StateClaim,
    prove_receipt,
    prove_transaction,
)
from consensus.ledger.states import CertifiedChange, StateEntry, StatesProof
from consensus.ledger.transaction import Transaction, decode_transaction_untrusted
from node.chain import Chain
from node.storage.layout import Location


class ProofMaker:
    """Proofs about final blocks and about the sealed state of one chain."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._changes: list[CertifiedChange] = []
        self._changes_height = 0

    def block(self, height: int) -> Proof:
        """Return the proof that a block is final.

        Raises:
            LocalError: ``not_found`` above the head, ``genesis_unsigned`` for block 0.
        """
        return self._certified(height, BlockClaim())

    def transaction(self, location: Location) -> Proof:
        """Return the proof that a transaction stands in its block."""
        transactions = self._transactions(location.height)
        return self._certified(location.height, prove_transaction(transactions, location.index))

    def receipt(self, location: Location, receipt_index: int) -> Proof:
        """Return the proof of one of a transaction's receipts.

        Raises:
            LocalError: ``not_found`` when the transaction has no such receipt.
        """
        receipts = self._chain.reader.receipts(location.height)
        if receipts is None or not 0 <= receipt_index < location.receipt_count:
            raise LocalError("not_found", f"the transaction has {location.receipt_count} receipts")
        claim = prove_receipt(receipts.receipts, location.receipt_index + receipt_index)
        return self._certified(location.height, claim)

    def state(self, key: bytes) -> Proof:
        """Return the proof of a key's value at the last seal, or of its absence, under the head's header.

        Raises:
            LocalError: ``genesis_unsigned`` while there is no block above genesis.
        """
        value = self._chain.state.sealed.get(key)
        path = state_tree.prove(self._chain.tree, key)
        return self._certified(self._chain.head.header.height, StateClaim(key, value, path))

    def states(self, keys: Sequence[str]) -> StatesProof:
        """Return the proof of several keys' values at the last seal, under the head's header.

        Raises:
            LocalError: ``genesis_unsigned`` while there is no block above genesis.
        """
        head, sealed, tree = self._chain.head, self._chain.state.sealed, self._chain.tree
        if head.certificate is None:
            raise _genesis_unsigned()
        entries: list[StateEntry] = []
        for text in sorted(set(keys)):
            key = text.encode()
            entries.append(StateEntry(text, sealed.get(key), state_tree.prove(tree, key)))
        return StatesProof(self._chain.chain_id, self._certified_changes(), head.header, head.certificate, entries)

    def _certified_changes(self) -> list[CertifiedChange]:
        """Return the changes up to the head; each is read from the store once, and looked for once a head."""
        height = self._chain.head.header.height
        if height != self._changes_height:
            known = len(self._changes)
            firsts = [first for first in self._change_heights() if 1 < first <= height]
            for first in firsts[known:]:
                change = self._set_change(first - 1)
                self._changes.append(CertifiedChange(change.header, change.certificate, change.validators.encode()))
            self._changes_height = height
        return self._changes

    def _certified(self, height: int, claim: Claim) -> Proof:
        if height == 0:
            raise _genesis_unsigned()
        reader = self._chain.reader
        block, certificate = reader.block(height), reader.certificate(height)
        if block is None or certificate is None:
            raise LocalError("not_found", f"no block {height}; the head is {self._chain.head.header.height}")
        changes = tuple(self._set_change(first - 1) for first in self._change_heights() if 1 < first <= height)
        return Proof(self._chain.chain_id, changes, block.header, certificate, claim)

    def _change_heights(self) -> list[int]:
        return [first_height for first_height, _ in self._chain.reader.validator_changes()]

    def _set_change(self, height: int) -> SetChange:
        """Return the block at whose end the set changed, with the set that follows."""
        reader = self._chain.reader
        block, certificate = reader.block(height), reader.certificate(height)
        following = dict(reader.validator_changes()).get(height + 1)
        if block is None or certificate is None or following is None:
            raise StorageError("corrupted", f"block {height}, which changed the validators, is incomplete")
        return SetChange(block.header, certificate, following)

    def _transactions(self, height: int) -> list[Transaction]:
        block = self._chain.reader.block(height)
        if block is None:
            raise LocalError("not_found", f"no block {height}")
        return [decode_transaction_untrusted(raw) for raw in block.transactions]


def _genesis_unsigned() -> LocalError:
    return LocalError("genesis_unsigned", "block 0 follows from the genesis file; nobody signs it")
