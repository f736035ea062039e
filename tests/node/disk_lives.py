"""Lives of a node, alone in its consortium, on a disk that fails when it is told to (``faulty_disk.c``).

Run with that library preloaded: ``python -m tests.node.disk_lives SPEC.json``. Every life is a process of its own,
forked from this one. A case is three lives: one in which the disk fails at the k-th call of a kind, one after the
process was started again, one after the power went and took along whatever was never synced. k counts up until
a life has no such call. One JSON object a case goes to standard output.
"""

import ctypes
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import trio

from consensus.ledger.genesis import decode_genesis_untrusted
from contracts.runtime.execution import Executor
from contracts.runtime.registry import Registry
from node import program
from node.audit import StoreSource, verify_chain
from node.config import load_config
from node.driver import Commit
from node.program import Node
from node.reader import ChainReader
from node.storage.leveldb import LevelStore

WRITE, SYNC, RENAME = 1, 2, 3
ALARM_S = 120
PER_LIFE = 2
"""Transactions that one life makes final before it is killed."""


@dataclass(frozen=True)
class Fault:
    """Which call fails (see ``disk_arm``); number 0 is none."""

    kind: int = 0
    number: int = 0
    error: int = 0
    is_short: bool = False
    is_lasting: bool = False
    is_power_lost: bool = False
    """Whether the power goes with the fault, and not only after the life that follows it."""


@dataclass
class Case:
    """What came of one fault."""

    fault: Fault
    struck: str
    """The file that it hit."""
    codes: list[int]
    """Exit codes of the lives; 0 is killed after its work."""
    said: list[list[str]]
    """What each life told others: ``final HEIGHT HASH ID``, ``sent MESSAGE``, ``votes BOOL``; first the healthy one."""
    blocks: list[str]
    """Hashes from height 1 on; proven from genesis in the end."""


FAULTS = {
    "eio": Fault(SYNC, error=errno.EIO),
    "eio_and_power": Fault(SYNC, error=errno.EIO, is_power_lost=True),
    "eio_at_write": Fault(WRITE, error=errno.EIO),
    "full": Fault(WRITE, error=errno.ENOSPC, is_short=True),
    "full_for_good": Fault(WRITE, error=errno.ENOSPC, is_lasting=True),
    "full_at_sync": Fault(SYNC, error=errno.ENOSPC, is_lasting=True),
    "no_rename": Fault(RENAME, error=errno.EIO),
}


