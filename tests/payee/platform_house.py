"""A platform program in this process, with its socket and HTTP, beside a real account system, on a node."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio

from services.accounts.config import AccountsFile, accounts_settings
from services.accounts.program import serve as serve_accounts
from services.client.keystore import Signer
from services.local.link import LocalLink
from services.payee.identity import identity_text
from services.payee.interfaces import Draft, DraftRecord, NoParams, PlatformStatus, RecordPut, Rotate, Rotated
from services.payee.platform import PlatformSettings, open_platform, serve
from tests.contracts.domain.payees import identity
from tests.payee.platform_world import ACQUIRING, CONSORTIUM, PlatformWorld, platform_world, signed

TOKEN = "t" * 20


class House:
    """A platform program beside a real account system, on a node."""

    def __init__(self, world: PlatformWorld, settings: PlatformSettings, port: int) -> None:
        self.world = world
        self.settings = settings
        self.url = f"http://127.0.0.1:{port}"
        self.link = LocalLink(settings.socket)


def settings_of(world: PlatformWorld, accounts_url: str) -> PlatformSettings:
    return PlatformSettings(
        server="wallet-p",
        run=world.folder / "run",
        data=world.folder / "data",
        key_file=world.folder / "vault.key",
        host="127.0.0.1",
        port=0,
        token=TOKEN,
        host_names=frozenset(),
        accounts_url=accounts_url,
        accounts_token="",
        genesis=CONSORTIUM.genesis,
        nodes=(world.node.url,),
        signer=Signer.of("wallet-p", CONSORTIUM.account_keys["wallet-p"]),
    )


@asynccontextmanager
async def running_platform(world: PlatformWorld, settings: PlatformSettings) -> AsyncIterator[House]:
    """Run the program for the time of the block."""
    stopping, ended = trio.Event(), trio.Event()

    async def run(task_status: trio.TaskStatus[int]) -> None:
        async with open_platform(settings, now_ms=world.clock) as platform:
            await serve(settings, platform, stopping, task_status=task_status)
        ended.set()

    async with trio.open_nursery() as nursery:
        made = House(world, settings, await nursery.start(run))
        try:
            async with made.link:
                yield made
        finally:
            stopping.set()
            with trio.move_on_after(10, shield=True):
                await ended.wait()


@asynccontextmanager
async def house(folder: Path) -> AsyncIterator[House]:
    """Give a platform with an epoch, and an account system where user-b has money."""
    async with platform_world(folder) as world, trio.open_nursery() as nursery:
        stopping = trio.Event()
        file = AccountsFile(listen="127.0.0.1:0")
        home = folder / "accounts"
        home.mkdir()
        accounts = accounts_settings(home, file)
        port = await nursery.start(lambda task_status: serve_accounts(accounts, stopping, task_status=task_status))
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(trust_env=False) as bank:
            names = [{"id": name, "currency": "CNY"} for name in ("user-b", "merchant-m")]
            (await bank.post(f"{url}/accounts", json={"accounts": names})).raise_for_status()
            deposit = {"reference": "d", "amount": 100_000}
            (await bank.post(f"{url}/accounts/user-b/deposits", json=deposit)).raise_for_status()
        async with running_platform(world, settings_of(world, url)) as found:
            await until_registered(found)
            await found.link.call("rotate", Rotate(["bank-a", "issuer-c"]), Rotated)
            yield found
        stopping.set()


async def until_registered(found: House) -> PlatformStatus:
    with trio.fail_after(10):
        while True:
            status = await found.link.call("status", NoParams(), PlatformStatus)
            if (await found.world.client.state("payees/platform/wallet-p")).value is not None:
                return status
            await trio.lowlevel.checkpoint()


async def add(found: House) -> RecordPut:
    """Add merchant 0's record over the socket."""
    draft = await found.link.call("draft_record", DraftRecord(identity_text(identity(0)), ACQUIRING), Draft)
    return await found.link.call("put_record", signed(found.world, draft), RecordPut)
