"""What a watcher does next about a stream whose service party is offline: a pure rule over what is proven.

The number of the stream's lane is used once. While it is free and the iteration valid, the payer may still sign a
greater total: so the iteration goes to the chain as late as its service party's terms say, or when the payer wants its
deposit back. After that, ``claim`` pays out of the deposit what may be missing.
"""

from enum import StrEnum

from consensus.ledger.streams import Iteration, StreamRecord

CLAIM_AFTER_MS = 2_000
"""So long after an iteration's expiry a claim is tried, when no block has shown yet that it is over."""


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


def next_step(
    record: StreamRecord,
    last_id: bytes | None,
    iteration: Iteration,
    *,
    margin_ms: int,
    now_ms: int,
    time_ms: int,
    is_urgent: bool = False,
) -> Step:
    """Return what follows from a stream's record and its lane's last transaction (None: the number is free).

    The record must not be older than the lane: what settled in between would look as if the number had been burned.

    Args:
        record: as proven.
        last_id: of the transaction in the stream's lane, 32 bytes.
        iteration: the one with the greatest total.
        margin_ms: how long before its expiry it goes to the chain.
        now_ms: the watcher's clock, UTC.
        time_ms: of the newest block.
        is_urgent: to settle at once.
    """
    if record.status != "OPEN":
        return Step.DONE
    amount = claimable(record, iteration.due)
    is_used = last_id is not None or record.settled_by != b""
    if not is_used and time_ms <= iteration.valid_until_ms and now_ms <= iteration.valid_until_ms:
        is_due = max(now_ms, time_ms) >= iteration.valid_until_ms - margin_ms
        return Step.SETTLE if is_due or is_urgent or record.withdraw_at_uptime_ms else Step.WAIT
    if not is_used:
        is_over = time_ms > iteration.valid_until_ms or now_ms > iteration.valid_until_ms + CLAIM_AFTER_MS
        if amount == 0:
            return Step.DONE
        return Step.CLAIM if is_over else Step.WAIT
    is_burned = last_id is not None and last_id != record.settled_by
    fine = record.fine if is_burned and not record.is_fined else 0
    return Step.CLAIM if amount + fine > 0 else Step.DONE
