"""``state_*``, ``contract_*``, ``events_query``: what contracts hold, offer and tell."""

from collections.abc import Iterator
from typing import Annotated, cast

import msgspec
import trio

from consensus.ledger.codec import decode_untrusted, encode
from consensus.ledger.errors import PeerError
from contracts.runtime.registry import Description
from node.rpc.context import Context, Selection, methods
from node.rpc.protocol import Json
from node.rpc.render import (
    arguments_of_untrusted,
    cursor_of,
    cursor_text,
    encoded_json,
    hex_of,
    hex_untrusted,
    proof_json,
    value_json,
)
from node.rpc.schema import Cursor, Height, Hex, NameText, NoParams, Params

KEY_CHARACTERS_MAX = 1_024
STATE_PAGE_MAX = 500
EVENTS_PAGE_MAX = 1_000
BLOCKS_READ_MAX = 1_000
"""How many blocks one ``events_query`` reads before it returns a page, even an empty one."""
MIN_HEIGHT_WAIT_MS_MAX = 60_000

JsonValue = Annotated[object, msgspec.Meta(extra_json_schema={"description": "any JSON value"})]
KeyText = Annotated[str, msgspec.Meta(min_length=1, max_length=KEY_CHARACTERS_MAX)]


class StateGet(Params, frozen=True):
    """A key as text, ``CONTRACT/KEY``; ``minHeight`` waits for a state, with ``prove`` a sealed one, that new."""

    key: KeyText
    prove: bool = False
    min_height: Height = 0
    timeout_ms: Annotated[int, msgspec.Meta(ge=0, le=MIN_HEIGHT_WAIT_MS_MAX)] = 10_000


@methods.add("state_get", StateGet)
async def state_get(context: Context, params: StateGet) -> Json:
    """One state value of the newest block, null when absent.

    With ``prove`` the proof file beside it shows the value at the sealed height, which may be older.
    """
    await _reach(context, params.min_height, params.timeout_ms, is_sealed=params.prove)
    await context.backend.settled()
    key = _key(params.key)
    data = context.backend.state().get(key)
    head = context.backend.head()
    result: dict[str, Json] = {
        "key": params.key,
        "value": None if data is None else encoded_json(data),
        "raw": None if data is None else hex_of(data),
        "height": head.header.height,
        "sealedHeight": head.header.sealed_height,
    }
    if params.prove:
        result["proof"] = proof_json(context.backend.prove_state(key))
    return result


class StateScan(Params, frozen=True):
    """Keys that begin with ``prefix``, after ``cursor``, which is the last key of the page before."""

    prefix: KeyText
    cursor: KeyText | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=STATE_PAGE_MAX)] = 100


@methods.add("state_scan", StateScan)
async def state_scan(context: Context, params: StateScan) -> Json:
    """A page of state pairs in ascending order of their keys; ``cursor`` leads on, null at the end."""
    prefix = _key(params.prefix)
    start = prefix if params.cursor is None else _key(params.cursor) + b"\0"
    await context.backend.settled()
    pairs = context.backend.state().scan(prefix, start, params.limit)
    items: list[Json] = [
        {"key": key.decode("utf-8", "replace"), "value": encoded_json(data), "raw": hex_of(data)} for key, data in pairs
    ]
    last = pairs[-1][0].decode("utf-8", "replace") if len(pairs) == params.limit else None
    return {"items": items, "cursor": last, "height": context.backend.head().header.height}


@methods.add("contract_list", NoParams)
async def contract_list(context: Context, _: NoParams) -> Json:
    """All active contracts with name, version, code hash and what they are for."""
    described = [description.to_builtins() for description in context.backend.contracts()]
    return [{key: item for key, item in entry.items() if key != "methods"} for entry in described]


class ContractDescribe(Params, frozen=True):
    """A contract's name."""

    contract: NameText


@methods.add("contract_describe", ContractDescribe)
async def contract_describe(context: Context, params: ContractDescribe) -> Json:
    """A contract's methods with their arguments' names and types."""
    return _find(context, params.contract).to_builtins()


