"""What keeps the chain from going on, in words: the quorum, who is silent, whose clock is off. Pure."""

from dataclasses import dataclass

from consensus.ledger.ids import NodeName
from node.rpc.backend import ConsensusStatus, ReplicaStatus

SILENT_MS_MAX = 10_000
"""A validator that said nothing for this long counts as silent."""
CLOCK_OFFSET_MS_MAX = 2_000
"""A clock this far from ours is worth a line; proposals are refused from 10 s on."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor. ``level`` is ``ok``, ``warning`` or ``stuck``; ``code`` is stable."""

    level: str
    code: str
    message: str


def diagnose(status: ConsensusStatus, node: NodeName, connected: frozenset[NodeName]) -> list[Finding]:
    """Return what stands in the way of the next block, the gravest first."""
    names = status.validators.names
    quorum = status.validators.quorum
    heard = [name for name in names if name == node or _is_heard(status.replicas.get(name), name in connected)]
    findings: list[Finding] = []
    if len(heard) < quorum:
        silent = ", ".join(name for name in names if name not in heard)
        message = f"{len(heard)} of {len(names)} validators are heard, {quorum} are a quorum; silent: {silent}"
        findings.append(Finding("stuck", "no_quorum", message))
    elif len(heard) < len(names):
        silent = ", ".join(name for name in names if name not in heard)
        findings.append(Finding("warning", "silent_validators", f"silent: {silent}; the quorum of {quorum} stands"))
    if status.primary not in heard:
        message = f"the primary {status.primary} is silent; a view change replaces it"
        findings.append(Finding("warning", "silent_primary", message))
    findings += _views(status)
    findings += _behind(status)
    findings += _clocks(status)
    if not findings:
        findings.append(Finding("ok", "healthy", f"all {len(names)} validators take part; {quorum} decide"))
    return findings


def _is_heard(replica: ReplicaStatus | None, is_connected: bool) -> bool:
    if not is_connected:
        return False
    return replica is None or replica.silent_ms is None or replica.silent_ms <= SILENT_MS_MAX


def _views(status: ConsensusStatus) -> list[Finding]:
    others = {
        name: replica.view
        for name, replica in sorted(status.replicas.items())
        if replica.view is not None and replica.height == status.height and replica.view != status.view
    }
    if not others:
        return []
    listed = ", ".join(f"{name} in view {view}" for name, view in others.items())
    return [Finding("warning", "different_views", f"at height {status.height} we are in view {status.view}; {listed}")]


def _behind(status: ConsensusStatus) -> list[Finding]:
    findings: list[Finding] = []
    for name, replica in sorted(status.replicas.items()):
        if replica.height is not None and replica.height + 1 < status.height:
            message = f"{name} is at height {replica.height}, we are at {status.height}"
            findings.append(Finding("warning", "behind", message))
    return findings


def _clocks(status: ConsensusStatus) -> list[Finding]:
    return [
        Finding("warning", "clock_off", f"the clock of {name} is {replica.clock_offset_ms} ms from ours")
        for name, replica in sorted(status.replicas.items())
        if replica.clock_offset_ms is not None and abs(replica.clock_offset_ms) > CLOCK_OFFSET_MS_MAX
    ]
