"""Blocks through the real executor: lanes, modes, effects of failures, and what makes a block invalid."""

import dataclasses
from typing import Any

import msgspec
import pytest

from consensus.ledger.block import receipts_root, writes_root
from consensus.ledger.codec import Value, decode, encode
from consensus.ledger.errors import InvariantError, LocalError, PeerError, Revert
from consensus.ledger.ids import tagged_hash
from consensus.ledger.receipt import FAILED, OK, receipt_codec
from consensus.ledger.transaction import EACH, Call, Transaction, make_call
from contracts.runtime import execution as execution_module
from contracts.runtime import meter as meter_module
from contracts.runtime.execution import OUTPUT_BYTES_MAX, VALIDITY_MS_MAX, BlockContext, Executor
from contracts.runtime.lanes import LANES_PER_ACCOUNT_MAX, load_lane, load_lane_count
from contracts.runtime.registry import ActivationRecord, Registry, activation_key, encode_activations
from contracts.runtime.state import MemoryState
from tests.contracts.runtime.samples import PROBE, contract_of
from tests.contracts.support import KEYS, Chain, make_genesis, make_registry, shipped_sources


@pytest.fixture
def chain() -> Chain:
    return Chain(make_registry(PROBE))


def add(key: str = "n", amount: int = 1) -> Call:
    return make_call("probe", "add", {"key": key, "amount": amount})


FAILING = make_call("probe", "add_and_fail", {"key": "n"})


def refused(chain: Chain, *transactions: Transaction) -> str:
    """Return the code with which a block of these is refused; nothing may have changed."""
    before = chain.state.entries()
    with pytest.raises(PeerError) as caught:
        chain.executor.execute(chain.state, chain.block_context(), transactions)
    assert chain.state.entries() == before
    return caught.value.code


# -- modes ---------------------------------------------------------------------------------------------------


def test_atomic_is_all_or_nothing(chain: Chain) -> None:
    (receipt,) = chain.submit("alice", add(), add(), FAILING, add())
    assert (receipt.status, receipt.code, receipt.call_index) == (FAILED, "no_thanks", 0)
    assert (receipt.values, receipt.events) == ([], [])
    assert chain.query("probe", "read", key="n") is None
    (receipt,) = chain.submit("alice", add(), add())
    assert [decode(value) for value in receipt.values] == [1, 2]
    assert [event.name for event in receipt.events] == ["added", "added"]
    assert receipt.steps > 0


def test_each_stands_for_itself(chain: Chain) -> None:
    receipts = chain.submit("alice", add(), FAILING, add(), mode=EACH)
    assert [receipt.call_index for receipt in receipts] == [0, 1, 2]
    assert [receipt.code for receipt in receipts] == ["", "no_thanks", ""]
    assert [len(receipt.events) for receipt in receipts] == [1, 0, 1]
    assert chain.query("probe", "read", key="n") == 2


def test_counts_say_whose_receipts_they_are(chain: Chain) -> None:
    first = chain.transaction("alice", add(), add(), mode=EACH)
    second = chain.transaction("bob", add(), add())
    execution = chain.block([first, second])
    assert execution.counts == [2, 1]
    assert [receipt.transaction_id for receipt in execution.receipts] == [first.id, first.id, second.id]
    assert list(execution.writes) == sorted(execution.writes)
    assert execution.steps == sum(receipt.steps for receipt in execution.receipts)


def test_what_a_contract_sees(chain: Chain) -> None:
    context = chain.block_context()
    receipts = chain.submit("alice", make_call("probe", "who", {}), make_call("probe", "who", {}), mode=EACH)
    expected = [chain.address("alice"), "", 1, context.time_ms, context.uptime_ms]
    assert [decode(receipt.values[0]) for receipt in receipts] == [[*expected, 0], [*expected, 1]]


BROKEN = [
    "key", "zero", "type", "attribute", "name", "value", "index", "big", "object", "cycle", "surrogate", "code",
    "event", "keys", "changed", "code type", "long code", "event surrogate", "call",
]  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_contracts_mistake_is_a_failed_receipt_without_interpreter_text(chain: Chain, kind: str) -> None:
    receipt = chain.call("alice", "probe", "break_down", kind=kind)
    assert (receipt.status, receipt.code, receipt.values, receipt.events) == (FAILED, "contract_error", [], [])
    assert chain.query("probe", "read", key="broken") is None
    assert "code" in kind or chain.logs[-1][:2] == ("probe", "break_down")


