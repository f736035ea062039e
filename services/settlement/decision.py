"""What is done with an event, from what is known: pure, and complete. The tables stand in ``docs/settlement.md``.

Three places decide. :func:`on_certified` hears of a receipt under a verified certificate, :func:`on_answer` of what
the account system said, and :func:`decide` looks at one stuck event with the answers of all validators. The others are
what the transaction system and the operator ask for, and the pace of the scan.

Nothing is decided by this machine's clock: ``now_ms`` only says when an event is looked at again.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from consensus.ledger.errors import InvariantError, LocalError
from services.accounts.port import Answer, Operation
from services.settlement.states import (
    FINISHED,
    Change,
    Event,
    Kind,
    Outcome,
    State,
    Terms,
    Topic,
    Wish,
    changed,
)

PAUSE_MIN_MS = 1_000
"""After this time the scan first asks the chain for an event; each pause is twice the one before."""
REMIND_PAUSE_MIN_MS = 4_000
"""The same before the account system is reminded; longer, since the message system tries again by itself."""
PAUSE_MAX_MS = 60_000
FLAG_AFTER_ATTEMPTS = 5
"""So many looks or reminders in vain, and an operator is told."""
OVERDUE_MS = 30_000
"""Block time past a transaction's validity after which a missing proof of absence is worth an alarm."""

EXPIRED = "expired"
RECEIPTS_DISAGREE = "receipts_disagree"
RATIO_UNMET = "ratio_unmet"
DELIVERED_LATE = "delivered_late"
NO_ANSWER = "no_answer"

HOPELESS = frozenset({"released", "operation_conflict", "wrong_currency", "unknown_account", "account_frozen"})
"""Refusals that asking again does not mend."""


class Verdict(StrEnum):
    """What one validator's answer is worth."""

    SUCCEEDED = "succeeded"
    """A receipt that says so, under a certificate that holds."""
    FAILED = "failed"
    """A receipt of failure, under a certificate that holds."""
    ABSENT = "absent"
    """Proven at a sealed root whose block time is past the transaction's validity: the lane is unused, or another's."""
    HELD = "held"
    """It waits there, or may still come: nothing is decided."""
    UNKNOWN = "unknown"
    """Unreachable, behind, or without an opinion."""
    LIAR = "liar"
    """It claims what it cannot prove."""


CERTIFIED = frozenset({Verdict.SUCCEEDED, Verdict.FAILED, Verdict.ABSENT})
SILENT = frozenset({Verdict.UNKNOWN, Verdict.LIAR})


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """One validator's answer about one transaction; ``code`` of a failed receipt, ``height`` of the block."""

    validator: str
    verdict: Verdict
    code: str = ""
    height: int = 0


@dataclass(frozen=True, slots=True)
class Tally:
    """What all validators of the current set answer about one transaction; ``ratio`` of them must agree.

    ``time_ms`` is the newest block time under a certificate that was seen meanwhile.
    """

    answers: tuple[NodeAnswer, ...]
    ratio: int
    time_ms: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done yet; ``alarm`` is the code of what an operator should see, "" while all is well."""

    why: str
    alarm: str = ""


@dataclass(frozen=True, slots=True)
class Resend:
    """Send the identical bytes again; ``alarm`` as in :class:`Wait`."""

    why: str
    alarm: str = ""


@dataclass(frozen=True, slots=True)
class Take:
    """Take these changes, all of them in one transaction; the first is the event's own."""

    changes: tuple[Change, ...]


Action = Wait | Resend | Take


def opened(
    event: str,
    terms: Terms,
    *,
    transaction_id: bytes,
    raw: bytes,
    valid_until_ms: int,
    now_ms: int,
    original: str = "",
) -> Event:
    """Return a new event; with ``original`` the reversal of that trade, which may be sent at once."""
    return Event(
        event=event,
        kind=Kind.REVERSAL if original else Kind.TRADE,
        original=original,
        state=State.REGISTERED,
        outcome=Outcome.NONE,
        terms=terms,
        transaction_id=transaction_id,
        raw=raw,
        valid_until_ms=valid_until_ms,
        is_released=bool(original),
        wish=Wish.NONE,
        code="",
        is_flagged=False,
        attempts=0,
        due_ms=now_ms + PAUSE_MIN_MS,
        height=0,
        version=1,
        registered_ms=now_ms,
        changed_ms=now_ms,
    )


# -- the transaction system and the operator ---------------------------------------------------------------------------


def on_release(event: Event, *, now_ms: int) -> Change | None:
    """Let the transaction be sent, since the buyer's money is held; None: it may already.

    Raises:
        LocalError: ``event_cancelled``.
    """
    if event.state is State.CANCELLED:
        raise LocalError("event_cancelled", f"{event.event} was cancelled ({event.code}): nothing is sent for it")
    if event.is_released:
        return None
    return changed(event, "money is held", now_ms=now_ms, is_released=True, attempts=0, due_ms=now_ms + PAUSE_MIN_MS)


