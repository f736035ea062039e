"""The agency demo: a fund file sold over a private channel of two of four validators, while programs die.

:mod:`services.demo.agency_story` plays it, :mod:`services.demo.agency_gather` asks everyone for facts, and
:mod:`services.demo.agency_facts` judges them.
"""

import json
import secrets
import time
from pathlib import Path

import click
import trio

from services.agency.ofd.reader import read_path
from services.agency.ofd.synthetic import orders_file
from services.demo.agency_card import Report, draw_card, report_json
from services.demo.agency_facts import judge
from services.demo.agency_gather import THIRD_PARTIES, Look, gather_facts
from services.demo.agency_network import BANK_GATEWAY, SALES, AgencyConsortium, OpenAgencyNetwork
from services.demo.agency_script import Script, make_script
from services.demo.agency_story import Story
from services.demo.agency_till import open_till
from services.demo.chain import open_chain
from services.demo.watch import Watch, open_watch


def main(
    *, open_network: OpenAgencyNetwork, applications: Path | None = None, seed: int = 1, as_json: bool = False
) -> int:
    """Play the demo and print its card, or one JSON object; return 0 when every invariant holds, else 1.

    Args:
        open_network: starts the network for the time of the demo.
        applications: a fund file of type 03 with orders of product 000198; without one it is drawn from ``seed``.
        seed: what decides investors' profiles and the synthetic file.
        as_json: print one JSON object instead of the card.

    Raises:
        LocalError: ``bad_fund_file``, ``file_error``, before anything is started; what the start of network and
            programs raises.
        Unreachable, PeerError: the network broke in a way that leaves nothing to judge.
    """
    script = read_script(applications, seed=seed)
    return trio.run(_perform, script, open_network, seed, as_json)


def read_script(applications: Path | None, *, seed: int) -> Script:
    """Read or draw the file and decide what is sent.

    Raises:
        LocalError: ``bad_fund_file``, ``file_error``.
    """
    if applications is None:
        return make_script(orders_file(seed), f"a synthetic file (seed {seed})", seed=seed)
    return make_script(read_path(applications), str(applications), seed=seed)


async def _perform(script: Script, open_network: OpenAgencyNetwork, seed: int, as_json: bool) -> int:
    began = time.monotonic()
    with open_watch(is_quiet=as_json) as watch:
        watch.say("starting the network")
        async with open_network() as consortium:
            watch.say("agreements are signed, channels opened, programs started")
            await consortium.open_agency()
            names = list(consortium.urls)
            async with (
                open_chain(consortium.genesis, consortium.urls, names[:1]) as chain,
                open_till(consortium.socket(SALES), consortium.socket(BANK_GATEWAY)) as till,
            ):
                look = Look(script, consortium, chain, till)
                report = await _play_on(look, watch, seed, began)
    invariants = judge(report.facts)
    if as_json:
        click.echo(json.dumps(report_json(report, invariants)))
    else:
        draw_card(report, invariants)
    return 0 if all(invariants.values()) else 1


async def _play_on(look: Look, watch: Watch, seed: int, began: float) -> Report:
    started = time.monotonic()
    consortium: AgencyConsortium = look.consortium
    story = Story(look.script, consortium, look.chain.client, look.till, watch, secrets.token_hex(4))
    await story.play()
    watch.say(f"comparing, and searching what {' and '.join(THIRD_PARTIES)} have")
    facts, search = await gather_facts(look, story)
    return Report(
        facts=facts,
        source=look.script.source,
        seed=seed,
        accounts=len(look.script.accounts),
        accounts_s=story.times.accounts_s,
        file_s=story.times.file_s,
        start_s=started - began,
        play_s=time.monotonic() - started,
        third_parties=THIRD_PARTIES,
        trace_bytes=search.trace_bytes,
        place=consortium.place,
    )
