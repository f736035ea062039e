"""What the smallest steps cost: ``python -m bench.ledger``. Microseconds each, the median of five runs."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from consensus.ledger.codec import Value, decode_untrusted, encode
from consensus.ledger.genesis import Genesis
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey
from consensus.ledger.merkle import list_root
from consensus.ledger.transaction import EACH, Transaction, decode_transaction_untrusted, make_call, sign_transaction
from contracts.runtime.execution import BlockContext, Executor
from contracts.runtime.registry import Registry
from contracts.runtime.state import MemoryState
from node.network.genesis import activations_of, default_plan, make_genesis
from node.storage.leveldb import LevelStore

RUNS = 5
TIMES = 400
TIME_MS = 1_700_000_000_000


def main(*, as_json: bool = False) -> int:
    """Measure and print; return 0."""
    figures = {**_signatures(), **_execution(), **_storage()}
    if as_json:
        print(json.dumps({"us": figures}))
    else:
        for name, figure in figures.items():
            print(f"{name.replace('_', ' '):34} {figure:8.1f} µs")
    return 0


def _timed(step: Callable[[int], object], *, times: int = TIMES) -> float:
    """Return the microseconds of one step; it is given its number, which differs each time."""
    runs: list[float] = []
    for run in range(RUNS):
        began = time.perf_counter()
        for number in range(run * times, (run + 1) * times):
            step(number)
        runs.append((time.perf_counter() - began) / times)
    return round(sorted(runs)[RUNS // 2] * 1e6, 1)


def _signatures() -> dict[str, float]:
    key, chain_id = PrivateKey.from_secret(7), ChainId(bytes(32))
    made = [_transfer(key, chain_id, number) for number in range(RUNS * TIMES)]
    arguments: Value = {"unit": "EUR", "to": bytes(20), "amount": 5, "memo": "x" * 40}
    encoded = encode(arguments)
    leaves = [transaction.leaf for transaction in made[:500]]
    return {
        "sign_a_transfer": _timed(lambda number: _transfer(key, chain_id, number)),
        "decode_a_transfer": _timed(lambda number: decode_transaction_untrusted(made[number].raw)),
        "verify_a_transfer": _timed(lambda number: made[number].signed_by(key.public)),
        "encode_arguments": _timed(lambda _: encode(arguments)),
        "decode_arguments": _timed(lambda _: decode_untrusted(encoded)),
        "root_of_500_leaves": _timed(lambda _: list_root(leaves), times=20),
    }


def _transfer(key: PrivateKey, chain_id: ChainId, number: int, to: bytes = bytes(20)) -> Transaction:
    call = make_call("tokens", "transfer", {"unit": "EUR", "to": to, "amount": 1 + number % 9})
    return sign_transaction(key, chain_id, [call], sequence=number, valid_until_ms=TIME_MS + 60_000, mode=EACH)


def _execution() -> dict[str, float]:
    """Return what a call costs inside a block of many, without signatures and storage."""
    registry = Registry.shipped()
    genesis, keys = _genesis(registry)
    executor, chain_id = Executor(registry), genesis.chain_id()
    state = MemoryState()
    state.apply(executor.genesis_writes(genesis))
    block = BlockContext(chain_id, 1, TIME_MS + 1_000, 1_000, "bank-a")
    bank, shop = keys["bank-a"], keys["shop"]
    own = bytes(bank.public.address)
    ready = [
        make_call("tokens", "define", {"unit": "EUR"}),
        make_call("tokens", "issue", {"unit": "EUR", "to": own, "amount": 10**12}),
    ]
    funded = sign_transaction(bank, chain_id, ready, sequence=0, valid_until_ms=TIME_MS + 60_000, lane=b"setup")
    opened = make_call("rights", "open_campaign", {"campaign": "c", "quota": 10**12})
    campaign = sign_transaction(shop, chain_id, [opened], sequence=0, valid_until_ms=TIME_MS + 60_000, lane=b"setup")
    state.apply(executor.execute(state, block, [funded, campaign]).writes)
    other = bytes(shop.public.address)
    transfers = [_transfer(bank, chain_id, number, other) for number in range(TIMES)]
    creates = [
        make_call("rights", "create", {"campaign": "c", "order": f"o{n}", "user": f"u{n}", "amount": 1, "event": "e"})
        for n in range(100)
    ]
    created = sign_transaction(shop, chain_id, creates, sequence=0, valid_until_ms=TIME_MS + 60_000, mode=EACH)
    per_block = _timed(lambda _: executor.execute(state, block, transfers), times=2)
    per_hundred = _timed(lambda _: executor.execute(state, block, [created]), times=4)
    return {
        "execute_a_transfer": round(per_block / TIMES, 1),
        "execute_a_creation_of_rights": round(per_hundred / 100, 1),
    }


def _genesis(registry: Registry) -> tuple[Genesis, dict[str, PrivateKey]]:
    plan = default_plan()
    keys = {account.name: PrivateKey.generate() for account in plan.accounts}
    genesis = make_genesis(
        plan,
        time_ms=TIME_MS,
        roots={member.name: b"PEM" for member in plan.organisations},
        vote_keys={member.name: PrivateKey.generate().public for member in plan.validators},
        account_keys={name: key.public for name, key in keys.items()},
        activations=activations_of(registry),
    )
    return genesis, keys


def _storage() -> dict[str, float]:
    random = Random(1)
    with tempfile.TemporaryDirectory(prefix="hansa-bench-") as folder:
        store = LevelStore.open(Path(folder) / "store")
        keys = [random.randbytes(40) for _ in range(RUNS * TIMES)]
        value = random.randbytes(100)
        figures = {
            "synced_write_of_1": _timed(lambda number: store.write([(keys[number], value)]), times=100),
            "synced_write_of_1000": _timed(
                lambda number: store.write([(b"%d-%d" % (number, part), value) for part in range(1_000)]), times=10
            ),
            "get": _timed(lambda number: store.get(keys[number % 100])),
        }
        store.close()
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", dest="as_json")
    sys.exit(main(**vars(parser.parse_args())))
