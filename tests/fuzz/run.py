"""One fuzz of a running network from start to verdict, as ``make fuzz`` and the tests run it."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import trio

from tests.fuzz.calls import CallFuzz
from tests.fuzz.frames import FrameFuzz
from tests.fuzz.live import Live, live_network

WARM_UP_SHARE = 5
"""One part in this many comes before the nodes are weighed: caches fill, code is loaded."""
ROUNDS = 4
"""Frames and calls take turns; after each round the network must still commit."""
STRANGERS_PER_ROUND = 12


async def fuzz_network(
    folder: Path, *, frames: int, calls: int, seed: int, say: Callable[[str], None], rounds: int = ROUNDS
) -> list[str]:
    """Throw frames and calls at a running network and return everything that is wrong after it."""
    async with live_network(folder) as live, trio.open_nursery() as nursery:
        await live.prove_alive()
        frame_fuzz = FrameFuzz(live, Random(f"{seed}/frames"))
        call_fuzz = CallFuzz(live, Random(f"{seed}/calls"))
        await call_fuzz.learn()
        for home in live.nodes:
            nursery.start_soon(call_fuzz.stay_deaf, home)
        await _throw(frame_fuzz, call_fuzz, frames // WARM_UP_SHARE, calls // WARM_UP_SHARE)
        live.weights = live.weigh()
        say(f"warmed up: {_weights(live)}")
        for number in range(rounds):
            part = (WARM_UP_SHARE - 1) * (number + 1) / rounds + 1
            await _throw(frame_fuzz, call_fuzz, int(frames * part / WARM_UP_SHARE), int(calls * part / WARM_UP_SHARE))
            say(f"{frame_fuzz.handled} frames, {call_fuzz.calls} calls: {_weights(live)}")
            await live.prove_alive()
        say(f"frames: {frame_fuzz.sessions} sessions, {dict(frame_fuzz.ends)}")
        say(f"calls: {dict(call_fuzz.ends)}")
        say(f"answers: {dict(call_fuzz.answers)}")
        wrong = [*call_fuzz.findings, *live.faults()]
        if not await live.same_roots():
            wrong.append("the nodes have different blocks at one height")
        nursery.cancel_scope.cancel()
    return wrong


async def _throw(frame_fuzz: FrameFuzz, call_fuzz: CallFuzz, frames: int, calls: int) -> None:
    """Throw until the totals are reached, at the nodes with penalties and as a stranger on the way."""
    live = frame_fuzz.live
    async with trio.open_nursery() as nursery:
        nursery.start_soon(frame_fuzz.throw, frames - frame_fuzz.handled)
        nursery.start_soon(call_fuzz.throw, calls - call_fuzz.calls)
        nursery.start_soon(_visit_all, frame_fuzz, live)


async def _visit_all(frame_fuzz: FrameFuzz, live: Live) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(STRANGERS_PER_ROUND):
            nursery.start_soon(frame_fuzz.strange, live.nodes[number % len(live.nodes)])
    for home in live.nodes:
        if home.name != live.soft.name:
            await frame_fuzz.visit(home)


def _weights(live: Live) -> str:
    return ", ".join(f"{name} {weight} MiB" for name, weight in live.weigh().items())
