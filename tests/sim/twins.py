"""Twins (Bano et al., OPODIS 2021): every way to part four validators and a twin over some views, explored to the end.

Four validators, one of which runs twice with one key: five instances of the real engine. A *scenario* says which
validator has the twin, and for each view how the five are parted and whether commits get through. The primary of
each view is given by the protocol, so that over four views each name, and the twinned one too, has its turn on
every side. A view lasts one time-out; what did not get through in it is asked for, and answered, in the next.

Scenarios form a tree, a view a level. It is explored level by level: branches that differ only by which twin is
called the first are one, and so are those whose instances are in the same state, up to what no rule reads.
After the last view everything heals, and a transaction must become final everywhere.

``python -m tests.sim.twins --views 4`` explores it all, ``--part 2/8`` an eighth of it.
"""

import argparse
import pickle
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from consensus.ledger.block import Block, Header, genesis_block, uptime_after
from consensus.ledger.ids import ZERO_HASH, ChainId, NodeName, tagged_hash
from consensus.ledger.keys import PrivateKey
from consensus.ledger.merkle import list_root
from consensus.ledger.validators import Certificate, Validator, ValidatorSet
from consensus.pbft.config import Config
from consensus.pbft.engine import Engine
from consensus.pbft.events import (
    Advanced,
    Broadcast,
    CatchUp,
    Decide,
    Effect,
    Event,
    Evidence,
    Head,
    Penalise,
    Persist,
    Phase,
    Propose,
    Proposed,
    Received,
    Send,
    Tick,
    Validate,
    Validated,
    ViewEntered,
    Work,
)
from consensus.pbft.messages import Commit, Decided, Message, Prepare, ViewChangeVote
from tests.sim.signing import CheapSigner, CheapVerifier

NAMES = tuple(NodeName(name) for name in "abcd")
INSTANCES = len(NAMES) + 1
"""The last instance is the twin."""
VIEW_MS = 1_000
TICK_MS = VIEW_MS // 2
HEALING_MS_MAX = 16 * VIEW_MS
CHAIN = ChainId(tagged_hash("twins"))
EVERYONE = tuple(range(INSTANCES))
PARTED_VIEW = 2
"""Before this view an exploration in parts takes its share of the states."""

Partition = tuple[int, ...]
"""Instance → number of its side; sides are numbered in order of their first instance."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a view does: who hears whom, and who of them hears what decides, which is commits and certificates."""

    sides: Partition
    deciders: tuple[int, ...]

    def describe(self) -> str:
        """Return the sides, for people."""
        names = [*NAMES, "'"]
        sides = ["".join(names[item] for item in range(INSTANCES) if self.sides[item] == side) for side in range(3)]
        heard = "" if self.deciders == EVERYONE else "-" + "".join(names[item] for item in self.deciders)
        return "|".join(side for side in sides if side) + heard

    def swapped(self, twin: int) -> "Turn":
        """Return the same with the two twins exchanged, its sides numbered anew."""
        order = list(EVERYONE)
        order[twin], order[-1] = order[-1], order[twin]
        numbers: dict[int, int] = {}
        sides = tuple(numbers.setdefault(self.sides[item], len(numbers)) for item in order)
        return Turn(sides, tuple(sorted(order[item] for item in self.deciders)))


