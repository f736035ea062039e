"""A trial network with platforms and environments on it: what the payee demo, its benchmark and tests run on."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from cli.payee_plan import plan_of
from cli.trial import ProgramsTrial
from node.network import programs
from node.network.local import node_process
from node.network.traces import file_traces, traces_of
from node.network.trial import trial_network
from services.client.client import Client, open_client
from services.client.keystore import read_passphrase
from services.demo.payee_network import Doors, Payers
from services.messages.config import read_token
from services.payee.merchants import FOLDER
from services.payee.setup import TOKEN_FILE, finish, register, set_up


class PayeeTrial(ProgramsTrial):
    """A running trial network, platforms and environments, and the accidents that they may meet."""

    SYSTEM = "payee"

    @property
    def genesis_file(self) -> Path:
        """Where the genesis document stands."""
        return self.network.genesis_path

    @property
    def merchants(self) -> Path:
        """The folder of merchants' keys."""
        return self.network.folder / FOLDER

    @property
    def passphrase(self) -> bytes:
        """What merchants' keys are encrypted with."""
        return read_passphrase(self.network.passphrase_file)

    async def open_payee(self) -> Doors:
        """Set payee codes up and run all programs; accounts of simulated money are open, epochs begun.

        Raises:
            LocalError, Refused, Unreachable: as :func:`services.payee.setup.set_up`,
                :func:`services.payee.setup.finish` and :func:`node.network.programs.start`.
        """
        async with self._client() as client:
            prepared = await set_up(client, plan_of(self.network))
            await self.start_programs()
            await finish(client, prepared)
        services = prepared.plan.services
        tokens = {name: read_token(services / name, "token", TOKEN_FILE) for name in prepared.payers_urls}
        return Doors(
            platforms=prepared.platforms,
            payers={name: Payers(url, tokens[name]) for name, url in prepared.payers_urls.items()},
            accounts_url=prepared.accounts_url,
            accounts_token=read_token(prepared.accounts_token.parent, "token", prepared.accounts_token.name),
            measurement=prepared.measurement,
        )

    async def open_environments(self) -> None:
        """Set payee codes up and run the environments alone, registered; errors as :meth:`open_payee`."""
        async with self._client() as client:
            prepared = await set_up(client, plan_of(self.network))
            environments = [item for item in self.all_programs if item.command == programs.ENVIRONMENT]
            await programs.start(self.network, environments)
            await register(client, prepared)

    def processes(self) -> dict[str, list[int]]:
        """Return the pids of those that run: ``nodes`` and ``environments``."""
        nodes = [node_process(node).pid() for node in self.network.nodes]
        environments = [item.process.pid() for item in self.all_programs if item.command == programs.ENVIRONMENT]
        found = {"nodes": nodes, "environments": environments}
        return {kind: [pid for pid in pids if pid is not None] for kind, pids in found.items()}

    def traces(self) -> Iterator[tuple[str, bytes]]:
        """Yield place and bytes of everything on the disks of stopped nodes, of programs and merchants."""
        for node in self.network.nodes:
            yield from ((trace.place, trace.data) for trace in traces_of(node))
        for folder in (self.network.folder / "services", self.merchants):
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.is_symlink():
                    place = str(path.relative_to(self.network.folder))
                    yield from ((trace.place, trace.data) for trace in file_traces(path, place))

    def _client(self) -> AbstractAsyncContextManager[Client]:
        return open_client(self.genesis, list(self.urls.values()))


@asynccontextmanager
async def payee_trial(folder: Path | None = None, *, keep: bool = False) -> AsyncIterator[PayeeTrial]:
    """Give a running trial network for the time of the block; its programs end with it, unless it is kept or was.

    Arguments and errors as :func:`node.network.trial.trial_network`.
    """
    async with trial_network(folder, keep=keep) as trial:
        payee = PayeeTrial(trial)
        async with payee.ended_with(keep=keep):
            yield payee
