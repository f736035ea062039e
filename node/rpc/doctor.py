"""What keeps the chain from going on, in words: what the quorum lacks, who is silent, behind, in another view. Pure."""

from dataclasses import dataclass

from consensus.ledger.ids import NodeName
from consensus.pbft.events import EngineStatus, Phase

SILENT_MS_MAX = 40_000
"""A validator that said nothing for this long counts as silent; while idle, one speaks every 30 s."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor. ``level`` is ``ok``, ``warning`` or ``stuck``; ``code`` is stable."""

    level: str
    code: str
    message: str


def diagnose(status: EngineStatus, node: NodeName, connected: frozenset[NodeName], now_ms: int) -> list[Finding]:
    """Return what stands in the way of the next block, the gravest first."""
    count = len(status.validators)
    away = tuple(name for name in status.validators if name != node and _is_away(status, name, connected, now_ms))
    present = count - len(away)
    findings: list[Finding] = []
    if present < status.quorum:
        message = f"{present} of {count} validators are heard, {status.quorum} are needed; away: {', '.join(away)}"
        findings.append(Finding("stuck", "no_quorum", message))
    elif away:
        message = f"away: {', '.join(away)}; the quorum of {status.quorum} stands with {present} of {count}"
        findings.append(Finding("warning", "validators_away", message))
    if status.primary in away:
        findings.append(Finding("warning", "primary_away", f"the primary {status.primary} is away"))
    findings += _progress(status) + _views(status, away) + _behind(status, away)
    if status.evidence is not None:
        evidence = status.evidence
        message = f"{evidence.signer} is proven guilty of {evidence.kind} at height {evidence.height}"
        findings.append(Finding("warning", "evidence", message))
    if not status.is_validator:
        findings.append(Finding("warning", "no_validator", f"{node} does not vote at height {status.height}"))
    return findings or [Finding("ok", "healthy", f"all {count} validators take part; {status.quorum} decide")]


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
