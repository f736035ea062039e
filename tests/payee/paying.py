"""A payer's whole surroundings in one process: a node with RPC, its environment, a platform with HTTP, a bank."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from node.environment import EnvironmentLink
from node.payees import PayeeDesk
from node.proofs import ProofMaker
from services.client.keystore import Signer
from services.payee.enclave import Environment
from services.payee.link import PlatformLink, open_platform
from services.payee.payer import Payer, delegated_signer
from services.payee.platform import PlatformSettings, serve
from services.payee.resolver import Resolver
from tests.contracts.domain.payees import MEASUREMENT
from tests.node.payee_site import SETTINGS, Puppet
from tests.payee.platform_world import CONSORTIUM, Owner, PlatformWorld, platform_world
from tests.payee.resolving import environment_keys

TOKEN = "payers-token"
TIMEOUT_S = 60


@dataclass
class Doors:
    """One running platform, as its payers reach it."""

    owner: Owner
    url: str
    stopping: trio.Event


@dataclass
class Street:
    """Everything; ``doors`` by platform."""

    world: PlatformWorld
    folder: Path
    programs: trio.Nursery
    stack: AsyncExitStack
    doors: dict[str, Doors] = field(default_factory=dict)
    _environment: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def open(self, server: str) -> Owner:
        """Run a platform with an epoch for the environment bank-a until the street is left."""
        owner = await self.stack.enter_async_context(self.world.platform(server))
        await owner.begin("bank-a")
        home = self.folder / server
        settings = PlatformSettings(
            server=server,
            run=home / "run",
            data=home / "data",
            key_file=home / "vault.key",
            host="127.0.0.1",
            port=0,
            token=TOKEN,
            host_names=frozenset(),
            accounts_url="",
            accounts_token="",
            genesis=CONSORTIUM.genesis,
            nodes=(),
            signer=Signer.of(server, CONSORTIUM.account_keys[server]),
            log_level="error",
        )
        (home / "run").mkdir()
        stopping = trio.Event()
        port = await self.programs.start(serve, settings, owner.platform, stopping)
        self.doors[server] = Doors(owner, f"http://127.0.0.1:{port}", stopping)
        return owner

    async def run_environment(self, puppet: Puppet, *, task_status: trio.TaskStatus[None]) -> None:
        """Run the node's environment until it is stopped."""
        with self._environment:
            await puppet.run(self.folder / "run" / "environment.sock", task_status=task_status)

    def stop_environment(self) -> None:
        """End the node's environment, with its connections."""
        self._environment.cancel()

    @asynccontextmanager
    async def payer(self, server: str = "wallet-p") -> AsyncIterator[Payer]:
        """Give a payer's client of a platform."""
        async with open_platform(self.doors[server].url, token=TOKEN) as link:
            yield await self.payer_over(link, server)

    async def payer_over(self, link: PlatformLink, server: str = "wallet-p") -> Payer:
        """Return a payer's client over a link."""
        client, clock = self.world.client, self.world.clock
        resolver = Resolver(client, await delegated_signer(link, server), now_ms=clock, random_bytes=bytes)
        return Payer(resolver, link, chain_id=client.chain_id, now_ms=clock, random_bytes=bytes)


@asynccontextmanager
async def make_street(folder: Path) -> AsyncIterator[Street]:
    """Give a node with an environment, merchants 0 and 1, and wallet-p with a record of merchant 0."""
    with trio.fail_after(TIMEOUT_S):
        async with platform_world(folder, merchants=2) as world, trio.open_nursery() as nursery:
            (folder / "run").mkdir()
            (folder / "environment.toml").write_text(SETTINGS)
            node = world.node
            link = EnvironmentLink(folder / "environment.toml", node.chain.chain_id)
            node.backend.payees = PayeeDesk(node.chain, ProofMaker(node.chain), link, node.backend.settled)
            environment = Environment(
                CONSORTIUM.genesis,
                "bank-a",
                environment_keys("bank-a"),
                measurement=MEASUREMENT,
                clock_ms=world.clock,
            )
            nursery.start_soon(link.run)
            async with AsyncExitStack() as stack, trio.open_nursery() as programs:
                street = Street(world, folder, programs, stack)
                await programs.start(street.run_environment, Puppet(environment))
                await (await street.open("wallet-p")).add()
                yield street
                street.stop_environment()
                for doors in street.doors.values():
                    doors.stopping.set()
            nursery.cancel_scope.cancel()
