"""A consortium of real processes for the time of a block: demos and benchmarks run on one.

It lives in a folder of its own with ports that nobody uses. However the block ends (an error, Ctrl-C,
SIGTERM), the processes end with it; a temporary folder goes too. A network that was kept may be used
again, and is left as it was found. What accidents are played on is never anybody's own network: only a
folder that this module has made, which it marks, is taken.
"""

import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from types import FrameType

import trio

from consensus.ledger.errors import LocalError
from consensus.ledger.genesis import Genesis
from consensus.ledger.keys import PrivateKey
from contracts.runtime.registry import Registry
from node.network import local
from node.network.genesis import activations_of, default_plan
from node.network.homes import LOCAL_HOST, RPC_PORT_STEP, LocalNetwork, init_network, is_network, load_network
from node.network.programs import PROGRAM_PORT_STEP, PROGRAM_PORTS

PORTS = (20_000, 32_000)
"""Where port bases are looked for: below the ports that systems give to outgoing connections."""
ATTEMPTS_MAX = 20
MARK_FILE = "trial.txt"
_MARK = "This network was made for demos and benchmarks, which kill and freeze its nodes.\n"


class TrialNetwork:
    """A running local network and the accidents it may meet; made by :func:`trial_network`."""

    def __init__(self, network: LocalNetwork, *, is_kept: bool) -> None:
        self.network = network
        self._is_kept = is_kept

    @property
    def genesis(self) -> Genesis:
        """The genesis document."""
        return self.network.genesis

    @property
    def urls(self) -> dict[str, str]:
        """Each validator's RPC root, in order."""
        return {node.name: node.rpc_url for node in self.network.nodes}

    @property
    def place(self) -> str:
        """Where the network lives, and whether it stays."""
        return f"{self.network.folder} is left running" if self._is_kept else "all its processes are ended"

    async def leave(self, running: Sequence[str]) -> None:
        """Let these nodes run, awake, and no others, members that joined meanwhile included."""
        network = load_network(self.network.folder)
        for home in network.nodes:
            if local.node_process(home).pid() is not None:
                local.resume(network, home.name)  # harmless to who is awake; who freezes right now does not look it yet
        await local.stop(network, [home.name for home in network.nodes if home.name not in running])
        if running:
            await local.start(network, running)

    def key(self, identity: str) -> PrivateKey:
        """Return the key of an identity.

        Raises:
            LocalError: ``unknown_identity``.
        """
        return self.network.key(identity)

    async def start(self, name: str) -> None:
        """Start a node and return when it is ready; errors as :func:`node.network.local.start`."""
        await local.start(self.network, [name])

    async def kill(self, name: str) -> None:
        """End a node with SIGKILL, as a power cut would."""
        await local.kill(self.network, name)

    def freeze(self, name: str) -> None:
        """Freeze a node with SIGSTOP: its connections stay open and nothing moves."""
        local.freeze(self.network, name)

    def resume(self, name: str) -> None:
        """Wake a frozen node."""
        local.resume(self.network, name)


@asynccontextmanager
async def trial_network(
    folder: Path | None = None,
    *,
    validators: int = 4,
    keep: bool = False,
    prepare: Callable[[LocalNetwork], None] | None = None,
) -> AsyncIterator[TrialNetwork]:
    """Give a running network for the time of the block.

    Args:
        folder: where it lives, made when missing; one that an earlier call has made is used again.
            None takes a temporary one.
        validators: how many nodes vote, where the network is made.
        keep: leave it running when the block ends well; its folder stays too. Else the nodes that ran
            before run on, and no others.
        prepare: is given a network that was just made, before its nodes start.

    Raises:
        LocalError: ``foreign_network`` for a network that was not made here, and as
            :func:`node.network.homes.init_network` and :func:`node.network.local.start`.
    """
    before = _running_before(folder)
    place = Path(tempfile.mkdtemp(prefix="hansa-")) if folder is None else folder
    is_left = False
    try:
        with _interrupted_by_signals():
            trial = TrialNetwork(await _start(place, validators, prepare), is_kept=keep or bool(before))
            try:
                yield trial
                is_left = keep
            finally:
                with trio.CancelScope(shield=True):
                    await trial.leave(list(trial.urls) if is_left else before)
    finally:
        if folder is None and not is_left:
            shutil.rmtree(place, ignore_errors=True)


def _running_before(folder: Path | None) -> list[str]:
    """Return which nodes of a kept network run.

    Raises:
        LocalError: ``foreign_network``.
    """
    if folder is None or not is_network(folder):
        return []
    if not (folder / MARK_FILE).is_file():
        message = f"{folder} is a network of your own, and accidents are played here: name a folder that is not there"
        raise LocalError("foreign_network", message)
    return [home.name for home in load_network(folder).nodes if local.node_process(home).pid() is not None]


async def _start(folder: Path, validators: int, prepare: Callable[[LocalNetwork], None] | None) -> LocalNetwork:
    """Make the network if need be and start all nodes; look for other ports when some are taken meanwhile."""
    if is_network(folder):
        network = load_network(folder)
        await local.start(network)
        return network
    plan, activations = default_plan(validators=validators), activations_of(Registry.shipped())
    attempt = 0
    while True:
        attempt += 1
        network = init_network(folder, plan, activations, port_base=free_port_base(validators))
        (network.folder / MARK_FILE).write_text(_MARK)
        if prepare is not None:
            prepare(network)
        try:
            await local.start(network)
        except LocalError as error:
            if error.code != "port_in_use" or attempt == ATTEMPTS_MAX:
                raise
            for entry in network.folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        else:
            return network


def free_port_base(nodes: int) -> int:
    """Return a base from which on the ports of ``nodes`` nodes, and of the programs beside them, are free right now.

    Raises:
        LocalError: ``port_in_use`` when none is found.
    """
    random = Random()
    for _ in range(ATTEMPTS_MAX):
        base = random.randrange(*PORTS)
        ports = [base + step + index for step in (0, RPC_PORT_STEP) for index in range(nodes)]
        ports += [base + PROGRAM_PORT_STEP + index for index in range(PROGRAM_PORTS)]
        if all(_is_free(port) for port in ports):
            return base
    raise LocalError("port_in_use", f"no {2 * nodes} free ports found between {PORTS[0]} and {PORTS[1]}")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCAL_HOST, port))
        except OSError:
            return False
        return True


@contextmanager
def handling(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let a function take SIGTERM and SIGHUP for the time of the block; needs the main thread."""
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does; needs the main thread.

    Where Ctrl-C is ignored, as in what a script has sent to the background, nobody delivers a
    KeyboardInterrupt: the block is cancelled, and the interrupt raised behind it.
    """
    interrupt = signal.getsignal(signal.SIGINT)
    token = trio.lowlevel.current_trio_token()
    with trio.CancelScope() as scope:

        def handle(_: int, frame: FrameType | None) -> None:
            if callable(interrupt):
                interrupt(signal.SIGINT, frame)
            else:
                token.run_sync_soon(scope.cancel)

        with handling(handle):
            yield
    if scope.cancelled_caught:
        raise KeyboardInterrupt