def test_limits_of_the_interpreter_stop_the_node(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (MemoryError, RecursionError):

        def fail(*_: object, error: type[Exception] = error) -> None:
            raise error

        monkeypatch.setattr(execution_module, "encode_metered", fail)
        with pytest.raises(InvariantError):
            chain.call("alice", "probe", "add", key="n")


def test_calls_between_contracts(chain: Chain) -> None:
    assert chain.ok("alice", "probe", "through", key="n", catch=True) == [1, "no_thanks", 1, ""]
    assert chain.fails("alice", "probe", "through", key="n", catch=False) == "no_thanks"
    assert chain.query("probe", "read", key="n") == 1
    receipt = chain.call("alice", "probe", "through", key="n", catch=True)
    assert [event.name for event in receipt.events] == ["added"]
    assert chain.fails("alice", "probe", "forever") == "out_of_steps"


def test_caller_and_via_in_nested_calls() -> None:
    outer = contract_of("return [context.call('probe', 'who'), context.query('probe', 'table')]")
    chain = Chain(make_registry(PROBE, outer))
    answer: Any = chain.ok("alice", "sample", "run")
    assert answer[0][:2] == [chain.address("alice"), "sample"]
    assert answer[1] == {"one": 1, "two": 2}


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (make_call("nothing", "run", {}), "unknown_contract"),
        (make_call("registry", "run", {}), "unknown_contract"),
        (make_call("probe", "nothing", {}), "unknown_method"),
        (make_call("probe", "__init__", {}), "unknown_method"),
        (make_call("probe", "add", {}), "bad_arguments"),
        (make_call("probe", "read", {"key": "n"}), ""),
        (make_call("probe", "naughty", {}), "read_only"),
        (make_call("probe", "sly", {}), "read_only"),
        (make_call("probe", "put", {"key": "k" * 513, "value": 1}), "key_too_long"),
        (make_call("probe", "put", {"key": "k", "value": b"x" * 65_537}), "value_too_large"),
        (make_call("probe", "page", {"prefix": "", "limit": 1_001}), "bad_limit"),
        (make_call("probe", "loud", {"count": 9, "size": 60_000}), "output_too_large"),
    ],
)
def test_codes_of_the_runtime(chain: Chain, call: Call, code: str) -> None:
    receipt = chain.submit("alice", call)[0]
    assert (receipt.code, receipt.status) == (code, FAILED if code else OK)


def test_a_transactions_output_is_bounded_over_all_its_calls(chain: Chain) -> None:
    noise = make_call("probe", "loud", {"count": 1, "size": 60_000})
    receipts = chain.submit("alice", *[noise] * 12, mode=EACH)
    kept = sum(len(event.data) for receipt in receipts for event in receipt.events)
    assert kept <= OUTPUT_BYTES_MAX < 12 * 60_000
    assert {receipt.code for receipt in receipts} == {"", "output_too_large"}
    for receipt in receipts:
        assert receipt_codec.decode_untrusted(receipt_codec.encode(receipt)) == receipt


# -- state ---------------------------------------------------------------------------------------------------


def test_pages_of_state(chain: Chain) -> None:
    for key in ("a/1", "a/2", "a/3", "b/1"):
        chain.ok("alice", "probe", "put", key=key, value=key)
    chain.ok("alice", "probe", "drop", key="a/2")
    assert chain.query("probe", "page", prefix="a/") == [["a/1", "a/1"], ["a/3", "a/3"]]
    assert chain.query("probe", "page", prefix="a/", limit=1) == [["a/1", "a/1"]]
    assert chain.query("probe", "page", prefix="a/", start="a/1\0") == [["a/3", "a/3"]]
    assert chain.query("probe", "page", prefix="") != []
    assert {key.split(b"/")[0] for key in chain.state.entries()} == {b"lanes", b"membership", b"probe", b"registry"}


