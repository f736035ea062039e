"""Every row of the tables in ``docs/settlement.md``, read out of the document; and no combination without its row."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement, product
from pathlib import Path

import msgspec
import pytest

from consensus.ledger.errors import InvariantError, LocalError
from services.accounts.port import Answer, Operation
from services.settlement.decision import (
    DELIVERED_LATE,
    FLAG_AFTER_ATTEMPTS,
    HOPELESS,
    OVERDUE_MS,
    PAUSE_MAX_MS,
    PAUSE_MIN_MS,
    REMIND_PAUSE_MIN_MS,
    NodeAnswer,
    Resend,
    Take,
    Tally,
    Verdict,
    Wait,
    contradicts,
    decide,
    look_again,
    may_reverse,
    on_answer,
    on_cancel,
    on_certified,
    on_release,
    on_repair,
    opened,
    pause_ms,
    remind,
)
from services.settlement.states import Change, Event, Outcome, State, Terms, Topic, Wish

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "settlement.md"
NOW_MS = 1_000_000
VALID_UNTIL_MS = 900_000
CODE = "insufficient_funds"
TERMS = Terms(b"s" * 20, b"b" * 20, "BOND-1", 5, 1_250, "CNY", "buyer", "seller")

STANDINGS = {
    "REGISTERED/unreleased": (State.REGISTERED, {}),
    "REGISTERED/released": (State.REGISTERED, {"is_released": True}),
    "PENDING": (State.ACCOUNT_PENDING, {"is_released": True, "height": 7}),
    "PENDING/reverse": (State.ACCOUNT_PENDING, {"is_released": True, "height": 7, "wish": Wish.REVERSE}),
    "COMPLETED/PAID": (State.COMPLETED, {"is_released": True, "height": 7, "outcome": Outcome.PAID}),
    "COMPLETED/REVERSED": (
        State.COMPLETED,
        {"is_released": True, "height": 7, "outcome": Outcome.REVERSED, "wish": Wish.REVERSE},
    ),
    "CANCELLED/unsent": (State.CANCELLED, {"is_released": True, "code": "expired"}),
    "CANCELLED/failed": (State.CANCELLED, {"is_released": True, "code": "unknown_unit", "height": 7}),
    "CANCELLED/late": (
        State.CANCELLED,
        {"is_released": True, "code": DELIVERED_LATE, "is_flagged": True, "height": 7},
    ),
    "CANCELLED/returned": (State.CANCELLED, {"is_released": True, "code": DELIVERED_LATE, "height": 7}),
}
FINISHED_REVERSALS = {
    "CANCELLED": (State.CANCELLED, {"code": "expired"}),
    "COMPLETED": (State.COMPLETED, {"height": 8}),
}
REVERSIBLE = [name for name in STANDINGS if name not in ("CANCELLED/unsent", "CANCELLED/failed") and "REG" not in name]
"""How the trade of a reversal can stand: it was ACCOUNT_PENDING, or late, when the reversal was opened."""


def trade(standing: str = "REGISTERED/released", **fields: object) -> Event:
    state, known = STANDINGS[standing]
    event = opened("t1", TERMS, transaction_id=b"i" * 32, raw=b"raw", valid_until_ms=VALID_UNTIL_MS, now_ms=1)
    return msgspec.structs.replace(event, **{"state": state, **known, **fields})


def reversal(standing: str = "REGISTERED", **fields: object) -> Event:
    state, known = FINISHED_REVERSALS.get(standing, (State.REGISTERED, {}))
    event = opened(
        "t1.reverse",
        TERMS,
        transaction_id=b"r" * 32,
        raw=b"raw",
        valid_until_ms=VALID_UNTIL_MS,
        now_ms=1,
        original="t1",
    )
    return msgspec.structs.replace(event, **{"state": state, **known, **fields})


# -- what came of it, in the words of the document ---------------------------------------------------------------------


def words_of(change: Change, code: str) -> str:
    before, after = change.before, change.after
    words: list[str] = [after.state]
    if after.outcome:
        words.append(after.outcome)
    if after.code:
        words.append("(its code)" if after.code == code else f"({after.code})")
    if after.is_flagged:
        words.append("flagged")
    if after.is_released and not before.is_released and after.state is State.REGISTERED:
        words.append("released")
    if after.wish != before.wish and after.state not in (State.COMPLETED, State.CANCELLED):
        words.append(f"wish {after.wish}" if after.wish else "no wish")
    words += [f"+ {topic.name}" for topic in change.topics]
    return " ".join(words)


def told(changes: tuple[Change, ...], own: str, code: str = "", alarm: str = "") -> str:
    parts = [("" if change.after.event == own else "trade: ") + words_of(change, code) for change in changes]
    return "; ".join([*parts, *([alarm] if alarm else [])]) or "nothing"


# -- all combinations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A combination in the words of the table's columns, and what the product does."""

    words: tuple[str, ...]
    act: Callable[[], str]


