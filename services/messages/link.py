"""The client of the message centre: fills :class:`services.messages.port.MessageCenter` over a socket.

One connection carries all requests, made when the first is; each subscription has its own. Both are made anew when
they break, with a back-off. What was under way on a broken one fails with ``center_unreachable`` (its outcome is
unknown, and the same again is safe); leases do not outlive their connection, so that what was delivered on it comes
again to whoever consumes next. A delivery is confirmed as it is read, before anybody looks at it.
"""

import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

import structlog
import trio

from consensus.ledger.errors import HansaError, LocalError, PeerError
from services.client.errors import Refused, Unreachable
from services.client.tasks import single_errors
from services.messages import wire
from services.messages.line import CONNECT_TIMEOUT_S, Line, boot_id, connect, next_frame, split_address
from services.messages.port import WINDOW_MAX, Delivery, Settlement, Stats, Subscription
from services.messages.store import NewMessage, Published, Record, State

REQUEST_TIMEOUT_S = 10.0
REQUESTS_MAX = 256
"""How many requests of one link are under way; more of them wait within their time."""
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0
RECEIVED_KEEP_MAX = 200_000
"""How many receive times a subscription remembers."""
UNREACHABLE = "center_unreachable"
_FOR_EVER = frozenset({"bad_token", "bad_version"})
"""Refusals that another attempt does not change."""

AnswerT = TypeVar("AnswerT", wire.Kept, wire.Records, wire.Replayed, wire.Discarded, wire.Standing, wire.Settled)

log = structlog.get_logger("link")


class _Slot:
    """Where a request finds its answer; None while it waits, and when the connection ends first."""

    __slots__ = ("answer", "ready")

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.answer: wire.FromCenter | None = None


class _Session:
    """One live connection that the centre has welcomed."""

    def __init__(self, address: str, line: Line, reader: wire.Reader[wire.FromCenter]) -> None:
        self._address = address
        self._line = line
        self._reader = reader
        self._slots: dict[int, _Slot] = {}
        self._room = trio.Semaphore(REQUESTS_MAX)
        self._ids = itertools.count(1)
        self._failure = f"the message centre at {address} has ended the connection"

    async def pump(self, on_deliver: Callable[[wire.Deliver, Line], None]) -> None:
        """Hand on what comes, until the connection ends; then nobody waits on it any more."""
        try:
            while (frame := await next_frame(self._line, self._reader)) is not None:
                if isinstance(frame, wire.Deliver):
                    on_deliver(frame, self._line)
                    continue
                if isinstance(frame, wire.Failure) and not frame.id:
                    self._failure = f"the message centre at {self._address}: {frame.code}: {frame.message}"
                    return
                slot = self._slots.pop(frame.id, None) if not isinstance(frame, wire.Welcome) else None
                if slot is not None:  # else its asker has given up
                    slot.answer = frame
                    slot.ready.set()
        finally:
            self._line.close()
            for slot in self._slots.values():
                slot.ready.set()
            self._slots.clear()

    async def request(self, make: Callable[[int], wire.Request], kind: type[AnswerT]) -> AnswerT:
        """Send a request and return its answer.

        Raises:
            Refused: the centre says no.
            Unreachable: ``center_unreachable``: no answer; the outcome is unknown.
            LocalError: ``too_large``.
        """
        identity = next(self._ids)
        slot = _Slot()
        with trio.move_on_after(REQUEST_TIMEOUT_S) as patience:
            async with self._room:
                frame = wire.encode(make(identity))
                if not self._line.is_closed:
                    self._slots[identity] = slot
                    self._line.send(frame)
                    try:
                        await slot.ready.wait()
                    finally:
                        self._slots.pop(identity, None)
        if patience.cancelled_caught:
            raise Unreachable(f"the message centre at {self._address} does not answer in time", UNREACHABLE)
        match slot.answer:
            case None:
                raise Unreachable(self._failure, UNREACHABLE)
            case wire.Failure(code=code, message=message):
                raise Refused(code, message)
            case answer if isinstance(answer, kind):
                return answer
        raise PeerError("malformed", f"the message centre at {self._address} answers something else")

    def leave(self) -> None:
        """Say that we go in order, as far as the line takes it at once."""
        self._line.send(wire.encode(wire.Leave()))


