"""The chain as a service party sees it and acts on it: records proven under a head that is not too old.

What a lane was used for, one node is believed: a node that lies about it makes the service party try what the contract
refuses. All calls raise ``Unreachable`` (``stale_states`` where no node knows of a recent block), ``Refused`` and
``PeerError``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from consensus.ledger.codec import Value
from consensus.ledger.errors import HansaError, PeerError
from consensus.ledger.ids import Address, ChainId
from consensus.ledger.keys import PrivateKey
from consensus.ledger.streams import CONTRACT, StreamRecord, Terms, read_record, stream_key, stream_lane
from consensus.ledger.transaction import decode_transaction_untrusted
from services.client.answers import bytes_of
from services.client.client import Client
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.client.outcome import Outcome as Proven
from services.client.outcome import StateValue
from services.stream.servicemachine import Outcome

HEAD_AGE_MS_MAX = 30_000
"""How old the newest block of a node may be that is asked how a stream stands."""
LANES = 8
"""Claims and closes of one's own that are under way at the same time."""
_LANE = b"stream-service"
SEND_MS_MAX = 20_000
"""How long one attempt to bring something to the chain takes."""

log = structlog.get_logger("stream")


@dataclass(frozen=True, slots=True)
class LaneUse:
    """A lane that was used, and by which transaction."""

    last_id: bytes


@dataclass(frozen=True, slots=True)
class Seen:
    """A stream on the chain at one moment; ``record`` is None where it was never opened."""

    record: StreamRecord | None
    lane: LaneUse | None
    time_ms: int
    uptime_ms: int


class ChainPort(Protocol):
    """What a desk needs of the chain; errors as the module says."""

    @property
    def chain_id(self) -> ChainId:
        """The chain's id."""

    @property
    def address(self) -> Address:
        """The service party's account."""

    @property
    def account(self) -> str:
        """Its name here."""

    @property
    def trouble(self) -> str:
        """The code of what last stood in the way of the chain, "" once it answers again."""

    @property
    def key(self) -> PrivateKey:
        """The account's key: it signs offers and consents to close."""

    async def look(self, terms: Terms, stream: bytes, *, is_newest: bool = False) -> Seen:
        """Return how a stream stands, not older than what was seen before; a second late but for ``is_newest``."""

    async def opening_proof(self, stream: bytes) -> dict[str, object]:
        """Return the proof of a stream's record, as a file carries it."""

    async def upload(self, raw: bytes) -> Outcome:
        """Submit a payer's iteration, and say what became of it."""

    async def claim(self, stream: bytes, raw: bytes) -> Outcome:
        """Claim with an iteration, and say what became of it."""

    async def close(self, stream: bytes, due: int, signature: bytes) -> Outcome:
        """Close with the payer's consent, and say what became of it."""


class ServiceChain:
    """A :class:`ChainPort` over nodes, for one service party."""

    def __init__(self, client: Client, signer: Signer, now_ms: Callable[[], int]) -> None:
        self.chain_id = client.chain_id
        self.address = signer.address
        self.account = signer.name
        self._client = client
        self._signer = signer
        self._now_ms = now_ms
        self._height = 0
        self.trouble = ""

    @property
    def key(self) -> PrivateKey:
        """See :class:`ChainPort`, as for all that follows."""
        return self._signer.key

    async def look(self, terms: Terms, stream: bytes, *, is_newest: bool = False) -> Seen:
        """See :class:`ChainPort`."""
        try:
            found = await self._state(stream_key(stream), is_newest=is_newest)
            record = None if found.value is None else read_record(found.value)
            state = None if record is None else await self._client.lane(terms.payer, stream_lane(stream))
            if state is not None and state.last_id is not None:
                # States are proven a second late: what used the lane must not look as if it had settled nothing.
                found = await self._state(stream_key(stream), is_newest=True)
                record = read_record(found.value)
        except HansaError as error:
            self.trouble = error.code
            raise
        self.trouble = ""
        used = None if state is None or state.last_id is None else LaneUse(bytes_of(state.last_id))
        return Seen(record, used, found.verified.time_ms, found.verified.header.uptime_ms)

    async def opening_proof(self, stream: bytes) -> dict[str, object]:
        """Return the proof of a stream's record, as a file carries it."""
        proof, _ = await self._client.prove("state_get", {"key": stream_key(stream)})
        return proof

    async def upload(self, raw: bytes) -> Outcome:
        """Submit a payer's iteration, and say what became of it."""
        transaction = decode_transaction_untrusted(raw)
        try:
            return self._outcome(await self._client.submit_and_wait(transaction, timeout_ms=SEND_MS_MAX))
        except HansaError as error:
            return self._failed("upload", error)

    async def claim(self, stream: bytes, raw: bytes) -> Outcome:
        """Claim with an iteration, and say what became of it."""
        return await self._call("claim", {"stream": stream, "raw": raw})

    async def close(self, stream: bytes, due: int, signature: bytes) -> Outcome:
        """Close with the payer's consent, and say what became of it."""
        return await self._call("close", {"stream": stream, "due": due, "signature": signature})

    async def _call(self, method: str, arguments: dict[str, Value]) -> Outcome:
        lanes = self._client.lanes(self._signer, count=LANES, prefix=_LANE)
        try:
            outcome = await self._client.call(
                self._signer, CONTRACT, method, arguments, lanes=lanes, timeout_ms=SEND_MS_MAX
            )
            return self._outcome(outcome)
        except HansaError as error:
            return self._failed(method, error)

    def _outcome(self, outcome: Proven) -> Outcome:
        self._height = max(self._height, outcome.height)
        if not outcome.is_ok:
            log.warning("failed on the chain", code=outcome.receipts[0].code, height=outcome.height)
        return Outcome.FINAL if outcome.is_ok else Outcome.REFUSED

    def _failed(self, what: str, error: HansaError) -> Outcome:
        log.warning("not brought to the chain", what=what, code=error.code, why=error.message)
        if isinstance(error, Refused):
            return Outcome.REFUSED
        if not isinstance(error, Unreachable | PeerError):
            raise error
        self.trouble = error.code
        self._client.leave_node()
        return Outcome.UNKNOWN

    async def _state(self, key: str, *, is_newest: bool = False) -> StateValue:
        """Return a value of the first node that knows of a recent block."""
        error: HansaError = Unreachable("no node knows of a recent block", "stale_states")
        for _ in range(self._client.node_count):
            try:
                found = await self._client.state(key, height_min=self._height, is_newest=is_newest)
            except (Refused, PeerError) as refused:
                error = refused  # a node that is behind, or proves nothing
            else:
                if found.verified.time_ms >= self._now_ms() - HEAD_AGE_MS_MAX:
                    self._height = max(self._height, found.height)
                    return found
            self._client.leave_node()
        raise error
