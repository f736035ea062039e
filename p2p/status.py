"""What a peer looks like from here, for operators and for whoever chooses a peer to ask."""

from dataclasses import dataclass

from consensus.ledger.ids import NodeName
from p2p.clock import ClockOffset
from p2p.session import Session


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What a peer looks like from here. ``state`` is ``connected``, ``down`` or ``refused``.

    ``dialled`` tells whether we opened the connection; what stands from there on counts for the session alone.
    ``is_doubled`` says that two processes seem to speak under this name.
    """

    name: NodeName
    state: str
    address: str
    penalty_points: int
    last_error: str
    organisation: str = ""
    dialled: bool = False
    connected_since_ms: int = 0
    queue_frames: int = 0
    queue_bytes: int = 0
    dropped: int = 0
    frames_sent: int = 0
    frames_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    clock: ClockOffset | None = None
    is_doubled: bool = False

    @property
    def connected(self) -> bool:
        """Whether a session stands."""
        return self.state == "connected"


def peer_status(
    name: NodeName,
    session: Session | None,
    *,
    dialled_at: tuple[str, int] | None,
    penalty_points: int,
    is_refused: bool,
    last_error: str,
    is_doubled: bool = False,
) -> PeerStatus:
    """Return the status of a peer with or without a session."""
    if session is None:
        return PeerStatus(
            name=name,
            state="refused" if is_refused else "down",
            address="{}:{}".format(*dialled_at) if dialled_at else "",
            penalty_points=penalty_points,
            last_error=last_error,
            is_doubled=is_doubled,
        )
    return PeerStatus(
        name=name,
        state="connected",
        address=session.address,
        penalty_points=penalty_points,
        last_error=last_error,
        organisation=session.identity.organisation,
        dialled=session.dialled,
        connected_since_ms=session.connected_since_ms,
        queue_frames=session.queue.frame_count,
        queue_bytes=session.queue.byte_count,
        dropped=session.queue.dropped,
        frames_sent=session.counters.frames_sent,
        frames_received=session.counters.frames_received,
        bytes_sent=session.counters.bytes_sent,
        bytes_received=session.counters.bytes_received,
        clock=session.clock,
        is_doubled=is_doubled,
    )
