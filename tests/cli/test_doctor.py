"""One diagnosis out of what several nodes say."""

from typing import Any

from cli.doctor import Visit, merge

NAMES = ["a", "b", "c", "d"]


def visit(name: str, *findings: dict[str, Any], votes: bool = True, height: int = 9) -> Visit:
    """What a node says, of itself and of others."""
    status = {"height": height, "isValidator": votes, "validators": NAMES, "quorum": 3}
    return Visit({"node": name, "findings": list(findings), "status": status})


def finding(code: str, message: str = "", about: str | None = None, level: str = "warning") -> dict[str, Any]:
    return {"level": level, "code": code, "message": message, "about": about}


HEALTHY = finding("healthy", level="ok")


def codes(**visits: Visit) -> list[str]:
    found = merge({"a": visit("a", HEALTHY), "b": visit("b", HEALTHY), "c": visit("c"), "d": visit("d")} | visits)
    assert found["healthy"] == (found["findings"][0]["code"] == "healthy")
    assert found["ok"] == found["healthy"]
    return [item["code"] for item in found["findings"]]


def test_all_well() -> None:
    assert codes() == ["healthy"]


def test_who_observes_says_so_itself_though_the_others_see_nothing_yet() -> None:
    own = finding("not_voting", "d follows the chain", "d")
    assert codes(d=visit("d", own, votes=False)) == ["not_voting"]
    by_others = finding("not_voting", "d is connected", "d")
    found = merge({"a": visit("a", by_others), "b": visit("b", by_others), "d": visit("d", own, votes=False)})
    assert [item["message"] for item in found["findings"]] == ["d follows the chain"]


def test_two_that_do_not_vote_are_no_quorum_with_both_names() -> None:
    own = {name: visit(name, finding("not_voting", "", name), votes=False) for name in ("c", "d")}
    assert codes(**own) == ["no_quorum", "not_voting", "not_voting"]
    mixed = merge({"a": visit("a"), "b": visit("b"), "c": own["c"], "d": Visit(None, "no answer within 3000 ms")})
    assert mixed["findings"][0]["message"] == (
        "2 of 4 validators vote, 3 are needed; missing: c (not voting), d (silent)"
    )


def test_a_frozen_node_is_known_by_its_silence() -> None:
    assert codes(d=Visit(None, "no answer within 3000 ms")) == ["node_silent"]


def test_what_several_see_stands_once_and_the_gravest_first() -> None:
    away = finding("validators_away", "away: d")
    stuck = finding("no_quorum", "2 of 4", level="stuck")
    assert codes(a=visit("a", away), b=visit("b", away, stuck)) == ["no_quorum", "validators_away"]
