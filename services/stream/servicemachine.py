"""What the service party of one stream does: events in, effects out, in the order to execute them. Pure.

Rules, so that whatever payer, network or disk do, it never has more than one step (``step_max``) unpaid:

- **V1** Nothing is supplied or taken before the chain's record of the stream was seen with these terms (R88), nor once
  the chain has not been seen for so long that an iteration, made after a withdrawal that went unnoticed, might outlast
  its window: ``window_ms`` less the validity, half a margin and an outage.
- **V2** *Service first*: the meter is allowed what is stored and one step, and nothing more while what was told may
  take all iterations of the agreed count, one for each unit; *payment first*: what is stored. Both never more than
  deposit, fine, credit and the agreed amount let it be paid.
- **V3** An iteration is good when its total is a multiple of the price, not above what was supplied (payment first: and
  one step), and it stays valid for the margin at least and the agreed validity at most (and half a margin, for clocks
  that differ). A higher one replaces the last one; the same again is acknowledged again, and is a renewal when
  it is valid for longer. A lower one is old news, late or repeated by whoever copied it: refused, without effect.
- **V4** ``Keep`` stands before all that depends on it: nothing is acknowledged, told or uploaded before it is durable.
- **V5** The stream ends on an agreed end (count, amount, deposit, time, the meter is done) once what was supplied is
  paid and what was paid is supplied; on a close message; and at once on an anomaly: no iteration in ``step_ms`` though
  it is the payer's turn, a wrong amount, a withdrawal asked for, the lane's number used, expiry less the margin.
- **V6** From then on only the chain decides what is done next (:meth:`ServiceStream.chain_seen`): upload while the lane
  is free and the iteration valid, claim when it was used otherwise, expired, or settled with less.
- **V7** A close is agreed to only with what was paid in all, once nothing is left to collect. One that the payer asks
  for ends supply; where it leaves out units that were on their way, the payer is told, and has a moment to say more.

After a restart a machine is made again from what was kept; it supplies nothing until it has seen the chain.
"""

from enum import StrEnum
from typing import Final, Protocol, TypeAlias

import msgspec
from msgspec.structs import replace

from consensus.ledger.streams import OUTAGE_MS, Iteration, Mode, StreamRecord, Terms, terms_hash
from consensus.ledger.transaction import decode_transaction_untrusted
from services.stream.ends import due_max, reached
from services.stream.wire import Refused, Standing, Stored, Supplied, Told

ITERATION_AHEAD_MS_MAX: Final = 3_600_000
"""How far ahead of now an iteration's validity may lie: what nodes take at the most."""
CLOSE_PAUSE_MS: Final = 250
"""How long a close waits for units that were on their way when it was asked for, and for the payer's word on them."""


class Status(StrEnum):
    """Where a stream stands for the service party."""

    STREAMING = "STREAMING"
    ENDING = "ENDING"
    """Nothing more is supplied; what is due is to be collected."""
    UPLOADED = "UPLOADED"
    """An iteration was or is being sent; nothing of it is final."""
    SETTLED = "SETTLED"
    """All that can be had was paid by a settlement, or there was nothing to pay."""
    CLAIMED = "CLAIMED"
    """All that can be had was paid, part of it out of the deposit by a claim."""
    CLOSED = "CLOSED"
    LOST = "LOST"
    """Closed on the chain with less than what was due."""


COLLECTED: Final = (Status.SETTLED, Status.CLAIMED)
CLOSED: Final = (Status.CLOSED, Status.LOST)


class Kept(msgspec.Struct, frozen=True):
    """What must be durable of a stream: one row.

    ``due``, ``raw`` and ``valid_until_ms`` are of the last good iteration (0 and empty before), ``count`` is of all
    good ones; ``units`` were supplied in all. ``upload_id`` is the transaction id of what was last uploaded. Moments
    are ms UTC: of the opening's block, and of the last good iteration.
    """

    stream: bytes
    terms: Terms
    status: str = Status.STREAMING
    reason: str = ""
    due: int = 0
    count: int = 0
    raw: bytes = b""
    valid_until_ms: int = 0
    units: int = 0
    upload_id: bytes = b""
    opened_ms: int = 0
    heard_ms: int = 0

    def standing(self) -> Standing:
        """Return how the stream stands, as the payer is told."""
        return Standing(self.stream, self.due, self.count, self.units, self.status, self.reason)


class LaneSeen(Protocol):
    """The record of a lane that was used: the id of the transaction that did."""

    @property
    def last_id(self) -> bytes:
        """Transaction id, 32 bytes."""


