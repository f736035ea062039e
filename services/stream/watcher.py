"""The watcher: settles or claims for a service party that is offline.

It holds copies of last iterations, each checked when it is given: signed by the key that the chain has for the stream.
It waits a little longer than the service party itself would, then brings the iteration to the chain, or claims it out
of the deposit; :mod:`services.stream.watchermachine` says when. Whatever it does pays the service party alone, so it is
trusted with nothing but to do it. Everything is looked up on the chain before it is done, and refused there the second
time: it may die anywhere.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec
import structlog
import trio
from anycorn.typing import ASGIFramework
from prometheus_client import CollectorRegistry, Gauge
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from consensus.ledger.codec import Value
from consensus.ledger.errors import HansaError, InvariantError, LocalError, PeerError, StorageError
from consensus.ledger.genesis import Genesis
from consensus.ledger.streams import CONTRACT, Iteration, StreamRecord, read_record, stream_key, stream_lane, terms_hash
from services.client.client import Client, open_client
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.client.outcome import Outcome
from services.client.reader import Reader
from services.client.tasks import single_errors
from services.local import pages, web
from services.local.files import genesis_at, resolved, signer_at
from services.local.pages import (
    LOOPBACK_NAMES,
    Bodies,
    Gate,
    decoded_untrusted,
    error_handlers,
    error_response,
    json_response,
)
from services.local.service import LocalService
from services.local.service import serve as serve_local
from services.messages.config import check_token, read_token, split_place
from services.messages.logs import configure_logs, ready_file, stop_signals
from services.stream.config import WATCHER_SOCKET, WatcherFile
from services.stream.iteration_file import Checked, check_carried_untrusted
from services.stream.service_interface import Ready, bytes_of_hex
from services.stream.watcher_interface import (
    StatusQuery,
    Watch,
    Watched,
    WatchedListQuery,
    WatchedPage,
    WatchedQuery,
    WatcherStatus,
)
from services.stream.watcher_store import Entry, Status, WatcherStore, open_watcher_store
from services.stream.watchermachine import Step, next_step, settles_at_ms

LANES = b"stream-watch"
"""Prefix of the lanes that claims stand in: a service party that shares the account has others."""
ATTENDED_MAX = 16
"""Streams that are looked after at the same time; half of them may wait for claims of theirs."""
_LANES_COUNT = 8
LOOK_MS = 5_000
"""How often a watched stream is looked up on the chain, where there are few."""
LOOK_EACH_MS = 4
"""How much seldomer for each that is watched, so that looking never fills a node's day."""
PAUSE_FIRST_MS, PAUSE_MAX_MS = 200, 5_000
VALIDITY_MS = 30_000
"""How long a claim waits for a block before it is signed again."""
SETTLE_MS = 15_000
"""How long the outcome of an iteration is waited for before the stream is looked at again."""
_STATUSES = {
    **pages.STATUSES,
    **dict.fromkeys(("wrong_chain", "wrong_stream", "bad_key", "bad_signature", "bad_iteration", "bad_terms"), 400),
    **dict.fromkeys(("bad_version", "bad_lane", "bad_proof", "bad_certificate"), 400),
    "unknown_stream": 404,
    **dict.fromkeys(("node_unreachable", "node_timeout", "bad_answer", "height_not_reached", "watcher_full"), 503),
}

log = structlog.get_logger("watcher")


@dataclass(frozen=True, slots=True)
class WatcherSettings:
    """What a watcher runs with; :class:`services.stream.config.WatcherFile` says what the fields mean."""

    run: Path
    data: Path
    host: str
    port: int
    token: str
    host_names: tuple[str, ...]
    genesis: Genesis
    nodes: tuple[str, ...]
    signer: Signer
    look_ms: int = LOOK_MS
    log_level: str = "info"

    @property
    def socket(self) -> Path:
        """Where the owner calls."""
        return self.run / WATCHER_SOCKET


