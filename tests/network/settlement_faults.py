"""Settlement dies at every step between two programs: ``python -m tests.network.settlement_faults``.

A first trade is watched to learn how many pieces go over each way between two programs. Then for each piece, before
and after it is handed on, one trade is made and one of the two programs is killed with SIGKILL right there. Whatever
dies, the trade ends with units and money moved once, or with neither; a trade whose maker never comes back too.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import trio

from services.client.errors import Unreachable
from services.demo.settlement_network import AGENT, EVENTS, Wishes
from services.demo.settlement_script import Deal
from tests.network.settlement_proxy import Side, Way
from tests.network.settlement_system import HEALING_S, LINKS, NODE, TRADER, Link, System, lines, running_settlement
from tests.network.settlement_trader import Task
from tests.network.support import pass_time
from tests.test_tidy import ROOT

VALIDITY_MS = 60_000
FORSAKEN_MS = 12_000
"""Validity of trades whose maker never comes back: an event that was not released ends after it."""
PIECES_MAX = 12
"""Of one way in one direction at the most."""
ATTEMPTS_MAX = 20
LATE_S = 0.5
NODE_LINK = "events-node"


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where a trade is interrupted: at which piece of which way, on which side of it, and who dies."""

    link: Link
    way: Way
    side: Side
    number: int
    victim: str

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.victim} dies {self.side} {self.way} {self.number} of {self.link.name}"


class Maker:
    """A trader process for one trade, through the proxies; run again until nothing stands in its way."""

    def __init__(self, system: System, deal: Deal, *, validity_ms: int = VALIDITY_MS) -> None:
        trade = system.till.trade_of(deal)
        self._task = Task(
            genesis=system.trial.network.genesis_path.read_bytes(),
            nodes=[system.node_url, *system.trial.urls.values()],
            events=str(system.doors.events),
            accounts=system.doors.accounts_url,
            token=system.doors.accounts_token,
            agent=system.till.address(AGENT),
            seller=deal.seller,
            key=trade.signer.key.to_pem(None),
            event=deal.event,
            terms=trade.terms,
            validity_ms=validity_ms,
        )
        self._process: trio.Process | None = None

    async def run(self) -> int:
        """Run it once and return its exit code, below 0 where it was killed."""
        command = [sys.executable, "-m", "tests.network.settlement_trader"]
        done = partial(
            trio.lowlevel.open_process, command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=str(ROOT)
        )
        self._process = await done()
        assert self._process.stdin is not None
        async with self._process.stdin:
            await self._process.stdin.send_all(msgspec.json.encode(self._task))
        return await self._process.wait()

    async def kill(self) -> None:
        """End it with SIGKILL."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def insist(self) -> None:
        """Run it until it ends well.

        Raises:
            Unreachable: it never does.
        """
        for _ in range(ATTEMPTS_MAX):
            if await self.run() == 0:
                return
        raise Unreachable(f"{self._task.event} does not get through")


async def pieces(system: System) -> dict[tuple[str, Way], int]:
    """Watch one trade and return how many pieces go over each way, at the most ``PIECES_MAX``."""
    await Maker(system, system.draw("warm")[0]).insist()
    await system.till.end("warm-0")
    for proxy in system.proxies.values():
        proxy.reset()
    await Maker(system, system.draw("watched")[0]).insist()
    await system.till.end("watched-0")
    await system.look.ends()
    counts = {(name, way): proxy.counts[way] for name, proxy in system.proxies.items() for way in Way}
    return {key: min(count, PIECES_MAX) for key, count in counts.items()}


def boundaries(counts: dict[tuple[str, Way], int], links: Sequence[Link] = LINKS) -> Iterator[Boundary]:
    """Yield every boundary of a trade with so many pieces a way."""
    for link in links:
        for way in Way:
            for number in range(1, counts[link.name, way] + 1):
                for side in Side:
                    yield Boundary(link, way, side, number, link.caller)
                    yield Boundary(link, way, side, number, link.called)


async def cross(system: System, boundary: Boundary, name: str) -> bool:
    """Make a trade that is interrupted at a boundary, heal, and wait for its end; tell whether it got that far."""
    (deal,) = system.draw(name)
    maker = Maker(system, deal)
    proxy = system.proxies[boundary.link.name]
    kill = maker.kill if boundary.victim == TRADER else partial(system.kill, boundary.victim)
    proxy.arm(boundary.way, boundary.side, boundary.number, kill)
    happened = proxy.happened
    is_placed = False

    async def place() -> None:
        nonlocal is_placed
        is_placed = await maker.run() == 0

    async def end(scope: trio.CancelScope) -> None:
        with suppress(Unreachable):
            await system.till.end(deal.event)
        scope.cancel()

    with trio.fail_after(2 * HEALING_S):
        async with trio.open_nursery() as placing:
            placing.start_soon(place)
            async with trio.open_nursery() as waiting:
                waiting.start_soon(end, waiting.cancel_scope)
                await happened.wait()
                waiting.cancel_scope.cancel()
            # A trade has ended for its maker before its last pieces go: the payer's receipt, the end of the lien.
            with trio.move_on_after(LATE_S):
                await happened.wait()
            if not proxy.disarm():
                await happened.wait()
            if happened.is_set() and boundary.victim != TRADER:
                await system.start(boundary.victim)
        if not is_placed:
            await maker.insist()
        await system.till.end(deal.event)
    return happened.is_set()


async def forsake(system: System, boundary: Boundary, name: str) -> bool:
    """Let a trade's maker die at a boundary for ever; tell whether it got that far."""
    (deal,) = system.draw(name)
    maker = Maker(system, deal, validity_ms=FORSAKEN_MS)
    proxy = system.proxies[boundary.link.name]
    proxy.arm(boundary.way, boundary.side, boundary.number, maker.kill)
    await maker.run()
    happened = proxy.happened.is_set()
    proxy.reset()
    return happened


