"""The tables of all methods; importing this module fills them from every group."""

from node.rpc import (
    methods_chain,
    methods_channels,
    methods_consensus,
    methods_owner,
    methods_payee,
    methods_rpc,
    methods_state,
    methods_transactions,
)
from node.rpc.context import methods, owner_methods

__all__ = [
    "methods",
    "methods_chain",
    "methods_channels",
    "methods_consensus",
    "methods_owner",
    "methods_payee",
    "methods_rpc",
    "methods_state",
    "methods_transactions",
    "owner_methods",
]
