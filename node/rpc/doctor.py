"""What keeps the chain from going on, in words: what the quorum lacks, who is silent, behind, in another view. Pure.

One node's view. ``hansa consensus doctor`` asks them all and merges what they say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from consensus.ledger.ids import NodeName
from consensus.pbft.events import EngineStatus, Evidence, EvidenceKind, Phase
from node.rpc import clocks
from node.rpc.finding import Finding
from node.votes import Standing, VoteReport
from p2p.status import PeerStatus

SILENT_MS_MAX = 40_000
"""A validator that said nothing for this long counts as silent; while idle, one speaks every 30 s."""
MISSED_BLOCKS_MAX = 2
"""A connected validator that let more blocks in a row pass without a vote counts as not voting."""
STALLED_MS_MAX = 5_000
"""When votes for a height began so long ago, who has not voted for it counts as not voting."""
SAID_MS_MAX = 3_000
"""For how long a height that a validator names counts: it names one every second as long as it is awake."""
BAD_TURN_MS_MAX = 10_000
"""A primary whose last bad turn is longer ago is only noted: its next turn may be minutes away while idle."""
BEHIND_BLOCKS_MIN = 2
"""A replica that is so many heights lower is behind; one may be between two commits."""

_LINK_ERRORS = {
    "": "not connected yet",
    "unreachable": "nothing answers at {address}",
    "handshake_timeout": "{address} takes connections and does not answer: frozen or overloaded",
    "silent": "its connection fell silent: frozen, overloaded or cut off",
    "connection_lost": "the connection broke off",
    "not_reading": "it does not read what it is sent",
    "shutting_down": "it was shut down",
    "wrong_chain": "its genesis file is of another chain",
    "untrusted_certificate": "its TLS certificate is of no root in the genesis file, or out of date",
    "tls_failed": "TLS fails: a wrong or expired certificate, or no node of Hansa",
    "unexpected_peer": "another node answers at {address}",
    "unsupported_version": "it speaks another version of the protocol",
    "not_admitted": "its certificate is not, or no longer, admitted",
    "refused_by_peer": "it refuses us",
    "refused_for_a_while": "it made too many errors and is refused for a while",
}
"""What a peer's last error means; ``p2p`` gives the code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What one node knows of itself and the others; times by its monotonic clock.

    ``peers`` are all other nodes, connected or not; ``certified_height`` is the highest block that a
    certificate has been seen for.
    """

    node: NodeName
    now_ms: int
    status: EngineStatus
    votes: VoteReport
    peers: Sequence[PeerStatus]
    standing: Standing = Standing.VOTING
    evidence: Sequence[Evidence] = ()
    certified_height: int = 0

    @property
    def connected(self) -> frozenset[NodeName]:
        """The peers with a session."""
        return frozenset(peer.name for peer in self.peers if peer.connected)


@dataclass(frozen=True, slots=True)
class Roll:
    """Who takes part in the next block, as far as one node sees it; ``away`` says of each why, ``idle`` ascends."""

    away: dict[NodeName, str]
    idle: tuple[NodeName, ...]
    voting: int


def roll_call(facts: Facts) -> Roll:
    """Return who is away, who is here and does not vote, and how many vote."""
    status = facts.status
    connected = facts.connected
    missing = [name for name in status.validators if name != facts.node and _is_away(facts, name, connected)]
    away = {name: _why_away(facts, name) for name in missing}
    idle = tuple(name for name in status.validators if name not in away and not _votes(facts, name))
    return Roll(away, idle, len(status.validators) - len(away) - len(idle))


def diagnose(facts: Facts) -> list[Finding]:
    """Return what stands in the way of the next block, the gravest first."""
    status, roll = facts.status, roll_call(facts)
    if facts.standing is Standing.OUTSIDE and not facts.connected:
        return _own(facts) + _links(facts)  # whom nobody lets in can tell nothing of the others
    findings = _quorum(facts, roll) + _own(facts) + _idle(facts, roll) + _links(facts)
    if status.primary in roll.away:
        findings.append(Finding("warning", "primary_away", f"the primary {status.primary} is away"))
    findings += clocks.findings(facts.node, {peer.name: peer.clock for peer in facts.peers if peer.clock is not None})
    findings += _progress(status) + _slow(facts, roll) + _views(status, roll) + _behind(facts, roll) + _guilt(facts)
    if any(item.level in ("stuck", "warning") for item in findings):
        return findings
    count = len(status.validators)
    return [Finding("ok", "healthy", f"all {count} validators take part; {status.quorum} decide"), *findings]


# -- who takes part ----------------------------------------------------------------------------------------


def _is_away(facts: Facts, name: NodeName, connected: frozenset[NodeName]) -> bool:
    if name not in connected:
        return True
    seen = facts.status.peers.get(name)
    return seen is not None and facts.now_ms - seen.seen_ms > SILENT_MS_MAX


def _votes(facts: Facts, name: NodeName) -> bool:
    """Tell whether a validator that is here votes, as far as can be seen."""
    votes = facts.votes
    if name == facts.node:
        return facts.status.is_validator
    since_ms = votes.voting_since_ms
    is_stalled = since_ms is not None and facts.now_ms - since_ms > STALLED_MS_MAX
    return votes.missed.get(name, 0) <= MISSED_BLOCKS_MAX and not (is_stalled and name in votes.unheard)


def _quorum(facts: Facts, roll: Roll) -> list[Finding]:
    status, count = facts.status, len(facts.status.validators)
    away = ", ".join(f"{name} ({why})" for name, why in roll.away.items())
    if roll.voting < status.quorum:
        missing = [
            f"{what}: {names}" for what, names in (("away", away), ("not voting", ", ".join(roll.idle))) if names
        ]
        message = f"{roll.voting} of {count} validators vote, {status.quorum} are needed; {'; '.join(missing)}"
        needed = status.quorum - roll.voting
        advice = f"bring back {needed} of them; what is submitted waits until then"
        return [Finding("stuck", "no_quorum", message, advice=advice)]
    if roll.away:
        message = f"away: {away}; the quorum of {status.quorum} stands with {roll.voting} of {count}"
        return [Finding("warning", "validators_away", message, advice="look at these nodes: hansa network status")]
    return []


def _why_away(facts: Facts, name: NodeName) -> str:
    peer = next((peer for peer in facts.peers if peer.name == name), None)
    if peer is None:
        return "not configured here"
    if peer.connected:
        return "connected, and says nothing"
    return _LINK_ERRORS.get(peer.last_error, peer.last_error).format(address=peer.address or "its address")


def _own(facts: Facts) -> list[Finding]:
    """Say why this node itself does not vote."""
    node, is_member = facts.node, facts.node in facts.status.validators
    if facts.status.is_validator:
        return []
    match facts.standing:
        case Standing.VOTING if is_member:
            why, advice = "does not vote at this height; its seat counts from the next block on", ""
        case Standing.NO_LOG:
            why = "casts no vote: its data were wiped or are an older copy, and its key could contradict what it signed"
            advice = f"hansa node rejoin {node} lets it join again under a new key"
        case Standing.OTHER_KEY:
            why = "casts no vote: the chain names another vote key for it than this process holds"
            advice = f"start it with the key that the chain names; hansa node rejoin {node} makes a new one"
        case Standing.OBSERVING:
            why, advice = "is admitted as an observer and has no seat", f"hansa member add {node} seats it"
        case Standing.OUTSIDE if facts.connected and _goal(facts) >= facts.status.height + BEHIND_BLOCKS_MIN:
            return []  # whoever catches up passes heights at which it was no member yet
        case Standing.OUTSIDE:
            message = f"{node} is no member at height {facts.status.height}: it was removed, or is not admitted yet"
            return [Finding("warning", "no_validator", message, about=node, advice=f"hansa member add {node}")]
        case Standing.VOTING:
            message = f"{node} is no validator at height {facts.status.height}"
            return [Finding("warning", "no_validator", message, about=node)]
        case _:
            assert_never(facts.standing)
    code = "not_voting" if is_member else "no_validator"
    level = "note" if facts.standing is Standing.OBSERVING else "warning"
    return [Finding(level, code, f"{node} follows the chain and {why}", about=node, advice=advice)]


def _idle(facts: Facts, roll: Roll) -> list[Finding]:
    found: list[Finding] = []
    for name in roll.idle:
        if name == facts.node or _is_behind(facts, name):
            continue
        last = facts.votes.last.get(name)
        what = "has cast no vote since this node started" if last is None else f"voted last for height {last.height}"
        missed = facts.votes.missed.get(name, 0)
        message = f"{name} is connected and {what}" + (f"; {missed} blocks passed since" if missed else "")
        advice = f"ask {name} itself: hansa consensus doctor --node {name}"
        found.append(Finding("warning", "not_voting", message, about=name, advice=advice))
    return found


def _links(facts: Facts) -> list[Finding]:
    """Say of links that fail for a reason which does not pass by itself."""
    found: list[Finding] = []
    for peer in facts.peers:
        if peer.is_doubled:
            message = f"two processes speak under the name {peer.name}: a copied home runs beside the original"
            advice = f"stop the copy; if both may have voted: hansa node rejoin {peer.name}"
            found.append(Finding("warning", "two_processes", message, about=peer.name, advice=advice))
        if peer.connected:
            continue
        if peer.last_error == "wrong_chain":
            message = f"{peer.name} is on another chain: its genesis file is not ours"
            advice = f"give {peer.name} the genesis.json of this network and a fresh data folder"
            found.append(Finding("warning", "other_chain", message, about=peer.name, advice=advice))
        elif peer.last_error in ("untrusted_certificate", "tls_failed", "not_admitted"):
            message = f"{peer.name} is not let in: {_why_away(facts, peer.name)}"
            advice = f"hansa member list shows who is admitted; a new certificate for {peer.name} may be needed"
            found.append(Finding("warning", "not_let_in", message, about=peer.name, advice=advice))
    return found


def _guilt(facts: Facts) -> list[Finding]:
    """Say who is proven to have contradicted itself, once for each, with the newest proof."""
    newest = {item.signer: item for item in facts.evidence}
    if facts.status.evidence is not None:
        newest.setdefault(facts.status.evidence.signer, facts.status.evidence)
    found: list[Finding] = []
    for name, item in sorted(newest.items()):
        if item.kind is EvidenceKind.INVALID_PROPOSAL:
            message = f"{name} has proposed an invalid block ({item.code}) at height {item.height}"
            advice = f"compare the versions of Hansa: {name} computes something else or lies"
        else:
            message = f"{name} is proven guilty of {item.kind} at height {item.height}"
            advice = f"two processes with its key, or a stolen one: stop it, then hansa member replace-key {name}"
        found.append(Finding("warning", "evidence", message, about=name, advice=advice))
    return found


# -- how far it is -----------------------------------------------------------------------------------------


def _progress(status: EngineStatus) -> list[Finding]:
    """Say whose votes are missing when the height is under way."""
    match status.phase:
        case Phase.VIEW_CHANGE:
            wanted = set(status.validators) - {
                name for name, view in status.view_changes.items() if view >= status.view
            }
            what = f"view {status.view} waits to be opened; not yet asked for by {_listed(wanted)}"
            return [Finding("warning", "view_change", what)]
        case Phase.PREPARING if status.deadline_in_ms == 0:
            what = f"prepares are missing from {_listed(set(status.validators) - set(status.prepares))}"
            return [Finding("warning", "prepares_missing", what)]
        case Phase.COMMITTING if status.deadline_in_ms == 0:
            what = f"commits are missing from {_listed(set(status.validators) - set(status.commits))}"
            return [Finding("warning", "commits_missing", what)]
    return []


def _slow(facts: Facts, roll: Roll) -> list[Finding]:
    """Say which primaries are waited for too long; whoever is away or does not vote is named already."""
    found: list[Finding] = []
    for name in facts.status.suspected:
        if name in roll.away or name in roll.idle:
            continue
        ago_ms = facts.now_ms - facts.status.failed_ms.get(name, facts.now_ms)
        if ago_ms > BAD_TURN_MS_MAX:
            message = f"as primary {name} failed {ago_ms // 1_000} s ago and has not had a good turn since"
            found.append(Finding("note", "slow_primary", message, about=name, advice="its next turn tells"))
            continue
        message = f"as primary {name} is slow: its turn ended without a block, or took four times the others'"
        advice = f"look at load, disk and clock of {name}; meanwhile its turns are cut short"
        found.append(Finding("warning", "slow_primary", message, about=name, advice=advice))
    return found


def _views(status: EngineStatus, roll: Roll) -> list[Finding]:
    others = {
        name: peer.view
        for name, peer in sorted(status.peers.items())
        if peer.height == status.height and peer.view != status.view and name not in roll.away and name not in roll.idle
    }
    if not others:
        return []
    listed = ", ".join(f"{name} in view {view}" for name, view in others.items())
    message = f"at height {status.height} we are in view {status.view}; {listed}"
    return [Finding("warning", "different_views", message)]


def _behind(facts: Facts, roll: Roll) -> list[Finding]:
    status = facts.status
    itself = "it catches up by itself"
    findings = [
        Finding("warning", "behind", f"{name} works on height {peer.height}, we on {status.height}", name, itself)
        for name, peer in sorted(status.peers.items())
        if name not in roll.away and _is_behind(facts, name)
    ]
    goal = _goal(facts)
    if goal >= status.height + BEHIND_BLOCKS_MIN:
        message = (
            f"{facts.node} works on height {status.height}, others on {goal}: {goal - status.height} blocks to catch up"
        )
        findings.append(Finding("warning", "we_are_behind", message, about=facts.node, advice=itself))
    return findings


def _goal(facts: Facts) -> int:
    """Return the height that others work on, as far as this node knows."""
    return max([facts.certified_height + 1, *(peer.height for peer in facts.status.peers.values())])


def _is_behind(facts: Facts, name: NodeName) -> bool:
    """Tell whether a validator works on a lower height, by what it said lately and by its newest vote."""
    seen, last = facts.status.peers.get(name), facts.votes.last.get(name)
    if seen is None or facts.now_ms - seen.seen_ms > SAID_MS_MAX:
        return False
    return max(seen.height, 0 if last is None else last.height) + BEHIND_BLOCKS_MIN <= facts.status.height


def _listed(names: set[NodeName]) -> str:
    return ", ".join(sorted(names)) or "nobody"
