"""Asks every validator of the current set what became of a transaction, and believes only what is proven.

An answer counts by its proof: a receipt under a verified certificate; or, once the transaction can no longer be
included, the record of its one-shot lane at a sealed root, which says that another transaction has the lane or none.
Which node is which validator is the nodes' own word: it decides how answers are counted and never what is true. So a
validator that two nodes claim to be is counted once, by its best answer.

A node that is up to date and knows of no end is HELD: the transaction waits there, or may still come. One that cannot
be reached, is slow or is behind is UNKNOWN. One that claims what its proof does not hold, serves another chain, or
answers nonsense is a LIAR, and the log names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import structlog
import trio

from consensus.ledger.errors import PeerError
from consensus.ledger.receipt import OK
from consensus.ledger.transaction import Transaction, decode_transaction_untrusted
from consensus.ledger.validators import ValidatorSet
from services.client.answers import ChainStatus, Explained, hex_of
from services.client.client import Client
from services.client.errors import Refused, Unreachable
from services.client.reader import Reader
from services.settlement.decision import CERTIFIED, NodeAnswer, Tally, Verdict
from services.settlement.states import Event

EVENTS_MAX = 16
"""Events that are asked about at a time."""
ANSWER_MS = 3_000
"""How long a node has for all questions about one transaction."""
REST_MS = 2_000
REST_MAX_MS = 30_000
"""How long a node that had no answer in time is not asked again; twice as long each time, up to the latter."""
ROLL_MS = 1_000
"""How long what is known of the validator set is used before the nodes are asked anew."""
BEHIND_BLOCKS = 1
"""A node that is more blocks behind the newest proven head cannot say that it knows of no end."""
TIMES_MAX = 256
"""Sealed blocks whose proven time is remembered."""

log = structlog.get_logger("census")


@dataclass(frozen=True, slots=True)
class _Said:
    """What a node's answer is worth; ``time_ms`` is the newest certified block time that it showed."""

    verdict: Verdict
    code: str = ""
    height: int = 0
    time_ms: int = 0


@dataclass(slots=True)
class _Roll:
    """The newest proven validator set, and which node claims to be which of its members."""

    validators: ValidatorSet
    height: int
    time_ms: int
    names: dict[str, str] = field(default_factory=dict)
    heights: dict[str, int] = field(default_factory=dict)
    """How far each node says it is."""


class _Lane(msgspec.Struct, frozen=True, rename="camel"):
    """The record of a lane, as far as it matters here."""

    last_id: bytes


_SILENT = _Said(Verdict.UNKNOWN)


