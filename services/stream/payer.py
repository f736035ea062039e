"""The payer of streams: takes offers, opens with a deposit, pays as units come, and has the rest of the deposit back.

What is signed is the machine's to say (:mod:`services.stream.payermachine`); here it is made durable, then sent. A
connection that is lost is made again, and the service party's word of how the stream stands says what to send again.
Every call may be made again after any interruption.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import structlog
import trio
from msgspec.structs import replace

from consensus.ledger.codec import Value
from consensus.ledger.errors import HansaError, InvariantError, LocalError, PeerError
from consensus.ledger.keys import Purpose
from consensus.ledger.streams import (
    CONTRACT,
    OUTAGE_MS,
    StreamRecord,
    Terms,
    close_hash,
    make_iteration,
    read_record,
    stream_key,
    terms_hash,
)
from consensus.ledger.transaction import Transaction, make_call
from services.client.client import Client
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.client.lanes import one_shot_lane
from services.client.outcome import Outcome
from services.client.tasks import single_errors
from services.stream.interfaces import Link, Meter
from services.stream.opening import (
    ANYTHING,
    LANES,
    Accepted,
    Agreed,
    Opened,
    account_key,
    ask_offer,
    check_offer,
    check_payer,
    number_used,
    open_stream,
    read_stream,
)
from services.stream.payer_store import KeptStream, PayerStore
from services.stream.payermachine import (
    AskClose,
    CloseTogether,
    Effect,
    Keep,
    Owed,
    PayerStream,
    Send,
    Sign,
    Status,
    Stop,
)
from services.stream.service_interface import OfferWanted
from services.stream.wire import Challenge, Close, Hello, Said, Standing, Told, hello_payload

CHAIN_MS = 2_000
"""How often a stream that is being paid is looked up on the chain."""
CLOSING_MS = 20_000
"""How long a payer waits for the service party's consent, or its close, before it leaves that to the window."""
METER_MS = 50
"""How often the payer's own meter is read."""
TICKS_PER_STEP = 8
TICK_MS_MAX = 250
PAUSE_FIRST_MS, PAUSE_MAX_MS = 50, 2_000
"""How long until a lost connection is made again: doubling."""
EVENTS_WAITING_MAX = 64
TOP_UPS_MAX = 1_000
"""Attempts of one top-up that failed on the chain, each of which has used a lane."""

log = structlog.get_logger("payer")

Way = Callable[[], AbstractAsyncContextManager[Link]]
"""Connects to the service party, for the time of the block."""
Event = Callable[[int], Sequence[Effect]]
"""What the machine makes of something, given the time, ms UTC."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A stream as its payer sees it now.

    Amounts in smallest units of ``terms.unit``. ``units`` were supplied by the service party's word, ``signed_due`` is
    the total signed in ``count`` iterations, ``stored_due`` what the service party has. ``limit`` is the most that may
    be due. ``status`` is one of :class:`services.stream.payermachine.Status`, with the ``reason`` of its end.
    ``trouble`` is the code of what stands in the way, "" for nothing; ``paid`` what the chain has paid when last seen.
    """

    stream: bytes
    terms: Terms
    units: int
    signed_due: int
    stored_due: int
    count: int
    limit: int
    status: str
    reason: str
    is_connected: bool
    trouble: str
    paid: int
    service_status: str


OnFigures = Callable[[Figures], None]
"""Sees how a stream stands whenever that has changed."""


def nobody_sees(figures: Figures) -> None:
    """Show nothing."""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A withdrawal: the stream's record, and how many ms of ``uptime_ms`` are left, 0 once the deposit is back."""

    record: StreamRecord
    left_ms: int


@dataclass(frozen=True, slots=True)
class _Newest:
    """A stream's record, and the uptime that a block would have now, by this machine's clock."""

    record: StreamRecord
    uptime_ms: int

    @property
    def left_ms(self) -> int:
        """How long the window of an open stream still is, 0 where it is over or was not asked for."""
        is_open = self.record.status == "OPEN"
        return max(self.record.withdraw_at_uptime_ms - self.uptime_ms, 0) if is_open else 0


@dataclass(frozen=True, slots=True)
class Found:
    """A stream by the payer's own records and by the chain; ``record`` is None where it was never opened."""

    kept: KeptStream
    record: StreamRecord | None
    uptime_ms: int
    time_ms: int


