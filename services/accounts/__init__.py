"""The conventional account system: the port that a bank implements, and a reference program behind it.

All money in it is simulated. The chain knows nothing of it, and it knows nothing of the chain.
"""
