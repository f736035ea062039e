"""The seeded simulator: real engines, chains, contracts and mempools on one event heap, under faults and liars.

One seed decides everything: the network's size, the faults that are on and how strong, who lies and how.
Nothing here runs on trio or reads a clock. Checkers stand outside the replicas and see only what these
send, write and commit. ``python -m tests.sim --seed S`` replays one schedule and tells what happens.
"""
