"""Reading from a consortium: several nodes, one chain, nothing believed that can be checked.

A request goes to the node that answered last; when that one cannot be reached, to the next. That is safe
for everything: reads have no effect, and the same signed bytes submitted twice are one transaction.
Outcomes, state values and blocks come with a certificate and a path that lead to the pinned genesis
document, and are checked here: a node whose proof fails raises
:class:`~consensus.ledger.errors.PeerError`. Only :meth:`Reader.query` and :meth:`Reader.lane` believe the
node they ask.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import msgspec
import trio

from consensus.ledger.codec import Value, decode_untrusted, encode
from consensus.ledger.errors import HansaError, PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.merkle import list_root
from consensus.ledger.proof import (
    BlockClaim,
    Proof,
    ReceiptClaim,
    StateClaim,
    TransactionClaim,
    Verified,
    proof_from_json_untrusted,
    verify_proof_untrusted,
)
from consensus.ledger.receipt import Receipt, receipt_codec
from consensus.ledger.transaction import EACH, Transaction
from services.client.answers import (
    AccountAnswer,
    LaneState,
    ProofAnswer,
    QueryAnswer,
    RawBlockAnswer,
    RawBlocksAnswer,
    StateAnswer,
    Subscribed,
    bytes_of,
    hex_of,
)
from services.client.connection import REQUEST_TIMEOUT_MS, Connection, Parameters, Transport
from services.client.errors import Refused, Unreachable
from services.client.link import Link
from services.client.outcome import Outcome, StateValue
from services.client.tasks import single_errors

ATTEMPT_PAUSE_MS = 50
BLOCK_PAUSE_MS = 20_000
"""How long a new block is waited for at the most."""

PROOFS_MAX = 4
"""Up to how many receipts of a transaction are proven one by one: each costs a certificate's signatures."""

T = TypeVar("T")

_receipts_decoder = msgspec.msgpack.Decoder(tuple[list[msgspec.Raw], msgspec.Raw])


