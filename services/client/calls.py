"""Calls as people write them: arguments typed by the contract's declaration, accounts by name, answers as JSON.

The declaration comes from the node that is asked and is believed: a wrong one makes the call fail. A name
is looked up in the genesis document, then in the proven state, so that no node can swap the account.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from consensus.ledger.codec import Value, decode_untrusted
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import ADDRESS_BYTES, HASH_BYTES
from consensus.ledger.receipt import OK, Receipt
from consensus.ledger.transaction import EACH, LANE_NAME_BYTES_MAX, Transaction, make_call
from consensus.ledger.validators import decode_validators_untrusted
from services.client.answers import Answer, hex_of
from services.client.arguments import NO_LIMITS, Limits, Parameter, parse_arguments
from services.client.client import VALIDITY_MS, Client, OnSigned, nobody_hears
from services.client.errors import Refused
from services.client.keystore import Signer
from services.client.lanes import one_shot_lane
from services.client.outcome import Outcome

T = TypeVar("T")

KEY_CHARACTERS_MAX = 1_024
CONTRACT_CHARACTERS_MAX = 64
_STAGES = ("final", "queued", "expired", "refused", "unknown")
"""Where a transaction can be, what says most first."""
VALIDATORS_KEY = "membership/validators"


class _Argument(Answer, frozen=True):
    name: str
    type: str
    required: bool
    limits: Limits = NO_LIMITS


class _Method(Answer, frozen=True):
    name: str
    kind: str
    arguments: list[_Argument]


class _Contract(Answer, frozen=True):
    methods: list[_Method]


async def typed_arguments(
    client: Client, contract: str, method: str, tokens: Sequence[str], *, kind: str
) -> dict[str, Value]:
    """Return the values of ``name=value`` tokens for a declared ``method`` or ``query`` (the ``kind``).

    Raises:
        LocalError: ``unknown_contract``, ``unknown_method``, ``bad_arguments``, ``unknown_account``.
    """
    described = await _describe(client, contract, _Contract)
    found = [item for item in described.methods if item.name == method and item.kind == kind]
    if not found:
        if any(item.name == method for item in described.methods):
            other, command = ("a query", "query") if kind == "method" else ("a method", "tx call")
            message = f"{method} of {contract} is {other}: hansa {command} {contract} {method}"
            raise LocalError("unknown_method", message)
        names = ", ".join(item.name for item in described.methods if item.kind == kind) or "none"
        raise LocalError("unknown_method", f"{contract} has no {kind} {method}; there are: {names}")
    declared = [Parameter(item.name, item.type, item.required, item.limits) for item in found[0].arguments]
    known = {account.name: bytes(account.address) for account in client.genesis.accounts}
    unknown: list[str] = []

    def look_up(name: str) -> bytes:
        if name not in known:
            unknown.append(name)
        return known.get(name, bytes(ADDRESS_BYTES))

    values = parse_arguments(tokens, declared, look_up)
    if unknown:  # names that only the chain knows: ask, then read again
        known |= {name: await account_address(client, name) for name in unknown}
        values = parse_arguments(tokens, declared, look_up)
    return values


async def account_address(client: Client, name: str) -> bytes:
    """Return the address of an account registered on the chain, out of proven state.

    Raises:
        LocalError: ``unknown_account``.
    """
    try:
        found = await client.state(f"membership/name/{name}", is_newest=True)
    except Refused as error:
        if error.code != "genesis_unsigned":
            raise
        raise LocalError("unknown_account", f"no account is named {name}, and no block follows genesis yet") from None
    if found.value is None:
        raise LocalError("unknown_account", f"no account is named {name}")
    if not isinstance(found.value, bytes) or len(found.value) != ADDRESS_BYTES:
        raise PeerError("bad_answer", f"membership/name/{name} holds no address")
    return found.value


async def call_typed(
    client: Client,
    signer: Signer,
    contract: str,
    method: str,
    tokens: Sequence[str],
    *,
    lane: str = "",
    once: str | None = None,
    timeout_ms: int = VALIDITY_MS,
    on_signed: OnSigned = nobody_hears,
) -> Outcome:
    """Call a method with arguments as text and wait for its proven receipt.

    ``on_signed`` hears of each transaction before it is submitted.

    ``once`` names a one-shot lane: whoever calls again with the same key gets the first call's outcome,
    as long as the call is the same.

    Raises:
        LocalError: ``bad_lane``, and those of :func:`typed_arguments`.
        Refused: ``once_used`` when the key stands for another call.
        Refused, Unreachable, PeerError: as :meth:`Client.call`.
    """
    arguments = await typed_arguments(client, contract, method, tokens, kind="method")
    call = make_call(contract, method, arguments)
    if once is not None:
        return await client.call_once(signer, [call], one_shot_lane(once), timeout_ms=timeout_ms, on_signed=on_signed)
    name = lane.encode()
    if len(name) > LANE_NAME_BYTES_MAX:
        raise LocalError("bad_lane", f"a lane name has up to {LANE_NAME_BYTES_MAX} bytes")
    lanes = client.lanes(signer, prefix=name)
    return await client.call_many(signer, [call], lanes=lanes, timeout_ms=timeout_ms, on_signed=on_signed)


async def query_typed(client: Client, contract: str, method: str, tokens: Sequence[str]) -> Value:
    """Ask a query with arguments as text; errors as for :func:`typed_arguments` and :meth:`Client.query`."""
    return await client.query(contract, method, await typed_arguments(client, contract, method, tokens, kind="query"))


async def contracts(client: Client) -> list[dict[str, object]]:
    """Return the active contracts: name, version, code hash, doc."""
    return await client.request("contract_list", {}, list[dict[str, object]])


async def describe(client: Client, contract: str) -> dict[str, object]:
    """Return a contract's description as the node gives it.

    Raises:
        LocalError: ``unknown_contract``.
    """
    return await _describe(client, contract, dict[str, object])


async def _describe(client: Client, contract: str, kind: type[T]) -> T:
    if not 1 <= len(contract) <= CONTRACT_CHARACTERS_MAX:
        raise LocalError("unknown_contract", f"{contract[:80]!r} is no contract; hansa contract list shows them")
    try:
        return await client.request("contract_describe", {"contract": contract}, kind)
    except Refused as error:
        if error.code != "unknown_contract":
            raise
        raise LocalError(error.code, f"{error.message}; hansa contract list shows them") from None


async def read_state(client: Client, key: str) -> dict[str, object]:
    """Return a proven state value with where and by whom it is proven, ready for JSON."""
    found = await client.state(check_key(key), is_newest=True)
    return {
        "key": key,
        "present": found.value is not None,
        "value": stored_json(key, found.value),
        "height": found.height,
        "certifiedBy": found.verified.height,
        "signers": list(found.verified.signers),
    }


async def scan_state(client: Client, prefix: str, *, cursor: str | None, limit: int) -> dict[str, object]:
    """Return a page of the keys that begin with a prefix, with their newest values, as one node says.

    ``cursor`` in the answer leads to the next page, None at the end.
    """
    params: dict[str, object] = {"prefix": prefix, "limit": limit}
    if cursor is not None:
        params["cursor"] = cursor
    return await client.request("state_scan", params, dict[str, object])


async def find_outcome(client: Client, transaction_id: str) -> Outcome:
    """Return the proven outcome of a final transaction given its id as 0x-hex.

    Raises:
        LocalError: ``bad_id``; else as :meth:`Client.outcome`.
    """
    return await client.outcome(parse_id(transaction_id))


def parse_id(text: str) -> bytes:
    """Return the 32 bytes of a transaction id or hash written as 0x-hex.

    Raises:
        LocalError: ``bad_id``.
    """
    try:
        data = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        data = b""
    if len(data) != HASH_BYTES:
        raise LocalError("bad_id", f"{text[:80]!r} is no id: 0x and {2 * HASH_BYTES} hex digits")
    return data


async def explain(client: Client, transaction_id: str) -> dict[str, Any]:
    """Return where the nodes say that a transaction is: what the one says that knows most, and all nodes' stages.

    Raises:
        LocalError: ``bad_id``.
    """
    params: dict[str, object] = {"id": hex_of(parse_id(transaction_id))}
    answers = await client.request_each("tx_explain", params, dict[str, Any])
    stages = {url: str(answer.get("stage", "unknown")) for url, answer in answers.items()}
    best = min(answers, key=lambda url: _STAGES.index(stages[url]) if stages[url] in _STAGES else len(_STAGES))
    return {**answers[best], "node": best, "stages": stages}


def check_key(text: str) -> str:
    """Return a state key, ``CONTRACT/KEY``.

    Raises:
        LocalError: ``bad_key``.
    """
    contract, slash, rest = text.partition("/")
    if not (contract and slash and rest) or len(text) > KEY_CHARACTERS_MAX or not text.isprintable():
        raise LocalError("bad_key", f"{text[:80]!r} is no state key: CONTRACT/KEY, as hansa state scan lists them")
    return text


def stored_json(key: str, value: Value) -> object:
    """Return a state value as JSON; the validator set, which is stored as its hashed bytes, by its members."""
    if key != VALIDATORS_KEY or not isinstance(value, bytes):
        return value_json(value)
    return [
        {"name": member.name, "organisation": member.organisation, "voteKey": hex_of(member.vote_key)}
        for member in decode_validators_untrusted(value).validators
    ]


def value_json(value: Value) -> object:
    """Return a contract value as JSON the way the RPC does: integers as decimal text, bytes as 0x-hex."""
    match value:
        case bool() | str() | None:
            return value
        case int():
            return str(value)
        case bytes():
            return hex_of(value)
        case list():
            return [value_json(item) for item in value]
        case dict():
            return {key: value_json(item) for key, item in value.items()}


def outcome_json(outcome: Outcome) -> dict[str, object]:
    """Return a final transaction with its receipts, ready for JSON."""
    verified = outcome.verified
    return {
        "ok": outcome.is_ok,
        **transaction_json(outcome.transaction),
        "height": verified.height,
        "blockHash": hex_of(verified.block_hash),
        "timeMs": verified.time_ms,
        "proposer": verified.header.proposer,
        "signers": list(verified.signers),
        "receipts": [receipt_json(receipt) for receipt in outcome.receipts],
    }


def transaction_json(transaction: Transaction) -> dict[str, object]:
    """Return a transaction with its calls decoded, ready for JSON."""
    body = transaction.body
    return {
        "id": hex_of(transaction.id),
        "sender": hex_of(body.sender),
        "lane": hex_of(body.lane),
        "sequence": body.sequence,
        "mode": "each" if body.mode == EACH else "atomic",
        "calls": [
            {"contract": call.contract, "method": call.method, "arguments": _encoded_json(call.arguments)}
            for call in body.calls
        ],
    }


def receipt_json(receipt: Receipt) -> dict[str, object]:
    """Return a receipt, ready for JSON."""
    return {
        "transactionId": hex_of(receipt.transaction_id),
        "callIndex": receipt.call_index,
        "status": "ok" if receipt.status == OK else "failed",
        "code": receipt.code,
        "values": [_encoded_json(value) for value in receipt.values],
        "events": [
            {"contract": event.contract, "name": event.name, "data": _encoded_json(event.data)}
            for event in receipt.events
        ],
        "steps": receipt.steps,
    }


def _encoded_json(data: bytes) -> object:
    """Return canonical bytes as JSON; arguments may be anything that a client sent, then as 0x-hex."""
    try:
        return value_json(decode_untrusted(data))
    except PeerError:
        return hex_of(data)