@asynccontextmanager
async def _open_session(
    address: str, hello: wire.Hello, on_deliver: Callable[[wire.Deliver, Line], None]
) -> AsyncIterator[tuple[_Session, trio.Event]]:
    """Give a session and the event of its end.

    Raises:
        Unreachable: nobody answers there.
        Refused: the centre does not let us in.
    """
    line = await connect(address)
    ended = trio.Event()
    try:
        with single_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(line.run)
                session = await _greet(address, line, hello)

                async def pump() -> None:
                    try:
                        await session.pump(on_deliver)
                    finally:
                        ended.set()

                nursery.start_soon(pump)
                yield session, ended
                nursery.cancel_scope.cancel()
    finally:
        line.close()


async def _greet(address: str, line: Line, hello: wire.Hello) -> _Session:
    line.send(wire.encode(hello))
    reader = wire.Reader(wire.center_decoder, payload_bytes_max=wire.FRAME_BYTES_MAX)
    answer: wire.FromCenter | None = None
    with trio.move_on_after(CONNECT_TIMEOUT_S):
        answer = await next_frame(line, reader)
    match answer:
        case wire.Welcome(version=wire.VERSION):
            return _Session(address, line, reader)
        case wire.Failure(code=code, message=message):
            raise Refused(code, message)
        case None:
            raise Unreachable(f"the message centre at {address} does not greet", UNREACHABLE)
    raise PeerError("malformed", f"at {address} is no message centre that we understand")


class Link:
    """A message centre at an address; made by :func:`open_link`."""

    def __init__(self, address: str, *, token: str, name: str) -> None:
        self.address = address
        self._token = token
        self._name = name
        self._boot = boot_id()
        self._session: _Session | None = None
        self._error: HansaError | None = None
        self._retry_at = 0.0
        self._wanted = trio.Event()
        self._outcome = trio.Event()

    async def publish(self, messages: Sequence[NewMessage]) -> list[Published]:
        """Keep messages; see the port."""
        if not 0 < len(messages) <= wire.ITEMS_MAX:
            raise LocalError("too_large", f"{len(messages)} messages, one call publishes 1 to {wire.ITEMS_MAX}")
        answer = await self._request(lambda identity: wire.publish_of(identity, messages), wire.Kept)
        return wire.published_of(answer)

    async def find(self, keys: Sequence[str]) -> list[Record | None]:
        """Look messages up; see the port."""
        return (await self._request(lambda identity: wire.Find(identity, list(keys)), wire.Records)).records

    async def ended(self, state: State, after: int, limit: int) -> list[Record]:
        """List what ended so; see the port."""
        answer = await self._request(lambda identity: wire.Ended(identity, state, after, limit), wire.Records)
        return [record for record in answer.records if record is not None]

    async def replay(self, sequences: Sequence[int]) -> int:
        """Make dead letters wait again; see the port."""
        return (await self._request(lambda identity: wire.Replay(identity, list(sequences)), wire.Replayed)).count

    async def discard(self, sequences: Sequence[int]) -> int:
        """Drop dead letters for ever; see the port."""
        return (await self._request(lambda identity: wire.Discard(identity, list(sequences)), wire.Discarded)).count

    async def stats(self) -> Stats:
        """Return how the queue stands."""
        return (await self._request(wire.Ask, wire.Standing)).stats

    def consume(self, name: str, *, window: int) -> AbstractAsyncContextManager["LinkSubscription"]:
        """Receive deliveries for the time of the block; see the port. A restart of the centre does not end it.

        Raises:
            LocalError: ``bad_window``.
            Refused: ``bad_token`` or ``bad_version``, out of the iteration.
        """
        if not 0 < window <= WINDOW_MAX:
            raise LocalError("bad_window", f"a window of {window}, it is 1 to {WINDOW_MAX}")
        hello = wire.Hello(wire.VERSION, name, self._token, self._boot, window)
        return _subscribe(self.address, hello)

    async def _request(self, make: Callable[[int], wire.Request], kind: type[AnswerT]) -> AnswerT:
        session = self._session
        if session is None:
            session = await self._connected()
        return await session.request(make, kind)

    async def _connected(self) -> _Session:
        """Return a live session; while the centre is away, at most one attempt in ``RETRY_FIRST_S`` is made."""
        if self._error is not None and trio.current_time() < self._retry_at:
            raise self._error
        outcome = self._outcome
        self._wanted.set()
        await outcome.wait()
        if self._session is None:
            raise self._error or Unreachable(f"the message centre at {self.address} has ended", UNREACHABLE)
        return self._session

    async def run(self) -> None:
        """Keep the connection while it lives; make one whenever somebody wants it."""
        hello = wire.Hello(wire.VERSION, self._name, self._token, self._boot, 0)
        while True:
            await self._wanted.wait()
            try:
                async with _open_session(self.address, hello, _deliver_nothing) as (session, ended):
                    self._settle(session, None)
                    await ended.wait()
            except HansaError as error:
                self._settle(None, error)
            else:
                self._session = None

    def _settle(self, session: _Session | None, error: HansaError | None) -> None:
        """Tell everyone who waits what came of the attempt."""
        self._session, self._error = session, error
        self._retry_at = trio.current_time() + RETRY_FIRST_S
        self._wanted = trio.Event()
        self._outcome.set()
        self._outcome = trio.Event()


