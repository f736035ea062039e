"""The payee demo: one printed code of a merchant works with one platform, and later with two, whatever dies.

:mod:`services.demo.payee_story` plays it, :mod:`services.demo.payee_gather` asks everyone for facts, and
:mod:`services.demo.payee_facts` judges them.
"""

import json
import secrets
import time

import click
import trio

from services.demo.payee_card import Report, draw_card, report_json
from services.demo.payee_facts import judge
from services.demo.payee_gather import balances, gather_facts
from services.demo.payee_network import OpenPayeeNetwork
from services.demo.payee_story import Story
from services.demo.payee_till import open_till
from services.demo.watch import open_watch, quiet_logs
from services.payee.wording import EMULATED


def main(*, open_network: OpenPayeeNetwork, as_json: bool = False) -> int:
    """Play the demo and print its card, or one JSON object; return 0 when every invariant holds, else 1.

    Args:
        open_network: starts the network for the time of the demo.
        as_json: print one JSON object instead of the card.

    Raises:
        LocalError: what the start of network and programs raises.
        Unreachable, PeerError: the network broke in a way that leaves nothing to judge.
    """
    return trio.run(_perform, open_network, as_json)


async def _perform(open_network: OpenPayeeNetwork, as_json: bool) -> int:
    began = time.monotonic()
    with quiet_logs(), open_watch(is_quiet=as_json) as watch:
        watch.say("starting the network")
        async with open_network() as consortium:
            watch.say("account system, platforms and environments are started")
            doors = await consortium.open_payee()
            async with open_till(consortium, doors) as till:
                started = time.monotonic()
                before = await balances(till)
                story = Story(f"demo-{secrets.token_hex(4)}", consortium, till, doors, watch)
                await story.play()
                watch.say("comparing chain, platforms, account system and disks")
                facts, search = await gather_facts(story, till, consortium, before)
                done = time.monotonic()
                report = Report(facts, search, story.times_ms, started - began, done - started, consortium.place)
    invariants = judge(facts, isolation=EMULATED)
    if as_json:
        click.echo(json.dumps(report_json(report, invariants)))
    else:
        draw_card(report, invariants)
    return 0 if all(invariants.values()) else 1
