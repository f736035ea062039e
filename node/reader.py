"""What a node's store says about the past: blocks, certificates, receipts, indexes. Reads only."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from consensus.ledger.block import Block, decode_block_untrusted
from consensus.ledger.errors import PeerError, StorageError
from consensus.ledger.ids import Hash
from consensus.ledger.receipt import Receipt
from consensus.ledger.validators import (
    Certificate,
    ValidatorSet,
    certificate_codec,
    decode_validators_untrusted,
)
from node.storage import layout
from node.storage.layout import Location, Receipts
from node.storage.store import Store

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One transaction of an account: where it stands and its id."""

    height: int
    index: int
    transaction_id: Hash


class ChainReader:
    """Typed reads of everything that :mod:`node.storage.layout` lists, for final blocks."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def block(self, height: int) -> Block | None:
        """Return the block at a height, None above the head or below what is kept.

        Raises:
            StorageError: ``corrupted`` when the stored bytes are no block of this height.
        """
        data = self._store.get(layout.at_height(layout.BLOCK, height))
        if data is None:
            return None
        try:
            block = decode_block_untrusted(data)
        except PeerError as error:
            raise StorageError("corrupted", f"block {height} cannot be read: {error}") from None
        if block.height != height:
            raise StorageError("corrupted", f"block {block.height} is stored as block {height}")
        return block

    def certificate(self, height: int) -> Certificate | None:
        """Return the certificate of the block at a height; genesis has none."""
        data = self._store.get(layout.at_height(layout.CERTIFICATE, height))
        return None if data is None else _trusted(certificate_codec.decode_untrusted, data, f"certificate {height}")

    def receipts(self, height: int) -> Receipts | None:
        """Return all receipts of a block with their number a transaction."""
        data = self._store.get(layout.at_height(layout.RECEIPTS, height))
        return None if data is None else _trusted(layout.receipts_codec.decode_untrusted, data, f"receipts {height}")

    def writes(self, height: int) -> dict[bytes, bytes | None] | None:
        """Return the net writes of a block."""
        data = self._store.get(layout.at_height(layout.WRITES, height))
        if data is None:
            return None
        return dict(_trusted(layout.writes_codec.decode_untrusted, data, f"writes {height}").pairs)

    def height_of(self, block_hash: bytes) -> int | None:
        """Return the height of the block with this hash."""
        data = self._store.get(layout.BLOCK_INDEX + block_hash)
        return None if data is None else int.from_bytes(data, "big")

    def locate(self, transaction_id: bytes) -> Location | None:
        """Return where a final transaction stands."""
        data = self._store.get(layout.TRANSACTION + transaction_id)
        return None if data is None else _trusted(layout.location_codec.decode_untrusted, data, "a location")

    def receipts_of(self, location: Location) -> list[Receipt]:
        """Return a transaction's receipts: one when it is atomic, one a call when each call stands alone."""
        receipts = self.receipts(location.height)
        if receipts is None:
            return []
        return receipts.receipts[location.receipt_index : location.receipt_index + location.receipt_count]

    def history(self, address: bytes, *, before: tuple[int, int] | None, limit: int) -> list[HistoryEntry]:
        """Return an account's transactions, newest first, below the place ``before`` (height, index)."""
        prefix = layout.HISTORY + address
        start = b"" if before is None else layout.history_key(address, *before)[len(prefix) :]
        entries: list[HistoryEntry] = []
        for key, value in self._store.scan(prefix, start, reverse=True):
            if len(entries) == limit:
                break
            place = key[len(prefix) :]
            height, index = int.from_bytes(place[:8], "big"), int.from_bytes(place[8:], "big")
            entries.append(HistoryEntry(height, index, Hash(value)))
        return entries

    def heights_with_event(self, contract: str, name: str, *, first_height: int) -> Iterator[int]:
        """Yield in ascending order the heights from ``first_height`` on that hold such an event."""
        prefix = layout.event_prefix(contract, name)
        for key, _ in self._store.scan(prefix, layout.number(first_height)):
            yield int.from_bytes(key[len(prefix) :], "big")

    def validator_changes(self) -> list[tuple[int, ValidatorSet]]:
        """Return every validator set with the first height it certifies, ascending; height 1 comes first."""
        return [
            (int.from_bytes(key[1:], "big"), _trusted(decode_validators_untrusted, value, "a validator set"))
            for key, value in self._store.scan(layout.VALIDATORS)
        ]


def _trusted(decode: Callable[[bytes], R], data: bytes, what: str) -> R:
    """Decode what we stored ourselves; bytes that no longer decode mean a damaged store."""
    try:
        return decode(data)
    except PeerError as error:
        raise StorageError("corrupted", f"{what} cannot be read: {error}") from None