def on_cancel(event: Event, code: str, *, now_ms: int) -> Change | None:
    """Give up an event that was never sent; None: it is cancelled already.

    Raises:
        LocalError: ``event_released``: now only the chain decides.
    """
    if event.state is State.CANCELLED:
        return None
    if event.is_released:
        raise LocalError("event_released", f"{event.event} may have been sent: only the chain decides it now")
    return _cancelled(event, "given up before it was sent", code=code, height=0, now_ms=now_ms)


def on_repair(event: Event, action: str, *, now_ms: int) -> Change:
    """Do what an operator says about an unfinished event: ``retry`` or ``reverse``.

    A trade that moved after it was given up is the one finished event that can be repaired: its reversal again.

    Raises:
        LocalError: ``event_finished``; ``not_pending``: only a trade that awaits its payment can be reversed.
    """
    fresh: dict[str, object] = {"is_flagged": False, "code": "", "attempts": 0}
    if event.state in FINISHED:
        if not may_reverse(event):
            raise LocalError("event_finished", f"{event.event} is {event.state}")
        return changed(event, f"operator: {action}", Topic.REVERSE, now_ms=now_ms)
    if action == "reverse":
        if event.state is not State.ACCOUNT_PENDING:
            raise LocalError("not_pending", f"{event.event} is {event.state}: only the chain decides it now")
        fresh["wish"] = Wish.REVERSE
    if event.state is State.REGISTERED:
        return changed(event, f"operator: {action}", now_ms=now_ms, due_ms=now_ms, **fresh)
    after = changed(event, f"operator: {action}", now_ms=now_ms, due_ms=now_ms + REMIND_PAUSE_MIN_MS, **fresh)
    return Change(after.before, after.after, after.why, (_reminder(after.after),))


# -- the chain ---------------------------------------------------------------------------------------------------------


def on_certified(
    event: Event, *, original: Event | None = None, is_ok: bool, code: str, height: int, now_ms: int
) -> tuple[Change, ...]:
    """Return what follows from a receipt under a verified certificate; () where it is known already.

    Args:
        event: that the transaction belongs to, as it stands.
        original: the trade of a REVERSAL, as it stands. Its change is returned as long as it is missing, also when the
            reversal's own was taken before.
        is_ok: whether the transaction took effect; ``code`` why not.
        height: of the block.
        now_ms: UTC.
    """
    if event.kind is Kind.REVERSAL:
        if original is None:
            raise InvariantError(f"the reversal {event.event} comes without its trade")
        if is_ok:
            return _reversed(event, original, height=height, now_ms=now_ms)
        return _reversal_cancelled(event, original, "chain: failed", code=code, height=height, now_ms=now_ms)
    match event.state:
        case State.REGISTERED if is_ok:
            return (_delivered(event, height=height, now_ms=now_ms),)
        case State.REGISTERED:
            return (_cancelled(event, "chain: failed", code=code, height=height, now_ms=now_ms),)
        case State.CANCELLED if is_ok and not event.height:
            why = "chain: delivered after it was given up; the units go back"
            fields = {"code": DELIVERED_LATE, "is_flagged": True, "height": height}
            return (changed(event, why, Topic.REVERSE, now_ms=now_ms, **fields),)
        case State.CANCELLED | State.ACCOUNT_PENDING | State.COMPLETED:
            return ()
        case _ as never:
            assert_never(never)


def contradicts(event: Event, *, original: Event | None = None, is_ok: bool) -> bool:
    """Tell whether a certified receipt cannot be, given what is known of its event: an alarm, and nothing changes."""
    if original is not None and is_ok and original.outcome is Outcome.PAID:
        return True
    match event.state:
        case State.REGISTERED:
            return False
        case State.CANCELLED if event.kind is Kind.REVERSAL:
            return is_ok
        case State.CANCELLED if event.code == DELIVERED_LATE:
            return not is_ok
        case State.CANCELLED:
            return is_ok and bool(event.height)
        case State.ACCOUNT_PENDING | State.COMPLETED:
            return not is_ok
        case _ as never:
            assert_never(never)


def may_reverse(original: Event) -> bool:
    """Tell whether a REVERSE notice of this trade is to be obeyed, or came too late to matter."""
    if original.state is State.CANCELLED:
        return original.is_flagged and original.code == DELIVERED_LATE
    return original.state is State.ACCOUNT_PENDING and original.wish is Wish.REVERSE


