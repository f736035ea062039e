"""All receipts of one day, out of blocks that are proven to be the chain's: none is missing, none is made up.

Block times rise, so the day is a range of heights, found by halving over certified block times. Its last header is
proven by its certificate, every other one by being the parent that the next one names, and a block's receipts by
having its receipts root together. A node can hold back the newest blocks, and nothing else.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from consensus.ledger.block import Header, decode_block_untrusted
from consensus.ledger.errors import PeerError
from consensus.ledger.merkle import ListProof, list_root, prove_leaves
from consensus.ledger.proof import Proof, ReceiptClaim, Verified, proof_from_json_untrusted
from consensus.ledger.receipt import Receipt, receipt_codec
from consensus.ledger.validators import certificate_codec
from services.client.answers import RawBlock, bytes_of
from services.client.reader import Reader, list_leaves_untrusted, raw_blocks

PAGE_BLOCKS = 100


@dataclass(frozen=True, slots=True)
class Span:
    """The heights of a time: ``first`` to ``last``, none where ``last`` is below ``first``.

    ``head`` is the newest header that was proven; the span is complete when that is at or after the time's end.
    """

    first: int
    last: int
    head: Verified
    is_complete: bool


@dataclass(frozen=True, slots=True)
class DayBlock:
    """A block of the day with all its receipts. It is proven once :meth:`Blocks.read` has ended without an error."""

    header: Header
    leaves: tuple[bytes, ...]
    certificate: bytes

    def receipts(self) -> list[Receipt]:
        """Return all receipts in order."""
        return [receipt_codec.decode_untrusted(leaf) for leaf in self.leaves]


async def find_span(client: Reader, *, from_ms: int, until_ms: int) -> Span:
    """Return the heights of the blocks with ``from_ms`` ≤ block time < ``until_ms``.

    Raises:
        PeerError: a node's proof does not hold.
        Unreachable: no node answers.
    """
    head = (await client.prove("chain_getBlock", {}))[1]
    first = await _first_at(client, from_ms, head)
    last = await _first_at(client, until_ms, head, low=first) - 1
    return Span(first, last, head, head.time_ms >= until_ms)


async def _first_at(client: Reader, time_ms: int, head: Verified, *, low: int = 1) -> int:
    """Return the first height from ``low`` on with a block time of ``time_ms`` or later; above the head if none."""
    high = head.height + 1
    while low < high:
        middle = (low + high) // 2
        if (await client.prove_block(middle)).time_ms < time_ms:
            low = middle + 1
        else:
            high = middle
    return low


class Blocks:
    """The blocks of a span, read once from the first to the last, and the proofs that they give."""

    def __init__(self, client: Reader, span: Span) -> None:
        self._client = client
        self._span = span
        self._top: Proof | None = None
        self._checked = 0
        self._paths: list[ListProof] = []

    async def read(self) -> AsyncGenerator[DayBlock, None]:
        """Yield the blocks in ascending order.

        Raises:
            PeerError: ``bad_proof``, also after the last block: then all that was yielded is worth nothing.
            Unreachable: no node answers.
        """
        height, parent = self._span.first, b""
        if height > self._span.last:
            return
        document, verified = await self._client.prove("chain_getBlock", {"height": self._span.last})
        if verified.height != self._span.last:
            raise PeerError("bad_proof", "the proof speaks of another block")
        self._top = proof_from_json_untrusted(document)
        while height <= self._span.last:
            limit = min(PAGE_BLOCKS, self._span.last - height + 1)
            page = await raw_blocks(self._client, height, limit)
            if not page.blocks:
                raise PeerError("bad_answer", f"the node has no block {height}")
            for raw in page.blocks[:limit]:
                block = _checked(raw, height, parent)
                yield block
                height, parent = height + 1, block.header.hash()
        if parent != verified.block_hash:
            raise PeerError("bad_proof", "the node's blocks do not lead to the block that was certified")

    def proof(self, block: DayBlock, index: int) -> Proof:
        """Return a proof of a receipt of one of the blocks; the block's certificate is checked first.

        Raises:
            PeerError: ``bad_certificate``, ``bad_proof``, ``malformed``.
        """
        if self._top is None:
            raise PeerError("bad_proof", "no block was read")
        height = block.header.height
        proof = Proof(
            self._top.chain_id,
            tuple(change for change in self._top.set_changes if change.header.height < height),
            block.header,
            certificate_codec.decode_untrusted(block.certificate),
            ReceiptClaim(receipt_codec.decode_untrusted(block.leaves[index]), self._paths_of(block)[index]),
        )
        if self._checked != height:
            self._client.verify(proof)
            self._checked = height
        return proof

    def _paths_of(self, block: DayBlock) -> list[ListProof]:
        """Return the paths of all receipts of a block; its tree is hashed once."""
        if self._checked != block.header.height:
            self._paths = prove_leaves(block.leaves)
        return self._paths


def _checked(raw: RawBlock, height: int, parent: bytes) -> DayBlock:
    """Return a block whose receipts are its header's, and whose parent is the one before it ("" for the first)."""
    header = decode_block_untrusted(bytes_of(raw.raw)).header
    if header.height != height or (parent and header.parent_hash != parent):
        raise PeerError("bad_proof", f"the node's block {height} does not follow the one before it")
    leaves = tuple(list_leaves_untrusted(bytes_of(raw.receipts_raw)))
    if list_root(leaves) != header.receipts_root:
        raise PeerError("bad_proof", f"these are not the receipts of block {height}")
    return DayBlock(header, leaves, bytes_of(raw.certificate_raw or "0x"))
