"""What callers of the business server post, and the event that each of it is. Pure, apart from the given time.

Bodies are JSON, decoded straight into these types: an amount is an integer, never a float or a text, a name is of
the pattern that state keys on the chain allow, and a field that nobody knows is refused rather than passed over.
"""

import re
from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec

from consensus.ledger.errors import PeerError
from services.local.pages import check_once
from services.rights.events import AMOUNT_MAX, ITEMS_MAX, Count, Event, Id, Kind

LIST_EVENTS_MAX = 1_000
"""How many events one request posts."""

T = TypeVar("T")

Part = Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX, description="smallest units; absent: all that is left")]
Limit = Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX, description="smallest units; of items the most they may cost")]
Sum = Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX, description="smallest units")]
Number = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9._:-]{1,64}\Z",
        description="tells several events of one kind and order apart; the same number again is the same event",
    ),
]
Items = Annotated[dict[Id, Count], msgspec.Meta(min_length=1, max_length=ITEMS_MAX, description="count by item")]


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all have in common: the event's number."""

    event: Number = "1"


class Order(Body, frozen=True, kw_only=True):
    """An order was created: a share of the campaign's quota is reserved for its user."""

    order: Id
    user: Id
    campaign: Id
    amount: Sum

    def to_event(self, time_ms: int) -> Event:
        """Return the event, taken at ``time_ms`` UTC."""
        return Event(Kind.CREATE.value, self.order, self.event, self.user, self.campaign, self.amount, [], time_ms)


class Change(Body, frozen=True, kw_only=True):
    """Something happened to the order or redemption in the path."""

    amount: Part | msgspec.UnsetType = msgspec.UNSET


class OrderChange(Body, frozen=True, kw_only=True):
    """Something happened to an order, in whole or in part."""

    order: Id
    amount: Part | msgspec.UnsetType = msgspec.UNSET

    def to_event(self, time_ms: int) -> Event:
        """Return the event, taken at ``time_ms`` UTC."""
        return change_event(_tag_of(self), self.order, self.event, self.amount, time_ms)


class Redemption(Body, frozen=True, kw_only=True):
    """A user redeems rights: an amount, or items whose prices the contract knows (at most the amount, if given)."""

    redemption: Id
    user: Id
    amount: Limit | msgspec.UnsetType = msgspec.UNSET
    items: Items | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if self.amount is msgspec.UNSET and self.items is msgspec.UNSET:
            raise ValueError("a redemption needs `amount` or `items`")

    def to_event(self, time_ms: int) -> Event:
        """Return the event, taken at ``time_ms`` UTC."""
        items = [] if self.items is msgspec.UNSET else sorted(self.items.items())
        amount = 0 if self.amount is msgspec.UNSET else self.amount
        return Event(Kind.REDEEM.value, self.redemption, self.event, self.user, "", amount, items, time_ms)


class CreateEvent(Order, frozen=True, kw_only=True, tag_field="kind", tag="create"):
    """An order, in a mixed list."""


class CancelEvent(OrderChange, frozen=True, kw_only=True, tag_field="kind", tag="cancel"):
    """An order was cancelled: what is reserved is revoked, what was granted is taken back."""


class CompleteEvent(OrderChange, frozen=True, kw_only=True, tag_field="kind", tag="complete"):
    """An order was completed: what is reserved is granted."""


class RefundEvent(OrderChange, frozen=True, kw_only=True, tag_field="kind", tag="refund"):
    """An order was refunded: what was granted is taken back."""


class RedeemEvent(Redemption, frozen=True, kw_only=True, tag_field="kind", tag="redeem"):
    """A redemption, in a mixed list."""


class ReverseEvent(Body, frozen=True, kw_only=True, tag_field="kind", tag="reverse_redemption"):
    """A redemption was reversed, in whole or in part."""

    redemption: Id
    amount: Part | msgspec.UnsetType = msgspec.UNSET

    def to_event(self, time_ms: int) -> Event:
        """Return the event, taken at ``time_ms`` UTC."""
        return change_event(Kind.REVERSE, self.redemption, self.event, self.amount, time_ms)


AnyEvent = CreateEvent | CancelEvent | CompleteEvent | RefundEvent | RedeemEvent | ReverseEvent
Posted = Order | Redemption | AnyEvent

Decode = Callable[[bytes | msgspec.Raw], Posted]
decode_order: Decode = msgspec.json.Decoder(Order).decode
decode_redemption: Decode = msgspec.json.Decoder(Redemption).decode
decode_any: Decode = msgspec.json.Decoder(AnyEvent).decode

_decode_change = msgspec.json.Decoder(Change).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_KINDS = ", ".join(Kind)
_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def change_event(kind: str, reference: str, number: str, amount: int | msgspec.UnsetType, time_ms: int) -> Event:
    """Return the event of what happened to an order or a redemption; without an amount it is about all that is left."""
    return Event(str(kind), reference, number, "", "", 0 if amount is msgspec.UNSET else amount, [], time_ms)


def is_id(text: str) -> bool:
    """Tell whether an order, a redemption or an event's number can be called so."""
    return _ID.fullmatch(text) is not None


def is_list(body: bytes) -> bool:
    """Tell whether a body holds a JSON list, if it is JSON at all."""
    return body.lstrip()[:1] == b"["


def decode_one_untrusted(body: bytes, decode: Decode, time_ms: int) -> Event:
    """Return the event in a body.

    Raises:
        PeerError: ``malformed`` for what is no JSON or has a field twice, ``bad_field`` with the field's path.
    """
    return _posted(body, decode).to_event(time_ms)


def decode_list_untrusted(body: bytes, decode: Decode, time_ms: int) -> list[Event | PeerError]:
    """Return 1 to 1,000 events in their order, or for each what is wrong with it.

    Raises:
        PeerError: ``malformed`` for what is no JSON list, ``bad_field`` for an empty one, ``too_large`` else.
    """
    raws = _decoded(_decode_list, body)
    if not raws:
        raise PeerError("bad_field", "the list is empty")
    if len(raws) > LIST_EVENTS_MAX:
        raise PeerError("too_large", f"a request posts at most {LIST_EVENTS_MAX} events, this one {len(raws)}")
    events: list[Event | PeerError] = []
    for raw in raws:
        try:
            events.append(_posted(bytes(raw), decode).to_event(time_ms))
        except PeerError as error:
            events.append(error)
    return events


def decode_change_untrusted(kind: Kind, reference: str, body: bytes, time_ms: int) -> Event:
    """Return what happened to the order or redemption that the path names; an empty body says nothing more.

    Raises:
        PeerError: as :func:`decode_one_untrusted`.
    """
    if not is_id(reference):
        raise PeerError("bad_field", "the name in the path is no name of an order or a redemption")
    change = _decoded(_decode_change, body or b"{}")
    if body:
        check_once(body)
    return change_event(kind, reference, change.event, change.amount, time_ms)


def _posted(body: bytes, decode: Decode) -> Posted:
    posted = _decoded(decode, body)
    check_once(body)
    return posted


def _decoded(decode: Callable[[bytes | msgspec.Raw], T], body: bytes | msgspec.Raw) -> T:
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        if decode is decode_any and message.endswith("kind`"):
            message += f"; kinds are {_KINDS}"
        raise PeerError("bad_field", message) from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerError("malformed", str(error)) from None


def _tag_of(posted: OrderChange) -> str:
    tag = posted.__struct_config__.tag
    return str(tag)