def watcher_settings(home: Path, file: WatcherFile) -> WatcherSettings:
    """Return what the watcher of a folder runs with.

    Raises:
        LocalError: ``bad_config``, ``bad_address``, ``bad_genesis``, ``unknown_key``, ``wrong_passphrase``, ….
    """
    host, port = split_place(file.listen)
    token = read_token(home, "token", file.token)
    check_token(home, file.listen, token)
    return WatcherSettings(
        run=resolved(home, file.run),
        data=resolved(home, file.data),
        host=host,
        port=port,
        token=token,
        host_names=tuple(file.hosts),
        genesis=genesis_at(home, file.genesis),
        nodes=tuple(file.nodes),
        signer=signer_at(home, keys=file.keys, passphrase=file.passphrase, name=file.account),
        log_level=file.log_level,
        look_ms=file.look_ms,
    )


@dataclass(frozen=True, slots=True)
class Looked:
    """A stream as the chain proves it: its record, its lane's last transaction (None: free), the newest block's times.

    The record is not older than the lane.
    """

    record: StreamRecord
    last_id: bytes | None
    time_ms: int
    uptime_ms: int


@dataclass(frozen=True, slots=True)
class Done:
    """What was done about an iteration, and how the stream stands after it; ``outcome`` is None where it was nothing.

    ``amount`` and ``fine`` are what this brought the service party.
    """

    step: Step
    record: StreamRecord
    amount: int = 0
    fine: int = 0
    outcome: Outcome | None = None


async def look(reader: Reader, stream: bytes, payer: bytes) -> Looked:
    """Return a stream and its lane, proven.

    Raises:
        Refused: ``unknown_stream``.
        PeerError, Unreachable: as :meth:`Reader.state`.
    """
    lane = await reader.state(f"lanes/{payer.hex()}/{stream_lane(stream).hex()}", is_newest=True)
    found = await reader.state(stream_key(stream), height_min=lane.height)
    if found.value is None:
        raise Refused("unknown_stream", f"the chain has no stream 0x{stream.hex()}")
    last_id = lane.value.get("lastId") if isinstance(lane.value, dict) else None
    if lane.value is not None and not isinstance(last_id, bytes):
        raise PeerError("malformed", "no record of a lane")
    header = found.verified.header
    used = last_id if isinstance(last_id, bytes) else None
    return Looked(read_record(found.value), used, header.time_ms, header.uptime_ms)


async def settle_or_claim(
    client: Client, signer: Signer, checked: Checked, *, now_ms: int, margin_ms: int | None = None
) -> Done:
    """Do what is to be done now about an iteration, once; again is harmless.

    Without ``margin_ms`` an iteration that may settle is settled at once.

    Raises:
        Refused: ``unknown_stream``; ``insufficient_funds`` where it failed to settle, which a claim makes good; of a
            claim the contract's code, ``not_claimable`` above all.
        Unreachable, PeerError: the chain; the same again is safe.
    """
    iteration, carried = checked.iteration, checked.carried
    looked = await look(client, iteration.stream, carried.terms.payer)
    margin_ms, is_urgent = (margin_ms, False) if margin_ms is not None else (carried.terms.margin_ms, True)
    step = next_step(
        looked.record,
        looked.last_id,
        iteration,
        margin_ms=margin_ms,
        now_ms=now_ms,
        time_ms=looked.time_ms,
        uptime_ms=looked.uptime_ms,
        is_urgent=is_urgent,
    )
    match step:
        case Step.WAIT | Step.DONE:
            return Done(step, looked.record)
        case Step.SETTLE:
            outcome = (await client.submit_and_wait(iteration.transaction, timeout_ms=SETTLE_MS)).check()
        case Step.CLAIM:
            arguments: dict[str, Value] = {"stream": bytes(iteration.stream), "raw": carried.raw}
            lanes = client.lanes(signer, count=_LANES_COUNT, prefix=LANES)
            outcome = await client.call(signer, CONTRACT, "claim", arguments, lanes=lanes, timeout_ms=VALIDITY_MS)
            outcome.check()
    found = await client.state(stream_key(iteration.stream), height_min=outcome.height)
    record = read_record(found.value)
    return Done(step, record, *_gained(outcome, iteration), outcome)