def receipts() -> Iterator[Case]:
    for standing, is_ok in product(STANDINGS, (True, False)):
        name = standing.partition("/")[0] if standing.startswith("REG") else standing
        yield Case(("trade", name, "success" if is_ok else "failure", "-"), _receipt(trade(standing), None, is_ok))
    for own, standing, is_ok in product(("REGISTERED", "COMPLETED", "CANCELLED"), REVERSIBLE, (True, False)):
        words = ("reversal", own, "success" if is_ok else "failure", standing)
        yield Case(words, _receipt(reversal(own), trade(standing), is_ok))


def _receipt(event: Event, original: Event | None, is_ok: bool) -> Callable[[], str]:
    def act() -> str:
        code = "" if is_ok else "lien_closed"
        changes = on_certified(event, original=original, is_ok=is_ok, code=code, height=8, now_ms=NOW_MS)
        alarm = "alarm" if contradicts(event, original=original, is_ok=is_ok) else ""
        return told(changes, event.event, code, alarm)

    return act


TIMES = {"running": VALID_UNTIL_MS, "over": VALID_UNTIL_MS + 1, "long over": VALID_UNTIL_MS + OVERDUE_MS + 1}
CLAIMS = (
    ("S", Verdict.SUCCEEDED, "", 8),
    ("S'", Verdict.SUCCEEDED, "", 9),
    ("F", Verdict.FAILED, CODE, 8),
    ("F'", Verdict.FAILED, "unknown_unit", 8),
    ("A", Verdict.ABSENT, "", 0),
    ("H", Verdict.HELD, "", 0),
    ("U", Verdict.UNKNOWN, "", 0),
    ("L", Verdict.LIAR, "", 0),
)


def answers_class(letters: str, ratio: int, validity: str) -> str:
    proofs = {letter for letter in letters if letter in "SFAsf"}
    count = sum(letter in "SFAsf" for letter in letters)
    if len(proofs) > 1 or (proofs == {"A"} and validity == "running"):
        return "split"
    if proofs:
        name = {"S": "success q", "s": "success q", "F": "failure q", "f": "failure q", "A": "absence q"}[proofs.pop()]
        return name if count >= ratio else "proof <q"
    return "held q" if letters.count("H") >= ratio else "silent"


def scans() -> Iterator[Case]:
    letters = "SsFfAHUL"  # as in CLAIMS, one each
    looks = {"few": FLAG_AFTER_ATTEMPTS - 1, "many": FLAG_AFTER_ATTEMPTS}
    for chosen in combinations_with_replacement(range(8), 4):
        text = "".join(letters[number] for number in chosen)
        answers = tuple(NodeAnswer(f"n{at}", *CLAIMS[number][1:]) for at, number in enumerate(chosen))
        for ratio, validity, look in product((1, 3, 4), TIMES, looks):
            words = (validity, look, answers_class(text, ratio, validity))
            tally = Tally(answers, ratio, TIMES[validity])
            attempts = looks[look]
            for released in ("yes", "no"):
                event = trade(f"REGISTERED/{'' if released == 'yes' else 'un'}released", attempts=attempts)
                yield Case(("trade", released, *words), _scan(event, None, tally))
            event = reversal(attempts=attempts)
            yield Case(("reversal", "yes", *words), _scan(event, trade("PENDING/reverse"), tally))


