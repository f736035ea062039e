"""Brings calls to the chain, however long that takes, and returns their proven outcome.

While an outcome is unknown the identical bytes go to one node after the other. When the validity of a transaction
has passed, its calls are signed again under the same number of the same lane: the chain takes one transaction for
a number, so that the old one and the new one exclude each other whatever becomes of either. Only a number that does not
come up in all that time, since a node had made it up, is given up.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import structlog
import trio

from consensus.ledger.errors import HansaError, PeerError
from consensus.ledger.transaction import EACH, Call, Transaction
from services.client.answers import bytes_of
from services.client.client import Client
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.client.lanes import Lane, Lanes
from services.client.outcome import Outcome

VALIDITY_MS = 120_000
"""So long a transaction of a program that was killed may still be included."""
STEP_MS = 10_000
"""How long the client keeps at a transaction by itself; then the log says that there is trouble."""
PAUSE_FIRST_MS = 50
PAUSE_MAX_MS = 2_000
_LANE_TAKEN = {"lane_used", "lane_consumed"}

log = structlog.get_logger("submitter")


class Submitter:
    """Signs for one account, in lanes of its own, one transaction a lane at a time."""

    def __init__(
        self,
        client: Client,
        signer: Signer,
        lanes: Lanes,
        *,
        validity_ms: int = VALIDITY_MS,
        step_ms: int = STEP_MS,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._client = client
        self._signer = signer
        self._lanes = lanes
        self._validity_ms = validity_ms
        self._step_ms = step_ms
        self._now_ms = now_ms
        self._trouble = ""
        self._pause_ms = PAUSE_FIRST_MS

    @property
    def trouble(self) -> str:
        """Why nothing gets to the chain at present, as an error's code; "" while it does."""
        return self._trouble

    async def submit(self, calls: Sequence[Call]) -> Outcome:
        """Return the proven outcome of calls that stand each for itself; waits while the chain cannot take them.

        Raises:
            LocalError: ``too_large`` and others, for what cannot be signed at all.
        """
        async with self._lanes.lease() as lane:
            while True:
                outcome = await self._submit_in(lane, calls)
                if outcome is not None:
                    self._on_progress()
                    return outcome
                lane.forget()
                await self._client.pause()

    async def _submit_in(self, lane: Lane, calls: Sequence[Call]) -> Outcome | None:
        """Return the outcome of the calls under the lane's next number, None when others have taken it."""
        sequence = await self._number(lane.take)
        while True:
            transaction = self._client.sign(
                self._signer, calls, sequence=sequence, lane=lane.name, mode=EACH, validity_ms=self._validity_ms
            )
            is_valid = True
            while is_valid:
                try:
                    return await self._client.submit_and_wait(transaction, timeout_ms=self._step_ms)
                except (Unreachable, Refused, PeerError) as error:
                    if error.code in _LANE_TAKEN:
                        return await self._holder(transaction)
                    await self._on_trouble(error)
                is_valid = self._now_ms() <= transaction.body.valid_until_ms
            if await self._number(partial(self._client.lane_next, self._signer.address, lane.name)) < sequence:
                return None

    async def _number(self, read: Callable[[], Awaitable[int]]) -> int:
        while True:
            try:
                return await read()
            except (Unreachable, Refused, PeerError) as error:
                await self._on_trouble(error)

    async def _holder(self, transaction: Transaction) -> Outcome | None:
        """Return the outcome of the transaction that has our number if it holds our calls, None for any other."""
        body = transaction.body
        place = (body.sender, body.lane, body.sequence)
        while True:
            try:
                state = await self._client.lane(body.sender, body.lane)
                if state.next != body.sequence + 1 or state.last_id is None:
                    return None
                outcome = await self._client.outcome(bytes_of(state.last_id))
                held = outcome.transaction.body
                # What is proven is that transaction's outcome, and not that it has our number: an earlier one with the
                # same calls may have ended otherwise.
                if (held.sender, held.lane, held.sequence) != place:
                    raise PeerError("bad_answer", "the node names a transaction with another number")
            except (Unreachable, Refused, PeerError) as error:
                await self._on_trouble(error)
            else:
                return outcome if held.calls == body.calls and held.mode == body.mode else None

    async def _on_trouble(self, error: HansaError) -> None:
        """Say what is new about it, turn to the next node, and wait a little longer each time."""
        if error.code != self._trouble:
            log.warning("chain in trouble", code=error.code, why=error.message)
        self._trouble = error.code
        if not isinstance(error, Unreachable):  # from a node that cannot be reached the client turns away by itself
            self._client.leave_node()
        pause_ms, self._pause_ms = self._pause_ms, min(2 * self._pause_ms, PAUSE_MAX_MS)
        await trio.sleep(pause_ms / 1000)

    def _on_progress(self) -> None:
        if self._trouble:
            log.info("chain answers again", after=self._trouble)
        self._trouble, self._pause_ms = "", PAUSE_FIRST_MS