CONNECTED = Turn((0,) * INSTANCES, EVERYONE)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One path: the validator that has a twin, and the views so far."""

    twin: int
    turns: tuple[Turn, ...]

    def describe(self) -> str:
        """Return it as text: ``' is b: abc|d'-a`` parts d and the twin from abc, of whom a alone hears what decides."""
        return f"' is {NAMES[self.twin]}: " + " ".join(turn.describe() for turn in self.turns)


class Violated(Exception):
    """Safety or liveness does not hold in a scenario."""


@dataclass(slots=True)
class _Instance:
    index: int
    name: NodeName
    engine: Engine
    chain: list[tuple[Block, Certificate | None, Head]]


def _genesis() -> tuple[Head, dict[NodeName, PrivateKey]]:
    keys = {name: PrivateKey.from_secret(5_000 + index) for index, name in enumerate(NAMES)}
    validators = ValidatorSet.of([Validator(name, name, key.public.compressed) for name, key in keys.items()])
    block = genesis_block(
        CHAIN,
        time_ms=1_000_000,
        proposer=NAMES[0],
        validators_hash=validators.hash(),
        writes={},
        sealed_root=ZERO_HASH,
    )
    return Head(block.header, block.hash, None, validators, quiet=True), keys


class World:
    """Five instances and the messages under way; copied with everything in it by ``snapshot``."""

    def __init__(self, twin: int) -> None:
        head, keys = _genesis()
        self.twin = twin
        secrets = {key.public.compressed: name.encode().ljust(32, b"!") for name, key in keys.items()}
        verifier = CheapVerifier(secrets)
        self.instances: list[_Instance] = []
        for index in range(INSTANCES):
            name = NAMES[_number(index, twin)]
            signer = CheapSigner(keys[name], secrets[keys[name].public.compressed])
            times = {"timeout_ms": VIEW_MS, "timeout_ms_max": VIEW_MS, "suspect_timeout_ms": VIEW_MS}
            times |= {"resend_ms": TICK_MS, "status_ms": TICK_MS}
            config = Config(name, signer, verifier, **times, quiet_after_ms=3_600_000, heartbeat_ms=3_600_000)
            genesis = Block.of(head.header, [])
            self.instances.append(_Instance(index, name, Engine.restore(config, head, {}), [(genesis, None, head)]))
        self.now_ms = 0
        self.turn = CONNECTED
        self.queue: deque[tuple[int, Event]] = deque()
        self.goal = 1
        """Up to which height there is work."""
        self.decided: dict[int, bytes] = {}
        """Height → what the first honest instance decided."""

    def snapshot(self) -> bytes:
        """Return a copy to be loaded any number of times."""
        return pickle.dumps(self, protocol=pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def load(snapshot: bytes) -> "World":
        """Return a copy."""
        world = pickle.loads(snapshot)
        if not isinstance(world, World):
            raise TypeError("no world")
        return world

    @property
    def honest(self) -> list[_Instance]:
        """All but the two twins."""
        return [item for item in self.instances if item.name != NAMES[self.twin]]

    # -- time ------------------------------------------------------------------------------------------

    def play(self, turn: Turn) -> None:
        """Let one view pass.

        Raises:
            Violated: two honest instances decide differently.
        """
        self.turn = turn
        for _ in range(VIEW_MS // TICK_MS):
            self.tick()

    def tick(self) -> None:
        """Tell everyone the time, and let them talk until all is said."""
        if self.now_ms == 0:
            self.queue.extend((item.index, Work(waiting=True)) for item in self.instances)
        self.queue.extend((item.index, Tick(self.now_ms)) for item in self.instances)
        while self.queue:
            index, event = self.queue.popleft()
            instance = self.instances[index]
            for effect in instance.engine.step(event):
                self._perform(instance, effect)
        self.now_ms += TICK_MS

    def heal(self) -> int:
        """Connect everyone, give them work, and return how long in ms it takes until it is final everywhere.

        Raises:
            Violated: it takes too long, or safety broke.
        """
        began_ms = self.now_ms
        self.turn = CONNECTED
        self.goal = max(len(item.chain) for item in self.honest)
        self.queue.extend((item.index, Work(waiting=True)) for item in self.instances)
        while any(len(item.chain) <= self.goal for item in self.honest):
            if self.now_ms - began_ms > HEALING_MS_MAX:
                where = [f"{item.engine.height}/{item.engine.view}" for item in self.instances]
                raise Violated(f"no commit within {HEALING_MS_MAX} ms: {' '.join(where)}")
            self.tick()
        return self.now_ms - began_ms

    # -- the driver ------------------------------------------------------------------------------------

    def _perform(self, instance: _Instance, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                self._send(instance, to, message)
            case Broadcast(message):
                for name in NAMES:
                    self._send(instance, name, message)
            case Propose():
                block = self._build(instance, effect.view)
                self.queue.append((instance.index, Proposed(effect.height, effect.view, block)))
            case Validate(block, _):
                self.queue.append((instance.index, Validated(block.hash, True)))
            case Decide(block, certificate):
                self._commit(instance, block, certificate)
            case CatchUp(certificate, source):
                self._catch_up(instance, certificate.height, source)
            case Persist() | Evidence() | Penalise() | ViewEntered():
                pass

    def _send(self, sender: _Instance, to: NodeName, message: Message) -> None:
        if to == sender.name:
            return
        hearers = self.turn.deciders if isinstance(message, Commit | Decided) else EVERYONE
        for item in self.instances:
            if item.name == to and item.index in hearers and self._hears(item, sender):
                self.queue.append((item.index, Received(sender.name, message)))

    def _hears(self, one: _Instance, other: _Instance) -> bool:
        return self.turn.sides[one.index] == self.turn.sides[other.index]

    def _build(self, instance: _Instance, view: int) -> Block:
        """Return a block that no other instance and no other view makes."""
        head = instance.chain[-1][2]
        time_ms = head.header.time_ms + 10
        transactions = [f"{instance.index}/{view}".encode()]
        header = Header(
            version=1,
            chain_id=CHAIN,
            height=head.header.height + 1,
            parent_hash=head.hash,
            time_ms=time_ms,
            uptime_ms=uptime_after(head.header, time_ms),
            proposer=instance.name,
            transactions_root=list_root(transactions),
            receipts_root=ZERO_HASH,
            writes_root=ZERO_HASH,
            validators_hash=head.header.validators_hash,
            next_validators_hash=head.header.validators_hash,
            sealed_height=0,
            sealed_root=ZERO_HASH,
        )
        return Block.of(header, transactions)

    def _commit(self, instance: _Instance, block: Block, certificate: Certificate) -> None:
        if block.height != len(instance.chain):
            return
        if instance.name != NAMES[self.twin] and self.decided.setdefault(block.height, block.hash) != block.hash:
            raise Violated(f"{instance.name} decides another block {block.height}")
        head = Head(block.header, block.hash, certificate, instance.chain[-1][2].validators, block.is_quiet)
        instance.chain.append((block, certificate, head))
        self.queue.append((instance.index, Work(waiting=block.height < self.goal)))
        self.queue.append((instance.index, Advanced(head)))

    def _catch_up(self, instance: _Instance, height: int, source: NodeName) -> None:
        holders = [item for item in self.instances if self._hears(item, instance) and len(item.chain) > height]
        holders.sort(key=lambda item: item.name != source)
        for holder in holders[:1]:
            for block, certificate, _ in holder.chain[len(instance.chain) : height + 1]:
                if certificate is not None:
                    self._commit(instance, block, certificate)

    # -- sameness --------------------------------------------------------------------------------------

    def fingerprint(self) -> bytes:
        """Return a hash of all that rules read: equal worlds have equal futures.

        Left out is whom an instance answered, asked or blamed last, and when: those only pace repetitions.
        """
        return blake2b(repr([_essence(item, self.now_ms) for item in self.instances]).encode()).digest()


def _essence(instance: _Instance, now_ms: int) -> object:
    state = instance.engine._state
    progress = state.progress
    hashes = [block.hash.hex() for block, _, _ in instance.chain]
    accepted, prepared = progress.accepted, progress.prepared
    gathered = progress.view + (progress.phase is not Phase.VIEW_CHANGE)
    prepares = [slot.vote for slot in progress.prepares._slots.values()]
    return (
        hashes,
        (progress.view, progress.phase, progress.asked_to_propose, sorted(key.hex() for key in progress.valid)),
        now_ms - progress.entered_ms,
        None if progress.supported_ms is None else now_ms - progress.supported_ms,
        None if progress.proposal is None else progress.proposal.block.hash.hex(),
        None if accepted is None else (accepted.view, accepted.block.hash.hex()),
        None if prepared is None else (prepared.certificate.view, prepared.block.hash.hex()),
        None if progress.required is None else (progress.required.view, progress.required.block_hash.hex()),
        sorted(_vote(message.vote) for message in progress.view_changes.values() if message.vote.view >= gathered),
        sorted(_vote(slot.vote) for slot in progress.commits._slots.values()),
        sorted(_vote(vote) for vote in prepares if vote.view >= progress.view or vote.signer == instance.name),
        None if progress.certificate is None else progress.certificate[0].block_hash.hex(),
        sorted(repr(key) for key in state.stash),
    )


def _vote(vote: Prepare | Commit | ViewChangeVote) -> tuple[str, int, str]:
    if isinstance(vote, ViewChangeVote):
        return vote.signer, vote.view, "" if vote.claim is None else f"{vote.claim.view} {vote.claim.block_hash.hex()}"
    return vote.signer, vote.view, vote.block_hash.hex()


# -- the tree --------------------------------------------------------------------------------------------


def partitions(sides_max: int) -> Iterator[Partition]:
    """Yield every way to part the instances into up to so many sides."""

    def grow(prefix: Partition) -> Iterator[Partition]:
        if len(prefix) == INSTANCES:
            yield prefix
            return
        for side in range(min(max(prefix, default=-1) + 2, sides_max)):
            yield from grow((*prefix, side))

    return grow(())


def _number(index: int, twin: int) -> int:
    """Return the number of an instance's name."""
    return index if index < len(NAMES) else twin


