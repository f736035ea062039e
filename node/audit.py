"""Proving a whole chain again: every certificate checked, every block executed, every stored record compared.

The chain is rebuilt from the genesis document in a store of its own, with the same code that a node
runs, from nothing but blocks and certificates. A home folder is then compared record by record with
what was rebuilt, and every block of the database is read with its checksum, so that one flipped bit in any
record is found, and named by its height where it has one. :mod:`node.storage.check` looks at the rest.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from consensus.ledger.block import check_certified_untrusted, decode_block_untrusted
from consensus.ledger.errors import LocalError, PeerError, StorageError
from consensus.ledger.genesis import Genesis
from consensus.ledger.validators import certificate_codec
from contracts.runtime.execution import Executor
from node.chain import Chain
from node.storage import layout
from node.storage.leveldb import LevelStore
from node.storage.store import Store

_COMPARED = {kind: name for kind, name in layout.NAMES.items() if kind not in (layout.VOTE, b"m")}


class AuditFailure(LocalError):
    """The chain does not hold; ``height`` is where, None when it is known of no height."""

    def __init__(self, height: int | None, message: str) -> None:
        super().__init__("chain_broken", message if height is None else f"height {height}: {message}")
        self.height = height


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What was proven: from genesis to ``height``, with the newest block's and sealed state's hashes."""

    chain_id: bytes
    height: int
    block_hash: bytes
    sealed_height: int
    sealed_root: bytes
    transactions: int
    receipts: int
    certificates: int


class ChainSource(Protocol):
    """Where the blocks come from."""

    def final_blocks(self) -> Iterator[tuple[int, bytes, bytes, bytes | None]]:
        """Yield (height, block, certificate, receipts) as stored, from height 1 on, without a gap.

        Receipts are None where the source is compared as a whole anyway.
        """


class StoreSource:
    """A node's own store, which no process may have open."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def final_blocks(self) -> Iterator[tuple[int, bytes, bytes, bytes | None]]:
        """Yield what is stored up to the head; a missing record ends the walk with an error."""
        try:
            head = self.store.get(layout.META_HEAD)
        except StorageError as error:
            raise AuditFailure(None, f"the height of the head cannot be read: {error.message}") from None
        for height in range(1, int.from_bytes(head or b"", "big") + 1):
            try:
                block = self.store.get(layout.at_height(layout.BLOCK, height))
                certificate = self.store.get(layout.at_height(layout.CERTIFICATE, height))
            except StorageError as error:
                raise AuditFailure(height, error.message) from None
            if block is None or certificate is None:
                raise AuditFailure(height, "the block or its certificate is missing")
            yield height, block, certificate, None


def verify_chain(
    source: ChainSource,
    genesis: Genesis,
    executor: Executor,
    *,
    on_height: Callable[[int], None] = lambda height: None,
) -> AuditResult:
    """Rebuild a chain from its source and prove every step.

    Raises:
        AuditFailure: naming the first height that does not hold.
    """
    with tempfile.TemporaryDirectory(prefix="hansa-verify-") as folder:
        rebuilt = LevelStore.open(Path(folder))
        try:
            result = rebuild(source, Chain(rebuilt, genesis, executor), rebuilt, on_height)
            if isinstance(source, StoreSource):
                _compare(source.store, rebuilt)
        finally:
            rebuilt.close()
    return result


def rebuild(source: ChainSource, chain: Chain, rebuilt: Store, on_height: Callable[[int], None]) -> AuditResult:
    """Build a chain that stands at genesis anew in its store, and prove every step.

    Raises:
        AuditFailure: naming the first height that does not hold.
    """
    transactions = receipts = certificates = 0
    for height, block_bytes, certificate_bytes, receipts_bytes in source.final_blocks():
        try:
            block = decode_block_untrusted(block_bytes)
            certificate = certificate_codec.decode_untrusted(certificate_bytes)
            check_certified_untrusted(block.header, certificate, chain.head.validators)
            candidate = chain.check_untrusted(block)
        except PeerError as error:
            raise AuditFailure(height, f"{error.code}: {error.message}") from None
        rebuilt.write(chain.commit_batch(candidate, certificate))
        chain.adopt(candidate, certificate)
        if receipts_bytes is not None and receipts_bytes != rebuilt.get(layout.at_height(layout.RECEIPTS, height)):
            raise AuditFailure(height, "the receipts that the node serves are not what executing the block gives")
        transactions += len(candidate.transactions)
        receipts += len(candidate.execution.receipts)
        certificates += 1
        on_height(height)
    header = chain.head.header
    return AuditResult(
        chain_id=chain.chain_id,
        height=header.height,
        block_hash=chain.head.hash,
        sealed_height=header.sealed_height,
        sealed_root=header.sealed_root,
        transactions=transactions,
        receipts=receipts,
        certificates=certificates,
    )


def _compare(stored: Store, rebuilt: Store) -> None:
    """Walk both stores side by side; whatever follows from the blocks must be the same in both."""
    for kind, what in _COMPARED.items():
        _compare_kind(kind, what, stored, rebuilt)
    try:
        for _ in stored.scan(b""):
            pass  # what is compared with nothing, votes for example, is read with its checksum at least
    except StorageError as error:
        raise AuditFailure(None, f"{error.message}; all blocks up to height {_head_height(rebuilt)} hold") from None


def _compare_kind(kind: bytes, what: str, stored: Store, rebuilt: Store) -> None:
    nothing = (b"", None)
    left, right = stored.scan(kind), rebuilt.scan(kind)
    while True:
        expected: tuple[bytes, bytes | None] = next(right, nothing)
        try:
            found: tuple[bytes, bytes | None] = next(left, nothing)
        except StorageError as error:
            raise _unreadable(kind, what, expected[0], error, head=_head_height(rebuilt)) from None
        if found == expected:
            if found == nothing:
                return
            continue
        key = max(found[0], expected[0]) if b"" in (found[0], expected[0]) else min(found[0], expected[0])
        by_height = kind in layout.NAMES_BY_HEIGHT
        height = int.from_bytes(key[1:9], "big") if by_height else _head_height(rebuilt)
        name = "" if by_height else f" {layout.readable(key[1:])}"
        raise AuditFailure(height, f"the stored {what}{name} is not what executing the chain gives")


def _unreadable(kind: bytes, what: str, key: bytes, error: StorageError, *, head: int) -> AuditFailure:
    """Say which record, the next that should have come, cannot be read."""
    if kind in layout.NAMES_BY_HEIGHT and key:
        return AuditFailure(int.from_bytes(key[1:9], "big"), f"the stored {what} cannot be read: {error.message}")
    name = f" {layout.readable(key[1:])}" if key else ""
    message = f"the stored {what}{name} cannot be read: {error.message}; all blocks up to height {head} hold"
    return AuditFailure(None, message)


def _head_height(store: Store) -> int:
    return int.from_bytes(store.get(layout.META_HEAD) or b"", "big")
