"""Mutants of settlement's decisions: what is given up, paid, reversed, and when an operator is told."""

from tests.mutants.mutant import Mutant

_DECISION = "services/settlement/decision.py"
_TEST = "pytest tests/settlement/test_decision.py::"
_ROW = _TEST + "test_a_row_says_what_is_done"

MUTANTS = (
    Mutant(
        "expired is absent",
        _DECISION,
        "    return _undecided(event, tally, is_certified=bool(certified), is_expired=is_expired)",
        "    if is_expired:\n"
        "        return Take(_absent(event, original, now_ms=now_ms))\n"
        "    return _undecided(event, tally, is_certified=bool(certified), is_expired=is_expired)",
        "a transaction that a block may hold already is given up: the asset moves and nobody pays",
        _TEST + "test_nothing_pending_is_ever_given_up",
    ),
    Mutant(
        "one receipt is enough",
        _DECISION,
        "    if len({answer.validator for answer in certified}) >= tally.ratio:",
        "    if certified:",
        "the ratio of validators is not waited for",
        _ROW,
    ),
    Mutant(
        "one validator counts often",
        _DECISION,
        "    if len({answer.validator for answer in certified}) >= tally.ratio:",
        "    if len(certified) >= tally.ratio:",
        "one validator makes a ratio alone",
        _TEST + "test_one_validator_counts_once",
    ),
    Mutant(
        "contradiction decided",
        _DECISION,
        "    if len(claims) + bool(absent) > 1 or (absent and not is_expired):",
        "    if len(claims) + bool(absent) > 9 or (absent and not is_expired):",
        "proofs that exclude each other decide all the same",
        _ROW,
    ),
    Mutant(
        "unreleased sent by the scan",
        _DECISION,
        "    if not event.is_released:\n        return Wait(",
        "    if event.is_released is None:\n        return Wait(",
        "the scan sends what nobody released: the money is not held",
        _ROW,
    ),
    Mutant(
        "cancelled may be released",
        _DECISION,
        "        state=State.CANCELLED,\n        is_released=True,",
        "        state=State.CANCELLED,\n        is_released=False,",
        "a cancelled event does not look released any more",
        _TEST + "test_there_are_four_states_and_these_ways_between_them",
    ),
    Mutant(
        "money stays held",
        _DECISION,
        "    topics = (Topic.RELEASE,) if event.kind is Kind.TRADE else ()",
        "    topics: tuple[Topic, ...] = ()",
        "the money of a cancelled trade is never released",
        _ROW,
    ),
    Mutant(
        "paid after the wish to reverse",
        _DECISION,
        "    return Topic.RELEASE if event.wish is Wish.REVERSE else Topic.PAY",
        "    return Topic.PAY",
        "what an operator wants reversed is paid",
        _ROW,
    ),
    Mutant(
        "paid already, reversed all the same",
        _DECISION,
        '        case Operation.RELEASE if answer.code == "already_paid":',
        '        case Operation.RELEASE if answer.code == "never_paid":',
        "a trade that was paid before the reversal stays stuck",
        _ROW,
    ),
    Mutant(
        "frozen account waits unseen",
        _DECISION,
        "    is_flagged = event.is_flagged or code in HOPELESS",
        "    is_flagged = event.is_flagged",
        "no operator is told of a payment that cannot be made",
        _ROW,
    ),
    Mutant(
        "late delivery ignored",
        _DECISION,
        "        case State.CANCELLED if is_ok and not event.height:",
        "        case State.CANCELLED if is_ok and event.height < 0:",
        "units that a seller sends after the trade was given up are gone, and nobody pays",
        _ROW,
    ),
    Mutant(
        "reversal leaves its trade",
        _DECISION,
        "    if original.state is State.ACCOUNT_PENDING:\n        why = f",
        "    if reversal.state is State.REGISTERED and original.state is State.ACCOUNT_PENDING:\n        why = f",
        "a trade that was changed meanwhile is never ended by its reversal",
        _ROW,
    ),
    Mutant(
        "scan sleeps past the end",
        _DECISION,
        "    pause = min(pause, left + PAUSE_MIN_MS) if left > 0 else",
        "    pause = pause if left > 0 else",
        "money stays held for a minute longer than it must",
        _TEST + "test_the_scan_does_not_sleep_past_the_end_of_validity",
    ),
)
