"""What must hold whatever happens. Checkers see what correct nodes send, write and commit, and nothing inside them.

The exception is the memory bound, which walks the engine's containers.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from consensus.ledger.errors import HansaError
from consensus.ledger.ids import NodeName
from consensus.ledger.validators import Certificate, ValidatorSet
from consensus.pbft.certificates import check_commit_certificate_untrusted
from consensus.pbft.engine import Engine
from consensus.pbft.events import Evidence, Penalise
from consensus.pbft.messages import Commit, Message, NewView, Prepare, PrePrepare, ViewChange
from consensus.pbft.roster import Roster
from consensus.pbft.signing import Verifier
from consensus.pbft.vote_log import VoteLog
from node.chain import Candidate
from node.storage import layout
from tests.sim.disk import Disk

VIEW_MS_MIN = 500
"""Views follow each other no faster, once every primary had its first turn (R31); clocks run up to half too fast."""
CONTAINER_ITEMS_BASE = 64
CONTAINER_ITEMS_PER_VALIDATOR = 8


class Violation(Exception):
    """A guarantee does not hold. ``rule`` names which."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Statement:
    """Something that a node signed and may say once only: for (kind, height, view) one content."""

    kind: str
    height: int
    view: int
    content: object


def statement_of(message: Message, sender: NodeName, primary: NodeName | None) -> Statement | None:
    """Return what its sender says in a message in its own name, None when it only passes something on."""
    match message:
        case PrePrepare() if primary == sender:
            return Statement("proposal", message.height, message.view, message.block.header.hash())
        case Prepare() if message.signer == sender:
            return Statement("prepare", message.height, message.view, message.block_hash)
        case Commit() if message.signer == sender:
            return Statement("commit", message.height, message.view, message.block_hash)
        case ViewChange() if message.vote.signer == sender:
            vote = message.vote
            claim = None if vote.claim is None else (vote.claim.view, vote.claim.block_hash)
            return Statement("view-change", vote.height, vote.view, claim)
        case NewView() if primary == sender:
            return Statement("new-view", message.height, message.view, message.signature)
        case _:
            return None


@dataclass(slots=True)
class _Said:
    """What one node said at one height."""

    contents: dict[tuple[str, int], object] = field(default_factory=dict)
    view_left: int = 0
    """Everything below was left by a view change."""
    committed_view: int = -1


