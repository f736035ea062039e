"""Which agreed end of a stream is reached, as both sides reckon it. Pure."""

from consensus.ledger.streams import Terms


def due_max(terms: Terms, limit: int) -> int:
    """Return the largest total that may ever be due: a whole number of units within deposit, credit and amount.

    ``limit`` is deposit − fine + credit, as the chain's record has it now.
    """
    most = min(limit, terms.amount_max) if terms.amount_max else limit
    return max(most, 0) // terms.price * terms.price


def reached(terms: Terms, limit: int, *, count: int, due: int, opened_ms: int, now_ms: int) -> str:
    """Return ``count``, ``amount``, ``deposit`` or ``time`` when that end is reached, else an empty text.

    ``count`` is of iterations. Amount and deposit are used up as soon as no further unit fits in.
    """
    if terms.count_max and count >= terms.count_max:
        return "count"
    if due >= due_max(terms, limit):
        is_agreed = terms.amount_max and terms.amount_max <= limit
        return "amount" if is_agreed else "deposit"
    if terms.duration_ms_max and now_ms >= opened_ms + terms.duration_ms_max:
        return "time"
    return ""
