"""What one seed draws: size, faults and their strength, liars.

Swarm testing: each fault is on in about half of the schedules, so that none hides what another would show.
"""

from dataclasses import dataclass, fields
from random import Random

from tests.sim.byzantine import STRATEGIES

SIZES = (1, 2, 3, 4, 4, 4, 4, 5, 6, 7, 7)
REAL_KEYS_EVERY = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One schedule. Probabilities in per mille, times in simulated ms; 0 switches a fault off.

    ``liars`` gives each Byzantine node its strategies. ``drift_permille`` bounds how much faster or slower
    a clock runs, and stays on in the liveness phase like the liars.
    """

    seed: int
    validators: int
    real_keys: bool
    safety_ms: int
    transactions: int
    tick_ms: int
    delay_ms_max: int
    slow_permille: int
    slow_delay_ms_max: int
    loss_permille: int
    duplicate_permille: int
    partition_every_ms: int
    partition_one_way_permille: int
    crash_every_ms: int
    crash_at_effect_permille: int
    downtime_ms_max: int
    freeze_every_ms: int
    freeze_ms_max: int
    skew_ms_max: int
    drift_permille: int
    disk_ms_max: int
    conflict_permille: int
    liars: tuple[tuple[int, tuple[str, ...]], ...]

    def describe(self) -> str:
        """Return all that is on, for people."""
        shown = [f"{field.name}={getattr(self, field.name)}" for field in fields(self)]
        return " ".join(text for text in shown if not text.endswith(("=0", "=()", "=False")))


def draw_plan(seed: int) -> Plan:
    """Draw the schedule of a seed."""
    random = Random(f"{seed}/plan")
    validators = random.choice(SIZES)

    def some(*choices: int) -> int:
        """Switch a fault on half of the time, with one of these strengths."""
        strength = random.choice(choices)
        return strength if random.random() < 0.5 else 0

    liars_max = (validators - 1) // 3
    count = random.randint(0, liars_max) if random.random() < 0.4 else liars_max
    liars = tuple(
        (index, tuple(sorted(random.sample(sorted(STRATEGIES), random.choice((1, 1, 2, 3))))))
        for index in sorted(random.sample(range(validators), count))
    )
    return Plan(
        seed=seed,
        validators=validators,
        real_keys=seed % REAL_KEYS_EVERY == 0,
        safety_ms=random.choice((5_000, 10_000, 20_000, 40_000)),
        transactions=random.choice((3, 10, 30, 60)),
        tick_ms=random.choice((25, 50)),
        delay_ms_max=random.choice((1, 5, 20, 100, 400)),
        slow_permille=some(10, 100, 300),
        slow_delay_ms_max=random.choice((200, 1_500, 5_000)),
        loss_permille=some(10, 50, 150, 300),
        duplicate_permille=some(10, 100, 500),
        partition_every_ms=some(700, 2_000, 5_000),
        partition_one_way_permille=random.choice((0, 300, 1_000)),
        crash_every_ms=some(300, 1_000, 3_000),
        crash_at_effect_permille=random.choice((500, 900, 1_000)),
        downtime_ms_max=random.choice((50, 1_000, 8_000)),
        freeze_every_ms=some(1_000, 4_000),
        freeze_ms_max=random.choice((300, 3_000, 8_000)),
        skew_ms_max=some(1_000, 5_000, 3_600_000),
        drift_permille=some(50, 500),
        disk_ms_max=random.choice((0, 0, 2, 10, 100)),
        conflict_permille=some(100, 300),
        liars=liars,
    )
