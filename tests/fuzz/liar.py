"""A validator that may say anything in its own name: puts its valid signature under whatever message."""

from collections.abc import Callable
from typing import Any

import msgspec

from consensus.ledger.block import Header
from consensus.ledger.keys import Purpose
from consensus.ledger.validators import vote_payload
from consensus.pbft.messages import (
    Commit,
    Message,
    NewView,
    Prepare,
    PrePrepare,
    ViewChange,
    ViewChangeVote,
    new_view_payload,
    view_change_payload,
)


def as_liar(message: Message, liar: str, sign: Callable[[Purpose, bytes], bytes]) -> Message:
    """Return the message with the liar's name and valid signature, where its kind has one."""
    changes: dict[str, Any]
    match message:
        case Prepare() | Commit():
            purpose = Purpose.PREPARE if isinstance(message, Prepare) else Purpose.COMMIT
            payload = vote_payload(message.height, message.view, message.block_hash)
            changes = {"signer": liar, "signature": sign(purpose, payload)}
        case PrePrepare():
            header: Header = message.block.header
            changes = {"signature": sign(Purpose.PROPOSAL, vote_payload(header.height, message.view, header.hash()))}
        case ViewChange():
            vote: ViewChangeVote = message.vote
            signature = sign(Purpose.VIEW_CHANGE, view_change_payload(vote.height, vote.view, vote.claim))
            changes = {"vote": msgspec.structs.replace(vote, signer=liar, signature=signature)}
        case NewView():
            payload = new_view_payload(message.height, message.view, message.votes, message.certificate)
            changes = {"signature": sign(Purpose.NEW_VIEW, payload)}
        case _:
            return message
    return msgspec.structs.replace(message, **changes)
