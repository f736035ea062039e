"""Clients that resolve identities and check every answer, in a process of their own: ``python -m bench.payee_client``.

It reads a :class:`Task` as one line of JSON from standard input, says :class:`Ready` when its clients are warm, runs
within the :class:`Window` that it is then told, and prints a :class:`Result`. Moments are of the monotonic clock, which
all processes of a machine share.
"""

import os
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import msgspec
import trio

from bench.payee_load import SERVER, acquiring_of, identity_of
from consensus.ledger.errors import InvariantError
from consensus.ledger.genesis import Genesis, decode_genesis_untrusted
from consensus.ledger.keys import PrivateKey
from consensus.ledger.payees import Delegation
from consensus.ledger.states import StatesChecker
from services.client.client import open_client
from services.client.tasks import single_errors
from services.payee.resolver import QuerySigner, Resolver

WARM = 20
"""So many are resolved by each before anything counts."""


class Task(msgspec.Struct, frozen=True):
    """What one process does.

    Args:
        genesis: path of the genesis document.
        nodes: RPC roots of nodes with an environment; each client begins with the next one.
        secret, until_ms, signature: of the key that the platform lets sign queries.
        merchants: how many there are on the chain.
        clients: how many resolve side by side.
        seed: decides whom.
    """

    genesis: str
    nodes: list[str]
    secret: bytes
    until_ms: int
    signature: bytes
    merchants: int
    clients: int
    seed: int


class Ready(msgspec.Struct, frozen=True):
    """Said once all clients are warm."""


class Window(msgspec.Struct, frozen=True):
    """From when to when resolutions count, seconds of the monotonic clock."""

    begin_s: float
    end_s: float


class Result(msgspec.Struct, frozen=True):
    """What a process measured: the time of each verified resolution within the window, ms, and what it cost here."""

    times_ms: list[float]
    processor_s: float


def main() -> None:
    """Run one task."""
    task = msgspec.json.decode(sys.stdin.readline(), type=Task)
    genesis = decode_genesis_untrusted(Path(task.genesis).read_bytes())
    result = trio.run(_run, task, genesis)
    _say(result)


async def _run(task: Task, genesis: Genesis) -> Result:
    key = PrivateKey.from_secret(int.from_bytes(task.secret, "big"))
    signer = QuerySigner(SERVER, key, Delegation(SERVER, key.public.compressed, task.until_ms, task.signature))
    random, times_ms = Random(task.seed), list[float]()
    async with AsyncExitStack() as stack:
        checker = StatesChecker(genesis)
        resolvers = []
        for at in range(task.clients):
            first = (task.seed + at) % len(task.nodes)
            client = await stack.enter_async_context(open_client(genesis, [*task.nodes[first:], *task.nodes[:first]]))
            resolvers.append(Resolver(client, signer, now_ms=clock_ms, random_bytes=os.urandom, checker=checker))
        for resolver in resolvers:
            for _ in range(WARM):
                await resolve(resolver, random.randrange(task.merchants))
        _say(Ready())
        window = msgspec.json.decode(await trio.to_thread.run_sync(sys.stdin.readline), type=Window)
        await trio.sleep(max(0.0, window.begin_s - time.monotonic()))
        before = time.process_time()
        with single_errors():
            async with trio.open_nursery() as nursery:
                for resolver in resolvers:
                    nursery.start_soon(_resolve_until, resolver, task.merchants, random, window.end_s, times_ms)
        return Result(times_ms, time.process_time() - before)


async def _resolve_until(
    resolver: Resolver, merchants: int, random: Random, end_s: float, times_ms: list[float]
) -> None:
    while (began := time.monotonic()) < end_s:
        await resolve(resolver, random.randrange(merchants))
        done = time.monotonic()
        if done < end_s:
            times_ms.append(1_000 * (done - began))


async def resolve(resolver: Resolver, number: int) -> None:
    """Resolve a merchant, and check that what was proven is what was stored.

    Raises:
        InvariantError: it is something else: figures would say nothing.
    """
    target = (await resolver.resolve(identity_of(number))).target
    if target is None or target.acquiring != acquiring_of(number):
        raise InvariantError(f"merchant {number} is resolved to something else than was stored")


def _say(words: msgspec.Struct) -> None:
    print(msgspec.json.encode(words).decode(), flush=True)


def clock_ms() -> int:
    """Return the time, ms UTC."""
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    main()
