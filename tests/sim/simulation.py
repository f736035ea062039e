"""One schedule from a seed: a safety phase with faults, then a liveness phase where they heal and liars stay."""

from dataclasses import dataclass
from functools import cache, partial
from random import Random
from typing import Any

from consensus.ledger.block import Block
from consensus.ledger.errors import HansaError
from consensus.ledger.ids import ChainId, NodeName, tagged_hash
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import Transaction
from consensus.pbft.signing import KeySigner, KeyVerifier, Signer, Verifier
from contracts.runtime.execution import Executor
from node.chain import Chain
from node.clock import CLOCK_TOLERANCE_MS
from node.storage import layout
from p2p.frames import FrameKind
from tests.node.support import GENESIS_TIME_MS, Consortium, make_executor
from tests.sim.byzantine import STRATEGIES, Wiped
from tests.sim.checkers import Checkers, Violation
from tests.sim.clients import UNIT, Clients, latest_validity_ms
from tests.sim.disk import Disk
from tests.sim.host import TWINS, Host
from tests.sim.membership import Operators, make_sim_consortium
from tests.sim.network import Fabric
from tests.sim.plan import FAR_OFF_MS, Plan, draw_plan
from tests.sim.scheduler import Action, Scheduler, Trace
from tests.sim.signing import CheapSigner, CheapVerifier

PROBES = 2
LIVENESS_MS = 120_000
"""Within which a probe must be final on all correct nodes once the faults have healed."""
RETRY_MS = 1_500
EFFECTS_UNTIL_CRASH_MAX = 60
MEMORY_CHECK_MS = 1_000
TWIN_AUDIENCE_MS = 2_000


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a schedule. ``rule`` is empty when everything held."""

    seed: int
    rule: str
    message: str
    trace: str
    blocks: int
    views: int
    claims: int
    transactions: int
    frames: int
    evidence: int
    halts: int
    set_changes: int
    unlimited: bool
    probe_ms: tuple[int, ...]
    plan: str


@cache
def _executor() -> Executor:
    return make_executor()


@cache
def _consortium(validators: int) -> tuple[Consortium, dict[bytes, bytes]]:
    """Return a consortium and what every node's disk holds after its first start."""
    consortium = make_sim_consortium(validators)
    disk = Disk()
    Chain(disk, consortium.genesis, _executor())
    return consortium, disk.content


