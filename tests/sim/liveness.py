"""How long things take under faults, in simulated time: ``python -m tests.sim.liveness`` prints the table.

The engine, the chain and the pool are the real ones; delays between nodes are up to 5 ms, disks and processors take
no time unless a figure says so. A figure counts from the moment when a transaction is handed to a node until it
is final on every node that is up.
"""

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Literal

from consensus.ledger.codec import decode
from consensus.ledger.ids import NodeName, tagged_hash
from consensus.ledger.transaction import Transaction, make_call
from node.intake import BAD_SIGNATURE_PAUSE_S
from p2p.frames import FrameKind
from tests.sim.byzantine import STRATEGIES
from tests.sim.byzantine.helpers import Flooder
from tests.sim.byzantine.proposals import Censor, Silent, Slow
from tests.sim.clients import HOLDERS, UNIT
from tests.sim.host import Host
from tests.sim.plan import Plan
from tests.sim.scheduler import Action
from tests.sim.simulation import Simulation

FINAL_MS_MAX = 120_000
FOREVER_MS = 1 << 40
HOUR_MS = 3_600_000
VALIDITY_MS = 30 * 60_000
LOOK_MS = 5
"""How soon a client learns that its transaction is final."""

SCALE = 10
"""The model of a processor is this much slower than the real one, so that less has to be simulated."""
VERIFY_US = 50 * SCALE
"""What a signature costs."""
TRANSACTION_US = 500 * SCALE
"""What a good transaction costs a node in all, four of which share two cores; see docs/performance.md."""
SESSION_FRAMES_MAX = 100
PAUSE_US = round(BAD_SIGNATURE_PAUSE_S * 1_000_000) * SCALE


class Stage:
    """A simulation whose transactions the caller makes."""

    def __init__(self, plan: Plan, simulation: Simulation | None = None) -> None:
        self.simulation = simulation or Simulation(replace(plan, downtime_ms_max=FOREVER_MS))
        self.random = Random(f"{plan.seed}/stage")
        self._number = 0

    @property
    def now_ms(self) -> int:
        """Simulated time."""
        return self.simulation.scheduler.now_ms

    @property
    def hosts(self) -> list[Host]:
        """All machines in order of their names."""
        return self.simulation.all_hosts

    @property
    def head(self) -> int:
        """The highest final block."""
        return max(self.simulation.checkers.blocks, default=0)

    def primary(self, height: int, view: int = 0) -> Host:
        """Return who proposes there."""
        name = self.simulation.validators.primary(height, view)
        return next(host for host in self.hosts if host.name == name)

    def pace(self, tick_ms: int) -> None:
        """Set how often nodes look at their clocks from now on."""
        self.simulation.plan = replace(self.simulation.plan, tick_ms=tick_ms)

    def run(self, duration_ms: int) -> None:
        """Let time pass."""
        self.simulation.scheduler.run(self.now_ms + duration_ms)

    @property
    def correct(self) -> list[Host]:
        """All machines that follow the protocol."""
        return [host for host in self.hosts if host.is_correct]

    def open(self) -> None:
        """Give everyone some money."""
        accounts = self.simulation.consortium.account_keys
        calls = [make_call("tokens", "define", {"unit": UNIT, "decimals": 2})]
        for holder in HOLDERS:
            to = accounts[holder].public.address
            calls.append(make_call("tokens", "issue", {"unit": UNIT, "to": to, "amount": 1_000_000}))
        opening = self.simulation.consortium.sign(
            "bank-a", calls, sequence=0, valid_until_ms=self.simulation.epoch_ms + VALIDITY_MS
        )
        self.finality_ms(opening, self.correct)

    def transfer(self, sender: str = "bank-a") -> Transaction:
        """Return a transfer that nothing but the network can keep from becoming final."""
        self._number += 1
        consortium = self.simulation.consortium
        to = consortium.account_keys["shop" if sender != "shop" else "bank-a"].public.address
        call = make_call("tokens", "transfer", {"unit": UNIT, "to": to, "amount": 1})
        lane = tagged_hash("stage", self._number.to_bytes(4, "big"))
        valid_until_ms = self.simulation.epoch_ms + self.now_ms + VALIDITY_MS
        return consortium.sign(sender, [call], sequence=0, lane=lane, valid_until_ms=valid_until_ms)

    def give(self, host: Host, transaction: Transaction) -> None:
        """Submit to a node."""
        if isinstance(self.simulation, BusySimulation):
            self.simulation.take(host, transaction.raw)
        else:
            host.submit(transaction.raw)

    def height_of(self, transaction: Transaction) -> int | None:
        """Return where a transaction is final."""
        return self.simulation.checkers.transactions.get(transaction.id)

    def finality_ms(self, transaction: Transaction, hosts: Sequence[Host]) -> int:
        """Hand a transaction to one of these hosts and return after what time it is final on all of them.

        Raises:
            TimeoutError: it takes longer than ``FINAL_MS_MAX``.
        """
        began_ms, acknowledged = self.now_ms, self.simulation.checkers.acknowledged
        names = [host.name for host in hosts]
        self.give(self.random.choice(hosts), transaction)

        def is_final() -> bool:
            height = self.height_of(transaction)
            return height is not None and all(acknowledged[name] >= height for name in names)

        if not self.simulation.scheduler.run(began_ms + FINAL_MS_MAX, is_final):
            raise TimeoutError(f"not final after {FINAL_MS_MAX} ms: {self.simulation.plan.describe()}")
        return self.now_ms - began_ms


