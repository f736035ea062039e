"""The agency system dies at some moment of a package: ``python -m tests.network.agency_faults --rounds 20 --seed 1``.

Whatever dies and whenever, each order ends once and as it must, units are those that were confirmed, each package has
one anchor with both signatures, and nobody raised an alarm.
"""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

import trio

from services.demo.agency_network import AUTHORITY, PERMISSION
from tests.network.agency_system import NODES, PROGRAMS, System, running_agency

ORDERS = 24
DELAY_MS_MAX = 300
"""A package of a few orders takes less than this from sales end to anchor on an idle machine."""


async def die_in_turn(system: System, victims: list[list[str]], random: Random, *, name: str = "turn") -> Counter[str]:
    """For each group of victims send a package, kill them at a moment each, and go on; return who died how often."""
    died: Counter[str] = Counter()
    for number, group in enumerate(victims):
        source = f"{name}-{number}"
        async with trio.open_nursery() as nursery:
            for victim in group:
                delay_ms = random.randrange(DELAY_MS_MAX)
                nursery.start_soon(lambda victim=victim, delay_ms=delay_ms: system.crash(victim, after_ms=delay_ms))
                died[victim] += 1
            await system.bring(source, system.mixed(random, source, ORDERS))
        await system.till.until(source)
    await system.settle()
    return died


def draw_victims(random: Random, rounds: int) -> list[list[str]]:
    """Return groups of one to three that die together."""
    everybody = [*NODES, *PROGRAMS]
    return [random.sample(everybody, random.choice((1, 1, 2, 3))) for _ in range(rounds)]


async def run(folder: Path, *, rounds: int, seed: int) -> list[str]:
    """Play so many rounds on a network of its own and return what is wrong in the end."""
    random = Random(seed)
    async with running_agency(folder) as system:
        began = time.monotonic()
        died = await die_in_turn(system, draw_victims(random, rounds), random)
        await system.kill(AUTHORITY)
        await system.kill(PERMISSION)
        died += await die_in_turn(system, draw_victims(random, max(1, rounds // 4))[:1], random, name="alone")
        await system.start(PERMISSION)
        await system.start(AUTHORITY)
        faults = await system.faults()
        print(f"{len(system.wanted)} orders, died: {dict(died)}, {time.monotonic() - began:.0f} s", flush=True)
        return faults


def main() -> int:
    """Return 0 when nothing was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.network.agency_faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.rounds} rounds …", flush=True)
    with tempfile.TemporaryDirectory(prefix="hansa-agency-") as folder:
        faults = trio.run(lambda: run(Path(folder) / "net", rounds=arguments.rounds, seed=arguments.seed))
    print("\n".join(faults) or "nothing lost, nothing doubled, nothing out of place")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
