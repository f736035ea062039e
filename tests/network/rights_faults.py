"""Accidents of the whole rights system under load: ``python -m tests.network.rights_faults --rounds 10 --seed 1``.

Whatever happens, each event ends in exactly one state, the one the model says; none is lost, none takes effect twice,
and no unit appears or vanishes.
"""

import argparse
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import trio

from services.messages.streams import CALL_SECONDS_MAX
from tests.messages.redis import RedisServer, new_redis
from tests.network.rights_model import Model
from tests.network.rights_system import BUSINESS, CENTER, SECOND, SERVER, System, running_system
from tests.network.support import pass_time, same_block

STEADY_MS = 200
"""The chain has come to rest when it says the same twice with this much time between."""
HEALING_S = 60
RATE_PER_S = 400.0

Accident = Callable[[], Awaitable[None]]


@dataclass
class Faults:
    """Accidents of a running system, and what could be seen of them."""

    system: System
    model: Model
    redis: RedisServer | None = None
    freeze_ms: int = 3_000
    unheard: int = 0
    """Events that had taken effect on the chain while the centre did not know it when their rights server died."""
    taken_over: int = 0
    """Events that one rights server held when it froze and another one got."""
    log: list[str] = field(default_factory=list)

    async def play(self, accidents: Sequence[Accident], stories: int) -> list[str]:
        """Post orders, let accidents happen one after the other meanwhile, and return what is wrong in the end."""
        random, system = self.model.random, self.system
        async with trio.open_nursery() as watching:
            watching.start_soon(system.watch)
            for act in (self.model.orders(stories), self.model.spending(), self.model.returns()):
                random.shuffle(act)
                async with trio.open_nursery() as posting:
                    posting.start_soon(system.post, act, random)
                    happening, accidents = (accidents, ()) if accidents else ((), ())
                    for accident in happening:
                        await self._play(accident)
                if not await system.drained():
                    break
            watching.cancel_scope.cancel()
        faults = await system.faults(self.model)
        await same_block(system.network, timeout_s=HEALING_S)
        return faults

    async def _play(self, accident: Accident) -> None:
        started = time.monotonic()
        await accident()
        self.log.append(f"{getattr(accident, '__name__', accident)}: {time.monotonic() - started:.1f} s")

    async def kill_center(self) -> None:
        """Kill -9 the message centre while events come in and go out."""
        await self._kill(CENTER)

    async def kill_business(self) -> None:
        """Kill -9 the business server."""
        await self._kill(BUSINESS)

    async def kill_server(self) -> None:
        """Kill -9 the rights server."""
        await self._kill(SERVER)

    async def _kill(self, name: str) -> None:
        await self.system.more_ended(self.model.random.randrange(1, 60))
        # Stopped first, so that what others ask of it is under way when it dies.
        self.system.freeze(name)
        self.system.waiting = 0
        await pass_time(self.model.random.randrange(50, 300))
        await self.system.kill(name)
        await self.system.start(name)

    async def freeze_chain(self) -> None:
        """Stop all validators for a while; intake goes on."""
        await self.system.more_ended(self.model.random.randrange(1, 60))
        names = [node.name for node in self.system.network.nodes]
        self.system.freeze(*names)
        await pass_time(self.freeze_ms)
        self.system.resume(*names)
        await self.system.more_ended(1)

    async def lose_acknowledgements(self) -> None:
        """Kill the rights server after its transactions are final and before the centre hears of it."""
        system = self.system
        await system.more_ended(self.model.random.randrange(20, 60))
        while not (await system.stats()).leased:
            await pass_time(1)
        system.freeze(CENTER)
        before, now = -1, await system.applied(self.model.balances)
        while now != before:
            await pass_time(STEADY_MS)
            before, now = now, await system.applied(self.model.balances)
        await system.kill(SERVER)
        # Woken, it would still read what the dead server had sent.
        await system.kill(CENTER)
        await system.start(CENTER)
        self.unheard += now - (await system.stats()).done
        await system.start(SERVER)

    async def deliver_twice(self) -> None:
        """Freeze a rights server with what it holds, let another one get the same, and wake the first."""
        system = self.system
        await system.start(SECOND)
        await system.more_ended(self.model.random.randrange(20, 60))
        while not (held := (await system.stats()).leased):
            await pass_time(1)
        self.taken_over += held
        system.freeze(SERVER)
        await system.more_ended(held + 40)
        system.resume(SERVER)
        await system.more_ended(20)
        await system.kill(SECOND)

    async def restart_redis(self) -> None:
        """Kill -9 the Redis under the centre and start it again."""
        assert self.redis is not None
        await self.system.more_ended(self.model.random.randrange(1, 60))
        await trio.to_thread.run_sync(self.redis.kill)
        await pass_time(self.model.random.randrange(0, 1_000))
        await trio.to_thread.run_sync(self.redis.start)
        await self.system.more_ended(1)

    async def outlast_center(self) -> None:
        """Keep Redis away for longer than the centre waits: it ends with a reason, and goes on once both are back."""
        assert self.redis is not None
        await self.system.more_ended(self.model.random.randrange(1, 60))
        await trio.to_thread.run_sync(self.redis.kill)
        process = self.system.programs[CENTER].process
        with trio.fail_after(4 * CALL_SECONDS_MAX):
            await process.wait_stopped()
        assert process.ending().code == "redis_failed", process.ending()
        await trio.to_thread.run_sync(self.redis.start)
        await self.system.start(CENTER)

    def all(self) -> list[Accident]:
        """Return one accident of each kind that there can be, in an order that the seed decides."""
        kinds: list[Accident] = [self.kill_center, self.kill_business, self.kill_server]
        kinds += [self.freeze_chain, self.lose_acknowledgements, self.deliver_twice]
        if self.redis is not None:
            kinds.append(self.restart_redis)
        self.model.random.shuffle(kinds)
        return kinds


async def _rounds(rounds: int, seed: int, store: str, is_strict: bool, freeze_ms: int, stories: int) -> int:
    """Play all accidents again and again on one system; return how many rounds went wrong."""
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="hansa-faults-") as folder:
        redis = new_redis(Path(folder) / "redis") if store == "redis" else None
        if redis is not None:
            redis.start()
        try:
            url = "embedded" if redis is None else redis.url
            async with running_system(
                Path(folder) / "net", store=url, rate_per_s=RATE_PER_S, is_strict=is_strict
            ) as system:
                model = Model(Random(seed), "")
                for number in range(rounds):
                    model.begin(Random(seed + number), f"r{number}")
                    faults = Faults(system, model, redis, freeze_ms)
                    accidents = faults.all() + ([faults.outlast_center] if redis else [])
                    found = await faults.play(accidents, stories)
                    wrong += bool(found)
                    print(f"seed {seed + number}: {'; '.join(faults.log)}")
                    print(f"  {faults.unheard} unheard, {faults.taken_over} taken over, {found or 'all as it must be'}")
        finally:
            if redis is not None:
                redis.kill()
    return wrong


def main() -> None:
    """Read the options, play, and leave with 1 if anything was wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=("embedded", "redis"), default="embedded")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--freeze-ms", type=int, default=30_000)
    parser.add_argument("--orders", type=int, default=2_000)
    given = parser.parse_args()
    play = partial(_rounds, given.rounds, given.seed, given.store, given.strict, given.freeze_ms, given.orders)
    raise SystemExit(min(1, trio.run(play)))


if __name__ == "__main__":
    main()
