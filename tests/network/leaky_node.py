"""``python -m tests.network.leaky_node HOME PEER``: a node that also sends its private payloads to a third one.

Only tests start it: what looks for markers at others must find them here.
"""

import sys
from functools import wraps
from pathlib import Path

from consensus.ledger.ids import NodeName
from node.program import run
from p2p.frames import FrameKind
from p2p.network import Network
from p2p.private.network import PrivateNetwork


def leak_to(peer: str) -> None:
    """Break the routing of this process."""
    networks: list[Network] = []
    private_run, private_send = PrivateNetwork.run, PrivateNetwork.send

    @wraps(private_run)
    async def run_and_note(self, network, **options):  # type: ignore[no-untyped-def]
        networks.append(network)
        await private_run(self, network, **options)

    @wraps(private_send)
    async def send_and_leak(self, channel, message_id, payload):  # type: ignore[no-untyped-def]
        networks[0].send(NodeName(peer), FrameKind.TRANSACTIONS, payload)
        return await private_send(self, channel, message_id, payload)

    PrivateNetwork.run = run_and_note  # type: ignore[method-assign]
    PrivateNetwork.send = send_and_leak  # type: ignore[method-assign]


if __name__ == "__main__":
    leak_to(sys.argv[2])
    sys.exit(run(Path(sys.argv[1])))
