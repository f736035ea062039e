"""One WebSocket: pipelined requests answered as they finish, batches of transactions, subscriptions.

Text messages are JSON-RPC, single or batch. A binary message is for submitting many transactions at
little cost: canonical MessagePack of ``[id, [raw transaction, …]]`` or ``[id, [raw, …], waitMs]``, with
an integer id. It is answered by a binary message ``[id, [[transaction id, code, height, failed], …]]``
in the same order: ``code`` is empty when the transaction is accepted or final, ``height`` is 0 while it is
not final, ``failed`` counts its failed receipts. With ``waitMs`` (up to 60,000) the answer comes when all
accepted ones are final or time is up. A binary message that does not decode is answered by a JSON-RPC
error with the id null.

All sending goes through one outbox bounded in bytes; whoever has more to say waits, and a full number
of requests in flight stops the reading, so a peer that does not read cannot make the node hold more.
"""

from collections import deque

import msgspec
import trio
from starlette.websockets import WebSocket, WebSocketDisconnect

from consensus.ledger.errors import InvariantError, PeerError, StorageError
from consensus.ledger.receipt import OK
from node.rpc.backend import Submission
from node.rpc.context import Context, Selection
from node.rpc.dispatch import Dispatcher
from node.rpc.methods_chain import receipts_at
from node.rpc.methods_transactions import SUBMIT_MAX, WAIT_MS_MAX
from node.rpc.protocol import BODY_BYTES_MAX, Faulty, Json, Request, error_bytes, parse_untrusted
from node.rpc.render import cursor_text
from node.rpc.subscriptions import Subscription, first_place

OUTBOX_BYTES_MAX = 4 * 1024 * 1024
IN_FLIGHT_MAX = 4_096
"""Requests of one session that may be under way."""
IN_FLIGHT_BYTES_MAX = 8 * 1024 * 1024
"""Size of their messages together."""
SUBSCRIPTIONS_MAX = 32


