"""The agency demo's verdict: each invariant is broken in a way of its own, and named."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from services.agency.orders import Application
from services.demo.agency_facts import Anchored, Crash, End, Facts, Units, judge

ROOT, OTHER = bytes([1]) * 32, bytes([2]) * 32


def application(serial: str, amount: int) -> Application:
    return Application(
        *(serial, "022", "C-FUNDS", "000198", "", f"T{serial}", "x", "996", "", amount, 0),
        *("156", 20170427, 90000, 1, False, None, {}),
    )


CONFIRMED = End("CONFIRMED", "", 1000, 1000, ROOT, 9)
REJECTED = End("REJECTED", "insufficient_units", 0, 0, ROOT, 9)
DROPPED = End("DROPPED", "foreign_distributor", 0, 0, b"", 0)
ENDS = {"a": CONFIRMED, "b": REJECTED, "c": DROPPED}
FACTS = Facts(
    applications={"a": application("a", 1000), "b": application("b", 500), "c": application("c", 70)},
    wanted={serial: (end.state, end.reason) for serial, end in ENDS.items()},
    ends=ENDS,
    repeated=ENDS,
    repeated_packages=0,
    answers={"no signature": ("signature_missing", "signature_missing")},
    written={"a": ("", 1000), "b": ("insufficient_units", 0)},
    confirmed=(1, 1),
    expected_confirmed=(1, 1),
    anchors=[Anchored("issuer-c", ROOT, 0, 2, "MUTUAL")],
    packages={ROOT: "issuer-c"},
    units={"000198": Units(1000, 0, 1000)},
    expected_units={"000198": 1000},
    channels={"bank-a/issuer-c": "OPEN"},
    agreed=frozenset({"bank-a/issuer-c"}),
    terms=(1, 2),
    disclosed=("MUTUAL", "bad_signature"),
    leaks={},
    marker_count=10,
    control_count=10,
    crashes=[Crash("issuer-c-end", 5)],
    ended_without_permission=3,
    joined=("PENDING", "OPENED"),
    seals={"bank-a": (9, ROOT), "issuer-c": (9, ROOT)},
)


def with_end(serial: str, end: End | None) -> dict[str, End | None]:
    return {**ENDS, serial: end}


Break = Callable[[], Facts]
BREAKS: list[tuple[str, Break]] = [
    ("every_order_ended_as_it_must", lambda: replace(FACTS, ends=with_end("a", None))),
    ("every_order_ended_as_it_must", lambda: replace(FACTS, ends=with_end("b", replace(REJECTED, reason="minor")))),
    ("every_order_ended_as_it_must", lambda: replace(FACTS, ends=with_end("gift", CONFIRMED))),
    ("money_reconciles", lambda: replace(FACTS, ends=with_end("a", replace(CONFIRMED, amount=999)))),
    ("money_reconciles", lambda: replace(FACTS, ends=with_end("c", None))),
    ("money_reconciles", lambda: replace(FACTS, written={**FACTS.written, "a": ("", 1)})),
    ("records_are_the_confirmations", lambda: replace(FACTS, confirmed=(2, 0))),
    ("type_04_file_says_the_same", lambda: replace(FACTS, written={"a": ("", 1000)})),
    ("type_04_file_says_the_same", lambda: replace(FACTS, written={})),
    ("the_same_file_changes_nothing", lambda: replace(FACTS, repeated=with_end("a", REJECTED))),
    ("the_same_file_changes_nothing", lambda: replace(FACTS, repeated_packages=1)),
    ("units_conserved", lambda: replace(FACTS, units={"000198": Units(1000, 1, 1000)})),
    ("units_conserved", lambda: replace(FACTS, expected_units={"000198": 999})),
    ("anchored_with_both_signatures", lambda: replace(FACTS, anchors=[])),
    (
        "anchored_with_both_signatures",
        lambda: replace(FACTS, anchors=[replace(FACTS.anchors[0], status="CLAIMED")]),
    ),
    ("anchored_with_both_signatures", lambda: replace(FACTS, ends=with_end("a", replace(CONFIRMED, height=0)))),
    ("anchored_with_both_signatures", lambda: replace(FACTS, packages={ROOT: "issuer-c", OTHER: "issuer-c"})),
    ("a_package_takes_one_anchor", lambda: replace(FACTS, anchors=[*FACTS.anchors, *FACTS.anchors])),
    ("a_package_takes_one_anchor", lambda: replace(FACTS, ends=with_end("b", replace(REJECTED, root=OTHER)))),
    ("disclosure_verified_offline", lambda: replace(FACTS, disclosed=("CLAIMED", "bad_signature"))),
    ("disclosure_verified_offline", lambda: replace(FACTS, disclosed=("MUTUAL", "MUTUAL"))),
    ("channels_follow_agreements", lambda: replace(FACTS, channels={"bank-a/issuer-d": "OPEN"})),
    ("channels_follow_agreements", lambda: replace(FACTS, channels={"bank-a/issuer-c": "REVOKED"})),
    ("terms_changed_together", lambda: replace(FACTS, terms=(1, 1))),
    ("bad_input_refused", lambda: replace(FACTS, answers={"no signature": ("", "signature_missing")})),
    ("nobody_else_learned_it", lambda: replace(FACTS, leaks={"account": ["permission/data"]})),
    ("nobody_else_learned_it", lambda: replace(FACTS, control_count=9)),
    ("trade_goes_on_without_permission", lambda: replace(FACTS, ended_without_permission=0)),
    ("joins_wait_for_permission", lambda: replace(FACTS, joined=("OPENED", "OPENED"))),
    ("killed_programs_returned", lambda: replace(FACTS, crashes=[Crash("issuer-c-end", 0)])),
    ("killed_programs_returned", lambda: replace(FACTS, crashes=[])),
    ("state_roots_agree", lambda: replace(FACTS, seals={**FACTS.seals, "bank-a": (9, OTHER)})),
]


def test_everything_holds() -> None:
    verdict = judge(FACTS)
    assert verdict == dict.fromkeys(verdict, True)
    assert set(verdict) == {name for name, _ in BREAKS}


@pytest.mark.parametrize(("name", "broken"), BREAKS, ids=[f"{name}-{at}" for at, (name, _) in enumerate(BREAKS)])
def test_a_broken_invariant_is_named(name: str, broken: Break) -> None:
    assert judge(broken())[name] is False