def _delivered(event: Event, *, height: int, now_ms: int) -> Change:
    """Return the change of a trade whose units moved."""
    return changed(
        event,
        "chain: took effect",
        Topic.PAY,
        now_ms=now_ms,
        state=State.ACCOUNT_PENDING,
        is_released=True,
        code="",
        is_flagged=False,
        attempts=0,
        due_ms=now_ms + REMIND_PAUSE_MIN_MS,
        height=height,
    )


def _cancelled(event: Event, why: str, *, code: str, height: int, now_ms: int) -> Change:
    """Return the change of an event that will never move; what may be held of a trade's money is released."""
    topics = (Topic.RELEASE,) if event.kind is Kind.TRADE else ()
    return changed(
        event,
        why,
        *topics,
        now_ms=now_ms,
        state=State.CANCELLED,
        is_released=True,
        code=code,
        is_flagged=False,
        height=height,
    )


def _reversed(reversal: Event, original: Event, *, height: int, now_ms: int) -> tuple[Change, ...]:
    """Return what is missing of: the reversal COMPLETED, its trade COMPLETED with outcome REVERSED."""
    if reversal.state is State.CANCELLED:
        return ()
    changes = []
    done = {"state": State.COMPLETED, "code": "", "is_flagged": False}
    if reversal.state is State.REGISTERED:
        changes.append(changed(reversal, "chain: took effect", now_ms=now_ms, height=height, **done))
    if original.state is State.ACCOUNT_PENDING:
        why = f"units given back by {reversal.event}"
        changes.append(changed(original, why, now_ms=now_ms, outcome=Outcome.REVERSED, **done))
    elif original.state is State.CANCELLED and may_reverse(original):
        changes.append(changed(original, f"units given back by {reversal.event}", now_ms=now_ms, is_flagged=False))
    return tuple(changes)


def _reversal_cancelled(
    reversal: Event, original: Event, why: str, *, code: str, height: int, now_ms: int
) -> tuple[Change, ...]:
    """Return a cancelled reversal, and what that means for its trade.

    One that expired is tried again at once, under the next number. One that the chain refused would be refused
    again at the speed of blocks: an operator is told, and the next comes at the scan's growing pauses.
    """
    if reversal.state is not State.REGISTERED:
        return ()
    own = _cancelled(reversal, why, code=code, height=height, now_ms=now_ms)
    if not may_reverse(original):
        return (own,)
    topics = () if height else (Topic.REVERSE,)
    fields: dict[str, object] = {"is_flagged": True} if height else {}
    if original.state is State.ACCOUNT_PENDING:
        fields["code"] = code
    return (own, changed(original, f"{reversal.event} was cancelled: {code}", *topics, now_ms=now_ms, **fields))


# -- the account system ------------------------------------------------------------------------------------------------


def on_answer(event: Event, answer: Answer, *, now_ms: int) -> Change | None:
    """Return what follows from the account system's answer; None where it changes nothing."""
    if event.state is not State.ACCOUNT_PENDING:
        return None
    match answer.operation:
        case Operation.PAY if answer.is_done:
            return _paid(event, now_ms=now_ms)
        case Operation.PAY:
            return None if event.wish is Wish.REVERSE else _refused(event, answer.code, now_ms=now_ms)
        case Operation.RELEASE if event.wish is Wish.NONE:
            # Nobody asked for it here; that it was done shows by the next refusal of the payment.
            return None
        case Operation.RELEASE if answer.is_done:
            return changed(event, "account system: closed, nothing was paid", Topic.REVERSE, now_ms=now_ms)
        case Operation.RELEASE if answer.code == "already_paid":
            fields = {"wish": Wish.NONE, "code": "", "is_flagged": False}
            return changed(event, "account system: it is paid already", Topic.PAY, now_ms=now_ms, **fields)
        case Operation.RELEASE:
            return _refused(event, answer.code, now_ms=now_ms)
        case Operation.RESERVE | Operation.REVERSE:
            return None
        case _ as never:
            assert_never(never)


def remind(event: Event, *, now_ms: int) -> Change:
    """Return the scan's reminder of an ACCOUNT_PENDING trade: pay, or under the wish to reverse release.

    Raises:
        InvariantError: another state.
    """
    if event.state is not State.ACCOUNT_PENDING:
        raise InvariantError(f"{event.event} is {event.state}: the account system has nothing to do for it")
    is_late = event.attempts + 1 >= FLAG_AFTER_ATTEMPTS
    return changed(
        event,
        f"scan: reminder {event.attempts + 1}",
        _reminder(event),
        now_ms=now_ms,
        attempts=event.attempts + 1,
        due_ms=now_ms + pause_ms(REMIND_PAUSE_MIN_MS, event.attempts + 1),
        is_flagged=event.is_flagged or is_late,
        code=event.code or (NO_ANSWER if is_late else ""),
    )


