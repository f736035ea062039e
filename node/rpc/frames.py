"""Binary frames of one WebSocket: transactions in, answers out, at little cost for each.

A frame is canonical MessagePack of ``[id, [raw transaction, …]]`` or ``[id, [raw, …], waitMs]``, with an
integer id. A binary message from the node holds one or more answers, all that were ready: ``[[id, [[transaction
id, code, height, failed], …]], …]``, each with its frame's transactions in order. ``code`` is empty when the
transaction is accepted or final, ``height`` is 0 while it is not final, ``failed`` counts its failed
receipts. With ``waitMs`` (up to 60,000) the answer comes when all accepted ones are final or time is up.

A frame that waits is an entry in a table and no task: thousands may wait for one block.
"""

from collections.abc import Callable, Sequence

import msgspec
import trio

from consensus.ledger.errors import PeerError
from consensus.ledger.receipt import OK
from node.rpc.backend import Submission
from node.rpc.context import Context
from node.rpc.feed import Ticket
from node.rpc.methods_chain import receipts_at
from node.rpc.methods_transactions import SUBMIT_MAX, WAIT_MS_MAX
from node.rpc.outbox import Outbox, Room
from node.rpc.protocol import BODY_BYTES_MAX

EXPIRY_STEP_MS = 50
"""How much later than its time a frame may be answered."""

Answer = tuple[int, list[tuple[bytes, str, int, int]]]
"""A frame's id, and for each of its transactions id, code, height and number of failed receipts."""


class Frame(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What a client sends."""

    id: int
    transactions: list[bytes]
    wait_ms: int = 0


class _Waiting:
    """A frame whose transactions are not all final yet; ``size`` of its message, in bytes."""

    __slots__ = ("answers", "deadline_s", "frame", "size", "ticket")

    def __init__(self, frame: Frame, answers: Sequence[Submission], size: int) -> None:
        self.frame = frame
        self.answers = answers
        self.size = size
        self.deadline_s = trio.current_time() + frame.wait_ms / 1_000
        self.ticket: Ticket | None = None


_decoder = msgspec.msgpack.Decoder(Frame)
_encoder = msgspec.msgpack.Encoder()


class FrameDesk:
    """Takes the frames of one session and keeps their answers until the writer comes for them.

    A frame keeps its place in ``room`` until its answer is taken, which bounds both. ``pack`` makes a
    message of its bytes.
    """

    def __init__(self, context: Context, room: Room, outbox: Outbox, *, pack: Callable[[bytes], bytes]) -> None:
        self._context = context
        self._room = room
        self._outbox = outbox
        self._pack = pack
        self._waiting: dict[_Waiting, None] = {}
        self._has_waiting = trio.Event()
        self._ready: list[Answer] = []
        self._ready_size = 0
        """Size of the frames that these answer, in bytes."""

    async def take(self, frame: Frame, size: int) -> None:
        """Submit a frame's transactions; its answer will be ready when it is time.

        Raises:
            PeerError: ``too_many_waiting``; there is no answer then.
        """
        context = self._context
        height = context.backend.head().header.height
        answers = await context.backend.submit(frame.transactions)
        waiting = _Waiting(frame, answers, size)
        open_ids = [item.transaction_id for item in answers if not item.code and item.height is None]
        if not frame.wait_ms or not open_ids:
            self._finish(waiting)
            return
        self._waiting[waiting] = None
        try:
            waiting.ticket = context.feed.watch(open_ids, lambda: self._finish(waiting), since=height)
        except PeerError:
            del self._waiting[waiting]
            raise
        if len(self._waiting) == 1:
            self._has_waiting.set()

    async def run(self) -> None:
        """Answer the frames whose time is up; until cancelled, then nothing waits any more."""
        try:
            while True:
                await self._has_waiting.wait()
                await trio.sleep(EXPIRY_STEP_MS / 1_000)
                now_s = trio.current_time()
                for waiting in [item for item in self._waiting if item.deadline_s <= now_s]:
                    self._finish(waiting)
                if not self._waiting:
                    self._has_waiting = trio.Event()
        finally:
            for waiting in self._waiting:
                self._return_ticket(waiting)

    def _render(self) -> bytes:
        """Return one message with all answers that are ready, and free their places."""
        message = self._pack(_encoder.encode(self._ready))
        self._room.leave(self._ready_size, count=len(self._ready))
        self._ready.clear()
        self._ready_size = 0
        return message

    def _finish(self, waiting: _Waiting) -> None:
        self._waiting.pop(waiting, None)
        self._return_ticket(waiting)
        if not self._ready:
            self._outbox.put_later(self._render)
        self._ready.append((waiting.frame.id, [self._outcome(item, waiting.ticket) for item in waiting.answers]))
        self._ready_size += waiting.size

    def _return_ticket(self, waiting: _Waiting) -> None:
        if waiting.ticket is not None and waiting.ticket.missing:
            self._context.feed.forget(waiting.ticket)

    def _outcome(self, answer: Submission, ticket: Ticket | None) -> tuple[bytes, str, int, int]:
        if answer.code:
            return answer.transaction_id, answer.code, 0, 0
        if ticket is not None and (outcome := ticket.outcomes.get(answer.transaction_id)) is not None:
            return answer.transaction_id, "", outcome.height, outcome.failed_count
        location = self._context.backend.final.locate(answer.transaction_id)
        if location is None:
            return answer.transaction_id, "", 0, 0
        receipts = receipts_at(self._context.view(location.height), location)
        return answer.transaction_id, "", location.height, sum(receipt.status != OK for receipt in receipts)


def decode_frame_untrusted(data: bytes) -> Frame:
    """Return the frame in a binary message.

    Raises:
        PeerError: ``too_large``, ``parse_error`` or ``invalid_params``.
    """
    try:
        if len(data) > BODY_BYTES_MAX:
            raise PeerError("too_large", f"a frame has at most {BODY_BYTES_MAX} bytes")
        frame = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerError("parse_error", f"no frame of transactions: {error}") from None
    if len(frame.transactions) > SUBMIT_MAX or not 0 <= frame.wait_ms <= WAIT_MS_MAX:
        raise PeerError("invalid_params", f"at most {SUBMIT_MAX} transactions and {WAIT_MS_MAX} ms of waiting")
    return frame