# -- a silent primary ------------------------------------------------------------------------------------

SilentKind = Literal["crashed", "frozen", "pings only"]


def silent_primary_ms(seed: int, validators: int, kind: SilentKind) -> int:
    """Return the time to finality when the primary whose turn it is falls silent at that moment (R38)."""
    stage = Stage(Plan(seed=seed, validators=validators))
    stage.open()
    stage.run(stage.random.randint(0, 3_000))
    primary = stage.primary(stage.head + 1)
    match kind:
        case "crashed":
            primary.crash()
        case "frozen":
            primary.freeze()
        case "pings only":
            primary.strategies = [STRATEGIES["pingsonly"](primary, primary.random)]
    return stage.finality_ms(stage.transfer(), [host for host in stage.hosts if host is not primary])


# -- healing ---------------------------------------------------------------------------------------------

Outage = Literal["parted", "stopped", "no proposals", "no commits"]
OUTAGES: tuple[Outage, ...] = ("parted", "stopped", "no proposals", "no commits")


def healing_ms(seed: int, validators: int, outage: Outage, outage_ms: int, *, tick_ms: int = 50) -> int:
    """Return the time to finality after an outage in which no quorum could commit (R17).

    While it lasts, time passes in steps of ``tick_ms``: an hour of it is long.
    """
    plan = Plan(seed=seed, validators=validators)
    lossy: tuple[str, ...] = {"no proposals": ("PrePrepare",), "no commits": ("Commit", "Decided")}.get(outage, ())
    if lossy:
        plan = replace(plan, lossy_kinds=lossy, lossy_permille=1_000, tick_ms=tick_ms)
    stage = Stage(plan)
    fabric, hosts = stage.simulation.fabric, stage.hosts
    quorum = stage.simulation.validators.quorum
    if lossy:
        stage.give(stage.random.choice(hosts), stage.transfer())
    else:
        stage.open()
        stage.pace(tick_ms)
        few = stage.random.sample(hosts, validators - quorum + 1)
        if outage == "stopped":
            for host in few:
                host.crash()
        else:
            fabric.cut((one.name, other.name) for one in hosts for other in hosts if (one in few) != (other in few))
        stage.give(next(host for host in hosts if host not in few), stage.transfer())
    before = stage.head
    stage.run(outage_ms)
    if stage.head > before:
        raise RuntimeError("there was a quorum")
    stage.pace(50)
    fabric.heal()
    for host in hosts:
        host.heal()
    if not lossy:
        return stage.finality_ms(stage.transfer(), hosts)
    began_ms = stage.now_ms
    acknowledged = stage.simulation.checkers.acknowledged
    stage.simulation.scheduler.run(began_ms + FINAL_MS_MAX, lambda: min(acknowledged.values()) > 0)
    return stage.now_ms - began_ms


