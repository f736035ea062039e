"""A trial network with a system's programs on it, and the accidents that nodes and programs may meet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from consensus.ledger.genesis import Genesis
from consensus.ledger.keys import PrivateKey
from node.network import programs
from node.network.homes import LocalNetwork
from node.network.trial import TrialNetwork


class ProgramsTrial:
    """A running trial network and the programs of one system."""

    SYSTEM = ""

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

    @property
    def all_programs(self) -> list[programs.Program]:
        """The programs that are set up, in the order in which they start."""
        return programs.find_programs(self.network, self.SYSTEM)

    @property
    def ran(self) -> bool:
        """Whether any of them runs."""
        return any(item.pid is not None for item in programs.status(self.all_programs))

    def program(self, name: str) -> programs.Program:
        """Return a program by its name; ``unknown_program`` as :func:`node.network.programs.find_program`."""
        return programs.find_program(self.network, name)

    async def start_programs(self) -> None:
        """Start all programs."""
        await programs.start(self.network, self.all_programs)

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

    @asynccontextmanager
    async def ended_with(self, *, keep: bool) -> AsyncIterator[None]:
        """End all programs with the block, unless they ran before or are kept after a good end."""
        ran_before = self.ran
        is_left = False
        try:
            yield
            is_left = keep or ran_before
        finally:
            if not is_left:
                with trio.CancelScope(shield=True):
                    await self.stop_programs()
