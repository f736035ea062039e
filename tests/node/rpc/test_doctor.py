"""What the doctor says of an engine's state."""

from dataclasses import replace

import pytest

from consensus.ledger.ids import Hash, NodeName
from consensus.pbft.events import EngineStatus, Evidence, EvidenceKind, PeerStatus, Phase
from node.rpc.doctor import MISSED_BLOCKS_MAX, SILENT_MS_MAX, STALLED_MS_MAX, diagnose
from node.votes import LastVote, VoteReport

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
}


@pytest.mark.parametrize(("status", "connected", "codes"), CASES.values(), ids=CASES.keys())
def test_findings(status: EngineStatus, connected: frozenset[NodeName], codes: list[str]) -> None:
    findings = diagnose(status, SILENCE, NAMES[0], connected, NOW_MS)
    assert [finding.code for finding in findings] == codes
    assert (findings[0].level == "stuck") == (codes[0] == "no_quorum")


def test_missing_votes_are_named() -> None:
    late = replace(HEALTHY, phase=Phase.PREPARING, deadline_in_ms=0, prepares=NAMES[:2])
    (finding,) = diagnose(late, SILENCE, NAMES[0], OTHERS, NOW_MS)
    assert finding.message.endswith("node-2, node-3")


def codes(votes: VoteReport, status: EngineStatus = HEALTHY) -> list[str]:
    return [finding.code for finding in diagnose(status, votes, NAMES[0], OTHERS, NOW_MS)]


def test_a_connected_validator_that_lets_blocks_pass_is_named() -> None:
    votes = replace(SILENCE, last={NAMES[2]: LastVote(4, 0)}, missed={NAMES[2]: MISSED_BLOCKS_MAX + 1})
    (finding,) = diagnose(HEALTHY, votes, NAMES[0], OTHERS, NOW_MS)
    assert finding.code == "not_voting"
    assert finding.message == "node-2 is connected and voted last for height 4; 3 blocks passed since"
    assert codes(replace(votes, missed={NAMES[2]: MISSED_BLOCKS_MAX})) == ["healthy"]


def test_too_few_voters_are_no_quorum_whoever_is_connected() -> None:
    stalled = replace(SILENCE, voting_since_ms=NOW_MS - STALLED_MS_MAX - 1, unheard=NAMES[2:])
    assert codes(stalled) == ["no_quorum", "not_voting", "not_voting"]
    finding = diagnose(HEALTHY, stalled, NAMES[0], OTHERS, NOW_MS)[0]
    assert finding.level == "stuck"
    assert finding.message == "2 of 4 validators vote, 3 are needed; not voting: node-2, node-3"
    assert codes(replace(stalled, voting_since_ms=NOW_MS - STALLED_MS_MAX)) == ["healthy"]
    missed = replace(SILENCE, missed={NAMES[3]: MISSED_BLOCKS_MAX + 1})
    assert codes(missed, replace(HEALTHY, is_validator=False))[0] == "no_quorum"


def test_a_node_that_is_no_member_says_so() -> None:
    status = replace(HEALTHY, is_validator=False)
    assert [item.code for item in diagnose(status, SILENCE, NodeName("guest"), frozenset(NAMES), NOW_MS)] == [
        "no_validator"
    ]
