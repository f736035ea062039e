"""A certified block that gives another result here: what is known of it, for whoever has to find out why.

Either this node is broken (another code, a damaged disk, something that is not deterministic), or it is
alone and right. It stops at once, before the block, and leaves a bundle: which transaction, which keys, both
values, who wrote them, whether executing again gives the same, and how to replay it.
"""

import json
import platform
from collections.abc import Mapping
from pathlib import Path

from consensus.ledger.block import Block, decode_block_untrusted
from consensus.ledger.codec import decode_untrusted
from consensus.ledger.errors import InvariantError, LocalError, PeerError
from consensus.ledger.receipt import Receipt
from consensus.ledger.transaction import Transaction
from contracts.runtime.execution import Execution
from node.chain import Candidate, Chain, ResultMismatch
from node.results import Results
from node.rpc.protocol import Json
from node.rpc.render import hex_of, receipt_json, transaction_json, value_json

TRANSACTIONS_MAX = 100
"""Transactions listed in a bundle; their number is told in any case."""
WRITES_MAX = 200
"""Keys listed in a bundle; their number is told in any case."""

_Writes = Mapping[bytes, bytes | None]
_NOT_WRITTEN = b"\xc1"
"""Stands for a key that was not written; no canonical value has these bytes."""


class Divergence(InvariantError):
    """A certified block does not hold on this node. ``report`` says what is known beside the block."""

    def __init__(self, block: Block, reason: PeerError, report: dict[str, Json] | None = None) -> None:
        report = report or {}
        first = report.get("firstDifference")
        hint = f"; {first}" if isinstance(first, str) else ""
        message = f"certified block {block.height} does not hold here: {reason.message}{hint}"
        super().__init__(f"{message}; divergence-{block.height}.json in the log folder says what to do")
        self.code = "diverged"
        self.block = block
        self.reason = reason
        self.report = report
        self.differences = reason.differences if isinstance(reason, ResultMismatch) else {}


def compare(chain: Chain, block: Block, reason: PeerError, certified: Results | None) -> dict[str, Json]:
    """Return what executing a block gave here and what is certified, as far as it is known.

    Args:
        chain: this node's, below the block.
        block: the certified one.
        reason: why it does not hold here.
        certified: the results that a peer has proven, None when nobody told them.
    """
    if certified is None:
        source = "not known: no peer told them in time, or they are too large for one answer"
    else:
        source = f"told by {certified.peer} and proven by the roots in the certified header"
    report: dict[str, Json] = {"certifiedResults": source}
    if not isinstance(reason, ResultMismatch):
        return report  # it could not be executed at all; the reason says why
    ours = reason.candidate
    transactions = _transactions(ours, certified)
    keys = _differing_keys(ours.execution.writes, None if certified is None else certified.writes)
    writers = _writers(chain, ours, set(keys[:WRITES_MAX]))
    writes = [_write_json(key, ours.execution.writes, certified, writers.get(key)) for key in keys[:WRITES_MAX]]
    report |= {
        "firstDifference": _first(transactions, writes) if certified is not None else None,
        "executedAgain": _again(chain, ours),
        "transactionsListed": "those with another receipt"
        if certified is not None
        else "all, since both are not known",
        "transactionsCount": len(transactions),
        "transactions": list[Json](transactions[:TRANSACTIONS_MAX]),
        "writesCount": len(keys),
        "writes": list[Json](writes),
    }
    return report


def write_bundle(folder: Path, divergence: Divergence) -> Path:
    """Write down what an operator needs to find out why a certified block does not hold here.

    Raises:
        OSError: the disk refuses.
    """
    block = divergence.block
    path = folder / f"divergence-{block.height}.json"
    bundle = {
        "height": block.height,
        "blockHash": hex_of(block.hash),
        "code": divergence.reason.code,
        "why": divergence.reason.message,
        "differences": {
            field: {"here": str(here), "certified": str(certified)}
            for field, (here, certified) in divergence.differences.items()
        },
        **divergence.report,
        "python": platform.python_version(),
        "replay": f"hansa chain replay {path} --home HOME executes the block again on this stopped node's state",
        "whatToDo": (
            "The node has not taken the block over and votes for nothing above it; started again it stops here again"
            " as long as the cause is there. Compare its version of Hansa and its contracts' code with the others'."
            " If it holds elsewhere with the same code, the data here are damaged: hansa chain verify --home HOME, then"
            " hansa node rejoin. If results differ from one execution to the next, a contract is not deterministic."
        ),
        "block": hex_of(block.encode()),
    }
    path.write_text(json.dumps(bundle, indent=2))
    return path