def test_queries(chain: Chain) -> None:
    assert chain.query("probe", "digest", parts=[1, b"x"]) == tagged_hash("contract-data", encode([1, b"x"]))
    alice: list[Value] = [chain.address("alice"), "alice", "bank-a"]
    assert chain.query("probe", "name_of", name="alice") == alice
    assert chain.query("probe", "name_of", name="nobody") is None
    codes: dict[str, tuple[str, str, dict[str, Any]]] = {
        "unknown_contract": ("nothing", "read", {}),
        "unknown_method": ("probe", "add", {"key": "n"}),
        "bad_arguments": ("probe", "read", {"key": 1}),
        "read_only": ("probe", "naughty", {}),
    }
    for code, (contract, method, arguments) in codes.items():
        with pytest.raises(Revert) as caught:
            chain.query(contract, method, **arguments)
        assert caught.value.code == code


# -- lanes ---------------------------------------------------------------------------------------------------


def test_a_failed_transaction_consumes_its_number(chain: Chain) -> None:
    transaction = chain.transaction("alice", FAILING)
    chain.block([transaction])
    record = load_lane(chain.state, chain.address("alice"), b"")
    assert record is not None
    assert (record.next, record.last_id, record.status, record.height) == (1, transaction.id, FAILED, 1)
    chain.submit("alice", add())
    record = load_lane(chain.state, chain.address("alice"), b"")
    assert record is not None
    assert (record.next, record.status, record.height) == (2, OK, 2)


def test_lane_records_are_canonical_maps_that_contracts_read(chain: Chain) -> None:
    transaction = chain.transaction("alice", add(), lane=b"x")
    chain.block([transaction])
    key = b"lanes/" + chain.address("alice").hex().encode() + b"/78"
    stored = chain.state.get(key)
    assert stored == encode({"next": 1, "lastId": transaction.id, "status": OK, "height": 1})
    assert chain.query("probe", "lane", address=chain.address("alice"), lane=b"x") == [1, transaction.id, OK, 1]
    assert chain.query("probe", "lane", address=chain.address("alice"), lane=b"y") is None


def test_r45_numbers_of_a_lane_follow_each_other_in_a_block_and_over_blocks(chain: Chain) -> None:
    first, second, third = (chain.transaction("alice", add(), sequence=number) for number in range(3))
    assert refused(chain, second) == "lane_gap"
    assert refused(chain, first, third) == "lane_gap"
    assert refused(chain, first, first) == "lane_used"
    twin = chain.transaction("alice", add("m"), sequence=0)
    assert refused(chain, first, twin) == "lane_used"
    chain.block([first, second])
    assert refused(chain, first) == "lane_used"
    assert refused(chain, third, second) == "lane_used"
    chain.block([third])
    assert chain.query("probe", "read", key="n") == 3


def test_one_shot_lanes_hold_one_transaction_and_are_not_counted(chain: Chain) -> None:
    lane = bytes(32)
    chain.submit("alice", add(), lane=lane)
    assert refused(chain, chain.transaction("alice", add(), lane=lane, sequence=0)) == "lane_consumed"
    assert load_lane_count(chain.state, chain.address("alice")) == 0


def test_open_lanes_are_bounded(chain: Chain) -> None:
    lanes = [number.to_bytes(2, "big") for number in range(LANES_PER_ACCOUNT_MAX + 1)]
    *fitting, extra = [chain.transaction("alice", add(), lane=lane) for lane in lanes]
    chain.block(fitting)
    assert load_lane_count(chain.state, chain.address("alice")) == LANES_PER_ACCOUNT_MAX
    assert refused(chain, extra) == "too_many_lanes"
    chain.submit("alice", add(), lane=lanes[0])
    chain.submit("alice", add(), lane=bytes(32))
    chain.submit("bob", add(), lane=lanes[-1])


def test_what_makes_a_block_invalid(chain: Chain) -> None:
    context = chain.block_context()
    good = chain.transaction("alice", add())

    def late(valid_until_ms: int) -> Transaction:
        return resigned(chain, good, valid_until_ms=valid_until_ms)

    assert refused(chain, late(context.time_ms - 1)) == "expired"
    assert refused(chain, late(context.time_ms + VALIDITY_MS_MAX + 1)) == "validity_too_long"
    assert refused(chain, resigned(chain, good, chain_id=bytes(32))) == "wrong_chain"
    assert refused(chain, resigned(chain, good, sender=bytes(20))) == "unknown_account"
    chain.executor.execute(chain.state, context, [late(context.time_ms)])
    chain.executor.execute(chain.state, context, [late(context.time_ms + VALIDITY_MS_MAX)])
    bad = [(late(context.time_ms - 1), "expired"), (resigned(chain, good, chain_id=bytes(32)), "wrong_chain")]
    for transaction, code in bad:
        with pytest.raises(PeerError) as caught:
            chain.executor.admit(chain.state, transaction, time_ms=context.time_ms, chain_id=chain.chain_id)
        assert caught.value.code == code
    chain.executor.admit(chain.state, good, time_ms=context.time_ms)