async def forget_unborn(system: System) -> None:
    """Drop the trades whose makers died before the event system heard of them; all others have ended."""
    waited = trio.current_time() + FORSAKEN_MS / 1_000
    while True:
        known = {event.event: event for event in await system.till.listed()}
        unborn = [deal for deal in system.deals if deal.event not in known]
        if not unborn or (trio.current_time() > waited and all(event.is_finished for event in known.values())):
            break
        await pass_time(200)
    for deal in unborn:
        system.deals.remove(deal)


async def how_it_stands(system: System, event: str) -> str:
    """Return what the event system says of a trade, for people."""
    shown = await system.till.until(event, lambda _: True)
    rows = [f"{row.state_after} {row.code} {row.why} {row.topics}" for row in shown.history]
    return f"{rows}; {await system.till.status()}"


async def run(folder: Path, *, every: int, database: str, only: str) -> list[str]:
    """Cross every boundary, or every so-manieth, and return what is wrong in the end."""
    wishes = Wishes(database=database, allow_faults=True)
    async with running_settlement(folder, wishes=wishes, has_proxies=True) as system:
        counts = await pieces(system)
        print({f"{name} {way}": count for (name, way), count in counts.items()}, flush=True)
        links = [link for link in LINKS if only in link.name]
        found: list[str] = []
        chosen = list(boundaries(counts, links))[::every]
        missed = 0
        for number, boundary in enumerate(chosen):
            began = time.monotonic()
            print(f"{boundary}", end=": ", flush=True)
            try:
                is_met = await cross(system, boundary, f"cross{number}")
            except (trio.TooSlowError, Unreachable) as error:
                found.append(f"{boundary}: {error!r}: {await how_it_stands(system, f'cross{number}-0')}")
                print(found[-1])
                continue
            missed += not is_met
            print(f"{'' if is_met else 'not met, '}{time.monotonic() - began:.1f} s", flush=True)
            if boundary.link.name == NODE_LINK and boundary.victim == NODE:
                # It goes to other nodes now, and only a new process asks the one behind the proxy first.
                await system.kill(EVENTS)
                await system.start(EVENTS)
        makers = [boundary for boundary in boundaries(counts, links) if boundary.victim == TRADER]
        for number, boundary in enumerate(makers[::every]):
            await forsake(system, boundary, f"forsaken{number}")
        print(f"{len(chosen)} boundaries, {missed} not met; {len(makers[::every])} makers gone for ever", flush=True)
        await forget_unborn(system)
        return found + await system.faults(may_cancel=True)


def main() -> int:
    """Return 0 when nothing was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.network.settlement_faults", description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="cross every so-manieth boundary alone")
    parser.add_argument("--only", default="", help="ways whose names hold this alone, for example payer")
    parser.add_argument("--database", default="", help="a PostgreSQL URL instead of SQLite files")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hansa-settle-") as folder:
        play = partial(run, Path(folder) / "net", every=given.every, database=given.database, only=given.only)
        found = trio.run(play)
    print(lines(found))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
