"""The table of all methods; importing this module fills it from every group."""

from node.rpc import methods_chain, methods_consensus, methods_rpc, methods_state, methods_transactions
from node.rpc.context import methods

__all__ = [
    "methods",
    "methods_chain",
    "methods_consensus",
    "methods_rpc",
    "methods_state",
    "methods_transactions",
]