def resigned(chain: Chain, transaction: Transaction, **changes: Any) -> Transaction:
    """Return the transaction with a changed body; the executor judges no signature."""
    return msgspec.structs.replace(transaction, body=msgspec.structs.replace(transaction.body, **changes))


def test_a_suspended_account_is_refused_from_the_same_block_on(chain: Chain) -> None:
    suspend = chain.transaction(
        "admin-a", make_call("membership", "suspend_account", {"account": chain.address("bob")})
    )
    of_bob = chain.transaction("bob", add())
    assert refused(chain, suspend, of_bob) == "account_suspended"
    chain.block([of_bob, suspend])
    assert refused(chain, chain.transaction("bob", add())) == "account_suspended"
    resume = make_call("membership", "resume_account", {"account": chain.address("bob")})
    chain.submit("admin-a", resume)
    chain.submit("bob", add())


def test_a_refused_transaction_leaves_the_run_as_it_was(chain: Chain) -> None:
    context = chain.block_context()
    good = [chain.transaction("alice", add(), sequence=number) for number in range(2)]
    run = chain.executor.begin(chain.state, context)
    run.apply(good[0])
    for _ in range(3):
        with pytest.raises(PeerError):
            run.apply(good[0])
    run.apply(good[1])
    assert run.finish() == chain.executor.execute(chain.state, context, good)


def test_a_block_takes_no_more_once_it_is_heavy(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution_module, "STEPS_PER_BLOCK_MAX", 1_000)
    run = chain.executor.begin(chain.state, chain.block_context())
    run.apply(chain.transaction("alice", make_call("probe", "spin", {"turns": 1_000})))
    assert run.steps > 1_000
    with pytest.raises(PeerError) as caught:
        run.apply(chain.transaction("bob", add()))
    assert caught.value.code == "block_too_heavy"
    assert run.finish().counts == [1]


def test_simulation_changes_nothing(chain: Chain) -> None:
    before = chain.state.entries()
    transaction = chain.transaction("alice", add())
    simulated = chain.executor.simulate(chain.state, chain.block_context(), transaction)
    assert chain.state.entries() == before
    assert chain.block([transaction]).receipts == simulated


def test_r42_an_empty_block_and_any_admitted_block_execute(chain: Chain) -> None:
    execution = chain.block([])
    assert (execution.receipts, execution.counts, execution.writes, execution.steps) == ([], [], {}, 0)
    assert execution.validators == chain.genesis.validator_set()
    junk = [Call("probe", "add", bytes([byte])) for byte in range(256)]
    receipts = chain.submit("alice", *junk, mode=EACH)
    assert {receipt.code for receipt in receipts} == {"bad_arguments"}


def test_r41_another_context_gives_another_result(chain: Chain) -> None:
    transaction = chain.transaction("alice", make_call("probe", "who", {}))
    context = chain.block_context()
    roots = set()
    changes: list[dict[str, Any]] = [{}, {"height": 7}, {"time_ms": context.time_ms + 1}, {"uptime_ms": 9}]
    for change in changes:
        run = chain.executor.execute(chain.state, dataclasses.replace(context, **change), [transaction])
        roots.add((receipts_root(run.receipts), writes_root(run.writes)))
    assert len(roots) == len(changes)


# -- validators and code -------------------------------------------------------------------------------------

KEEPER = '''
"""Stands in for membership and writes what it is told to."""

from consensus.ledger.genesis import Genesis
from contracts.runtime.contract import Context, Contract, Revert, Value, method


class Keeper(Contract):
    name = "membership"
    version = 2

    @method
    def put(self, context: Context, key: str, value: Value) -> None:
        context.state.put(key, value)

    @method
    def drop(self, context: Context, key: str) -> None:
        context.state.delete(key)
'''


def keeper_chain() -> Chain:
    chain = Chain(Registry([*shipped_sources()]))
    registry = Registry([*shipped_sources(), ("keeper.py", KEEPER.encode())])
    keeper = registry.get("membership", 2)
    assert keeper is not None
    activations = [*_activations(chain, "membership"), ActivationRecord(2, keeper.code_hash, 1)]
    chain.state.apply({activation_key("membership"): encode_activations(activations)})
    chain.executor = Executor(registry)
    return chain


