"""The process of a trusted environment: frames on a unix socket in, answers out, and nothing else.

    python -m services.payee.enclave_program SETTINGS

What it needs is opened first: the genesis document, the sealed keys, the socket's name. Then it gives up rights and the
network (:mod:`services.payee.enclave_walls`), and only then it listens, so that whoever connects sees by SO_PEERCRED
which user it has become. From here on it opens no file but those it has, and loads no code.

One connection is served one ask at a time, in order; a node keeps one open. SIGTERM and SIGINT end it.
"""

import gc
import os
import socket
import stat
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import msgspec
import structlog
import trio

from consensus.ledger.errors import HansaError, LocalError, StorageError
from consensus.ledger.genesis import Genesis, decode_genesis_untrusted
from consensus.ledger.payees import FRAME_BYTES_MAX, Told, told_codec
from services.messages.logs import READY_FILE, configure_logs, stop_signals
from services.payee.enclave import Environment
from services.payee.enclave_keys import HeadFile, open_sealed
from services.payee.enclave_walls import User, Walls, raise_walls
from services.payee.measurement import measure
from services.payee.wording import EMULATED

CONNECTIONS_MAX = 8
"""Who comes on top is told ``busy``."""
BACKLOG = 16
LENGTH_BYTES = 4
RECEIVE_BYTES = 64 * 1024
FRAME_S_MAX = 10.0
"""Time for one message to arrive once it has begun, and for one to be taken."""
IDLE_S_MAX = 3_600.0
HEAD_S = 1.0
"""Time between two writes of the highest head seen."""

log = structlog.get_logger("environment")


class EnclaveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the process runs with: absolute paths, whom it becomes (None: nobody else), which group may connect."""

    name: str
    genesis: str
    data: str
    machine: str
    run: str
    socket: str
    uid: int | None
    gid: int | None
    group: int | None
    log_level: str


def main() -> NoReturn:
    """Run the program with its one argument, and end the process."""
    settings = msgspec.json.decode(sys.argv[1], type=EnclaveSettings)
    try:
        run(settings)
    except HansaError as error:
        log.error("stopped", code=error.code, why=error.message, exit=1)
        print(f"error {error.code}: {error.message}", file=sys.stderr)
        sys.exit(1)
    log.info("stopped")
    sys.exit(0)


def run(settings: EnclaveSettings) -> None:
    """Run the environment until SIGTERM or SIGINT.

    Raises:
        LocalError: it cannot start, see :func:`services.payee.enclave_keys.open_sealed`; ``bad_genesis``,
            ``bad_address``, ``already_running``, ``not_root``.
        StorageError: the disk fails, or what it sealed does not open.
    """
    configure_logs(settings.log_level)
    genesis = _read_genesis(Path(settings.genesis))
    measurement = measure()
    user = None if settings.uid is None or settings.gid is None else User(settings.uid, settings.gid)
    sealed = partial(open_sealed, Path(settings.data), Path(settings.machine), name=settings.name)
    with sealed(chain_id=genesis.chain_id(), measurement=measurement) as (keys, head):
        environment = Environment(
            genesis, settings.name, keys, measurement=measurement, clock_ms=_clock_ms, height=head.read()
        )
        with _bound(Path(settings.socket), settings.group) as listening, _ready_file(Path(settings.run)) as ready:
            walls = raise_walls(user)
            # What is loaded by now stays for ever: the collector need not walk it again.
            gc.collect()
            gc.freeze()
            listening.listen(BACKLOG)
            try:
                trio.run(_serve, environment, head, listening, ready, walls)
            except BaseExceptionGroup as group:
                raise _alone(group) from None


def _alone(error: BaseException) -> BaseException:
    """Return the one error in a group, which a nursery makes of it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _serve(environment: Environment, head: HeadFile, listening: socket.socket, ready: int, walls: Walls) -> None:
    """Answer until a signal comes; ``ready`` gets our process id once we do."""
    server = Server(environment)
    async with stop_signals() as stopping, trio.open_nursery() as nursery:
        nursery.start_soon(_keep_head, environment, head)
        nursery.start_soon(server.accept, trio.SocketListener(trio.socket.from_stdlib_socket(listening)))
        _note(ready, os.getpid())
        log.info(
            "ready",
            environment=environment.name,
            measurement=environment.measurement.hex(),
            isolation=EMULATED,
            uid=walls.uid,
            standing=walls.standing,
            missing=walls.missing,
        )
        await stopping.wait()
        nursery.cancel_scope.cancel()
    head.write(environment.height)


def _note(ready: int, process: int) -> None:
    try:
        os.write(ready, f"{process}\n".encode())
    except OSError as error:
        raise StorageError("disk_failed", f"{READY_FILE}: {error.strerror}") from None


