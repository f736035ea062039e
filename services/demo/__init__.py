"""The demos: business stories on a network of their own, judged at the end.

Imports ``consensus.ledger`` and ``services.client``; the network comes in through a port, and ``cli`` fills it.
"""
