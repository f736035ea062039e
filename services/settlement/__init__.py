"""One outcome on the chain and in the account system: an asset and its payment move both, or neither.

The account system is behind :mod:`services.accounts.port`; the chain is reached through ``services.client``.
"""
