"""What keeps the chain from going on, in words: what the quorum lacks, who is silent, behind, in another view. Pure."""

from dataclasses import dataclass

from consensus.ledger.ids import NodeName
from consensus.pbft.events import EngineStatus, Phase
from node.votes import VoteReport

SILENT_MS_MAX = 40_000
"""A validator that said nothing for this long counts as silent; while idle, one speaks every 30 s."""
MISSED_BLOCKS_MAX = 2
"""A connected validator that let more blocks in a row pass without a vote counts as not voting."""
STALLED_MS_MAX = 5_000
"""When votes for a height began so long ago, who has not voted for it counts as not voting."""


OBSERVER_REASON = "its data was wiped or is an older copy, or its vote key is not the member's"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor. ``level`` is ``ok``, ``warning`` or ``stuck``; ``code`` is stable.

    ``about`` names the one validator that it speaks of, where that is so.
    """

    level: str
    code: str
    message: str
    about: str = ""


def diagnose(
    status: EngineStatus, votes: VoteReport, node: NodeName, connected: frozenset[NodeName], now_ms: int
) -> list[Finding]:
    """Return what stands in the way of the next block, the gravest first."""
    count = len(status.validators)
    away = tuple(name for name in status.validators if name != node and _is_away(status, name, connected, now_ms))
    idle = tuple(
        name for name in status.validators if name not in away and not _votes(status, votes, name, node, now_ms)
    )
    findings: list[Finding] = []
    voting = count - len(away) - len(idle)
    if voting < status.quorum:
        missing = [f"{what}: {', '.join(names)}" for what, names in (("away", away), ("not voting", idle)) if names]
        message = f"{voting} of {count} validators vote, {status.quorum} are needed; {'; '.join(missing)}"
        findings.append(Finding("stuck", "no_quorum", message))
    elif away:
        message = f"away: {', '.join(away)}; the quorum of {status.quorum} stands with {voting} of {count}"
        findings.append(Finding("warning", "validators_away", message))
    findings += [Finding("warning", "not_voting", _why_idle(votes, name, node), about=name) for name in idle]
    if status.primary in away:
        findings.append(Finding("warning", "primary_away", f"the primary {status.primary} is away"))
    findings += _progress(status) + _views(status, away + idle) + _behind(status, away)
    if status.evidence is not None:
        evidence = status.evidence
        message = f"{evidence.signer} is proven guilty of {evidence.kind} at height {evidence.height}"
        findings.append(Finding("warning", "evidence", message))
    if node not in status.validators:
        findings.append(Finding("warning", "no_validator", f"{node} is no validator at height {status.height}"))
    return findings or [Finding("ok", "healthy", f"all {count} validators take part; {status.quorum} decide")]


def _votes(status: EngineStatus, votes: VoteReport, name: NodeName, node: NodeName, now_ms: int) -> bool:
    """Tell whether a validator that is here votes, as far as can be seen."""
    if name == node:
        return status.is_validator
    since_ms = votes.voting_since_ms
    is_stalled = since_ms is not None and now_ms - since_ms > STALLED_MS_MAX
    return votes.missed.get(name, 0) <= MISSED_BLOCKS_MAX and not (is_stalled and name in votes.unheard)


def _why_idle(votes: VoteReport, name: NodeName, node: NodeName) -> str:
    if name == node:
        return f"{node} follows the chain and casts no vote: {OBSERVER_REASON}"
    last = votes.last.get(name)
    what = "has cast no vote since this node started" if last is None else f"voted last for height {last.height}"
    missed = votes.missed.get(name, 0)
    return f"{name} is connected and {what}" + (f"; {missed} blocks passed since" if missed else "")


def _is_away(status: EngineStatus, name: NodeName, connected: frozenset[NodeName], now_ms: int) -> bool:
    if name not in connected:
        return True
    seen = status.peers.get(name)
    return seen is not None and now_ms - seen.seen_ms > SILENT_MS_MAX


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


def _views(status: EngineStatus, away: tuple[NodeName, ...]) -> list[Finding]:
    others = {
        name: peer.view
        for name, peer in sorted(status.peers.items())
        if peer.height == status.height and peer.view != status.view and name not in away
    }
    if not others:
        return []
    listed = ", ".join(f"{name} in view {view}" for name, view in others.items())
    message = f"at height {status.height} we are in view {status.view}; {listed}"
    return [Finding("warning", "different_views", message)]


def _behind(status: EngineStatus, away: tuple[NodeName, ...]) -> list[Finding]:
    ahead = [peer.height for peer in status.peers.values() if peer.height > status.height + 1]
    findings = [
        Finding("warning", "behind", f"{name} works on height {peer.height}, we on {status.height}")
        for name, peer in sorted(status.peers.items())
        if peer.height + 1 < status.height and name not in away
    ]
    if ahead:
        message = f"we work on height {status.height}, others on {max(ahead)}"
        findings.append(Finding("warning", "we_are_behind", message))
    return findings


def _listed(names: set[NodeName]) -> str:
    return ", ".join(sorted(names)) or "nobody"
