"""A trial network with service party, watcher and payers: what the stream demo, its benchmark and tests run on."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from cli.stream_plan import plan_of
from cli.trial import ProgramsTrial
from consensus.ledger.errors import LocalError
from node.network import programs
from node.network.local import environment, node_process
from node.network.process import LocalProcess
from node.network.trial import TrialNetwork, trial_network
from services.client.client import open_client
from services.client.keystore import Signer
from services.demo.stream_network import SERVICE_PROGRAM, Doors, ServiceDoor
from services.local.files import SERVICE_FILE
from services.stream.setup import ISSUER, Prepared, set_up

WORDS_LINES = 8
"""How much of a payer's last words is read."""


class StreamTrial(ProgramsTrial):
    """A running trial network, the programs of payment streams, payers' processes, and the accidents of all of them."""

    SYSTEM = "stream"

    def __init__(self, trial: TrialNetwork) -> None:
        super().__init__(trial)
        self._payers: dict[bytes, LocalProcess] = {}

    @property
    def genesis_file(self) -> Path:
        """Where the genesis document stands."""
        return self.network.genesis_path

    @property
    def payers(self) -> Path:
        """The folder of what payers keep."""
        return self.network.folder / "streams"

    async def open_streams(self, **changes: object) -> Doors:
        """Set payment streams up and run both programs, anew where their files say something else now.

        Raises:
            LocalError, Refused, Unreachable: as :func:`services.stream.setup.set_up` and
                :func:`node.network.programs.start`.
        """
        prepared = await self._set_up(changes)
        await self.start_programs()
        return Doors(prepared.service, prepared.watcher, prepared.service_url)

    async def open_service(self, **changes: object) -> ServiceDoor:
        """Set payment streams up and run the service party alone, without a watcher; errors as :meth:`open_streams`."""
        prepared = await self._set_up({"watcher": "", **changes})
        await self.start_program(SERVICE_PROGRAM)
        program = self.program(SERVICE_PROGRAM)
        pid = program.process.pid()
        if pid is None:
            raise LocalError("program_exited", f"{SERVICE_PROGRAM} has ended: {program.process.ending().words}")
        return ServiceDoor(prepared.service_url, pid, program.folder)

    async def _set_up(self, changes: dict[str, object]) -> Prepared:
        issuer = Signer.of(ISSUER, self.key(ISSUER))
        async with open_client(self.genesis, list(self.urls.values())) as client:
            prepared = await set_up(client, issuer, plan_of(self.network, changes=changes))
        outdated = [item for item in self.all_programs if f"{item.name}/{SERVICE_FILE}" in prepared.done]
        await programs.stop(self.network, outdated)
        return prepared

    # -- payers ----------------------------------------------------------------------------------------

    def start_payer(self, stream: bytes, account: str) -> None:
        """Start a process that pays a stream until it ends; one that runs stays."""
        self._payers.setdefault(stream, self._payer(stream, account)).start(environment())

    async def kill_payer(self, stream: bytes) -> None:
        """End a payer's process with SIGKILL; one that has ended by itself stays so."""
        await self._payers[stream].kill()

    def payer_words(self, stream: bytes) -> str | None:
        """Return what a payer's process that has ended said last, None while it runs."""
        process = self._payers[stream]
        return process.log_tail(lines=WORDS_LINES) if process.pid() is None else None

    def _payer(self, stream: bytes, account: str) -> LocalProcess:
        folder = self.payers / "processes"
        name = f"pay-{stream.hex()[:16]}"
        command = ("stream", "pay", f"0x{stream.hex()}", "--as", account, "--network", str(self.network.folder))
        arguments = (sys.executable, "-m", "cli.main", *command, "--json")
        return LocalProcess(name, arguments, folder / f"{name}.pid", folder / f"{name}.log")

    @asynccontextmanager
    async def payers_ended(self) -> AsyncIterator[None]:
        """End all payers' processes with the block."""
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                for process in self._payers.values():
                    await process.kill()
                    process.pid_file.unlink(missing_ok=True)

    def processes(self) -> dict[str, list[int]]:
        """Return the pids of those that run: ``nodes`` and ``service``."""
        nodes = [node_process(node).pid() for node in self.network.nodes]
        service = [item.process.pid() for item in self.all_programs if item.name == SERVICE_PROGRAM]
        return {
            kind: [pid for pid in pids if pid is not None] for kind, pids in (("nodes", nodes), ("service", service))
        }


@asynccontextmanager
async def stream_trial(folder: Path | None = None, *, keep: bool = False) -> AsyncIterator[StreamTrial]:
    """Give a running trial network for the time of the block; its programs end with it, unless it is kept or was.

    Arguments and errors as :func:`node.network.trial.trial_network`.
    """
    async with trial_network(folder, keep=keep) as trial:
        stream = StreamTrial(trial)
        async with stream.ended_with(keep=keep), stream.payers_ended():
            yield stream
