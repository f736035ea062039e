"""Agency sale (代销): a bank sells an issuer's products; orders and confirmations travel on a private channel.

``orders`` and ``packages`` are pure and say what is exchanged. The *sales end* and the *issuer end* are the
institutions' business systems; the *gateway* beside each node has the sales-node part and the issuer-node part.
"""
