"""The server of the message centre: many peers on sockets before one queue.

A peer that asks has its requests answered as they are done, many at a time, so that one durable write serves all
that wait for one. A consumer gets one delivery after the other, each when the queue's pace allows, and confirms it
at once; the moment at which it was read there is what the pace counts from. Who does not confirm in time, does not
read, or sends what is no frame, is let go of, and what it had goes to others.
"""

import errno
import hmac
import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from stat import S_ISSOCK
from typing import assert_never

import structlog
import trio

from consensus.ledger.errors import HansaError, InvariantError, LocalError, PeerError, StorageError
from services.client.errors import Refused, Unreachable
from services.client.tasks import single_errors
from services.messages import wire
from services.messages.line import BACKLOG, Line, boot_id, next_frame, split_address
from services.messages.metrics import CenterMetrics
from services.messages.port import Delivery
from services.messages.queue import Consumer, Queue
from services.messages.store import Record

CONNECTIONS_MAX = 64
"""Who comes after them waits in the kernel's backlog."""
REQUESTS_MAX = 64
"""How many requests of one peer are under way; then nothing more of it is read."""
REQUEST_BYTES_MAX = 64 * 1024 * 1024
"""How many bytes of requests of all peers are under way; then nothing more is begun."""
HELLO_TIMEOUT_S = 5.0
CONFIRM_TIMEOUT_S = 5.0
"""How long a consumer may take to read a delivery. While it does, nobody gets the next one."""
CONFIRM_MARGIN_S = 0.1
STOP_TIMEOUT_S = 2.0
"""Time that requests under way have to end when the centre stops."""
EXHAUSTED_PAUSE_S = 0.1
"""Pause before the next accept when the machine lacks descriptors or memory."""
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NS_PER_S = 1_000_000_000

log = structlog.get_logger("center")


def listen(address: str, *, token: str) -> socket.socket:
    """Bind and listen at ``HOST:PORT`` (port 0 takes a free one) or ``unix:PATH``, which only its owner may use.

    Raises:
        LocalError: ``bad_address``; ``port_in_use``; ``token_missing`` beyond this machine without a token.
    """
    host, port = split_address(address)
    if port >= 0 and not token and not _is_loopback(host):
        raise LocalError("token_missing", f"{address} can be reached from other machines, so a token is needed")
    family = socket.AF_UNIX if port < 0 else socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX:
            _remove_stale(host)
            listening.bind(host)
            os.chmod(host, 0o600)
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        code = "port_in_use" if error.errno == errno.EADDRINUSE else "bad_address"
        raise LocalError(code, f"cannot listen on {address}: {error.strerror or error}") from None
    return listening


def address_of(listening: socket.socket) -> str:
    """Return where a socket listens, as :func:`services.messages.link.open_link` takes it."""
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if listening.family == socket.AF_INET6 else name[0]
    return f"{host}:{name[1]}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _remove_stale(path: str) -> None:
    """Remove the socket file of a centre that is gone; one that answers keeps its file."""
    with suppress(FileNotFoundError):
        if not S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