class Reader:
    """The reading half of :class:`~services.client.client.Client`."""

    def __init__(self, genesis: Genesis, links: Sequence[Link]) -> None:
        self.genesis = genesis
        self.chain_id = genesis.chain_id()
        self.node_count = len(links)
        self._links = list(links)
        self._preferred = 0
        self._leaves_lock = trio.Lock()
        self._leaves_root = b""
        self._leaves: list[bytes] = []

    async def request(
        self, method: str, params: Parameters, kind: type[T], *, timeout_ms: int = REQUEST_TIMEOUT_MS
    ) -> T:
        """Ask the first node that can be reached.

        Raises:
            Refused: the node's error answer.
            Unreachable: no node answers.
            PeerError: ``bad_answer``; ``wrong_chain`` when every node reached serves another chain.
        """
        return await self.anywhere(lambda connection: connection.request(method, params, kind, timeout_ms=timeout_ms))

    async def anywhere(self, use: Callable[[Connection], Awaitable[T]]) -> T:
        """Use the preferred node's connection, else the next one's, until one works."""
        first_error: HansaError | None = None
        for step in range(len(self._links)):
            index = (self._preferred + step) % len(self._links)
            try:
                result = await use(await self._links[index].connection())
            except Unreachable as error:
                first_error = first_error or error
            except PeerError as error:
                if error.code != "wrong_chain":
                    raise
                first_error = error
            else:
                self._preferred = index
                return result
        raise first_error or Unreachable("no node is known")

    async def request_each(self, method: str, params: Parameters, kind: type[T]) -> dict[str, T]:
        """Ask all nodes side by side; return by URL what those answer that can be reached.

        Raises:
            Refused: a node's error answer.
            Unreachable: no node answers.
            PeerError: as :meth:`request`.
        """
        answers: dict[str, T] = {}
        errors: list[HansaError] = []

        async def ask(link: Link) -> None:
            try:
                answers[link.url] = await (await link.connection()).request(method, params, kind)
            except Unreachable as error:
                errors.append(error)

        with single_errors():
            async with trio.open_nursery() as nursery:
                for link in self._links:
                    nursery.start_soon(ask, link)
        if not answers:
            raise errors[0]
        return {link.url: answers[link.url] for link in self._links if link.url in answers}

    async def connection(self) -> Connection:
        """Return a live connection to the preferred node, else to the next one; errors as for :meth:`request`."""
        return await self.anywhere(_itself)

    def leave_node(self) -> None:
        """Prefer the next node from now on."""
        self._preferred = (self._preferred + 1) % len(self._links)

    def apart(self) -> "Reader":
        """Return a reader over the same connections that prefers nodes by itself."""
        return Reader(self.genesis, self._links)

    def each_node(self) -> "dict[str, Reader]":
        """Return by its URL a reader for every single node, over the same connections."""
        return {link.url: Reader(self.genesis, [link]) for link in self._links}

    # -- proven ----------------------------------------------------------------------------------------

    async def outcome(self, transaction_id: bytes) -> Outcome:
        """Return a final transaction with its proven receipts.

        Raises:
            Refused: ``not_found``.
            PeerError: a node's proof does not hold.
        """
        _, verified = await self.prove("chain_getTransaction", {"id": hex_of(transaction_id)})
        if not isinstance(verified.claim, TransactionClaim) or verified.claim.transaction.id != transaction_id:
            raise PeerError("bad_proof", "the proof speaks of another transaction")
        return await self.prove_outcome(verified.claim.transaction)

    async def prove_outcome(self, transaction: Transaction) -> Outcome:
        """Return the outcome of a transaction that is known to be final; errors as for :meth:`outcome`."""
        count = len(transaction.body.calls) if transaction.body.mode == EACH else 1
        if count > PROOFS_MAX:
            return await self._prove_by_block(transaction, count)
        proven: dict[int, tuple[Receipt, Verified]] = {}

        async def prove(call_index: int) -> None:
            proven[call_index] = await self.prove_receipt(transaction.id, call_index)

        with single_errors():
            async with trio.open_nursery() as nursery:
                for call_index in range(count):
                    nursery.start_soon(prove, call_index)
        receipts = tuple(proven[call_index][0] for call_index in range(count))
        return Outcome(transaction, receipts, proven[0][1])

    async def _prove_by_block(self, transaction: Transaction, count: int) -> Outcome:
        """Prove the first receipt, and the others by all of its block's receipts together having the same root."""
        first, verified = await self.prove_receipt(transaction.id, 0)
        if not isinstance(verified.claim, ReceiptClaim):
            raise PeerError("bad_proof", "the proof speaks of something else than a receipt")
        start, leaves = verified.claim.path.index, await self._prove_leaves(verified)
        receipts = [receipt_codec.decode_untrusted(leaf) for leaf in leaves[start + 1 : start + count]]
        places = [(receipt.transaction_id, receipt.call_index) for receipt in receipts]
        if places != [(transaction.id, call_index) for call_index in range(1, count)]:
            raise PeerError("bad_proof", "the proof speaks of another transaction's receipts")
        return Outcome(transaction, (first, *receipts), verified)

    async def _prove_leaves(self, block: Verified) -> list[bytes]:
        """Return the bytes of all receipts of a proven block; transactions that share one ask for it once."""
        async with self._leaves_lock:
            if self._leaves_root != block.header.receipts_root:
                params: Parameters = {"height": block.height, "raw": True}
                answer = await self.request("chain_getBlock", params, RawBlockAnswer)
                leaves = list_leaves_untrusted(bytes_of(answer.receipts_raw))
                if list_root(leaves) != block.header.receipts_root:
                    raise PeerError("bad_proof", f"these are not the receipts of block {block.height}")
                self._leaves_root, self._leaves = block.header.receipts_root, leaves
            return self._leaves

    async def prove_receipt(self, transaction_id: bytes, call_index: int = 0) -> tuple[Receipt, Verified]:
        """Return one proven receipt of a final transaction, with the block that holds it.

        Raises:
            Refused: ``not_found``.
            PeerError: the node's proof does not hold.
        """
        params: Parameters = {"id": hex_of(transaction_id), "callIndex": call_index}
        _, verified = await self.prove("chain_getReceipt", params)
        claim = verified.claim
        if not isinstance(claim, ReceiptClaim) or claim.receipt.transaction_id != transaction_id:
            raise PeerError("bad_proof", "the proof speaks of another transaction's receipt")
        if claim.receipt.call_index != call_index:
            raise PeerError("bad_proof", "the proof speaks of another call's receipt")
        return claim.receipt, verified

    async def state(self, key: str, *, height_min: int = 0, is_newest: bool = False) -> StateValue:
        """Return the proven value at a state key, ``CONTRACT/KEY``, as of the newest sealed block.

        ``height_min`` waits until a block that high is sealed, ``is_newest`` until the node's present one
        is. A node can hold back newer blocks, but not make a value up.

        Raises:
            Refused: ``height_not_reached``.
            PeerError: the node's proof does not hold.
        """
        params: Parameters = {"key": key, "prove": True, "minHeight": height_min}
        answer = await self.request("state_get", params, StateAnswer)
        verified = self.verify(proof_from_json_untrusted(answer.proof))
        claim, sealed_height = verified.claim, verified.header.sealed_height
        if not isinstance(claim, StateClaim) or claim.key != key.encode():
            raise PeerError("bad_proof", "the proof speaks of another key")
        if sealed_height < height_min:
            raise PeerError("bad_proof", f"the proof speaks of block {sealed_height}, not of {height_min} or later")
        if is_newest and sealed_height < answer.height:
            return await self.state(key, height_min=answer.height)
        return StateValue(None if claim.value is None else decode_untrusted(claim.value), sealed_height, verified)

    async def prove(self, method: str, params: Parameters) -> tuple[dict[str, object], Verified]:
        """Ask a method with ``prove`` and return the proof file's object with what it proves.

        Raises:
            PeerError: the proof does not hold.
        """
        answer = await self.request(method, {**params, "prove": True}, ProofAnswer)
        return answer.proof, self.verify(proof_from_json_untrusted(answer.proof))

    async def prove_block(self, height: int) -> Verified:
        """Return the proven header at a height.

        Raises:
            PeerError: the node's proof does not hold.
        """
        verified = (await self.prove("chain_getBlock", {"height": height}))[1]
        if not isinstance(verified.claim, BlockClaim) or verified.height != height:
            raise PeerError("bad_proof", "the proof speaks of another block")
        return verified

    def verify(self, proof: Proof) -> Verified:
        """Check a proof against the pinned genesis document.

        Raises:
            PeerError: ``wrong_chain``, ``bad_certificate`` or ``bad_proof``.
        """
        return verify_proof_untrusted(proof, self.genesis)

    # -- believed --------------------------------------------------------------------------------------

    async def query(self, contract: str, method: str, arguments: dict[str, Value] | None = None) -> Value:
        """Ask a contract's query on one node, which is believed.

        Raises:
            Refused: with the contract's code, ``unknown_contract``, ``unknown_method``, ``bad_arguments``.
        """
        params: Parameters = {"contract": contract, "method": method, "raw": hex_of(encode(arguments or {}))}
        answer = await self.request("contract_query", params, QueryAnswer)
        return decode_untrusted(bytes_of(answer.raw))

    async def lane(self, address: bytes, lane: bytes) -> LaneState:
        """Return what one node says of an account's lane.

        Raises:
            Refused: ``unknown_account``.
        """
        params: Parameters = {"account": hex_of(address), "lanes": [hex_of(lane)]}
        answer = await self.request("chain_getAccount", params, AccountAnswer)
        if len(answer.lanes) != 1:
            raise PeerError("bad_answer", "chain_getAccount answers another number of lanes")
        return answer.lanes[0]

    async def lane_next(self, address: bytes, lane: bytes) -> int:
        """Return the number that an account's lane expects next; errors as for :meth:`lane`."""
        return (await self.lane(address, lane)).next

    async def wait_block_after(self, cursor: str) -> None:
        """Return when there is a block after an event cursor, a while has passed, or the node is gone."""
        try:
            await self.anywhere(partial(_hear_block, cursor=cursor))
        except Unreachable:
            await self.pause()

    async def pause(self) -> None:
        """Wait a little before something is tried again."""
        await trio.sleep(ATTEMPT_PAUSE_MS / 1000)


