"""The rights demo's verdict and card: each invariant is broken in a way of its own, and named."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.errors import LocalError
from services.demo.card import Report, draw_card, report_json
from services.demo.chain import BlockView, ReceiptView, Seal
from services.demo.invariants import (
    NS,
    Accident,
    Crash,
    End,
    Facts,
    Intake,
    NodeFacts,
    Place,
    Proof,
    Sample,
    delivered_per_s,
    judge,
    pace_held,
    read_end,
)
from services.demo.rights import main
from services.demo.rights_machine import Figures
from services.messages.store import State
from services.rights.events import Kind
from tests.demo.support import NAMES, play


@cache
def facts() -> Facts:
    return play(seed=1).facts()


def node(**changes: object) -> dict[str, NodeFacts]:
    """Return the nodes with one of them changed."""
    nodes = dict(facts().nodes)
    return nodes | {NAMES[2]: replace(nodes[NAMES[2]], **changes)}  # type: ignore[arg-type]


def without(count: int = 1) -> dict[tuple[str, str, str], int]:
    """Return the history entries with the first one that many times too few."""
    first = next(iter(facts().entries))
    return {**facts().entries, first: facts().entries[first] - count}


def with_end(end: End | None) -> dict[str, End | None]:
    return {**facts().ends, facts().plan.deeds[0].key: end}


def first_end() -> End:
    end = facts().ends[facts().plan.deeds[0].key]
    assert end is not None
    return end


def other_end() -> End:
    end = facts().ends[facts().plan.deeds[1].key]
    assert end is not None
    return end


def with_swapped_places() -> dict[str, End | None]:
    """Return the ends with the places of one order's first two events exchanged."""
    create = next(deed for deed in facts().plan.burst if deed.kind is Kind.CREATE)
    one, other = [deed.key for deed in facts().plan.deeds if deed.reference == create.reference][:2]
    ends = facts().ends
    first, second = ends[one], ends[other]
    assert first is not None
    assert second is not None
    return {**ends, one: replace(first, place=second.place), other: replace(second, place=first.place)}


def more(figures: Figures, **changes: int) -> Figures:
    return Figures(**{name: value + changes.get(name, 0) for name, value in figures.as_map().items()})


def failed_receipts() -> dict[bytes, tuple[ReceiptView, ...]]:
    shown = next(iter(facts().nodes.values())).receipts
    return {identity: (ReceiptView("failed", "x", []),) * len(receipts) for identity, receipts in shown.items()}


def campaign(**changes: int) -> dict[str, dict[str, int]]:
    name = facts().plan.shared
    return {**facts().campaigns, name: {**facts().campaigns[name], **changes}}  # type: ignore[dict-item]


Break = Callable[[], Facts]
BREAKS: list[tuple[str, Break]] = [
    ("every_event_ended_once", lambda: replace(facts(), ends=with_end(None))),
    ("every_event_ended_once", lambda: replace(facts(), ends=with_end(replace(first_end(), place=None)))),
    ("every_event_ended_once", lambda: replace(facts(), ends=with_end(replace(first_end(), place=other_end().place)))),
    ("nothing_lost_or_doubled", lambda: replace(facts(), entries=without(1))),
    ("nothing_lost_or_doubled", lambda: replace(facts(), entries=without(-1))),
    ("nothing_lost_or_doubled", lambda: replace(facts(), entries={**facts().entries, ("create", "gift", "1"): 1})),
    ("each_order_in_turn", lambda: replace(facts(), ends=with_swapped_places())),
    ("repeats_change_nothing", lambda: replace(facts(), repeats_new=1)),
    ("rights_conserved", lambda: replace(facts(), after=more(facts().after, created=1, available=1))),
    ("rights_conserved", lambda: replace(facts(), before=more(facts().before, created=1, available=1))),
    ("rights_conserved", lambda: replace(facts(), balances={**facts().balances, "nobody": Figures()})),
    ("quota_held", lambda: replace(facts(), campaigns=campaign(created=facts().plan.quotas[facts().plan.shared] + 1))),
    ("quota_held", lambda: replace(facts(), campaigns={})),
    ("quota_held", lambda: replace(facts(), answers={})),
    ("pace_held", lambda: replace(facts(), rate_per_s=9.0)),
    ("bad_input_refused", lambda: replace(facts(), answers={**facts().answers, "a": ("", "malformed")})),
    ("lines_accounted", lambda: replace(facts(), book=replace(facts().book, line_count=1))),
    ("history_proven", lambda: replace(facts(), proof=Proof(facts().proof.user, 3, Figures()))),
    ("history_proven", lambda: replace(facts(), proof=replace(facts().proof, entries=0))),
    ("receipts_agree", lambda: replace(facts(), nodes=node(receipts={}))),
    (
        "receipts_agree",
        lambda: replace(
            facts(), nodes={name: replace(shown, receipts=failed_receipts()) for name, shown in facts().nodes.items()}
        ),
    ),
    ("state_roots_agree", lambda: replace(facts(), nodes=node(seal=Seal(1, bytes(32))))),
    ("heights_agree", lambda: replace(facts(), nodes=node(height=1))),
    ("killed_validator_returned", lambda: replace(facts(), killed=Accident(NAMES[3], 3, 19))),
    ("frozen_primary_replaced", lambda: replace(facts(), blocks=[BlockView(19, NAMES[3], 1, 0)])),
    ("frozen_primary_replaced", lambda: replace(facts(), frozen=Accident(NAMES[3], 6, 8))),
    ("killed_programs_returned", lambda: replace(facts(), crashes=(Crash("rights-center", 5, 0),))),
    ("killed_programs_returned", lambda: replace(facts(), crashes=())),
]


