"""Where payment streams of a local network stand: folders, keys and ports follow from the network."""

from node.network.homes import LocalNetwork, port_base
from node.network.programs import PROGRAM_PORT_STEP
from services.stream.setup import Plan

FIRST_PORT = 7
"""Of a network's ports for programs: the service party's, then the watcher's."""


def plan_of(network: LocalNetwork) -> Plan:
    """Return the plan for :func:`services.stream.setup.set_up`."""
    base = port_base(network) + PROGRAM_PORT_STEP + FIRST_PORT
    return Plan(
        services=network.folder / "services",
        keystore=network.keystore,
        passphrase_file=network.passphrase_file,
        genesis_file=network.genesis_path,
        nodes=network.rpc_urls,
        service_port=base,
        watcher_port=base + 1,
    )
