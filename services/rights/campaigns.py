"""What the business server knows of its campaigns: read from the chain, and remembered for a short while."""

from typing import Protocol

import structlog
import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import HansaError
from consensus.ledger.ids import Address
from services.client.errors import Refused

FRESH_MS = 2_000
"""How long an answer counts; one about an open campaign is asked for again beside the requests."""
ASK_MS_MAX = 500
"""How long the chain has for an answer before the event is taken without one."""
CAMPAIGNS_MAX = 4_096
"""How many names are remembered."""

log = structlog.get_logger("campaigns")


class QueryChain(Protocol):
    """What is needed of :class:`~services.client.client.Client`."""

    async def query(self, contract: str, method: str, arguments: dict[str, Value] | None = None) -> Value:
        """Ask a contract's query on one node, which is believed."""
        ...

    def leave_node(self) -> None:
        """Prefer the next node from now on."""
        ...


class Campaigns:
    """Tells whether orders of a campaign can be taken; :meth:`run` must run beside it.

    What the chain cannot be asked about is taken: the contract decides in the end.
    """

    def __init__(self, chain: QueryChain, server: Address) -> None:
        self._chain = chain
        self._server = server
        self._known: dict[str, tuple[HansaError | None, float]] = {}
        """By name: why its orders are refused, or None; and until when that counts."""
        self._asked: dict[str, trio.Event] = {}
        self._trouble = ""
        """Why the chain could not be asked last time, if so."""
        self._questions = trio.open_memory_channel[str](CAMPAIGNS_MAX)

    async def run(self) -> None:
        """Ask the chain what is to be known, until cancelled."""
        async with trio.open_nursery() as nursery:
            async for campaign in self._questions[1]:
                nursery.start_soon(self._ask, campaign)

    async def refusal(self, campaign: str) -> HansaError | None:
        """Return why orders of a campaign cannot be taken, or None.

        ``unknown_campaign``, ``campaign_closed``, or ``not_allowed`` where another server opened it.
        """
        known = self._known.get(campaign)
        if known is not None and trio.current_time() < known[1]:
            return known[0]
        asked = self._asked[campaign] if campaign in self._asked else self._question(campaign)
        if known is not None and known[0] is None:
            return None  # it was open a moment ago, and the contract decides
        with trio.move_on_after(ASK_MS_MAX / 1000):
            await asked.wait()
        return self._known.get(campaign, (None, 0))[0]

    def _question(self, campaign: str) -> trio.Event:
        answered = trio.Event()
        try:
            self._questions[0].send_nowait(campaign)
        except trio.WouldBlock:
            answered.set()
        else:
            self._asked[campaign] = answered
        return answered

    async def _ask(self, campaign: str) -> None:
        refusal: HansaError | None = None
        trouble = "no answer in time"
        with trio.move_on_after(ASK_MS_MAX / 1000) as scope:
            try:
                refusal = self._judge(campaign, await self._chain.query("rights", "campaign", {"campaign": campaign}))
                trouble = ""
            except HansaError as error:
                trouble = error.message
                if isinstance(error, Refused) and error.code == "unknown_campaign":
                    refusal, trouble = Refused(error.code, f"there is no campaign {campaign}"), ""
        if scope.cancelled_caught:
            self._chain.leave_node()
        if trouble and not self._trouble:
            log.warning("the chain cannot be asked about campaigns: orders are taken all the same", why=trouble)
        elif self._trouble and not trouble:
            log.info("the chain can be asked about campaigns again")
        self._trouble = trouble
        if len(self._known) >= CAMPAIGNS_MAX:
            self._known.clear()
        self._known[campaign] = refusal, trio.current_time() + FRESH_MS / 1000
        self._asked.pop(campaign).set()

    def _judge(self, campaign: str, answer: Value) -> HansaError | None:
        match answer:
            case {"server": bytes() as server} if server != self._server:
                return Refused("not_allowed", f"another server opened campaign {campaign}")
            case {"isClosed": True}:
                return Refused("campaign_closed", f"campaign {campaign} takes no more orders")
            case _:
                return None