def replay(chain: Chain, bundle: Path) -> dict[str, Json]:
    """Execute the block of a bundle on the state below it and return whether it holds now.

    Raises:
        LocalError: ``bad_bundle``, or ``bad_height`` where the chain's head is not the block's parent.
    """
    block = _read_block(bundle)
    head = chain.head.header.height
    if head != block.height - 1:
        message = (
            f"the bundle is of block {block.height} and the home stands at {head}: block {block.height - 1} is needed"
        )
        raise LocalError("bad_height", message)
    result: dict[str, Json] = {"height": block.height, "blockHash": hex_of(block.hash)}
    try:
        chain.check_untrusted(block)
    except PeerError as error:
        differences = error.differences if isinstance(error, ResultMismatch) else {}
        return {
            **result,
            "holds": False,
            "code": error.code,
            "why": error.message,
            "differences": list[Json](differences),
        }
    return {**result, "holds": True, "code": "", "why": "executing it gives what its header says", "differences": []}


def _read_block(bundle: Path) -> Block:
    try:
        text = json.loads(bundle.read_text())["block"]
        return decode_block_untrusted(bytes.fromhex(text.removeprefix("0x")))
    except OSError as error:
        raise LocalError("bad_bundle", f"{bundle}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, PeerError):
        raise LocalError("bad_bundle", f"{bundle} is no bundle that a diverged node has left") from None


# -- comparing ---------------------------------------------------------------------------------------------


def _transactions(ours: Candidate, certified: Results | None) -> list[dict[str, Json]]:
    """Return the transactions whose receipts differ, or all where the certified ones are not known."""
    here = _by_transaction(ours.execution.receipts, ours.execution.counts)
    there = None if certified is None else _by_transaction(certified.receipts.receipts, certified.receipts.counts)
    listed: list[dict[str, Json]] = []
    for index, transaction in enumerate(ours.transactions):
        theirs = None if there is None else there[index] if index < len(there) else []
        if theirs == here[index]:
            continue
        listed.append(
            {
                "index": index,
                "transaction": transaction_json(transaction),
                "here": [receipt_json(receipt) for receipt in here[index]],
                "certified": None if theirs is None else [receipt_json(receipt) for receipt in theirs],
            }
        )
    return listed


def _by_transaction(receipts: list[Receipt], counts: list[int]) -> list[list[Receipt]]:
    split: list[list[Receipt]] = []
    place = 0
    for count in counts:
        split.append(receipts[place : place + count])
        place += count
    return split


def _differing_keys(here: _Writes, certified: _Writes | None) -> list[bytes]:
    """Return the keys that were not written alike, or all that were written here."""
    if certified is None:
        return sorted(here)
    return [
        key for key in sorted({*here, *certified}) if here.get(key, _NOT_WRITTEN) != certified.get(key, _NOT_WRITTEN)
    ]


def _writers(chain: Chain, ours: Candidate, keys: set[bytes]) -> dict[bytes, Transaction]:
    """Return which transaction wrote each of some keys last, by executing the block again one by one."""
    header = ours.block.header
    run = chain.executor.begin(chain.state, chain.next_block(header.proposer, header.time_ms))
    values = {key: run.value(key) for key in keys}
    found: dict[bytes, Transaction] = {}
    for transaction in ours.transactions:
        try:
            run.apply(transaction)
        except PeerError:
            break  # executing again goes another way: what is known by then is what can be known
        for key in keys:
            if (value := run.value(key)) != values[key]:
                values[key], found[key] = value, transaction
    return found


def _again(chain: Chain, ours: Candidate) -> str:
    """Say whether executing the block once more gives the same here."""
    header = ours.block.header
    try:
        again: Execution = chain.executor.execute(
            chain.state, chain.next_block(header.proposer, header.time_ms), ours.transactions
        )
    except PeerError as error:
        return f"fails now: {error.message}"
    same = again.receipts == ours.execution.receipts and again.writes == ours.execution.writes
    return "gives the same here as before" if same else "gives a third result: something is not deterministic"


def _write_json(key: bytes, here: _Writes, certified: Results | None, writer: Transaction | None) -> dict[str, Json]:
    return {
        "key": _key_text(key),
        "here": _value_json(here.get(key, _NOT_WRITTEN)),
        "certified": None if certified is None else _value_json(certified.writes.get(key, _NOT_WRITTEN)),
        "writtenBy": None if writer is None else hex_of(writer.id),
    }


def _value_json(data: bytes | None) -> Json:
    if data is None:
        return "removed"
    if data == _NOT_WRITTEN:
        return "not written"
    try:
        return {"value": value_json(decode_untrusted(data)), "raw": hex_of(data)}
    except PeerError:
        return {"value": None, "raw": hex_of(data)}


def _key_text(key: bytes) -> str:
    text = key.decode(errors="replace")
    return text if text.isprintable() and text.encode() == key else hex_of(key)


def _first(transactions: list[dict[str, Json]], writes: list[dict[str, Json]]) -> str | None:
    """Return the first difference in one line."""
    if transactions and isinstance(transaction := transactions[0]["transaction"], dict):
        return f"first other receipt: transaction {transactions[0]['index']}, {transaction['id']}"
    if writes:
        return f"first other write: {writes[0]['key']}, of transaction {writes[0]['writtenBy']}"
    return None
