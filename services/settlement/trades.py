"""What a trade is on the chain: its call, its one-shot lane, and the check of a signed transaction against its terms.

A seller signs ``tokens.deliver`` as the only call of transaction 0 of the one-shot lane of the event's id: the units
go to the buyer at once, under a lien that only the ``agent`` named in the call can lift or take back.
"""

from consensus.ledger.codec import Value
from consensus.ledger.transaction import Call, Transaction, make_call
from services.accounts.port import Operation, Order
from services.client.lanes import one_shot_lane
from services.settlement.states import Terms

CONTRACT = "tokens"
VALIDITY_MS_MAX = 3_600_000


def lane_of(event: str) -> bytes:
    """Return the one-shot lane of an event, 32 bytes."""
    return one_shot_lane(f"settlement:{event}")


def is_delivery(transaction: Transaction, event: str, terms: Terms, agent: bytes) -> bool:
    """Tell whether a transaction is exactly the delivery of these terms, and nothing beside it."""
    body = transaction.body
    return (body.sender, body.lane, body.sequence) == (terms.seller, lane_of(event), 0) and list(body.calls) == [
        deliver_call(event, terms, agent)
    ]


def deliver_call(event: str, terms: Terms, agent: bytes) -> Call:
    """Return the seller's call: units to the buyer, under a lien named by the event."""
    arguments: dict[str, Value] = {
        "unit": terms.asset,
        "to": terms.buyer,
        "amount": terms.units,
        "event": event,
        "agent": agent,
    }
    return make_call(CONTRACT, "deliver", arguments)


def lift_call(event: str, seller: bytes) -> Call:
    """Return the agent's call that makes the buyer's units free."""
    return make_call(CONTRACT, "lift", {"seller": seller, "event": event})


def give_back_call(event: str, seller: bytes) -> Call:
    """Return the agent's call that takes the units back to the seller."""
    return make_call(CONTRACT, "give_back", {"seller": seller, "event": event})


def order_of(event: str, operation: Operation, terms: Terms) -> Order:
    """Return what is asked of the account system for an event."""
    return Order(event, operation, terms.payer, terms.payee, terms.price, terms.currency)
