"""How blocks are agreed on: PBFT as a pure state machine, events in, ordered effects out.

``SPEC.md`` numbers the rules (P1, P2, …) that comments and tests cite. Imports ``consensus.ledger`` alone.
"""
