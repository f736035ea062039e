"""What a watcher does next about a stream whose service party is offline: a pure rule over what is proven.

The number of the stream's lane is used once. While it is free and the iteration valid, the payer may still sign a
greater total: so the iteration goes to the chain late, in the middle of the margin in which its service party would
have brought its own, or a while after the payer asked for its deposit. Whoever is not offline is first, with what may
be a greater total. After that, ``claim`` pays out of the deposit what may be missing.
"""

from enum import StrEnum

from consensus.ledger.streams import Iteration, StreamRecord

CLAIM_AFTER_MS = 2_000
"""So long after an iteration's expiry a claim is tried, when no block has shown yet that it is over."""


WITHDRAWAL_MS = 5_000
"""So long after a withdrawal was asked for it settles, in ``uptime_ms``: far less than any window has."""


class Step(StrEnum):
    """What is to be done."""

    WAIT = "WAIT"
    """Nothing yet."""
    SETTLE = "SETTLE"
    """The iteration goes to the chain."""
    CLAIM = "CLAIM"
    """It is claimed out of the deposit."""
    DONE = "DONE"
    """Nothing is left to get."""


def claimable(record: StreamRecord, due: int) -> int:
    """Return what a claim of this total would pay as due, without a fine; smallest units."""
    return max(min(due, record.deposit - record.fine) - record.paid, 0)


def settles_at_ms(iteration: Iteration, margin_ms: int) -> int:
    """Return when an iteration goes to the chain, ms UTC; its service party would have brought it before."""
    return iteration.valid_until_ms - margin_ms // 2


def next_step(
    record: StreamRecord,
    last_id: bytes | None,
    iteration: Iteration,
    *,
    margin_ms: int,
    now_ms: int,
    time_ms: int,
    uptime_ms: int,
    is_urgent: bool = False,
) -> Step:
    """Return what follows from a stream's record and its lane's last transaction (None: the number is free).

    The record must not be older than the lane: what settled in between would look as if the number had been burned.

    Args:
        record: as proven.
        last_id: of the transaction in the stream's lane, 32 bytes.
        iteration: the one with the greatest total.
        margin_ms: how long before its expiry its service party brings it to the chain.
        now_ms: the watcher's clock, UTC.
        time_ms, uptime_ms: of the newest block.
        is_urgent: to settle at once.
    """
    if record.status != "OPEN":
        return Step.DONE
    amount = claimable(record, iteration.due)
    is_used = last_id is not None or record.settled_by != b""
    if not is_used and time_ms <= iteration.valid_until_ms and now_ms <= iteration.valid_until_ms:
        is_late = max(now_ms, time_ms) >= settles_at_ms(iteration, margin_ms)
        asked_at_ms = record.withdraw_at_uptime_ms - record.window_ms
        is_leaving = record.withdraw_at_uptime_ms != 0 and uptime_ms >= asked_at_ms + WITHDRAWAL_MS
        return Step.SETTLE if is_late or is_leaving or is_urgent else Step.WAIT
    if not is_used:
        is_over = time_ms > iteration.valid_until_ms or now_ms > iteration.valid_until_ms + CLAIM_AFTER_MS
        if amount == 0:
            return Step.DONE
        return Step.CLAIM if is_over else Step.WAIT
    is_burned = last_id is not None and last_id != record.settled_by
    fine = record.fine if is_burned and not record.is_fined else 0
    return Step.CLAIM if amount + fine > 0 else Step.DONE
