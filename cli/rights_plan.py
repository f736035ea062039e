"""Where the rights system of a local network stands: folders, keys and ports follow from the network."""

from node.network.homes import LocalNetwork, port_base
from node.network.programs import PROGRAM_PORT_STEP
from services.rights.setup import Plan


def plan_of(
    network: LocalNetwork,
    *,
    rate_per_s: float | None = None,
    store: str | None = None,
    is_strict: bool | None = None,
    may_leave_messages: bool = False,
) -> Plan:
    """Return the plan for :func:`services.rights.setup.set_up`; what is None stays as it is, or gets its default."""
    base = port_base(network) + PROGRAM_PORT_STEP
    return Plan(
        services=network.folder / "services",
        keystore=network.keystore,
        passphrase_file=network.passphrase_file,
        genesis_file=network.genesis_path,
        nodes=network.rpc_urls,
        business_port=base,
        center_port=base + 1,
        rate_per_s=rate_per_s,
        store=store,
        is_strict=is_strict,
        may_leave_messages=may_leave_messages,
    )