def test_everything_holds() -> None:
    verdict = judge(facts())
    assert verdict == dict.fromkeys(verdict, True)
    assert set(verdict) == {name for name, _ in BREAKS}


@pytest.mark.parametrize(("name", "broken"), BREAKS, ids=[f"{name}-{at}" for at, (name, _) in enumerate(BREAKS)])
def test_a_broken_invariant_is_named(name: str, broken: Break) -> None:
    assert judge(broken())[name] is False


def report(shown: Facts) -> Report:
    return Report(
        facts=shown,
        intake=Intake(340, 0.5, 320),
        source="a day",
        seed=1,
        store="embedded",
        proven_count=9,
        start_s=3,
        play_s=20,
        place="in memory",
    )


def test_the_object_says_what_was_played() -> None:
    shown = json.loads(json.dumps(report_json(report(facts()), judge(facts()))))
    assert shown["ok"] is True
    assert shown["orders_played"] == 160
    assert shown["ends"] == {"done": len(facts().plan.deeds), "refused": 2, "dead": 2, "waiting": 0}
    figures = shown["rights"]
    assert figures["reserved"] == 0
    assert min(figures[name] for name in ("clawedBack", "revoked", "redeemed", "available")) > 0
    assert shown["quota"] == figures["created"]


def test_the_card_says_what_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    broken = replace(facts(), after=more(facts().after, created=1))
    draw_card(report(broken), judge(broken))
    shown = capsys.readouterr()
    assert "rights conserved" in shown.out
    assert shown.out.count("BROKEN") == 2, "in the title, and in one row"
    assert "customer orders" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize("limit", [1, 2, 20])
def test_a_few_orders_are_enough(limit: int) -> None:
    performance = play(limit=limit, seed=1)
    verdict = judge(performance.facts())
    assert [name for name, holds in verdict.items() if not holds] == []


@pytest.mark.parametrize(
    ("state", "detail", "code", "place"),
    [
        (State.DONE, f"17 0x{'ab' * 32} 4 created=19", "", Place(17, b"\xab" * 32, 4)),
        (State.REFUSED, f"quota_exceeded 17 0x{'ab' * 32} 4", "quota_exceeded", Place(17, b"\xab" * 32, 4)),
        (State.DEAD, "malformed no event", "malformed", None),
        (State.DEAD, "malformed: no event", "malformed", None),
        (State.DEAD, "", "", None),
    ],
)
def test_an_end_is_read_out_of_its_detail(state: State, detail: str, code: str, place: Place | None) -> None:
    assert read_end(state, detail) == End(state, code, place)


def test_a_pace_is_judged_over_all_windows() -> None:
    steady = [Sample(0, at * NS, at * NS, at * 10) for at in range(10)]
    assert pace_held(steady, 10)
    assert not pace_held(steady, 9.8), "nine seconds are 0.8 too many, and one more is allowed"
    assert pace_held(steady, 9.9)
    burst = [*steady, Sample(0, 9 * NS + NS // 2, 9 * NS + NS // 2, 97)]
    assert not pace_held(burst, 10), "7 in half a second, where 5 and one are allowed"
    restarted = [*steady, Sample(1, 10 * NS, 10 * NS, 0), Sample(1, 11 * NS, 11 * NS, 11)]
    assert pace_held(restarted, 10), "a centre that starts again counts from 0"
    assert not pace_held([*restarted, Sample(1, 11 * NS, 11 * NS, 12)], 10)
    assert not pace_held([], 10)
    assert delivered_per_s(steady) == 10


@given(st.lists(st.tuples(st.integers(0, 10**8), st.integers(0, 30)), min_size=2, max_size=12), st.integers(1, 500))
def test_the_quick_judgement_is_that_of_all_pairs(steps: list[tuple[int, int]], rate: int) -> None:
    samples: list[Sample] = []
    at = count = 0
    for gap, delivered in steps:
        at, count = at + gap + 1, count + delivered
        samples.append(Sample(0, at, at + gap // 3, count))
    pairs = [(one, other) for i, one in enumerate(samples) for other in samples[i:]]
    slow = all(
        (other.delivered_count - one.delivered_count - 1) * NS <= rate * (other.answered_ns - one.asked_ns)
        for one, other in pairs
    )
    assert pace_held(samples, rate) == slow


def test_bad_orders_stop_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("InvoiceNo,StockCode\n")

    def never() -> None:
        raise AssertionError("a network was started")

    with pytest.raises(LocalError) as caught:
        main(open_network=never, orders=tmp_path)  # type: ignore[arg-type]
    assert caught.value.code == "bad_orders"
