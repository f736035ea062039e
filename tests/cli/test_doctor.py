"""One diagnosis out of what several nodes, and the processes of a local network, say."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from cli.doctor import Process, Visit, merge
from services.client.errors import Unreachable

NAMES = ["a", "b", "c", "d"]


def visit(
    name: str,
    *findings: dict[str, Any],
    votes: bool = True,
    height: int = 9,
    connected: Sequence[str] | None = None,
    idle: Sequence[str] = (),
    away: Mapping[str, str] | None = None,
) -> Visit:
    """What a node says, of itself and of others."""
    status = {"height": height, "isValidator": votes, "validators": NAMES, "quorum": 3}
    links = [other for other in NAMES if other != name] if connected is None else list(connected)
    missing = {other: "nothing answers" for other in NAMES if other not in (name, *links)} if away is None else away
    answer = {"node": name, "findings": list(findings), "status": status, "connected": links, "idle": list(idle)}
    return Visit({**answer, "away": missing})


def finding(code: str, message: str = "", about: str | None = None, level: str = "warning") -> dict[str, Any]:
    return {"level": level, "code": code, "message": message, "about": about, "advice": None}


HEALTHY = finding("healthy", level="ok")
SILENT = Visit(None, "no answer within 3000 ms", "node_timeout")
STOPPED = Process("stopped", None, "killed", "killed: its log breaks off")


def found(processes: dict[str, Process] | None = None, **visits: Visit) -> list[dict[str, Any]]:
    """The findings where all nodes are well but those given."""
    answer = merge({name: visit(name, HEALTHY) for name in NAMES} | visits, processes)
    findings: list[dict[str, Any]] = answer["findings"]
    assert answer["healthy"] == answer["ok"] == (findings[0]["code"] == "healthy")
    return findings


def codes(processes: dict[str, Process] | None = None, **visits: Visit) -> list[str]:
    return [item["code"] for item in found(processes, **visits)]


def test_all_well() -> None:
    assert codes() == ["healthy"]


def test_a_note_leaves_a_network_healthy() -> None:
    note = finding("slow_primary", "d failed 30 s ago", "d", level="note")
    items = found(a=visit("a", HEALTHY, note), b=visit("b", HEALTHY, note))
    assert [(item["code"], item["level"]) for item in items] == [("healthy", "ok"), ("slow_primary", "note")]


def test_who_observes_says_so_itself_though_the_others_see_nothing_yet() -> None:
    own = finding("not_voting", "d follows the chain", "d")
    assert codes(d=visit("d", own, votes=False)) == ["not_voting"]
    by_others = finding("not_voting", "d is connected", "d")
    (item,) = found(a=visit("a", by_others), b=visit("b", by_others), d=visit("d", own, votes=False))
    assert item["message"] == "d follows the chain"


def test_two_that_do_not_vote_are_no_quorum_with_both_names() -> None:
    own = {name: visit(name, finding("not_voting", "", name), votes=False) for name in ("c", "d")}
    assert codes(**own) == ["no_quorum", "not_voting", "not_voting"]
    others = {name: visit(name, connected=["a", "b", "c"]) for name in ("a", "b")}
    mixed = found(**others, c=visit("c", votes=False, connected="ab"), d=SILENT)
    assert mixed[0]["message"] == ("2 of 4 validators vote together, 3 are needed; missing: c (not voting), d (silent)")
    assert mixed[0]["advice"] == "bring back 1 of them; what is submitted waits until then"


def test_an_rpc_that_does_not_answer_is_no_missing_vote() -> None:
    (item,) = found(d=SILENT)
    assert (item["code"], item["about"]) == ("node_silent", "d")
    assert "connected with it: a, b, c" in item["message"]
    frozen = found({"d": Process("frozen", 77)}, d=SILENT, c=SILENT)
    assert [(item["code"], item["about"]) for item in frozen] == [("node_silent", "c"), ("node_frozen", "d")]
    assert frozen[1]["advice"] == "kill -CONT 77 wakes it"


def test_stopped_processes_are_named_with_their_last_words_and_the_way_out() -> None:
    full = Process("stopped", None, "disk_failed", "exit 3, disk_failed: No space left on device")
    items = found({"c": full, "d": STOPPED}, c=Visit(None, "refused"), d=Visit(None, "refused"))
    assert [(item["code"], item["about"]) for item in items] == [
        ("no_quorum", None),
        ("node_stopped", "c"),
        ("node_stopped", "d"),
    ]
    assert items[0]["message"].endswith("missing: c (stopped), d (stopped)")
    assert items[1]["message"] == "c does not run: exit 3, disk_failed: No space left on device"
    assert "make room" in items[1]["advice"]
    assert "network up" in items[2]["advice"]


def test_what_others_say_of_a_stopped_node_is_left_out() -> None:
    others = [finding("validators_away", "away: d"), finding("not_voting", "", "d"), finding("slow_primary", "", "d")]
    assert codes({"d": STOPPED}, a=visit("a", *others, connected="bc"), d=SILENT) == ["node_stopped"]
    guilty = finding("evidence", "", "d")
    assert codes({"d": STOPPED}, a=visit("a", guilty, connected="bc"), d=SILENT) == ["node_stopped", "evidence"]


def test_a_node_that_is_cut_off_does_not_make_the_network_stuck() -> None:
    lonely = visit("d", finding("no_quorum", "1 of 4", level="stuck"), finding("view_change", "view 3"), connected="")
    others = {name: visit(name, finding("validators_away", "away: d"), connected="abc") for name in "abc"}
    (item,) = found(**others, d=lonely)
    assert (item["code"], item["about"], item["level"]) == ("cut_off", "d", "warning")
    assert item["message"] == "d runs and reaches no other validator; a says: nothing answers"
    assert "between d and a, b, c" in item["advice"]


def test_two_halves_are_no_quorum_and_named() -> None:
    halves = {name: visit(name, connected="ab" if name in "ab" else "cd") for name in NAMES}
    items = found(**halves)
    assert [item["code"] for item in items] == ["no_quorum", "cut_off"]
    assert items[0]["message"].endswith(
        "2 of 4 validators vote together, 3 are needed; missing: c (cut off), d (cut off)"
    )
    assert items[1]["message"] == "c, d reach each other and no other validator"


def test_a_single_dead_link_is_named() -> None:
    (item,) = found(c=visit("c", connected="ab"), d=visit("d", connected="ab"))
    assert (item["code"], item["message"]) == ("link_down", "c and d do not reach each other, though both reach others")


def test_another_chain_is_named() -> None:
    (item,) = found(d=Visit(None, "the node serves chain 0x…", "wrong_chain"))
    assert (item["code"], item["about"]) == ("other_chain", "d")
    assert "genesis.json" in item["advice"]


def test_who_says_itself_that_it_is_behind_is_not_said_to_be_by_others() -> None:
    own = visit("d", finding("we_are_behind", "d works on height 3", "d"), height=3)
    assert codes(a=visit("a", finding("behind", "", "d")), d=own) == ["we_are_behind"]


def test_symptoms_stand_once_and_not_at_all_without_a_quorum() -> None:
    late = finding("view_change", "view 1 waits")
    assert codes(a=visit("a", late), b=visit("b", late | {"message": "view 2 waits"})) == ["view_change"]
    two = {name: Visit(None, "refused") for name in "cd"}
    down = dict.fromkeys("cd", STOPPED)
    assert "view_change" not in codes(down, a=visit("a", late, connected="b"), b=visit("b", connected="a"), **two)


def test_of_nodes_that_were_not_asked_the_others_and_the_processes_tell() -> None:
    only = {"a": visit("a", finding("no_quorum", "1 of 4", level="stuck"), connected="b")}
    items = merge(only, {"c": Process("frozen", 5), "d": Process("running")})["findings"]
    assert [(item["code"], item["about"]) for item in items] == [
        ("no_quorum", None),
        ("node_frozen", "c"),
        ("validators_away", "d"),
    ]
    assert items[0]["message"].endswith("2 of 4 validators vote together, 3 are needed; missing: c (frozen), d (away)")
    assert items[2]["message"] == "d is away; a says: nothing answers"
    assert [item["code"] for item in merge({"a": visit("a", HEALTHY)})["findings"]] == ["healthy"]


def test_nodes_may_be_asked_by_url() -> None:
    by_url = {f"http://{name}": visit(name, HEALTHY) for name in NAMES}
    assert [item["code"] for item in merge(by_url)["findings"]] == ["healthy"]
    part = merge({"http://a": visit("a", HEALTHY), "http://d": Visit(None, "refused")})["findings"]
    assert [(item["code"], item["about"]) for item in part] == [("node_silent", "http://d")]


def test_nobody_answers() -> None:
    silent = dict.fromkeys(NAMES, SILENT)
    with pytest.raises(Unreachable):
        merge(silent)
    answer = merge(silent, dict.fromkeys(NAMES, STOPPED))
    assert [item["code"] for item in answer["findings"]] == ["no_quorum", *["node_stopped"] * 4]
    assert not answer["ok"]
