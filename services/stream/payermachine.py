"""What the payer of one stream does: events in, effects out, in the order to execute them. Pure.

Rules, so that whatever the service party, network or disk do, no more than one step (``step_max``) is paid in vain:

- **P1** *Service first*: signed is what was supplied; *payment first*: that and one step. What was supplied is what the
  service party tells, and, where the payer has a meter of its own, no more than that one counts.
- **P2** No total is signed that is above deposit, fine, credit and the agreed amount, and none below an earlier one:
  what was signed is durable before it is sent. Once an agreed end is reached nothing is signed ahead, and never more
  iterations than the agreed count: the last one waits for the payer's own meter, and what comes after it is paid by a
  close.
- **P3** The payer stops when the service party tells of a due that is not price × units, of units that were neither
  paid nor within one step, or of an iteration that was never signed; when its own meter denies units for ``step_ms``;
  and when nothing is supplied or stored for ``step_ms`` since the service party first said how the stream stands: one
  that cannot be reached at the start ends nothing.
- **P4** Who wants to end signs a close with what was supplied, which gives the deposit back at once; where no answer
  comes, the deposit comes back after the window.

Two clocks differ: an iteration's validity is renewed, with the same total, when a quarter of it is left before the
margin.
"""

from enum import StrEnum
from typing import Final, TypeAlias, assert_never

import msgspec
from msgspec.structs import replace

from consensus.ledger.streams import Mode, StreamRecord, Terms
from services.stream.ends import due_max, reached
from services.stream.wire import Challenge, Closed, Iterate, Refused, Said, Standing, Stored, Supplied, Told

SERVICE_STREAMING: Final = "STREAMING"
"""The service party's status while it supplies."""
CLOSABLE: Final = (SERVICE_STREAMING, "ENDING")
"""Those in which it takes a close message."""


class Status(StrEnum):
    """Where a stream stands for the payer."""

    PAYING = "PAYING"
    STOPPED = "STOPPED"
    """Nothing more is signed but a close; the service party collects what is due."""
    CLOSING = "CLOSING"
    """The service party agreed to close; ``streams.close`` is to be called, or is on its way."""
    CLOSED = "CLOSED"


class Owed(msgspec.Struct, frozen=True):
    """What must be durable of a stream before any iteration goes out.

    ``signed_due`` is the highest total ever signed, ``raw`` and ``valid_until_ms`` its iteration; ``count`` is of
    totals signed. ``received_units`` is what the service party says to have supplied, ``stored_due`` what it says to
    have stored. ``close_due`` is what a close was signed with, −1 before. ``opened_ms`` is the opening's block, ms UTC.
    """

    stream: bytes
    terms: Terms
    signed_due: int = 0
    raw: bytes = b""
    received_units: int = 0
    stored_due: int = 0
    status: str = Status.PAYING
    reason: str = ""
    valid_until_ms: int = 0
    count: int = 0
    close_due: int = -1
    opened_ms: int = 0


class Sign(msgspec.Struct, frozen=True):
    """Make the iteration with this total, valid for ``validity_ms``, and give it to :meth:`PayerStream.signed`."""

    due: int


class Keep(msgspec.Struct, frozen=True):
    """Make ``PayerStream.owed`` durable before anything that follows."""


class Send(msgspec.Struct, frozen=True):
    """Send the service party this, if there is a connection."""

    message: Said


class AskClose(msgspec.Struct, frozen=True):
    """Sign ``close_hash(stream, due)`` and send ``Close``."""

    due: int


class CloseTogether(msgspec.Struct, frozen=True):
    """Call ``streams.close`` with this total and the service party's signature; it may fail, and then nothing is lost.

    Who finds that the signature is not the service party's says :meth:`PayerStream.close_failed`.
    """

    due: int
    signature: bytes


class Stop(msgspec.Struct, frozen=True):
    """Nothing more is paid: tell the user why, and take the deposit back once the service party has its due."""

    reason: str


Effect: TypeAlias = Sign | Keep | Send | AskClose | CloseTogether | Stop