class Checkers:
    """All rules over one schedule.

    ``correct`` names the nodes that follow the protocol on sound disks. Of the ``fragile`` ones, whose disks break,
    only this is asked: they never say two things with one key, and what they call final is.
    """

    def __init__(
        self, validators: ValidatorSet, verifier: Verifier, correct: list[NodeName], fragile: Collection[NodeName] = ()
    ) -> None:
        self._verifier = verifier
        self.set_changes = 0
        self._rosters: dict[int, Roster] = {}
        """Who votes at a height, for every height whose predecessor is final somewhere."""
        self.learn(1, validators)
        self.correct = correct
        self.fragile = frozenset(fragile)
        self._said: dict[tuple[NodeName, bytes, int], _Said] = {}
        self.blocks: dict[int, bytes] = {}
        """Height → the one hash."""
        self.transactions: dict[bytes, int] = {}
        """Id → the one height."""
        self.acknowledged: dict[NodeName, int] = dict.fromkeys(correct, 0)
        self.silenced: set[tuple[NodeName, int]] = set()
        """Machines (name and number of a twin) whose disk refused a write, until their program starts again."""
        """Node → the height up to which it told anyone that blocks are final."""
        self.evidence = 0
        self.views = 0
        """The highest view that a correct node voted for."""
        self.claims = 0
        """View-change votes of correct nodes that claim a prepared block."""

    def joined(self, name: NodeName) -> None:
        """Take note of one more correct node, with an empty disk."""
        self.correct.append(name)
        self.acknowledged[name] = 0

    # -- who votes -------------------------------------------------------------------------------------

    def learn(self, height: int, validators: ValidatorSet) -> None:
        """Take note of who votes at a height, as a node sees it."""
        known = self._rosters.get(height)
        if known is None:
            before = self._rosters.get(height - 1)
            if before is not None and before.validators == validators:
                self._rosters[height] = before
                return
            self.set_changes += before is not None
            roster = self._rosters[height] = Roster(validators, self._verifier)
            roster.quorum = validators.quorum  # whatever a broken engine believes
        elif known.validators != validators:
            raise Violation("validators", f"another set votes on block {height} here: {validators.names}")

    def roster_at(self, height: int) -> Roster:
        """Return who votes at a height; above what is final, those who vote next."""
        return self._rosters[min(height, max(self._rosters))]

    @property
    def newest(self) -> Roster:
        """Who votes on the block after the newest final one."""
        return self._rosters[max(self._rosters)]

    # -- what is said ----------------------------------------------------------------------------------

    def sent(self, sender: NodeName, key: bytes, message: Message, disk: Disk, now_ms: int) -> None:
        """Check a message at the moment when an honest node, which votes with this key, sends it."""
        primary = None
        if isinstance(message, PrePrepare | NewView):
            primary = self.roster_at(message.height).primary(message.height, message.view)
        statement = statement_of(message, sender, primary)
        if statement is None:
            return
        said = self._said.setdefault((sender, key, statement.height), _Said())
        slot = (statement.kind, statement.view)
        if slot in said.contents:
            if said.contents[slot] != statement.content:
                first = said.contents[slot]
                raise Violation("double_vote", f"{sender} says two things as {statement}, first {first!r}")
            return
        said.contents[slot] = statement.content
        self._check_order(sender, said, statement)
        if sender in self.fragile:
            return
        self._check_durable(sender, key, statement, disk)
        views_max = 4 * self.roster_at(statement.height).size + now_ms // VIEW_MS_MIN
        if statement.view > views_max:
            raise Violation("storm", f"{sender} is in view {statement.view} after {now_ms} ms")

    def _check_order(self, sender: NodeName, said: _Said, statement: Statement) -> None:
        """A view left is left for good, and a view change names the newest commit."""
        if statement.view < said.view_left:
            raise Violation("vote_in_left_view", f"{sender} had left view {said.view_left - 1}: {statement}")
        if statement.kind == "commit":
            said.committed_view = max(said.committed_view, statement.view)
        elif statement.kind == "view-change":
            said.view_left = statement.view
            self.views = max(self.views, statement.view)
            claimed = statement.content[0] if isinstance(statement.content, tuple) else -1
            self.claims += claimed >= 0
            if claimed < said.committed_view:
                raise Violation("lost_claim", f"{sender} committed in view {said.committed_view}: {statement}")

    def _check_durable(self, sender: NodeName, key: bytes, statement: Statement, disk: Disk) -> None:
        """What is said must be in the vote log already, or its height be final."""
        if disk.get(layout.at_height(layout.BLOCK, statement.height)) is not None:
            return
        records = {key[1:]: value for key, value in disk.scan(layout.VOTE)}
        try:
            votes = VoteLog(key).restore(records, statement.height)
        except HansaError as error:
            raise Violation("vote_log", f"{sender}: {error}") from None
        match statement.kind:
            case "proposal" | "prepare":
                kept = votes.accepted is not None and (votes.accepted.view, votes.accepted.block.header.hash()) == (
                    statement.view,
                    statement.content,
                )
            case "commit":
                kept = votes.prepared is not None and (votes.prepared.view, votes.prepared.block_hash) == (
                    statement.view,
                    statement.content,
                )
            case "view-change":
                kept = votes.view_change is not None and votes.view_change.vote.view == statement.view
            case _:
                kept = votes.new_view is not None and votes.new_view.signature == statement.content
        if not kept:
            raise Violation("not_durable", f"{sender} sends before it is written: {statement}")

    # -- what becomes final ----------------------------------------------------------------------------

    def committed(self, name: NodeName, candidate: Candidate, certificate: Certificate) -> None:
        """Check a block that an honest node calls final."""
        block = candidate.block
        known = self.blocks.setdefault(block.height, block.hash)
        if known != block.hash:
            raise Violation("agreement", f"{name} commits another block {block.height} than others")
        if (certificate.height, certificate.block_hash) != (block.height, block.hash):
            raise Violation("certificate", f"{name} commits block {block.height} with the certificate of another")
        try:
            check_commit_certificate_untrusted(certificate, self.roster_at(block.height))
        except HansaError as error:
            raise Violation("certificate", f"{name} commits block {block.height}: {error}") from None
        for transaction in candidate.transactions:
            if self.transactions.setdefault(transaction.id, block.height) != block.height:
                raise Violation("executed_once", f"{transaction.id.hex()} stands in two blocks")
        if len({transaction.id for transaction in candidate.transactions}) != len(candidate.transactions):
            raise Violation("executed_once", f"block {block.height} holds a transaction twice")
        self.learn(block.height + 1, candidate.execution.validators)
        if name in self.fragile:
            return
        if block.height != self.acknowledged[name] + 1:
            raise Violation("order", f"{name} commits block {block.height} after {self.acknowledged[name]}")
        self.acknowledged[name] = block.height

    def spoke(self, name: NodeName, twin: int) -> None:
        """Check that nothing leaves a machine after its disk refused a write (R47)."""
        if (name, twin) in self.silenced:
            raise Violation("sent_after_failed_write", f"{name} goes on after its disk refused a write")

    def restarted(self, name: NodeName, disk: Disk) -> None:
        """Check that a node finds on its disk whatever it acknowledged; it may find one block more."""
        head = int.from_bytes(disk.get(layout.META_HEAD) or b"", "big")
        if not self.acknowledged[name] <= head <= self.acknowledged[name] + 1:
            raise Violation("acknowledged_lost", f"{name} had {self.acknowledged[name]} blocks and finds {head}")
        self.acknowledged[name] = head
        self.check_disk(name, disk)

    def check_disk(self, name: NodeName, disk: Disk) -> None:
        """Check that the blocks on a disk are the final ones; one of them may not be known here yet."""
        for key, height in disk.scan(layout.BLOCK_INDEX):
            number = int.from_bytes(height, "big")
            if number and self.blocks.setdefault(number, key[1:]) != key[1:]:
                raise Violation("agreement", f"{name} holds another block {number} than others")

    # -- what is reported ------------------------------------------------------------------------------

    def observed(self, name: NodeName, effect: Evidence | Penalise) -> None:
        """No correct node is ever blamed by a correct one."""
        if isinstance(effect, Evidence):
            self.evidence += 1
        blamed = effect.signer if isinstance(effect, Evidence) else effect.peer
        if blamed in self.correct:
            raise Violation("framed", f"{name} blames {blamed}: {effect}")

    def check_memory(self, name: NodeName, engine: Engine) -> None:
        """Check that nothing in an engine grows with views or messages (R16)."""
        size_max = max(roster.size for roster in self._rosters.values())
        items_max = CONTAINER_ITEMS_BASE + CONTAINER_ITEMS_PER_VALIDATOR * size_max
        for path, count in container_sizes(engine, "engine"):
            if count > items_max:
                raise Violation("memory", f"{name} holds {count} items in {path}")


_OURS = ("consensus.pbft.",)
_OTHERS = frozenset({"config", "_config", "_verifier", "head", "roster", "_roster", "block"})


def container_sizes(root: object, name: str, depth: int = 8) -> list[tuple[str, int]]:
    """Return path and size of every map, list, set and queue that objects of the engine hold."""
    found: list[tuple[str, int]] = []
    if isinstance(root, dict | list | set | tuple) or type(root).__name__ == "deque":
        found.append((name, len(root)))  # type: ignore[arg-type]
        children = list(root.values()) if isinstance(root, dict) else list(root)  # type: ignore[call-overload]
        for index, child in enumerate(children[:64]):
            found += container_sizes(child, f"{name}[{index}]", depth - 1)
        return found
    if depth == 0 or not type(root).__module__.startswith(_OURS) or isinstance(root, Message):
        return found
    slots = getattr(type(root), "__slots__", ()) or vars(root)
    for slot in slots:
        if slot not in _OTHERS:
            found += container_sizes(getattr(root, slot), f"{name}.{slot}", depth - 1)
    return found
