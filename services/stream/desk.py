"""The streams of one service party: what payers say, what the meter supplies, and what the chain shows of them.

Each stream is a :class:`services.stream.servicemachine.ServiceStream`; this runs its effects. Nothing that a machine
wants done after ``Keep`` is done before the store has written the stream: messages wait in their connection's
:class:`services.stream.outlet.Outlet`, whatever goes to the chain in a task, and the meter is allowed nothing by an
iteration that a power cut could take back.
"""

import math
from collections.abc import Callable, Sequence
from typing import assert_never

import structlog
import trio

from consensus.ledger.errors import PeerError
from consensus.ledger.keys import PublicKey, Purpose
from consensus.ledger.streams import close_hash, read_iteration_untrusted
from services.client.errors import Refused as RefusedError
from services.client.errors import Unreachable
from services.stream.challenges import Challenges
from services.stream.interfaces import Meter
from services.stream.metrics import ServiceMetrics
from services.stream.outlet import STREAMS_MAX, Outlet
from services.stream.service_chain import ChainPort
from services.stream.servicemachine import (
    CLOSED,
    COLLECTED,
    AgreeToClose,
    Claim,
    CloseTogether,
    Effect,
    Keep,
    Kept,
    Outcome,
    ServiceStream,
    Status,
    Tell,
    Upload,
)
from services.stream.store import Entry, StreamStore
from services.stream.wire import Ask, Close, Closed, Hello, Iterate, Refused, Said, hello_payload

LIVES_MAX = 10_000
"""Streams in memory: those that are not closed, and closed ones that somebody asks for."""
ADOPTING_MAX = 8
"""Streams that are looked up at the same time because a payer names them for the first time."""
LOOKS_MAX = 8
"""Streams that are looked up on the chain at the same time."""
STRETCH = 16
"""Messages taken before others get their turn: one costs a tenth of a millisecond."""
TICK_MS = 50
"""How often each stream looks at the clock; with very many streams more seldom (``TICK_EACH_MS``)."""
TICK_EACH_MS = 0.1
METER_EACH_MS = 5
"""Pause between two reads of one meter, for each stream that is metered: 200 reads a second in all."""
METER_RETRY_MS = 500
LOOK_EACH_MS = 50
"""How much later each stream is looked up again for every stream there is: a proof costs a few milliseconds."""
LOOK_MS_MAX = 30_000
"""How late that may become, however many they are: a withdrawal is to be seen long before its window ends."""
LOOK_PACE_MS = 10
"""Pause between two looks, so that they come spread and not all at once."""
COLLECTED_LOOK_MS = 20_000
"""How often a stream is looked up that has nothing left to collect, and waits to be closed."""
MESSAGE_CHARACTERS_MAX = 256

log = structlog.get_logger("stream")


class Live:
    """A stream in memory: its machine, the key that was pinned, and who is told of it."""

    def __init__(self, machine: ServiceStream, key: PublicKey) -> None:
        self.machine = machine
        self.key = key
        self.group = 0
        """The store's group that holds, or will hold, all that the machine wanted kept so far."""
        self.outlets: set[Outlet] = set()
        self.may_supply = trio.Event()
        self.look_at_s = 0.0

    @property
    def kept(self) -> Kept:
        """What is kept of it."""
        return self.machine.kept

    @property
    def is_over(self) -> bool:
        """Whether the chain has closed it."""
        return self.kept.status in CLOSED

    def entry(self) -> Entry:
        """Return its row."""
        return Entry(self.machine.kept, self.key.compressed, self.machine.limit)


