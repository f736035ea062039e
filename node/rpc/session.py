"""One WebSocket: pipelined requests answered as they finish, batches of transactions, subscriptions.

Text messages are JSON-RPC, single or batch. A binary message is a frame of transactions, see
``node.rpc.frames``; one that does not decode is answered by a JSON-RPC error with the id null.

All sending goes through one outbox bounded in bytes; whoever has more to say waits, calls wait before
they are worked on, and a full number of requests in flight stops the reading, so a peer that does not
read cannot make the node hold more.

The web server answers the opening request; then the session takes the connection over (``node.rpc.line``) and
works on all messages of one read without a pause, up to ``STRETCH`` of them.
"""

import anyio
import trio
from starlette.websockets import WebSocket
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError

from consensus.ledger.errors import InvariantError, PeerError, StorageError
from node.rpc.context import Context, Selection
from node.rpc.dispatch import Dispatcher
from node.rpc.frames import FrameDesk, decode_frame_untrusted
from node.rpc.line import Line
from node.rpc.outbox import Outbox, Room
from node.rpc.protocol import BODY_BYTES_MAX, Faulty, Json, Request, error_bytes, parse_untrusted
from node.rpc.render import cursor_text
from node.rpc.subscriptions import Subscription, first_place

SUBSCRIPTIONS_MAX = 32
BATCHES_MAX = 2
"""Batches of one session that are worked on at a time: each may come to ``ANSWER_BYTES_MAX``."""


STRETCH = 64
"""Transactions and requests taken at a stretch, before consensus gets its turn again."""
CLOSE_MS_MAX = 1_000
"""Time for the last word to a peer, and for what it still sends after it broke the rules."""


class Session:
    """A WebSocket's life, from the answer to its opening request to its end."""

    def __init__(self, line: Line, dispatcher: Dispatcher, nursery: trio.Nursery) -> None:
        self._line = line
        self._protocol = Connection(ConnectionType.SERVER)
        self._dispatcher = dispatcher
        self._context: Context = dispatcher.context_for(self)
        self._outbox = Outbox()
        self._spawn = nursery.start_soon
        self._room = Room()
        self._batches = trio.Semaphore(BATCHES_MAX)
        self._desk = FrameDesk(self._context, self._room, self._outbox, pack=self._pack)
        nursery.start_soon(self._desk.run)
        self._subscriptions: dict[int, trio.CancelScope] = {}
        self._next_subscription = 1
        self._message = bytearray()
        """What has come of a message in several parts."""
        self._stretch = 0
        self._is_sending = False

    async def read(self) -> CloseReason | int | None:
        """Take messages until the connection ends; waits while too many requests are in flight.

        Returns what to say at the end: the peer's own code when it takes its leave, another one when it broke the
        rules, None when nobody is there to hear it.
        """
        while data := await self._line.receive_taken():
            self._protocol.receive_data(data)
            for event in self._protocol.events():
                if isinstance(event, TextMessage | BytesMessage):
                    if len(self._message) + len(event.data) > BODY_BYTES_MAX:
                        return CloseReason.MESSAGE_TOO_BIG
                    await self._take_part(event)
                elif isinstance(event, Ping):
                    await self._outbox.put(self._protocol.send(event.response()))
                elif isinstance(event, CloseConnection):
                    return event.code
        return None

    async def write(self) -> None:
        """Send what the outbox holds until the connection breaks."""
        try:
            while True:
                message = await self._outbox.take()
                self._is_sending = True
                await self._line.send(message)
                self._is_sending = False
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            return  # the reader sees the end as well

    async def say_goodbye(self, code: int) -> None:
        """Close the WebSocket with this code, unless half a message is on its way."""
        if not self._is_sending:
            await self._line.send(self._protocol.send(CloseConnection(code)))
            await self._line.send_eof()

    async def hear_out(self) -> None:
        """Read on without listening: bytes that nobody reads would take our last word from the peer."""
        while await self._line.receive_taken():
            pass

    def _pack(self, message: bytes) -> bytes:
        return self._protocol.send(BytesMessage(message))

    # -- what a message asks for -----------------------------------------------------------------------

    async def _take_part(self, part: TextMessage | BytesMessage) -> None:
        """Put messages together, and work on those that are whole."""
        data = part.data.encode() if isinstance(part, TextMessage) else bytes(part.data)
        if not part.message_finished:
            self._message += data
            return
        if self._message:
            data = bytes(self._message) + data
            self._message.clear()
        await self._room.enter(len(data))
        if isinstance(part, TextMessage):
            self._spawn(self._answer_text, data)
            self._stretch += 1
        else:
            self._stretch += await self._take_frame(data)
        if self._stretch >= STRETCH:
            self._stretch = 0
            await trio.lowlevel.checkpoint()

    async def _answer_text(self, text: bytes) -> None:
        await self._outbox.has_room()
        try:
            body = parse_untrusted(text)
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

    async def _take_frame(self, data: bytes) -> int:
        """Submit a frame's transactions before the next message is read, so that frames keep their order.

        Returns how many there were; a frame that is refused counts as one.
        """
        frame_id = None
        try:
            frame = decode_frame_untrusted(data)
            frame_id = frame.id
            self._dispatcher.metrics.transactions.inc(len(frame.transactions))
            await self._desk.take(frame, len(data))
        except PeerError as error:
            self._room.leave(len(data))
            await self._reply(error_bytes(frame_id, error))
            return 1
        return max(1, len(frame.transactions))

    async def _reply(self, answer: bytes) -> None:
        if answer:
            await self._outbox.put(self._protocol.send(TextMessage(answer.decode())))

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
    line: Line = websocket.scope["state"]["line"]
    if websocket.scope["http_version"] != "1.1" or not await line.take_over():
        await websocket.close()  # one stream of HTTP/2 is no line of its own
        return
    await websocket.accept()
    code: int | None = None
    with dispatcher.metrics.sessions.track_inprogress():
        try:
            async with trio.open_nursery() as nursery:
                session = Session(line, dispatcher, nursery)
                nursery.start_soon(session.write)
                nursery.start_soon(_close_when, stopping, nursery.cancel_scope)
                code = await session.read()
                nursery.cancel_scope.cancel()
        except* (StorageError, InvariantError) as group:
            dispatcher.report(group)
    await _close(session, line, CloseReason.GOING_AWAY if stopping.is_set() else code)


async def _close_when(stopping: trio.Event, scope: trio.CancelScope) -> None:
    await stopping.wait()
    scope.cancel()


async def _close(session: Session, line: Line, code: int | None) -> None:
    """End a connection that nobody else reads or writes any more."""
    with trio.move_on_after(CLOSE_MS_MAX / 1_000):
        try:
            if code is not None:
                await session.say_goodbye(code)
            if code is CloseReason.MESSAGE_TOO_BIG:
                await session.hear_out()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, LocalProtocolError, OSError):
            pass  # the peer was faster
    await line.aclose()
