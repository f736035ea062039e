"""Runs a rights server as a process of its own: ``python -m tests.rights.server_program NETWORK NAME CENTER``.

It signs with ``user-b``; its file that says ready is ``NETWORK/NAME/ready``.
"""

import sys
from pathlib import Path

import trio

from node.network.homes import load_network
from services.client.keystore import Signer
from services.rights.server import ServerSettings, run

ACCOUNT = "user-b"

if __name__ == "__main__":
    folder, name, center = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    network = load_network(folder)
    settings = ServerSettings(
        name=name,
        run=folder / name,
        genesis=network.genesis,
        nodes=tuple(node.rpc_url for node in network.nodes),
        account=Signer.of(ACCOUNT, network.key(ACCOUNT)),
        center=center,
        center_token="",
        pack_max=20,
    )
    trio.run(run, settings, strict_exception_groups=True)