class Payer:
    """One account's payer."""

    def __init__(
        self,
        client: Client,
        signer: Signer,
        store: PayerStore,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        chain_ms: int = CHAIN_MS,
    ) -> None:
        """Take what signs and what keeps; ``now_ms`` is UTC, ``chain_ms`` how often a stream is looked up."""
        self._client = client
        self._signer = signer
        self._store = store
        self._now_ms = now_ms
        self._chain_ms = chain_ms

    # -- opening ---------------------------------------------------------------------------------------

    def next_number(self) -> int:
        """Return a number that this payer has not used: a stream's id serves once, ever."""
        return max(self._now_ms(), self._store.newest_number() + 1)

    async def agree(self, url: str, wanted: OfferWanted, *, accepted: Accepted = ANYTHING, token: str = "") -> Agreed:
        """Ask a service party for an offer and check it; errors as :func:`ask_offer` and :func:`check_offer`."""
        offer = await ask_offer(url, wanted, token=token)
        return await check_offer(self._client, offer, wanted, now_ms=self._now_ms(), accepted=accepted)

    async def open(self, agreed: Agreed, *, url: str = "") -> Opened:
        """Keep what was agreed, then open the stream on the chain; again is harmless. Errors as :func:`open_stream`.

        A stream that the chain refuses is forgotten, unless an earlier call may still open it.
        """
        check_payer(self._signer, agreed)
        stream = bytes(agreed.stream)
        known = self._store.find(stream.hex())
        if known and known[0].owed.terms != agreed.terms:
            raise number_used(agreed.terms)
        owed = Owed(stream=stream, terms=agreed.terms)
        self._store.add(KeptStream(owed, agreed.signature, self._signer.name, url, self._now_ms()))
        try:
            opened = await open_stream(self._client, self._signer, agreed)
        except Refused as error:
            if not known or error.code == "offer_expired":
                self._store.remove(stream)
            raise
        kept = self._store.stream(agreed.stream)
        self._store.keep(replace(kept.owed, opened_ms=opened.record.opened_at_ms))
        return opened

    async def open_interrupted(self, stream: bytes) -> None:
        """Open a stream that :meth:`open` was interrupted at, by the offer that was kept; others stay as they are.

        Raises:
            LocalError: ``unknown_stream``, ``wrong_payer``.
            Refused: as :func:`open_stream`; ``offer_expired`` where it is too late, and the stream is forgotten.
            Unreachable: ``outcome_unknown`` and others: the same again is safe.
        """
        kept = self._store.stream(stream)
        if kept.is_opening:
            await self.open(kept.agreed, url=kept.url)

    async def find(self, stream: bytes) -> Found:
        """Return a stream as it stands; errors as :meth:`PayerStore.stream` and :meth:`Client.state`."""
        kept = self._store.stream(stream)
        found = await self._client.state(stream_key(stream), is_newest=True)
        record = None if found.value is None else read_record(found.value)
        header = found.verified.header
        return Found(kept, record, header.uptime_ms, header.time_ms)

    # -- paying ----------------------------------------------------------------------------------------

    async def pay(
        self,
        stream: bytes,
        way: Way,
        *,
        on_figures: OnFigures = nobody_sees,
        meter: Meter | None = None,
        stopping: trio.Event | None = None,
        reason: str = "payer",
        closing_ms: int = CLOSING_MS,
    ) -> Figures:
        """Pay a stream until it ends, and wait up to ``closing_ms`` for the deposit to come back.

        Args:
            stream: its id.
            way: connects to the service party.
            on_figures: is shown whatever changes.
            meter: the payer's own; nothing is signed for units that it has not counted.
            stopping: once set, the payer ends the stream for ``reason``.

        Raises:
            LocalError: ``unknown_stream``, ``stream_held``, ``wrong_key``: it was opened with another key.
            Refused: ``unknown_stream``: it is not on the chain; ``bad_terms`` where the chain has others.
            Unreachable: the chain, at the start; ``service_unreachable``: the service party did not say within
                ``step_ms`` how the stream stands, and the stream goes on by the same call. One that cannot be reached
                later ends the stream as agreed.
            StorageError: the disk failed: nothing more is signed.
        """
        with self._store.held(stream):
            kept = self._store.stream(stream)
            record = await read_stream(self._client, stream, is_newest=True)
            self._check(kept, record)
            if record is None:
                raise InvariantError("a stream without a record was let through")
            if kept.owed.opened_ms == 0:
                kept = replace(kept, owed=replace(kept.owed, opened_ms=record.opened_at_ms))
            machine = PayerStream(kept.owed, record.limit, has_meter=meter is not None)
            session = _Session(
                self._client, self._signer, self._store, machine, record, self._now_ms, self._chain_ms, on_figures
            )
            return await session.run(way, meter, stopping, reason, closing_ms)

    async def close(
        self, stream: bytes, way: Way, *, on_figures: OnFigures = nobody_sees, closing_ms: int = CLOSING_MS
    ) -> Figures:
        """End a stream together with the service party; errors as :meth:`pay`.

        The figures' status is CLOSED once the deposit is back; else the window is what is left.
        """
        stopping = trio.Event()
        stopping.set()
        return await self.pay(stream, way, on_figures=on_figures, stopping=stopping, closing_ms=closing_ms)

    # -- the deposit -----------------------------------------------------------------------------------

    async def withdraw(self, stream: bytes) -> Withdrawal:
        """Ask for the deposit, or take it back where its window has passed; call it again until nothing is left.

        Raises:
            Refused: ``unknown_stream``, ``not_allowed``.
            Unreachable, PeerError: the chain; the same again is safe.
        """
        newest = await self._newest(stream)
        if newest.record.status == "OPEN" and newest.record.withdraw_at_uptime_ms == 0:
            await self._call("request_withdrawal", {"stream": stream}, known="stream_closed")
            newest = await self._newest(stream)
        if newest.left_ms:
            return Withdrawal(newest.record, newest.left_ms)
        if newest.record.status == "OPEN":
            # The window ends in the uptime of the block that holds this: it is tried, and may be too early.
            outcome = await self._call("withdraw", {"stream": stream}, known="window_open")
            newest = await self._newest(stream, height_min=outcome.height)
        return Withdrawal(newest.record, max(newest.left_ms, 1) if newest.record.status == "OPEN" else 0)

    async def top_up(self, stream: bytes, *, to: int) -> StreamRecord:
        """Put in what lacks to a deposit of ``to`` smallest units in all; again is harmless.

        Raises:
            Refused: ``unknown_stream``, ``stream_closed``, ``insufficient_funds``, ``overflow``.
            Unreachable, PeerError: the chain; the same again is safe.
        """
        deposit, attempt = -1, 0
        while attempt < TOP_UPS_MAX:
            record = (await self._newest(stream)).record
            if record.deposit >= to:
                return record
            deposit, attempt = record.deposit, attempt + 1 if record.deposit == deposit else 0
            arguments: dict[str, Value] = {"stream": stream, "amount": to - deposit}
            # Two at once would add up: each step upwards from a deposit stands in one lane, which takes one of them.
            lane = one_shot_lane(f"stream-top-up:{stream.hex()}:{deposit}:{attempt}")
            fresh: list[Transaction] = []
            try:
                outcome = await self._client.call_once(
                    self._signer, [make_call(CONTRACT, "top_up", arguments)], lane, on_signed=fresh.append
                )
            except Refused as error:
                if error.code != "once_used":  # another amount was tried in it, and the record says what came of that
                    raise
            else:
                if fresh:
                    outcome.check()
        raise Refused("once_used", f"{TOP_UPS_MAX} attempts have failed")

    async def _newest(self, stream: bytes, *, height_min: int = 0) -> "_Newest":
        """Return a stream's record as of the newest block."""
        found = await self._client.state(stream_key(stream), height_min=height_min, is_newest=True)
        if found.value is None:
            raise Refused("unknown_stream", f"the chain has no stream 0x{stream.hex()}")
        header = found.verified.header
        age_ms = min(max(self._now_ms() - header.time_ms, 0), OUTAGE_MS)
        return _Newest(read_record(found.value), header.uptime_ms + age_ms)

    async def _call(self, method: str, arguments: dict[str, Value], *, known: str) -> Outcome:
        """Call a method in the payer's lane; the failure ``known`` is for the caller to see."""
        lanes = self._client.lanes(self._signer, prefix=LANES)
        outcome = await self._client.call(self._signer, CONTRACT, method, arguments, lanes=lanes)
        return outcome if not outcome.is_ok and outcome.receipts[0].code == known else outcome.check()

    def _check(self, kept: KeptStream, record: StreamRecord | None) -> None:
        """Refuse to pay what was not agreed, or with a key that the service party could not use."""
        if record is None:
            hint = ": its opening was interrupted, and hansa stream pay goes on with it" if kept.is_opening else ""
            raise Refused("unknown_stream", f"the chain has no stream 0x{kept.owed.stream.hex()}{hint}")
        if record.terms_hash != terms_hash(kept.owed.terms):
            raise Refused("bad_terms", "the chain has other terms for the stream")
        if record.payer_key != self._signer.key.public.compressed:
            raise LocalError("wrong_key", f"the stream was opened with another key than that of {self._signer.name}")


