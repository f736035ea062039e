"""A real redis-server in a folder of its own, and queues in it."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require

START_SECONDS_MAX = 30


class RedisServer:
    """A redis-server on a free loopback port that syncs every write; it can be killed, frozen and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it has read its file and answers."""
        program = shutil.which("redis-server")
        assert program is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(program, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)),
                    *("--save", "", "--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no"),
                    *self._options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "redis-server does not answer"

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as line:
                line.sendall(b"PING\r\n")
                return line.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def kill(self) -> None:
        """End it as a crash would, if it runs; an orderly end would be refused while it begins a new file."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None

    def disk_bytes(self) -> int:
        """Return how much its files take."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def new_redis(folder: Path, *options: str) -> RedisServer:
    """Make a server, not started, or leave the test where there is no redis-server."""
    if shutil.which("redis-server") is None:
        require("redis", "redis-server is not installed")
    return RedisServer(folder, *options)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests of a session; each takes a queue name of its own."""
    server = new_redis(tmp_path_factory.mktemp("redis"))
    server.start()
    try:
        yield server
    finally:
        server.kill()
