"""The client of a consortium: signs, submits, and waits for proven receipts.

Only :meth:`Client.wait_final` and :meth:`Client.submit_many` believe the node they ask; reading and what is
proven stand in :mod:`services.client.reader`.
"""

import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import SystemRandom

import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import InvariantError, LocalError, PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.ids import Address
from consensus.ledger.transaction import ATOMIC, Call, Transaction, make_call, sign_transaction
from services.client.answers import (
    SubmitAnswer,
    WaitAnswer,
    bytes_of,
    hex_of,
)
from services.client.connection import Connection, FrameAnswer, Parameters
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.client.lanes import Lane, Lanes
from services.client.link import Link
from services.client.outcome import Final, Outcome, Submitted
from services.client.reader import ATTEMPT_PAUSE_MS, Reader
from services.client.tasks import single_errors
from services.client.times import utc_text

OnSigned = Callable[[Transaction], None]
"""Hears of a signed transaction before it is submitted, so that its id is known whatever happens then."""

VALIDITY_MS = 60_000
"""How long a transaction may wait before it can no longer be included, if nothing else is said."""
FIRST_WAIT_STEP_MS = 1_000
WAIT_STEP_MS = 5_000
"""How long one node is asked about a transaction before another node gets it too: doubling from the first."""
SUBMIT_TRANSACTIONS_MAX = 1_000
SUBMIT_BYTES_MAX = 2 * 1024 * 1024
ATTEMPTS_MAX = 8
"""How often a call is signed anew when another program took its number."""

_randomness = SystemRandom()

# Another transaction with this number waits, or the pool is full: whether ours will be included is open. To sign
# anew now could make both take effect.
_UNDECIDED = {"lane_number_taken", "pool_full", "sender_full"}
# Another transaction with this number is final, so ours never can be: to sign anew is safe.
_LANE_TAKEN = {"lane_used", "lane_consumed"}


def nobody_hears(transaction: Transaction) -> None:
    """Do nothing with a signed transaction."""


class Client(Reader):
    """A connection to a consortium; made by :func:`open_client`."""

    def __init__(self, genesis: Genesis, links: Sequence[Link], now_ms: Callable[[], int]) -> None:
        super().__init__(genesis, links)
        self._now_ms = now_ms
        self._lanes: dict[tuple[Address, bytes], Lanes] = {}

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
            for answer in await self.anywhere(partial(_submit_frame, raws=batch, wait_ms=wait_ms)):
                height = answer.height or None
                answers.append(Submitted(answer.transaction_id, answer.code, "", height, answer.failed_count))
        if [answer.transaction_id for answer in answers if answer.is_accepted] != [
            transaction.id for transaction, answer in zip(transactions, answers, strict=True) if answer.is_accepted
        ]:
            raise PeerError("bad_answer", "a node answers other transactions than were submitted")
        return answers

    def lanes(self, signer: Signer, *, count: int = 1, prefix: bytes = b"") -> Lanes:
        """Return the lanes under a prefix of this account; who asks first for a prefix decides how many.

        Raises:
            LocalError: ``bad_lane``.
        """
        key = (signer.address, prefix)
        if key not in self._lanes:

            async def read_next(lane: bytes) -> int:
                return await self.lane_next(signer.address, lane)

            self._lanes[key] = Lanes(read_next, count=count, prefix=prefix)
        return self._lanes[key]

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
        on_signed: OnSigned = nobody_hears,
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
                    return await self._call_in(lane, signer, calls, mode, timeout_ms, on_signed)
                except Refused as error:
                    lane.forget()
                    if error.code not in _LANE_TAKEN or attempt == ATTEMPTS_MAX:
                        raise
            await trio.sleep(ATTEMPT_PAUSE_MS * attempt / 1000)
        raise InvariantError("the last attempt returns or raises")

    async def _call_in(
        self, lane: Lane, signer: Signer, calls: Sequence[Call], mode: int, timeout_ms: int, on_signed: OnSigned
    ) -> Outcome:
        sequence = await lane.take()
        transaction = self.sign(signer, calls, sequence=sequence, lane=lane.name, mode=mode, validity_ms=timeout_ms)
        on_signed(transaction)
        return await self.submit_and_wait(transaction, timeout_ms=timeout_ms)

    async def call_once(
        self,
        signer: Signer,
        calls: Sequence[Call],
        lane: bytes,
        *,
        mode: int = ATOMIC,
        timeout_ms: int = VALIDITY_MS,
        on_signed: OnSigned = nobody_hears,
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
            on_signed(transaction)
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
        if answer.is_accepted:
            return await self.wait(transaction, timeout_ms=timeout_ms)
        if answer.code not in _UNDECIDED:
            raise Refused(answer.code, answer.message)
        return await self._wait(transaction, timeout_ms=timeout_ms, step_ms=ATTEMPT_PAUSE_MS, refusal=answer)

    async def wait(self, transaction: Transaction, *, timeout_ms: int = VALIDITY_MS) -> Outcome:
        """Wait until a submitted transaction is final and return its proven receipts.

        While the outcome is unknown, the identical bytes go to another node, which cannot do harm.

        Raises:
            Refused: it can no longer be included: ``lane_used`` or ``lane_consumed`` when its number has
                gone to another one, which is final; other codes when all nodes in turn refuse it.
            Unreachable: ``outcome_unknown`` after ``timeout_ms``, with the last refusal that left it open.
            PeerError: a node's proof does not hold.
        """
        return await self._wait(transaction, timeout_ms=timeout_ms, step_ms=FIRST_WAIT_STEP_MS)

    async def _wait(
        self, transaction: Transaction, *, timeout_ms: int, step_ms: int, refusal: Submitted | None = None
    ) -> Outcome:
        deadline = trio.current_time() + timeout_ms / 1000
        refusals = 0
        while (left_ms := int(1000 * (deadline - trio.current_time()))) > 0:
            try:
                if (await self._wait_step([transaction.id], min(left_ms, step_ms)))[0].final:
                    return await self.prove_outcome(transaction)
                self.leave_node()
                answer = await self.submit(transaction)
            except (Unreachable, Refused) as error:
                if isinstance(error, Refused) and error.code != "not_found":  # a node behind the first one
                    raise
                refusals = 0
                self.leave_node()
                await self.pause()
                continue
            step_ms = min(2 * step_ms, WAIT_STEP_MS)
            if answer.is_accepted or answer.code in _UNDECIDED:
                refusals, refusal = 0, refusal if answer.is_accepted else answer
                continue
            refusals, step_ms = refusals + 1, ATTEMPT_PAUSE_MS
            if answer.code in _LANE_TAKEN or refusals > self.node_count:
                raise Refused(answer.code, answer.message + _before(refusal))
        valid_until = utc_text(transaction.body.valid_until_ms)
        raise Unreachable(
            f"transaction {hex_of(transaction.id)} was not final after {timeout_ms} ms{_before(refusal)};"
            f" it is valid until {valid_until} UTC, and no block after that can hold it",
            code="outcome_unknown",
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


def _before(refusal: Submitted | None) -> str:
    """Return what an error adds of a refusal that left the outcome open."""
    return "" if refusal is None else f"; a node refused it with {refusal.code}: {refusal.message}"


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
