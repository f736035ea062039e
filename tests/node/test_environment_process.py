"""A node and the program of a trusted environment: a process of its own that is stopped, killed and started again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from consensus.ledger.errors import PeerError
from node.driver import Commit
from services.payee.enclave_link import ask_quote
from services.payee.enclave_program import EnclaveSettings
from services.payee.measurement import measure
from tests.node.payee_site import Site, make_site
from tests.node.support import extend

pytestmark = [pytest.mark.network, pytest.mark.slow]

NAME = "bank-a-2"
NOBODY = 65_534


@asynccontextmanager
async def running(site: Site, user: int | None = None) -> AsyncIterator[trio.Process]:
    """Run the program until the block ends."""
    home = site.home / "program"
    genesis = home / "genesis.json"
    genesis.parent.mkdir(exist_ok=True)
    genesis.write_bytes(site.world.chain.genesis.to_json())
    settings = EnclaveSettings(
        name=NAME,
        genesis=str(genesis),
        data=str(home / "data"),
        machine=str(home / "data" / "machine.key"),
        run=str(home / "run"),
        socket=str(home / "run" / "environment.sock"),
        uid=user,
        gid=user,
        group=None,
        log_level="info",
    )
    command = [sys.executable, "-m", "services.payee.enclave_program", msgspec.json.encode(settings).decode()]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        said = b""
        while b'"ready"' not in said:
            part = await process.stderr.receive_some()
            assert part, said.decode()
            said += part
        yield process
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stderr.aclose()


def catch_up(site: Site) -> None:
    """Bring the chain to the present, for an environment that knows the time."""
    node = site.node
    node.clock.ms = time.time_ns() // 1_000_000
    candidate = extend(
        node.chain, node.store, node.consortium, [], step_ms=node.clock.ms - node.chain.head.header.time_ms
    )
    node.backend.on_commit(Commit(candidate, node.consortium.certify(candidate)))


async def register(site: Site) -> None:
    """Let the chain know the environment that runs."""
    asked = await ask_quote(site.home / "program" / "run" / "environment.sock", site.node.chain.chain_id)
    quote = asked.quote
    site.world.call("permission", "allow_measurement", measurement=measure(), note="the program as it is")
    site.world.call(
        "bank-a",
        "register_environment",
        name=NAME,
        exchange_key=quote.exchange_key,
        signing_key=quote.signing_key,
        measurement=quote.measurement,
    )
    site.take()
    catch_up(site)


def configure(site: Site, more: str = "") -> None:
    site.configure(f'name = "{NAME}"\nsocket = "program/run/environment.sock"\n{more}')


async def code_of(site: Site) -> str:
    try:
        found = await site.resolve()
    except PeerError as error:
        return error.code
    assert site.opened(found) == ("missing_key", []), "it was given no epoch's key"
    return ""


async def test_stopped_killed_and_started_again(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with make_site(tmp_path) as site:
            site.kill()
            configure(site)
            async with running(site) as process:
                assert await code_of(site) == "environment_refused", "the chain does not know it"
                await register(site)
                assert await code_of(site) == ""
                process.send_signal(signal.SIGSTOP)
                codes: list[str] = []

                async def ask() -> None:
                    codes.append(await code_of(site))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask)
                    await wait_all_tasks_blocked()
                    assert codes == []
                    process.kill()
                assert codes == ["environment_down"]
                await process.wait()
                assert await code_of(site) == "environment_down"
            async with running(site) as process:
                catch_up(site)
                assert await code_of(site) == "", "its keys are those of before"
                process.terminate()
                assert await process.wait() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start an environment as another user")
async def test_a_user_of_its_own(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with make_site(tmp_path) as site:
            site.kill()
            configure(site)
            async with running(site, NOBODY):
                await register(site)
                assert await code_of(site) == "environment_refused"
                configure(site, f"user = {NOBODY}\n")
                assert await code_of(site) == ""
                report = await site.desk.report()
                assert (report.code, report.user) == ("", NOBODY)
