"""What the state tree costs a key: ``python -m bench.state_tree``.

A tree of ``--keys`` keys on LevelDB takes batches of changed keys; each batch is one synced write, as at
a seal. Microseconds a key, hashing and storage together.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from consensus.ledger.state_tree import NodeCache, update
from node.storage.leveldb import LevelStore

KEYS = 100_000
BATCHES = (100, 500, 2_000, 10_000)
CHANGES = 20_000


class _Nodes:
    """The tree's nodes in a store of their own."""

    def __init__(self, store: LevelStore) -> None:
        self._store = store

    def get(self, path: bytes) -> bytes | None:
        return self._store.get(b"n" + path)


def main(*, keys: int = KEYS, as_json: bool = False) -> int:
    """Measure and print; return 0."""
    random = Random(1)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="hansa-bench-") as folder:
        store = LevelStore.open(Path(folder) / "tree")
        nodes = NodeCache(_Nodes(store))
        names = [b"tokens/balance/%040x" % random.getrandbits(160) for _ in range(keys)]
        figures["build"] = _change(store, nodes, names, 10_000, random)
        for size in BATCHES:
            changed = [random.choice(names) for _ in range(CHANGES)]
            figures[f"batches_of_{size}"] = _change(store, nodes, changed, size, random)
        store.close()
    if as_json:
        print(json.dumps({"keys": keys, "us_per_key": figures}))
    else:
        for name, figure in figures.items():
            print(f"{name.replace('_', ' '):18} {figure:6.1f} µs a key")
    return 0


def _change(store: LevelStore, nodes: NodeCache, names: list[bytes], size: int, random: Random) -> float:
    """Write new values under these names in batches and return the microseconds a name."""
    began = time.perf_counter()
    for start in range(0, len(names), size):
        changes: dict[bytes, bytes | None] = {name: random.randbytes(16) for name in names[start : start + size]}
        done = update(nodes, changes)
        store.write([(b"n" + path, blob) for path, blob in done.nodes.items()])
        nodes.apply(done.nodes)
    return round((time.perf_counter() - began) * 1e6 / len(names), 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=KEYS)
    parser.add_argument("--json", action="store_true", dest="as_json")
    sys.exit(main(**vars(parser.parse_args())))
