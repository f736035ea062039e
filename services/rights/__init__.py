"""Reward rights beside the chain: the business server, which takes orders, and the rights server, which submits them."""
