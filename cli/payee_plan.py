"""Where payee codes of a local network stand: folders, keys, nodes, users and ports follow from the network."""

import os

from node.network.homes import LocalNetwork, port_base
from node.network.programs import PROGRAM_PORT_STEP
from services.payee.setup import ORGANISATIONS, PLATFORMS, Host, Plan

FIRST_USER = 60_600
"""Number of the first environment's user where root starts it; nobody else has one from here to 61183 (systemd)."""
FIRST_PORT = 4
"""Of a network's ports for programs: the account system's, then the platforms'."""


def plan_of(network: LocalNetwork, *, database: str = "embedded") -> Plan:
    """Return the plan for :func:`services.payee.setup.set_up`."""
    base = port_base(network) + PROGRAM_PORT_STEP + FIRST_PORT
    is_root = os.geteuid() == 0
    homes = {
        name: node.folder for name in ORGANISATIONS for node in reversed(network.nodes) if node.organisation == name
    }
    return Plan(
        services=network.folder / "services",
        keystore=network.keystore,
        passphrase_file=network.passphrase_file,
        genesis_file=network.genesis_path,
        nodes=network.rpc_urls,
        accounts_port=base,
        platform_ports={name: base + 1 + at for at, name in enumerate(PLATFORMS)},
        hosts=tuple(
            Host(name, home, FIRST_USER + at if is_root else None) for at, (name, home) in enumerate(homes.items())
        ),
        database=database,
    )