class _Frame(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    id: int
    transactions: list[bytes]
    wait_ms: int = 0


_frame_decoder = msgspec.msgpack.Decoder(_Frame)
_frame_encoder = msgspec.msgpack.Encoder()


class Outbox:
    """Messages on their way out. ``put`` waits while more than ``OUTBOX_BYTES_MAX`` are waiting."""

    def __init__(self) -> None:
        self._messages: deque[str | bytes] = deque()
        self._size = 0
        self._changed = trio.Event()

    async def put(self, message: str | bytes) -> None:
        """Leave a message; one that alone exceeds the bound passes when the box is empty."""
        while self._messages and self._size + len(message) > OUTBOX_BYTES_MAX:
            await self._changed.wait()
        self._messages.append(message)
        self._size += len(message)
        self._wake()

    async def take(self) -> str | bytes:
        """Return the oldest message, waiting for one."""
        while not self._messages:
            await self._changed.wait()
        message = self._messages.popleft()
        self._size -= len(message)
        self._wake()
        return message

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Room:
    """What a session may have under way; ``enter`` waits for room, so that its peer is read no further."""

    def __init__(self) -> None:
        self._count = 0
        self._size = 0
        self._changed = trio.Event()

    async def enter(self, size: int) -> None:
        """Take a place for a message of this size; one that alone exceeds the bound enters an empty room."""
        while self._count and (self._count >= IN_FLIGHT_MAX or self._size + size > IN_FLIGHT_BYTES_MAX):
            await self._changed.wait()
        self._count += 1
        self._size += size

    def leave(self, size: int) -> None:
        """Give the place back."""
        self._count -= 1
        self._size -= size
        self._changed.set()
        self._changed = trio.Event()


class Session:
    """A WebSocket's life, from accept to close."""

    def __init__(self, websocket: WebSocket, dispatcher: Dispatcher, nursery: trio.Nursery) -> None:
        self._websocket = websocket
        self._dispatcher = dispatcher
        self._context: Context = dispatcher.context_for(self)
        self._outbox = Outbox()
        self._spawn = nursery.start_soon
        self._room = Room()
        self._subscriptions: dict[int, trio.CancelScope] = {}
        self._next_subscription = 1

    async def read(self) -> None:
        """Take messages until the peer closes; waits while too many requests are in flight."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text, data = message.get("text"), message.get("bytes")
            if data is not None:
                await self._room.enter(len(data))
                self._spawn(self._answer_frame, data)
            elif text is not None:
                await self._room.enter(len(text))
                self._spawn(self._answer_text, text)

    async def write(self) -> None:
        """Send what the outbox holds until the connection breaks."""
        try:
            while True:
                message = await self._outbox.take()
                if isinstance(message, str):
                    await self._websocket.send_text(message)
                else:
                    await self._websocket.send_bytes(message)
        except (WebSocketDisconnect, OSError):
            return  # the reader sees the end as well

    # -- what a message asks for -----------------------------------------------------------------------

    async def _answer_text(self, text: str) -> None:
        try:
            body = parse_untrusted(text.encode("utf-8", "surrogatepass"))
        except PeerError as error:
            await self._reply(error_bytes(None, error))
        else:
            await self._reply(await self._answer_entries(body.entries, is_batch=body.is_batch))
        finally:
            self._room.leave(len(text))

    async def _answer_entries(self, entries: tuple[Request | Faulty, ...], *, is_batch: bool) -> bytes:
        if is_batch:
            return await self._dispatcher.answer_batch(entries, self._context)
        return await self._dispatcher.answer(entries[0], self._context)

    async def _answer_frame(self, data: bytes) -> None:
        try:
            frame = _decode_frame_untrusted(data)
        except PeerError as error:
            await self._reply(error_bytes(None, error))
        else:
            try:
                await self._submit(frame)
            except PeerError as error:
                await self._reply(error_bytes(frame.id, error))
        finally:
            self._room.leave(len(data))

    async def _submit(self, frame: _Frame) -> None:
        self._dispatcher.metrics.transactions.inc(len(frame.transactions))
        answers = await self._context.backend.submit(frame.transactions)
        if frame.wait_ms:
            accepted = [answer.transaction_id for answer in answers if not answer.code]
            await self._context.feed.wait_final(accepted, timeout_ms=frame.wait_ms)
        outcomes = [self._outcome(answer) for answer in answers]
        await self._outbox.put(_frame_encoder.encode([frame.id, outcomes]))

    def _outcome(self, answer: Submission) -> tuple[bytes, str, int, int]:
        location = None if answer.code else self._context.backend.final.locate(answer.transaction_id)
        if location is None:
            return answer.transaction_id, answer.code, 0, 0
        receipts = receipts_at(self._context.view(location.height), location)
        failed = sum(receipt.status != OK for receipt in receipts)
        return answer.transaction_id, answer.code, location.height, failed

    async def _reply(self, answer: bytes) -> None:
        if answer:
            await self._outbox.put(answer.decode())

    # -- subscriptions ---------------------------------------------------------------------------------

    def subscribe(self, topic: str, selection: Selection, cursor: tuple[int, int] | None) -> Json:
        """Start a subscription.

        Raises:
            PeerError: ``too_many_subscriptions``.
        """
        if len(self._subscriptions) >= SUBSCRIPTIONS_MAX:
            raise PeerError("too_many_subscriptions", f"a WebSocket has at most {SUBSCRIPTIONS_MAX}")
        number, self._next_subscription = self._next_subscription, self._next_subscription + 1
        place = first_place(cursor, self._context.feed.height)
        subscription = Subscription(number, topic, selection, place, is_replay=cursor is not None)
        self._subscriptions[number] = trio.CancelScope()
        self._spawn(self._run_subscription, subscription)
        return {"subscription": number, "topic": topic, "cursor": cursor_text(*place)}

    def unsubscribe(self, subscription_id: int) -> bool:
        """End a subscription; false when there is none of this number."""
        scope = self._subscriptions.pop(subscription_id, None)
        if scope is None:
            return False
        scope.cancel()
        return True

    async def _run_subscription(self, subscription: Subscription) -> None:
        scope = self._subscriptions.get(subscription.id)
        if scope is None:
            return
        with scope:
            await subscription.run(self._context, self._reply)


def _decode_frame_untrusted(data: bytes) -> _Frame:
    try:
        if len(data) > BODY_BYTES_MAX:
            raise PeerError("too_large", f"a frame has at most {BODY_BYTES_MAX} bytes")
        frame = _frame_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerError("parse_error", f"no frame of transactions: {error}") from None
    if len(frame.transactions) > SUBMIT_MAX or not 0 <= frame.wait_ms <= WAIT_MS_MAX:
        raise PeerError("invalid_params", f"at most {SUBMIT_MAX} transactions and {WAIT_MS_MAX} ms of waiting")
    return frame


async def run_session(websocket: WebSocket, dispatcher: Dispatcher, stopping: trio.Event) -> None:
    """Serve one WebSocket until it closes or the server stops."""
    await websocket.accept()
    with dispatcher.metrics.sessions.track_inprogress():
        try:
            async with trio.open_nursery() as nursery:
                session = Session(websocket, dispatcher, nursery)
                nursery.start_soon(session.write)
                nursery.start_soon(_close_when, stopping, nursery.cancel_scope)
                await session.read()
                nursery.cancel_scope.cancel()
        except* (StorageError, InvariantError) as group:
            dispatcher.report(group)
    if stopping.is_set():
        await _close(websocket)


async def _close_when(stopping: trio.Event, scope: trio.CancelScope) -> None:
    await stopping.wait()
    scope.cancel()


async def _close(websocket: WebSocket) -> None:
    with trio.move_on_after(1):
        try:
            await websocket.close(1001)
        except (RuntimeError, OSError, WebSocketDisconnect):
            return  # the peer was faster
