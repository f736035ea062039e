"""``consensus_*`` and ``net_*``: how agreement goes, who takes part, what is missing."""

from node.members import read_nodes
from node.rpc.context import Context, methods
from node.rpc.doctor import Facts, diagnose, roll_call
from node.rpc.protocol import Json
from node.rpc.render import hex_of, validators_json
from node.rpc.schema import NoParams


@methods.add("consensus_status", NoParams)
async def consensus_status(context: Context, _: NoParams) -> Json:
    """Height and view under way, the primary, and what is known of each validator's part."""
    return status_json(context.backend.facts())


@methods.add("consensus_validators", NoParams)
async def consensus_validators(context: Context, _: NoParams) -> Json:
    """The validators that certify the next block, with f and q; and all nodes that ever belonged, observers too.

    A node's ``status`` is ``observer``, ``validator`` or ``removed``; ``address`` is where others reach it, as the
    chain says, empty when only configurations do.
    """
    head = context.backend.head()
    validators = head.validators
    return {
        "height": head.header.height + 1,
        "faultyMax": validators.faulty_max,
        "quorum": validators.quorum,
        "hash": hex_of(validators.hash()),
        "validators": validators_json(validators),
        "nodes": [
            {
                "name": name,
                "organisation": node.organisation,
                "voteKey": hex_of(node.vote_key),
                "status": node.status,
                "address": node.address,
                "revokedCertificates": [hex_of(fingerprint) for fingerprint in node.revoked],
            }
            for name, node in read_nodes(context.backend.state()).items()
        ],
    }


@methods.add("consensus_doctor", NoParams)
async def consensus_doctor(context: Context, _: NoParams) -> Json:
    """What stands in the way of the next block: what the quorum lacks, who is away, silent, behind, whose clock is off.

    ``away`` says of each validator that this node does not reach why, ``idle`` lists those it hears no votes of.
    """
    facts = context.backend.facts()
    roll, findings = roll_call(facts), diagnose(facts)
    return {
        "node": facts.node,
        "healthy": findings[0].level == "ok",
        "findings": [
            {
                "level": item.level,
                "code": item.code,
                "message": item.message,
                "about": item.about or None,
                "advice": item.advice or None,
            }
            for item in findings
        ],
        "connected": list[Json](sorted(facts.connected)),
        "away": {str(name): why for name, why in roll.away.items()},
        "idle": [*roll.idle],
        "status": status_json(facts),
    }


@methods.add("net_peers", NoParams)
async def net_peers(context: Context, _: NoParams) -> Json:
    """All other nodes known here, with their links' figures, and how far their clocks are ahead of ours.

    ``standing`` is what the chain says of the node: ``observer``, ``validator``, ``removed``, null when nothing.
    ``doubled`` says that two processes seem to bear this name.
    """
    nodes = read_nodes(context.backend.state())
    return [
        {
            "name": peer.name,
            "organisation": peer.organisation,
            "address": peer.address,
            "state": peer.state,
            "standing": nodes[peer.name].status if peer.name in nodes else None,
            "dialled": peer.dialled,
            "doubled": peer.is_doubled,
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
            "clockAheadMs": None if peer.clock is None else peer.clock.ahead_ms,
            "clockUncertaintyMs": None if peer.clock is None else peer.clock.uncertainty_ms,
        }
        for peer in context.backend.peers()
    ]


def status_json(facts: Facts) -> dict[str, Json]:
    """Return the engine's state as JSON.

    ``peers`` says what each validator last told of itself, ``votes`` which height it voted for last, how long
    ago, and how many blocks in a row it has let pass since while connected.
    """
    status, votes, now_ms = facts.status, facts.votes, facts.now_ms
    last: dict[str, Json] = {
        name: {
            "height": vote.height,
            "agoMs": max(0, now_ms - vote.at_ms),
            "missedBlocks": votes.missed.get(name, 0),
        }
        for name, vote in sorted(votes.last.items())
    }
    peers: dict[str, Json] = {
        name: {"height": peer.height, "view": peer.view, "silentMs": max(0, now_ms - peer.seen_ms)}
        for name, peer in sorted(status.peers.items())
    }
    return {
        "height": status.height,
        "view": status.view,
        "phase": status.phase.value,
        "primary": status.primary,
        "isValidator": status.is_validator,
        "validators": [*status.validators],
        "quorum": status.quorum,
        "blockHash": None if status.block_hash is None else hex_of(status.block_hash),
        "prepares": [*status.prepares],
        "commits": [*status.commits],
        "viewChanges": dict[str, Json](sorted(status.view_changes.items())),
        "timeoutMs": status.timeout_ms,
        "deadlineInMs": status.deadline_in_ms,
        "suspected": [*status.suspected],
        "peers": peers,
        "votes": last,
    }
