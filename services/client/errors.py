"""What can go wrong between a client and the chain, beside the ledger's own errors."""

from consensus.ledger.errors import HansaError


class Refused(HansaError):
    """The system refuses: a node's typed error answer, or a failed receipt. ``code`` is the node's ``data.code``."""


class Unreachable(HansaError):
    """No node can be reached, or none answers in time: nothing is known about the request."""

    def __init__(self, message: str, code: str = "node_unreachable") -> None:
        super().__init__(code, message)
