"""Real system calls that fail under a real node: it stops, and what it had said holds, whatever the disk forgot."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consensus.ledger.transaction import ATOMIC, make_call, sign_transaction
from consensus.pbft.messages import Commit, PrePrepare, decode_message_untrusted
from contracts.runtime.registry import Registry
from node.network.genesis import activations_of, default_plan
from node.network.homes import init_network
from node.program import EXIT_STORAGE
from tests.conftest import require
from tests.node.disk_lives import FAULTS

pytestmark = pytest.mark.slow

STEPS = {
    "eio": 1,
    "eio_and_power": 4,
    "eio_at_write": 9,
    "full": 4,
    "full_for_good": 9,
    "full_at_sync": 6,
    "no_rename": 1,
}
"""Every which call of a kind fails; ``HANSA_DISK_STEP=1`` lets every one fail."""
SITES_MIN = {"eio": 12, "full": 15}
"""Calls that a life makes: the table, manifest and CURRENT of opening, the incarnation, three writes a block."""
VALIDITY_MS = 3_600_000
TRANSACTIONS = 10
TIMEOUT_S = 900
EIO = 5


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the failing disk."""
    if shutil.which("gcc") is None:
        require("compiler", "no gcc to compile the failing disk with")
    path = tmp_path_factory.mktemp("disk") / "faulty_disk.so"
    source = Path(__file__).with_name("faulty_disk.c")
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", path, source, "-ldl"], check=True)
    return path


def run_cases(folder: Path, library: Path, fault: str) -> Iterator[dict[str, Any]]:
    network = init_network(folder / "net", default_plan(validators=1), activations_of(Registry.shipped()))
    transactions = [
        sign_transaction(
            network.key("bank-a"),
            network.genesis.chain_id(),
            [make_call("tokens", "define", {"unit": f"u{number}", "decimals": 2, "description": "-"})],
            sequence=number,
            lane=b"",
            mode=ATOMIC,
            valid_until_ms=network.genesis.time_ms + VALIDITY_MS,
        )
        for number in range(TRANSACTIONS)
    ]
    spec = folder / "spec.json"
    asked = {
        "home": str(network.nodes[0].folder),
        "transactions": [transaction.raw.hex() for transaction in transactions],
        "faults": {fault: int(os.environ.get("HANSA_DISK_STEP") or STEPS[fault])},
    }
    spec.write_text(json.dumps(asked))
    done = subprocess.run(
        [sys.executable, "-m", "tests.node.disk_lives", spec],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    yield from map(json.loads, done.stdout.splitlines())


@pytest.mark.parametrize("fault", FAULTS)
def test_r47_r48_r55_a_disk_that_fails_at_any_call_ends_the_node_and_what_it_said_holds(
    tmp_path: Path, library: Path, fault: str
) -> None:
    """After a failed sync a page may be read that never reaches the disk (R48): the life between reads it, acts on it,
    and then the power goes."""
    results = list(run_cases(tmp_path, library, fault))
    assert results[0] == {"code": 0}, "the life before the fault"
    last = results[-1]["fault"]["number"]
    assert last >= SITES_MIN.get(fault, 1)
    for case in results[1:]:
        about = f"{case['fault']} at {case['struck']}"
        assert case["codes"] == [EXIT_STORAGE, 0, 0], about
        check_finality(case["said"], case["blocks"], about)
        check_votes(case["said"], about)


def check_finality(lives: list[list[str]], blocks: list[str], about: str) -> None:
    """What any life called final is in the chain, where it was, and only there."""
    places: dict[str, str] = {}
    for words in (line.split() for life in lives for line in life if line.startswith("final")):
        _, height, block_hash, transaction_id = words
        assert blocks[int(height) - 1] == block_hash, about
        assert places.setdefault(transaction_id, height) == height, about


def check_votes(lives: list[list[str]], about: str) -> None:
    """No two statements of all lives contradict each other, and the node votes in each."""
    said: dict[tuple[str, int, int], bytes] = {}
    digest: bytes
    for line in (line for life in lives for line in life):
        what, *rest = line.split()
        assert (what, rest) != ("votes", ["False"]), about
        message = decode_message_untrusted(bytes.fromhex(rest[0])) if what == "sent" else None
        match message:
            case PrePrepare(view=view, block=record):
                place, digest = ("proposal", message.height, view), record.header.hash()
            case Commit(height=height, view=view, block_hash=block_hash):
                place, digest = ("commit", height, view), block_hash
            case _:
                continue
        assert said.setdefault(place, digest) == digest, about


@pytest.mark.parametrize("how", ["kill", "power"])
def test_r54_r55_r58_kills_and_power_cuts_while_tables_are_merged_lose_nothing(
    tmp_path: Path, library: Path, how: str
) -> None:
    """Nor is a store refused after them, however unfinished its files look."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.node.disk_kills", tmp_path, os.environ.get("HANSA_DISK_LIVES", "12"), "1", how],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
