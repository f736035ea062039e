"""The light client and SDK: the only door from services to the chain.

Nothing a node says is believed that can be checked: receipts, blocks and state values come with a
certificate and a path down from genesis, and a node that lies is caught with a typed error. Signing
happens here and never on a node. Imports ``consensus.ledger`` only; every service and the CLI may import it.
"""
