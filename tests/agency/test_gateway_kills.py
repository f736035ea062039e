"""A gateway that dies at each of its writes, before it or right after it: nothing is lost, nothing is doubled."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from services.agency.gateway import serve
from services.agency.interfaces import Done, Next, OutcomesNext, PackagesNext, PackageState, RootQuery
from services.client.errors import Refused, Unreachable
from services.local.link import LocalLink
from tests.agency.test_gateway import log_count, sent_messages
from tests.agency.world import (
    BANK,
    ISSUER,
    Killed,
    MemoryStore,
    World,
    answer_to,
    application,
    package_of,
    submit,
    submit_of,
    world,
)
from tests.rights.server_world import pause

T = TypeVar("T")


async def keep_alive(found: World, organisation: str, store: MemoryStore, stopping: trio.Event) -> None:
    """Run a gateway, and run it again whenever it has died."""
    while not stopping.is_set():
        try:
            await serve(found.settings(organisation), store, stopping, now_ms=found.clock.now_ms)
        except Killed:
            store.deaths += 1


async def insist(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask a program that may die meanwhile, until it has answered."""
    while True:
        try:
            return await ask()
        except (Unreachable, Refused):
            await pause()


async def trade(bank: LocalLink, issuer: LocalLink, number: int) -> bytes:
    """Bring one package there and back; return its root once its answer is anchored."""
    orders = [application(10 * number + place) for place in range(3)]
    submitted = await insist(lambda: submit(bank, *orders, batch=f"batch-{number}"))
    root = submitted.packages[0].root

    async def answer() -> None:
        page = await issuer.call("packages_next", Next(number, 1_000, 1), PackagesNext)
        answered = answer_to(package_of(page.items[0]))
        await issuer.call("answer_submit", submit_of(answered), Done)

    async def is_anchored() -> None:
        state = await bank.call("package", RootQuery(root), PackageState)
        if not state.rounds or state.rounds[0].status != "MUTUAL":
            raise Unreachable("not yet")

    await insist(answer)
    await insist(is_anchored)
    return root


@pytest.mark.parametrize("is_written", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("dying", [BANK, ISSUER])
async def test_killed_at_every_write(tmp_path: Path, dying: str, is_written: bool) -> None:
    stores = {BANK: MemoryStore(), ISSUER: MemoryStore()}
    mortal = stores[dying]
    mortal.is_written = is_written
    async with world(tmp_path) as found, trio.open_nursery() as nursery:
        stopping = trio.Event()
        for name, store in stores.items():
            nursery.start_soon(keep_alive, found, name, store, stopping)
        bank, issuer = (LocalLink(found.settings(name).socket) for name in (BANK, ISSUER))
        roots: list[bytes] = []
        with trio.fail_after(60):
            while mortal.deaths == len(roots):  # until a package needs fewer writes than the one to die at
                mortal.dies_at = mortal.writes + len(roots) + 1
                roots.append(await trade(bank, issuer, len(roots)))
            news = (await insist(lambda: bank.call("outcomes_next", Next(0, 0, 64), OutcomesNext))).items
        told = [(item.kind, item.root) for item in news if item.kind in {"answered", "anchored"}]
        assert sorted(told) == sorted((kind, root) for kind in ("answered", "anchored") for root in roots)
        assert await log_count(found) == len(roots)
        assert [len(sent_messages(found, name)) for name in (BANK, ISSUER)] == [len(roots), len(roots)]
        assert mortal.deaths >= 3
        for link in (bank, issuer):
            await link.aclose()
        stopping.set()