def _scan(event: Event, original: Event | None, tally: Tally) -> Callable[[], str]:
    code = next((answer.code for answer in tally.answers if answer.code), "")

    def act() -> str:
        match decide(event, tally, original=original, now_ms=NOW_MS):
            case Wait(_, alarm):
                return "wait" + (f", alarm {alarm}" if alarm else "")
            case Resend(_, alarm):
                return "resend" + (f", alarm {alarm}" if alarm else "")
            case Take(changes):
                return told(changes, event.event, code)

    return act


def reminders() -> Iterator[Case]:
    for standing, (look, attempts) in product(
        ("PENDING", "PENDING/reverse"), (("few", 0), ("few", 3), ("many", 4), ("many", 99))
    ):
        event = trade(standing, attempts=attempts)
        yield Case((standing, look), lambda event=event: told((remind(event, now_ms=NOW_MS),), event.event))


def accounts_answers() -> Iterator[Case]:
    codes = {"done": [""], "hopeless": sorted(HOPELESS), "other": [CODE, "not_paid"], "already_paid": ["already_paid"]}
    for standing, operation in product(STANDINGS, Operation):
        name = standing.partition("/")[0] if standing.startswith("REG") else standing
        for word, code in ((word, code) for word, some in codes.items() for code in some):
            yield Case((name, operation, word), _answer(trade(standing), operation, code))
        if standing.startswith("PENDING"):
            for code in (CODE, "account_frozen"):
                event = trade(standing, code=code, is_flagged=code in HOPELESS)
                yield Case((name, operation, "again"), _answer(event, operation, code))


def _answer(event: Event, operation: Operation, code: str) -> Callable[[], str]:
    def act() -> str:
        change = on_answer(event, Answer(event.event, operation, code), now_ms=NOW_MS)
        return told((change,) if change else (), event.event, code)

    return act


def calls() -> Iterator[Case]:
    for call, (standing, _) in product(("release", "cancel", "retry", "reverse"), STANDINGS.items()):
        name = standing
        if standing != "CANCELLED/late" and not standing.startswith(("REG", "PEND")):
            name = standing.partition("/")[0]
        yield Case((call, "trade", name), _call(call, trade(standing)))
    for call, own in product(("release", "cancel", "retry", "reverse"), ("REGISTERED", *FINISHED_REVERSALS)):
        name = "REGISTERED/released" if own == "REGISTERED" else own
        yield Case((call, "reversal", name), _call(call, reversal(own)))


def _call(call: str, event: Event) -> Callable[[], str]:
    def act() -> str:
        try:
            match call:
                case "release":
                    change = on_release(event, now_ms=NOW_MS)
                case "cancel":
                    change = on_cancel(event, CODE, now_ms=NOW_MS)
                case _:
                    change = on_repair(event, call, now_ms=NOW_MS)
        except LocalError as error:
            return f"refused {error.code}"
        return told((change,) if change else (), event.event, CODE if call == "cancel" else "")

    return act


TABLES: dict[str, Callable[[], Iterator[Case]]] = {
    "A receipt under a verified certificate": receipts,
    "The scan, type 1": scans,
    "The scan, type 2": reminders,
    "An answer of the account system": accounts_answers,
    "What is asked for by the transaction system and the operator": calls,
}


# -- the document ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    name: str
    conditions: tuple[frozenset[str], ...]
    follows: str

    def fits(self, words: tuple[str, ...]) -> bool:
        return all("any" in some or word in some for some, word in zip(self.conditions, words, strict=True))


