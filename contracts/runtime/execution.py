"""The pure execution of a block: transactions in, receipts, net writes and the next validator set out.

Two kinds of refusal are kept apart. What a transaction's sender cannot be charged with – a wrong chain,
lane number, expiry or account – makes a block that holds it invalid, and raises ``PeerError`` before
anything changed. Everything after that is total: a call that fails, whatever the reason, yields a failed
receipt and consumes the lane's number.

The transaction's signature is not judged here: the node does so once per transaction.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from consensus.ledger.codec import Value, decode, encode
from consensus.ledger.errors import HansaError, InvariantError, LocalError, PeerError, Revert, StorageError
from consensus.ledger.genesis import Genesis
from consensus.ledger.ids import ADDRESS_BYTES, ZERO_HASH
from consensus.ledger.receipt import FAILED, OK, Event, Receipt
from consensus.ledger.transaction import EACH, Call, Transaction
from consensus.ledger.validators import ValidatorSet, decode_validators_untrusted
from contracts.runtime.accounts import load_account
from contracts.runtime.contract import Context
from contracts.runtime.lanes import (
    LANES_PER_ACCOUNT_MAX,
    LaneRecord,
    encode_lane,
    encode_lane_count,
    lane_count_key,
    lane_key,
    load_lane,
    load_lane_count,
)
from contracts.runtime.loader import LoadedContract
from contracts.runtime.meter import (
    CALL_DEPTH_MAX,
    CALL_STEPS,
    STEPS_GENESIS_MAX,
    STEPS_PER_BLOCK_MAX,
    STEPS_PER_CALL_MAX,
    STEPS_PER_QUERY_MAX,
    STEPS_PER_TRANSACTION_MAX,
    Meter,
    OutOfSteps,
)
from contracts.runtime.registry import ActivationRecord, Registry, activation_key, encode_activations
from contracts.runtime.state import Overlay, StateReader
from contracts.runtime.values import encode_metered

VALIDITY_MS_MAX = 60 * 60 * 1000
"""How far ahead of block time a transaction's end of validity may lie."""

OUTPUT_BYTES_MAX = 512 * 1024
"""How many bytes of events and return values one transaction may put into its receipts."""

VALIDATORS_KEY = b"membership/validators"

ANYONE = bytes(ADDRESS_BYTES)
"""The caller that a query sees when nobody is named."""

Log = Callable[[str, str, str], None]
"""Takes contract, method and an interpreter's text about a call that broke; for operators, never for receipts."""

_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
    HansaError,
    msgspec.MsgspecError,
)
"""What a contract's own mistakes raise: a deterministic failure of its call alone."""


@dataclass(frozen=True, slots=True)
class BlockContext:
    """What contracts may know of the block they run in. Times are ms; ``proposer`` is a node's name."""

    chain_id: bytes
    height: int
    time_ms: int
    uptime_ms: int
    proposer: str


@dataclass(frozen=True, slots=True)
class Execution:
    """Result of a block. ``counts`` says how many of the receipts belong to each transaction in turn.

    ``writes`` are net and ascend by key; ``validators`` certify the next height.
    """

    receipts: list[Receipt]
    counts: list[int]
    writes: dict[bytes, bytes | None]
    validators: ValidatorSet
    steps: int = 0


def _ignore(contract: str, method: str, text: str) -> None:
    """Drop a contract's log line."""


