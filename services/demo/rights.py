"""The rights demo: real orders through business server, message centre, rights server and four validators.

:mod:`services.demo.story` plays it while processes die, :mod:`services.demo.gather` asks everyone for facts, and
:mod:`services.demo.invariants` judges them.
"""

import json
import secrets
import time
from dataclasses import replace
from pathlib import Path

import click
import trio

from consensus.ledger.errors import LocalError
from services.client.tasks import single_errors
from services.demo.card import Report, draw_card, report_json
from services.demo.chain import Chain, open_chain
from services.demo.gather import Look, figures_of, gather_facts, prove_receipts
from services.demo.invariants import Facts, judge
from services.demo.network import Consortium, OpenNetwork, Wishes
from services.demo.orders import ORDER_PENCE_MAX, OrderBook, classify, load_orders, parse_lines
from services.demo.rights_machine import PRICES, SERVER_ITEMS, make_plan, misfits
from services.demo.shop import open_shop
from services.demo.story import Performance, Script, business_signer
from services.demo.synthetic import synthetic_day
from services.demo.watch import Watch, open_watch
from services.messages.link import open_link

RATE_PER_S_MIN = 4.0
DRAIN_S = 20
"""In about so many seconds the burst drains where nobody asks for another rate."""
ATTEMPTS_MAX = 7
"""How often the message centre tries what the chain does not know yet: for some 6 s, so that misfits end in time."""
BASIS = 10_000
VALIDATORS_MIN = 4


def main(
    *,
    open_network: OpenNetwork,
    orders: Path | None = None,
    limit: int | None = None,
    seed: int = 1,
    rate_per_s: float | None = None,
    store: str = "embedded",
    as_json: bool = False,
) -> int:
    """Play the demo and print its card, or one JSON object; return 0 when every invariant holds, else 1.

    Args:
        open_network: starts the network for the time of the demo.
        orders: a CSV file or a folder of them; without one a synthetic day is drawn from ``seed``.
        limit: at most so many orders are played; all lines are classified nevertheless.
        seed: what decides delays, redemptions, reversals, repeats and the synthetic day.
        rate_per_s: the message centre's threshold; by default what drains the burst in some 20 s.
        store: what keeps the messages: ``embedded``, or ``redis://HOST:PORT/DB``.
        as_json: print one JSON object instead of the card.

    Raises:
        LocalError: ``bad_orders``, before anything is started; what the start of network and programs raises.
        Unreachable, PeerError: the network broke in a way that leaves nothing to judge.
    """
    script = make_script(orders, limit=limit, seed=seed, rate_per_s=rate_per_s, store=store)
    return trio.run(_perform, script, open_network, as_json)


def make_script(
    orders: Path | None, *, limit: int | None, seed: int, rate_per_s: float | None = None, store: str = "embedded"
) -> Script:
    """Read or draw the orders and decide what is posted.

    Raises:
        LocalError: ``bad_orders``.
    """
    if orders is None:
        source = f"a synthetic day (seed {seed})"
        book = classify(parse_lines(synthetic_day(seed), "synthetic day"))
    else:
        source, book = str(orders), load_orders(orders)
    played = book if limit is None else _first_orders(book, limit)
    if not played.orders:
        raise LocalError("bad_orders", f"{source} holds no order of a named customer")
    run, salt = secrets.token_hex(4), secrets.token_bytes(16)
    plan = make_plan(played, seed=seed, run=run, salt=salt)
    return Script(
        book=played,
        source=source,
        seed=seed,
        run=run,
        salt=salt,
        plan=plan,
        misfits=tuple(misfits(plan, run=run)),
        rate_per_s=rate_per_s or max(RATE_PER_S_MIN, len(plan.burst) / DRAIN_S),
        store=store,
    )


async def _perform(script: Script, open_network: OpenNetwork, as_json: bool) -> int:
    began = time.monotonic()
    with open_watch(is_quiet=as_json) as watch:
        watch.say("starting the network")
        async with open_network() as consortium:
            names = list(consortium.urls)
            if len(names) < VALIDATORS_MIN:
                raise LocalError("bad_validators", f"one of at least {VALIDATORS_MIN} validators may fail at a time")
            async with open_chain(consortium.genesis, consortium.urls, names[:1]) as chain:
                report = await _play_on(script, consortium, chain, watch, began)
    invariants = judge(report.facts)
    if as_json:
        click.echo(json.dumps(report_json(report, invariants)))
    else:
        draw_card(report, invariants)
    return 0 if all(invariants.values()) else 1


async def _play_on(script: Script, consortium: Consortium, chain: Chain, watch: Watch, began: float) -> Report:
    """Start the programs, play the story, gather the facts."""
    watch.say("starting business server, message centre and rights server")
    await _open_campaigns(script, consortium, chain)
    quota = script.plan.quotas.get(script.plan.shared, 0)
    doors = await consortium.open_rights(
        Wishes(
            rate_per_s=script.rate_per_s,
            store=script.store,
            shares={script.plan.shared: (BASIS, min(quota, ORDER_PENCE_MAX))} if quota else {},
            prices={item: PRICES[item] for item in SERVER_ITEMS},
            queue={"attempts_max": ATTEMPTS_MAX},
        )
    )
    started = time.monotonic()

    async with (
        open_shop(doors.business_url) as shop,
        open_link(doors.center, token=doors.center_token, name="demo") as center,
        open_link(doors.center, token=doors.center_token, name="demo-watch") as watching,
    ):
        performance = Performance(script, consortium, chain, shop, center, watch)
        server = performance.signer.address
        performance.before = figures_of(await chain.ask("totals", {"server": server}))
        performance.first_height = await chain.height_at(next(iter(consortium.urls))) + 1
        with single_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(performance.sample_forever, watching)
                await performance.play()
                nursery.cancel_scope.cancel()
        played = time.monotonic()
        watch.say("comparing the nodes")
        look = Look(script, consortium, chain, center)
        facts: Facts = await gather_facts(look, performance)
        return Report(
            facts=facts,
            intake=performance.intake,
            source=script.source,
            seed=script.seed,
            store=script.store,
            proven_count=await prove_receipts(look, facts),
            start_s=started - began,
            play_s=played - started,
            place=consortium.place,
        )


async def _open_campaigns(script: Script, consortium: Consortium, chain: Chain) -> None:
    """Open the campaigns and set the prices, as the business server's account."""
    signer = business_signer(consortium)
    for campaign, quota in script.plan.quotas.items():
        await chain.call(signer, "open_campaign", {"campaign": campaign, "quota": quota})
    for item, price in PRICES.items():
        await chain.call(signer, "set_price", {"item": item, "price": price})


def _first_orders(book: OrderBook, limit: int) -> OrderBook:
    orders = book.orders[:limit]
    numbers = {order.number for order in orders}
    return replace(
        book, orders=orders, cancellations=tuple(item for item in book.cancellations if item.order in numbers)
    )
