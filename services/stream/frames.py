"""A payer's persistent connection: a challenge first, then frames both ways; WebSocket, or whatever carries frames.

Reading and telling go on side by side, so that acknowledgements of a group leave while the next frames are verified.
A peer that does not read is not read either, once what waits for it is at its bound.
"""

import math
import secrets

import trio
from starlette.websockets import WebSocket, WebSocketDisconnect

from consensus.ledger.errors import PeerError
from services.client.errors import Unreachable
from services.client.tasks import single_errors
from services.stream.desk import Desk
from services.stream.interfaces import Connection
from services.stream.outlet import Outlet
from services.stream.wire import NONCE_BYTES, Challenge, Said, SaidFrame, Told, ToldFrame, said_codec, told_codec

TOLD_MAX = 128
"""Messages in one frame to a payer: of any kind they fit."""
HELLO_MS_MAX = 30_000
"""How long a connection may take until it has shown that a stream is its own."""
GOING_AWAY, PROTOCOL_ERROR = 1001, 1002


async def converse(desk: Desk, connection: Connection) -> None:
    """Talk with a payer until the connection ends.

    Raises:
        PeerError: what came is no frame.
        StorageError: nothing can be kept any more.
    """
    outlet, nonce = desk.outlet(), secrets.token_bytes(NONCE_BYTES)
    try:
        with single_errors():
            await connection.send([Challenge(nonce)])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_tell_forever, connection, outlet)
                with trio.fail_after(HELLO_MS_MAX / 1000) as patience:
                    while True:
                        await desk.hear(await connection.receive(), outlet, nonce)
                        await outlet.until_room()
                        if outlet.hailed:
                            patience.deadline = math.inf
    except (Unreachable, trio.TooSlowError):
        return
    finally:
        desk.leave(outlet)


async def _tell_forever(connection: Connection, outlet: Outlet) -> None:
    while not outlet.is_lost:
        messages = await outlet.take()
        for start in range(0, len(messages), TOLD_MAX):
            await connection.send(messages[start : start + TOLD_MAX])
    raise Unreachable("the payer does not read", "payer_unreachable")


class WebSocketConnection:
    """A WebSocket as a :class:`services.stream.interfaces.Connection`: a binary message is a frame."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def send(self, messages: list[Told]) -> None:
        """Send one frame; ``payer_unreachable`` where the socket is over, as after ``web.UNREAD_MS_MAX``."""
        try:
            await self._websocket.send_bytes(told_codec.encode(ToldFrame(messages)))
        except (WebSocketDisconnect, RuntimeError, OSError) as error:
            raise Unreachable(f"the payer is gone: {error}", "payer_unreachable") from None

    async def receive(self) -> list[Said]:
        """Return the next frame's messages; ``payer_unreachable`` at the end, PeerError for what is no frame."""
        message = await self._websocket.receive()
        if message["type"] != "websocket.receive":
            raise Unreachable("the payer has left", "payer_unreachable")
        data = message.get("bytes")
        if data is None:
            raise PeerError("malformed", "a frame is a binary message")
        frame: SaidFrame = said_codec.decode_untrusted(data)
        return frame.messages


async def run_websocket(websocket: WebSocket, desk: Desk, stopping: trio.Event) -> None:
    """Serve one WebSocket until it ends or the program stops; ``StorageError`` ends the program."""
    await websocket.accept()
    code = GOING_AWAY
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await stopping.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            await converse(desk, WebSocketConnection(websocket))
        except* (PeerError, Unreachable):  # as the reader and the teller may end at once
            code = PROTOCOL_ERROR
        nursery.cancel_scope.cancel()
    with trio.move_on_after(1) as scope:
        scope.shield = False
        try:
            await websocket.close(code)
        except (RuntimeError, OSError, WebSocketDisconnect):
            return  # the peer was faster