class Executor:
    """Runs transactions against a state. Holds no state of its own; not for use by several threads."""

    def __init__(self, registry: Registry, log: Log = _ignore) -> None:
        self.registry = registry
        self.log = log

    def admit(
        self, state: StateReader, transaction: Transaction, *, time_ms: int, chain_id: bytes | None = None
    ) -> None:
        """Check that a transaction could be the next of its lane at a block time; the signature is not judged.

        Without ``chain_id`` the caller has compared the chain itself.

        Raises:
            PeerError: ``wrong_chain``, ``expired``, ``validity_too_long``, ``unknown_account``,
                ``account_suspended``, ``lane_used``, ``lane_gap``, ``lane_consumed``, ``too_many_lanes``.
        """
        check_validity(transaction, time_ms=time_ms, chain_id=chain_id)
        check_sender(state, transaction)
        check_lane(state, transaction)

    def begin(self, state: StateReader, block: BlockContext) -> "BlockRun":
        """Begin a block to which transactions are applied one by one, as a proposer does."""
        return BlockRun(self, state, block)

    def execute(self, state: StateReader, block: BlockContext, transactions: Sequence[Transaction]) -> Execution:
        """Execute a whole block.

        Raises:
            PeerError: as ``BlockRun.apply``; the block is invalid.
        """
        run = self.begin(state, block)
        for transaction in transactions:
            run.apply(transaction)
        return run.finish()

    def simulate(self, state: StateReader, block: BlockContext, transaction: Transaction) -> list[Receipt]:
        """Return the receipts that a transaction would have in this block, and change nothing.

        Raises:
            PeerError: as ``BlockRun.apply``.
        """
        return self.begin(state, block).apply(transaction)

    def query(
        self,
        state: StateReader,
        block: BlockContext,
        contract: str,
        method: str,
        arguments: dict[str, Value],
        caller: bytes = ANYONE,
    ) -> Value:
        """Return the answer of a contract's query.

        Raises:
            Revert: the contract's own code, ``unknown_contract``, ``unknown_method``, ``bad_arguments``,
                ``out_of_steps``, ``contract_error``.
        """
        try:
            data = encode(arguments)
        except LocalError as error:
            raise Revert("bad_arguments", error.message) from None
        session = Session(self, Overlay(state), block, caller)
        meter = session.meter
        meter.begin(STEPS_PER_QUERY_MAX)
        try:
            return decode(session.run(contract, method, data, "", is_query=True))
        except OutOfSteps as error:
            raise Revert(error.code, error.message) from None
        except Revert as error:
            raise Revert(_checked_code(error), error.message) from None

    def genesis_writes(self, genesis: Genesis) -> dict[bytes, bytes | None]:
        """Return the state of block 0: activations, and what ``membership`` makes of the document.

        Raises:
            LocalError: ``contract_code_missing`` without the membership code that the document names.
        """
        writes: dict[bytes, bytes | None] = {}
        for item in genesis.contracts:
            record = ActivationRecord(item.version, bytes.fromhex(item.code_hash), 0)
            writes[activation_key(item.name)] = encode_activations([record])
        overlay = Overlay(_Nothing())
        for key, data in writes.items():
            overlay.put(key, data or b"")
        membership = self.registry.resolve(overlay, "membership", 0)
        records = None if membership is None else membership.function("genesis_records")
        if records is None:
            raise LocalError("contract_code_missing", "the genesis document activates no membership contract")
        self.registry.meter.begin(STEPS_GENESIS_MAX)
        for key, value in records(genesis).items():
            writes[f"membership/{key}".encode()] = encode(value)
        return {key: writes[key] for key in sorted(writes)}


def check_validity(transaction: Transaction, *, time_ms: int, chain_id: bytes | None) -> None:
    """Check a transaction's chain, unless None is given, and its time.

    Raises:
        PeerError: ``wrong_chain``, ``expired``, ``validity_too_long``.
    """
    body = transaction.body
    if chain_id is not None and body.chain_id != chain_id:
        raise PeerError("wrong_chain", "the transaction belongs to another chain")
    if body.valid_until_ms < time_ms:
        raise PeerError("expired", f"valid until {body.valid_until_ms}, block time is {time_ms}")
    if body.valid_until_ms - time_ms > VALIDITY_MS_MAX:
        raise PeerError("validity_too_long", f"at most {VALIDITY_MS_MAX} ms ahead are accepted")


def check_sender(state: StateReader, transaction: Transaction) -> None:
    """Check that the sender is an active account.

    Raises:
        PeerError: ``unknown_account``, ``account_suspended``.
    """
    account = load_account(state, transaction.body.sender)
    if account is None:
        raise PeerError("unknown_account", f"no account has the address {transaction.body.sender.hex()}")
    if not account.is_active:
        raise PeerError("account_suspended", f"the account {account.name} is suspended")


def check_lane(state: StateReader, transaction: Transaction) -> bool:
    """Check that a transaction is the next of its lane; return whether it opens a counted lane.

    Raises:
        PeerError: ``lane_used``, ``lane_gap``, ``lane_consumed``, ``too_many_lanes``.
    """
    body = transaction.body
    record = load_lane(state, body.sender, body.lane)
    if record is not None and transaction.is_one_shot:
        raise PeerError("lane_consumed", "the one-shot lane has been used")
    expected = 0 if record is None else record.next
    if body.sequence < expected:
        raise PeerError("lane_used", f"number {body.sequence} has been used, {expected} is next")
    if body.sequence > expected:
        raise PeerError("lane_gap", f"number {body.sequence} is too early, {expected} is next")
    opens = record is None and not transaction.is_one_shot
    if opens and load_lane_count(state, body.sender) >= LANES_PER_ACCOUNT_MAX:
        raise PeerError("too_many_lanes", f"an account opens at most {LANES_PER_ACCOUNT_MAX} lanes")
    return opens


