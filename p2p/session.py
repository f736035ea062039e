"""One session with one peer: a reader, a writer, and a bounded queue between the node and the writer.

Two queues, because a vote must not wait behind megabytes of transactions. *Urgent* holds consensus
frames and sync requests, *bulk* holds transactions, sync answers and all that private channels say; the
writer empties urgent first and sends all that waits, up to a batch, at once. Order is kept within a queue.

When a queue is full: urgent drops its oldest frame, since newer votes make older ones needless; bulk
refuses the new one, since dropping an older transaction would leave a gap in its lane. Both are
counted, and nobody ever waits for a slow peer.

The reader awaits the handler for each frame, so a busy node slows its peers down through TCP. Both
directions have deadlines: a side that has nothing to say sends KEEP_ALIVE. One task watches them all, since a
deadline of its own for each read and write would cost half as much again as the frame. Now and then each
side asks the other what time it is (``p2p.clock``).
"""

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import trio

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import NodeName
from p2p.clock import ClockOffset, ClockProbe
from p2p.frames import FrameDecoder, FrameKind, encode_frame
from p2p.hello_machine import decode_bye_untrusted, encode_bye
from p2p.tls import PeerIdentity

RECEIVE_BYTES = 64 * 1024
_BULK = frozenset(
    {
        *(FrameKind.TRANSACTIONS, FrameKind.SYNC_RESPONSE, FrameKind.RESULT_RESPONSE),
        *(FrameKind.PRIVATE_OPEN, FrameKind.PRIVATE_MESSAGE, FrameKind.PRIVATE_RECEIPT),
    }
)

Handler: TypeAlias = Callable[[NodeName, FrameKind, bytes], Awaitable[None]]
"""Takes a frame of a peer; awaited, so that it slows the peer down. A PeerError is charged to the peer."""

Blame: TypeAlias = Callable[[NodeName, str], bool]
"""Charges a peer for a code and tells whether it is refused from now on."""


def system_wall_ms() -> int:
    """Return ms since 1970 UTC as this machine believes."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """Bounds of a session."""

    queue_frames_max: int = 8_192
    """Frames in each of the two queues."""
    queue_bytes_max: int = 16 * 1024 * 1024
    """Bytes in each of the two queues; a single frame always fits into an empty one."""
    batch_bytes_max: int = 256 * 1024
    """Bytes handed to TLS at once; a larger frame goes alone."""
    keep_alive_ms: int = 4_000
    """Silence after which the writer says KEEP_ALIVE."""
    silence_ms_max: int = 15_000
    """Silence of the peer after which the session ends."""
    send_ms_max: int = 15_000
    """Time for one batch to leave, after which the session ends."""
    close_ms_max: int = 1_000
    """Time for what is queued, and the reason, to leave when we end the session."""
    clock_ms: int = 5_000
    """Time between two questions for the peer's clock, the first of which is asked at once; 0 asks never."""


class SendQueue:
    """Encoded frames that wait for the writer, in two classes; see the module for what happens when full."""

    def __init__(self, limits: SessionLimits) -> None:
        self._limits = limits
        self._urgent: deque[bytes] = deque()
        self._bulk: deque[bytes] = deque()
        self._urgent_bytes = 0
        self._bulk_bytes = 0
        self.dropped = 0

    @property
    def frame_count(self) -> int:
        """Number of frames that wait."""
        return len(self._urgent) + len(self._bulk)

    @property
    def byte_count(self) -> int:
        """Size of what waits."""
        return self._urgent_bytes + self._bulk_bytes

    def put(self, kind: FrameKind, frame: bytes) -> bool:
        """Queue an encoded frame and tell whether it was taken."""
        size = len(frame)
        if kind in _BULK:
            if self._is_full(self._bulk, size, bytes_waiting=self._bulk_bytes):
                self.dropped += 1
                return False
            self._bulk.append(frame)
            self._bulk_bytes += size
            return True
        while self._is_full(self._urgent, size, bytes_waiting=self._urgent_bytes):
            self._urgent_bytes -= len(self._urgent.popleft())
            self.dropped += 1
        self._urgent.append(frame)
        self._urgent_bytes += size
        return True

    def clear(self) -> None:
        """Forget all that waits."""
        self._urgent.clear()
        self._bulk.clear()
        self._urgent_bytes = self._bulk_bytes = 0

    def take_batch(self) -> tuple[int, bytes]:
        """Remove the frames to send next; return how many, and their bytes joined. 0 when none waits."""
        batch: list[bytes] = []
        size = 0
        for queue in (self._urgent, self._bulk):
            while queue and (not batch or size + len(queue[0]) <= self._limits.batch_bytes_max):
                frame = queue.popleft()
                batch.append(frame)
                size += len(frame)
                if queue is self._urgent:
                    self._urgent_bytes -= len(frame)
                else:
                    self._bulk_bytes -= len(frame)
        return len(batch), batch[0] if len(batch) == 1 else b"".join(batch)

    def _is_full(self, queue: deque[bytes], size: int, *, bytes_waiting: int) -> bool:
        limits = self._limits
        return bool(queue) and (len(queue) >= limits.queue_frames_max or bytes_waiting + size > limits.queue_bytes_max)


