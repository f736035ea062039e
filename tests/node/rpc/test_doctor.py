"""What the doctor says of an engine's state."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.ids import Hash, NodeName
from consensus.pbft.events import EngineStatus, Evidence, EvidenceKind, PeerStatus, Phase
from node.rpc.clocks import WARN_MS
from node.rpc.clocks import findings as clock_findings
from node.rpc.doctor import (
    BAD_TURN_MS_MAX,
    MISSED_BLOCKS_MAX,
    SAID_MS_MAX,
    SILENT_MS_MAX,
    STALLED_MS_MAX,
    Facts,
    diagnose,
    roll_call,
)
from node.rpc.finding import Finding
from node.votes import LastVote, Standing, VoteReport
from p2p.clock import ClockOffset
from p2p.status import PeerStatus as Link

NAMES = tuple(NodeName(f"node-{number}") for number in range(4))
OTHERS = frozenset(NAMES[1:])
NOW_MS = 1_000_000

HEALTHY = EngineStatus(
    height=9,
    view=0,
    phase=Phase.OPEN,
    primary=NAMES[1],
    is_validator=True,
    validators=NAMES,
    quorum=3,
    block_hash=None,
    prepares=(),
    commits=(),
    view_changes={},
    timeout_ms=1_000,
    deadline_in_ms=None,
    suspected=(),
    evidence=None,
    peers={name: PeerStatus(height=9, view=0, seen_ms=NOW_MS) for name in NAMES[1:]},
)


SILENCE = VoteReport(last={}, missed={}, voting_since_ms=None, unheard=NAMES)


def link(name: str, state: str = "down", last_error: str = "unreachable", **more: object) -> Link:
    return Link(NodeName(name), state, "127.0.0.1:26601", 0, last_error, **more)  # type: ignore[arg-type]


def facts(
    status: EngineStatus = HEALTHY,
    votes: VoteReport = SILENCE,
    connected: frozenset[NodeName] = OTHERS,
    node: NodeName = NAMES[0],
    **more: object,
) -> Facts:
    links = [link(name, "connected" if name in connected else "down") for name in NAMES if name != node]
    return Facts(node=node, now_ms=NOW_MS, status=status, votes=votes, **{"peers": links, **more})  # type: ignore[arg-type]


def peers(**changes: PeerStatus) -> dict[NodeName, PeerStatus]:
    return {**HEALTHY.peers, **{NodeName(name.replace("_", "-")): status for name, status in changes.items()}}


CASES = {
    "healthy": (HEALTHY, OTHERS, ["healthy"]),
    "one away": (HEALTHY, OTHERS - {NAMES[3]}, ["validators_away"]),
    "two away": (HEALTHY, OTHERS - {NAMES[2], NAMES[3]}, ["no_quorum"]),
    "primary away": (HEALTHY, OTHERS - {NAMES[1]}, ["validators_away", "primary_away"]),
    "one silent": (
        replace(HEALTHY, peers=peers(node_2=PeerStatus(9, 0, NOW_MS - SILENT_MS_MAX - 1))),
        OTHERS,
        ["validators_away"],
    ),
    "other view": (replace(HEALTHY, peers=peers(node_2=PeerStatus(9, 2, NOW_MS))), OTHERS, ["different_views"]),
    "one behind": (replace(HEALTHY, peers=peers(node_2=PeerStatus(7, 0, NOW_MS))), OTHERS, ["behind"]),
    "we behind": (replace(HEALTHY, peers=peers(node_2=PeerStatus(11, 0, NOW_MS))), OTHERS, ["we_are_behind"]),
    "view change": (replace(HEALTHY, phase=Phase.VIEW_CHANGE, view=1), OTHERS, ["view_change", "different_views"]),
    "prepares late": (
        replace(HEALTHY, phase=Phase.PREPARING, deadline_in_ms=0, prepares=NAMES[:2]),
        OTHERS,
        ["prepares_missing"],
    ),
    "commits late": (replace(HEALTHY, phase=Phase.COMMITTING, deadline_in_ms=0), OTHERS, ["commits_missing"]),
    "evidence": (
        replace(HEALTHY, evidence=Evidence(EvidenceKind.DOUBLE_PREPARE, NAMES[3], 4, 0, b"", b"")),
        OTHERS,
        ["evidence"],
    ),
    "spectator": (replace(HEALTHY, is_validator=False, block_hash=Hash(bytes(32))), OTHERS, ["not_voting"]),
    "slow primary": (replace(HEALTHY, suspected=(NAMES[2],)), OTHERS, ["slow_primary"]),
    "suspect that is away": (replace(HEALTHY, suspected=(NAMES[2],)), OTHERS - {NAMES[2]}, ["validators_away"]),
}


@pytest.mark.parametrize(("status", "connected", "codes"), CASES.values(), ids=CASES.keys())
def test_findings(status: EngineStatus, connected: frozenset[NodeName], codes: list[str]) -> None:
    findings = diagnose(facts(status, connected=connected))
    assert [finding.code for finding in findings] == codes
    assert (findings[0].level == "stuck") == (codes[0] == "no_quorum")


def test_a_bad_turn_of_long_ago_is_only_noted() -> None:
    status = replace(HEALTHY, suspected=(NAMES[2],), failed_ms={NAMES[2]: NOW_MS - BAD_TURN_MS_MAX - 1})
    found = diagnose(facts(status))
    assert [(item.level, item.code) for item in found] == [("ok", "healthy"), ("note", "slow_primary")]
    assert found[1].message == "as primary node-2 failed 10 s ago and has not had a good turn since"
    recent = replace(status, failed_ms={NAMES[2]: NOW_MS - BAD_TURN_MS_MAX})
    assert [item.level for item in diagnose(facts(recent))] == ["warning"]


def test_missing_votes_are_named() -> None:
    late = replace(HEALTHY, phase=Phase.PREPARING, deadline_in_ms=0, prepares=NAMES[:2])
    (finding,) = diagnose(facts(late))
    assert finding.message.endswith("node-2, node-3")


def codes(votes: VoteReport, status: EngineStatus = HEALTHY) -> list[str]:
    return [finding.code for finding in diagnose(facts(status, votes))]


def test_a_connected_validator_that_lets_blocks_pass_is_named() -> None:
    votes = replace(SILENCE, last={NAMES[2]: LastVote(4, 0)}, missed={NAMES[2]: MISSED_BLOCKS_MAX + 1})
    (finding,) = diagnose(facts(votes=votes))
    assert finding.code == "not_voting"
    assert finding.message == "node-2 is connected and voted last for height 4; 3 blocks passed since"
    assert codes(replace(votes, missed={NAMES[2]: MISSED_BLOCKS_MAX})) == ["healthy"]


def test_too_few_voters_are_no_quorum_whoever_is_connected() -> None:
    stalled = replace(SILENCE, voting_since_ms=NOW_MS - STALLED_MS_MAX - 1, unheard=NAMES[2:])
    assert codes(stalled) == ["no_quorum", "not_voting", "not_voting"]
    finding = diagnose(facts(votes=stalled))[0]
    assert finding.level == "stuck"
    assert finding.message == "2 of 4 validators vote, 3 are needed; not voting: node-2, node-3"
    assert codes(replace(stalled, voting_since_ms=NOW_MS - STALLED_MS_MAX)) == ["healthy"]
    missed = replace(SILENCE, missed={NAMES[3]: MISSED_BLOCKS_MAX + 1})
    assert codes(missed, replace(HEALTHY, is_validator=False))[0] == "no_quorum"


def test_a_node_that_is_no_member_says_so() -> None:
    status = replace(HEALTHY, is_validator=False)
    links = [link(name, "connected") for name in NAMES]
    outside = facts(status, node=NodeName("guest"), standing=Standing.OUTSIDE, peers=links)
    assert [item.code for item in diagnose(outside)] == ["no_validator"]
    refused = [replace(link(name, "down"), last_error="refused_by_peer") for name in NAMES]
    alone = diagnose(replace(outside, peers=refused))
    assert alone[0].code == "no_validator"
    assert "removed" in alone[0].message
    assert "no_quorum" not in {item.code for item in alone}
    healthy, finding = diagnose(replace(outside, standing=Standing.OBSERVING))
    assert (healthy.code, finding.level, finding.code) == ("healthy", "note", "no_validator")
    assert finding.advice == "hansa member add guest seats it"


def test_a_node_that_catches_up_is_not_told_to_be_admitted_again() -> None:
    links = [link(name, "connected") for name in NAMES]
    status = replace(HEALTHY, is_validator=False)
    outside = facts(status, node=NodeName("guest"), standing=Standing.OUTSIDE, peers=links, certified_height=99)
    assert [item.code for item in diagnose(outside)] == ["we_are_behind"]


@pytest.mark.parametrize(
    ("standing", "why", "advice"),
    [
        (Standing.NO_LOG, "data were wiped", "hansa node rejoin node-0"),
        (Standing.OTHER_KEY, "another vote key", "hansa node rejoin node-0"),
        (Standing.VOTING, "counts from the next block on", ""),
    ],
)
def test_why_a_validator_casts_no_vote_and_the_way_out(standing: Standing, why: str, advice: str) -> None:
    (finding,) = diagnose(facts(replace(HEALTHY, is_validator=False), standing=standing))
    assert (finding.code, finding.about) == ("not_voting", NAMES[0])
    assert why in finding.message
    assert advice in finding.advice


def test_why_a_node_is_away_is_said() -> None:
    links = [link(NAMES[1], "connected"), link(NAMES[2], "connected"), link(NAMES[3], last_error="handshake_timeout")]
    (finding,) = diagnose(facts(peers=links))
    assert finding.code == "validators_away"
    assert "node-3 (127.0.0.1:26601 takes connections and does not answer: frozen or overloaded)" in finding.message
    others = diagnose(facts(peers=[*links[:2], link(NAMES[3], last_error="wrong_chain")]))
    assert [(item.code, item.about) for item in others] == [("validators_away", ""), ("other_chain", NAMES[3])]
    assert "genesis.json" in others[1].advice
    barred = diagnose(facts(peers=[*links[:2], link(NAMES[3], last_error="untrusted_certificate")]))
    assert [(item.code, item.about) for item in barred] == [("validators_away", ""), ("not_let_in", NAMES[3])]
    assert diagnose(facts(peers=[*links[:2], link(NAMES[3], last_error="new_code")]))[0].message.startswith(
        "away: node-3 (new_code)"
    )


def test_two_processes_under_one_name_are_told() -> None:
    links = [link(NAMES[1], "connected", is_doubled=True), *(link(name, "connected") for name in NAMES[2:])]
    (finding,) = diagnose(facts(peers=links))
    assert (finding.code, finding.about) == ("two_processes", NAMES[1])
    assert "hansa node rejoin node-1" in finding.advice


def test_every_guilty_validator_is_named_once_with_its_newest_proof() -> None:
    proofs = [
        Evidence(EvidenceKind.DOUBLE_PREPARE, NAMES[3], 4, 0, b"", b""),
        Evidence(EvidenceKind.INVALID_PROPOSAL, NAMES[2], 5, 0, b"", b"", "result_mismatch"),
        Evidence(EvidenceKind.DOUBLE_COMMIT, NAMES[3], 6, 0, b"", b""),
    ]
    found = diagnose(facts(evidence=proofs))
    assert [(item.code, item.about) for item in found] == [("evidence", NAMES[2]), ("evidence", NAMES[3])]
    assert found[0].message == "node-2 has proposed an invalid block (result_mismatch) at height 5"
    assert found[1].message == "node-3 is proven guilty of double_commit at height 6"


def test_who_is_behind_is_not_called_idle() -> None:
    status = replace(HEALTHY, peers=peers(node_2=PeerStatus(4, 0, NOW_MS)))
    votes = replace(SILENCE, missed={NAMES[2]: 5})
    (finding,) = diagnose(facts(status, votes))
    assert (finding.code, finding.about) == ("behind", NAMES[2])
    assert roll_call(facts(status, votes)).idle == (NAMES[2],)


def test_who_fell_silent_while_connected_is_not_said_to_catch_up() -> None:
    status = replace(HEALTHY, peers=peers(node_2=PeerStatus(4, 0, NOW_MS - SAID_MS_MAX - 1)))
    (finding,) = diagnose(facts(status, replace(SILENCE, missed={NAMES[2]: 5})))
    assert (finding.code, finding.about) == ("not_voting", NAMES[2])


def test_who_votes_for_newer_blocks_than_it_named_a_moment_ago_is_not_behind() -> None:
    status = replace(HEALTHY, peers=peers(node_2=PeerStatus(4, 0, NOW_MS)))
    (finding,) = diagnose(facts(status, replace(SILENCE, last={NAMES[2]: LastVote(9, NOW_MS)})))
    assert finding.code == "healthy"


def test_a_node_that_catches_up_says_how_far_it_is() -> None:
    (finding,) = diagnose(facts(certified_height=40))
    assert (finding.code, finding.about) == ("we_are_behind", NAMES[0])
    assert finding.message == "node-0 works on height 9, others on 41: 32 blocks to catch up"


def clocks(offsets: Mapping[str, int], uncertainty_ms: int = 2) -> list[Finding]:
    known = {NodeName(name): ClockOffset(ahead_ms, uncertainty_ms) for name, ahead_ms in offsets.items()}
    return clock_findings(NAMES[0], known)


def test_whose_clock_is_off_is_told_by_the_majority() -> None:
    assert clocks({"node-1": 4_000, "node-2": -900, "node-3": 10}) == []
    (finding,) = clocks({"node-1": 14_000, "node-2": -100, "node-3": 100})
    assert (finding.code, finding.about) == ("clock_off", "node-1")
    assert finding.message == "the clock of node-1 is 14.0 s ahead of those of node-0, node-2, node-3 (± 0.002 s)"
    assert "NTP" in finding.advice
    (own,) = clocks({"node-1": 14_000, "node-2": 14_100, "node-3": 13_900})
    assert (own.code, own.about) == ("clock_off", "node-0")
    assert "14.0 s behind those of node-1, node-2, node-3" in own.message
    (finding,) = diagnose(facts(peers=[link(name, "connected", clock=ClockOffset(-8_000, 1)) for name in NAMES[1:]]))
    assert (finding.code, finding.about) == ("clock_off", NAMES[0])


def test_two_clocks_alone_do_not_tell_which_is_right() -> None:
    (finding,) = clocks({"node-1": -9_000})
    assert (finding.code, finding.about) == ("clocks_disagree", "")
    assert finding.message.endswith("node-0 +0.0 s, node-1 -9.0 s")
    assert clocks({"node-1": 9_000}, uncertainty_ms=4_001) == []  # what is known badly accuses nobody


@given(st.dictionaries(st.sampled_from([*NAMES[1:], "x", "y"]), st.integers(-(2**53), 2**53), max_size=5))
def test_nobody_with_the_majority_is_ever_accused(offsets: dict[str, int]) -> None:
    known = {str(NAMES[0]): 0, **offsets}
    for finding in clocks(offsets, uncertainty_ms=0):
        assert finding.code in ("clock_off", "clocks_disagree")
        near = [name for name in known if abs(known[name] - known.get(finding.about, 0)) <= WARN_MS // 2]
        assert not finding.about or 2 * len(near) <= len(known)