def turns_of(twin: int, sides_max: int, *, each: bool) -> list[Turn]:
    """Return all that a view can do.

    What decides reaches everyone on one's side, or nobody, or one alone whose side is a quorum: each such
    instance, or only the first honest one.
    """
    quorum = _genesis()[0].validators.quorum
    turns: list[Turn] = []
    for sides in partitions(sides_max):
        turns += [Turn(sides, EVERYONE), Turn(sides, ())]
        alone = [
            index
            for index in EVERYONE
            if len({_number(item, twin) for item in EVERYONE if sides[item] == sides[index]}) >= quorum
        ]
        if not each:
            alone = [index for index in alone if index not in (twin, INSTANCES - 1)][:1]
        turns += [Turn(sides, (index,)) for index in alone]
    return turns


@dataclass(slots=True)
class Level:
    """What one view added. Scenarios are counted before and after each pruning."""

    view: int
    scenarios: int = 0
    """All paths down to here, before any pruning."""
    symmetric: int = 0
    """Those that remain when the twins have no names."""
    played: int = 0
    states: int = 0


@dataclass(slots=True)
class Report:
    """What an exploration found."""

    levels: list[Level] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    healed: int = 0
    decided: int = 0
    """Final states in which somebody honest had decided before everything healed."""
    healing_ms_max: int = 0
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        """Yield the report, for people."""
        for level in self.levels:
            yield (
                f"view {level.view}: {level.scenarios:,} scenarios, {level.symmetric:,} with nameless twins; "
                f"{level.played:,} played, {level.states:,} distinct states"
            )
        yield (
            f"{self.healed:,} final states healed, {self.decided:,} of them with a decision before; "
            f"longest healing {self.healing_ms_max} ms; {len(self.violations)} violations; {self.seconds:.0f} s"
        )


