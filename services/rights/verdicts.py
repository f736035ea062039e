"""What the chain's answer to an event means for its message. Pure."""

from collections.abc import Mapping
from typing import Final

from consensus.ledger.codec import Value
from services.messages.port import Verdict
from services.messages.store import DETAIL_BYTES_MAX, State

Judgement = tuple[Verdict, State]
"""A verdict, and how a message ends, dead or refused, that has had all its attempts under it."""

REFUSED: Final[Judgement] = (Verdict.REFUSED, State.REFUSED)
DEAD: Final[Judgement] = (Verdict.DEAD, State.DEAD)

_JUDGEMENTS: Final[Mapping[str, Judgement]] = {
    "": (Verdict.DONE, State.DEAD),
    # It came before what it is about.
    "unknown_order": (Verdict.PARK, State.DEAD),
    "unknown_redemption": (Verdict.PARK, State.DEAD),
    # The grant that it needs may be on its way in another lane.
    "insufficient_rights": (Verdict.PARK, State.REFUSED),
    # Not what its server signed.
    "malformed": DEAD,
    "too_large": DEAD,
    "bad_arguments": DEAD,
    "bad_event": DEAD,
    "bad_proof": DEAD,
    "bad_signature": DEAD,
    "unknown_root": DEAD,
    # The programs around the order are at fault and not the order: it ends as a dead letter, which can be replayed
    # once they are in order.
    "not_appointed": (Verdict.RETRY, State.DEAD),
    "account_suspended": (Verdict.RETRY, State.DEAD),
    "unknown_contract": (Verdict.RETRY, State.DEAD),
    "unknown_method": (Verdict.RETRY, State.DEAD),
    "contract_error": DEAD,
    "out_of_steps": DEAD,
    "output_too_large": DEAD,
    "value_too_large": DEAD,
}


def judge(code: str) -> Judgement:
    """Return the judgement on an event by its receipt's code, "" for success; an unlisted code is a plain refusal."""
    return _JUDGEMENTS.get(code, REFUSED)


def detail_of(code: str, height: int, transaction_id: bytes, call_index: int, result: Value = None) -> str:
    """Return what a message's end says: ``[CODE ]HEIGHT TXID CALLINDEX[ name=value …]``, the id as 0x-hex."""
    words = [code] if code else []
    words += [str(height), f"0x{transaction_id.hex()}", str(call_index)]
    if isinstance(result, dict):
        words += [f"{name}={value}" for name, value in result.items() if isinstance(value, int)]
    return short(" ".join(words))


def short(text: str) -> str:
    """Return a text within what a message's detail may have."""
    return text.encode()[:DETAIL_BYTES_MAX].decode(errors="ignore")