@dataclass(slots=True)
class Counters:
    """What went through a session so far."""

    bytes_sent: int = 0
    bytes_received: int = 0
    frames_sent: int = 0
    frames_received: int = 0


@dataclass(slots=True)
class Session:
    """An established session; ``run`` it until it ends.

    ``stream`` is the TLS stream, owned and closed by whoever made it. ``decoder`` may already hold bytes
    that came with the peer's ACK. ``dialled`` tells whether we opened the connection.
    """

    identity: PeerIdentity
    stream: trio.abc.Stream
    decoder: FrameDecoder
    handler: Handler
    blame: Blame
    limits: SessionLimits
    address: str
    dialled: bool
    connected_since_ms: int
    wall_ms: Callable[[], int] = system_wall_ms
    counters: Counters = field(default_factory=Counters)
    reason: str = ""
    """Code of why the session ended, empty while it runs."""
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _wake: trio.Event = field(default_factory=trio.Event)
    _closing: str = ""
    _is_cut: bool = False
    _receiving_since_s: float = math.inf
    """When the reader began to wait for the peer; infinite while it does not."""
    _sending_since_s: float = math.inf
    """When the writer began to wait for the peer; infinite while it does not."""
    _said_s: float = 0.0
    """When the writer sent something last."""
    _clock: ClockProbe = field(default_factory=ClockProbe)
    queue: SendQueue = field(init=False)

    def __post_init__(self) -> None:
        self.queue = SendQueue(self.limits)

    @property
    def name(self) -> NodeName:
        """The peer's name."""
        return self.identity.name

    @property
    def clock(self) -> ClockOffset | None:
        """How far the peer's clock is from ours, None before it was asked."""
        return self._clock.offset

    def send(self, kind: FrameKind, frame: bytes) -> bool:
        """Queue an encoded frame; false when the session ends or the queue refuses it."""
        if self._closing or self.reason:
            return False
        self._wake.set()
        return self.queue.put(kind, frame)

    def probe(self) -> None:
        """Say something, so that a connection whose other end is gone breaks soon."""
        self.send(FrameKind.KEEP_ALIVE, _KEEP_ALIVE)

    def finish(self, code: str, *, drop_queue: bool = False) -> None:
        """End the session in order: what is queued and the reason leave first, within ``close_ms_max``.

        With ``drop_queue`` the peer has no say any more: nothing but the reason leaves, no frame is taken.
        """
        self._is_cut = self._is_cut or drop_queue
        if self._closing:
            return
        self._closing = code
        self._end(code)
        if drop_queue:
            self.queue.clear()
        self._wake.set()
        self._scope.deadline = trio.current_time() + self.limits.close_ms_max / 1000

    async def run(self) -> None:
        """Pump frames both ways until either side ends the session; ``reason`` says why afterwards.

        Errors of the peer and of the connection end the session and do not come out; whatever else
        the handler raises does. A handler is cancelled when the session ends while it works.
        """
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, nursery.cancel_scope)
                nursery.start_soon(self._write, nursery.cancel_scope)
                nursery.start_soon(self._watch, nursery.cancel_scope)
                nursery.start_soon(self._ask_time)
        self._end("closed")

    async def _read(self, scope: trio.CancelScope) -> None:
        try:
            while await self._receive():
                while not self._is_cut and (frame := self.decoder.next_untrusted()) is not None:
                    self.counters.frames_received += 1
                    if not await self._handle_untrusted(frame.kind, frame.payload):
                        return
            self._end("connection_lost")
        except PeerError as error:
            self.blame(self.name, error.code)
            self.finish(error.code, drop_queue=True)
            return
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            self._end("connection_lost")
        scope.cancel()

    async def _receive(self) -> bool:
        """Feed the decoder once; false at the end of the stream."""
        self._receiving_since_s = trio.current_time()
        data = await self.stream.receive_some(RECEIVE_BYTES)
        self._receiving_since_s = math.inf
        self.counters.bytes_received += len(data)
        self.decoder.feed(data)
        return bool(data)

    async def _handle_untrusted(self, kind: FrameKind, payload: bytes) -> bool:
        """Handle one frame and tell whether to read on; after BYE or too many errors the writer ends the session."""
        if not kind.is_for_session:
            try:
                await self.handler(self.name, kind, payload)
            except PeerError as error:
                if self.blame(self.name, error.code):
                    self.finish("refused_for_a_while", drop_queue=True)
                    return False
        elif kind is FrameKind.BYE:
            self.finish(decode_bye_untrusted(payload), drop_queue=True)
            return False
        elif kind is FrameKind.CLOCK_QUESTION:
            answer = ClockProbe.answer_untrusted(payload, wall_ms=self.wall_ms())
            self.send(FrameKind.CLOCK_ANSWER, encode_frame(FrameKind.CLOCK_ANSWER, answer))
        elif kind is FrameKind.CLOCK_ANSWER:
            self._clock.answered_untrusted(payload, wall_ms=self.wall_ms(), now_ms=_now_ms())
        elif kind is not FrameKind.KEEP_ALIVE:
            raise PeerError("unexpected_frame", f"{kind.name} in an established session")
        return True

    async def _ask_time(self) -> None:
        while self.limits.clock_ms:
            question = self._clock.ask(now_ms=_now_ms())
            self.send(FrameKind.CLOCK_QUESTION, encode_frame(FrameKind.CLOCK_QUESTION, question))
            await trio.sleep(self.limits.clock_ms / 1000)

    async def _write(self, scope: trio.CancelScope) -> None:
        try:
            while True:
                while not self.queue.frame_count and not self._closing:
                    self._wake = trio.Event()
                    await self._wake.wait()
                frames, batch = self.queue.take_batch()
                if not frames:
                    break
                await self._send(batch)
                self.counters.frames_sent += frames
            bye = encode_bye(self._closing)
            await self._send(encode_frame(bye.kind, bye.payload))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            self._end("connection_lost")
        scope.cancel()

    async def _send(self, data: bytes) -> None:
        self._said_s = self._sending_since_s = trio.current_time()
        await self.stream.send_all(data)
        self._sending_since_s = math.inf
        self.counters.bytes_sent += len(data)

    async def _watch(self, scope: trio.CancelScope) -> None:
        """End the session when the peer says nothing or reads nothing for too long; speak up before it does so."""
        limits = self.limits
        silence_s, send_s = limits.silence_ms_max / 1000, limits.send_ms_max / 1000
        keep_alive_s = limits.keep_alive_ms / 1000
        self._said_s = trio.current_time()
        while True:
            now_s = trio.current_time()
            if now_s >= self._receiving_since_s + silence_s:
                self._end("silent")
                break
            if now_s >= self._sending_since_s + send_s:
                self._end("not_reading")
                break
            if now_s >= self._said_s + keep_alive_s and self._sending_since_s == math.inf:
                self._said_s = now_s
                self.probe()
            # What begins to wait while this task sleeps is not over its time before it wakes.
            next_s = min(
                min(self._receiving_since_s, now_s) + silence_s,
                min(self._sending_since_s, now_s) + send_s,
                (self._said_s if self._sending_since_s == math.inf else now_s) + keep_alive_s,
            )
            await trio.sleep_until(next_s)
        scope.cancel()

    def _end(self, code: str) -> None:
        self.reason = self.reason or code


def takes_over(own: NodeName, session: Session, *, dialled: bool) -> bool:
    """Tell whether a new session with the same peer takes the place of this one; see ``p2p.network``."""
    return dialled == session.dialled or dialled == (own < session.name)


def _now_ms() -> int:
    return int(trio.current_time() * 1_000)


_KEEP_ALIVE = encode_frame(FrameKind.KEEP_ALIVE, b"")
