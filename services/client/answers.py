"""The shapes of a node's answers that the client reads; fields it does not need are skipped."""

from typing import Annotated

import msgspec

HexText = Annotated[str, msgspec.Meta(pattern=r"^0x([0-9a-f]{2})*\Z")]


class Answer(msgspec.Struct, frozen=True, rename="camel"):
    """Base of all answers."""


class ChainStatus(Answer, frozen=True):
    """``chain_status``, as far as the client relies on it."""

    chain_id: HexText
    height: int
    node: str = ""


class SubmitAnswer(Answer, frozen=True):
    """One element of ``tx_submit``; ``code`` is empty when the node holds the transaction or its receipt."""

    id: HexText
    code: str = ""
    message: str = ""


class WaitAnswer(Answer, frozen=True):
    """One element of ``tx_wait``; when it is not final, ``stage`` and ``code`` say where it is and why."""

    id: HexText
    final: bool
    height: int = -1
    failed_count: int = 0
    stage: str = ""
    code: str = ""
    message: str = ""


class Subscribed(Answer, frozen=True):
    """``subscribe``."""

    subscription: int


class ProofAnswer(Answer, frozen=True):
    """Any answer that was asked for with ``prove``."""

    proof: dict[str, object]


class StateAnswer(Answer, frozen=True):
    """``state_get`` with ``prove``; ``height`` is the newest one, the proof's may be older."""

    height: int
    proof: dict[str, object]


class RawBlock(Answer, frozen=True):
    """One element of ``chain_getBlocks`` with ``raw``: canonical encodings; genesis has no certificate."""

    raw: HexText
    certificate_raw: HexText | None
    receipts_raw: HexText


class RawBlocksAnswer(Answer, frozen=True):
    """``chain_getBlocks`` with ``raw``; ``head`` is the node's newest height."""

    blocks: list[RawBlock]
    head: int


class Explained(Answer, frozen=True):
    """``tx_explain``: ``stage`` is ``final``, ``queued``, ``refused``, ``expired`` or ``unknown``."""

    stage: str


class RawBlockAnswer(Answer, frozen=True):
    """``chain_getBlock`` with ``raw``: the canonical encoding of all its receipts and their counts."""

    receipts_raw: HexText


class QueryAnswer(Answer, frozen=True):
    """``contract_query``; ``raw`` is the canonical encoding of the value."""

    raw: HexText
    height: int


class LaneState(Answer, frozen=True):
    """One lane in ``chain_getAccount``; ``last_id`` is its last transaction's, None for an unused lane."""

    next: int
    last_id: HexText | None = None


class AccountAnswer(Answer, frozen=True):
    """``chain_getAccount`` with lanes."""

    address: HexText
    lanes: list[LaneState]


class EventItem(Answer, frozen=True):
    """One event; ``data`` holds integers as decimal strings and bytes as 0x-hex. Its cursor is ``height:index``."""

    contract: str
    name: str
    data: dict[str, object]
    height: int
    index: int
    time_ms: int
    transaction_id: HexText
    call_index: int

    @property
    def cursor(self) -> str:
        """The place after which reading goes on."""
        return f"{self.height}:{self.index}"


class EventPage(Answer, frozen=True):
    """``events_query``; ``cursor`` leads on, ``done`` says that nothing newer exists yet."""

    items: list[EventItem]
    cursor: str
    done: bool


def bytes_of(text: str) -> bytes:
    """Return the bytes of a text that the decoder has found to be 0x-hex."""
    return bytes.fromhex(text[2:])


def hex_of(data: bytes) -> str:
    """Return bytes as 0x-hex, as requests hold them."""
    return "0x" + data.hex()
