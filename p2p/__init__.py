"""How nodes talk: bounded frames over mutual TLS 1.3, one session a pair of nodes.

``frames`` and ``hello_machine`` are pure; ``tls`` says who may speak; ``session`` pumps one connection;
``network`` keeps all of them; ``private`` holds channels of two members beside it. Imports
``consensus.ledger`` only; ``node`` imports it.
"""