def _deliver_nothing(_frame: wire.Deliver, line: Line) -> None:
    line.close()  # nobody has asked for it


class LinkSubscription:
    """A consumer's side, over all its connections. ``received_ns`` are the newest receive times, monotonic clock."""

    def __init__(self, address: str, hello: wire.Hello) -> None:
        self.received_ns: deque[int] = deque(maxlen=RECEIVED_KEEP_MAX)
        self._address = address
        self._hello = hello
        self._waiting: deque[Delivery] = deque()
        self._arrived = trio.Event()
        self._session: _Session | None = None
        self._error: HansaError | None = None

    def __aiter__(self) -> Subscription:
        """Return itself."""
        return self

    async def __anext__(self) -> Delivery:
        """Wait for the next delivery, as long as it takes; the centre may come and go meanwhile.

        Raises:
            Refused: ``bad_token`` or ``bad_version``.
        """
        while not self._waiting:
            if self._error is not None:
                raise self._error
            self._arrived = trio.Event()
            await self._arrived.wait()
        return self._waiting.popleft()

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Settle deliveries, durably.

        False stands for one whose fence is not the newest; also when the connection breaks: the leases are gone
        with it, and what was settled just before may have counted.

        Raises:
            Refused: the centre says no.
            LocalError: ``too_large``.
        """
        wire.check_settlements(settlements)
        session = self._session
        if session is None:
            return [False] * len(settlements)
        try:
            answer = await session.request(lambda identity: wire.Settle(identity, list(settlements)), wire.Settled)
        except Unreachable:
            return [False] * len(settlements)
        return answer.counted

    def take(self, frame: wire.Deliver, line: Line) -> None:
        """Confirm a delivery and put it where the consumer finds it."""
        now_ns = time.monotonic_ns()
        if frame.until_ns and now_ns > frame.until_ns:
            line.close()  # we were away for so long that the centre has given it to somebody else
            return
        line.send(wire.encode(wire.Received(frame.fence, now_ns)))
        self.received_ns.append(now_ns)
        self._waiting.append(frame.delivery())
        self._arrived.set()

    def leave(self) -> None:
        """Tell the centre that what is unsettled is not why we go."""
        if self._session is not None:
            self._session.leave()

    async def run(self) -> None:
        """Keep a connection; after one that broke, the next is tried with a growing pause."""
        pause_s = RETRY_FIRST_S
        is_known_away = False
        while self._error is None:
            try:
                async with _open_session(self._address, self._hello, self.take) as (session, ended):
                    if is_known_away:
                        log.info("centre back", address=self._address)
                    pause_s, is_known_away = RETRY_FIRST_S, False
                    self._session = session
                    await ended.wait()
            except HansaError as error:
                if isinstance(error, Refused) and error.code in _FOR_EVER:
                    self._error = error
                    self._arrived.set()
                    return
                if not is_known_away:
                    log.warning("centre away", address=self._address, code=error.code, why=error.message)
                is_known_away = True
            finally:
                self._session = None
                self._waiting.clear()  # their leases are gone
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)


@asynccontextmanager
async def _subscribe(address: str, hello: wire.Hello) -> AsyncIterator[LinkSubscription]:
    subscription = LinkSubscription(address, hello)
    with single_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.run)
            yield subscription
            subscription.leave()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_link(address: str, *, token: str = "", name: str) -> AsyncIterator[Link]:
    """Give a message centre at ``HOST:PORT`` or ``unix:PATH``; it is connected to when it is first used.

    Args:
        address: where it listens.
        token: what it wants shown.
        name: who we are, for its log.

    Raises:
        LocalError: ``bad_address``.
    """
    split_address(address)
    link = Link(address, token=token, name=name)
    with single_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            yield link
            nursery.cancel_scope.cancel()
