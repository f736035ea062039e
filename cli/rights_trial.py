"""A trial network with the rights system's programs on it: what the rights demo and its benchmark run on."""

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from cli.rights_plan import plan_of
from consensus.ledger.genesis import Genesis
from consensus.ledger.keys import PrivateKey
from node.network import programs
from node.network.homes import LocalNetwork
from node.network.trial import TrialNetwork, trial_network
from services.client.client import open_client
from services.client.keystore import Signer
from services.demo.network import Doors, Wishes
from services.rights.config import (
    BusinessFile,
    CenterFile,
    F,
    ServerFile,
    ShareFile,
    read_service,
    read_token,
    write_service,
)
from services.rights.setup import set_up

SYSTEM = "rights"
SHOP = "shop"
"""The identity whose account is the business server's."""


class RightsTrial:
    """A running trial network, the three programs, and the accidents that all may meet."""

    def __init__(self, trial: TrialNetwork) -> None:
        self.trial = trial

    @property
    def network(self) -> LocalNetwork:
        """The network's folder and nodes."""
        return self.trial.network

    @property
    def genesis(self) -> Genesis:
        """The genesis document."""
        return self.trial.genesis

    @property
    def urls(self) -> dict[str, str]:
        """Each validator's RPC root, in order."""
        return self.trial.urls

    @property
    def place(self) -> str:
        """Where the network lives, and whether it stays."""
        return self.trial.place

    def key(self, identity: str) -> PrivateKey:
        """Return the key of an identity; ``unknown_identity`` as :meth:`TrialNetwork.key`."""
        return self.trial.key(identity)

    async def start(self, name: str) -> None:
        """Start a node and return when it is ready."""
        await self.trial.start(name)

    async def kill(self, name: str) -> None:
        """End a node with SIGKILL."""
        await self.trial.kill(name)

    def freeze(self, name: str) -> None:
        """Freeze a node with SIGSTOP."""
        self.trial.freeze(name)

    def resume(self, name: str) -> None:
        """Wake a frozen node."""
        self.trial.resume(name)

    async def open_rights(self, wishes: Wishes) -> Doors:
        """Set the rights system up and run its three programs so, ending those that run otherwise.

        Raises:
            LocalError, Refused, Unreachable: as :func:`services.rights.setup.set_up` and
                :func:`node.network.programs.start`.
        """
        await self.stop_programs()
        center_home, business_home, server_home = await self._set_up(wishes)
        center = replace_fields(center_home, CenterFile, queue=dict(wishes.queue))
        if wishes.is_fresh:
            shutil.rmtree(center_home / center.data, ignore_errors=True)
        direct = SHOP if wishes.is_direct or wishes.is_direct_strict else ""
        business = replace_fields(business_home, BusinessFile, direct=direct, direct_strict=wishes.is_direct_strict)
        shares = {campaign: ShareFile(basis_points, cap) for campaign, (basis_points, cap) in wishes.shares.items()}
        changes = {"shares": shares, "prices": dict(wishes.prices), "linger_ms": wishes.linger_ms}
        replace_fields(server_home, ServerFile, **changes)
        await programs.start(self.network, self.all_programs)
        return Doors(f"http://{business.listen}", center.listen, read_token(center_home, "token", center.token))

    async def _set_up(self, wishes: Wishes) -> Sequence[Path]:
        plan = plan_of(self.network, rate_per_s=wishes.rate_per_s, store=wishes.store, is_strict=wishes.is_strict)
        async with open_client(self.genesis, list(self.urls.values())) as client:
            return (await set_up(client, Signer.of(SHOP, self.key(SHOP)), plan)).homes

    @property
    def all_programs(self) -> list[programs.Program]:
        """The programs that are set up, in the order in which they start."""
        return programs.find_programs(self.network, SYSTEM)

    def program(self, name: str) -> programs.Program:
        """Return a program by its name; ``unknown_program`` as :func:`node.network.programs.find_program`."""
        return programs.find_program(self.network, name)

    async def start_program(self, name: str) -> None:
        """Start a program that does not run and return when it is ready."""
        await programs.start(self.network, [self.program(name)])

    async def stop_program(self, name: str) -> None:
        """End a program in order."""
        await programs.stop(self.network, [self.program(name)])

    async def kill_program(self, name: str) -> None:
        """End a program with SIGKILL."""
        await programs.kill(self.program(name))

    async def stop_programs(self) -> None:
        """End all programs in order, those that start last first."""
        await programs.stop(self.network, self.all_programs)


def replace_fields(home: Path, kind: type[F], **changes: object) -> F:
    """Change fields of a program's ``service.toml`` and return what it says now."""
    file = msgspec.structs.replace(read_service(home, kind), **changes)
    write_service(home, file)
    return file


@asynccontextmanager
async def rights_trial(folder: Path | None = None, *, keep: bool = False) -> AsyncIterator[RightsTrial]:
    """Give a running trial network for the time of the block; its programs end with it, unless it is kept or was.

    Arguments and errors as :func:`node.network.trial.trial_network`.
    """
    async with trial_network(folder, keep=keep) as trial:
        rights = RightsTrial(trial)
        ran_before = any(item.pid is not None for item in programs.status(rights.all_programs))
        is_left = False
        try:
            yield rights
            is_left = keep or ran_before
        finally:
            if not is_left:
                with trio.CancelScope(shield=True):
                    await rights.stop_programs()
