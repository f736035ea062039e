"""Random histories of settlement: ``python -m tests.settlement.histories --count 10000 --seed 1``.

Each history is drawn from its own seed: some dozens of steps of the real parts with faults in them, then everything
heals and runs to rest. Printed are how the events ended, and which faults were met; exit 1 with the first seed that
breaks a rule.
"""

import argparse
import logging
import os
import random
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

from tests.settlement.world import FAULTS, PARTS, STEPS, Step, World

STEPS_MAX = 60
CALLS_MAX = 8
WEIGHTS = {
    **dict.fromkeys(PARTS, 10),
    "trade": 14,
    "listen": 14,
    "drain": 14,
    "pay": 14,
    "seal": 20,
    "lift": 4,
    "reverse": 6,
    "repair": 5,
    "double": 3,
    "node": 4,
    "time": 3,
    "deposit": 2,
    "freeze": 2,
    "rogue": 2,
    "restart": 2,
    "suspend": 2,
    **dict.fromkeys(("skew", "bank_release", "center", "accounts"), 1),
}


def history(seed: int) -> list[Step]:
    """Return the steps of a history."""
    rng = random.Random(seed)
    return [_step(rng) for _ in range(rng.randint(10, STEPS_MAX))]


def _step(rng: random.Random) -> Step:
    name = rng.choices(STEPS, [WEIGHTS[one] for one in STEPS])[0]
    a, b = rng.randrange(60), rng.randrange(60)
    if name not in PARTS or rng.random() < 0.5:
        return Step(name, a, b)
    fault = rng.choice(FAULTS[1:])
    at = rng.randrange(CALLS_MAX)
    if fault != "meanwhile":
        return Step(name, a, b, fault, at)
    inner = Step(rng.choices(STEPS, [WEIGHTS[one] for one in STEPS])[0], rng.randrange(60), rng.randrange(60))
    more = Step(name, a, b, rng.choice(FAULTS[1:-1]), at + 1 + rng.randrange(3))
    return Step(name, a, b, fault, at, inner, rng.choice((None, more)))


def play(seed: int) -> Counter[str]:
    """Play a history to its end, every fourth without relay, and return what happened how often."""
    world = World(is_relay_on=seed % 4 > 0)
    for step in history(seed):
        world.act(step)
    world.rest(seed)
    assert world.alarms == [], world.alarms
    return world.counts


def _share(first: int, count: int, stride: int) -> tuple[Counter[str], int, str]:
    logging.disable()
    counts: Counter[str] = Counter()
    for seed in range(first, first + count * stride, stride):
        try:
            counts += play(seed)
        except BaseException:
            return counts, seed, traceback.format_exc()
    return counts, 0, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    given = parser.parse_args()
    began = time.perf_counter()
    counts: Counter[str] = Counter()
    firsts = range(given.seed, given.seed + given.workers)
    share = -(-given.count // given.workers)
    with ProcessPoolExecutor(given.workers) as pool:
        ends = list(pool.map(_share, firsts, repeat(share), repeat(given.workers)))
    for some, seed, why in ends:
        counts += some
        if why:
            print(f"seed {seed}\n{why}")
    for name, count in sorted(counts.items()):
        print(f"{count:9,} {name}")
    print(f"{given.count:,} histories in {time.perf_counter() - began:.0f} s")
    return any(why for _, _, why in ends)


if __name__ == "__main__":
    sys.exit(main())
