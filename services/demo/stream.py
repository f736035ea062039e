"""The stream demo: a car pays 200 times and one payment reaches the chain; a payer that cheats pays a fine on top.

:mod:`services.demo.stream_story` plays it, :mod:`services.demo.stream_gather` asks everyone for facts, and
:mod:`services.demo.stream_facts` judges them.
"""

import json
import time

import click
import trio

from services.demo.stream_card import Report, draw_card, report_json
from services.demo.stream_facts import judge
from services.demo.stream_gather import Look
from services.demo.stream_network import OpenStreamNetwork
from services.demo.stream_story import Story
from services.demo.stream_till import open_till
from services.demo.watch import open_watch, quiet_logs
from services.stream.charging import charging_session
from services.stream.setup import UNIT

SPEED, PULSES = 240, 260
"""How many times faster than a real car the meter goes; pulses that come while somebody is dead make one iteration."""
METER_MS, CHAIN_MS = 10, 500
"""How often the service party looks at meter and chain, and hands iterations to the watcher."""


def main(*, open_network: OpenStreamNetwork, seed: int = 1, as_json: bool = False) -> int:
    """Play the demo and print its card, or one JSON object; return 0 when every invariant holds, else 1.

    Args:
        open_network: starts the network for the time of the demo.
        seed: decides how the cars are charged.
        as_json: print one JSON object instead of the card.

    Raises:
        LocalError: what the start of network and programs raises.
        Unreachable, PeerError: the network broke in a way that leaves nothing to judge.
    """
    return trio.run(_perform, open_network, seed, as_json)


async def _perform(open_network: OpenStreamNetwork, seed: int, as_json: bool) -> int:
    began = time.monotonic()
    with quiet_logs(), open_watch(is_quiet=as_json) as watch:
        watch.say("starting the network")
        async with open_network() as consortium:
            watch.say("service party and watcher are started")
            doors = await consortium.open_streams(
                meter=f"demo:{seed}:{SPEED}:{PULSES}", meter_ms=METER_MS, chain_ms=CHAIN_MS, watcher_ms=CHAIN_MS
            )
            async with open_till(consortium, doors) as till:
                started = time.monotonic()
                look = Look(consortium, till)
                before = await look.balances()
                story = Story(consortium, till, watch, charging_session(seed, PULSES))
                await story.play()
                watch.say("comparing chain and service party")
                facts = await look.facts(story, before)
                done = time.monotonic()
                what = story.played[0].terms.what
                report = Report(facts, UNIT, what, seed, started - began, done - started, consortium.place)
    invariants = judge(facts)
    if as_json:
        click.echo(json.dumps(report_json(report, invariants)))
    else:
        draw_card(report, invariants)
    return 0 if all(invariants.values()) else 1