class BlockRun:
    """A block in the making: each transaction is executed on what those before it left."""

    def __init__(self, executor: Executor, state: StateReader, block: BlockContext) -> None:
        self._overlay = Overlay(state)
        self._block = block
        self._executor = executor
        self._meter = executor.registry.meter
        self._contracts: dict[str, LoadedContract | None] = {}
        self._receipts: list[Receipt] = []
        self._counts: list[int] = []
        self.steps = 0
        """Steps used by the transactions so far."""

    def apply(self, transaction: Transaction) -> list[Receipt]:
        """Execute the next transaction and return its receipts.

        Raises:
            PeerError: as ``Executor.admit``, or ``block_too_heavy`` once the block has used its steps; the
                transaction must not stand here, nothing has changed, and another may be applied.
            LocalError: ``contract_code_missing``.
        """
        if self.steps >= STEPS_PER_BLOCK_MAX:
            raise PeerError("block_too_heavy", f"a block takes no more after {STEPS_PER_BLOCK_MAX} steps")
        check_validity(transaction, time_ms=self._block.time_ms, chain_id=self._block.chain_id)
        check_sender(self._overlay, transaction)
        opens_lane = check_lane(self._overlay, transaction)
        receipts = self._run_each(transaction) if transaction.body.mode == EACH else [self._run_atomic(transaction)]
        self._advance_lane(transaction, receipts, opens_lane=opens_lane)
        self._receipts += receipts
        self._counts.append(len(receipts))
        self.steps += sum(receipt.steps for receipt in receipts)
        return receipts

    def value(self, key: bytes) -> bytes | None:
        """Return what a state key holds after the transactions so far."""
        return self._overlay.get(key)

    def finish(self) -> Execution:
        """Return the block's result."""
        data = self._overlay.get(VALIDATORS_KEY)
        if data is None:
            raise InvariantError("the state names no validators")
        return Execution(self._receipts, self._counts, self._overlay.writes(), _validators(data), self.steps)

    def _session(self, transaction: Transaction) -> "Session":
        session = Session(self._executor, self._overlay, self._block, transaction.body.sender, self._contracts)
        session.transaction_id = transaction.id
        session.lane_name = transaction.body.lane
        return session

    def _run_atomic(self, transaction: Transaction) -> Receipt:
        session = self._session(transaction)
        mark = self._overlay.mark()
        values: list[bytes] = []
        code = ""
        steps = 0
        for index, call in enumerate(transaction.body.calls):
            session.call_index = index
            code, value, used = self._run_call(session, call, STEPS_PER_TRANSACTION_MAX - steps)
            steps += used
            if code:
                break
            values.append(value)
        if code:
            self._overlay.rollback(mark)
            return Receipt(transaction.id, 0, FAILED, code, [], [], steps)
        return Receipt(transaction.id, 0, OK, "", values, session.events, steps)

    def _run_each(self, transaction: Transaction) -> list[Receipt]:
        session = self._session(transaction)
        receipts: list[Receipt] = []
        steps = 0
        for index, call in enumerate(transaction.body.calls):
            session.call_index = index
            session.events = []
            mark = self._overlay.mark()
            code, value, used = self._run_call(session, call, STEPS_PER_TRANSACTION_MAX - steps)
            steps += used
            if code:
                self._overlay.rollback(mark)
                receipts.append(Receipt(transaction.id, index, FAILED, code, [], [], used))
            else:
                receipts.append(Receipt(transaction.id, index, OK, "", [value], session.events, used))
        return receipts

    def _run_call(self, session: "Session", call: Call, steps_left: int) -> tuple[str, bytes, int]:
        """Run one call; return its error code (empty: none), its encoded value, and the steps it used."""
        meter = self._meter
        meter.begin(min(STEPS_PER_CALL_MAX, steps_left))
        validators = self._overlay.get(VALIDATORS_KEY)
        code, value = "", b""
        try:
            meter.charge(CALL_STEPS)
            value = session.run(call.contract, call.method, call.arguments, "", is_query=False)
            session.count_output(len(value))
            if self._overlay.get(VALIDATORS_KEY) is not validators:
                _check_validators(self._overlay.get(VALIDATORS_KEY))
        except Revert as error:
            code = _checked_code(error)
        except OutOfSteps as error:
            code = error.code
        return code, value, meter.used

    def _advance_lane(self, transaction: Transaction, receipts: list[Receipt], *, opens_lane: bool) -> None:
        body = transaction.body
        status = OK if all(receipt.status == OK for receipt in receipts) else FAILED
        record = LaneRecord(body.sequence + 1, transaction.id, status, self._block.height)
        self._overlay.put(lane_key(body.sender, body.lane), encode_lane(record))
        if opens_lane:
            count = load_lane_count(self._overlay, body.sender) + 1
            self._overlay.put(lane_count_key(body.sender), encode_lane_count(count))


