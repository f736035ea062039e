"""Private channels between two members' nodes: a connection of their own, signed numbered messages, signed receipts.

``channel_machine`` is pure; ``network`` dials, accepts and keeps sessions; ``log`` keeps outbox and inbox on a port.
Imports ``consensus.ledger`` and the rest of ``p2p``; ``node`` says which channels there are.
"""
