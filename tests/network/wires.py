"""Machines of their own for nodes: a network namespace each, joined by wires that delay, lose, reorder and cut.

Every namespace has a TUN device (a network card whose other end is a file); this process carries packets
between them, so a wire can be bad in one direction only, and no kernel module for bad links is needed.
Nodes listen for RPC on the loopback of their namespace. A relay here takes connections on the same port of
our own loopback and hands them on inside, so that clients find nodes where the network file says.
"""

import ctypes
import errno
import fcntl
import heapq
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from random import Random

import trio

from contracts.runtime.registry import Registry
from node.config import CONFIG_FILE, Endpoint, config_text
from node.network import local
from node.network.genesis import activations_of, default_plan
from node.network.homes import LocalNetwork, NodeHome, init_network
from node.network.process import LocalProcess
from node.network.trial import free_port_base
from tests.conftest import require

SUBNET = "10.203.0"
"""Addresses inside; every test process has namespaces of its own, so they never meet."""
MTU_BYTES = 1_500
WAITING_PACKETS_MAX = 10_000
"""Packets under way on all wires; more are lost, as in a full router."""
READY_TIMEOUT_S = 60
_PREFIX = "hansa-test"
_ROOT = Path(__file__).resolve().parents[2]
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Wire:
    """One direction between two machines. ``reordered`` of the packets overtake all others."""

    delay_ms: int = 0
    jitter_ms: int = 0
    lost: float = 0.0
    reordered: float = 0.0
    is_cut: bool = False


GOOD, CUT = Wire(), Wire(is_cut=True)


def require_namespaces() -> None:
    """Leave the test, with the reason, where namespaces or TUN devices cannot be made."""
    try:
        with _namespace(f"{_PREFIX}-{os.getpid()}-probe") as name:
            os.close(_open_tun(f"ht{os.getpid()}p", name))
    except FileNotFoundError as error:
        require("namespaces", f"{error.filename or 'ip'} is missing (Debian: iproute2)")
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        require("namespaces", f"namespaces cannot be made here: {said}")


def require_netem() -> None:
    """Leave the test where the kernel cannot make links bad by itself; namespaces must be there."""
    with _namespace(f"{_PREFIX}-{os.getpid()}-probe") as name:
        try:
            _ip("netns", "exec", name, *_netem("lo", Wire(delay_ms=1)))
        except (OSError, subprocess.CalledProcessError) as error:
            said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
            require("netem", f"tc cannot add netem here: {said}")


class Wires:
    """Carries packets between the namespaces, each wire as it is told; index 0 is the first machine."""

    def __init__(self, files: Sequence[int], random: Random) -> None:
        self._files = files
        self._random = random
        self._wires = {(a, b): GOOD for a in range(len(files)) for b in range(len(files)) if a != b}
        self._due: list[tuple[float, int, int, bytes]] = []
        self._numbers = count()
        self._earlier = trio.Event()
        self.carried = self.lost = 0

    def set(self, wire: Wire, *, to: Iterable[int] | None = None, source: Iterable[int] | None = None) -> None:
        """Make the wires from any of ``source`` to any of ``to`` (None: all) like this."""
        sources, targets = set(source or range(len(self._files))), set(to or range(len(self._files)))
        for a, b in self._wires:
            if a in sources and b in targets:
                self._wires[a, b] = wire

    def split(self, side: Iterable[int]) -> None:
        """Cut both directions between these machines and all others."""
        for a, b in self._wires:
            if (a in side) != (b in side):
                self._wires[a, b] = CUT

    async def run(self) -> None:
        """Carry packets until cancelled."""
        async with trio.open_nursery() as nursery:
            for index in range(len(self._files)):
                nursery.start_soon(self._read, index)
            nursery.start_soon(self._deliver)

    async def _read(self, index: int) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._files[index])
            try:
                packet = os.read(self._files[index], 2 * MTU_BYTES)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EBADFD):  # nothing there, or the device is down
                    await trio.lowlevel.checkpoint()
                    continue
                raise
            self._take(index, packet)

    def _take(self, source: int, packet: bytes) -> None:
        is_inside = packet[0] >> 4 == 4 and socket.inet_ntoa(packet[16:20]).startswith(SUBNET + ".")
        wire = self._wires.get((source, packet[19] - 1)) if is_inside else None
        if wire is None:
            return
        if wire.is_cut or self._random.random() < wire.lost or len(self._due) >= WAITING_PACKETS_MAX:
            self.lost += 1
            return
        delay_ms = 0.0
        if self._random.random() >= wire.reordered:
            delay_ms = wire.delay_ms + self._random.uniform(-wire.jitter_ms, wire.jitter_ms)
        entry = (trio.current_time() + delay_ms / 1000, next(self._numbers), packet[19] - 1, packet)
        heapq.heappush(self._due, entry)
        if self._due[0] is entry:
            self._earlier.set()

    async def _deliver(self) -> None:
        while True:
            self._earlier = trio.Event()
            with trio.move_on_at(self._due[0][0] if self._due else float("inf")):
                await self._earlier.wait()
            while self._due and self._due[0][0] <= trio.current_time():
                _, _, target, packet = heapq.heappop(self._due)
                try:
                    os.write(self._files[target], packet)
                    self.carried += 1
                except OSError:  # the device is down
                    self.lost += 1


@dataclass(frozen=True, slots=True)
class Machines:
    """A network whose nodes run in namespaces of their own, in the order of ``network.nodes``."""

    network: LocalNetwork
    namespaces: tuple[str, ...]
    wires: Wires

    def run_inside(self, index: int, *command: str) -> None:
        """Run a command inside a machine.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        _ip("netns", "exec", self.namespaces[index], *command)

    def shape(self, index: int, wire: Wire) -> None:
        """Let the kernel's own emulator make what a machine sends as bad as a wire.

        Raises:
            subprocess.CalledProcessError: the kernel has no netem.
        """
        self.run_inside(index, *_netem(_device(index), wire))

    def set_link(self, index: int, state: str) -> None:
        """Set a machine's network card ``up`` or ``down``."""
        self.run_inside(index, "ip", "link", "set", "dev", _device(index), state)


