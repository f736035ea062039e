"""The same again in other surroundings: schedules give the same traces, blocks the same roots.

``python -m tests.sim.replay --seeds 200`` runs the schedules in two processes with two orders of hashes, which
takes twice as long as running them. With ``--blocks`` it reads blocks from standard input and executes them.
"""

import argparse
import json
import locale
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from consensus.ledger.block import Block, decode_block_untrusted
from consensus.ledger.genesis import Genesis, decode_genesis_untrusted
from consensus.ledger.validators import Certificate, Signature
from node.chain import Chain
from tests.node.support import make_executor
from tests.sim.disk import Disk

ROOT = Path(__file__).resolve().parent.parent.parent
HASH_SEEDS = ("1", "4242")
SURROUNDINGS: tuple[dict[str, str], ...] = (
    {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "UTC"},
    {"PYTHONHASHSEED": "4242", "LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu"},
    {"PYTHONHASHSEED": "77", "LC_ALL": "C.UTF-8", "TZ": "America/St_Johns"},
    {"PYTHONHASHSEED": "0", "LC_ALL": "de_DE.UTF-8", "TZ": "Pacific/Kiritimati", "PYTHONOPTIMIZE": "2"},
)


def start(arguments: Sequence[str], surroundings: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a module of the tests in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **surroundings},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def traces(first_seed: int, seeds: int, hash_seed: str) -> dict[int, str]:
    """Return each schedule's digest as a process with this order of hashes finds it."""
    arguments = ["tests.sim", "--first-seed", str(first_seed), "--seeds", str(seeds), "--workers", "1", "--traces"]
    process = start(arguments, {"PYTHONHASHSEED": hash_seed})
    output, _ = process.communicate()
    lines = [line.split() for line in output.decode().splitlines() if line.startswith("trace ")]
    return {int(seed): digest for _, seed, digest in lines}


def roots(document: bytes, surroundings: dict[str, str]) -> list[str]:
    """Return a line for each block: its hash and its roots, as a process in these surroundings finds them."""
    process = start(["tests.sim.replay", "--blocks"], surroundings)
    output, _ = process.communicate(document)
    if process.returncode:
        raise RuntimeError(f"the blocks do not hold under {surroundings}")
    return output.decode().splitlines()


def document_of(genesis: Genesis, blocks: Sequence[Block]) -> bytes:
    """Return what the other process reads."""
    return json.dumps([genesis.to_json().decode(), [block.encode().hex() for block in blocks]]).encode()


def execute(document: bytes) -> list[str]:
    """Execute blocks from genesis; each must give what its header says."""
    genesis, blocks = json.loads(document)
    disk = Disk()
    chain = Chain(disk, decode_genesis_untrusted(genesis.encode()), make_executor())
    lines = []
    for data in blocks:
        block = decode_block_untrusted(bytes.fromhex(data))
        candidate = chain.check_untrusted(block)
        certificate = Certificate(block.height, 0, block.hash, [Signature("nobody", bytes(64))])
        disk.write(chain.commit_batch(candidate, certificate))
        chain.adopt(candidate, certificate)
        header = candidate.block.header
        found = (block.hash, header.receipts_root, header.writes_root, header.sealed_root, header.next_validators_hash)
        lines.append(" ".join(item.hex() for item in found))
    return lines


def main() -> int:
    """Return 0 when all traces agree."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.replay", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--blocks", action="store_true", help="execute the blocks on standard input")
    arguments = parser.parse_args()
    if arguments.blocks:
        try:
            locale.setlocale(locale.LC_ALL, "")
        except locale.Error:
            print("this machine has no such locale", file=sys.stderr)
        time.tzset()
        print("\n".join(execute(sys.stdin.buffer.read())))
        return 0
    found = [traces(arguments.first_seed, arguments.seeds, hash_seed) for hash_seed in HASH_SEEDS]
    other = sorted(seed for seed, digest in found[0].items() if found[1].get(seed) != digest)
    same = len(found[0]) - len(other)
    print(f"{same} of {arguments.seeds} schedules have one trace under PYTHONHASHSEED {' and '.join(HASH_SEEDS)}")
    if other:
        print(f"others have two: {' '.join(map(str, other))}")
    return same != arguments.seeds


if __name__ == "__main__":
    sys.exit(main())
