"""The programs of a service as local processes: started in order, told ready by their own word, ended in reverse.

Each lives in a folder of its own, ``NETWORK/services/NAME``, with ``service.toml``, ``data``, ``log`` and ``run``. It
is ready once ``run/ready`` holds the pid of the process that runs; a file that an earlier life has left says nothing.
Of ``service.toml`` only ``listen`` is read here: what else stands there is the program's own.
"""

import signal
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from consensus.ledger.errors import LocalError
from node.config import Endpoint
from node.network.homes import LocalNetwork
from node.network.local import READY_MS_MAX, READY_POLL_S, SETTLE_S, STOP_MS_MAX, check_port_free, environment, locked
from node.network.process import Ending, LocalProcess, ProcessState

SERVICE_FILE = "service.toml"
READY_FILE = "ready"
PID_BYTES_MAX = 32
PROGRAM_PORT_STEP = 200
"""Programs listen this far above a network's port base, on that port and those after it."""
PROGRAM_PORTS = 9
"""How many ports the programs of a network take."""

ENVIRONMENT = ("payee", "enclave", "serve")
"""The command of a trusted environment, which is an emulation without hardware isolation."""

SYSTEMS: dict[str, dict[str, tuple[str, ...]]] = {
    "rights": {
        "rights-center": ("rights", "center", "serve"),
        "rights-business": ("rights", "business", "serve"),
        "rights-server": ("rights", "server", "serve"),
    },
    "agency": {
        "authority": ("channel", "authority", "serve"),
        "bank-a-gateway": ("agency", "gateway", "serve"),
        "issuer-c-gateway": ("agency", "gateway", "serve"),
        "issuer-f-gateway": ("agency", "gateway", "serve"),
        "bank-a-sales": ("agency", "sales", "serve"),
        "issuer-c-end": ("agency", "issuer", "serve"),
        "issuer-f-end": ("agency", "issuer", "serve"),
    },
    "settlement": {
        "settle-accounts": ("settle", "accounts", "serve"),
        "settle-center": ("settle", "center", "serve"),
        "settle-events": ("settle", "events", "serve"),
        "settle-payer": ("settle", "payer", "serve"),
        "settle-bridge": ("settle", "bridge", "serve"),
    },
    "payee": {
        "payee-accounts": ("settle", "accounts", "serve"),
        "bank-a-enclave": ENVIRONMENT,
        "issuer-c-enclave": ENVIRONMENT,
        "wallet-p": ("payee", "platform", "serve"),
        "wallet-q": ("payee", "platform", "serve"),
    },
    "stream": {
        "stream-service": ("stream", "service", "serve"),
        "stream-watcher": ("stream", "watch", "serve"),
    },
}
"""The programs of each system in the order in which they start, with the commands that run them."""
PATIENT = frozenset({"agency", "settlement", "payee", "stream"})
"""Systems whose programs wait for each other by themselves, so that they start side by side."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program of a service: its folder, its command, and where it listens (None: on no TCP port of its own).

    ``fault`` says why its ``service.toml`` cannot be read, "" where it can: it does not start, and can be stopped.
    One that ``is_patient`` waits by itself for those that it needs.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    listen: Endpoint | None
    fault: str = ""
    is_patient: bool = False

    @property
    def process(self) -> LocalProcess:
        """The process, whether it runs or not."""
        arguments = (sys.executable, "-m", "cli.main", *self.command, "--home", str(self.folder))
        log_file = self.folder / "log" / f"{self.name}.log"
        return LocalProcess(self.name, arguments, self.folder / "run" / "program.pid", log_file)

    def is_ready(self) -> bool:
        """Tell whether the process that runs has said that it answers."""
        pid = self.process.pid()
        try:
            with (self.folder / "run" / READY_FILE).open("rb") as file:
                return pid is not None and file.read(PID_BYTES_MAX).strip() == str(pid).encode()
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class ProgramStatus:
    """What a program does. ``ending`` says of one that was started and not stopped how it ended all the same."""

    program: Program
    state: ProcessState
    pid: int | None
    is_ready: bool
    ending: Ending | None


def find_programs(network: LocalNetwork, system: str | None = None) -> list[Program]:
    """Return the programs that are set up, of all systems or of one, in the order in which they start.

    Raises:
        LocalError: ``unknown_system``.
    """
    if system is not None and system not in SYSTEMS:
        raise LocalError("unknown_system", f"{system} is none of: {', '.join(SYSTEMS)}")
    wanted = SYSTEMS if system is None else {system: SYSTEMS[system]}
    found: list[Program] = []
    for owner, commands in wanted.items():
        for name, command in commands.items():
            folder = network.folder / "services" / name
            if (folder / SERVICE_FILE).is_file():
                listen, fault = _listen(folder / SERVICE_FILE)
                found.append(Program(name, folder, command, listen, fault, owner in PATIENT))
    return found


def find_program(network: LocalNetwork, name: str) -> Program:
    """Return a program that is set up by its name.

    Raises:
        LocalError: ``unknown_program``.
    """
    for program in find_programs(network):
        if program.name == name:
            return program
    raise LocalError("unknown_program", f"{name} is not set up in {network.folder / 'services'}")


def system_of(name: str) -> str:
    """Return the system that a program belongs to."""
    return next(system for system, commands in SYSTEMS.items() if name in commands)


async def start(
    network: LocalNetwork, programs: Sequence[Program], *, timeout_ms: int = READY_MS_MAX
) -> list[ProgramStatus]:
    """Start programs one after the other, each when the one before is ready or is patient; those that run stay.

    On an error the programs that this call has started are ended again.

    Raises:
        LocalError: ``bad_config``, ``port_in_use`` before any is started, ``program_exited`` with what its log says,
            ``program_frozen``, ``not_ready`` after ``timeout_ms``, ``network_busy``, ``cannot_start``.
    """
    async with locked(network):
        new = [program for program in programs if program.process.find() is None]
        for program in new:
            if program.fault:
                raise LocalError("bad_config", program.fault)
            if program.listen is not None and program.listen.port != 0:
                check_port_free(program.name, "itself", program.listen)
        is_done = False
        try:
            for program in programs:
                program.process.start(environment())
                if not program.is_patient:
                    await _wait_ready(program, timeout_ms)
            for program in programs:
                await _wait_ready(program, timeout_ms)
            if new:
                # What only the first work touches may be broken.
                await trio.sleep(SETTLE_S)
                for program in programs:
                    await _wait_ready(program, timeout_ms)
            is_done = True
        finally:
            if not is_done:
                with trio.CancelScope(shield=True):
                    await _stop_all(new, STOP_MS_MAX)
    return status(programs)


async def stop(network: LocalNetwork, programs: Sequence[Program], *, timeout_ms: int = STOP_MS_MAX) -> dict[str, bool]:
    """End programs one after the other, the last first; tell for each whether it ended in order.

    Raises:
        LocalError: ``network_busy``.
    """
    async with locked(network):
        return await _stop_all(programs, timeout_ms)


def status(programs: Sequence[Program]) -> list[ProgramStatus]:
    """Return what each program does, in the same order."""
    return [_status(program) for program in programs]


async def kill(program: Program) -> None:
    """End a program with SIGKILL, as a power cut would."""
    await program.process.kill()


def freeze(program: Program) -> None:
    """Freeze a program with SIGSTOP: its connections stay open and nothing moves.

    Raises:
        LocalError: ``not_running``.
    """
    program.process.send_signal(signal.SIGSTOP)


def resume(program: Program) -> None:
    """Wake a frozen program.

    Raises:
        LocalError: ``not_running``.
    """
    program.process.send_signal(signal.SIGCONT)


def _status(program: Program) -> ProgramStatus:
    process = program.process
    state = process.state()
    # Whoever ends a program in order removes its pid file.
    has_died = state is ProcessState.STOPPED and process.pid_file.exists()
    ending = process.ending() if has_died else None
    return ProgramStatus(program, state, process.pid(), state is ProcessState.RUNNING and program.is_ready(), ending)


async def _wait_ready(program: Program, timeout_ms: int) -> None:
    process = program.process
    with trio.move_on_after(timeout_ms / 1000):
        while not program.is_ready():
            match process.state():
                case ProcessState.STOPPED:
                    why = f"{process.ending().words} (log: {process.log_file})"
                    raise LocalError("program_exited", f"{program.name} ended at its start: {why}")
                case ProcessState.FROZEN:
                    hint = f"kill -CONT {process.pid()} wakes it"
                    raise LocalError("program_frozen", f"{program.name} is frozen (SIGSTOP): {hint}")
                case ProcessState.RUNNING:
                    await trio.sleep(READY_POLL_S)
        return
    raise LocalError("not_ready", f"{program.name} is not ready after {timeout_ms} ms (log: {process.log_file})")


async def _stop_all(programs: Sequence[Program], timeout_ms: int) -> dict[str, bool]:
    return {program.name: await program.process.stop(timeout_ms=timeout_ms) for program in reversed(programs)}


def _listen(path: Path) -> tuple[Endpoint | None, str]:
    """Return the TCP port that a ``service.toml`` names, None where it names none, and what is wrong with the file."""
    try:
        listen = tomllib.loads(path.read_text("utf-8")).get("listen")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return None, f"{path}: {error}"
    if not isinstance(listen, str) or listen.startswith("unix:"):
        return None, ""
    host, _, port = listen.rpartition(":")
    if not (host and port.isascii() and port.isdecimal() and int(port) < 65_536):
        return None, f"{path}: listen: {listen!r} is not HOST:PORT"
    return Endpoint(host.removeprefix("[").removesuffix("]"), int(port)), ""
