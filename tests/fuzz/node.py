"""``python -m tests.fuzz.node --home DIR``: a whole node as ever, but that it never refuses a peer for its errors.

A real node hears four broken frames of a peer and refuses it for a minute. To hear 200,000 of them one node of
the fuzzed network forgets its penalties; the others beside it keep theirs.
"""

import argparse
import sys
from pathlib import Path

from node.program import run
from p2p import penalties


def main() -> int:
    """Run the node until it is told to stop; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    arguments = parser.parse_args()
    penalties.POINTS_MAX = float("inf")
    return run(arguments.home)


if __name__ == "__main__":
    sys.exit(main())