class Server:
    """Connections to one environment."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._connections = 0

    async def accept(self, listener: trio.SocketListener) -> None:
        """Serve whoever connects, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                stream = await listener.accept()
                nursery.start_soon(self.serve, stream)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection until its other end closes it or breaks a rule."""
        # Whoever has gone, or takes nothing, ends its own connection and nothing else.
        async with stream:
            with suppress(trio.BrokenResourceError):
                await self._converse(stream)

    async def _converse(self, stream: trio.abc.Stream) -> None:
        if self._connections >= CONNECTIONS_MAX:
            await _send(stream, told_codec.encode(Told("busy", f"{CONNECTIONS_MAX} are connected", b"")))
            return
        self._connections += 1
        try:
            frames = _Frames(stream)
            while (ask := await frames.receive()) is not None:
                await _send(stream, self._tell(ask))
        except _FrameError as error:
            await _send(stream, told_codec.encode(Told("malformed", str(error), b"")))
        finally:
            self._connections -= 1

    def _tell(self, ask: bytes) -> bytes:
        """Answer one ask; a bug in it ends neither the environment nor says what it was about."""
        try:
            return self._environment.tell(ask)
        except Exception as error:
            # Its text may hold what was decrypted, and logs and answers never do.
            places = [
                f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
            ]
            log.error("an ask is broken", error=type(error).__name__, places=places)
            return told_codec.encode(Told("internal", "the environment is broken", b""))


class _FrameError(Exception):
    """A message is longer than any may be, or it stops halfway."""


class _Frames:
    """Messages out of a stream: four bytes of length, big-endian, and as many bytes."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def receive(self) -> bytes | None:
        """Return the next message; None where the stream ends between two, or nothing comes for long."""
        with trio.move_on_after(IDLE_S_MAX) as idle:
            if not self._buffer and not await self._more():
                return None
        if idle.cancelled_caught:
            return None
        with trio.move_on_after(FRAME_S_MAX):
            await self._fill(LENGTH_BYTES)
            end = LENGTH_BYTES + int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
            if end > LENGTH_BYTES + FRAME_BYTES_MAX:
                raise _FrameError(f"a message has at most {FRAME_BYTES_MAX} bytes")
            await self._fill(end)
            message = bytes(self._buffer[LENGTH_BYTES:end])
            del self._buffer[:end]
            return message
        raise _FrameError(f"a message did not arrive within {FRAME_S_MAX:g} s")

    async def _fill(self, count: int) -> None:
        while len(self._buffer) < count:
            if not await self._more():
                raise _FrameError("a message stops halfway")

    async def _more(self) -> bool:
        data = await self._stream.receive_some(RECEIVE_BYTES)
        self._buffer += data
        return bool(data)


async def _send(stream: trio.abc.Stream, message: bytes) -> None:
    """Send a message; whoever does not take it in time, or has gone, does not get it."""
    with trio.move_on_after(FRAME_S_MAX) as sending, suppress(trio.BrokenResourceError):
        await stream.send_all(len(message).to_bytes(LENGTH_BYTES, "big") + message)
    if sending.cancelled_caught:
        raise trio.BrokenResourceError


async def _keep_head(environment: Environment, head: HeadFile) -> None:
    """Write the highest head seen, at most once in ``HEAD_S``."""
    written = environment.height
    while True:
        await trio.sleep(HEAD_S)
        if environment.height > written:
            written = environment.height
            await trio.to_thread.run_sync(head.write, written)


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


def _read_genesis(path: Path) -> Genesis:
    try:
        return decode_genesis_untrusted(path.read_bytes())
    except OSError as error:
        raise LocalError("bad_config", f"{path}: {error.strerror}") from None


@contextmanager
def _bound(path: Path, group: int | None) -> Iterator[socket.socket]:
    """Give a socket that has its name and does not listen yet; what a killed program left there is replaced."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        bound.close()
        raise LocalError("bad_address", f"{path}: {error.strerror}") from None
    try:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise LocalError("bad_address", f"{path} is no socket, and is left alone")
            # Nobody else runs this environment: the lock of what it keeps is ours.
            os.unlink(path.name, dir_fd=folder)
        # An address has at most 107 bytes, and folders may lie deeper.
        bound.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.chmod(path, 0o600 if group is None else 0o660)
        if group is not None:
            os.chown(path, -1, group)
        try:
            yield bound
        finally:
            with suppress(OSError):
                os.unlink(path.name, dir_fd=folder)
    except OSError as error:
        raise LocalError("bad_address", f"cannot listen on {path}: {error.strerror}") from None
    finally:
        bound.close()
        os.close(folder)


@contextmanager
def _ready_file(folder: Path) -> Iterator[int]:
    """Give ``ready`` open for writing, and empty, which says that nobody answers; so it is left where it cannot go.

    The folder stays whoever's it is: what the environment's user could put there, its starter would believe.
    """
    path = folder / READY_FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        raise LocalError("bad_config", f"{path}: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)
        with suppress(OSError):
            path.unlink()


if __name__ == "__main__":
    main()
