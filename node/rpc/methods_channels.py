"""``channel_list``: which private channels the permission node has opened, as everybody may know."""

from node.channels import read_channels
from node.rpc.context import Context, methods
from node.rpc.protocol import Json
from node.rpc.schema import NoParams


@methods.add("channel_list", NoParams)
async def channel_list(context: Context, _: NoParams) -> Json:
    """The registry of private channels: parties, nodes, epoch, and until when what may pass. Nothing of what passes.

    ``phase`` at the newest block's time is ``open``, ``grace`` (only what goes to the bank) or ``closed``.
    """
    now_ms = context.backend.head().header.time_ms
    return [
        {
            "channel": str(name),
            "bank": name.bank,
            "issuer": name.issuer,
            "epoch": record.epoch,
            "status": record.status,
            "phase": record.phase(now_ms).value,
            "bankNode": record.bank_node,
            "issuerNode": record.issuer_node,
            "openedMs": record.opened_ms,
            "expiresMs": record.expires_ms,
            "graceUntilMs": record.grace_until_ms,
        }
        for name, record in read_channels(context.backend.state()).items()
    ]
