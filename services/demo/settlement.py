"""The settlement demo: units on the chain against simulated money, both or neither, while every program dies.

:mod:`services.demo.settlement_story` plays it, :mod:`services.demo.settlement_gather` asks everyone for facts, and
:mod:`services.demo.settlement_facts` judges them.
"""

import json
import secrets
import time
from datetime import UTC, date, datetime, timedelta
from functools import partial

import click
import trio

from services.demo.agency_till import patiently
from services.demo.chain import open_chain
from services.demo.settlement_card import Report, draw_card, report_json
from services.demo.settlement_facts import judge
from services.demo.settlement_gather import Look, Reconciled
from services.demo.settlement_network import OpenSettlementNetwork, SettlementConsortium, Wishes
from services.demo.settlement_script import Script, make_script
from services.demo.settlement_story import ROUNDS, Story
from services.demo.settlement_till import Till, open_till
from services.demo.watch import Watch, open_watch, quiet_logs
from services.settlement.reconcile import Sides, reconcile

TRADES = 120


def main(
    *,
    open_network: OpenSettlementNetwork,
    trades: int = TRADES,
    database: str = "",
    seed: int = 1,
    as_json: bool = False,
) -> int:
    """Play the demo and print its card, or one JSON object; return 0 when every invariant holds, else 1.

    Args:
        open_network: starts the network for the time of the demo.
        trades: how many are to be paid; those that must fail come on top.
        database: a PostgreSQL URL for both stores, "" for an SQLite file of each.
        seed: decides parties, units and prices.
        as_json: print one JSON object instead of the card.

    Raises:
        LocalError: what the start of network and programs raises.
        Unreachable, PeerError: the network broke in a way that leaves nothing to judge.
    """
    run = f"demo-{secrets.token_hex(4)}"
    script = make_script(run, trades=trades, accidents=ROUNDS, seed=seed)
    return trio.run(_perform, script, open_network, database, seed, as_json)


async def _perform(script: Script, open_network: OpenSettlementNetwork, database: str, seed: int, as_json: bool) -> int:
    began = time.monotonic()
    first_day = datetime.now(UTC).date()
    with quiet_logs(), open_watch(is_quiet=as_json) as watch:
        watch.say("starting the network")
        async with open_network() as consortium:
            watch.say("account system, message centre, event system and payer are started")
            wishes = Wishes(database=database, allow_faults=True)
            doors = await consortium.open_settlement(wishes)
            urls = consortium.urls
            async with (
                open_chain(consortium.genesis, urls, list(urls)[:1]) as chain,
                open_till(consortium.genesis, list(urls.values()), doors, consortium.key) as till,
            ):
                look = Look(script.deals, consortium, chain, till)
                story = Story(script, consortium, till, watch, wishes)
                report = await _play_on(look, story, watch, seed, began, first_day)
    invariants = judge(report.facts)
    if as_json:
        click.echo(json.dumps(report_json(report, invariants)))
    else:
        draw_card(report, invariants)
    return 0 if all(invariants.values()) else 1


async def _play_on(look: Look, story: Story, watch: Watch, seed: int, began: float, first_day: date) -> Report:
    started = time.monotonic()
    consortium: SettlementConsortium = look.consortium
    await story.prepare()
    before = await look.balances()
    await story.play()
    watch.say("comparing chain and account system")

    async def reconcile_days() -> Reconciled:
        return await _reconcile(look.till, first_day)

    facts = await look.facts(story, before, reconcile_days)
    return Report(
        facts=facts,
        seed=seed,
        database="PostgreSQL" if story.wishes.database else "SQLite",
        alone_p50_ms=story.alone_p50_ms,
        burst=story.burst[0],
        burst_s=story.burst[1],
        start_s=started - began,
        play_s=time.monotonic() - started,
        place=consortium.place,
    )


async def _reconcile(till: Till, first_day: date) -> Reconciled:
    """Compare chain and account system for the days of the story: two of them where it crossed midnight."""
    sides = Sides(till.client, till.accounts, till.events)
    events, breaks, day = 0, [], first_day
    while day <= datetime.now(UTC).date():
        report = await patiently(partial(reconcile, day, sides, tolerance_ms=0))
        events += report.events
        for line in report.listed:
            breaks += [f"{line.event}: {fault.kind}" for fault in line.breaks] or [f"{line.event}: {line.verdict}"]
        day += timedelta(days=1)
    return Reconciled(events, breaks)
