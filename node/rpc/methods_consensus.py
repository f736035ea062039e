"""``consensus_*`` and ``net_*``: how agreement goes, who takes part, what is missing."""

from consensus.ledger.ids import NodeName
from node.rpc.backend import ConsensusStatus
from node.rpc.context import Context, methods
from node.rpc.doctor import diagnose
from node.rpc.protocol import Json
from node.rpc.render import hex_of, validators_json
from node.rpc.schema import NoParams


@methods.add("consensus_status", NoParams)
async def consensus_status(context: Context, _: NoParams) -> Json:
    """Height and view under way, the primary, and what is known of each validator's part."""
    return status_json(context.backend.consensus())


@methods.add("consensus_validators", NoParams)
async def consensus_validators(context: Context, _: NoParams) -> Json:
    """The validators that certify the next block, with f and q."""
    validators = context.backend.consensus().validators
    return {
        "height": context.backend.head().height + 1,
        "faultyMax": validators.faulty_max,
        "quorum": validators.quorum,
        "hash": hex_of(validators.hash()),
        "validators": validators_json(validators),
    }


@methods.add("consensus_doctor", NoParams)
async def consensus_doctor(context: Context, _: NoParams) -> Json:
    """What stands in the way of the next block: what the quorum lacks, who is silent or behind, whose clock is off."""
    backend = context.backend
    status = backend.consensus()
    connected = frozenset(NodeName(peer.name) for peer in backend.peers() if peer.connected)
    findings = diagnose(status, backend.node_name, connected)
    return {
        "node": backend.node_name,
        "healthy": all(finding.level == "ok" for finding in findings),
        "findings": [
            {"level": finding.level, "code": finding.code, "message": finding.message} for finding in findings
        ],
        "status": status_json(status),
    }


@methods.add("net_peers", NoParams)
async def net_peers(context: Context, _: NoParams) -> Json:
    """All other nodes known here, with their links' figures."""
    return [
        {
            "name": peer.name,
            "organisation": peer.organisation,
            "address": peer.address,
            "state": peer.state,
            "connectedSinceMs": peer.connected_since_ms or None,
            "framesSent": peer.frames_sent,
            "framesReceived": peer.frames_received,
            "bytesSent": peer.bytes_sent,
            "bytesReceived": peer.bytes_received,
            "queueFrames": peer.queue_frames,
            "queueBytes": peer.queue_bytes,
            "dropped": peer.dropped,
            "penaltyPoints": peer.penalty_points,
            "lastError": peer.last_error,
        }
        for peer in context.backend.peers()
    ]


def status_json(status: ConsensusStatus) -> dict[str, Json]:
    """Return the engine's state as JSON, one entry for each validator."""
    replicas: dict[str, Json] = {}
    for name in status.validators.names:
        replica = status.replicas.get(name)
        replicas[name] = (
            None
            if replica is None
            else {
                "view": replica.view,
                "height": replica.height,
                "prepared": replica.has_prepared,
                "committed": replica.has_committed,
                "silentMs": replica.silent_ms,
                "clockOffsetMs": replica.clock_offset_ms,
            }
        )
    return {
        "height": status.height,
        "view": status.view,
        "primary": status.primary,
        "phase": status.phase,
        "quorum": status.validators.quorum,
        "validatorCount": status.validators.size,
        "replicas": replicas,
    }
