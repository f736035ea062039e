"""What is agreed on: ids, canonical codec, keys, transactions, blocks, receipts, trees, certificates.

Pure: no I/O, clock or randomness (but for making a key).
Imports nothing of ours; every other room may import it.
"""