class Session:
    """What stands behind the contexts of one transaction's calls, or of one query."""

    def __init__(
        self,
        executor: Executor,
        overlay: Overlay,
        block: BlockContext,
        caller: bytes,
        contracts: dict[str, LoadedContract | None] | None = None,
    ) -> None:
        self.overlay = overlay
        self.meter: Meter = executor.registry.meter
        self.chain_id = block.chain_id
        self.height = block.height
        self.time_ms = block.time_ms
        self.uptime_ms = block.uptime_ms
        self.transaction_id: bytes = ZERO_HASH
        self.lane_name = b""
        self.call_index = 0
        self.events: list[Event] = []
        self._executor = executor
        self._caller = caller
        self._contracts = {} if contracts is None else contracts
        self._output_bytes = 0

    def emit(self, contract: str, name: str, data: bytes) -> None:
        """Record an event."""
        if type(name) is not str or not 1 <= len(name) <= 64:
            raise ValueError("an event's name has 1 to 64 characters")
        self.count_output(len(name.encode()) + len(data))
        self.events.append(Event(contract, name, data))

    def count_output(self, count: int) -> None:
        """Count bytes that go into the transaction's receipts.

        Raises:
            Revert: ``output_too_large``.
        """
        self._output_bytes += count
        if self._output_bytes > OUTPUT_BYTES_MAX:
            raise Revert(
                "output_too_large", f"events and values of a transaction have at most {OUTPUT_BYTES_MAX} bytes"
            )

    def run(self, contract: str, method: str, arguments: bytes, via: str, *, is_query: bool) -> bytes:
        """Run one method and return its encoded value; effects of a call that raises are the caller's to undo.

        Raises:
            Revert: the contract's refusal, ``unknown_contract``, ``unknown_method``, ``bad_arguments``, or
                ``contract_error`` for any exception that is the contract's own mistake.
            OutOfSteps: the call has used its steps.
        """
        loaded = self._resolve(contract)
        if loaded is None:
            raise Revert("unknown_contract", f"no contract {contract} is active")
        found = loaded.methods.get(method)
        if found is None or (is_query and not found.is_query):
            raise Revert("unknown_method", f"{contract} has no such method {method}")
        self.meter.charge(len(arguments) >> 4)
        values = found.decode_arguments(arguments)
        context = Context(self, contract, self._caller, via, is_writable=not is_query and not found.is_query)
        try:
            return encode_metered(self.meter, found.function(loaded.instance, context, *values))
        except (Revert, OutOfSteps, InvariantError, StorageError):
            raise
        except (MemoryError, RecursionError) as error:
            raise InvariantError(f"{contract}.{method} met a limit of this interpreter: {error!r}") from error
        except _BROKEN as error:
            if isinstance(error, LocalError) and error.code == "contract_code_missing":
                raise
            self._executor.log(contract, method, repr(error))
            raise Revert("contract_error", f"{contract}.{method} failed") from None

    def nested(self, contract: str, method: str, arguments: bytes, context: Context, *, is_query: bool) -> bytes:
        """Run another contract's method; undo its effects and raise when it reverts."""
        meter = self.meter
        if meter.calls >= CALL_DEPTH_MAX:
            meter.stop()
        mark, events = self.overlay.mark(), len(self.events)
        meter.calls += 1
        try:
            return self.run(contract, method, arguments, context._contract, is_query=is_query)
        except Revert:
            self.overlay.rollback(mark)
            del self.events[events:]
            raise
        finally:
            meter.calls -= 1

    def _resolve(self, name: str) -> LoadedContract | None:
        if name not in self._contracts:
            self._contracts[name] = self._executor.registry.resolve(self.overlay, name, self.height)
        return self._contracts[name]


class _Nothing:
    """The state before block 0."""

    def get(self, key: bytes) -> bytes | None:
        return None

    def scan(self, prefix: bytes, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return []


def _validators(data: bytes) -> ValidatorSet:
    """Return the set in the state's bytes: a canonical bytes value that holds the set's own encoding."""
    value = decode(data)
    if not isinstance(value, bytes):
        raise PeerError("malformed", "the validators are no bytes value")
    return decode_validators_untrusted(value)


def _checked_code(error: Revert) -> str:
    """Return a contract's own code if it may stand in a receipt."""
    is_code = isinstance(error.code, str) and _CODE.fullmatch(error.code)
    return error.code if is_code else "contract_error"


def _check_validators(data: bytes | None) -> None:
    """Refuse a call that would leave the chain without a readable validator set."""
    try:
        if data is None:
            raise PeerError("bad_validators", "removed")
        _validators(data)
    except PeerError as error:
        raise Revert("contract_error", f"the call wrote no valid validator set: {error.message}") from None
