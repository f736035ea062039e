"""The only world a contract sees: its state, its caller, block time, events, and a meter on all of it.

Pure: the same block on the same state gives the same writes, receipts and steps on every node, whatever
its clock, hash seed, locale or load. Imports ``consensus.ledger`` alone; ``node`` and ``cli`` import it.
"""
