"""How transactions come in: from clients through the RPC, and from the node that a client spoke to.

What a client submits is admitted here and handed on to every validator, many in a frame: whatever
gathers while one frame is on its way makes the next. A transaction that stays is handed on again,
so that a peer which was away still learns of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import trio

from consensus.ledger.block import RawTransaction
from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import Hash
from consensus.ledger.transaction import TRANSACTION_BYTES_MAX
from contracts.runtime.execution import BlockContext
from node.chain import Chain
from node.clock import Clock
from node.mempool import Mempool
from node.stages import Stage
from p2p.frames import FrameKind
from p2p.network import Network

BATCH_TRANSACTIONS_MAX = 1_000
BATCH_BYTES_MAX = 1024 * 1024
GATHER_MS_MIN = 3
"""Pause between two frames of transactions."""
GATHER_MS_MAX = 25
GATHER_WAITING_PER_MS = 20
"""For so many waiting transactions the pause grows by a millisecond: what comes now is not in the next block,
and a frame costs each of its receivers as much as several of its transactions."""
REPEAT_AFTER_MS = 1_000
REPEATED_MAX = 256

RECEIVED_SLICE = 64
"""Transactions of a peer admitted at a stretch, before consensus gets its turn again."""
BLAMED_CODES = frozenset({"malformed", "too_large", "bad_version", "bad_lane", "wrong_chain"})
"""What a peer can see from the bytes alone. Everything else depends on a state and a clock, and an honest peer
may be ahead of ours or behind it: it knows new accounts, or does not know yet that a key was replaced."""
BAD_SIGNATURE_PAUSE_S = 0.0005
"""How long a peer is left waiting for each signature that was checked in vain; checking takes a tenth of it."""


class _Batch(Record, frozen=True):
    transactions: Annotated[list[RawTransaction], msgspec.Meta(max_length=BATCH_TRANSACTIONS_MAX)]


_batch_codec: RecordCodec[_Batch] = RecordCodec(_Batch, bytes_max=BATCH_BYTES_MAX + 2 * TRANSACTION_BYTES_MAX)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the pool says to one submitted transaction.

    ``code`` is empty when it waits now, or waited or was final already; ``height`` is set when it is final, and
    ``valid_until_ms`` when it could be read and is refused.
    """

    transaction_id: Hash | None
    code: str = ""
    message: str = ""
    height: int | None = None
    valid_until_ms: int | None = None


class Intake:
    """The way into the mempool."""

    def __init__(
        self, *, chain: Chain, mempool: Mempool, network: Network, clock: Clock, on_work: Callable[[], None]
    ) -> None:
        self._chain = chain
        self._mempool = mempool
        self._network = network
        self._clock = clock
        self._on_work = on_work
        self._outgoing: list[bytes] = []
        self._has_outgoing = trio.Event()

    def submit_untrusted(self, raws: Sequence[bytes]) -> list[Answer]:
        """Admit a client's transactions in order, hand on what is new, and answer each."""
        block, now_ms = self._next_block(), self._clock.monotonic_ms()
        with self._chain.stages.timed(Stage.ADMIT):
            answers = [self._submit_one(raw, block, now_ms) for raw in raws]
        self._on_work()
        return answers

    def _submit_one(self, raw: bytes, block: BlockContext, now_ms: int) -> Answer:
        try:
            transaction = self._mempool.add_untrusted(raw, self._chain.state, block, now_ms=now_ms)
        except PeerError as error:
            return self._refusal(raw, error)
        if transaction is None:
            return Answer(self._chain.verifier.decode_untrusted(raw).id)
        self._outgoing.append(raw)
        self._has_outgoing.set()
        return Answer(transaction.id)

    def _refusal(self, raw: bytes, error: PeerError) -> Answer:
        """Answer a refusal; one that is final already is none (the same id again gives the same receipt)."""
        try:
            transaction = self._chain.verifier.decode_untrusted(raw)
        except PeerError:
            return Answer(None, error.code, error.message)
        self._chain.verifier.forget(raw)
        location = self._chain.reader.locate(transaction.id)
        if location is not None:
            return Answer(transaction.id, height=location.height)
        return Answer(transaction.id, error.code, error.message, valid_until_ms=transaction.body.valid_until_ms)

    async def receive_untrusted(self, payload: bytes) -> None:
        """Take transactions that a peer hands on; they are not handed on again.

        Raises:
            PeerError: when the peer should have known better than to send one of them.
        """
        raws = _batch_codec.decode_untrusted(payload).transactions
        blame: PeerError | None = None
        pause_s = 0.0
        for start in range(0, len(raws), RECEIVED_SLICE):
            if start:
                await trio.lowlevel.checkpoint()
            for error in self._take(raws[start : start + RECEIVED_SLICE]):
                if error.code in BLAMED_CODES:
                    blame = error
                elif error.code == "bad_signature":
                    pause_s += BAD_SIGNATURE_PAUSE_S
        if pause_s:
            await trio.sleep(pause_s)
        if blame is not None:
            raise blame

    def _take(self, raws: Sequence[bytes]) -> list[PeerError]:
        """Admit what can be admitted and return why the rest cannot."""
        refusals: list[PeerError] = []
        block, now_ms = self._next_block(), self._clock.monotonic_ms()
        with self._chain.stages.timed(Stage.ADMIT):
            for raw in raws:
                try:
                    self._mempool.add_untrusted(raw, self._chain.state, block, now_ms=now_ms)
                except PeerError as error:
                    refusals.append(error)
        self._on_work()
        return refusals

    def _next_block(self) -> BlockContext:
        """Return the first block that a transaction could stand in, at the earliest time it can have."""
        time_ms = max(self._clock.wall_ms(), self._chain.head.header.time_ms + 1)
        return self._chain.next_block("", time_ms)

    async def run(self) -> None:
        """Hand on what was submitted, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._repeat)
            while True:
                await self._has_outgoing.wait()
                self._has_outgoing = trio.Event()
                outgoing, self._outgoing = self._outgoing, []
                self._hand_on(outgoing)
                # A lone transaction has left at once; of many, those that follow now go together.
                pause_ms = min(GATHER_MS_MAX, GATHER_MS_MIN + len(self._mempool) // GATHER_WAITING_PER_MS)
                await trio.sleep(pause_ms / 1_000)

    async def _repeat(self) -> None:
        """Hand on again what still waits here after a while, oldest first."""
        while True:
            await trio.sleep(REPEAT_AFTER_MS / 1_000)
            before_ms = self._clock.monotonic_ms() - REPEAT_AFTER_MS
            self._hand_on(self._mempool.waiting_since(before_ms, count_max=REPEATED_MAX))

    def _hand_on(self, raws: Sequence[bytes]) -> None:
        batch: list[bytes] = []
        size = 0
        for raw in raws:
            if batch and (len(batch) == BATCH_TRANSACTIONS_MAX or size + len(raw) > BATCH_BYTES_MAX):
                self._broadcast(batch)
                batch, size = [], 0
            batch.append(raw)
            size += len(raw)
        if batch:
            self._broadcast(batch)

    def _broadcast(self, batch: list[bytes]) -> None:
        self._network.broadcast(
            FrameKind.TRANSACTIONS,
            _batch_codec.encode(_Batch(batch)),
            among=self._chain.head.validators.names,
        )
