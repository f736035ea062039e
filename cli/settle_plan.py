"""Where settlement of a local network stands: folders, keys and ports follow from the network."""

from collections.abc import Mapping

from node.network.homes import LocalNetwork, port_base
from node.network.programs import PROGRAM_PORT_STEP, SERVICE_FILE
from services.settlement.bridge_setup import BridgePlan
from services.settlement.setup import Plan

ISSUER_END = "issuer-c-end"
"""The issuer end whose confirmed purchases the bridge settles."""
ISSUER, BANKS = "issuer-c", ("bank-a",)


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


def bridge_plan_of(network: LocalNetwork) -> BridgePlan | None:
    """Return the plan for :func:`services.settlement.bridge_setup.set_up_bridge`, None without agency sale here."""
    end = network.folder / "services" / ISSUER_END
    if not (end / SERVICE_FILE).is_file():
        return None
    return BridgePlan(
        services=network.folder / "services",
        keystore=network.keystore,
        passphrase_file=network.passphrase_file,
        genesis_file=network.genesis_path,
        nodes=network.rpc_urls,
        issuer=ISSUER,
        issuer_socket=end / "run" / "issuer.sock",
        banks={name: bytes(network.identity(name).address) for name in BANKS},
    )
