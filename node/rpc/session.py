"""One WebSocket: pipelined requests answered as they finish, batches of transactions, subscriptions.

Text messages are JSON-RPC, single or batch. A binary message is a frame of transactions, see
``node.rpc.frames``; one that does not decode is answered by a JSON-RPC error with the id null.

All sending goes through one outbox bounded in bytes; whoever has more to say waits, calls wait before
they are worked on, and a full number of requests in flight stops the reading, so a peer that does not
read cannot make the node hold more.
"""

import trio
from starlette.websockets import WebSocket, WebSocketDisconnect

from consensus.ledger.errors import InvariantError, PeerError, StorageError
from node.rpc.context import Context, Selection
from node.rpc.dispatch import Dispatcher
from node.rpc.frames import FrameDesk, decode_frame_untrusted
from node.rpc.outbox import Outbox, Room
from node.rpc.protocol import Faulty, Json, Request, error_bytes, parse_untrusted
from node.rpc.render import cursor_text
from node.rpc.subscriptions import Subscription, first_place

SUBSCRIPTIONS_MAX = 32
BATCHES_MAX = 2
"""Batches of one session that are worked on at a time: each may come to ``ANSWER_BYTES_MAX``."""


class Session:
    """A WebSocket's life, from accept to close."""

    def __init__(self, websocket: WebSocket, dispatcher: Dispatcher, nursery: trio.Nursery) -> None:
        self._websocket = websocket
        self._dispatcher = dispatcher
        self._context: Context = dispatcher.context_for(self)
        self._outbox = Outbox()
        self._spawn = nursery.start_soon
        self._room = Room()
        self._batches = trio.Semaphore(BATCHES_MAX)
        self._desk = FrameDesk(self._context, self._room, self._outbox)
        nursery.start_soon(self._desk.run)
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
                await self._take_frame(data)
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
        await self._outbox.has_room()
        try:
            body = parse_untrusted(text.encode("utf-8", "surrogatepass"))
        except PeerError as error:
            await self._reply(error_bytes(None, error))
        else:
            if body.is_batch:
                await self._answer_batch(body.entries)
            else:
                await self._reply(await self._dispatcher.answer(body.entries[0], self._context))
        finally:
            self._room.leave(len(text))

    async def _answer_batch(self, entries: tuple[Request | Faulty, ...]) -> None:
        async with self._batches:
            await self._outbox.has_room()
            await self._reply(await self._dispatcher.answer_batch(entries, self._context))

    async def _take_frame(self, data: bytes) -> None:
        """Submit a frame's transactions before the next message is read, so that frames keep their order."""
        frame_id = None
        try:
            frame = decode_frame_untrusted(data)
            frame_id = frame.id
            self._dispatcher.metrics.transactions.inc(len(frame.transactions))
            await self._desk.take(frame, len(data))
        except PeerError as error:
            self._room.leave(len(data))
            await self._reply(error_bytes(frame_id, error))

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