@dataclass(slots=True)
class _Node:
    scenario: Scenario
    snapshot: bytes
    scenarios: int
    symmetric: int
    is_symmetric: bool
    """Whether the twins have not been told apart yet."""


def explore(
    views: int,
    *,
    sides_max: int = 2,
    each: bool = False,
    part: tuple[int, int] = (1, 1),
    width: int | None = None,
    twins: Sequence[int] = range(len(NAMES)),
) -> Report:
    """Explore all scenarios of so many views, or a part.

    Args:
        views: How many levels the tree has.
        sides_max: Into how many sides the five are parted at the most.
        each: Whether any one may be the only one who hears what decides.
        part: ``(number, of)``: only that share of the states after ``PARTED_VIEW`` views.
        width: Only so many states after each view, evenly spread: a sample.
        twins: Whose twin there may be.
    """
    began = time.perf_counter()
    report = Report([Level(view) for view in range(views)])
    for twin in twins:
        turns = turns_of(twin, sides_max, each=each)
        frontier = [_Node(Scenario(twin, ()), World(twin).snapshot(), 1, 1, True)]
        for level in report.levels:
            if level.view == min(PARTED_VIEW, views - 1):
                frontier = frontier[part[0] - 1 :: part[1]]
            if width is not None and len(frontier) > width:
                frontier = [frontier[index * len(frontier) // width] for index in range(width)]
            frontier = _descend(frontier, turns, level, report)
    report.seconds = time.perf_counter() - began
    return report


def _descend(frontier: list[_Node], turns: list[Turn], level: Level, report: Report) -> list[_Node]:
    """Play one more view from every state; states that come out the same are one from then on."""
    found: dict[bytes, _Node] = {}
    for node in frontier:
        twin = node.scenario.twin
        for turn in turns:
            other = turn.swapped(twin)
            level.scenarios += node.scenarios
            if node.is_symmetric and (other.sides, other.deciders) < (turn.sides, turn.deciders):
                continue  # the same with the twins exchanged
            level.symmetric += node.symmetric
            level.played += 1
            scenario = Scenario(twin, (*node.scenario.turns, turn))
            world = World.load(node.snapshot)
            try:
                world.play(turn)
            except Violated as violation:
                report.violations.append(f"{scenario.describe()}: {violation}")
                continue
            is_symmetric = node.is_symmetric and other == turn
            doubled = 2 if node.is_symmetric and not is_symmetric else 1
            key = world.fingerprint() + bytes([is_symmetric])
            same = found.get(key)
            if same is None:
                is_last = level is report.levels[-1]
                snapshot = b"" if is_last else world.snapshot()
                found[key] = _Node(scenario, snapshot, node.scenarios * doubled, node.symmetric, is_symmetric)
                if is_last:
                    _heal(world, scenario, report)
            else:
                same.scenarios += node.scenarios * doubled
                same.symmetric += node.symmetric
    level.states += len(found)
    return list(found.values())


def _heal(world: World, scenario: Scenario, report: Report) -> None:
    report.healed += 1
    report.decided += bool(world.decided)
    try:
        report.healing_ms_max = max(report.healing_ms_max, world.heal())
    except Violated as violation:
        report.violations.append(f"{scenario.describe()} then healed: {violation}")


def main() -> int:
    """Return 0 when everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.twins", description=__doc__)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--sides", type=int, default=2, choices=(2, 3))
    parser.add_argument("--each", action="store_true", help="any one may be the only one who hears what decides")
    parser.add_argument("--part", default="1/1", help="number/of: only this share of the states after two views")
    parser.add_argument("--width", type=int, help="a sample: only so many states after each view")
    parser.add_argument("--twin", type=int, choices=range(4), help="only with this validator's twin")
    arguments = parser.parse_args()
    number, of = (int(text) for text in arguments.part.split("/"))
    twins = range(4) if arguments.twin is None else [arguments.twin]
    report = explore(arguments.views, sides_max=arguments.sides, each=arguments.each, part=(number, of), twins=twins)
    for line in [*report.lines(), *report.violations[:20]]:
        print(line)
    return bool(report.violations)


if __name__ == "__main__":
    sys.exit(main())