def _activations(chain: Chain, name: str) -> list[ActivationRecord]:
    data = chain.state.get(activation_key(name))
    assert data is not None
    return msgspec.msgpack.decode(data, type=list[ActivationRecord])


def test_validators_of_the_next_height_come_from_the_state() -> None:
    chain = keeper_chain()
    smaller = chain.genesis.validator_set().of(list(chain.genesis.validator_set().validators[:3]))
    call = make_call("membership", "put", {"key": "validators", "value": smaller.encode()})
    execution = chain.block([chain.transaction("alice", call)])
    assert execution.validators == smaller
    assert chain.block([]).validators == smaller


@pytest.mark.parametrize("value", [b"", b"\x91\x90", 1, None, [b"x"]])
def test_a_call_cannot_leave_a_chain_without_validators(value: Value) -> None:
    chain = keeper_chain()
    assert chain.fails("alice", "membership", "put", key="validators", value=value) == "contract_error"
    assert chain.fails("alice", "membership", "drop", key="validators") == "contract_error"
    assert chain.block([]).validators == chain.genesis.validator_set()


@pytest.mark.parametrize("value", [b"", {}, 1, {"name": "x"}, [1]])
def test_a_broken_account_record_only_keeps_its_account_out(value: Value) -> None:
    chain = keeper_chain()
    chain.ok("alice", "membership", "put", key="account/" + chain.address("bob").hex(), value=value)
    assert refused(chain, chain.transaction("bob", add())) == "unknown_account"


def test_a_version_is_active_from_its_height_on() -> None:
    chain = keeper_chain()
    registry = chain.executor.registry
    assert registry.missing(chain.state, 1) == []
    active = {name: registry.active(chain.state, height)["membership"].version for height, name in ((0, "a"), (1, "b"))}
    assert active == {"a": 1, "b": 2}


def test_missing_code_is_named_and_never_run(chain: Chain) -> None:
    lesser = Executor(make_registry())
    assert [(item.name, item.version) for item in lesser.registry.missing(chain.state, 1)] == [("probe", 1)]
    with pytest.raises(LocalError) as caught:
        lesser.execute(chain.state, chain.block_context(), [chain.transaction("alice", add())])
    assert caught.value.code == "contract_code_missing"
    other = Executor(make_registry(PROBE + "\n# another\n"))
    assert [item.name for item in other.registry.missing(chain.state, 1)] == ["probe"]


# -- genesis -------------------------------------------------------------------------------------------------


def test_genesis_state(chain: Chain) -> None:
    registry = make_registry(PROBE)
    genesis = make_genesis(registry)
    writes = Executor(registry).genesis_writes(genesis)
    assert list(writes) == sorted(writes)
    assert writes == chain.executor.genesis_writes(genesis)
    assert writes[b"membership/validators"] == encode(genesis.validator_set().encode())
    address = KEYS["alice"].public.address
    record: Any = decode(writes[b"membership/account/" + address.hex().encode()] or b"")
    assert (record["name"], record["publicKey"], record["status"]) == (
        "alice",
        KEYS["alice"].public.compressed,
        "active",
    )
    probe: Any = decode(writes[b"registry/probe"] or b"")
    code_hash = next(item.code_hash for item in genesis.contracts if item.name == "probe")
    assert probe == [{"version": 1, "codeHash": bytes.fromhex(code_hash), "fromHeight": 0}]


def test_genesis_without_membership_is_refused() -> None:
    registry = make_registry()
    genesis = msgspec.structs.replace(make_genesis(registry), contracts=[])
    with pytest.raises(LocalError) as caught:
        Executor(registry).genesis_writes(genesis)
    assert caught.value.code == "contract_code_missing"


def test_a_state_without_validators_is_no_chain() -> None:
    executor = Executor(make_registry())
    with pytest.raises(InvariantError):
        executor.execute(MemoryState(), BlockContext(bytes(32), 1, 1, 1, "node-0"), [])


def test_steps_are_those_of_the_meter_module() -> None:
    assert meter_module.STEPS_PER_CALL_MAX <= meter_module.STEPS_PER_TRANSACTION_MAX < meter_module.STEPS_PER_BLOCK_MAX