def list_leaves_untrusted(data: bytes) -> list[bytes]:
    """Return the bytes of each of a block's receipts, in order, out of the node's record of them.

    Raises:
        PeerError: ``malformed``.
    """
    try:
        return [bytes(leaf) for leaf in _receipts_decoder.decode(data)[0]]
    except (msgspec.MsgspecError, RecursionError) as error:
        raise PeerError("malformed", f"not the receipts of a block: {error}") from None


async def raw_blocks(node: Transport, start: int, count: int) -> RawBlocksAnswer:
    """Return blocks from a height on with all their receipts, up to ``count``: fewer where they are large.

    Raises:
        Refused: the node's error answer; ``answer_too_large`` for a block that is too large by itself.
        Unreachable, PeerError: as :meth:`Reader.request`.
    """
    while True:
        params: Parameters = {"start": start, "limit": count, "order": "ascending", "raw": True}
        try:
            return await node.request("chain_getBlocks", params, RawBlocksAnswer)
        except Refused as error:
            if error.code != "answer_too_large" or count == 1:
                raise
            count = max(1, count // 4)


async def _itself(connection: Connection) -> Connection:
    return connection


async def _hear_block(connection: Connection, cursor: str) -> None:
    """Return once there is a block after the cursor, or after a while."""
    async with connection.notifications() as heard:
        subscription = await connection.request("subscribe", {"topic": "blocks", "cursor": cursor}, Subscribed)
        with trio.move_on_after(BLOCK_PAUSE_MS / 1000):
            async for _ in heard:
                break
        await connection.request("unsubscribe", {"subscription": subscription.subscription}, object)
