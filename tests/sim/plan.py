"""What one seed draws: size, faults and their strength, liars.

Swarm testing: each fault is on in about half of the schedules, so that none hides what another would show.
"""

from dataclasses import dataclass, fields, replace
from random import Random

from tests.sim.byzantine import STRATEGIES

SIZES = (1, 2, 3, 4, 4, 4, 4, 5, 6, 7, 7)
LOSSY_KINDS = (
    ("Commit",),
    ("Commit", "Decided"),
    ("Prepare",),
    ("PrePrepare",),
    ("NewView",),
    ("ViewChange",),
    ("Status",),
    ("Commit", "Decided", "Status"),
    ("BlockBody", "PrePrepare"),
)
REAL_KEYS_EVERY = 16
UNLIMITED_SHARE = 0.25
FAR_OFF_MS = 3_600_000
"""A clock that far off lets its node vote for nobody's fresh block; few at a time, else nothing happens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One schedule, calm unless told otherwise. Probabilities in per mille, times in simulated ms; 0 is off.

    Messages of ``lossy_kinds`` are lost with a probability of their own: what hurts is often the loss of one kind.
    ``skew_permille`` says how many clocks are off, by ``skew_ms_max`` at the most. ``liars`` gives each Byzantine
    node its strategies. ``drift_permille`` bounds how much faster or slower a clock runs; for timers it stays on in
    the liveness phase, like the liars.

    ``fragile`` nodes are honest, and their disks do what LevelDB rules out. ``one_way_permille`` of all directed
    links are dead until the faults heal. An ``unlimited`` schedule breaks more machines than may break at a time: only
    that nothing contradictory happens is checked then, not that anything happens. ``set_changes`` says how often the
    membership changes; ``changes`` names the first of them: admit, remove, replace, renew.
    """

    seed: int
    validators: int = 4
    real_keys: bool = False
    safety_ms: int = 10_000
    transactions: int = 10
    tick_ms: int = 50
    delay_ms_max: int = 5
    slow_permille: int = 0
    slow_delay_ms_max: int = 200
    loss_permille: int = 0
    lossy_kinds: tuple[str, ...] = ()
    lossy_permille: int = 0
    duplicate_permille: int = 0
    partition_every_ms: int = 0
    partition_one_way_permille: int = 0
    crash_every_ms: int = 0
    crash_at_effect_permille: int = 0
    downtime_ms_max: int = 1_000
    freeze_every_ms: int = 0
    freeze_ms_max: int = 1_000
    skew_ms_max: int = 0
    skew_permille: int = 1_000
    drift_permille: int = 0
    disk_ms_max: int = 0
    conflict_permille: int = 0
    unlimited: bool = False
    one_way_permille: int = 0
    clock_step_every_ms: int = 0
    write_error_permille: int = 0
    fragile: tuple[int, ...] = ()
    torn_permille: int = 0
    misdirected_permille: int = 0
    rot_every_ms: int = 0
    wipe_every_ms: int = 0
    set_changes: int = 0
    changes: tuple[str, ...] = ()
    liars: tuple[tuple[int, tuple[str, ...]], ...] = ()

    def describe(self) -> str:
        """Return all that is on, for people."""
        shown = [f"{field.name}={getattr(self, field.name)}" for field in fields(self)]
        return " ".join(text for text in shown if not text.endswith(("=0", "=()", "=False")))


def draw_plan(seed: int) -> Plan:
    """Draw the schedule of a seed."""
    return _with_breakage(_draw_basics(seed))


def _with_breakage(plan: Plan) -> Plan:
    """Add what has a stream of its own: bad disks, dead links, clocks that are set, and how many machines may break."""
    random = Random(f"{plan.seed}/breakage")
    unlimited = random.random() < UNLIMITED_SHARE

    def some(*choices: int) -> int:
        strength = random.choice(choices)
        return strength if random.random() < 0.4 else 0

    lying = {index for index, _ in plan.liars}
    honest = [index for index in range(plan.validators) if index not in lying]
    spare = len(honest) if unlimited else (plan.validators - 1) // 3 - len(lying)
    fragile = tuple(sorted(random.sample(honest, random.randint(0, spare))))
    return replace(
        plan,
        unlimited=unlimited,
        one_way_permille=some(100, 300),
        clock_step_every_ms=some(1_000, 5_000),
        write_error_permille=some(2, 10, 50),
        fragile=fragile,
        torn_permille=random.choice((0, 500, 1_000)) if fragile else 0,
        misdirected_permille=random.choice((0, 10, 100)) if fragile else 0,
        rot_every_ms=random.choice((0, 1_000, 5_000)) if fragile else 0,
        wipe_every_ms=some(1_000, 5_000) if unlimited else 0,
        set_changes=some(1, 3, 8),
        crash_every_ms=plan.crash_every_ms or (some(100, 300) if unlimited else 0),
    )


def _draw_basics(seed: int) -> Plan:
    random = Random(f"{seed}/plan")
    validators = random.choice(SIZES)

    def some(*choices: int) -> int:
        """Switch a fault on half of the time, with one of these strengths."""
        strength = random.choice(choices)
        return strength if random.random() < 0.5 else 0

    skew_ms_max = some(1_000, 5_000, FAR_OFF_MS)
    liars_max = (validators - 1) // 3
    count = random.randint(0, liars_max) if random.random() < 0.4 else liars_max
    liars = tuple(
        (index, tuple(sorted(random.sample(sorted(STRATEGIES), random.choice((1, 1, 2, 3))))))
        for index in sorted(random.sample(range(validators), count))
    )
    lossy_kinds = random.choice(LOSSY_KINDS) if random.random() < 0.4 else ()
    return Plan(
        seed=seed,
        validators=validators,
        real_keys=seed % REAL_KEYS_EVERY == 0,
        safety_ms=random.choice((5_000, 10_000, 20_000, 40_000)),
        transactions=random.choice((3, 10, 30, 60)),
        tick_ms=random.choice((25, 25, 50, 50, 200)),
        delay_ms_max=random.choice((1, 5, 20, 100, 400)),
        slow_permille=some(10, 100, 300),
        slow_delay_ms_max=random.choice((200, 1_500, 5_000)),
        loss_permille=some(10, 50, 150, 300),
        lossy_kinds=lossy_kinds,
        lossy_permille=random.choice((500, 800, 950)) if lossy_kinds else 0,
        duplicate_permille=some(10, 100, 500),
        partition_every_ms=some(300, 700, 2_000, 5_000),
        partition_one_way_permille=random.choice((0, 300, 1_000)),
        crash_every_ms=some(300, 1_000, 3_000),
        crash_at_effect_permille=random.choice((500, 900, 1_000)),
        downtime_ms_max=random.choice((50, 1_000, 8_000)),
        freeze_every_ms=some(1_000, 4_000),
        freeze_ms_max=random.choice((300, 3_000, 8_000)),
        skew_ms_max=skew_ms_max,
        skew_permille=350 if skew_ms_max == FAR_OFF_MS else 1_000,
        drift_permille=some(50, 500),
        disk_ms_max=random.choice((0, 0, 2, 10, 100)),
        conflict_permille=some(100, 300),
        liars=liars,
    )
