"""``rpc.discover``, ``subscribe``, ``unsubscribe``: what the connection itself offers."""

from typing import Annotated

import msgspec

from consensus.ledger.errors import PeerError
from node.rpc.context import Context, Selection, Subscriber, methods
from node.rpc.protocol import Json
from node.rpc.render import cursor_of
from node.rpc.schema import AddressHex, Cursor, NameText, NoParams, Params
from node.rpc.subscriptions import check_topic_untrusted


@methods.add("rpc.discover", NoParams)
async def discover(context: Context, _: NoParams) -> Json:
    """The OpenRPC document of this server."""
    return context.table.openrpc()


class Subscribe(Params, frozen=True):
    """A topic: ``blocks``, ``transactions`` (of one ``sender``), ``events`` (of one contract and name), ``consensus``.

    Without a cursor it begins after the newest block; with one, right behind it.
    """

    topic: NameText
    cursor: Cursor | None = None
    contract: NameText = ""
    name: NameText = ""
    sender: AddressHex | None = None


@methods.add("subscribe", Subscribe)
async def subscribe(context: Context, params: Subscribe) -> Json:
    """Follow a topic on this WebSocket; items come as ``subscription`` messages with a cursor to resume from.

    A reader that falls too far behind gets a message with ``gap``; ``events_query`` or a second
    subscription with the cursor ``gap.after`` brings what was left out.
    """
    topic = check_topic_untrusted(params.topic)
    selection = Selection(params.contract, params.name, params.sender or "")
    cursor = None if params.cursor is None else cursor_of(params.cursor)
    return _subscriber(context).subscribe(topic, selection, cursor)


class Unsubscribe(Params, frozen=True):
    """The number that ``subscribe`` returned."""

    subscription: Annotated[int, msgspec.Meta(ge=1)]


@methods.add("unsubscribe", Unsubscribe)
async def unsubscribe(context: Context, params: Unsubscribe) -> Json:
    """End a subscription of this WebSocket; false when there is none of this number."""
    return _subscriber(context).unsubscribe(params.subscription)


def _subscriber(context: Context) -> Subscriber:
    if context.subscriber is None:
        raise PeerError("no_subscriptions_here", "subscriptions need the WebSocket at /ws")
    return context.subscriber
