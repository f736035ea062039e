"""Where a transaction is that is not final, why it is not sealed, and what to do about it. Pure.

A node knows what waits in its own pool, what left it in vain, and what it refused lately. Of other nodes it
knows only that it hands on what waits here to all validators that are connected.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from consensus.ledger.ids import NodeName
from node.intake import Answer
from node.mempool import Gone, Waiting
from node.rpc.doctor import Facts, roll_call

PASSED_MIN = 2
"""So many blocks that left a ready transaction out are worth a word; one may have been under way."""

_ADVICE = {
    "pool_full": "submit the same bytes again in a moment, or to another node",
    "sender_full": "wait until some of this account's transactions are final, then submit the same bytes again",
    "unknown_account": "check the key, or have the account registered; then submit the same bytes again",
    "account_suspended": "ask its organisation's admin; nothing of this account is taken until it is active again",
    "expired": "sign the call again with a later end of validity; its number is free unless another took it",
    "validity_too_long": "sign the call again, valid for an hour at most",
    "lane_used": "another transaction has its number: sign the call again with the lane's next number",
    "lane_consumed": "its one-shot lane was used: chain_getAccount or hansa state get shows by which transaction",
    "lane_number_taken": "another transaction waits under its number: wait for that one, or sign with the next number",
    "lane_gap": "submit the numbers before it first",
    "too_many_lanes": "use one of the lanes that the account has opened",
    "bad_signature": "sign the call again with the key that the account has now",
    "wrong_chain": "sign the call again for the chain that this node serves",
}
"""What to do about a refusal, by its code."""

_GONE = {
    "lane_used": "another transaction with its lane and number became final",
    "bad_signature": "the account's key was replaced while it waited, and its signature does not count any more",
    "account_suspended": "its account was suspended while it waited",
    "unknown_account": "its account is no longer there",
}
"""Why what waited here can never be included, by the code that the pool remembers."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a transaction is that is not final.

    ``stage`` is ``unknown``, ``queued``, ``refused``, or ``expired`` when it can never become final any more;
    ``code`` says why it is not sealed and ``advice`` what to do; ``holders`` are this node and the validators
    it hands the transaction on to; ``waited_ms`` is how long it has been here.
    """

    stage: str
    code: str
    message: str
    holders: tuple[NodeName, ...] = ()
    waited_ms: int = 0
    advice: str = ""


def explain_waiting(waiting: Waiting, facts: Facts, *, wall_ms: int, head_height: int) -> Explanation:
    """Explain a transaction that waits in the pool, the gravest reason first."""
    code, message, advice = _why_waiting(waiting, facts, wall_ms=wall_ms, head_height=head_height)
    connected = facts.connected | {facts.node}
    holders = tuple(name for name in facts.status.validators if name in connected)
    if facts.node not in holders:
        holders = (facts.node, *holders)
    waited_ms = facts.now_ms - waiting.entry.arrival_ms
    return Explanation("queued", code, message, holders, waited_ms, advice)


def _why_waiting(waiting: Waiting, facts: Facts, *, wall_ms: int, head_height: int) -> tuple[str, str, str]:
    """Return code, message and advice."""
    body = waiting.entry.transaction.body
    if wall_ms > body.valid_until_ms:
        ended = time_text(body.valid_until_ms)
        message = f"it was valid until {ended}: a block under way may still hold it, no later one can"
        return "validity_over", message, "wait for the next block; then sign the call again"
    if waiting.gap is not None:
        message = f"number {waiting.gap} of its lane has not come in yet, and it has number {body.sequence}"
        return "lane_gap", message, f"submit number {waiting.gap}; it waits until {time_text(body.valid_until_ms)}"
    roll = roll_call(facts)
    if roll.voting < facts.status.quorum:
        message = f"{roll.voting} of {len(facts.status.validators)} validators vote, {facts.status.quorum} are needed"
        advice = f"hansa consensus doctor says who is missing; it waits until {time_text(body.valid_until_ms)}"
        return "no_quorum", message, advice
    if facts.certified_height > head_height:
        message = (
            f"this node is at block {head_height} and catches up to {facts.certified_height}: it may be final already"
        )
        return "catching_up", message, "ask another node, or wait until this one has caught up"
    if waiting.ahead:
        message = f"{_count(waiting.ahead, 'earlier number')} of its lane wait before it, and none is missing"
        return "waiting_in_lane", message, "wait: it follows them, in the same block if there is room"
    if waiting.is_set_back:
        message = (
            f"{waiting.entry.refusals} proposals of this node that held it came to nothing; it waits for an empty block"
        )
        return "set_back", message, "wait: it is proposed again as soon as nothing else is ready"
    if waiting.passed >= PASSED_MIN:
        message = (
            f"{waiting.passed} blocks passed it by since it was next in its lane: senders take turns in full blocks,"
            f" and {_count(waiting.of_sender, 'transaction')} of its sender wait, {waiting.in_pool} in all"
        )
        advice = "wait, or put several calls into one transaction; a primary that leaves it out for long is replaced"
        return "passed_over", message, advice
    return "waiting_for_block", f"it is next in its lane; {facts.status.primary} makes the next block", "wait"


def explain_gone(gone: Gone) -> Explanation:
    """Explain a transaction that waited here in vain."""
    advice = _ADVICE.get(gone.code, "sign the call again")
    if gone.code == "expired":
        message = f"it waited here and was valid until {time_text(gone.valid_until_ms)}: it can never become final"
        return Explanation("expired", "expired", message, advice=advice)
    why = _GONE.get(gone.code, "it waited here until a block made it impossible")
    return Explanation("refused", gone.code, why, advice=advice)


def explain_refusal(refusal: Answer, *, wall_ms: int, head_time_ms: int) -> Explanation:
    """Explain a transaction that this node has refused lately; once its validity is over, no advice can save it."""
    ends_ms = refusal.valid_until_ms
    if ends_ms is not None and wall_ms > ends_ms:
        # The time of blocks counts: one that was proposed in time, elsewhere, may still be under way.
        unless = "" if head_time_ms > ends_ms else ", unless a block under way at another node holds it already"
        message = (
            f"this node refused it with {refusal.code}, and it was valid until {time_text(ends_ms)}:"
            f" it can never become final{unless}"
        )
        return Explanation("expired", "expired", message, advice=_ADVICE["expired"])
    return Explanation("refused", refusal.code, refusal.message, advice=_ADVICE.get(refusal.code, ""))


UNKNOWN = Explanation(
    "unknown",
    "not_found",
    "this node neither holds it nor has lately refused it",
    advice="ask the node it was given to, or submit the same bytes again: they take effect once",
)
"""What a node says of a transaction that it has never seen, or forgotten."""


def explain_final(failed_codes: list[str], *, count: int) -> tuple[str, str]:
    """Return code and message of a final transaction, given the codes of its failed receipts."""
    if not failed_codes:
        return "final", "it is final and took effect"
    what = "it is final and failed" if count == 1 else f"it is final; {len(failed_codes)} of {count} calls failed"
    return failed_codes[0], f"{what}: {', '.join(dict.fromkeys(failed_codes))}; docs/errors.md says what the code means"


def time_text(time_ms: int) -> str:
    """Return a moment for people, in UTC."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{time_ms} ms since 1970"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
