"""The links between nodes: late, lossy, doubling, out of order, cut in both directions or in one."""

from collections.abc import Callable, Iterable
from random import Random

from consensus.ledger.ids import NodeName
from p2p.frames import FrameKind
from tests.sim.plan import Plan
from tests.sim.scheduler import Scheduler

Deliver = Callable[[NodeName, NodeName, FrameKind, bytes], None]
"""From, to, kind, payload."""

HEALED_DELAY_MS_MAX = 20


class Fabric:
    """Carries frames; TLS makes the sender's name true and the bytes whole, and nothing else is promised."""

    def __init__(self, plan: Plan, scheduler: Scheduler, deliver: Deliver) -> None:
        self._plan = plan
        self._scheduler = scheduler
        self._deliver = deliver
        self._random = Random(f"{plan.seed}/network")
        self._cut: set[tuple[NodeName, NodeName]] = set()
        self._dead: dict[tuple[NodeName, NodeName], bool] = {}
        """Directed links drawn so far, and whether nothing passes there until the faults heal."""
        self._healed = False
        self.frames = 0

    def send(
        self, sender: NodeName, to: NodeName, kind: FrameKind, payload: bytes, *, content: str = "", extra_ms: int = 0
    ) -> None:
        """Take a frame to be delivered never, once or twice; ``content`` names the type of a consensus message."""
        random, plan = self._random, self._plan
        self.frames += 1
        if (sender, to) in self._cut or self._is_dead(sender, to):
            return
        copies = 1
        if not self._healed:
            if random.randrange(1_000) < plan.loss_permille:
                return
            if content in plan.lossy_kinds and random.randrange(1_000) < plan.lossy_permille:
                return
            copies += random.randrange(1_000) < plan.duplicate_permille
        for _ in range(copies):
            self._scheduler.after(extra_ms + self._delay_ms(), lambda: self._arrive(sender, to, kind, payload))

    def _is_dead(self, sender: NodeName, to: NodeName) -> bool:
        if self._healed or not self._plan.one_way_permille:
            return False
        if (sender, to) not in self._dead:
            drawn = Random(f"{self._plan.seed}/{sender}/{to}").randrange(1_000)
            self._dead[sender, to] = drawn < self._plan.one_way_permille
        return self._dead[sender, to]

    def _delay_ms(self) -> int:
        random, plan = self._random, self._plan
        if self._healed:
            return random.randint(0, min(plan.delay_ms_max, HEALED_DELAY_MS_MAX))
        if random.randrange(1_000) < plan.slow_permille:
            return random.randint(0, plan.slow_delay_ms_max)
        return random.randint(0, plan.delay_ms_max)

    def _arrive(self, sender: NodeName, to: NodeName, kind: FrameKind, payload: bytes) -> None:
        if (sender, to) not in self._cut:
            self._deliver(sender, to, kind, payload)

    def part(self, names: list[NodeName]) -> str:
        """Draw a new partition, of two sides or of single links, or none; return what it is."""
        random = self._random
        shuffled = random.sample(names, len(names))
        near = shuffled[: random.randint(0, len(names))]
        far = shuffled[len(near) :]
        one_way = random.randrange(1_000) < self._plan.partition_one_way_permille
        cut = {(a, b) for a in near for b in far}
        if not one_way:
            cut |= {(b, a) for a in near for b in far}
        self._cut = cut
        return f"{','.join(sorted(near))} {'->' if one_way else '|'} {','.join(sorted(far))}"

    def cut(self, links: Iterable[tuple[NodeName, NodeName]]) -> None:
        """Let nothing pass over these directed links any more, and everything over all others."""
        self._cut = set(links)

    def heal(self) -> None:
        """End all faults for good."""
        self._healed = True
        self._cut = set()
