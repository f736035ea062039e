"""``owner_*``: private channels, for the owner's programs alone (``run/owner.sock``)."""

from typing import Annotated

import msgspec

from consensus.ledger.errors import InvariantError, PeerError
from node.owner import PAGE_ITEMS_MAX, WAIT_MS_MAX, OwnerDesk
from node.rpc.context import Context, owner_methods
from node.rpc.protocol import Json
from node.rpc.render import hex_of
from node.rpc.schema import NoParams, Params
from p2p.private.port import PAYLOAD_BYTES_MAX, ChannelName, ChannelStatus, Delivery

ChannelText = Annotated[str, msgspec.Meta(min_length=3, max_length=129, pattern="^[^/]+/[^/]+$")]
MessageId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Position = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


@owner_methods.add("owner_status", NoParams)
async def owner_status(context: Context, _: NoParams) -> Json:
    """Whose node this is, the key that signs its private messages, and where its chain stands."""
    desk = _desk(context)
    return {
        "node": context.backend.node_name,
        "organisation": desk.organisation,
        "channelKey": hex_of(desk.channel_key),
        "chainId": hex_of(context.backend.chain_id),
        "height": context.backend.head().header.height,
    }


@owner_methods.add("owner_channels", NoParams)
async def owner_channels(context: Context, _: NoParams) -> Json:
    """This node's channels: whether the peer is there, what waits for it, and how far both directions are."""
    return [_status_json(status) for status in _desk(context).private.status()]


class OwnerSend(Params, frozen=True):
    """A message for the other side; ``payload`` in 0x-hex."""

    channel: ChannelText
    id: MessageId
    payload: str


@owner_methods.add("owner_send", OwnerSend)
async def owner_send(context: Context, params: OwnerSend) -> Json:
    """Send a message; answered once it is durable here. The same id again gives the first answer, whatever it holds.

    Whether it will never be taken comes back as a delivery with a code.
    """
    epoch, number = await _desk(context).private.send(
        _channel_untrusted(params.channel), params.id, _payload_untrusted(params.payload)
    )
    return {"epoch": epoch, "number": number}


class OwnerReceive(Params, frozen=True):
    """From after which position on, how long to wait for something to come (ms), and how many at most."""

    after: Position = 0
    wait_ms: Annotated[int, msgspec.Meta(ge=0, le=WAIT_MS_MAX)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_ITEMS_MAX)] = 100


@owner_methods.add("owner_receive", OwnerReceive)
async def owner_receive(context: Context, params: OwnerReceive) -> Json:
    """What came over all channels, oldest first; it stays until ``owner_done``.

    An item with a ``code`` says that our own message ``id`` was not and will never be taken by the peer.
    """
    found = await _desk(context).poll(params.after, limit=params.limit, wait_ms=params.wait_ms)
    return {"items": [_delivery_json(delivery) for delivery in found]}


class OwnerDone(Params, frozen=True):
    """Everything up to this position has been dealt with."""

    position: Position


@owner_methods.add("owner_done", OwnerDone)
async def owner_done(context: Context, params: OwnerDone) -> Json:
    """Forget what came, up to a position."""
    await _desk(context).private.done(params.position)
    return None


def _desk(context: Context) -> OwnerDesk:
    if context.owner is None:
        raise InvariantError("an owner's method is called where the node has no owner's desk")
    return context.owner


def _channel_untrusted(text: str) -> ChannelName:
    bank, _, issuer = text.partition("/")
    return ChannelName(bank, issuer)


def _payload_untrusted(text: str) -> bytes:
    """Return the bytes of 0x-hex; quicker than a pattern, which takes a step a digit.

    Raises:
        PeerError: ``invalid_params``, ``too_large``.
    """
    if len(text) > 2 + 2 * PAYLOAD_BYTES_MAX:
        raise PeerError("too_large", f"a payload has at most {PAYLOAD_BYTES_MAX} bytes")
    try:
        payload = bytes.fromhex(text[2:])
    except ValueError:
        payload = b""
    if text != "0x" + payload.hex():
        raise PeerError("invalid_params", "payload is 0x-hex in lower case")
    return payload


def _status_json(status: ChannelStatus) -> Json:
    facts = status.facts
    return {
        "channel": str(facts.name),
        "bank": facts.name.bank,
        "issuer": facts.name.issuer,
        "epoch": facts.epoch,
        "phase": facts.phase.value,
        "isBank": facts.is_bank,
        "peer": facts.peer,
        "connected": status.is_connected,
        "waiting": status.waiting,
        "waitingBytes": status.waiting_bytes,
        "sent": status.sent,
        "delivered": status.delivered,
        "received": status.received,
        "lastError": status.last_error,
    }


def _delivery_json(delivery: Delivery) -> Json:
    return {
        "position": delivery.position,
        "channel": str(delivery.channel),
        "epoch": delivery.epoch,
        "number": delivery.number,
        "payload": hex_of(delivery.payload),
        "id": delivery.id,
        "code": delivery.code,
    }