@asynccontextmanager
async def machines(folder: Path, *, seed: int, validators: int = 4) -> AsyncIterator[Machines]:
    """Give a running network on machines of its own; everything is ended and removed afterwards."""
    _remove_leftovers()
    plan, activations = default_plan(validators=validators), activations_of(Registry.shipped())
    network = init_network(folder, plan, activations, port_base=free_port_base(validators))
    with _namespaces(validators) as (names, files):
        wires = Wires(files, Random(seed))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wires.run)
            for name, home in zip(names, network.nodes, strict=True):
                await nursery.start(_relay, name, home.rpc.port)
            try:
                for index, home in enumerate(network.nodes):
                    _write_config(network, home)
                    start_inside(names[index], home)
                with trio.fail_after(READY_TIMEOUT_S):
                    for home in network.nodes:
                        while await local.read_health(home.rpc) is None:
                            await trio.lowlevel.checkpoint()
                yield Machines(network, names, wires)
            finally:
                with trio.CancelScope(shield=True):
                    await local.stop(network)
            nursery.cancel_scope.cancel()


def start_inside(namespace: str, home: NodeHome) -> None:
    """Start a node's process in a namespace."""
    process = local.node_process(home)
    command = (_ip_path(), "netns", "exec", namespace, *process.arguments)
    paths = filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    LocalProcess(home.name, command, process.pid_file, process.log_file).start(environment)


def _write_config(network: LocalNetwork, home: NodeHome) -> None:
    """Let a node listen on its machine's address, and know the others by theirs."""
    places = {node.name: Endpoint(f"{SUBNET}.{index + 1}", node.p2p.port) for index, node in enumerate(network.nodes)}
    own = places.pop(home.name)
    text = config_text(name=home.name, organisation=home.organisation, p2p=own, rpc=home.rpc, peers=places)
    (home.folder / CONFIG_FILE).write_text(text)


# -- namespaces --------------------------------------------------------------------------------------------


@contextmanager
def _namespaces(machine_count: int) -> Iterator[tuple[tuple[str, ...], list[int]]]:
    names = tuple(f"{_PREFIX}-{os.getpid()}-{index}" for index in range(machine_count))
    with ExitStack() as stack:
        files = []
        for index, name in enumerate(names):
            stack.enter_context(_namespace(name))
            file = _open_tun(_device(index), name)
            stack.callback(os.close, file)
            files.append(file)
            inside = partial(_ip, "-n", name)
            inside("address", "add", f"{SUBNET}.{index + 1}/24", "dev", _device(index))
            inside("link", "set", "dev", _device(index), "up", "mtu", str(MTU_BYTES))
            inside("link", "set", "dev", "lo", "up")
        yield names, files


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    _ip("netns", "add", name)
    try:
        yield name
    finally:
        _ip("netns", "delete", name)


def _open_tun(device: str, namespace: str) -> int:
    """Make a TUN device, put it into a namespace and return its other end."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI))
        _ip("link", "set", "dev", device, "netns", namespace)
    except BaseException:
        os.close(file)
        raise
    return file


def _device(index: int) -> str:
    return f"ht{os.getpid()}n{index}"


def _netem(device: str, wire: Wire) -> list[str]:
    options = ["delay", f"{wire.delay_ms}ms", f"{wire.jitter_ms}ms"]
    options += ["loss", f"{100 * wire.lost:g}%"] if wire.lost else []
    options += ["reorder", f"{100 * wire.reordered:g}%"] if wire.reordered else []
    return ["tc", "qdisc", "replace", "dev", device, "root", "netem", *options]


def _remove_leftovers() -> None:
    """Remove namespaces of test processes that were killed."""
    for line in _ip("netns", "list").splitlines():
        name = line.split()[0] if line.split() else ""
        pid = name.removeprefix(f"{_PREFIX}-").partition("-")[0]
        if name.startswith(f"{_PREFIX}-") and pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            _ip("netns", "delete", name)


def _ip(*arguments: str) -> str:
    return subprocess.run([_ip_path(), *arguments], check=True, capture_output=True, text=True).stdout


def _ip_path() -> str:
    path = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise FileNotFoundError(errno.ENOENT, "not found", "ip")
    return path


# -- the way to RPC ----------------------------------------------------------------------------------------


async def _relay(namespace: str, port: int, *, task_status: trio.TaskStatus[object]) -> None:
    """Hand connections to a port of our loopback on to the same port inside a namespace."""

    async def serve(outside: trio.SocketStream) -> None:
        inside = trio.socket.from_stdlib_socket(_socket_in(namespace))
        with inside:
            try:
                await inside.connect(("127.0.0.1", port))
            except OSError:
                return
            stream = trio.SocketStream(inside)
            async with outside, trio.open_nursery() as nursery:
                nursery.start_soon(_pump, outside, stream, nursery.cancel_scope)
                nursery.start_soon(_pump, stream, outside, nursery.cancel_scope)

    await trio.serve_tcp(serve, port, host="127.0.0.1", task_status=task_status)


async def _pump(source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope) -> None:
    try:
        async for data in source:
            await target.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    scope.cancel()


def _socket_in(namespace: str) -> socket.socket:
    """Return a new TCP socket that lives in a namespace: whichever its thread was in when it was made."""
    made: list[socket.socket] = []

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{namespace}", "rb") as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        made.append(socket.socket())

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]
