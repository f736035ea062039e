"""The same blocks give the same bytes: twice, after other blocks, and in processes set up differently."""

import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.ledger.block import receipts_root, writes_root
from consensus.ledger.codec import encode
from consensus.ledger.errors import PeerError
from consensus.ledger.receipt import FAILED, OK, receipt_codec
from consensus.ledger.transaction import ATOMIC, EACH, Call, make_call
from contracts.runtime.execution import Execution
from tests.contracts.runtime.samples import PROBE
from tests.contracts.support import ACCOUNTS, KEYS, Chain, make_registry

ROOT = Path(__file__).parents[3]
NAMES = sorted(ACCOUNTS)


def roots(execution: Execution) -> tuple[bytes, bytes, bytes]:
    """Return what a header would commit to."""
    return receipts_root(execution.receipts), writes_root(execution.writes), execution.validators.hash()


def random_value(random: Random, depth: int = 3) -> Any:
    """Return any canonical value."""
    choice = random.randrange(8 if depth else 6)
    match choice:
        case 0:
            return random.choice([0, 1, -1, random.getrandbits(62), 10**15, 2**63 - 1])
        case 1:
            return random.choice(["", "EUR", "alice", "c1", "o1", "u1", "e1", "é" * random.randrange(4)])
        case 2:
            return random.choice([KEYS[name].public.address for name in NAMES])
        case 3:
            return random.choice([None, True, False])
        case 4:
            return random.randrange(1, 100)
        case 5:
            return random.choice([KEYS[name].public.compressed for name in NAMES])
        case 6:
            return [random_value(random, depth - 1) for _ in range(random.randrange(4))]
        case _:
            return {random.choice("abcxyz"): random_value(random, depth - 1) for _ in range(random.randrange(4))}


def random_call(random: Random, chain: Chain) -> Call:
    """Return a call of a real method with arguments that mostly fit, or that do not at all."""
    contract = random.choice(chain.registry.newest())
    method = contract.methods[random.choice(sorted(contract.methods))]
    likely = {
        "account": lambda: KEYS[random.choice(NAMES)].public.address,
        "amount": lambda: random.randrange(1, 50),
        "text": lambda: random.choice(["EUR", "c1", "o1", "o2", "u1", "e1", "e2", "k"]),
        "name": lambda: random.choice(["e1", "e2", "k"]),
        "int": lambda: random.randrange(0, 40),
        "bool": lambda: random.random() < 0.5,
    }
    arguments = {
        argument.name: likely.get(argument.type.rstrip("?"), lambda: random_value(random))()
        if random.random() < 0.95
        else random_value(random)
        for argument in method.arguments
        if argument.is_required or random.random() < 0.3
    }
    if random.random() < 0.05:
        return Call(contract.name, method.name, random.randbytes(random.randrange(20)))
    return Call(contract.name, method.name, encode(arguments))


def play(seed: int, blocks: int = 6) -> list[tuple[bytes, bytes, bytes]]:
    """Play random blocks on a chain of its own and return their roots."""
    random = Random(seed)
    chain = Chain(make_registry(PROBE))
    chain.submit(
        "issuer",
        make_call("tokens", "define", {"unit": "EUR"}),
        make_call("tokens", "issue", {"unit": "EUR", "to": chain.address("alice"), "amount": 1_000}),
    )
    chain.ok("shop", "rights", "open_campaign", campaign="c1", quota=1_000)
    history: list[tuple[bytes, bytes, bytes]] = []
    statuses: set[int] = set()
    for _ in range(blocks):
        senders = [name for name in NAMES if random.random() < 0.7]
        transactions = [
            chain.transaction(
                name,
                *[random_call(random, chain) for _ in range(random.randrange(1, 8))],
                mode=random.choice([ATOMIC, EACH]),
                lane=random.choice([b"", b"a", random.randbytes(32)]),
            )
            for name in senders
        ]
        run = chain.executor.begin(chain.state, chain.block_context())
        admitted = []
        for transaction in transactions:
            try:
                run.apply(transaction)
            except PeerError as error:
                if error.code != "account_suspended":
                    raise
            else:
                admitted.append(transaction)
        execution = chain.block(admitted)
        if roots(run.finish()) != roots(execution):
            raise AssertionError("a block built step by step differs from the block as a whole")
        for receipt in execution.receipts:
            statuses.add(receipt.status)
            if receipt_codec.decode_untrusted(receipt_codec.encode(receipt)) != receipt:
                raise AssertionError("a receipt changes in its encoding")
        history.append(roots(execution))
    if seed == 0 and statuses != {OK, FAILED}:
        raise AssertionError("random calls must both succeed and fail")
    return history


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_r42_any_block_executes_and_replays(seed: int) -> None:
    assert play(seed) == play(seed)


def digest_of_plays() -> str:
    """Return one hash over several plays and over every bomb's receipts; run in several processes."""
    from consensus.ledger.ids import tagged_hash
    from tests.contracts.domain.agency import play_agency
    from tests.contracts.domain.consortium import play_membership
    from tests.contracts.runtime.samples import contract_of
    from tests.contracts.runtime.test_metering import BOMBS

    parts = [b"".join(entry) for seed in range(8) for entry in play(seed)]
    sources = [contract_of(body, name=f"bomb-{index}") for index, body in enumerate(BOMBS.values())]
    chain = Chain(make_registry(*sources))
    for index in range(len(BOMBS)):
        call = make_call(f"bomb-{index}", "run", {})
        parts.append(b"".join(roots(chain.block([chain.transaction("alice", call)]))))
    parts += [play_membership(), play_agency()]
    return tagged_hash("plays", *parts).hex()


SETTINGS: list[dict[str, str]] = [
    {"PYTHONHASHSEED": "0", "LC_ALL": "C", "TZ": "UTC"},
    {"PYTHONHASHSEED": "1", "LC_ALL": "C.UTF-8", "TZ": "Asia/Shanghai", "PYTHONOPTIMIZE": "2"},
    {"PYTHONHASHSEED": "424242", "LC_ALL": "tr_TR.UTF-8", "TZ": "America/St_Johns", "PYTHONINTMAXSTRDIGITS": "640"},
]


def test_the_same_in_processes_set_up_differently() -> None:
    script = "from tests.contracts.runtime.test_determinism import digest_of_plays; print(digest_of_plays())"
    digests = []
    for setting in SETTINGS:
        environment = {**os.environ, **setting, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        digests.append(done.stdout.strip())
    assert len(digests[0]) == 64
    assert len(set(digests)) == 1, digests