class Simulation:
    """All hosts of one schedule and what happens to them."""

    def __init__(self, plan: Plan, *, verbose: bool = False) -> None:
        self.plan = plan
        self.scheduler = Scheduler()
        self.trace = Trace(verbose=verbose)
        self.fabric = Fabric(plan, self.scheduler, self._deliver)
        self.consortium, self._content = _consortium(plan.validators)
        self.genesis = self.consortium.genesis
        self.validators = self.genesis.validator_set()
        self.executor = _executor()
        self.epoch_ms = GENESIS_TIME_MS + 60_000
        self.random = Random(f"{plan.seed}/faults")
        self.verifier, signers, self.foreign = _signing(self.consortium, real=plan.real_keys)
        lying = {self.validators.names[index]: kinds for index, kinds in plan.liars}
        fragile = {self.validators.names[index] for index in plan.fragile}
        self.checkers = Checkers(
            self.validators,
            self.verifier,
            [name for name in self.validators.names if name not in lying and name not in fragile],
            fragile,
        )
        self.hosts: dict[NodeName, list[Host]] = {}
        for name in self.validators.names:
            kinds = lying.get(name, ())
            count = TWINS if "twins" in kinds else 1
            content = {} if plan.write_error_permille else self._content  # then genesis is a write that may fail, too
            hosts = [Host(self, name, signers[name], content, twin) for twin in range(count)]
            for host in hosts:
                host.strategies = [STRATEGIES[kind](host, host.random) for kind in kinds]
            self.hosts[name] = hosts
        valid_until_ms = latest_validity_ms(self.epoch_ms)
        self._clients = Clients(self.consortium, plan.seed, valid_until_ms)
        self.operators = Operators(self, valid_until_ms)
        self._pending: dict[bytes, Transaction] = {}
        self._healed = False
        self._times_ms: dict[int, int] = {0: self.genesis.time_ms}
        """Height → the time of its block."""
        self.probe_ms: list[int] = []

    @property
    def all_hosts(self) -> list[Host]:
        """Every machine, twins and all."""
        return [host for hosts in self.hosts.values() for host in hosts]

    def _deliver(self, sender: NodeName, to: NodeName, kind: FrameKind, payload: bytes) -> None:
        for host in self.hosts[to]:
            if host.audience is None or sender in host.audience:
                host.deliver(sender, kind, payload)

    # -- the story -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run both phases.

        Raises:
            Violation: something that must hold does not.
        """
        self.run_safety()
        if self.plan.unlimited:
            self._check_disks()
            return
        self._heal()
        for number in range(PROBES):
            self._probe(number)
        self._check_end()

    def run_safety(self) -> None:
        """Run the phase with faults."""
        self._schedule_clients()
        self._schedule_faults()
        self.repeat(MEMORY_CHECK_MS, self._check_memory)
        self.repeat(RETRY_MS, self._retry)
        if self.plan.set_changes:
            self.operators.begin()
        self.scheduler.run(self.plan.safety_ms)

    # -- what operators see and do ---------------------------------------------------------------------

    def newest_chain(self) -> Chain | None:
        """Return the chain of the correct node that is furthest, None while all are down."""
        chains = [host.chain for host in self.all_hosts if host.is_correct and host.chain is not None]
        return max(chains, key=lambda chain: chain.head.header.height, default=None)

    def submit(self, transaction: Transaction) -> None:
        """Give a transaction to somebody, again and again until it is final."""
        self._pending[transaction.id] = transaction
        self._give(transaction, 1)

    def use_key(self, name: NodeName, key: PrivateKey) -> None:
        """Let a node start with a vote key, for the first time or in place of another."""
        if isinstance(self.verifier, CheapVerifier):
            secret = tagged_hash("secret", key.public.compressed)
            self.verifier.learn(key.public.compressed, secret)
            signer: Signer = CheapSigner(key, secret)
        else:
            signer = KeySigner(key, self.genesis.chain_id())
        if name in self.hosts:
            self.hosts[name][0].use_key(signer)
            return
        self.checkers.joined(name)
        self.hosts[name] = [Host(self, name, signer, {})]
        if self._healed:
            self.hosts[name][0].heal()

    def repeat(self, every_ms: int, action: Action) -> None:
        """Do something at intervals from now on."""

        def again() -> None:
            action()
            self.scheduler.after(every_ms, again)

        self.scheduler.after(every_ms, again)

    def _schedule_clients(self) -> None:
        plan, random = self.plan, self.random
        for transaction in self._clients.opening():
            self._submit_at(random.randint(0, 500), transaction)
        for _ in range(plan.transactions):
            at_ms = random.randint(0, plan.safety_ms)
            for transaction in self._clients.transfer(conflicting=random.randrange(1_000) < plan.conflict_permille):
                self._submit_at(at_ms, transaction)

    def _submit_at(self, at_ms: int, transaction: Transaction) -> None:
        def submit() -> None:
            self._pending[transaction.id] = transaction
            self._give(transaction, self.random.randint(1, 2))

        self.scheduler.after(at_ms, submit)

    def _give(self, transaction: Transaction, count: int) -> None:
        hosts = self.all_hosts
        for host in self.random.sample(hosts, min(count, len(hosts))):
            host.submit(transaction.raw)

    def _retry(self) -> None:
        for transaction_id in [item for item in self._pending if item in self.checkers.transactions]:
            del self._pending[transaction_id]
        for transaction in self._pending.values():
            self._give(transaction, 1)

    def _schedule_faults(self) -> None:
        plan = self.plan
        if plan.partition_every_ms:
            self._now_and_then(plan.partition_every_ms, self._part)
        if plan.crash_every_ms:
            self._now_and_then(plan.crash_every_ms, self._crash_someone)
        if plan.freeze_every_ms:
            self._now_and_then(plan.freeze_every_ms, self._freeze_someone)
        if plan.clock_step_every_ms:
            self._now_and_then(plan.clock_step_every_ms, self._set_a_clock)
        fragile = [host for host in self.all_hosts if host.is_fragile]
        if plan.rot_every_ms and fragile:
            self._now_and_then(plan.rot_every_ms, lambda: self._rot(self.random.choice(fragile)))
        if plan.wipe_every_ms and fragile:
            self._now_and_then(plan.wipe_every_ms, lambda: self.random.choice(fragile).wipe({}))
        for host in self.all_hosts:
            if any(isinstance(strategy, Wiped) for strategy in host.strategies):
                self.scheduler.after(self.random.randint(1, plan.safety_ms), partial(host.wipe, self._content))
        if any(len(hosts) == TWINS for hosts in self.hosts.values()):
            self._part_twins()
            self.repeat(TWIN_AUDIENCE_MS, self._part_twins)

    def _now_and_then(self, every_ms: int, action: Action) -> None:
        def again() -> None:
            if not self._healed:
                action()
                self.scheduler.after(self.random.randint(1, 2 * every_ms), again)

        self.scheduler.after(self.random.randint(1, 2 * every_ms), again)

    def _part(self) -> None:
        self.trace.note(self.scheduler.now_ms, "network", self.fabric.part(list(self.hosts)))

    def _crash_someone(self) -> None:
        host = self.random.choice(self.all_hosts)
        if self.random.randrange(1_000) < self.plan.crash_at_effect_permille:
            host.crash_countdown = self.random.randint(1, EFFECTS_UNTIL_CRASH_MAX)
        else:
            host.crash()

    def _set_a_clock(self) -> None:
        """Somebody sets a clock, forwards or backwards, by seconds or by hours."""
        host = self.random.choice(self.all_hosts)
        host.skew_ms = self.random.choice((-FAR_OFF_MS, -5_000, -100, 0, 100, 5_000, FAR_OFF_MS))
        self.trace.note(self.scheduler.now_ms, host.name, f"has its clock set {host.skew_ms} ms off")

    def _rot(self, host: Host) -> None:
        host.drive.rot(host.disk)
        self.trace.note(self.scheduler.now_ms, host.name, "has a record that decays")

    def _freeze_someone(self) -> None:
        host = self.random.choice(self.all_hosts)
        host.freeze()
        self.scheduler.after(self.random.randint(1, self.plan.freeze_ms_max), host.thaw)

    def _part_twins(self) -> None:
        """Draw for each peer of twins whether it meets one of them, the other, or both."""
        for name, hosts in self.hosts.items():
            if len(hosts) == TWINS:
                sides = {peer: self.random.choice((0, 1, TWINS)) for peer in self.hosts if peer != name}
                for host in hosts:
                    host.audience = frozenset(peer for peer, side in sides.items() if side in (host.twin, TWINS))

    def _heal(self) -> None:
        self._healed = self.operators.is_ending = True
        self.trace.note(self.scheduler.now_ms, "network", "heals")
        self.fabric.heal()
        for host in self.all_hosts:
            host.heal()

    def _probe(self, number: int) -> None:
        """Wait until a new transaction, and with it all before, is final on every correct node."""
        checkers = self.checkers
        correct = [host for host in self.all_hosts if host.is_correct]
        newest_ms = max(host.chain.head.header.time_ms for host in correct if host.chain is not None)
        probe = self._clients.probe(max(newest_ms, correct[0].wall_ms()) + 10 * 60_000)
        began_ms = self.scheduler.now_ms
        self.submit(probe)

        def is_final() -> bool:
            height = checkers.transactions.get(probe.id)
            return height is not None and all(done >= height for done in checkers.acknowledged.values())

        if not self.scheduler.run(began_ms + LIVENESS_MS, is_final):
            heights = ", ".join(f"{host.name} {_position(host)}" for host in correct)
            raise Violation("liveness", f"probe {number} is not final everywhere after {LIVENESS_MS} ms: {heights}")
        self.probe_ms.append(self.scheduler.now_ms - began_ms)

    # -- checks ----------------------------------------------------------------------------------------

    def _check_memory(self) -> None:
        for host in self.all_hosts:
            if host.is_correct and host.process is not None:
                self.checkers.check_memory(host.name, host.process.engine)

    def check_time(self, block: Block) -> None:
        """Check that a new block's time was that of all who must have voted for it when they first saw it (R23).

        Only the proposer is not asked; once the clocks are put right it cannot be told any more.
        """
        parent_ms = self._times_ms.get(block.height - 1)
        is_smallest_step = parent_ms is not None and block.header.time_ms == parent_ms + 1
        self._times_ms[block.height] = block.header.time_ms
        if self._healed or self.plan.clock_step_every_ms or block.height in self.checkers.blocks or is_smallest_step:
            return
        tolerance_ms, age_ms_max = CLOCK_TOLERANCE_MS, 2 * self.scheduler.now_ms
        admitting = [
            host
            for host in self.all_hosts
            if (host.is_correct or host.is_fragile)
            and (
                host.name == block.header.proposer
                or -tolerance_ms <= host.wall_ms() - block.header.time_ms <= tolerance_ms + age_ms_max
            )
        ]
        needed = self.checkers.roster_at(block.height).quorum - len(self.plan.liars)
        if len(admitting) < needed:
            raise Violation("time", f"block {block.height} has the time of {len(admitting)} correct nodes only")

    def _check_disks(self) -> None:
        """Whatever correct nodes hold is the one chain."""
        for host in self.all_hosts:
            if host.is_correct:
                self.checkers.check_disk(host.name, host.disk)

    def _check_end(self) -> None:
        """Same blocks, same sealed state, money conserved."""
        sealed: dict[int, dict[bytes, bytes]] = {}
        for host in self.all_hosts:
            chain = host.chain
            if not host.is_correct or chain is None:
                continue
            self.checkers.check_disk(host.name, host.disk)
            # A batch may be durable and not adopted yet: the disk alone says which seal it holds.
            stored_height = int.from_bytes(host.disk.content[layout.META_STATE], "big")
            state = dict(host.disk.scan(layout.STATE))
            if sealed.setdefault(stored_height, state) != state:
                raise Violation("state", f"{host.name} holds another state at {stored_height}")
            self._check_money(chain)

    def _check_money(self, chain: Chain) -> None:
        context = chain.next_block("", chain.head.header.time_ms + 1)
        try:
            unit: Any = self.executor.query(chain.state, context, "tokens", "unit", {"unit": UNIT})
            balances: Any = self.executor.query(chain.state, context, "tokens", "balances", {"unit": UNIT})
        except HansaError:
            return  # The unit was never defined.
        held = sum(item["available"] + item["reserved"] for item in balances)
        if unit["supply"] != held:
            raise Violation("money", f"{held} is held of a supply of {unit['supply']}")

    def result(self, rule: str, message: str) -> Result:
        """Return what came of it."""
        return Result(
            seed=self.plan.seed,
            rule=rule,
            message=message,
            trace=self.trace.hexdigest(),
            blocks=max(self.checkers.blocks, default=0),
            views=self.checkers.views,
            claims=self.checkers.claims,
            transactions=len(self.checkers.transactions),
            frames=self.fabric.frames,
            evidence=self.checkers.evidence,
            halts=sum(host.halts for host in self.all_hosts),
            set_changes=self.checkers.set_changes,
            unlimited=self.plan.unlimited,
            probe_ms=tuple(self.probe_ms),
            plan=self.plan.describe(),
        )


def _position(host: Host) -> str:
    return "down" if host.process is None else f"{host.process.engine.height}/{host.process.engine.view}"


Signers = dict[NodeName, Signer]


def _signing(consortium: Consortium, *, real: bool) -> tuple[Verifier, Signers, Signers]:
    """Return who verifies, who signs, and the same keys at work on another chain."""
    keys: dict[NodeName, PrivateKey] = {NodeName(name): key for name, key in consortium.vote_keys.items()}
    if real:
        chain_id, other = consortium.genesis.chain_id(), ChainId(tagged_hash("another-chain"))
        signers: Signers = {name: KeySigner(key, chain_id) for name, key in keys.items()}
        return KeyVerifier(chain_id), signers, {name: KeySigner(key, other) for name, key in keys.items()}
    secrets = {key.public.compressed: name.encode().ljust(32, b"!") for name, key in keys.items()}
    cheap: list[Signers] = [
        {name: CheapSigner(key, secrets[key.public.compressed], chain) for name, key in keys.items()}
        for chain in (b"", b"another")
    ]
    return CheapVerifier(secrets), *cheap


def run_plan(plan: Plan, *, verbose: bool = False) -> Result:
    """Run one schedule and say what came of it."""
    simulation = Simulation(plan, verbose=verbose)
    try:
        simulation.run()
    except Violation as violation:
        return simulation.result(violation.rule, str(violation))
    return simulation.result("", "")


def run_seed(seed: int, *, verbose: bool = False) -> Result:
    """Run the schedule of a seed."""
    return run_plan(draw_plan(seed), verbose=verbose)
