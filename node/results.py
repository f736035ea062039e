"""What executing a block gave elsewhere: asked for by a node that gets another result for a certified block.

The header of a certified block commits to its receipts and writes, so an answer that fits its roots is
proven, whoever gives it. Only a node that is about to stop asks; whoever is asked answers from its store.
"""

from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import trio

from consensus.ledger.block import Header, receipts_root, writes_root
from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import NodeName
from consensus.ledger.transaction import Natural
from node.storage import layout
from node.storage.layout import Receipts
from node.storage.store import Store
from p2p.frames import FRAME_BYTES_MAX, FrameKind
from p2p.network import Network

ANSWER_BYTES_MAX = FRAME_BYTES_MAX - 1_024
"""Size of receipts and writes together that fit into one answer; larger results are not told."""
ANSWER_TIMEOUT_S = 1.0
INQUIRY_TIMEOUT_S = 5.0
"""How long a node that is about to stop asks around; a peer may still be writing the block itself."""
PAUSE_S = 0.1

_Part = Annotated[bytes, msgspec.Meta(max_length=ANSWER_BYTES_MAX)]


class _Request(Record, frozen=True):
    height: Natural


class _Response(Record, frozen=True):
    """Receipts and writes as stored; both empty when the node has not got them, or they are too large."""

    height: Natural
    receipts: _Part
    writes: _Part


_request_codec: RecordCodec[_Request] = RecordCodec(_Request, bytes_max=64)
_response_codec: RecordCodec[_Response] = RecordCodec(_Response, bytes_max=FRAME_BYTES_MAX)


@dataclass(frozen=True, slots=True)
class Results:
    """The proven result of a block, and which peer told it."""

    peer: NodeName
    receipts: Receipts
    writes: dict[bytes, bytes | None]


def serve_results_untrusted(payload: bytes, store: Store) -> bytes:
    """Return the answer to a peer's question for the results of a block.

    Raises:
        PeerError: ``malformed`` or ``too_large``.
    """
    height = _request_codec.decode_untrusted(payload).height
    receipts = store.get(layout.at_height(layout.RECEIPTS, height))
    writes = store.get(layout.at_height(layout.WRITES, height))
    if receipts is None or writes is None or len(receipts) + len(writes) > ANSWER_BYTES_MAX:
        receipts = writes = b""
    return _response_codec.encode(_Response(height, receipts, writes))


def check_results_untrusted(header: Header, response: bytes, peer: NodeName) -> Results | None:
    """Return the results in an answer that fit the header, None where there are none.

    Raises:
        PeerError: ``malformed``, ``too_large``, or ``bad_proof`` for results that are not this block's.
    """
    answer = _response_codec.decode_untrusted(response)
    if not answer.receipts and not answer.writes:
        return None
    receipts = layout.receipts_codec.decode_untrusted(answer.receipts)
    pairs: list[tuple[bytes, bytes | None]] = layout.writes_codec.decode_untrusted(answer.writes).pairs
    writes = dict(pairs)
    # The roots say nothing of how many receipts each transaction has; none has none.
    if 0 in receipts.counts or sum(receipts.counts) != len(receipts.receipts):
        raise PeerError("bad_proof", "these are not as many receipts as they say")
    if receipts_root(receipts.receipts) != header.receipts_root or writes_root(writes) != header.writes_root:
        raise PeerError("bad_proof", "these are not the results that the block commits to")
    return Results(peer, receipts, writes)


@dataclass(slots=True)
class _Question:
    peer: NodeName
    answered: trio.Event = field(default_factory=trio.Event)
    response: bytes = b""


class Inquiry:
    """Asks the connected peers, one after the other, what a block gave there."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._question: _Question | None = None

    def answered(self, peer: NodeName, payload: bytes) -> None:
        """Take an answer; from a peer that was not asked, or too late, it is dropped unread."""
        question = self._question
        if question is not None and question.peer == peer:
            question.response = payload
            question.answered.set()

    async def ask(self, header: Header) -> Results | None:
        """Return the proven results of a block, None when nobody tells them in time."""
        with trio.move_on_after(INQUIRY_TIMEOUT_S):
            while True:
                for peer in self._network.connected():
                    try:
                        found = await self._ask_one(peer, header)
                    except PeerError as error:
                        self._network.penalise(peer, error.code)
                        continue
                    if found is not None:
                        return found
                await trio.sleep(PAUSE_S)
        return None

    async def _ask_one(self, peer: NodeName, header: Header) -> Results | None:
        question = self._question = _Question(peer)
        self._network.send(peer, FrameKind.RESULT_REQUEST, _request_codec.encode(_Request(header.height)))
        with trio.move_on_after(ANSWER_TIMEOUT_S):
            await question.answered.wait()
        self._question = None
        return check_results_untrusted(header, question.response, peer) if question.answered.is_set() else None
