"""The client of a consortium: several nodes, one chain, nothing believed that can be checked.

A request goes to the node that answered last; when that one cannot be reached, to the next. That is safe
for everything: reads have no effect, and the same signed bytes submitted twice are one transaction.
Answers to :meth:`Client.wait`, :meth:`Client.outcome`, :meth:`Client.state` and :meth:`Client.prove` come
with a certificate and a path that lead to the pinned genesis document, and are checked here: a node whose
proof fails raises :class:`~consensus.ledger.errors.PeerError`. Only :meth:`Client.query`,
:meth:`Client.wait_final`, :meth:`Client.submit_many` and followed events believe the node they ask.
"""

import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import SystemRandom
from typing import TypeVar

import trio

from consensus.ledger.codec import Value, decode_untrusted, encode
from consensus.ledger.errors import HansaError, InvariantError, LocalError, PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.ids import Address
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
from consensus.ledger.receipt import Receipt
from consensus.ledger.transaction import ATOMIC, EACH, Call, Transaction, make_call, sign_transaction
from services.client.answers import (
    AccountAnswer,
    LaneState,
    ProofAnswer,
    QueryAnswer,
    StateAnswer,
    SubmitAnswer,
    Subscribed,
    WaitAnswer,
    bytes_of,
    hex_of,
)
from services.client.connection import REQUEST_TIMEOUT_MS, Connection, FrameAnswer, Parameters
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.client.lanes import Lane, Lanes
from services.client.link import Link
from services.client.outcome import Final, Outcome, StateValue, Submitted
from services.client.tasks import single_errors

VALIDITY_MS = 60_000
"""How long a transaction may wait before it can no longer be included, if nothing else is said."""
FIRST_WAIT_STEP_MS = 1_000
WAIT_STEP_MS = 5_000
"""How long one node is asked about a transaction before another node gets it too: doubling from the first."""
SUBMIT_TRANSACTIONS_MAX = 1_000
SUBMIT_BYTES_MAX = 2 * 1024 * 1024
ATTEMPTS_MAX = 8
"""How often a call is signed anew when another program took its number."""
ATTEMPT_PAUSE_MS = 50
BLOCK_PAUSE_MS = 20_000
"""How long a new block is waited for at the most."""

T = TypeVar("T")

_randomness = SystemRandom()

_TEMPORARY = {"pool_full", "sender_full"}
_LANE_TAKEN = {"lane_used", "lane_gap", "lane_number_taken", "lane_consumed"}


