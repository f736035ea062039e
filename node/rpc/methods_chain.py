"""``chain_*``: blocks, transactions, receipts, accounts, histories."""

from typing import Annotated, Literal

import msgspec
import trio

from consensus.ledger.block import Block
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import Address
from consensus.ledger.receipt import OK, Receipt
from consensus.ledger.transaction import LANE_NAME_BYTES_MAX, ONE_SHOT_LANE_BYTES
from consensus.ledger.validators import certificate_codec
from contracts.runtime.accounts import NAME_PREFIX, load_account
from contracts.runtime.lanes import load_lane
from node.rpc.context import Context, methods
from node.rpc.feed import CommittedView
from node.rpc.protocol import Json
from node.rpc.render import (
    account_json,
    certificate_json,
    cursor_of,
    cursor_text,
    header_json,
    hex_of,
    hex_untrusted,
    lane_json,
    proof_json,
    receipt_json,
)
from node.rpc.schema import Cursor, HashHex, Height, Hex, NameText, NoParams, Params
from node.storage.layout import Location, Receipts, receipts_codec

BLOCKS_PAGE_MAX = 100
RAW_PAGE_BYTES_MAX = 4 * 1024 * 1024
LANES_ASKED_MAX = 256
HISTORY_PAGE_MAX = 200


@methods.add("chain_status", NoParams)
async def status(context: Context, _: NoParams) -> Json:
    """Chain, node and newest block; ``votes`` says whether this node votes or follows only."""
    backend = context.backend
    head = backend.head()
    return {
        "chainId": hex_of(backend.chain_id),
        "network": backend.network_name,
        "node": backend.node_name,
        "ready": backend.is_ready,
        "votes": backend.consensus().is_validator,
        "height": head.header.height,
        "sealedHeight": head.header.sealed_height,
        "head": header_json(head.header, head.hash),
        "peers": sum(peer.connected for peer in backend.peers()),
    }


class GetBlock(Params, frozen=True):
    """The newest block when neither ``height`` nor ``hash`` is given."""

    height: Height | None = None
    hash: HashHex | None = None
    transactions: bool = False
    raw: bool = False
    prove: bool = False


@methods.add("chain_getBlock", GetBlock)
async def get_block(context: Context, params: GetBlock) -> Json:
    """One block with its certificate.

    ``transactions`` adds them decoded, ``raw`` the canonical bytes of block and certificate, ``prove``
    the proof file.
    """
    height = params.height
    if params.hash is not None:
        height = context.backend.final.height_of(hex_untrusted(params.hash))
        if height is None:
            raise PeerError("not_found", "no committed block has this hash")
    view = context.view(context.backend.head().header.height if height is None else height)
    result = _block(view, with_raw=params.raw)
    if params.transactions:
        result["transactions"] = [*view.transaction_items]
    if params.prove:
        result["proof"] = proof_json(context.backend.prove_block(view.height))
    return result


class GetBlocks(Params, frozen=True):
    """A page of blocks from ``start`` on; the newest when it is absent."""

    start: Height | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=BLOCKS_PAGE_MAX)] = 20
    order: Literal["ascending", "descending"] = "descending"
    raw: bool = False


@methods.add("chain_getBlocks", GetBlocks)
async def get_blocks(context: Context, params: GetBlocks) -> Json:
    """A page of blocks; ``next`` is the start of the next page, null at the end.

    A page of raw blocks ends early once it holds 4 MiB of them and their receipts.
    """
    head = context.backend.head().header.height
    start = head if params.start is None else params.start
    step = 1 if params.order == "ascending" else -1
    if params.order == "descending":
        start = min(start, head)
    blocks: list[Json] = []
    height, size = start, 0
    while 0 <= height <= head and len(blocks) < params.limit and size < RAW_PAGE_BYTES_MAX:
        view = context.view(height)
        block = _block(view, with_raw=params.raw)
        blocks.append(block)
        size += sum(len(str(block.get(name, ""))) for name in ("raw", "receiptsRaw")) // 2
        height += step
    return {"blocks": blocks, "next": height if 0 <= height <= head else None, "head": head}


class GetTransaction(Params, frozen=True):
    """``prove`` adds the proof file."""

    id: HashHex
    prove: bool = False


@methods.add("chain_getTransaction", GetTransaction)
async def get_transaction(context: Context, params: GetTransaction) -> Json:
    """A final transaction with its place, receipts and raw bytes."""
    location = _locate(context, params.id)
    view = context.view(location.height)
    result = view.transaction_item(location.index)
    result |= {
        "blockHash": hex_of(view.committed.block.hash),
        "timeMs": view.committed.block.header.time_ms,
        "raw": hex_of(view.committed.block.transactions[location.index]),
        "receipts": [receipt_json(receipt) for receipt in receipts_at(view, location)],
    }
    if params.prove:
        result["proof"] = proof_json(context.backend.prove_transaction(location))
    return result