# -- throughput ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rate:
    """What became final in each second, and how many blocks it took."""

    per_second: tuple[int, ...]
    blocks: int

    @property
    def total(self) -> int:
        """Transactions in all."""
        return sum(self.per_second)


def load(stage: Stage, *, clients: int = 0, per_second: int = 0, duration_ms: int, entries: Sequence[Host]) -> Rate:
    """Put a network under load and count.

    Args:
        stage: the network, opened.
        clients: how many clients submit their next transaction as soon as the last one is final.
        per_second: or, how many transactions come each second, whatever becomes of the last ones.
        duration_ms: how long.
        entries: the nodes that clients speak to.
    """
    scheduler = stage.simulation.scheduler
    waiting: dict[int, Transaction] = {}
    counts = [0] * (duration_ms // 1_000)
    began_ms, first_block = stage.now_ms, stage.head

    def submit(client: int) -> None:
        transaction = waiting[client] = stage.transfer(HOLDERS[client % len(HOLDERS)])
        stage.give(entries[client % len(entries)], transaction)

    def look() -> None:
        for client in [client for client, item in waiting.items() if stage.height_of(item) is not None]:
            del waiting[client]
            counts[min((stage.now_ms - began_ms) // 1_000, len(counts) - 1)] += 1
            if client < clients:
                submit(client)
        if stage.now_ms - began_ms < duration_ms:
            scheduler.after(LOOK_MS, look)

    for client in range(clients):
        submit(client)
    for number in range(per_second * duration_ms // 1_000):
        scheduler.after(number * 1_000 // per_second, lambda client=clients + number: submit(client))  # type: ignore[misc]
    look()
    stage.run(duration_ms)
    return Rate(tuple(counts), stage.head - first_block)


def slow_primary(
    seed: int,
    validators: int,
    strategy: str,
    delay_ms: int,
    *,
    clients: int = 0,
    per_second: int = 0,
    duration_ms: int,
) -> tuple[Rate, Rate]:
    """Return the rates without and with one primary that delays its proposals (R36)."""
    rates = []
    for liars in ((), ((seed % validators, (strategy,)),)):
        plan = Plan(seed=seed, validators=validators, liars=liars)
        stage = Stage(plan, BusySimulation(plan))
        for host in stage.hosts:
            for item in host.strategies:
                if isinstance(item, Slow):
                    item.delay_ms = delay_ms
        stage.open()
        rates.append(
            load(stage, clients=clients, per_second=per_second, duration_ms=duration_ms, entries=stage.correct)
        )
    return rates[0], rates[1]


# -- a flood of forged signatures ------------------------------------------------------------------------


class _Processor:
    """One node's processor: what its sessions bring is worked off in turn, one frame of each at a time."""

    def __init__(self, simulation: Simulation) -> None:
        self._scheduler = simulation.scheduler
        self._frames: dict[str, deque[tuple[int, int, Action]]] = {}
        self._ready: deque[str] = deque()
        self._is_busy = False
        self._debt_us = 0

    def add(self, session: str, cost_us: int, pause_us: int, action: Action) -> None:
        """Queue a frame: it costs so much, and then its session is left waiting so long. A full queue takes no more."""
        frames = self._frames.get(session)
        if frames is None:
            frames = self._frames[session] = deque()
            self._ready.append(session)
        if len(frames) < SESSION_FRAMES_MAX:
            frames.append((cost_us, pause_us, action))
        self._work()

    def _work(self) -> None:
        while self._ready and not self._is_busy:
            session = self._ready.popleft()
            cost_us, pause_us, action = self._frames[session].popleft()
            self._debt_us += cost_us
            busy_ms, self._debt_us = divmod(self._debt_us, 1_000)
            if busy_ms:
                self._is_busy = True
                self._scheduler.after(busy_ms, partial(self._done, session, pause_us, action))
            else:
                self._finish(session, pause_us, action)

    def _done(self, session: str, pause_us: int, action: Action) -> None:
        self._is_busy = False
        self._finish(session, pause_us, action)
        self._work()

    def _finish(self, session: str, pause_us: int, action: Action) -> None:
        self._scheduler.after(pause_us // 1_000, lambda: self._resume(session))
        action()

    def _resume(self, session: str) -> None:
        if self._frames[session]:
            self._ready.append(session)
            self._work()
        else:
            del self._frames[session]


class BusySimulation(Simulation):
    """A simulation whose nodes need processor time for each transaction that is new to them.

    Peers are held up as ``node.intake`` does it: for each forged signature they brought.
    """

    def __init__(self, plan: Plan, *, pause_us: int = PAUSE_US) -> None:
        self._processors: dict[NodeName, _Processor] = {}
        self._seen: dict[NodeName, set[bytes]] = {}
        self._pause_us = pause_us
        super().__init__(plan)

    def take(self, host: Host, raw: bytes) -> None:
        """Have a client's transaction submitted once the processor gets to it."""
        self._processor(host.name).add(f"client {raw[-8:].hex()}", TRANSACTION_US, 0, lambda: host.submit(raw))

    def _processor(self, name: NodeName) -> _Processor:
        return self._processors.setdefault(name, _Processor(self))

    def _deliver(self, sender: NodeName, to: NodeName, kind: FrameKind, payload: bytes) -> None:
        new = forged = 0
        if kind is FrameKind.TRANSACTIONS:
            raws = decode(payload)
            new = sum(self._is_new(to, raw) for raw in raws if isinstance(raw, bytes)) if isinstance(raws, list) else 0
            forged = new if sender not in self.checkers.correct else 0
        self._processor(to).add(
            sender,
            forged * VERIFY_US or new * TRANSACTION_US,
            forged * self._pause_us,
            lambda: super(BusySimulation, self)._deliver(sender, to, kind, payload),
        )

    def _is_new(self, name: NodeName, raw: bytes) -> bool:
        """Tell whether a node sees a transaction for the first time: it remembers those that it verified."""
        seen = self._seen.setdefault(name, set())
        if raw in seen:
            return False
        seen.add(raw)
        return True


def flooded(
    seed: int, validators: int, *, clients: int, duration_ms: int, per_second: int, pause_us: int = PAUSE_US
) -> tuple[Rate, Rate]:
    """Return the rates without and with one validator that floods the others with forged signatures (R37).

    It takes no part otherwise in either case: what a silent primary costs is another figure. ``per_second`` says
    how many it sends to each peer.
    """
    rates = []
    for floods in (False, True):
        plan = Plan(seed=seed, validators=validators, liars=((seed % validators, ("flooder", "silent")),))
        stage = Stage(plan, BusySimulation(plan, pause_us=pause_us))
        (liar,) = [host for host in stage.hosts if not host.is_correct]
        flooder, silent = liar.strategies
        if not isinstance(flooder, Flooder) or not isinstance(silent, Silent):
            raise TypeError("the plan says otherwise")
        flooder.count = 0
        silent.kinds, silent.to = (object,), silent.peers
        stage.open()
        flooder.victims = flooder.peers
        flooder.count = per_second * plan.tick_ms // 1_000 if floods else 0
        rates.append(load(stage, clients=clients, duration_ms=duration_ms, entries=stage.correct))
    return rates[0], rates[1]


# -- a censored client -----------------------------------------------------------------------------------


def censored_blocks(seed: int, validators: int) -> list[int]:
    """Return after how many blocks each transaction of a censored client is final; f primaries leave it out.

    Other clients keep the network busy meanwhile.
    """
    faulty_max = (validators - 1) // 3
    first = seed % validators
    liars = tuple(sorted(((first + index) % validators, ("censor",)) for index in range(faulty_max)))
    stage = Stage(Plan(seed=seed, validators=validators, liars=liars))
    client = "user-b"
    for host in stage.hosts:
        for item in host.strategies:
            if isinstance(item, Censor):
                item.client = bytes(stage.simulation.consortium.account_keys[client].public.address)
    stage.open()
    waited = []
    for _ in range(validators):
        for number in range(20):
            stage.simulation.scheduler.after(
                number * 50, lambda: stage.give(stage.random.choice(stage.correct), stage.transfer())
            )
        stage.run(stage.random.randint(0, 200))
        before, transaction = stage.head, stage.transfer(client)
        stage.finality_ms(transaction, stage.correct)
        waited.append((stage.height_of(transaction) or 0) - before)
        stage.run(1_000)
    return waited


# -- the table -------------------------------------------------------------------------------------------


def percentile(values: Iterable[int], permille: int) -> int:
    """Return the value that so many of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) * permille // 1_000, len(ordered) - 1)]


def rows(seeds: int, *, outage_ms: int) -> Iterator[str]:
    """Yield the table line by line as it is found out."""
    yield "| what | validators | runs | median | p99 | longest |"
    yield "| --- | --- | --- | --- | --- | --- |"
    kinds: tuple[SilentKind, ...] = ("crashed", "frozen", "pings only")
    for kind in kinds:
        for count in (4, 7):
            yield _row(f"primary {kind}", count, [silent_primary_ms(seed, count, kind) for seed in range(seeds)], "ms")
    for outage in OUTAGES:
        for count in (4, 7):
            few = range(max(1, seeds // 50))
            times_ms = [healing_ms(seed, count, outage, outage_ms, tick_ms=200) for seed in few]
            yield _row(f"healed after {outage_ms // 60_000} min, {outage}", count, times_ms, "ms")
    for count in (4, 7, 10):
        waited = [blocks for seed in range(max(1, seeds // 10)) for blocks in censored_blocks(seed, count)]
        yield _row("one client censored by f", count, waited, "blocks")
    yield ""
    yield "| throughput | validators | without | with | ratio | first 5 s |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for strategy, delay_ms in (("slow", 950), ("slow", 1_050), ("staller", 0)):
        for count in (4, 7):
            for clients, per_second in ((100, 0), (0, 10)):
                calm, slow = slow_primary(
                    1, count, strategy, delay_ms, clients=clients, per_second=per_second, duration_ms=20_000
                )
                what = f"{per_second * SCALE} a second" if per_second else f"{clients * SCALE} under way"
                yield _rates(f"{strategy} primary {delay_ms or ''}, {what}", count, calm, slow)
    for count in (4, 7):
        for per_second in (200, 2_000):
            calm, flood = flooded(1, count, clients=100, duration_ms=10_000, per_second=per_second)
            yield _rates(f"{per_second * SCALE:,} forged signatures a second to each", count, calm, flood)


def _row(what: str, count: int, values: list[int], unit: str) -> str:
    middle, most = percentile(values, 500), percentile(values, 990)
    return f"| {what} | {count} | {len(values)} | {middle} {unit} | {most} {unit} | {max(values)} {unit} |"


def _rates(what: str, count: int, calm: Rate, other: Rate) -> str:
    first = sum(other.per_second[:5]) / max(sum(calm.per_second[:5]), 1)
    ratio = other.total / max(calm.total, 1)
    counts = f"{calm.total} in {calm.blocks} blocks | {other.total} in {other.blocks}"
    return f"| {what} | {count} | {counts} | {ratio:.2f} | {first:.2f} |"


def main() -> int:
    """Print everything."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.liveness", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--outage-minutes", type=int, default=60)
    arguments = parser.parse_args()
    for line in rows(arguments.seeds, outage_ms=arguments.outage_minutes * 60_000):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