def live(home: Path, transactions: list[bytes], fault: Fault, trace: Path, said: Path) -> int:
    """Run the node in a process of its own until it has made some transactions final, or ends by itself."""
    if (process := os.fork()) == 0:
        code = 70
        try:
            code = _live(home, transactions, fault, trace, said)
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def _live(home: Path, transactions: list[bytes], fault: Fault, trace: Path, said: Path) -> int:
    os.dup2(os.open(said.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
    words = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    path = os.open(trace, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    async def work(node: Node) -> None:
        _listen(node, words)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_submit, node, transactions)
            await nursery.start(node.driver.run)

    program._run = work
    arguments = (fault.kind, fault.number, fault.error, int(fault.is_short), int(fault.is_lasting))
    ctypes.CDLL(None).disk_arm(os.fsencode(home), path, *arguments)
    return program.run(home)


def _listen(node: Node, words: int) -> None:
    def say(text: str) -> None:
        os.write(words, text.encode() + b"\n")

    def final(commit: Commit) -> None:
        block = commit.candidate.block
        for transaction in commit.candidate.transactions:
            say(f"final {block.height} {block.hash.hex()} {transaction.id.hex()}")

    def broadcast(kind: int, payload: bytes) -> None:
        say(f"sent {payload.hex()}")

    say(f"votes {node.driver.engine.status().is_validator}")
    node.driver.on_commit(final)
    node.network.broadcast = broadcast  # type: ignore[method-assign,assignment]


async def _submit(node: Node, transactions: list[bytes]) -> None:
    """Submit what is not final yet, one by one, then die as by kill -9."""
    made: list[bytes] = []
    changed = trio.Event()

    def final(commit: Commit) -> None:
        made.extend(commit.candidate.block.transactions)
        changed.set()

    node.driver.on_commit(final)
    done = 0
    for raw in transactions:
        [answer] = node.intake.submit_untrusted([raw])
        if answer.height is not None:
            continue  # final in an earlier life
        with trio.fail_after(ALARM_S):
            while raw not in made:
                await changed.wait()
                changed = trio.Event()
        done += 1
        if done == PER_LIFE:
            os._exit(0)


def lose_power(home: Path, trace: Path) -> None:
    """Cut every file down to what a sync has returned for; after a failed one nothing more of a file counts.

    So behave disks and kernels that forget a page whose write failed and report it once. Files are only ever appended
    to or replaced by a rename, and the order of those is kept, as journals keep it. A file that was never synced is
    gone, unless its folder was synced with it; then it is empty.
    """
    durable: dict[str, int] = {}
    begun: set[str] = set()
    broken: set[str] = set()
    for line in trace.read_text().splitlines():
        what, rest = line.split(" ", 1)
        match what:
            case "S":
                size, path = rest.split(" ", 1)
                if path not in broken:
                    durable[path] = int(size)
            case "O":
                durable.pop(rest, None)
                broken.discard(rest)
                begun.add(rest)
            case "D":
                durable |= {path: 0 for path in begun - set(durable) if str(Path(path).parent) == rest}
            case "B":
                broken.add(rest)
            case "R":
                old, new = rest.split("\t")
                durable[new] = durable.pop(old, 0)
                broken.discard(new)
    for file in [*(path for path in home.glob("data/**/*") if path.is_file()), home / "keys" / "incarnation"]:
        if file.name in ("LOCK", "LOG", "LOG.old") or not file.exists():
            continue
        kept = durable.get(str(file))
        if kept is None:
            file.unlink()
        elif file.stat().st_size > kept:
            os.truncate(file, kept)


def cases(folder: Path, home: Path, transactions: list[bytes], name: str, step: int) -> Iterator[Case]:
    """Yield the cases of one fault for every k that hits something."""
    number = 1
    while True:
        fault = replace(FAULTS[name], number=number)
        place = folder / f"{name}-{number}"
        copy = shutil.copytree(home, place / "home")
        trace, none = place / "trace", Fault()
        said = [place / f"said-{life}" for life in range(3)]
        trace.write_bytes((folder / "trace").read_bytes().replace(os.fsencode(home), os.fsencode(copy)))
        codes = [live(copy, transactions, fault, trace, said[0])]
        struck = [line[2:] for line in trace.read_text().splitlines() if line.startswith("F ")]
        if not struck:
            return
        if fault.is_power_lost:
            lose_power(copy, trace)
        codes.append(live(copy, transactions, none, trace, said[1]))
        lose_power(copy, trace)
        codes.append(live(copy, transactions, none, trace, said[2]))
        lose_power(copy, trace)
        heard = [path.read_text().splitlines() for path in (folder / "said", *said)]
        yield Case(fault, Path(struck[0]).name, codes, heard, proven_blocks(copy))
        shutil.rmtree(place)
        number += step


def proven_blocks(home: Path) -> list[str]:
    """Prove the chain from genesis and return its blocks' hashes."""
    config = load_config(home)
    store = LevelStore.open(config.data)
    try:
        genesis = decode_genesis_untrusted(config.genesis.read_bytes())
        height = verify_chain(StoreSource(store), genesis, Executor(Registry.shipped())).height
        blocks = [ChainReader(store).block(number) for number in range(1, height + 1)]
        return [block.hash.hex() for block in blocks if block is not None]
    finally:
        store.close()


def main(spec: Path) -> None:
    """Run what the file names: the home as it is before the fault, transactions, and every which k of which fault."""
    asked = json.loads(spec.read_text())
    folder, home = spec.parent, Path(asked["home"])
    transactions = [bytes.fromhex(item) for item in asked["transactions"]]
    code = live(home, transactions, Fault(), folder / "trace", folder / "said")
    print(json.dumps({"code": code}), flush=True)
    for name, step in asked["faults"].items():
        for case in cases(folder, home, transactions, name, step):
            print(json.dumps(asdict(case) | {"name": name}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