class Client:
    """A connection to a consortium; made by :func:`open_client`."""

    def __init__(self, genesis: Genesis, links: Sequence[Link], now_ms: Callable[[], int]) -> None:
        self.genesis = genesis
        self.chain_id = genesis.chain_id()
        self._links = list(links)
        self._now_ms = now_ms
        self._preferred = 0
        self._lanes: dict[tuple[Address, bytes], Lanes] = {}

    # -- requests --------------------------------------------------------------------------------------

    async def request(
        self, method: str, params: Parameters, kind: type[T], *, timeout_ms: int = REQUEST_TIMEOUT_MS
    ) -> T:
        """Ask the first node that can be reached.

        Raises:
            Refused: the node's error answer.
            Unreachable: no node answers.
            PeerError: ``bad_answer``; ``wrong_chain`` when every node reached serves another chain.
        """
        return await self._anywhere(lambda connection: connection.request(method, params, kind, timeout_ms=timeout_ms))

    async def _anywhere(self, use: Callable[[Connection], Awaitable[T]]) -> T:
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

    def _leave_node(self) -> None:
        """Prefer the next node from now on."""
        self._preferred = (self._preferred + 1) % len(self._links)

    # -- signing and submitting ------------------------------------------------------------------------

    def sign(
        self,
        signer: Signer,
        calls: Sequence[Call],
        *,
        sequence: int,
        lane: bytes = b"",
        mode: int = ATOMIC,
        validity_ms: int = VALIDITY_MS,
    ) -> Transaction:
        """Sign calls as one transaction, valid for ``validity_ms`` (at most an hour) from now.

        A random part of up to a quarter is taken off: two programs that sign the same calls with the same
        number in the same millisecond would otherwise make one transaction, and both take it for theirs.

        Raises:
            LocalError: ``too_large``, ``bad_lane`` or ``malformed``.
        """
        return sign_transaction(
            signer.key,
            self.chain_id,
            list(calls),
            sequence=sequence,
            valid_until_ms=self._now_ms() + validity_ms - _randomness.randrange(max(1, validity_ms // 4)),
            lane=lane,
            mode=mode,
            sender=signer.address,
        )

    async def submit(self, transaction: Transaction) -> Submitted:
        """Submit one signed transaction and return the node's answer; finality is for :meth:`wait`."""
        params: Parameters = {"transactions": [b64encode(transaction.raw).decode()]}
        answers = await self.request("tx_submit", params, list[SubmitAnswer])
        if len(answers) != 1:
            raise PeerError("bad_answer", "tx_submit answers one transaction with another count")
        return Submitted(transaction.id, answers[0].code, answers[0].message)

    async def submit_many(self, transactions: Sequence[Transaction], *, wait_ms: int = 0) -> list[Submitted]:
        """Submit signed transactions in few large frames; answers come in the same order.

        With ``wait_ms`` (up to 60,000) each frame is answered when all that the node accepts of it are
        final, or time is up; frames follow each other. The node is believed.

        Raises:
            Unreachable: no node answers; it is unknown what was taken, and safe to submit again.
        """
        answers: list[Submitted] = []
        for batch in _batches([transaction.raw for transaction in transactions]):
            for answer in await self._anywhere(partial(_submit_frame, raws=batch, wait_ms=wait_ms)):
                height = answer.height or None
                answers.append(Submitted(answer.transaction_id, answer.code, "", height, answer.failed_count))
        if [answer.transaction_id for answer in answers if answer.is_accepted] != [
            transaction.id for transaction, answer in zip(transactions, answers, strict=True) if answer.is_accepted
        ]:
            raise PeerError("bad_answer", "a node answers other transactions than were submitted")
        return answers

    def lanes(self, signer: Signer, *, count: int = 1, prefix: bytes = b"") -> Lanes:
        """Return the lanes under a prefix of this account, shared by all who ask for the same ones.

        Raises:
            LocalError: ``bad_lane``.
        """
        key = (signer.address, prefix)
        if key not in self._lanes:

            async def read_next(lane: bytes) -> int:
                return await self.lane_next(signer.address, lane)

            self._lanes[key] = Lanes(read_next, count=count, prefix=prefix)
        return self._lanes[key]

    async def lane_next(self, address: bytes, lane: bytes) -> int:
        """Return the number that an account's lane expects next; errors as for :meth:`lane`."""
        return (await self.lane(address, lane)).next

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

    async def call(
        self,
        signer: Signer,
        contract: str,
        method: str,
        arguments: dict[str, Value],
        *,
        lanes: Lanes | None = None,
        timeout_ms: int = VALIDITY_MS,
    ) -> Outcome:
        """Call one method and wait for its proven receipt; ``lanes`` as for :meth:`call_many`."""
        calls = [make_call(contract, method, arguments)]
        return await self.call_many(signer, calls, mode=ATOMIC, lanes=lanes, timeout_ms=timeout_ms)

    async def call_many(
        self,
        signer: Signer,
        calls: Sequence[Call],
        *,
        mode: int = ATOMIC,
        lanes: Lanes | None = None,
        timeout_ms: int = VALIDITY_MS,
    ) -> Outcome:
        """Sign, submit and wait for proven receipts; ``mode`` is ``ATOMIC`` or ``EACH``.

        Uses a free lane of ``lanes``, by default the account's unnamed lane. When another program took the
        number, the call is signed again with the next one.

        Raises:
            Refused: the transaction was not included, with the node's code. A failed receipt does not
                raise: see :meth:`Outcome.check`.
            Unreachable: ``outcome_unknown`` and others; submit the same thing again only by a one-shot lane.
        """
        for attempt in range(1, ATTEMPTS_MAX + 1):
            async with (lanes or self.lanes(signer)).lease() as lane:
                try:
                    return await self._call_in(lane, signer, calls, mode, timeout_ms)
                except Refused as error:
                    lane.forget()
                    if error.code not in _LANE_TAKEN or attempt == ATTEMPTS_MAX:
                        raise
            await trio.sleep(ATTEMPT_PAUSE_MS * attempt / 1000)
        raise InvariantError("the last attempt returns or raises")

    async def _call_in(self, lane: Lane, signer: Signer, calls: Sequence[Call], mode: int, timeout_ms: int) -> Outcome:
        sequence = await lane.take()
        transaction = self.sign(signer, calls, sequence=sequence, lane=lane.name, mode=mode, validity_ms=timeout_ms)
        return await self.submit_and_wait(transaction, timeout_ms=timeout_ms)

    async def call_once(
        self, signer: Signer, calls: Sequence[Call], lane: bytes, *, mode: int = ATOMIC, timeout_ms: int = VALIDITY_MS
    ) -> Outcome:
        """Make calls that take effect once however often this is run: ``lane`` is one-shot, of 32 bytes.

        The outcome is the first run's, whoever made it.

        Raises:
            Refused: ``once_used`` when the lane holds other calls, and others.
            Unreachable: the outcome is unknown; just call again.
        """
        for attempt in range(1, ATTEMPTS_MAX + 1):
            state = await self.lane(signer.address, lane)
            if state.last_id is not None:
                outcome = await self.outcome(bytes_of(state.last_id))
                if outcome.transaction.body.calls != list(calls) or outcome.transaction.body.mode != mode:
                    raise Refused("once_used", f"block {outcome.height} holds another call for the same key")
                return outcome
            transaction = self.sign(signer, calls, sequence=0, lane=lane, mode=mode, validity_ms=timeout_ms)
            try:
                return await self.submit_and_wait(transaction, timeout_ms=timeout_ms)
            except Refused as error:
                if error.code not in _LANE_TAKEN or attempt == ATTEMPTS_MAX:
                    raise
            await trio.sleep(ATTEMPT_PAUSE_MS * attempt / 1000)
        raise InvariantError("the last attempt returns or raises")

    # -- waiting ---------------------------------------------------------------------------------------

    async def submit_and_wait(self, transaction: Transaction, *, timeout_ms: int = VALIDITY_MS) -> Outcome:
        """Submit a signed transaction and wait for its proven receipts; errors as for :meth:`wait`."""
        answer = await self.submit(transaction)
        if not answer.is_accepted:
            raise Refused(answer.code, answer.message)
        return await self.wait(transaction, timeout_ms=timeout_ms)

    async def wait(self, transaction: Transaction, *, timeout_ms: int = VALIDITY_MS) -> Outcome:
        """Wait until a submitted transaction is final and return its proven receipts.

        While the outcome is unknown, the identical bytes go to another node, which cannot do harm.

        Raises:
            Refused: it can no longer be included (``expired``, ``lane_used``, …).
            Unreachable: ``outcome_unknown`` after ``timeout_ms``.
            PeerError: a node's proof does not hold.
        """
        deadline = trio.current_time() + timeout_ms / 1000
        refusals, step_ms = 0, FIRST_WAIT_STEP_MS
        while (left_ms := int(1000 * (deadline - trio.current_time()))) > 0:
            try:
                if (await self._wait_step([transaction.id], min(left_ms, step_ms)))[0].final:
                    return await self._prove_outcome(transaction)
                self._leave_node()
                answer = await self.submit(transaction)
            except Unreachable:
                self._leave_node()
                await trio.sleep(ATTEMPT_PAUSE_MS / 1000)
                continue
            step_ms = min(2 * step_ms, WAIT_STEP_MS)
            if not answer.is_accepted and answer.code not in _TEMPORARY:
                refusals, step_ms = refusals + 1, ATTEMPT_PAUSE_MS
                if refusals > len(self._links):  # it may have become final in between: all were asked once more
                    raise Refused(answer.code, answer.message)
        raise Unreachable(
            f"transaction {hex_of(transaction.id)} was not final after {timeout_ms} ms", code="outcome_unknown"
        )

    async def wait_final(self, transaction_ids: Sequence[bytes], *, timeout_ms: int = VALIDITY_MS) -> list[Final]:
        """Wait until all these transactions are final, and believe the node; for bulk work.

        Raises:
            Unreachable: ``outcome_unknown`` when one is not final after ``timeout_ms``.
        """
        deadline = trio.current_time() + timeout_ms / 1000
        finals: list[Final] = []
        for start in range(0, len(transaction_ids), SUBMIT_TRANSACTIONS_MAX):
            ids = transaction_ids[start : start + SUBMIT_TRANSACTIONS_MAX]
            while True:
                left_ms = max(0, int(1000 * (deadline - trio.current_time())))
                answers = await self._wait_step(ids, min(left_ms, WAIT_STEP_MS))
                if all(answer.final for answer in answers):
                    break
                if not left_ms:
                    late = next(answer for answer in answers if not answer.final)
                    raise Unreachable(
                        f"{late.id} is {late.stage} after {timeout_ms} ms: {late.code}", code="outcome_unknown"
                    )
            finals += [Final(bytes_of(answer.id), answer.height, answer.failed_count) for answer in answers]
        return finals

    async def _wait_step(self, ids: Sequence[bytes], timeout_ms: int) -> list[WaitAnswer]:
        params: Parameters = {"ids": [hex_of(item) for item in ids], "timeoutMs": timeout_ms, "receipts": False}
        answers = await self.request("tx_wait", params, list[WaitAnswer], timeout_ms=timeout_ms + WAIT_STEP_MS)
        if [bytes_of(answer.id) for answer in answers] != [bytes(item) for item in ids]:
            raise PeerError("bad_answer", "tx_wait answers other transactions than were asked for")
        return answers

    async def outcome(self, transaction_id: bytes) -> Outcome:
        """Return a final transaction with its proven receipts.

        Raises:
            Refused: ``not_found``.
            PeerError: a node's proof does not hold.
        """
        params: Parameters = {"id": hex_of(transaction_id), "prove": True}
        answer = await self.request("chain_getTransaction", params, ProofAnswer)
        verified = self.verify(proof_from_json_untrusted(answer.proof))
        if not isinstance(verified.claim, TransactionClaim) or verified.claim.transaction.id != transaction_id:
            raise PeerError("bad_proof", "the proof speaks of another transaction")
        return await self._prove_outcome(verified.claim.transaction)

    async def _prove_outcome(self, transaction: Transaction) -> Outcome:
        count = len(transaction.body.calls) if transaction.body.mode == EACH else 1
        receipts: list[Receipt] = []
        for call_index in range(count):
            params: Parameters = {"id": hex_of(transaction.id), "prove": True, "callIndex": call_index}
            answer = await self.request("chain_getReceipt", params, ProofAnswer)
            verified = self.verify(proof_from_json_untrusted(answer.proof))
            claim = verified.claim
            if not isinstance(claim, ReceiptClaim) or claim.receipt.transaction_id != transaction.id:
                raise PeerError("bad_proof", "the proof speaks of another transaction's receipt")
            if claim.receipt.call_index != call_index:
                raise PeerError("bad_proof", "the proof speaks of another call's receipt")
            receipts.append(claim.receipt)
        return Outcome(transaction, tuple(receipts), verified)

    # -- reading ---------------------------------------------------------------------------------------

    async def query(self, contract: str, method: str, arguments: dict[str, Value] | None = None) -> Value:
        """Ask a contract's query on one node, which is believed.

        Raises:
            Refused: with the contract's code, ``unknown_contract``, ``unknown_method``, ``bad_arguments``.
        """
        params: Parameters = {"contract": contract, "method": method, "raw": hex_of(encode(arguments or {}))}
        answer = await self.request("contract_query", params, QueryAnswer)
        return decode_untrusted(bytes_of(answer.raw))

    async def state(self, key: str, *, height_min: int = 0, is_newest: bool = False) -> StateValue:
        """Return the proven value at a state key, ``CONTRACT/KEY``, as of the newest sealed block.

        ``height_min`` waits until a block that high is sealed, ``is_newest`` until the present one is.

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

    async def wait_block_after(self, cursor: str) -> None:
        """Return when there is a block after an event cursor, a while has passed, or the node is gone."""
        try:
            await self._anywhere(partial(_hear_block, cursor=cursor))
        except Unreachable:
            await self.pause()

    async def pause(self) -> None:
        """Wait a little before something is tried again."""
        await trio.sleep(ATTEMPT_PAUSE_MS / 1000)


@asynccontextmanager
async def open_client(
    genesis: Genesis,
    urls: Sequence[str],
    *,
    tls: ssl.SSLContext | None = None,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> AsyncIterator[Client]:
    """Give a client to the nodes at these URLs for the time of the block; it connects when it is used.

    Raises:
        LocalError: ``no_nodes`` when no URL is given.
    """
    if not urls:
        raise LocalError("no_nodes", "a client needs the URL of a node at least")
    links = [Link(url, genesis.chain_id(), tls) for url in urls]
    with single_errors():
        async with trio.open_nursery() as nursery:
            for link in links:
                nursery.start_soon(link.run)
            yield Client(genesis, links, now_ms)
            nursery.cancel_scope.cancel()


def _batches(raws: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Cut a list so that each part fits one message."""
    batch: list[bytes] = []
    size = 0
    for raw in raws:
        if batch and (len(batch) == SUBMIT_TRANSACTIONS_MAX or size + len(raw) > SUBMIT_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(raw)
        size += len(raw)
    if batch:
        yield batch


async def _submit_frame(connection: Connection, raws: Sequence[bytes], wait_ms: int) -> list[FrameAnswer]:
    return await connection.submit_frame(raws, wait_ms=wait_ms)


async def _hear_block(connection: Connection, cursor: str) -> None:
    """Return once there is a block after the cursor, or after a while."""
    async with connection.notifications() as heard:
        subscription = await connection.request("subscribe", {"topic": "blocks", "cursor": cursor}, Subscribed)
        with trio.move_on_after(BLOCK_PAUSE_MS / 1000):
            async for _ in heard:
                break
        await connection.request("unsubscribe", {"subscription": subscription.subscription}, object)