class ContractQuery(Params, frozen=True):
    """``arguments`` by name, typed by the declaration; or ``raw``, the canonical encoding of their map."""

    contract: NameText
    method: NameText
    arguments: dict[str, JsonValue] = msgspec.field(default_factory=dict)
    raw: Hex | None = None


@methods.add("contract_query", ContractQuery)
async def contract_query(context: Context, params: ContractQuery) -> Json:
    """Run a read-only method on the newest state."""
    if params.raw is not None:
        arguments = decode_untrusted(hex_untrusted(params.raw))
        if not isinstance(arguments, dict):
            raise PeerError("invalid_params", "raw is no map of arguments")
    else:
        kinds = _argument_kinds(context, params.contract, params.method)
        arguments = arguments_of_untrusted(kinds, cast(dict[str, Json], params.arguments))
    await context.backend.settled()
    height = context.backend.head().header.height
    value = context.backend.query(params.contract, params.method, arguments)
    return {"value": value_json(value), "raw": hex_of(encode(value)), "height": height}


class EventsQuery(Params, frozen=True):
    """Events after ``cursor``, or from ``fromHeight`` on, of one contract and one name when these are given."""

    contract: NameText = ""
    name: NameText = ""
    cursor: Cursor | None = None
    from_height: Height = 0
    to_height: Height | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=EVENTS_PAGE_MAX)] = 100


@methods.add("events_query", EventsQuery)
async def events_query(context: Context, params: EventsQuery) -> Json:
    """A page of events in order. ``cursor`` always leads on; ``done`` says that nothing newer exists yet.

    A page may be empty and not ``done``, when many blocks were read and none held such an event.
    """
    selection = Selection(params.contract, params.name)
    after = (params.from_height, -1) if params.cursor is None else cursor_of(params.cursor)
    last_height = context.backend.head().header.height
    if params.to_height is not None:
        last_height = min(last_height, params.to_height)
    items: list[Json] = []
    place, blocks_read = after, 0
    for height in _heights(context, selection, after[0], last_height):
        if blocks_read == BLOCKS_READ_MAX:
            return _page(items, place, is_done=False)
        blocks_read += 1
        for item in context.view(height).event_items:
            here = (height, cast(int, item["index"]))
            if here <= after or not selection.takes_event(item):
                continue
            if len(items) == params.limit:
                return _page(items, place, is_done=False)
            items.append(item)
            place = here
        place = max(place, (height, 2**31))
        await trio.lowlevel.checkpoint()
    return _page(items, max(place, (last_height, 2**31)), is_done=True)


def _page(items: list[Json], place: tuple[int, int], *, is_done: bool) -> Json:
    return {"items": items, "cursor": cursor_text(place[0], max(place[1], 0)), "done": is_done}


def _heights(context: Context, selection: Selection, first: int, last: int) -> Iterator[int]:
    if selection.contract and selection.name:
        found = context.backend.final.heights_with_event(selection.contract, selection.name, first_height=first)
        for height in found:
            if height > last:
                return
            yield height
    else:
        yield from range(first, last + 1)


async def _reach(context: Context, height: int, timeout_ms: int, *, is_sealed: bool) -> None:
    backend = context.backend
    with trio.move_on_after(timeout_ms / 1000):
        while True:
            header = backend.head().header
            if (header.sealed_height if is_sealed else header.height) >= height:
                return
            await backend.wait_above(header.height)
    raise PeerError("height_not_reached", f"height {height} is not {'sealed' if is_sealed else 'reached'} yet")


def _key(text: str) -> bytes:
    return text.encode()


def _find(context: Context, contract: str) -> Description:
    for description in context.backend.contracts():
        if description.name == contract:
            return description
    raise PeerError("unknown_contract", f"no contract {contract} is active")


def _argument_kinds(context: Context, contract: str, method: str) -> dict[str, str]:
    for declared in _find(context, contract).methods:
        if declared.name == method:
            return {argument.name: argument.type for argument in declared.arguments}
    raise PeerError("unknown_method", f"contract {contract} has no method {method}")