@cache
def rows_of(heading: str) -> tuple[Row, ...]:
    text = DOCUMENT.read_text("utf-8")
    section = text.partition(f"### {heading}\n")[2]
    section = re.split(r"^#{2,3} ", section, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return tuple(Row(c[0], tuple(frozenset(x.split(", ")) for x in c[1:-1]), c[-1]) for c in cells)


@cache
def cases_of(heading: str) -> tuple[Case, ...]:
    return tuple(TABLES[heading]())


@pytest.mark.parametrize(
    ("heading", "row"),
    [pytest.param(heading, row, id=row.name) for heading in TABLES for row in rows_of(heading)],
)
def test_a_row_says_what_is_done(heading: str, row: Row) -> None:
    said = {case.act() for case in cases_of(heading) if row.fits(case.words)}
    assert said == {row.follows}


@pytest.mark.parametrize("heading", TABLES)
def test_each_combination_has_exactly_one_row(heading: str) -> None:
    for words in sorted({case.words for case in cases_of(heading)}):
        assert len([row.name for row in rows_of(heading) if row.fits(words)]) == 1, words


def test_the_tables_have_all_their_rows() -> None:
    assert [len(rows_of(heading)) for heading in TABLES] == [21, 20, 4, 13, 13]


# -- what holds for all of them ----------------------------------------------------------------------------------------

LEGAL = {
    ("REGISTERED", "REGISTERED"),
    ("REGISTERED", "ACCOUNT_PENDING"),
    ("REGISTERED", "CANCELLED"),
    ("REGISTERED", "COMPLETED"),  # a reversal's
    ("ACCOUNT_PENDING", "ACCOUNT_PENDING"),
    ("ACCOUNT_PENDING", "COMPLETED"),
    ("CANCELLED", "CANCELLED"),  # delivered late, and back again
}


def test_there_are_four_states_and_these_ways_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Change] = []
    monkeypatch.setattr("tests.settlement.test_decision.words_of", lambda change, _: seen.append(change) or "")
    for heading in TABLES:
        for case in TABLES[heading]():
            case.act()
    assert {(change.before.state.value, change.after.state.value) for change in seen} == LEGAL
    assert {state.value for state in State} == {"REGISTERED", "ACCOUNT_PENDING", "CANCELLED", "COMPLETED"}
    for change in seen:
        assert change.after.version == change.before.version + 1
        assert change.after.changed_ms == NOW_MS
        assert (change.after.raw, change.after.terms) == (change.before.raw, change.before.terms)
        assert change.after.is_released or change.after.state is State.REGISTERED


def test_nothing_pending_is_ever_given_up() -> None:
    """Whatever validators say: without q proofs of one end, and for absence the end of validity, no CANCELLED."""
    for chosen in product(range(8), repeat=4):
        answers = tuple(NodeAnswer(f"n{at}", *CLAIMS[number][1:]) for at, number in enumerate(chosen))
        final = [answer for answer in answers if answer.verdict in (Verdict.FAILED, Verdict.ABSENT)]
        action = decide(trade(), Tally(answers, 3, TIMES["over"]), now_ms=NOW_MS)
        if isinstance(action, Take) and action.changes[0].after.state is State.CANCELLED:
            assert len(final) >= 3
            assert len({(answer.verdict, answer.code) for answer in final}) == 1
        early = decide(trade(), Tally(answers, 3, VALID_UNTIL_MS), now_ms=1 << 60)
        if isinstance(early, Take) and early.changes[0].after.state is State.CANCELLED:
            assert early.changes[0].after.height == 8


def test_one_validator_counts_once() -> None:
    answers = (NodeAnswer("n0", Verdict.SUCCEEDED, height=8),) * 4
    assert isinstance(decide(trade(), Tally(answers, 3, 1), now_ms=NOW_MS), Wait)


def test_a_ratio_of_none_is_no_ratio() -> None:
    with pytest.raises(InvariantError):
        decide(trade(), Tally((), 0, 1), now_ms=NOW_MS)


def test_a_flag_changes_nothing_but_what_the_operator_sees() -> None:
    for is_flagged in (False, True):
        event = trade("REGISTERED/unreleased", is_flagged=is_flagged)
        (change,) = on_certified(event, is_ok=True, code="", height=8, now_ms=NOW_MS)
        assert (change.after.state, change.after.is_flagged) == (State.ACCOUNT_PENDING, False)
        assert change.topics == (Topic.PAY,)