def _gained(outcome: Outcome, iteration: Iteration) -> tuple[int, int]:
    """Return amount and fine that an outcome paid."""
    value = outcome.value()
    if isinstance(value, dict):
        amount, fine = value.get("amount"), value.get("fine")
        return (amount, fine) if isinstance(amount, int) and isinstance(fine, int) else (0, 0)
    return (value, 0) if isinstance(value, int) else (0, 0)


class Watcher:
    """The watcher while it runs: :meth:`watch_forever` beside whoever gives it iterations."""

    def __init__(
        self,
        settings: WatcherSettings,
        store: WatcherStore,
        client: Client,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Take what it keeps and how it reaches the chain; ``now_ms`` is UTC."""
        self._settings = settings
        self._store = store
        self._client = client
        self._now_ms = now_ms
        self._given = trio.Event()
        self._troubles: dict[bytes, str] = {}
        self._checked: dict[bytes, tuple[bytes, Checked]] = {}
        """Of each watched stream its file and what that says, so that it is checked once."""

    def add_methods(self, service: LocalService) -> None:
        """Add ``watch``, ``stream``, ``streams`` and ``status``."""
        service.add("watch", Watch, self.watch)
        service.add("stream", WatchedQuery, self.stream)
        service.add("streams", WatchedListQuery, self.streams)
        service.add("status", StatusQuery, self.status)

    # -- what is given ---------------------------------------------------------------------------------

    async def watch(self, params: Watch) -> Watched:
        """Check an iteration against the chain, and keep it; see :class:`Watch`."""
        file = params.iteration.encode()
        checked = check_carried_untrusted(file, self._settings.genesis)
        terms, stream = checked.carried.terms, bytes(checked.iteration.stream)
        until_ms = checked.iteration.valid_until_ms
        # One that no node would take yet could not settle, nor expire and be claimed, before the deposit is gone.
        if until_ms > self._now_ms() + terms.validity_ms + terms.margin_ms // 2:
            raise PeerError("bad_validity", "it is valid for longer than was agreed")
        record = (await look(self._client, stream, terms.payer)).record
        if record.payer_key != checked.carried.payer_key:
            raise PeerError("bad_signature", "signed by another key than the one that the chain has for the stream")
        if record.terms_hash != terms_hash(terms):
            raise PeerError("bad_terms", "the chain has other terms for the stream")
        if record.status != "OPEN":
            raise Refused("stream_closed", "the stream is closed: it moves no more")
        entry = self._store.take(
            Entry(stream, checked.iteration.due, until_ms, file, is_urgent=params.urgent, paid=record.paid)
        )
        self._given.set()
        return self._shown(entry)

    async def stream(self, params: WatchedQuery) -> Watched:
        """Return one stream."""
        entry = self._store.entry(bytes_of_hex(params.stream))
        if entry is None:
            raise LocalError("unknown_stream", f"no iteration of stream {params.stream} was given")
        return self._shown(entry)

    async def streams(self, params: WatchedListQuery) -> WatchedPage:
        """Return a page of streams."""
        items = [self._shown(entry) for entry in self._store.page(bytes_of_hex(params.after), params.limit)]
        return WatchedPage(items, items[-1].stream if len(items) == params.limit else "")

    async def status(self, params: StatusQuery) -> WatcherStatus:
        """Return how the watcher stands."""
        signer = self._settings.signer
        return WatcherStatus(
            account=signer.name,
            address=f"0x{signer.address.hex()}",
            chain_id=f"0x{self._client.chain_id.hex()}",
            counts=self._store.counts(),
            trouble=next(iter(self._troubles.values()), ""),
        )

    def _shown(self, entry: Entry) -> Watched:
        checked = self._read(entry)
        iteration, terms = checked.iteration, checked.carried.terms
        return Watched(
            stream=f"0x{entry.stream.hex()}",
            status=entry.status.value,
            unit=terms.unit,
            due=entry.due,
            paid=entry.paid,
            fine=entry.fine,
            valid_until_ms=iteration.valid_until_ms,
            settles_at_ms=settles_at_ms(iteration, terms.margin_ms),
            transaction=f"0x{entry.transaction.hex()}" if entry.transaction else "",
            trouble=self._troubles.get(entry.stream, ""),
        )

    def _read(self, entry: Entry) -> Checked:
        known = self._checked.get(entry.stream)
        if known is not None and known[0] == entry.file:
            return known[1]
        try:
            checked = check_carried_untrusted(entry.file, self._settings.genesis)
        except PeerError as error:
            raise StorageError("corrupted", f"a kept iteration does not hold: {error.message}") from None
        if entry.status is Status.WATCHING:
            self._checked[entry.stream] = (entry.file, checked)
        return checked

    # -- what is done ----------------------------------------------------------------------------------

    async def watch_forever(self) -> None:
        """Look at all streams again and again, for ever.

        Raises:
            StorageError: the disk failed.
        """
        while True:
            self._given = trio.Event()
            entries = self._store.watching()
            await self._attend_all(entries)
            left_ms = self._settings.look_ms + LOOK_EACH_MS * len(entries)
            with trio.move_on_after(max(PAUSE_FIRST_MS, min(left_ms, self._next_in_ms())) / 1000):
                await self._given.wait()

    async def _attend_all(self, entries: Sequence[Entry]) -> None:
        """Attend to some at the same time, so that none waits long for another's block."""
        limit = trio.CapacityLimiter(ATTENDED_MAX)

        async def attend(entry: Entry) -> None:
            async with limit:
                await self.attend(entry)

        with single_errors():
            async with trio.open_nursery() as nursery:
                for entry in entries:
                    nursery.start_soon(attend, entry)

    async def attend(self, entry: Entry) -> None:
        """Do for one stream what is to be done now; what stands in the way is shown, and tried again later."""
        checked = self._read(entry)
        margin_ms = None if entry.is_urgent else checked.carried.terms.margin_ms
        signer, now_ms = self._settings.signer, self._now_ms()
        try:
            done = await settle_or_claim(self._client, signer, checked, now_ms=now_ms, margin_ms=margin_ms)
        except (Unreachable, Refused, PeerError) as error:
            self._on_trouble(entry, error)
            return
        self._troubles.pop(entry.stream, None)
        status = {
            Step.WAIT: Status.WATCHING,
            Step.DONE: Status.OVER,
            Step.SETTLE: Status.WATCHING if done.record.paid < entry.due else Status.SETTLED,
            Step.CLAIM: Status.CLAIMED,
        }[done.step]
        after = msgspec.structs.replace(
            entry,
            status=status,
            paid=done.record.paid,
            fine=entry.fine + done.fine,
            transaction=bytes(done.outcome.transaction.id) if done.outcome is not None else entry.transaction,
        )
        if after == entry:
            return
        self._store.put(after)
        if after.status is not Status.WATCHING:
            self._checked.pop(entry.stream, None)
        if done.outcome is not None:
            what = {"stream": entry.stream.hex(), "due": entry.due, "amount": done.amount, "fine": done.fine}
            log.info("settled" if done.step is Step.SETTLE else "claimed", **what)

    def _on_trouble(self, entry: Entry, error: HansaError) -> None:
        if self._troubles.get(entry.stream) != error.code:
            log.warning("a stream is in trouble", stream=entry.stream.hex(), code=error.code, why=error.message)
        self._troubles[entry.stream] = error.code
        if isinstance(error, PeerError):
            self._client.leave_node()

    def _next_in_ms(self) -> int:
        """Return how long until the first iteration is to settle, and after trouble a short while."""
        if self._troubles:
            return PAUSE_MAX_MS
        now_ms = self._now_ms()
        times = [
            settles_at_ms(checked.iteration, checked.carried.terms.margin_ms) for _, checked in self._checked.values()
        ]
        return min((at_ms - now_ms for at_ms in times if at_ms > now_ms), default=self._settings.look_ms)


class Pages:
    """The watcher over HTTP."""

    def __init__(self, watcher: Watcher) -> None:
        """Take the watcher."""
        self._watcher = watcher
        self._bodies = Bodies()
        self.failed = trio.Event()
        """Set with ``failure``, the first error of the disk or a broken invariant: only a new start helps."""
        self.failure: StorageError | InvariantError | None = None

    def app(self) -> Starlette:
        """Return the routes."""
        routes = [
            Route("/iterations", self._watch, methods=["POST"]),
            Route("/streams/{stream}", self._stream),
            Route("/healthz", self._health),
        ]
        handlers = {**error_handlers(_STATUSES), StorageError: self._on_failure, InvariantError: self._on_failure}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def _watch(self, request: Request) -> Response:
        asked = decoded_untrusted(await self._bodies.read(request), _watch)
        return _said(await self._watcher.watch(asked))

    async def _stream(self, request: Request) -> Response:
        try:
            asked = msgspec.convert({"stream": request.path_params["stream"]}, WatchedQuery)
        except msgspec.ValidationError as error:
            raise PeerError("bad_field", str(error)) from None
        return _said(await self._watcher.stream(asked))

    async def _health(self, _: Request) -> Response:
        return _said(Ready((await self._watcher.status(StatusQuery())).account))

    async def _on_failure(self, _: Request, error: Exception) -> Response:
        if not isinstance(error, StorageError | InvariantError):
            raise InvariantError("this handler is for what ends the program")
        self.failure = self.failure or error
        self.failed.set()
        return error_response(error, _STATUSES)


def _said(content: msgspec.Struct) -> Response:
    return json_response(msgspec.json.encode(content))


_watch = msgspec.json.Decoder(Watch)


async def run(settings: WatcherSettings) -> None:
    """Watch until SIGTERM or SIGINT.

    Raises:
        LocalError: ``already_running``, ``store_locked``, ``port_in_use``, ``bad_address``, ``bad_config``.
        StorageError: the disk failed.
    """
    configure_logs(settings.log_level)
    with single_errors(), open_watcher_store(settings.data) as store:
        async with stop_signals() as stopping, open_client(settings.genesis, settings.nodes) as client:
            await serve(settings, Watcher(settings, store, client), stopping)
    log.info("stopped")


async def serve(
    settings: WatcherSettings,
    watcher: Watcher,
    stopping: trio.Event,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Watch until ``stopping`` is set; ``started`` gives the port. Errors as :func:`run`."""
    service, watched = LocalService(), Pages(watcher)
    watcher.add_methods(service)
    connections = Gauge("hansa_stream_watcher_connections", "Open connections", registry=CollectorRegistry())
    names = LOOPBACK_NAMES | {name.lower() for name in (settings.host, *settings.host_names)}
    app = cast(ASGIFramework, Gate(watched.app(), names=names, token=settings.token))
    with single_errors(), web.open_socket(settings.host, settings.port) as listening, ready_file(settings.run):
        async with trio.open_nursery() as background:
            background.start_soon(watcher.watch_forever)
            background.start_soon(_stop_when_failed, watched, stopping)
            async with trio.open_nursery() as front:
                await front.start(serve_local, settings.socket, service, stopping)
                port = listening.getsockname()[1]
                log.info("ready", account=settings.signer.name, host=settings.host, port=port, money="simulated")
                task_status.started(port)
                await web.serve(listening, app, connections=connections, stopping=stopping)
            background.cancel_scope.cancel()
    if watched.failure is not None:
        raise watched.failure


async def _stop_when_failed(watched: Pages, stopping: trio.Event) -> None:
    await watched.failed.wait()
    stopping.set()