class Desk:
    """All streams of a service party; :meth:`run` must run beside whoever calls."""

    def __init__(
        self,
        store: StreamStore,
        chain: ChainPort,
        meter: Meter,
        metrics: ServiceMetrics,
        now_ms: Callable[[], int],
        *,
        meter_ms: int,
        chain_ms: int,
    ) -> None:
        self._store = store
        self._chain = chain
        self._meter = meter
        self._metrics = metrics
        self._now_ms = now_ms
        self._meter_ms = meter_ms
        self._chain_ms = chain_ms
        self._lives: dict[bytes, Live] = {}
        self._adopting = trio.CapacityLimiter(ADOPTING_MAX)
        self._nursery: trio.Nursery | None = None
        self._streaming = 0
        self.challenges = Challenges(now_ms)
        self.iterations = 0
        """Iterations taken since the start."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Go on with what an earlier run left, and follow all streams until cancelled.

        Raises:
            StorageError: the store or the meter's count has failed.
        """
        closed = {str(status) for status in CLOSED}
        statuses = [str(status) for status in Status if str(status) not in closed]
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._store.write_forever)
            for entry in await self._store.unfinished(statuses):
                self._enter(entry)
            nursery.start_soon(self._tick_forever)
            nursery.start_soon(self._look_forever)
            task_status.started()

    def outlet(self) -> Outlet:
        """Return the way to a payer that came; :meth:`leave` ends it."""
        return Outlet(self._store)

    def leave(self, outlet: Outlet) -> None:
        """Tell a payer nothing more."""
        for stream in outlet.hailed:
            if (live := self._lives.get(stream)) is not None:
                live.outlets.discard(outlet)

    # -- payers ----------------------------------------------------------------------------------------

    async def hear(self, messages: Sequence[Said], outlet: Outlet, nonce: bytes | None) -> None:
        """Take a payer's messages in their order; what is to be said to them goes into the outlet.

        ``nonce`` is what a Hello has to sign; None where it is one that was given for a single request.
        """
        given = nonce
        for place, said in enumerate(messages, 1):
            try:
                live = self._lives.get(said.stream) or await self._adopt(said.stream)
                if isinstance(said, Hello) and given is None:
                    self.challenges.take(said.nonce)
                    given = said.nonce
                self._hear(live, said, outlet, given)
            except (PeerError, RefusedError, Unreachable) as error:
                self._metrics.refused.labels(error.code).inc()
                outlet.put(0, Refused(said.stream, error.code, error.message[:MESSAGE_CHARACTERS_MAX]))
            if place % STRETCH == 0:
                await trio.lowlevel.checkpoint()

    def _hear(self, live: Live, said: Said, outlet: Outlet, nonce: bytes | None) -> None:
        match said:
            case Iterate():
                self._iterate(live, said.raw, outlet)
            case Hello():
                payload = hello_payload(said.stream, said.nonce)
                is_own = live.key.verifies(said.signature, Purpose.STREAM_HELLO, self._chain.chain_id, payload)
                if said.nonce != nonce or not is_own:
                    raise PeerError("bad_hello", "not signed by the stream's payer over this connection's challenge")
                if len(outlet.hailed) >= STREAMS_MAX:
                    raise PeerError("too_many_streams", f"a connection is told of {STREAMS_MAX} streams")
                outlet.hailed.add(said.stream)
                live.outlets.add(outlet)
                self._run(live, live.machine.asked(), outlet)
            case Close():
                payload = close_hash(said.stream, said.due)
                if not live.key.verifies(said.signature, Purpose.STREAM_CLOSE, self._chain.chain_id, payload):
                    raise PeerError("bad_signature", "not the payer's signature of this close")
                self._run(live, live.machine.close_asked(said.due, said.signature, self._now_ms()), outlet)
            case Ask():
                if said.stream not in outlet.hailed:
                    raise PeerError("hello_missing", "say Hello for this stream first")
                self._run(live, live.machine.asked(), outlet)
            case _:
                assert_never(said)

    def _iterate(self, live: Live, raw: bytes, outlet: Outlet) -> None:
        kept = live.machine.kept
        iteration = read_iteration_untrusted(
            raw, chain_id=self._chain.chain_id, payer=kept.terms.payer, stream=kept.stream, key=live.key
        )
        self._run(live, live.machine.iterated(iteration, self._now_ms()), outlet)
        self.iterations += live.machine.kept.count - kept.count

    async def _adopt(self, stream: bytes) -> Live:
        """Return a stream that a payer names for the first time: one kept here, or one that was offered and opened.

        Raises:
            PeerError: ``unknown_stream``: it was not offered here, or not opened by what was offered.
            Refused: ``busy``; Unreachable: the chain cannot be read now.
        """
        async with self._adopting:
            if (live := self._lives.get(stream)) is not None:
                return live
            if len(self._lives) >= LIVES_MAX:
                raise RefusedError("busy", f"{LIVES_MAX} streams are open: come again later")
            entry = await self._store.find(stream)
            if entry is not None:
                return self._lives.get(stream) or self._enter(entry)
            # The id is of payer, service party and number: any of its offers tells whose account to look at.
            terms = await self._store.offered(stream)
            seen = None if terms is None else await self._chain.look(terms, stream, is_newest=True)
            record = None if seen is None else seen.record
            terms = None if record is None else await self._store.offer(record.terms_hash)
            if seen is not None and record is not None and terms is not None:
                kept = Kept(stream, terms, opened_ms=record.opened_at_ms, heard_ms=self._now_ms())
                live = self._lives.get(stream)
                if live is None:
                    live = self._enter(Entry(kept, record.payer_key, record.limit))
                    live.group = self._store.keep(stream, live)
                    self._run(live, live.machine.chain_seen(record, seen.lane, seen.time_ms, seen.uptime_ms), None)
                    log.debug("stream opened", stream=stream.hex(), deposit=record.deposit, unit=record.unit)
                return live
        raise PeerError("unknown_stream", "it was not offered here, or is not open on the chain with these terms")

    # -- owner -----------------------------------------------------------------------------------------

    async def find(self, stream: bytes) -> tuple[Entry, int] | None:
        """Return a stream, and how many units it may supply now; None for one that nobody knows."""
        if (live := self._lives.get(stream)) is not None:
            return live.entry(), live.machine.allowed_units
        entry = await self._store.find(stream)
        return None if entry is None else (entry, entry.kept.units)

    def uncollected(self) -> list[Entry]:
        """Return the streams with an iteration that is not on the chain."""
        lives = self._lives.values()
        return [live.entry() for live in lives if live.kept.raw and live.kept.status not in COLLECTED + CLOSED]

    async def end(self, stream: bytes, reason: str) -> None:
        """Let a stream end, and return once that is durable; nothing where it has ended."""
        if (live := self._lives.get(stream)) is not None:
            self._run(live, live.machine.end(reason, self._now_ms()), None)
            await self._store.until(live.group)

    # -- effects ---------------------------------------------------------------------------------------

    def _enter(self, entry: Entry) -> Live:
        live = Live(ServiceStream(entry.kept, entry.limit), PublicKey.load_untrusted(entry.payer_key))
        self._lives[entry.kept.stream] = live
        if entry.kept.status == Status.STREAMING:
            self._spawn(self._meter_stream, live)
        return live

    def _run(self, live: Live, effects: tuple[Effect, ...], outlet: Outlet | None) -> None:
        """Do what a machine wants; ``outlet`` is of who caused it, if anybody."""
        for effect in effects:
            match effect:
                case Keep():
                    live.group = self._store.keep(live.kept.stream, live)
                    live.may_supply.set()
                case Tell():
                    if outlet is not None and outlet not in live.outlets:
                        outlet.put(live.group, effect.message)
                    for each in live.outlets:
                        each.put(live.group, effect.message)
                case AgreeToClose(due):
                    stream = live.kept.stream
                    signature = self._chain.key.sign(
                        Purpose.STREAM_CLOSE, self._chain.chain_id, close_hash(stream, due)
                    )
                    self._run(live, (Tell(Closed(stream, due, signature)),), outlet)
                case Upload() | Claim() | CloseTogether():
                    self._spawn(self._send, live, effect)
                case _:
                    assert_never(effect)

    def _spawn(self, work: Callable[..., object], *arguments: object) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(work, *arguments)  # type: ignore[arg-type]

    async def _send(self, live: Live, effect: Upload | Claim | CloseTogether) -> None:
        """Bring something to the chain once what it depends on is durable, and look at once what came of it."""
        await self._store.until(live.group)
        stream = live.kept.stream
        match effect:
            case Upload(raw):
                outcome = await self._chain.upload(raw)
            case Claim(raw):
                outcome = await self._chain.claim(stream, raw)
            case CloseTogether(due, signature):
                outcome = await self._chain.close(stream, due, signature)
            case _:
                assert_never(effect)
        what = type(effect).__name__
        self._metrics.sent.labels(what, str(outcome)).inc()
        log.info("brought to the chain", stream=stream.hex(), what=what, outcome=str(outcome))
        self._run(live, live.machine.uploaded(outcome, self._now_ms()), None)
        if outcome == Outcome.FINAL:
            await self._look(live)

    # -- time, chain, meter ----------------------------------------------------------------------------

    async def _tick_forever(self) -> None:
        while True:
            await trio.sleep(max(TICK_MS, len(self._lives) * TICK_EACH_MS) / 1000)
            self._forget_closed()
            self._streaming = 0
            for place, live in enumerate(list(self._lives.values()), 1):
                self._streaming += live.kept.status == Status.STREAMING
                self._run(live, live.machine.ticked(self._now_ms()), None)
                if place % (STRETCH * STRETCH) == 0:
                    await trio.lowlevel.checkpoint()
            self._metrics.streams.set(self._streaming)

    async def _look_forever(self) -> None:
        """Look each stream up on the chain whenever that is due."""
        limiter = trio.CapacityLimiter(LOOKS_MAX)
        async with trio.open_nursery() as looks:
            while True:
                now_s = trio.current_time()
                for live in [live for live in self._lives.values() if not live.is_over and live.look_at_s <= now_s]:
                    live.look_at_s = math.inf
                    await limiter.acquire_on_behalf_of(live)
                    looks.start_soon(self._look_within, live, limiter)
                    await trio.sleep(LOOK_PACE_MS / 1000)
                await trio.sleep(min(self._chain_ms, TICK_MS) / 1000)

    async def _look_within(self, live: Live, limiter: trio.CapacityLimiter) -> None:
        try:
            await self._look(live)
        finally:
            limiter.release_on_behalf_of(live)
            live.look_at_s = trio.current_time() + self._look_pause_ms(live) / 1000

    def _look_pause_ms(self, live: Live) -> int:
        """Return when a stream is looked up again, ms from now: soon while something of it is on its way."""
        if live.kept.status in COLLECTED:
            return COLLECTED_LOOK_MS
        is_streaming = live.kept.status == Status.STREAMING
        return max(self._chain_ms, min(self._streaming * LOOK_EACH_MS, LOOK_MS_MAX) if is_streaming else 0)

    async def _look(self, live: Live) -> None:
        try:
            seen = await self._chain.look(live.kept.terms, live.kept.stream)
        except (Unreachable, RefusedError, PeerError) as error:
            log.debug("not looked up", code=error.code, why=error.message)
            return
        before, limit = live.kept.status, live.machine.limit
        effects = live.machine.chain_seen(seen.record, seen.lane, seen.time_ms, seen.uptime_ms)
        if live.machine.limit != limit:
            live.group = self._store.keep(live.kept.stream, live)
        self._run(live, effects, None)
        live.may_supply.set()
        if live.kept.status != before:
            log.info("stream", stream=live.kept.stream.hex(), status=live.kept.status, reason=live.kept.reason)
            if live.is_over:
                self._metrics.ended.labels(live.kept.reason).inc()

    async def _meter_stream(self, live: Live) -> None:
        """Allow the meter what is paid or owed, and count what it supplies, as long as the stream lasts."""
        stream = live.kept.stream
        while live.kept.status == Status.STREAMING:
            live.may_supply = trio.Event()
            allowed, group = live.machine.allowed_units, live.group
            # An iteration allows something once it cannot be lost any more.
            await self._store.until(group)
            if allowed <= live.kept.units:
                await live.may_supply.wait()
                continue
            pause_ms = self._meter_ms
            try:
                reading = await self._meter.read(stream, allowed)
                if not live.kept.units <= reading.units <= allowed:
                    raise PeerError("bad_meter", f"the meter says {reading.units} units of {allowed}")
            except Unreachable as error:
                log.warning("meter", code=error.code, why=error.message)
                pause_ms = METER_RETRY_MS
            except PeerError as error:
                log.error("meter", code=error.code, why=error.message)
                self._run(live, live.machine.end("meter", self._now_ms()), None)
                return
            else:
                self._run(live, live.machine.metered(reading.units, reading.is_done, self._now_ms()), None)
            await trio.sleep(max(pause_ms, self._streaming * METER_EACH_MS) / 1000)

    def _forget_closed(self) -> None:
        """Make room: what is closed stands in the store."""
        durable = self._store.durable
        closed = [live for live in self._lives.values() if live.is_over and not live.outlets and live.group <= durable]
        for live in closed:
            del self._lives[live.kept.stream]
