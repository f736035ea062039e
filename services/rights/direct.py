"""Submits each event to the chain itself and answers after finality: what the message centre is measured against."""

from collections.abc import Sequence

from consensus.ledger.codec import Value
from consensus.ledger.transaction import Call, make_call
from services.client.client import Client
from services.client.errors import Refused
from services.client.keystore import Signer
from services.local.pages import failed
from services.rights.answers import Answer, Chain, Followed, taken
from services.rights.events import Event, Kind

CONTRACT = "rights"
LANES = 64
"""How many transactions are under way at a time, unless it is strict."""
LANE_PREFIX = b"direct"

_COMPUTED = {Kind.CREATE.value: "create_by_rule", Kind.REDEEM.value: "redeem_items"}
"""What the contract calls a kind where it computes the amount."""


class Direct:
    """Takes each event as one transaction of the business server's account."""

    def __init__(self, client: Client, signer: Signer, *, is_strict: bool) -> None:
        self._client = client
        self._signer = signer
        self._lanes = client.lanes(signer, count=1 if is_strict else LANES, prefix=LANE_PREFIX)

    async def take(self, events: Sequence[Event]) -> list[Answer]:
        """Submit each event and wait until it is final; those of one list in its order."""
        return [await self._submit(event) for event in events]

    async def find(self, kind: str, reference: str, number: str) -> Followed | None:
        """Return that an event is done, by what one node says of its order or redemption."""
        record = "redemption" if kind in (Kind.REDEEM, Kind.REVERSE) else "order"
        arguments: dict[str, Value] = {record: reference, "server": self._signer.address}
        try:
            answer = await self._client.query(CONTRACT, record, arguments)
        except Refused:
            return None
        events = answer.get("events") if isinstance(answer, dict) else None
        for event in events if isinstance(events, list) else ():
            match event:
                case [str(name), str(known), *_] if known == number and name in (kind, _COMPUTED.get(kind)):
                    return Followed(event_id=f"{kind}/{reference}/{number}", state="done", attempts=1)
                case _:
                    pass
        return None

    async def check(self) -> None:
        """Return if a node answers."""
        await self._client.query(CONTRACT, "campaigns", {"limit": 1})

    async def _submit(self, event: Event) -> Answer:
        try:
            outcome = await self._client.call_many(self._signer, [call_of(event)], lanes=self._lanes)
            outcome.check()
        except Refused as error:
            return failed(error)
        transaction_id = f"0x{outcome.transaction.id.hex()}"
        chain = Chain(height=outcome.height, transaction_id=transaction_id, call_index=0)
        # The contract returns the first result to a repeat, and emits what it does once.
        return taken(event, is_new=bool(outcome.events()), chain=chain)


def call_of(event: Event) -> Call:
    """Return the contract call that an event is when its server submits it."""
    arguments: dict[str, Value] = {"event": event.number}
    is_redemption = event.kind in (Kind.REDEEM, Kind.REVERSE)
    arguments["redemption" if is_redemption else "order"] = event.reference
    method = event.kind
    match Kind(event.kind):
        case Kind.CREATE:
            method = "create_by_rule"
            arguments |= {"campaign": event.campaign, "user": event.user, "order_amount": event.amount}
        case Kind.REDEEM if event.items:
            method = "redeem_items"
            arguments |= {"user": event.user, "items": dict(event.items), "amount_max": event.amount}
        case Kind.REDEEM:
            arguments |= {"user": event.user, "amount": event.amount}
        case _ if event.amount:
            arguments["amount"] = event.amount
        case _:
            pass
    return make_call(CONTRACT, method, arguments)
