"""The processes of a local network: up, status, down, reset, and the accidents that demos and tests cause.

Everything is told by pid files in the homes, so one program may start a network and another end it.
Only processes of this network are ever touched.
"""

import errno
import fcntl
import http.client
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

import node as _node_package
from consensus.ledger.errors import LocalError
from node.config import Endpoint
from node.network.homes import NETWORK_FILE, LocalNetwork, NodeHome, wipe_data
from node.network.process import Ending, LocalProcess, ProcessState

READY_MS_MAX = 30_000
"""Time for a node to become ready."""
STOP_MS_MAX = 10_000
"""Time for a node to end in order before it is killed."""
BUSY_MS_MAX = 15_000
"""Time to wait while another program starts or ends the network."""
READY_POLL_S = 0.05
SETTLE_S = 0.3
"""How long after they became ready all nodes must still be there."""
HEALTH_TIMEOUT_S = 1.0
HEALTH_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What a node of a local network does.

    ``height`` and ``votes`` are None unless the node answers; ``votes`` is false for one that only follows.
    ``ending`` says of one that does not run how it ended; ``seated`` whether it stands in the validator set that
    it sees, and ``quorum`` how many of that set a block needs, None unless it answers.
    """

    node: NodeHome
    state: ProcessState
    pid: int | None
    is_ready: bool
    height: int | None
    votes: bool | None
    ending: Ending | None = None
    seated: bool | None = None
    quorum: int | None = None


def node_process(home: NodeHome) -> LocalProcess:
    """Return the process of a node."""
    arguments = (sys.executable, "-m", "cli.main", "node", "run", "--home", str(home.folder))
    return LocalProcess(home.name, arguments, home.run / "node.pid", home.log_file)


async def start(
    network: LocalNetwork, names: Sequence[str] | None = None, *, timeout_ms: int = READY_MS_MAX
) -> list[NodeStatus]:
    """Start nodes side by side, all or those named, and return when they are ready; those that run stay.

    On an error the nodes that this call has started are ended again.

    Raises:
        LocalError: ``port_in_use`` naming port and node, ``node_exited`` with what its log says,
            ``node_frozen`` for one that a signal has stopped, ``not_ready`` after ``timeout_ms``,
            ``network_busy`` when another program starts or ends it, ``unknown_node``.
    """
    homes = _chosen(network, names)
    async with locked(network):
        new = [home for home in homes if node_process(home).find() is None]
        for home in new:
            check_port_free(home.name, "p2p", home.p2p)
            check_port_free(home.name, "RPC", home.rpc)
        ready = False
        try:
            for home in new:
                node_process(home).start(environment())
            await _wait_ready(homes, timeout_ms)
            if new:
                # A database may be damaged where only the first work looks.
                await trio.sleep(SETTLE_S)
                await _wait_ready(new, timeout_ms)
            ready = True
        finally:
            if not ready:
                with trio.CancelScope(shield=True):
                    await _stop_all(new, STOP_MS_MAX)
    return await status(network)


async def stop(
    network: LocalNetwork, names: Sequence[str] | None = None, *, timeout_ms: int = STOP_MS_MAX
) -> dict[str, bool]:
    """End nodes side by side, all or those named; tell for each whether it ended in order.

    Raises:
        LocalError: ``network_busy``, ``unknown_node``.
    """
    homes = _chosen(network, names)
    async with locked(network):
        return await _stop_all(homes, timeout_ms)


async def status(network: LocalNetwork) -> list[NodeStatus]:
    """Return what each node does, in the order of the network file."""
    found: dict[str, NodeStatus] = {}

    async def look(home: NodeHome) -> None:
        process = node_process(home)
        state = process.state()
        health = await read_health(home.rpc) if state is ProcessState.RUNNING else None
        health = health or {}
        height, votes, quorum, seated = (health.get(key) for key in ("height", "votes", "quorum", "seated"))
        found[home.name] = NodeStatus(
            node=home,
            state=state,
            pid=process.pid(),
            is_ready=bool(health),
            height=height if isinstance(height, int) else None,
            votes=votes if isinstance(votes, bool) else None,
            ending=process.ending() if state is ProcessState.STOPPED else None,
            seated=seated if isinstance(seated, bool) else None,
            quorum=quorum if isinstance(quorum, int) else None,
        )

    async with trio.open_nursery() as nursery:
        for home in network.nodes:
            nursery.start_soon(look, home)
    return [found[home.name] for home in network.nodes]


async def reset(network: LocalNetwork) -> None:
    """Wipe what the nodes have stored, and nothing else; the next start begins at block 0.

    Raises:
        LocalError: ``still_running`` naming a node, ``network_busy``.
    """
    async with locked(network):
        for home in network.nodes:
            if (pid := node_process(home).pid()) is not None:
                raise LocalError("still_running", f"{home.name} runs, process {pid}; end the network first")
        wipe_data(network)


async def kill(network: LocalNetwork, name: str) -> None:
    """End a node with SIGKILL, as a power cut would.

    Raises:
        LocalError: ``unknown_node``.
    """
    await node_process(network.node(name)).kill()


def freeze(network: LocalNetwork, name: str) -> None:
    """Freeze a node with SIGSTOP: its connections stay open and nothing moves.

    Raises:
        LocalError: ``unknown_node`` or ``not_running``.
    """
    node_process(network.node(name)).send_signal(signal.SIGSTOP)


def resume(network: LocalNetwork, name: str) -> None:
    """Wake a frozen node with SIGCONT.

    Raises:
        LocalError: ``unknown_node`` or ``not_running``.
    """
    node_process(network.node(name)).send_signal(signal.SIGCONT)


async def read_health(rpc: Endpoint, *, timeout_s: float = HEALTH_TIMEOUT_S) -> dict[str, object] | None:
    """Return what ``/healthz`` of a node says when it answers 200, else None."""
    with trio.move_on_after(timeout_s):
        return await trio.to_thread.run_sync(_get_health, rpc, timeout_s, abandon_on_cancel=True)
    return None


def _get_health(rpc: Endpoint, timeout_s: float) -> dict[str, object] | None:
    connection = http.client.HTTPConnection(rpc.host, rpc.port, timeout=timeout_s)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        content = json.loads(response.read(HEALTH_BYTES_MAX))
        return content if response.status == 200 and isinstance(content, dict) else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _chosen(network: LocalNetwork, names: Sequence[str] | None) -> list[NodeHome]:
    return list(network.nodes) if names is None else [network.node(name) for name in names]


def environment() -> dict[str, str]:
    """Return our environment with the folder of this very code first on the import path."""
    root = str(Path(_node_package.__path__[0]).resolve().parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


async def _wait_ready(homes: Sequence[NodeHome], timeout_ms: int) -> None:
    waiting = {home.name for home in homes}

    async def wait(home: NodeHome) -> None:
        process = node_process(home)
        while await read_health(home.rpc) is None:
            if process.pid() is None:
                ending = process.ending()
                # Somebody may have taken its port after it was found free.
                code = ending.code if ending.code == "port_in_use" else "node_exited"
                raise LocalError(code, f"{home.name} ended at its start: {ending.words} (log: {home.log_file})")
            if process.state() is ProcessState.FROZEN:
                raise LocalError("node_frozen", f"{home.name} is frozen (SIGSTOP): kill -CONT {process.pid()} wakes it")
            await trio.sleep(READY_POLL_S)
        waiting.discard(home.name)

    try:
        with trio.move_on_after(timeout_ms / 1000):
            async with trio.open_nursery() as nursery:
                for home in homes:
                    nursery.start_soon(wait, home)
    except BaseExceptionGroup as group:
        refusals, others = group.split(LocalError)
        if refusals is None or others is not None:
            raise
        raise _first_error(refusals) from None
    if waiting:
        raise LocalError("not_ready", f"not ready after {timeout_ms} ms: {', '.join(sorted(waiting))}")


def _first_error(group: BaseExceptionGroup[LocalError]) -> LocalError:
    for error in group.exceptions:
        return _first_error(error) if isinstance(error, BaseExceptionGroup) else error
    return LocalError("node_exited", str(group))


async def _stop_all(homes: Sequence[NodeHome], timeout_ms: int) -> dict[str, bool]:
    orderly: dict[str, bool] = {}

    async def end(home: NodeHome) -> None:
        orderly[home.name] = await node_process(home).stop(timeout_ms=timeout_ms)

    async with trio.open_nursery() as nursery:
        for home in homes:
            nursery.start_soon(end, home)
    return orderly


def check_port_free(name: str, purpose: str, endpoint: Endpoint) -> None:
    """Look whether somebody else listens where a program of this name is to listen.

    Raises:
        LocalError: ``port_in_use``, ``bad_address``.
    """
    with socket.socket(socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((endpoint.host, endpoint.port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise LocalError("bad_address", f"{endpoint.host}:{endpoint.port}: {error.strerror}") from None
            place = f"port {endpoint.port} on {endpoint.host}"
            message = f"{place}, which {name} needs for {purpose}, is in use by another program"
            raise LocalError("port_in_use", message) from None


@asynccontextmanager
async def locked(network: LocalNetwork) -> AsyncIterator[None]:
    """Keep two programs from starting and ending one network at the same time."""
    with (network.folder / NETWORK_FILE).open("rb") as file:
        deadline = trio.current_time() + BUSY_MS_MAX / 1000
        while not _try_lock(file.fileno()):
            if trio.current_time() > deadline:
                raise LocalError("network_busy", "another program starts or ends this network right now")
            await trio.sleep(READY_POLL_S)
        yield


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