class _Budget:
    """Bytes that are under way, over all peers. One request more than the maximum may be."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max
        self._waiting = trio.lowlevel.ParkingLot()

    async def take(self, size: int) -> None:
        """Wait until there is room, and take it."""
        while self._left <= 0:
            await self._waiting.park()
        self._left -= size

    def give(self, size: int) -> None:
        """Give bytes back."""
        self._left += size
        if self._left > 0:
            self._waiting.unpark_all()


class Center:
    """Serves a queue to peers that know the token; an empty token lets everybody in who reaches the address."""

    def __init__(self, queue: Queue, *, token: str, metrics: CenterMetrics) -> None:
        self.queue = queue
        self.metrics = metrics
        self.boot = boot_id()
        self.budget = _Budget(REQUEST_BYTES_MAX)
        self._token = token.encode()
        self._peers: set[_Peer] = set()

    @property
    def connections_count(self) -> int:
        """How many peers are connected."""
        return len(self._peers)

    def admits(self, token: str) -> bool:
        """Tell whether this is the token, in a time that tells nothing about it."""
        return hmac.compare_digest(token.encode(), self._token)

    async def serve(self, listening: socket.socket, stopping: trio.Event) -> None:
        """Serve until ``stopping`` is set; then let requests under way end for ``STOP_TIMEOUT_S``.

        Raises:
            StorageError: the queue's store failed.
            InvariantError: a bug.
        """
        room = trio.Semaphore(CONNECTIONS_MAX)
        listening.setblocking(False)
        with trio.socket.from_stdlib_socket(listening) as accepting:
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accept_nursery:
                    accept_nursery.start_soon(self._accept, accepting, room, connections)
                    await stopping.wait()
                    accept_nursery.cancel_scope.cancel()
                connections.cancel_scope.deadline = trio.current_time() + STOP_TIMEOUT_S
                for peer in self._peers:
                    peer.stop()

    async def _accept(self, accepting: trio.socket.SocketType, room: trio.Semaphore, connections: trio.Nursery) -> None:
        while True:
            await room.acquire()
            try:
                accepted, _ = await accepting.accept()
            except OSError as error:
                room.release()
                if error.errno in _EXHAUSTED:
                    log.error("no descriptors for another connection", errno=error.errno)
                    await trio.sleep(EXHAUSTED_PAUSE_S)
                continue  # else the peer left before it was accepted
            family = accepted.family
            connected = socket.socket(family, socket.SOCK_STREAM, fileno=accepted.detach())
            connections.start_soon(self._run, connected, room)

    async def _run(self, connected: socket.socket, room: trio.Semaphore) -> None:
        """Talk to one peer to its end."""
        try:
            try:
                line = Line(connected)
            except OSError:
                connected.close()  # it left before we could look at it
                return
            peer = _Peer(self, line)
            self._peers.add(peer)
            self.metrics.connections.set(self.connections_count)
            try:
                await peer.run()
            finally:
                self._peers.discard(peer)
                self.metrics.connections.set(self.connections_count)
        finally:
            room.release()


class _Peer:
    """One connection, from its Hello to its end."""

    def __init__(self, center: Center, line: Line) -> None:
        self._center = center
        self._line = line
        self._is_stopping = False
        self._reading = trio.CancelScope()
        self._slots = trio.Semaphore(REQUESTS_MAX)
        self._name = ""
        self._is_same_machine = False
        self._consumer: Consumer | None = None
        self._on_its_way: Delivery | None = None
        self._confirmed = trio.Event()

    def stop(self) -> None:
        """Take no more requests, answer those under way, and end."""
        self._is_stopping = True
        self._reading.cancel()

    async def run(self) -> None:
        """Talk to the peer until it leaves or breaks the rules."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._line.run)
                try:
                    with single_errors():
                        await self._converse()
                except (PeerError, Refused, Unreachable) as error:
                    log.warning("peer let go", peer=self._name, code=error.code, why=error.message)
                    self._center.metrics.refused.labels(error.code).inc()
                    self._line.send(wire.encode(wire.Failure(0, error.code, error.message)))
                self._line.finish()
        finally:
            self._line.close()

    async def _converse(self) -> None:
        greeting: wire.Reader[wire.Hello] = wire.Reader(wire.hello_decoder, payload_bytes_max=wire.HELLO_BYTES_MAX)
        with self._reading, trio.move_on_after(HELLO_TIMEOUT_S):
            hello = await next_frame(self._line, greeting)
            if hello is not None:
                self._greet_untrusted(hello)
        if not self._name or self._is_stopping:
            return  # it left, said nothing in time, or we stop
        reader = wire.Reader(wire.peer_decoder, payload_bytes_max=wire.FRAME_BYTES_MAX, rest=greeting.take_rest())
        consumer = self._consumer
        self._reading = trio.CancelScope()
        try:
            async with trio.open_nursery() as requests:
                delivering = trio.CancelScope()
                if consumer is not None:
                    requests.start_soon(self._deliver, consumer, delivering)
                with self._reading:
                    await self._read_untrusted(reader, requests)
                delivering.cancel()
        finally:
            if consumer is not None:
                consumer.detach()
                log.info("consumer left", peer=self._name)

    def _greet_untrusted(self, hello: wire.Hello) -> None:
        if hello.version != wire.VERSION:
            raise PeerError("bad_version", f"format {hello.version}, this centre speaks {wire.VERSION}")
        if not self._center.admits(hello.token):
            raise PeerError("bad_token", "this is not the token of the message centre")
        self._is_same_machine = bool(hello.boot) and hello.boot == self._center.boot
        if hello.window:
            self._consumer = self._center.queue.attach(hello.name, window=hello.window)
            log.info("consumer came", peer=hello.name, window=hello.window, same_machine=self._is_same_machine)
        self._name = hello.name or "unnamed"
        self._line.send(wire.encode(wire.Welcome(wire.VERSION, self._is_same_machine)))

    async def _read_untrusted(self, reader: wire.Reader[wire.FromPeer], requests: trio.Nursery) -> None:
        """Begin what the peer asks for, in the order in which it comes, until it leaves."""
        budget = self._center.budget
        while (frame := await next_frame(self._line, reader)) is not None:
            if isinstance(frame, wire.Received):
                self._confirm(frame)
                continue
            if isinstance(frame, wire.Leave):
                if self._consumer is not None:
                    self._consumer.detach(is_orderly=True)
                return
            await self._slots.acquire()
            await budget.take(reader.frame_bytes)
            requests.start_soon(self._answer, frame, reader.frame_bytes)

    async def _deliver(self, consumer: Consumer, scope: trio.CancelScope) -> None:
        """Hand out one delivery after the other, each confirmed before the next."""
        confirm_ns = int(CONFIRM_TIMEOUT_S * _NS_PER_S)
        confirm_s = CONFIRM_TIMEOUT_S + CONFIRM_MARGIN_S
        forever = scope.deadline
        with scope, suppress(Unreachable):
            while True:
                delivery = await consumer.next_delivery()
                self._on_its_way, self._confirmed = delivery, trio.Event()
                until_ns = time.monotonic_ns() + confirm_ns if self._is_same_machine else 0
                self._line.send(wire.encode(wire.deliver_of(delivery, until_ns)))
                scope.deadline = trio.current_time() + confirm_s
                await self._confirmed.wait()
                scope.deadline = forever
        if self._is_stopping:
            return
        if self._on_its_way is not None and scope.cancelled_caught:
            log.warning("consumer confirms nothing", peer=self._name, timeout_s=CONFIRM_TIMEOUT_S)
            self._center.metrics.refused.labels("not_confirmed").inc()
        self._line.close()

    def _confirm(self, frame: wire.Received) -> None:
        """Tell the queue when the delivery on its way was received; late and doubled confirmations are passed over."""
        delivery, consumer = self._on_its_way, self._consumer
        if consumer is None or delivery is None or frame.fence != delivery.fence:
            return
        self._on_its_way = None
        consumer.received(delivery, frame.at_ns if self._is_same_machine else None)
        self._confirmed.set()

    async def _answer(self, frame: wire.Request, size: int) -> None:
        """Do what a request asks for and answer it."""
        try:
            answer = await self._do(frame)
        except (StorageError, InvariantError):
            raise
        except Unreachable:
            self._line.close()  # the queue has ended; what became of the request is unknown
        except HansaError as error:
            self._center.metrics.requests.labels(type(frame).__name__.lower(), error.code).inc()
            self._line.send(wire.encode(wire.Failure(frame.id, error.code, error.message)))
        else:
            self._center.metrics.requests.labels(type(frame).__name__.lower(), "ok").inc()
            self._line.send(answer)
        finally:
            self._slots.release()
            self._center.budget.give(size)

    async def _do(self, frame: wire.Request) -> bytes:
        queue, metrics = self._center.queue, self._center.metrics
        match frame:
            case wire.Publish():
                published = await queue.publish(wire.messages_of(frame))
                metrics.published(published)
                return wire.encode(wire.kept_of(frame.id, published))
            case wire.Settle():
                counted = await queue.settle(frame.settlements)
                metrics.settled(frame.settlements, counted)
                return wire.encode(wire.Settled(frame.id, counted))
            case wire.Find():
                return wire.encode(wire.Records(frame.id, await queue.find(frame.keys)))
            case wire.Ended():
                records: Iterable[Record | None] = await queue.ended(frame.state, frame.after, frame.limit)
                return wire.encode(wire.Records(frame.id, list(records)))
            case wire.Replay():
                return wire.encode(wire.Replayed(frame.id, await queue.replay(frame.sequences)))
            case wire.Discard():
                return wire.encode(wire.Discarded(frame.id, await queue.discard(frame.sequences)))
            case wire.Ask():
                return wire.encode(wire.Standing(frame.id, await queue.stats()))
        assert_never(frame)
