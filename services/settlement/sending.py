"""Gives signed transactions to any node: the next one where a node takes them and says nothing."""

from collections.abc import Sequence

import trio

from consensus.ledger.transaction import Transaction
from services.client.client import Client
from services.client.errors import Unreachable
from services.client.outcome import Submitted

NODE_MS = 3_000
"""How long one node has. The bytes are identical, so that a second node does no harm."""


async def send(client: Client, transactions: Sequence[Transaction]) -> list[Submitted]:
    """Submit transactions and return the first node's answers that come in time.

    Raises:
        Unreachable: no node answers.
        Refused, PeerError: as :meth:`services.client.client.Client.submit_many`.
    """
    for _ in range(client.node_count):
        with trio.move_on_after(NODE_MS / 1000):
            return await client.submit_many(transactions)
        client.leave_node()
    raise Unreachable(f"no node answered within {NODE_MS} ms", code="node_timeout")
