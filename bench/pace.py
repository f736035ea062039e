"""How a message centre's deliveries keep their pace, as a consumer over its link receives them."""

from collections.abc import Sequence

import trio

from services.messages.link import Link, LinkSubscription
from services.messages.port import Settlement, Verdict

SETTLE_EACH = 200
WINDOW = 1_024
NS = 1_000_000_000


async def drain_all(center: Link, count: int) -> list[int]:
    """Receive so many deliveries, up to 200,000, settle each, and return when they came: CLOCK_MONOTONIC, ns."""
    async with center.consume("bench", window=WINDOW) as subscription, trio.open_nursery() as nursery:
        send, receive = trio.open_memory_channel[list[Settlement]](WINDOW // SETTLE_EACH)
        nursery.start_soon(_settle_forever, subscription, receive)
        async with send:
            done: list[Settlement] = []
            for number in range(count):
                delivery = await anext(subscription)
                done.append(Settlement(delivery.sequence, delivery.fence, Verdict.DONE))
                if len(done) == SETTLE_EACH or number == count - 1:
                    await send.send(done)
                    done = []
    return list(subscription.received_ns)[:count]


def keeps_pace(received_ns: Sequence[int], rate_per_s: int) -> tuple[bool, float]:
    """Tell whether no window of T holds more than rate × T + 1, and which part of the rate was reached.

    A window from one receipt to a later one is the shortest that holds what is between them.
    """
    is_kept = True
    least: int | None = None
    for number, at_ns in enumerate(received_ns):
        # number − earlier number ≤ rate × (at − earlier at), for every earlier one, times NS.
        reached = number * NS - rate_per_s * at_ns
        is_kept = is_kept and (least is None or reached <= least)
        least = reached if least is None else min(least, reached)
    seconds = (received_ns[-1] - received_ns[0]) / NS if len(received_ns) > 1 else 0.0
    return is_kept, (len(received_ns) - 1) / rate_per_s / seconds if seconds else 0.0


async def _settle_forever(
    subscription: LinkSubscription, receive: "trio.MemoryReceiveChannel[list[Settlement]]"
) -> None:
    async for settlements in receive:
        await subscription.settle(settlements)
