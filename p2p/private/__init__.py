"""Private channels between two members' nodes: a connection of their own, signed numbered messages, signed receipts.

``channel_machine`` and ``records`` are pure; ``writer`` drives the machines and is the only one that writes; ``log``
says what lies where in the store that ``port`` asks for; ``network`` dials, accepts and keeps sessions. Imports
``consensus.ledger`` and the rest of ``p2p``; ``node`` says which channels there are.
"""