class Census:
    """All validators' answers about a transaction."""

    def __init__(self, client: Client, *, ratio: int = 0, answer_ms: int = ANSWER_MS, rest_ms: int = REST_MS) -> None:
        """Ask the client's nodes; ``ratio`` validators must agree, 0 for a quorum of the current set."""
        self._rest_s = rest_ms / 1000
        self._answer_s = answer_ms / 1000
        self._genesis = client.genesis
        self._nodes = client.each_node()
        self._wanted = ratio
        validators = client.genesis.validator_set()
        self._roll = _Roll(validators, 0, client.genesis.time_ms)
        self._roll_until = 0.0
        self._roll_lock = trio.Lock()
        self._places = trio.Semaphore(EVENTS_MAX)
        self._rests_until: dict[str, float] = {}
        self._pauses_s: dict[str, float] = {}
        self._lies: dict[str, str] = {}
        self._times: dict[int, int] = {}

    @property
    def ratio(self) -> int:
        """How many validators of the newest known set must agree; no more than there are."""
        validators = self._roll.validators
        return min(self._wanted, validators.size) or validators.quorum

    async def ask(self, event: Event) -> Tally:
        """Return what all validators of the current set say of an event's transaction."""
        transaction = decode_transaction_untrusted(event.raw)
        async with self._places:
            roll = await self._current()
            said: dict[str, _Said] = {}

            async def ask(url: str, node: Reader) -> None:
                said[url] = await self._answer(url, node, transaction, roll.time_ms)

            async with trio.open_nursery() as nursery:
                for url, node in self._nodes.items():
                    if roll.names.get(url) in roll.validators.names:
                        nursery.start_soon(ask, url, node)
        answers = tuple(_counted(name, roll.names, said) for name in roll.validators.names)
        return Tally(answers, self.ratio, max([roll.time_ms, *(one.time_ms for one in said.values())]))

    # -- one node ------------------------------------------------------------------------------------------

    async def _answer(self, url: str, node: Reader, transaction: Transaction, chain_ms: int) -> _Said:
        """Return what one node's answer is worth."""
        if trio.current_time() < self._rests_until.get(url, 0.0):
            return _SILENT
        with trio.move_on_after(self._answer_s):
            try:
                is_behind = self._roll.heights[url] < self._roll.height - BEHIND_BLOCKS
                said = await self._question(node, transaction, chain_ms, is_behind=is_behind)
            except (Unreachable, Refused):
                return _SILENT
            except PeerError as error:
                self._on_lie(url, error)
                return _Said(Verdict.LIAR, error.code)
            self._lies.pop(url, None)
            self._pauses_s.pop(url, None)
            return said
        self._let_rest(url)
        return _SILENT

    async def _question(self, node: Reader, transaction: Transaction, chain_ms: int, *, is_behind: bool) -> _Said:
        """Ask one node for a receipt, else for proof that there will be none, else whether it waits there.

        Raises:
            PeerError: a claim does not hold.
            Refused: the node will not say.
            Unreachable: it does not answer.
        """
        said = await _receipt(node, transaction)
        if said is None and chain_ms > transaction.body.valid_until_ms:
            said = await self._absence(node, transaction)
        if said is not None:
            return said
        explained = await node.request("tx_explain", {"id": hex_of(transaction.id)}, Explained)
        is_held = explained.stage == "queued" or not is_behind
        return _Said(Verdict.HELD if is_held else Verdict.UNKNOWN)

    async def _absence(self, node: Reader, transaction: Transaction) -> _Said | None:
        """Return the proof that no block can hold a transaction, None where the node has sealed no such state yet."""
        body = transaction.body
        lane = await node.state(f"lanes/{body.sender.hex()}/{body.lane.hex()}")
        if lane.value is not None and last_id_untrusted(lane.value) == transaction.id:
            said = await _receipt(node, transaction)  # it became final between the two questions
            if said is None:
                raise PeerError("bad_answer", "the node denies a transaction that its state proves")
            return said
        time_ms = await self._block_time(node, lane.height)
        return _Said(Verdict.ABSENT, "", lane.height, time_ms) if time_ms > body.valid_until_ms else None

    async def _block_time(self, node: Reader, height: int) -> int:
        """Return the proven time of a block."""
        if height == 0:
            return self._genesis.time_ms
        time_ms = self._times.get(height)
        if time_ms is None:
            time_ms = (await node.prove_block(height)).time_ms
            if len(self._times) >= TIMES_MAX:
                self._times.clear()
            self._times[height] = time_ms
        return time_ms

    def _let_rest(self, url: str) -> None:
        """Ask a silent node no more for a while; of questions that it left open together one counts."""
        if trio.current_time() < self._rests_until.get(url, 0.0):
            return
        pause_s = self._pauses_s.get(url, self._rest_s)
        self._rests_until[url] = trio.current_time() + pause_s
        self._pauses_s[url] = min(2 * pause_s, REST_MAX_MS / 1000)

    def _on_lie(self, url: str, error: PeerError) -> None:
        """Name a liar in the log, once for each kind of lie."""
        if self._lies.get(url) != error.code:
            name = self._roll.names.get(url, "")
            log.error("node lies", node=name, url=url, code=error.code, why=error.message)
        self._lies[url] = error.code

    # -- who is asked --------------------------------------------------------------------------------------

    async def _current(self) -> _Roll:
        """Return the newest validator set that any node proves."""
        async with self._roll_lock:
            if trio.current_time() >= self._roll_until:
                async with trio.open_nursery() as nursery:
                    for url, node in self._nodes.items():
                        nursery.start_soon(self._introduce, url, node)
                self._roll_until = trio.current_time() + ROLL_MS / 1000
            return self._roll

    async def _introduce(self, url: str, node: Reader) -> None:
        """Learn whom a node claims to be, and its head, if that is proven."""
        if trio.current_time() < self._rests_until.get(url, 0.0):
            return
        with trio.move_on_after(self._answer_s) as waited:
            try:
                status = await node.request("chain_status", {}, ChainStatus)
                self._roll.names[url], self._roll.heights[url] = status.node, status.height
                _, head = await node.prove("chain_getBlock", {})
            except (Unreachable, Refused):  # also of a chain that is still at genesis
                return
            except PeerError as error:
                self._on_lie(url, error)
                return
            if head.height > self._roll.height:
                self._roll.validators, self._roll.height, self._roll.time_ms = (
                    head.validators,
                    head.height,
                    head.time_ms,
                )
        if waited.cancelled_caught:
            self._let_rest(url)


async def _receipt(node: Reader, transaction: Transaction) -> _Said | None:
    """Return a transaction's proven end, None where the node knows of none."""
    try:
        receipt, block = await node.prove_receipt(transaction.id)
    except Refused as error:
        if error.code != "not_found":
            raise
        return None
    verdict = Verdict.SUCCEEDED if receipt.status == OK else Verdict.FAILED
    return _Said(verdict, receipt.code, block.height, block.time_ms)


def last_id_untrusted(record: object) -> bytes:
    """Return the id of the transaction that used a lane, out of its record in state.

    Raises:
        PeerError: ``bad_answer``.
    """
    try:
        return msgspec.convert(record, _Lane).last_id
    except msgspec.ValidationError as error:
        raise PeerError("bad_answer", f"a lane's record is none: {error}") from None


def _rank(answer: _Said) -> int:
    return 0 if answer.verdict in CERTIFIED else 1 if answer.verdict is Verdict.HELD else 2


def _counted(validator: str, names: Mapping[str, str], said: Mapping[str, _Said]) -> NodeAnswer:
    """Return a validator's answer: the best of the nodes that claim to be it; one that is proven, else an opinion."""
    answers = [answer for url, answer in said.items() if names.get(url) == validator]
    best = min(answers, key=_rank, default=_SILENT)
    return NodeAnswer(validator, best.verdict, best.code, best.height)