class GetReceipt(Params, frozen=True):
    """``call_index`` chooses the receipt that ``prove`` proves, of a transaction whose calls stand alone."""

    id: HashHex
    prove: bool = False
    call_index: Annotated[int, msgspec.Meta(ge=0, le=2**16)] = 0


@methods.add("chain_getReceipt", GetReceipt)
async def get_receipt(context: Context, params: GetReceipt) -> Json:
    """The receipts of a final transaction: one, or one for each call."""
    location = _locate(context, params.id)
    view = context.view(location.height)
    result = final_json(view, location, with_receipts=True)
    if params.prove:
        if params.call_index >= location.receipt_count:
            raise PeerError("invalid_params", f"the transaction has {location.receipt_count} receipts")
        result["proof"] = proof_json(context.backend.prove_receipt(location, params.call_index))
    return result


class GetAccount(Params, frozen=True):
    """An account by address (0x-hex) or name, with the lanes asked for (hex of their names; 0x is the first)."""

    account: NameText
    lanes: Annotated[list[Hex], msgspec.Meta(max_length=LANES_ASKED_MAX)] = msgspec.field(default_factory=list)


@methods.add("chain_getAccount", GetAccount)
async def get_account(context: Context, params: GetAccount) -> Json:
    """An account, and which number each lane expects next."""
    await context.backend.settled()
    address = _address(context, params.account)
    state = context.backend.state()
    record = load_account(state, address)
    if record is None:
        raise PeerError("unknown_account", f"no account {params.account}")
    lanes: list[Json] = []
    for name in map(hex_untrusted, params.lanes):
        if len(name) > LANE_NAME_BYTES_MAX and len(name) != ONE_SHOT_LANE_BYTES:
            raise PeerError("bad_lane", f"a lane name has up to {LANE_NAME_BYTES_MAX} bytes, or 32")
        lanes.append(lane_json(name, load_lane(state, address, name)))
    return {**account_json(address, record), "lanes": lanes, "atHeight": context.backend.head().header.height}


class GetHistory(Params, frozen=True):
    """A page of an account's transactions, newest first, older than ``cursor``."""

    account: NameText
    cursor: Cursor | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=HISTORY_PAGE_MAX)] = 50


@methods.add("chain_getHistory", GetHistory)
async def get_history(context: Context, params: GetHistory) -> Json:
    """Transactions that an account sent, newest first; ``cursor`` leads to the next page, null at the end."""
    address = _address(context, params.account)
    before = None if params.cursor is None else cursor_of(params.cursor)
    entries = context.backend.final.history(address, before=before, limit=params.limit)
    items: list[Json] = []
    for entry in entries:
        items.append(context.view(entry.height).transaction_item(entry.index))
        await trio.lowlevel.checkpoint()  # each may have read a whole block
    last = entries[-1] if len(entries) == params.limit else None
    return {"items": items, "cursor": None if last is None else cursor_text(last.height, last.index)}


def receipts_at(view: CommittedView, location: Location) -> tuple[Receipt, ...]:
    """Return a transaction's receipts."""
    return view.committed.receipts[location.receipt_index : location.receipt_index + location.receipt_count]


def final_json(view: CommittedView, location: Location, *, with_receipts: bool) -> dict[str, Json]:
    """Return where a transaction became final and how."""
    block: Block = view.committed.block
    receipts = receipts_at(view, location)
    result: dict[str, Json] = {
        "id": hex_of(view.committed.transaction_ids[location.index]),
        "final": True,
        "height": location.height,
        "index": location.index,
        "blockHash": hex_of(block.hash),
        "timeMs": block.header.time_ms,
        "failedCount": sum(receipt.status != OK for receipt in receipts),
    }
    if with_receipts:
        result["receipts"] = [receipt_json(receipt) for receipt in receipts]
    return result


def _block(view: CommittedView, *, with_raw: bool) -> dict[str, Json]:
    certificate = view.committed.certificate
    result = {**view.block, "certificate": None if certificate is None else certificate_json(certificate)}
    if with_raw:
        result["raw"] = hex_of(view.committed.block.encode())
        result["certificateRaw"] = None if certificate is None else hex_of(certificate_codec.encode(certificate))
        receipts = Receipts(list(view.committed.receipts), list(view.committed.receipt_counts))
        result["receiptsRaw"] = hex_of(receipts_codec.encode(receipts))
    return result


def _locate(context: Context, transaction_id: str) -> Location:
    location = context.backend.final.locate(hex_untrusted(transaction_id))
    if location is None:
        raise PeerError("not_found", "no final transaction has this id; tx_explain says more")
    return location


def _address(context: Context, account: str) -> Address:
    if account.startswith("0x"):
        address = hex_untrusted(account)
    else:
        found = context.backend.state().get(f"membership/{NAME_PREFIX}{account}".encode())
        address = b"" if found is None else msgspec.msgpack.decode(found, type=bytes)
    if len(address) != 20:
        raise PeerError("unknown_account", f"no account {account}")
    return Address(address)
