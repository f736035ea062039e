"""Where settlement of a local network stands: folders, keys and ports follow from the network."""

from collections.abc import Mapping

from node.network.homes import LocalNetwork, port_base
from node.network.programs import PROGRAM_PORT_STEP
from services.settlement.setup import Plan


def plan_of(
    network: LocalNetwork,
    *,
    database: str | None = None,
    allow_faults: bool | None = None,
    changes: Mapping[str, object] | None = None,
    may_leave_events: bool = False,
) -> Plan:
    """Return the plan for :func:`services.settlement.setup.set_up`; what is None stays as it is, or its default."""
    base = port_base(network) + PROGRAM_PORT_STEP
    return Plan(
        services=network.folder / "services",
        keystore=network.keystore,
        passphrase_file=network.passphrase_file,
        genesis_file=network.genesis_path,
        nodes=network.rpc_urls,
        accounts_port=base + 2,
        center_port=base + 3,
        database=database,
        allow_faults=allow_faults,
        changes=tuple((changes or {}).items()),
        may_leave_events=may_leave_events,
    )