def _paid(event: Event, *, now_ms: int) -> Change:
    """Return the end of a trade: both have moved."""
    fields = {"outcome": Outcome.PAID, "wish": Wish.NONE, "code": "", "is_flagged": False}
    return changed(event, "account system: paid", Topic.LIFT, now_ms=now_ms, state=State.COMPLETED, **fields)


def _refused(event: Event, code: str, *, now_ms: int) -> Change | None:
    """Keep why the account system refuses, unless it is known."""
    is_flagged = event.is_flagged or code in HOPELESS
    if (event.code, event.is_flagged) == (code, is_flagged):
        return None
    return changed(event, f"account system: refused ({code})", now_ms=now_ms, code=code, is_flagged=is_flagged)


def _reminder(event: Event) -> Topic:
    return Topic.RELEASE if event.wish is Wish.REVERSE else Topic.PAY


# -- the scan ----------------------------------------------------------------------------------------------------------


def decide(event: Event, tally: Tally, *, original: Event | None = None, now_ms: int) -> Action:
    """Return what to do with a REGISTERED event, from the answers of all validators; ``original`` of a reversal.

    The ratio delays what a certificate says and never replaces it: only certified answers count towards it, and only
    of one mind. A transaction that may still come is never given up.
    """
    if event.state is not State.REGISTERED:
        return Wait("decided meanwhile")
    if tally.ratio < 1:
        raise InvariantError("a ratio of no validator would decide without a proof")
    certified = [answer for answer in tally.answers if answer.verdict in CERTIFIED]
    claims = {(answer.verdict, answer.code, answer.height) for answer in certified if answer.verdict != Verdict.ABSENT}
    absent = [answer for answer in certified if answer.verdict is Verdict.ABSENT]
    is_expired = tally.time_ms > event.valid_until_ms
    if len(claims) + bool(absent) > 1 or (absent and not is_expired):
        return Wait("validators prove what excludes each other", RECEIPTS_DISAGREE)
    if len({answer.validator for answer in certified}) >= tally.ratio:
        if absent:
            return Take(_absent(event, original, now_ms=now_ms))
        verdict, code, height = claims.pop()
        is_ok = verdict is Verdict.SUCCEEDED
        return Take(on_certified(event, original=original, is_ok=is_ok, code=code, height=height, now_ms=now_ms))
    return _undecided(event, tally, is_certified=bool(certified), is_expired=is_expired)


def _undecided(event: Event, tally: Tally, *, is_certified: bool, is_expired: bool) -> Wait | Resend:
    """Wait, or send again what may be sent; an alarm where the ratio is out of reach for long."""
    opinions = len({answer.validator for answer in tally.answers if answer.verdict not in SILENT})
    is_stuck = event.attempts >= FLAG_AFTER_ATTEMPTS and (is_certified or opinions < tally.ratio)
    is_overdue = tally.time_ms > event.valid_until_ms + OVERDUE_MS
    alarm = RATIO_UNMET if is_stuck or is_overdue else ""
    if is_certified:
        return Wait("fewer validators than the ratio prove its end", alarm)
    if is_expired:
        return Wait("no longer valid, absence not proven yet", alarm)
    if not event.is_released:
        return Wait("not released yet", alarm)
    return Resend("may still come", alarm)


def _absent(event: Event, original: Event | None, *, now_ms: int) -> tuple[Change, ...]:
    """Return the end of an event whose transaction no block can hold any more."""
    why = "chain: absent, and no longer valid"
    if event.kind is Kind.TRADE:
        return (_cancelled(event, why, code=EXPIRED, height=0, now_ms=now_ms),)
    if original is None:
        raise InvariantError(f"the reversal {event.event} comes without its trade")
    return _reversal_cancelled(event, original, why, code=EXPIRED, height=0, now_ms=now_ms)


def look_again(event: Event, action: Wait | Resend, *, now_ms: int) -> Change:
    """Return the change that says when the scan looks at an undecided event again, and what an operator sees of it.

    The pauses grow with the attempts, but do not sleep past the end of validity, and grow anew from there.
    """
    pause = pause_ms(PAUSE_MIN_MS, event.attempts)
    left = event.valid_until_ms - now_ms
    pause = min(pause, left + PAUSE_MIN_MS) if left > 0 else max(PAUSE_MIN_MS, min(pause, -left))
    return changed(
        event,
        f"scan: {action.why}",
        now_ms=now_ms,
        attempts=event.attempts + 1,
        due_ms=now_ms + pause,
        code=action.alarm,
        is_flagged=bool(action.alarm),
    )


def pause_ms(first_ms: int, attempts: int) -> int:
    """Return how long an event rests after so many attempts: twice as long each time, up to ``PAUSE_MAX_MS``."""
    return min(PAUSE_MAX_MS, first_ms << min(attempts, 16))
