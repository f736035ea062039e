"""Proofs for people: which request gives one, and what a verified one says. Pure."""

from typing import assert_never

from consensus.ledger.codec import decode_untrusted
from consensus.ledger.errors import LocalError
from consensus.ledger.proof import BlockClaim, ReceiptClaim, StateClaim, TransactionClaim, Verified
from services.client.answers import hex_of
from services.client.calls import check_key, parse_id, receipt_json, stored_json, transaction_json
from services.client.connection import Parameters


def request_of(kind: str, what: str, call_index: int = 0) -> tuple[str, Parameters]:
    """Return the RPC method and parameters that give a proof of a kind.

    ``what`` is a height for ``block``, a transaction id for ``transaction`` and ``receipt``, a key for ``state``.

    Raises:
        LocalError: ``bad_id``, ``bad_height``, ``bad_key`` or ``bad_proof_kind``.
    """
    match kind:
        case "block":
            if not what.isascii() or not what.isdecimal() or len(what) > 18 or int(what) == 0:
                raise LocalError("bad_height", f"{what!r} is no height from 1 on; everyone makes block 0 from genesis")
            return "chain_getBlock", {"height": int(what)}
        case "transaction":
            return "chain_getTransaction", {"id": hex_of(parse_id(what))}
        case "receipt":
            return "chain_getReceipt", {"id": hex_of(parse_id(what)), "callIndex": call_index}
        case "state":
            return "state_get", {"key": check_key(what)}
        case _:
            raise LocalError("bad_proof_kind", f"{kind} is none of block, transaction, receipt, state")


def describe_verified(verified: Verified) -> dict[str, object]:
    """Return what was proven, ready for JSON."""
    described: dict[str, object] = {
        "chainId": hex_of(verified.chain_id),
        "height": verified.height,
        "timeMs": verified.time_ms,
        "blockHash": hex_of(verified.block_hash),
        "signers": list(verified.signers),
    }
    match verified.claim:
        case BlockClaim():
            described |= {"kind": "block"}
        case TransactionClaim(transaction, path):
            described |= {"kind": "transaction", "index": path.index, "transaction": transaction_json(transaction)}
        case ReceiptClaim(receipt, path):
            described |= {"kind": "receipt", "index": path.index, "receipt": receipt_json(receipt)}
        case StateClaim(key, value, _):
            text = key.decode("utf-8", "replace")
            described |= {
                "kind": "state",
                "key": text,
                "present": value is not None,
                "value": None if value is None else stored_json(text, decode_untrusted(value)),
                "sealedHeight": verified.header.sealed_height,
            }
        case _:
            assert_never(verified.claim)
    return described