class _Session:
    """One stream while it is being paid: what happens comes in one after the other, its effects are done in order."""

    def __init__(
        self,
        client: Client,
        signer: Signer,
        store: PayerStore,
        machine: PayerStream,
        record: StreamRecord,
        now_ms: Callable[[], int],
        chain_ms: int,
        on_figures: OnFigures,
    ) -> None:
        self._client = client
        self._signer = signer
        self._store = store
        self._machine = machine
        self._record = record
        self._now_ms = now_ms
        self._chain_ms = chain_ms
        self._on_figures = on_figures
        self._stream = bytes(machine.owed.stream)
        self._terms = machine.owed.terms
        self._link: Link | None = None
        self._connecting = trio.CancelScope()
        self._send_event, self._events = trio.open_memory_channel[Event](EVENTS_WAITING_MAX)
        self._trouble = ""
        self._service_status = ""
        self._shown: Figures | None = None

    async def run(
        self, way: Way, meter: Meter | None, stopping: trio.Event | None, reason: str, closing_ms: int
    ) -> Figures:
        """Pay until the stream has ended."""
        await self._do(self._machine.chain_seen(self._record))
        tick_ms = min(TICK_MS_MAX, max(1, self._terms.step_ms // TICKS_PER_STEP))
        with single_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._connect_forever, way)
                nursery.start_soon(self._look_forever)
                if meter is not None:
                    nursery.start_soon(self._meter_forever, meter)
                if stopping is not None:
                    nursery.start_soon(self._stop_after, stopping, reason)
                ends_at: float | None = None
                ticks_at = trio.current_time()
                reached_by = ticks_at + self._terms.step_ms / 1000
                while self._machine.owed.status != Status.CLOSED:
                    self._show()
                    if self._machine.owed.status == Status.PAYING:
                        ends_at = None
                    elif ends_at is None:
                        ends_at = trio.current_time() + closing_ms / 1000
                    elif trio.current_time() >= ends_at:
                        break
                    event: Event | None = None
                    with trio.move_on_at(ticks_at):
                        event = await self._events.receive()
                    if event is not None:
                        await self._do(event(self._now_ms()))
                    if trio.current_time() >= ticks_at:  # also where events come without a pause
                        ticks_at = trio.current_time() + tick_ms / 1000
                        await self._do(self._machine.ticked(self._now_ms()))
                    is_unheard = not self._service_status and self._machine.owed.status == Status.PAYING
                    if is_unheard and trio.current_time() >= reached_by:
                        raise self._unreached()
                nursery.cancel_scope.cancel()
        return self._show()

    # -- what happens ----------------------------------------------------------------------------------

    async def _connect_forever(self, way: Way) -> None:
        """Be connected, and hand on what is told."""
        pause_ms = PAUSE_FIRST_MS
        while True:
            self._connecting = trio.CancelScope()
            try:
                with self._connecting, single_errors():
                    async with way() as link:
                        self._link = link
                        while True:
                            for message in await link.receive():
                                await self._send_event.send(partial(self._told, message))
                            self._trouble, pause_ms = "", PAUSE_FIRST_MS
            except (Unreachable, Refused, PeerError) as error:
                self._on_trouble(error)
            finally:
                self._link = None
            await trio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, PAUSE_MAX_MS)

    async def _look_forever(self) -> None:
        """Look the stream up on the chain."""
        while True:
            await trio.sleep(self._chain_ms / 1000)
            try:
                record = await read_stream(self._client, self._stream)
            except (Unreachable, Refused, PeerError) as error:
                self._on_trouble(error)
                continue
            if record is not None:
                await self._send_event.send(partial(self._seen, record))

    async def _meter_forever(self, meter: Meter) -> None:
        """Read the payer's own meter."""
        while True:
            try:
                reading = await meter.read(self._stream, self._machine.owed.received_units)
            except (Unreachable, PeerError) as error:
                self._on_trouble(error)
            else:
                await self._send_event.send(partial(self._machine.metered, reading.units))
            await trio.sleep(METER_MS / 1000)

    async def _stop_after(self, stopping: trio.Event, reason: str) -> None:
        await stopping.wait()
        await self._send_event.send(lambda _: self._machine.stop(reason))

    def _told(self, message: Told, now_ms: int) -> Sequence[Effect]:
        if isinstance(message, Challenge):
            signature = self._sign(Purpose.STREAM_HELLO, hello_payload(self._stream, message.nonce))
            return (Send(Hello(self._stream, message.nonce, signature)),)
        if isinstance(message, Standing) and message.stream == self._stream:
            self._service_status = message.status
        return self._machine.told(message, now_ms)

    def _seen(self, record: StreamRecord, _: int) -> Sequence[Effect]:
        self._record = record
        return self._machine.chain_seen(record)

    # -- what is done ----------------------------------------------------------------------------------

    async def _do(self, effects: Sequence[Effect]) -> None:
        """Execute effects, and what follows from them, in order."""
        for effect in effects:
            match effect:
                case Sign(due=due):
                    await self._do(self._signed(due))
                case Keep():
                    self._store.keep(self._machine.owed)
                case Send(message=message):
                    await self._send(message)
                case AskClose(due=due):
                    signature = self._sign(Purpose.STREAM_CLOSE, close_hash(self._stream, due))
                    await self._send(Close(self._stream, due, signature))
                case CloseTogether(due=due, signature=signature):
                    await self._do(await self._close(due, signature))
                case Stop(reason=reason):
                    log.info("the stream has ended", stream=self._stream.hex(), reason=reason)
                case _:
                    assert_never(effect)

    def _signed(self, due: int) -> Sequence[Effect]:
        until_ms = self._now_ms() + self._terms.validity_ms
        made = make_iteration(self._signer.key, self._client.chain_id, self._terms.payer, self._stream, due, until_ms)
        return self._machine.signed(made.raw, until_ms)

    def _sign(self, purpose: Purpose, payload: bytes) -> bytes:
        return self._signer.key.sign(purpose, self._client.chain_id, payload)

    async def _send(self, message: Said) -> None:
        """Send if there is a connection; what is lost is sent again when the service party says how it stands."""
        link = self._link
        if link is None:
            return
        try:
            await link.send([message])
        except (Unreachable, Refused, PeerError) as error:
            self._on_trouble(error)
            self._connecting.cancel()

    async def _close(self, due: int, signature: bytes) -> Sequence[Effect]:
        """Close on the chain with the service party's consent."""
        arguments: dict[str, Value] = {"stream": self._stream, "due": due, "signature": signature}
        try:
            key = await account_key(self._client, self._terms.service)
            if not key.verifies(signature, Purpose.STREAM_CLOSE, self._client.chain_id, close_hash(self._stream, due)):
                raise PeerError("bad_signature", "the service party's consent is not signed by its key")
            lanes = self._client.lanes(self._signer, prefix=LANES)
            outcome = await self._client.call(self._signer, CONTRACT, "close", arguments, lanes=lanes)
            if not outcome.is_ok and outcome.receipts[0].code != "stream_closed":
                outcome.check()
            record = await read_stream(self._client, self._stream, height_min=outcome.height)
        except (Unreachable, Refused, PeerError) as error:
            self._on_trouble(error)
            return self._machine.close_failed()
        if record is not None:
            self._record = record
        return self._machine.chain_seen(record)

    # -- what is shown ---------------------------------------------------------------------------------

    def _unreached(self) -> Unreachable:
        why = f": {self._trouble}" if self._trouble else ""
        message = f"the service party has not said how the stream stands{why}; it stays open, and may be paid again"
        return Unreachable(message, "service_unreachable")

    def _on_trouble(self, error: HansaError) -> None:
        if error.code != self._trouble:
            log.warning("in trouble", stream=self._stream.hex(), code=error.code, why=error.message)
        self._trouble = error.code

    def _show(self) -> Figures:
        owed = self._machine.owed
        figures = Figures(
            stream=self._stream,
            terms=self._terms,
            units=owed.received_units,
            signed_due=owed.signed_due,
            stored_due=owed.stored_due,
            count=owed.count,
            limit=self._record.limit,
            status=str(owed.status),
            reason=owed.reason,
            is_connected=self._link is not None,
            trouble=self._trouble,
            paid=self._record.paid,
            service_status=self._service_status,
        )
        if figures != self._shown:
            self._shown = figures
            self._on_figures(figures)
        return figures
