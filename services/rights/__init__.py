"""Reward rights beside the chain: the business server takes orders, the rights server submits them."""