class Keep(msgspec.Struct, frozen=True):
    """Make ``ServiceStream.kept`` durable before anything that follows."""


class Tell(msgspec.Struct, frozen=True):
    """Tell the payer, if it is connected."""

    message: Told


class AgreeToClose(msgspec.Struct, frozen=True):
    """Sign ``close_hash(stream, due)`` and tell ``Closed``: the payer may close with this total."""

    due: int


class Upload(msgspec.Struct, frozen=True):
    """Submit this iteration, then say ``uploaded``."""

    raw: bytes


class Claim(msgspec.Struct, frozen=True):
    """Call ``streams.claim`` with this iteration, then say ``uploaded``."""

    raw: bytes


class CloseTogether(msgspec.Struct, frozen=True):
    """Call ``streams.close`` with this total and the payer's signature, then say ``uploaded``."""

    due: int
    signature: bytes


Effect: TypeAlias = Keep | Tell | AgreeToClose | Upload | Claim | CloseTogether


class Outcome(StrEnum):
    """What became of ``Upload``, ``Claim`` or ``CloseTogether``."""

    FINAL = "final"
    """It took effect."""
    REFUSED = "refused"
    """Not admitted, or final and failed."""
    UNKNOWN = "unknown"
    """No node could be asked, or it was not final in time."""


