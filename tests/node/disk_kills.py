"""Many short lives of a store that is busy merging tables, each ended by kill -9 in the middle of its work.

Run with the library of ``faulty_disk.c`` preloaded: ``python -m tests.node.disk_kills FOLDER LIVES SEED power|kill``.
After each life, and a cut of the power if asked for, another process opens the store: it must not be refused, and
every write that had returned must be there. Ends with 1 and says what is wrong; long runs are commands of their own.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from node.storage import leveldb
from node.storage.leveldb import LevelStore
from tests.node.disk_lives import lose_power

WRITE_BUFFER_BYTES = 64 * 1024
"""The least that LevelDB takes: a life fills several, and merges their tables behind its back."""
SIZES = (100, 3_000, 20_000)
VOTES = 50
BATCHES_MAX = 40


def in_own_process(home: Path, work: Callable[[], None]) -> int:
    """Run it, and return how the process ended (negative: by which signal)."""
    if (process := os.fork()) == 0:
        try:
            trace = os.open(home / "trace", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            ctypes.CDLL(None).disk_arm(os.fsencode(home), trace, 0, 0, 0, 0, 0)
            work()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def write(home: Path, acknowledged: Path, count: int) -> None:
    """Write so many batches, noting each one that returned, and die."""
    store = LevelStore.open(home / "data")
    head = int(store.get(b"head") or b"0")
    note = os.open(acknowledged, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for number in range(head + 1, head + count + 1):
        random = Random(number)
        records: list[tuple[bytes, bytes | None]] = [
            (b"k%08d" % number, random.randbytes(random.choice(SIZES))),
            (b"v%d" % (number % VOTES), random.randbytes(200)),
            (b"head", b"%d" % number),
        ]
        store.write(records)
        os.write(note, b"%d\n" % number)
    os.kill(os.getpid(), signal.SIGKILL)


def check(home: Path, acknowledged: Path) -> None:
    """Open the store and compare it with what was noted."""
    store = LevelStore.open(home / "data")
    head = int(store.get(b"head") or b"0")
    noted = int((acknowledged.read_text().split() or ["0"])[-1])
    if head < noted:
        raise ValueError(f"{noted} batches had returned, {head} are there")
    if [key for key, _ in store.scan(b"k")] != [b"k%08d" % number for number in range(1, head + 1)]:
        raise ValueError(f"a batch below {head} is missing")
    store.close()


def main(folder: Path, lives: int, seed: int, *, is_power_lost: bool) -> int:
    """Live so often; return the exit code."""
    leveldb.WRITE_BUFFER_BYTES = WRITE_BUFFER_BYTES
    random = Random(seed)
    home, acknowledged = folder / "home", folder / "acknowledged"
    home.mkdir()
    acknowledged.touch()
    for life in range(lives):
        ended = in_own_process(home, partial(write, home, acknowledged, random.randrange(1, BATCHES_MAX)))
        for _ in range(2):
            if is_power_lost:
                lose_power(home, home / "trace")
            if ended != -signal.SIGKILL or in_own_process(home, partial(check, home, acknowledged)):
                print(f"life {life} of seed {seed} in {home}")
                return 1
    print(f"{lives} lives, {acknowledged.read_text().count(chr(10))} batches, {len(list(home.glob('*/*.ldb')))} tables")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), is_power_lost=sys.argv[4] == "power"))
