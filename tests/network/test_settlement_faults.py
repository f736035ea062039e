"""Settlement on real processes: killed between two programs, nodes that freeze and lie, centre and database away."""

import re
from pathlib import Path

import pytest
import trio

from bench.postgres import PostgresCluster, has_postgres
from services.demo.settlement_network import ACCOUNTS, CENTER, EVENTS, PAYER, Wishes
from services.settlement.config import EventsFile
from services.settlement.states import State
from tests.network.settlement_faults import Boundary, boundaries, cross
from tests.network.settlement_proxy import Side, Way
from tests.network.settlement_system import LINKS, NODE, TRADER, System, change_file, running_settlement

pytestmark = [pytest.mark.network, pytest.mark.slow]

CHOSEN = (
    ("trader-events", TRADER),  # registered, and its maker does not know it
    ("trader-accounts", ACCOUNTS),  # money is held, and nobody knows it
    ("payer-accounts", PAYER),  # paid, and nobody knows it
    ("payer-events", EVENTS),  # completed, and the payer does not know it
)
"""A way and who dies on it, before the first answer is handed on. ``make settlement-faults`` plays all there are."""


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> PostgresCluster | None:
    """The PostgreSQL of the session, None where there is none."""
    return request.getfixturevalue("postgres_server") if has_postgres() else None


def test_every_way_has_its_boundaries_and_all_kinds_of_victims() -> None:
    counts = {(link.name, way): 2 for link in LINKS for way in Way}
    found = list(boundaries(counts))
    assert len(found) == len(set(found)) == len(LINKS) * 2 * 2 * 2 * 2
    assert {boundary.victim for boundary in found} == {TRADER, ACCOUNTS, CENTER, EVENTS, PAYER, NODE}


async def test_whatever_happens_between_two_programs_both_move_or_neither(
    tmp_path: Path, server: PostgresCluster | None
) -> None:
    async with running_settlement(tmp_path / "net", has_proxies=True) as system:
        links = {link.name: link for link in LINKS}
        for name, victim in CHOSEN:
            boundary = Boundary(links[name], Way.ANSWER, Side.BEFORE, 1, victim)
            assert await cross(system, boundary, f"cross-{name}"), boundary
        await frozen_node(system)
        await center_away(system)
        await lying_node(system)
        assert await system.faults() == []
        if server is not None:
            await system.begin_anew(Wishes(database=server.new_database()))
            await database_restarted(system, server)
            assert await system.faults() == []


async def frozen_node(system: System) -> None:
    """The node that is asked first stops in the middle: others answer, and it comes back behind."""
    deals = system.draw("frozen-node", 5)
    system.freeze(NODE)
    await system.till.trade(deals)
    system.resume(NODE)


async def center_away(system: System) -> None:
    """While the message centre is away units move, nothing is paid and nothing is lost."""
    deals = system.draw("no-center", 5)
    await system.kill(CENTER)
    await system.till.place(deals)
    for deal in deals:
        await system.till.until(deal.event, lambda event: event.state is State.ACCOUNT_PENDING)

    async def is_told() -> bool:
        return (await system.till.status()).trouble["relay"] == "center_unreachable"

    await system.until(is_told)
    await system.start(CENTER)
    for deal in deals:
        assert (await system.till.end(deal.event)).event.state is State.COMPLETED


async def lying_node(system: System) -> None:
    """A node alters the receipts that it shows: the scan, which is all that runs, goes by the others and names it."""
    proxy = system.proxies["events-node"]
    proxy.alter = lie
    await system.trial.stop_program(EVENTS)
    change_file(system.trial, EVENTS, EventsFile, relay=False)
    await system.trial.start_program(EVENTS)
    deals = system.draw("liar", 5)
    await system.till.trade(deals)
    proxy.alter = bytes
    log = (system.trial.program(EVENTS).process.log_file).read_text("utf-8")
    assert re.search(f'"node": "{NODE}".*node lies|node lies.*"node": "{NODE}"', log)


def lie(answer: bytes) -> bytes:
    """Change the last digit of each receipt that stands in an answer."""
    return re.sub(
        rb'("receipt":"0x[0-9a-f]+)([0-9a-f])"',
        lambda found: found[1] + (b"1" if found[2] == b"0" else b"0") + b'"',
        answer,
    )


async def database_restarted(system: System, server: PostgresCluster) -> None:
    """The database of event system and account system dies under load and comes back."""
    deals = system.draw("restart", 60)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(system.till.place, deals[:30])
        nursery.start_soon(system.till.place, deals[30:])
        await trio.to_thread.run_sync(server.stop)
        await trio.to_thread.run_sync(server.start)
    await system.till.trade(deals)
