"""Where payment streams of a local network stand: folders, keys and ports follow from the network."""

from collections.abc import Mapping

from node.network.homes import LocalNetwork, port_base
from node.network.programs import PROGRAM_PORT_STEP
from services.stream.setup import Plan

FIRST_PORT = 7
"""Of a network's ports for programs: the service party's, then the watcher's."""


def plan_of(network: LocalNetwork, *, changes: Mapping[str, object] | None = None) -> Plan:
    """Return the plan for :func:`services.stream.setup.set_up`; ``changes`` are fields of the service party's file."""
    base = port_base(network) + PROGRAM_PORT_STEP + FIRST_PORT
    return Plan(
        services=network.folder / "services",
        keystore=network.keystore,
        passphrase_file=network.passphrase_file,
        genesis_file=network.genesis_path,
        nodes=network.rpc_urls,
        service_port=base,
        watcher_port=base + 1,
        changes=tuple((changes or {}).items()),
    )