class ServiceStream:
    """One stream; ``limit`` is deposit − fine + credit. One call at a time, its effects executed before the next."""

    def __init__(self, kept: Kept, limit: int) -> None:
        self.kept = kept
        self._limit = limit
        self._terms_hash = terms_hash(kept.terms)
        self._is_blind = True
        self._seen_ms: int | None = None
        self._turn_ms: int | None = None
        self._reached = ""
        self._is_busy = False
        self._close: CloseTogether | None = None
        self._closing_at_ms = 0
        self._paid: int | None = None
        self._now_ms = 0

    @property
    def limit(self) -> int:
        """The most that may be due: deposit − fine + credit, as the chain has shown last."""
        return self._limit

    @property
    def allowed_units(self) -> int:
        """How many units the meter may have supplied in all, now (V1, V2); never less than it has."""
        kept, terms = self.kept, self.kept.terms
        if kept.status != Status.STREAMING or self._is_blind:
            return kept.units
        most = kept.due
        if terms.mode == Mode.SERVICE_FIRST:
            unpaid = kept.units - kept.due // terms.price
            if self._reached or 0 < terms.count_max <= kept.count + unpaid:
                return kept.units
            most = min(kept.due + terms.step_max, due_max(terms, self._limit))
        return max(kept.units, most // terms.price)

    @property
    def is_busy(self) -> bool:
        """Whether an upload, claim or close is on its way and ``uploaded`` is waited for."""
        return self._is_busy

    def iterated(self, iteration: Iteration, now_ms: int) -> tuple[Effect, ...]:
        """Take an iteration that ``read_iteration_untrusted`` has checked for this stream and its pinned key."""
        kept, terms, due = self.kept, self.kept.terms, iteration.due
        self._now_ms = now_ms
        if kept.status in COLLECTED + CLOSED:
            return self._refuse("stream_ended", "the stream has ended")
        if self._is_blind:
            return self._refuse("chain_unseen", "nothing is known of the chain now")
        if due < kept.due:
            return self._refuse("old_iteration", f"a total of {kept.due} is stored")
        ahead_ms_max = min(terms.validity_ms + terms.margin_ms // 2, ITERATION_AHEAD_MS_MAX)
        if not now_ms + terms.margin_ms < iteration.valid_until_ms <= now_ms + ahead_ms_max:
            return self._refuse("bad_validity", f"it is to be valid for {terms.validity_ms} ms")
        is_streaming = kept.status == Status.STREAMING
        if due > kept.due and not is_streaming:
            # It would outlast the one that is being collected, and so maybe the window of a withdrawal.
            return self._refuse("stream_ended", "what is stored is being collected")
        if due == kept.due:
            if is_streaming and iteration.valid_until_ms > kept.valid_until_ms:
                self._change(raw=iteration.transaction.raw, valid_until_ms=iteration.valid_until_ms)
                return Keep(), Tell(Stored(kept.stream, due))
            return (Tell(Stored(kept.stream, due)),)
        supplied = terms.price * kept.units
        ahead = terms.step_max if terms.mode == Mode.PAYMENT_FIRST else 0
        if due % terms.price or due > min(supplied + ahead, due_max(terms, self._limit)):
            message = f"{supplied} is due for {kept.units} units"
            return (*self._refuse("wrong_amount", message), *self.end("wrong_amount", now_ms))
        if due > supplied and self._reached:
            return self._refuse("stream_ended", "nothing more is supplied")
        self._change(
            due=due,
            count=kept.count + 1,
            raw=iteration.transaction.raw,
            valid_until_ms=iteration.valid_until_ms,
            heard_ms=now_ms,
        )
        self._turn_ms = now_ms
        return Keep(), Tell(Stored(kept.stream, due)), *self._end_if_reached(now_ms)

    def metered(self, units: int, is_done: bool, now_ms: int) -> tuple[Effect, ...]:
        """Take what the meter has supplied in all, and whether nothing more will be wanted of it."""
        effects: tuple[Effect, ...] = ()
        if units > self.kept.units:
            was_payers_turn = self._is_payers_turn()
            self._change(units=units)
            effects = Keep(), Tell(Supplied(self.kept.stream, units, self.kept.terms.price * units))
            if self.kept.status == Status.ENDING:
                effects = *effects, Tell(self.kept.standing())  # who has asked for a close may say more
            if self._is_payers_turn() and not was_payers_turn:
                self._turn_ms = now_ms
        if is_done and not self._reached:
            self._reached = "meter"
        return *effects, *self._end_if_reached(now_ms)

    def close_asked(self, due: int, signature: bytes, now_ms: int) -> tuple[Effect, ...]:
        """Take the payer's wish to close with this total; the signature was checked with the pinned key.

        Payment first, it may be less than the last iteration: units that were paid ahead and not supplied. Whoever has
        signed a close has stopped paying: the stream ends, whatever the total is.
        """
        kept, self._now_ms = self.kept, now_ms
        if self._is_busy or kept.status not in (Status.STREAMING, Status.ENDING):
            return self._refuse("stream_ended", "the stream has ended")
        if kept.status == Status.STREAMING:
            self._closing_at_ms = now_ms + CLOSE_PAUSE_MS
        supplied = kept.terms.price * kept.units
        if not min(kept.due, supplied) <= due <= max(kept.due, supplied):
            message = f"{supplied} is due for {kept.units} units"
            return (*self._refuse("bad_close", message), *self.end("close", now_ms))
        if self._close is None or due >= self._close.due:
            self._close = CloseTogether(due, signature)
        return self.end("close", now_ms) or self._collect()

    def asked(self) -> tuple[Effect, ...]:
        """Tell how the stream stands, as after ``Hello`` and ``Ask``, and agree again to close what is settled."""
        return Tell(self.kept.standing()), *self._agree()

    def end(self, reason: str, now_ms: int) -> tuple[Effect, ...]:
        """Supply nothing more and collect what is due; nothing when it has ended already."""
        if self.kept.status != Status.STREAMING:
            return ()
        self._change(status=Status.ENDING, reason=reason)
        return Keep(), Tell(self.kept.standing()), *self._collect()

    def chain_seen(
        self, record: StreamRecord | None, lane: LaneSeen | None, time_ms: int, uptime_ms: int
    ) -> tuple[Effect, ...]:
        """Take the stream's record and its lane's, None if never used, both as proven in the block of this time."""
        if record is None or record.terms_hash != self._terms_hash:
            return ()
        kept, was_blind = self.kept, self._is_blind
        self._is_blind, self._seen_ms = False, None
        self._limit, self._paid = record.limit, record.paid
        if record.status == "CLOSED":
            is_paid = record.paid >= min(kept.due, kept.terms.price * kept.units)
            return self._pass_to(Status.CLOSED if is_paid else Status.LOST)
        # An idle chain's last block may be older than what has expired since.
        is_expired = max(time_ms, self._now_ms) > kept.valid_until_ms
        effects: tuple[Effect, ...] = ()
        if kept.status == Status.STREAMING:
            reason = ""
            if record.withdraw_at_uptime_ms:
                reason = "withdrawal"
            elif lane is not None:
                reason = "used"
            elif kept.raw and is_expired:
                reason = "expiry"
            if not reason:
                self._turn_ms = None if was_blind else self._turn_ms
                return (Tell(kept.standing()),) if was_blind else ()
            self._change(status=Status.ENDING, reason=reason)
            effects = Keep(), Tell(self.kept.standing())
        if self._is_busy:
            return effects
        if self._close is not None or (lane is None and kept.raw and not is_expired):
            return *effects, *self._collect()
        return *effects, *self._collect_otherwise(record, lane)

    def uploaded(self, outcome: Outcome, now_ms: int) -> tuple[Effect, ...]:
        """Take what became of the upload, claim or close; what is to be done next the chain says (V6)."""
        self._is_busy, self._now_ms = False, now_ms
        if self._close is not None and outcome != Outcome.UNKNOWN:
            self._close = None
            return self._collect() if outcome == Outcome.REFUSED and self.kept.raw else ()
        return ()

    def ticked(self, now_ms: int) -> tuple[Effect, ...]:
        """Look at the clock, ms UTC; several times in each ``step_ms`` and margin."""
        kept, terms = self.kept, self.kept.terms
        self._now_ms = now_ms
        if kept.status == Status.ENDING and self._close is not None:
            return self._collect()
        if kept.status != Status.STREAMING:
            return ()
        self._seen_ms = now_ms if self._seen_ms is None else self._seen_ms
        self._turn_ms = now_ms if self._turn_ms is None else self._turn_ms
        if now_ms - self._seen_ms > terms.window_ms - terms.validity_ms - terms.margin_ms // 2 - OUTAGE_MS:
            self._is_blind = True
        if kept.raw and now_ms >= kept.valid_until_ms - terms.margin_ms:
            return self.end("expiry", now_ms)
        effects = self._end_if_reached(now_ms)
        if not effects and not self._is_blind and self._is_payers_turn() and now_ms - self._turn_ms >= terms.step_ms:
            return self.end(self._reached or "timeout", now_ms)
        return effects

    def _is_payers_turn(self) -> bool:
        kept, terms = self.kept, self.kept.terms
        if terms.mode == Mode.SERVICE_FIRST:
            return terms.price * kept.units > kept.due
        return kept.units >= kept.due // terms.price

    def _end_if_reached(self, now_ms: int) -> tuple[Effect, ...]:
        """End at an agreed end, once neither side owes the other anything (V5)."""
        kept, terms = self.kept, self.kept.terms
        if kept.status != Status.STREAMING:
            return ()
        if not self._reached:
            self._reached = reached(
                terms, self._limit, count=kept.count, due=kept.due, opened_ms=kept.opened_ms, now_ms=now_ms
            )
        is_even = not self._is_payers_turn() if terms.mode == Mode.SERVICE_FIRST else self._is_payers_turn()
        if self._reached and (is_even or (self._reached == "meter" and terms.mode == Mode.PAYMENT_FIRST)):
            return self.end(self._reached, now_ms)
        return ()

    def _collect(self) -> tuple[Effect, ...]:
        """Start what gets the due by the payer's own transaction, or by a close of both."""
        if self._is_busy or 0 < self._closing_at_ms - self._now_ms <= CLOSE_PAUSE_MS:
            return ()
        if self._close is not None:
            self._is_busy = True
            return (self._close,)
        if not self.kept.raw:
            return ()
        self._is_busy = True
        raw = self.kept.raw
        self._change(status=Status.UPLOADED, upload_id=decode_transaction_untrusted(raw).id)
        return Keep(), Upload(raw)

    def _collect_otherwise(self, record: StreamRecord, lane: LaneSeen | None) -> tuple[Effect, ...]:
        """Claim what the deposit still owes, or note that nothing is left to collect."""
        kept = self.kept
        is_settled = lane is not None and lane.last_id == record.settled_by
        payable = min(kept.due, record.deposit - record.fine) - record.paid
        is_fine_due = lane is not None and not is_settled and not record.is_fined and record.fine > 0
        if kept.raw and (payable > 0 or is_fine_due):
            self._is_busy = True
            return (Claim(kept.raw),)
        is_claimed = record.is_fined or (record.paid > 0 and not is_settled)
        return self._pass_to(Status.CLAIMED if is_claimed else Status.SETTLED)

    def _pass_to(self, status: Status) -> tuple[Effect, ...]:
        if self.kept.status == status:
            return ()
        self._change(status=status)
        return Keep(), Tell(self.kept.standing()), *self._agree()

    def _agree(self) -> tuple[Effect, ...]:
        """Agree to close with what was paid (V7)."""
        if self.kept.status in COLLECTED and self._paid is not None and self._paid >= self.kept.due:
            return (AgreeToClose(self._paid),)
        return ()

    def _change(self, **changes: object) -> None:
        self.kept = replace(self.kept, **changes)

    def _refuse(self, code: str, message: str) -> tuple[Effect, ...]:
        return (Tell(Refused(self.kept.stream, code, message)),)
