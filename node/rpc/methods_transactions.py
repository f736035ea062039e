"""``tx_*``: submitting and following transactions. The RPC never signs (R77)."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
import trio

from consensus.ledger.errors import PeerError
from consensus.ledger.receipt import OK
from consensus.ledger.transaction import decode_transaction_untrusted
from node.rpc.backend import Submission
from node.rpc.context import Context, methods
from node.rpc.explain import explain_final
from node.rpc.methods_chain import final_json, receipts_at
from node.rpc.protocol import Json
from node.rpc.render import hex_of, hex_untrusted, receipt_json, transaction_bytes_untrusted, transaction_json
from node.rpc.schema import HashHex, Params

SUBMIT_MAX = 2_000
WAIT_MS_MAX = 60_000
SLICE = 32
"""Outcomes looked up at a stretch, before consensus gets its turn again."""

RawText = str


class Submit(Params, frozen=True):
    """One raw transaction, or a list of up to 2,000; each in 0x-hex or base64."""

    transactions: RawText | Annotated[list[RawText], msgspec.Meta(max_length=SUBMIT_MAX)]


@methods.add("tx_submit", Submit)
async def submit(context: Context, params: Submit) -> Json:
    """Offer signed transactions to the node; answers at once, finality is another matter (``tx_wait``).

    A single transaction that is refused is an error; a list gives ``accepted`` or ``code`` for each.
    """
    if isinstance(params.transactions, str):
        raw = transaction_bytes_untrusted(params.transactions)
        (answer,) = await context.backend.submit([raw])
        if answer.code:
            raise PeerError(answer.code, answer.message)
        return _submission(answer)
    answers = await submit_all(context, params.transactions)
    return [_submission(answer) for answer in answers]


async def submit_all(context: Context, texts: Sequence[str]) -> list[Submission]:
    """Submit raw transactions as text; what is no hex or base64 is refused by itself."""
    raws: list[bytes] = []
    broken: dict[int, PeerError] = {}
    for index, text in enumerate(texts):
        try:
            raws.append(transaction_bytes_untrusted(text))
        except PeerError as error:
            broken[index] = error
    answers = iter(await context.backend.submit(raws))
    return [
        Submission(b"", broken[index].code, broken[index].message) if index in broken else next(answers)
        for index in range(len(texts))
    ]


class Wait(Params, frozen=True):
    """One id or a list; ``receipts`` false leaves them out of the answer."""

    ids: HashHex | Annotated[list[HashHex], msgspec.Meta(min_length=1, max_length=SUBMIT_MAX)]
    timeout_ms: Annotated[int, msgspec.Meta(ge=0, le=WAIT_MS_MAX)] = 10_000
    receipts: bool = True


@methods.add("tx_wait", Wait)
async def wait(context: Context, params: Wait) -> Json:
    """Wait until transactions are final and return their receipts and heights.

    Answers when all are final or time is up; those that are not have ``final`` false and say where they are.
    """
    texts = [params.ids] if isinstance(params.ids, str) else params.ids
    ids = [hex_untrusted(text) for text in texts]
    await context.feed.wait_final(ids, timeout_ms=params.timeout_ms)
    results: list[Json] = []
    for index, item in enumerate(ids):
        results.append(_outcome(context, item, with_receipts=params.receipts))
        if index % SLICE == SLICE - 1:
            await trio.lowlevel.checkpoint()
    return results[0] if isinstance(params.ids, str) else results


class Simulate(Params, frozen=True):
    """A signed raw transaction in 0x-hex or base64."""

    transaction: RawText


@methods.add("tx_simulate", Simulate)
async def simulate(context: Context, params: Simulate) -> Json:
    """Execute a transaction on the newest state and forget its effects."""
    transaction = decode_transaction_untrusted(transaction_bytes_untrusted(params.transaction))
    await context.backend.settled()
    receipts = context.backend.simulate(transaction)
    return {
        "transaction": transaction_json(transaction),
        "atHeight": context.backend.head().header.height,
        "receipts": [receipt_json(receipt) for receipt in receipts],
    }


class Explain(Params, frozen=True):
    """A transaction's id."""

    id: HashHex


@methods.add("tx_explain", Explain)
async def explain(context: Context, params: Explain) -> Json:
    """Say where a transaction is, who holds it, why it is not final or has failed, and what to do about it."""
    transaction_id = hex_untrusted(params.id)
    location = context.backend.final.locate(transaction_id)
    if location is None:
        return _outcome(context, transaction_id, with_receipts=False)
    view = context.view(location.height)
    receipts = receipts_at(view, location)
    failed = [receipt.code for receipt in receipts if receipt.status != OK]
    code, message = explain_final(failed, count=len(receipts))
    final = final_json(view, location, with_receipts=False)
    return {**final, "stage": "final", "code": code, "message": message, "advice": None}


def _outcome(context: Context, transaction_id: bytes, *, with_receipts: bool) -> dict[str, Json]:
    location = context.backend.final.locate(transaction_id)
    if location is not None:
        final = final_json(context.view(location.height), location, with_receipts=with_receipts)
        return {**final, "stage": "final"}
    explanation = context.backend.explain(transaction_id)
    return {
        "id": hex_of(transaction_id),
        "final": False,
        "stage": explanation.stage,
        "code": explanation.code,
        "message": explanation.message,
        "advice": explanation.advice or None,
        "holders": [*explanation.holders],
        "waitedMs": explanation.waited_ms,
    }


def _submission(answer: Submission) -> dict[str, Json]:
    result: dict[str, Json] = {"id": hex_of(answer.transaction_id), "accepted": not answer.code}
    if answer.code:
        result |= {"code": answer.code, "message": answer.message}
    if answer.height is not None:
        result["height"] = answer.height
    return result