def test_a_reversal_needs_its_trade() -> None:
    with pytest.raises(InvariantError):
        on_certified(reversal(), is_ok=True, code="", height=8, now_ms=NOW_MS)
    absent = Tally(tuple(NodeAnswer(f"n{at}", Verdict.ABSENT) for at in range(3)), 3, TIMES["over"])
    with pytest.raises(InvariantError):
        decide(reversal(), absent, now_ms=NOW_MS)
    with pytest.raises(InvariantError):
        remind(trade("COMPLETED/PAID"), now_ms=NOW_MS)


def test_an_event_that_was_decided_meanwhile_is_left_alone() -> None:
    proof = Tally(tuple(NodeAnswer(f"n{at}", Verdict.FAILED, "x", 8) for at in range(4)), 3, TIMES["over"])
    for standing in STANDINGS:
        if not standing.startswith("REG"):
            assert isinstance(decide(trade(standing), proof, now_ms=NOW_MS), Wait), standing


def test_which_reverse_notices_are_obeyed() -> None:
    assert [name for name in STANDINGS if may_reverse(trade(name))] == ["PENDING/reverse", "CANCELLED/late"]


def test_pauses_double_up_to_a_minute() -> None:
    assert [pause_ms(PAUSE_MIN_MS, attempts) for attempts in range(8)] == [
        *(1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000)
    ]
    assert pause_ms(REMIND_PAUSE_MIN_MS, 10_000) == PAUSE_MAX_MS
    assert opened("e", TERMS, transaction_id=b"", raw=b"", valid_until_ms=9, now_ms=5).due_ms == 5 + PAUSE_MIN_MS


@pytest.mark.parametrize(
    ("now_ms", "attempts", "pause"),
    [
        (0, 0, 1_000),
        (0, 9, 60_000),
        (VALID_UNTIL_MS - 5_000, 9, 6_000),  # not past the end of validity
        (VALID_UNTIL_MS, 9, 1_000),  # and from there anew
        (VALID_UNTIL_MS + 3_000, 9, 3_000),
        (VALID_UNTIL_MS + 3_000, 1, 2_000),
        (VALID_UNTIL_MS + 300_000, 9, 60_000),
    ],
)
def test_the_scan_does_not_sleep_past_the_end_of_validity(now_ms: int, attempts: int, pause: int) -> None:
    change = look_again(trade(attempts=attempts), Resend("why"), now_ms=now_ms)
    assert change.after.due_ms - now_ms == pause
    assert (change.after.attempts, change.topics) == (attempts + 1, ())


def test_an_alarm_flags_and_goes_when_it_is_over() -> None:
    loud = look_again(trade(), Wait("why", "ratio_unmet"), now_ms=NOW_MS).after
    assert (loud.is_flagged, loud.code, loud.state) == (True, "ratio_unmet", State.REGISTERED)
    quiet = look_again(loud, Resend("why"), now_ms=NOW_MS).after
    assert (quiet.is_flagged, quiet.code) == (False, "")


def test_a_refusal_keeps_the_flag_and_a_payment_takes_it_off() -> None:
    event = trade("PENDING", is_flagged=True, code="account_frozen")
    refused = on_answer(event, Answer("t1", Operation.PAY, CODE), now_ms=NOW_MS)
    assert refused is not None
    assert (refused.after.is_flagged, refused.after.code) == (True, CODE)
    paid = on_answer(refused.after, Answer("t1", Operation.PAY), now_ms=NOW_MS)
    assert paid is not None
    assert (paid.after.is_flagged, paid.after.code, paid.after.outcome) == (False, "", Outcome.PAID)
    known = remind(trade("PENDING", attempts=50, code=CODE), now_ms=NOW_MS).after
    assert (known.code, known.is_flagged, known.due_ms) == (CODE, True, NOW_MS + PAUSE_MAX_MS)


def test_a_repair_begins_anew() -> None:
    event = trade("PENDING", is_flagged=True, code=CODE, attempts=20, due_ms=NOW_MS + PAUSE_MAX_MS)
    after = on_repair(event, "retry", now_ms=NOW_MS).after
    assert (after.is_flagged, after.code, after.attempts) == (False, "", 0)
    assert after.due_ms == NOW_MS + REMIND_PAUSE_MIN_MS
    assert on_repair(trade(due_ms=1 << 50), "retry", now_ms=NOW_MS).after.due_ms == NOW_MS
