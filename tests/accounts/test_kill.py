"""An account system's process, killed while requests are under way: what was answered is there, nothing is torn."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from services.accounts.config import AccountsFile
from services.accounts.link import AccountsLink, open_accounts
from services.accounts.port import Answer, Operation, Order, Standing
from services.client.errors import Unreachable
from services.local.files import write_service
from tests.accounts.support import PAY, RELEASE, RESERVE, order

pytestmark = [pytest.mark.slow, pytest.mark.network]
REPOSITORY = Path(__file__).resolve().parents[2]
WAIT_S = 60
CLIENTS = 6


@asynccontextmanager
async def program(home: Path) -> AsyncIterator[tuple[AccountsLink, trio.Process]]:
    """Run the program until the block ends, by whatever means; give a link to it."""
    command = [sys.executable, "-m", "cli.main", "settle", "accounts", "serve", "--home", str(home)]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stderr is not None
    try:
        said = b""
        with trio.fail_after(WAIT_S):
            while b'"event": "ready"' not in said:
                part = await process.stderr.receive_some()
                assert part, said.decode()
                said += part
        port = next(line["port"] for line in map(json.loads, said.splitlines()) if line["event"] == "ready")
        async with open_accounts(f"http://127.0.0.1:{port}") as link:
            yield link, process
    finally:
        if process.poll() is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stderr.aclose()


class Load:
    """Batches of orders by several clients at once; what was answered, and what was not, by batch."""

    def __init__(self) -> None:
        self.answered: dict[tuple[str, Operation], Answer] = {}
        self.unanswered: list[list[Order]] = []
        self._number = 0

    def _batch(self) -> list[Order]:
        self._number += 1
        events = [f"t-{self._number}-{number}" for number in range(30)]
        second = RELEASE if self._number % 3 == 0 else PAY
        return [order(step, event, amount=1) for event in events for step in (RESERVE, second)]

    async def run(self, link: AccountsLink, process: trio.Process, kill_after: int) -> None:
        """Ask until the program is killed, which it is once so many batches were answered."""
        count = 0

        async def client() -> None:
            nonlocal count
            while True:
                batch = self._batch()
                try:
                    answers = await link.run(batch)
                except Unreachable:
                    self.unanswered.append(batch)
                    return
                self.answered |= {(answer.event, answer.operation): answer for answer in answers}
                count += 1
                if count == kill_after:
                    process.kill()

        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(client)


def is_done(standing: Standing | None, operation: Operation) -> bool:
    assert standing is None or (standing.reserved_ms and (standing.paid_ms or standing.released_ms))
    return standing is not None and bool(standing.paid_ms if operation is PAY else standing.released_ms)


async def check(link: AccountsLink, load: Load) -> int:
    """See every answer again, each unanswered batch whole or not at all; return how many were done unheard."""
    asked = [order(operation, event, amount=1) for event, operation in load.answered]
    for start in range(0, len(asked), 1_000):
        part = asked[start : start + 1_000]
        assert await link.run(part) == [load.answered[one.event, one.operation] for one in part]
    unheard = 0
    for batch in load.unanswered:
        done = [
            is_done(*pair)
            for pair in zip(
                await link.look_up([one.event for one in batch[1::2]]),
                [one.operation for one in batch[1::2]],
                strict=True,
            )
        ]
        assert len(set(done)) == 1
        unheard += done[0]
        answers = await link.run(batch)
        assert all(answer.is_done for answer in answers)
        load.answered |= {(answer.event, answer.operation): answer for answer in answers}
    load.unanswered.clear()
    return unheard


@pytest.mark.parametrize(("backend", "kills"), [("sqlite", 1), ("postgres", 1)])
async def test_killed_in_the_middle_of_batches(
    backend: str, kills: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    database = "embedded" if backend == "sqlite" else str(request.getfixturevalue("postgres_url"))
    write_service(tmp_path, AccountsFile(listen="127.0.0.1:0", database=database))
    load, draw, unheard = Load(), random.Random(5), 0
    for _ in range(kills):
        async with program(tmp_path) as (link, process):
            await link.open([("buyer", "CNY"), ("shop", "CNY")])
            await link.deposit("buyer", 10**6, key="opening")
            unheard += await check(link, load)
            await load.run(link, process, draw.randrange(3, 12))
    async with program(tmp_path) as (link, process):
        unheard += await check(link, load)
        paid = sum(1 for _, operation in load.answered if operation is PAY)
        buyer, shop = await link.accounts()
        assert (buyer.available, buyer.held, shop.available, shop.held) == (10**6 - paid, 0, paid, 0)
        after, postings = 0, 0
        while page := await link.entries(from_ms=0, until_ms=1 << 62, after=after, limit=1_000):
            postings += len(page.items)
            if not (after := page.next):
                break
        assert postings == len(load.answered) + 1  # each operation once, and the deposit
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(WAIT_S):
            assert await process.wait() == 0
    assert unheard <= kills * CLIENTS