class PayerStream:
    """One stream; ``limit`` is deposit − fine + credit. One call at a time, its effects executed before the next.

    With ``has_meter`` nothing is signed but for what :meth:`metered` was told (P1).
    """

    def __init__(self, owed: Owed, limit: int, *, has_meter: bool = False) -> None:
        self.owed = owed
        self._limit = limit
        self._has_meter = has_meter
        self._own_units = 0
        self._moved_ms: int | None = None
        self._denied_ms: int | None = None
        self._is_standing_known = False
        self._is_refused = False

    @property
    def credited_units(self) -> int:
        """Units that count as supplied (P1)."""
        received = self.owed.received_units
        return min(received, self._own_units) if self._has_meter else received

    def told(self, message: Told, now_ms: int) -> tuple[Effect, ...]:
        """Take what the service party tells; other streams' messages and challenges are passed over."""
        if isinstance(message, Challenge) or message.stream != self.owed.stream:
            return ()
        match message:
            case Supplied(units=units, due=due):
                if due != self.owed.terms.price * units:
                    return self._fail("wrong_amount")
                return self._supplied(units, now_ms)
            case Stored(due=due):
                return self._stored(due, now_ms)
            case Standing():
                return self._standing(message, now_ms)
            case Refused(code=code):
                return self._refused(code)
            case Closed(due=due, signature=signature):
                return self._agreed(due, signature)
            case _:
                assert_never(message)

    def signed(self, raw: bytes, valid_until_ms: int) -> tuple[Effect, ...]:
        """Take the iteration that ``Sign`` asked for."""
        self._change(raw=raw, valid_until_ms=valid_until_ms)
        return Keep(), Send(Iterate(self.owed.stream, raw))

    def metered(self, units: int, now_ms: int) -> tuple[Effect, ...]:
        """Take what the payer's own meter has counted in all."""
        if units <= self._own_units:
            return ()
        self._own_units = units
        return self._pay(now_ms)

    def stop(self, reason: str) -> tuple[Effect, ...]:
        """End the stream by a close with what was supplied (P4); again asks again."""
        if self.owed.status == Status.PAYING:
            return self._fail(reason)
        return self._ask_close()

    def chain_seen(self, record: StreamRecord | None) -> tuple[Effect, ...]:
        """Take the stream's record, proven: a top-up, a settlement, a close."""
        if record is None or self.owed.status == Status.CLOSED:
            return ()
        self._limit = record.limit
        if record.status == "CLOSED":
            self._change(status=Status.CLOSED)
            return (Keep(),)
        if self.owed.status == Status.PAYING and (record.settled_by or record.paid or record.is_fined):
            return self._fail("settled")
        return ()

    def close_failed(self) -> tuple[Effect, ...]:
        """Take that the chain refused ``CloseTogether``: the service party may agree again."""
        if self.owed.status != Status.CLOSING:
            return ()
        self._change(status=Status.STOPPED)
        return (Keep(),)

    def ticked(self, now_ms: int) -> tuple[Effect, ...]:
        """Look at the clock, ms UTC; several times in each ``step_ms`` and margin."""
        owed, terms = self.owed, self.owed.terms
        if owed.status != Status.PAYING:
            return ()
        if self._denied_ms is not None and now_ms - self._denied_ms >= terms.step_ms:
            return self._fail("meter")
        if self._moved_ms is not None and now_ms - self._moved_ms >= terms.step_ms:
            return self._fail("timeout")
        left_ms = owed.valid_until_ms - terms.margin_ms - now_ms
        is_old = left_ms < (terms.validity_ms - terms.margin_ms) // 4
        if owed.raw and (is_old or self._is_refused):
            self._is_refused = False
            return (Sign(owed.signed_due),)
        return self._pay(now_ms)

    def _supplied(self, units: int, now_ms: int) -> tuple[Effect, ...]:
        owed, terms = self.owed, self.owed.terms
        if units <= owed.received_units:
            return ()
        ahead = terms.step_max if terms.mode == Mode.SERVICE_FIRST else 0
        if terms.price * units > owed.signed_due + ahead:
            return self._fail("wrong_amount")
        self._change(received_units=units)
        self._moved_ms = now_ms
        return self._pay(now_ms)

    def _stored(self, due: int, now_ms: int) -> tuple[Effect, ...]:
        if due > self.owed.signed_due:
            return self._fail("wrong_amount")
        if due > self.owed.stored_due:
            self._change(stored_due=due)
            self._moved_ms = now_ms
        return ()

    def _standing(self, standing: Standing, now_ms: int) -> tuple[Effect, ...]:
        """Go on where the other side stands: what it has not stored is sent again."""
        self._is_standing_known = True
        self._moved_ms = now_ms if self._moved_ms is None else self._moved_ms
        effects = list(self._stored(standing.due, now_ms))
        effects += self._supplied(standing.units, now_ms)
        owed = self.owed
        if owed.status == Status.STOPPED and owed.close_due >= 0 and standing.status in CLOSABLE:
            return *effects, *self._ask_close()
        if standing.status != SERVICE_STREAMING and owed.status == Status.PAYING:
            return *effects, *self._fail(standing.reason or "ended", is_close_asked=False)
        if owed.signed_due > standing.due and owed.raw and not any(isinstance(effect, Sign) for effect in effects):
            effects.append(Send(Iterate(owed.stream, owed.raw)))
        return *effects, *self._pay(now_ms)

    def _refused(self, code: str) -> tuple[Effect, ...]:
        """A refusal is only a word: what is lost on the way is sent again on Standing or comes to a time-out."""
        if self.owed.status != Status.PAYING:
            return ()
        if code == "bad_validity":
            self._is_refused = True
        return self._fail(code) if code in ("wrong_amount", "stream_ended") else ()

    def _agreed(self, due: int, signature: bytes) -> tuple[Effect, ...]:
        """Close with what the service party agreed to, unless that is more than was ever signed."""
        if self.owed.status == Status.CLOSED or due > max(self.owed.signed_due, self.owed.close_due):
            return ()
        stop = self._fail("ended", is_close_asked=False) if self.owed.status == Status.PAYING else ()
        self._change(status=Status.CLOSING)
        return *stop, Keep(), CloseTogether(due, signature)

    def _pay(self, now_ms: int) -> tuple[Effect, ...]:
        """Sign what is due now, if that is more than was signed (P1, P2)."""
        owed, terms = self.owed, self.owed.terms
        if owed.status != Status.PAYING or not self._is_standing_known:
            return ()
        credited = self.credited_units
        is_denied = credited < owed.received_units
        if not is_denied:
            self._denied_ms = None
        elif self._denied_ms is None:
            self._denied_ms = now_ms
        due = terms.price * credited
        end = reached(
            terms, self._limit, count=owed.count, due=owed.signed_due, opened_ms=owed.opened_ms, now_ms=now_ms
        )
        if terms.mode == Mode.PAYMENT_FIRST and not end:
            due += terms.step_max // terms.price * terms.price
        due = min(due, due_max(terms, self._limit))
        if due <= owed.signed_due:
            return ()
        if end == "count":
            return self._fail("count")
        if terms.mode == Mode.SERVICE_FIRST and is_denied and owed.count + 1 == terms.count_max:
            return ()
        self._change(signed_due=due, count=owed.count + 1)
        return (Sign(due),)

    def _fail(self, reason: str, *, is_close_asked: bool = True) -> tuple[Effect, ...]:
        """Pay nothing more, and ask for a close with what was supplied."""
        if self.owed.status != Status.PAYING:
            return ()
        self._change(status=Status.STOPPED, reason=reason)
        close = self._ask_close() if is_close_asked else ()
        return (*(close or (Keep(),)), Stop(reason))

    def _ask_close(self) -> tuple[Effect, ...]:
        """Sign a close with what counts as supplied; service first, never with less than the last iteration."""
        owed = self.owed
        if owed.status != Status.STOPPED:
            return ()
        due = min(owed.terms.price * self.credited_units, due_max(owed.terms, self._limit))
        if owed.terms.mode == Mode.SERVICE_FIRST:
            due = max(due, owed.signed_due)
        due = max(due, owed.close_due)
        self._change(close_due=due)
        return Keep(), AskClose(due)

    def _change(self, **changes: object) -> None:
        self.owed = replace(self.owed, **changes)
