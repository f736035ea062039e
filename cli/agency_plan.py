"""Where the agency system of a local network stands: folders, keys, nodes and sockets follow from the network."""

from consensus.ledger.errors import LocalError
from node.network.homes import LocalNetwork
from services.agency.setup import DISTRIBUTORS, INTERFACES, PRODUCTS, Institution, Plan

BANKS = ("bank-a",)
PERMISSION = "permission"
OWNER_SOCKET = "owner.sock"
"""In a node's ``run`` folder."""


def plan_of(network: LocalNetwork) -> Plan:
    """Return the plan for :func:`services.agency.setup.set_up`: bank, issuers and permission desk with a node here.

    Raises:
        LocalError: ``unknown_node`` where bank, permission desk or every issuer has none.
    """
    present = {node.organisation for node in network.nodes}
    issuers = tuple(institution(network, name) for name in INTERFACES if name in present)
    banks = tuple(institution(network, name) for name in BANKS if name in present)
    if not (banks and issuers and PERMISSION in present):
        raise LocalError("unknown_node", "agency sale needs nodes of a bank, an issuer and the permission desk")
    offering = {issuer.organisation for issuer in issuers}
    return Plan(
        services=network.folder / "services",
        keystore=network.keystore,
        passphrase_file=network.passphrase_file,
        genesis_file=network.genesis_path,
        banks=banks,
        issuers=issuers,
        permission=PERMISSION,
        permission_url=network.node(PERMISSION).rpc_url,
        products=tuple(product for product in PRODUCTS if product.issuer in offering),
    )


def institution(network: LocalNetwork, organisation: str) -> Institution:
    """Return an organisation with its node; the first one where it has several."""
    node = next(node for node in network.nodes if node.organisation == organisation)
    codes = (INTERFACES.get(organisation, ""), DISTRIBUTORS.get(organisation, ""))
    return Institution(organisation, node.name, node.rpc_url, node.run / OWNER_SOCKET, *codes)
