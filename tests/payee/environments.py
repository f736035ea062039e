"""Real processes of environments, started by the command that users have, and asked over their sockets."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from consensus.ledger.codec import encode
from consensus.ledger.keys import Purpose
from consensus.ledger.payees import (
    AskQuote,
    AskResolve,
    Mode,
    Query,
    QueryBody,
    Quote,
    Told,
    ask_codec,
    query_codec,
    query_hash,
    quote_codec,
    told_codec,
    wrap_key,
)
from services.local.files import read_service, write_service
from services.payee.enclave_config import EnclaveFile, enclave_settings
from services.payee.sealing import EpochKey, ExchangeKey, wrap_epoch_key
from tests.contracts.domain.payees import identity
from tests.payee.resolving import SECRETS, PayeeWorld

ROOT = Path(__file__).resolve().parents[2]
SECONDS_MAX = 30.0
NAME = "bank-a"
OWN = ExchangeKey.from_secret((77_001).to_bytes(32, "big"))


@dataclass
class EnvironmentHome:
    """The folder of an environment of a world's chain, and its process while there is one."""

    folder: Path
    world: PayeeWorld
    user: str = ""
    command: tuple[str, ...] = ("-m", "cli.main", "payee", "enclave", "serve")
    root: Path = ROOT
    """Whose code it runs."""
    log_level: str = "info"
    lines: list[dict[str, Any]] = field(default_factory=list)
    """What it has logged."""
    said: str = ""
    """All that it has said."""

    def __post_init__(self) -> None:
        (self.folder.parent / "genesis.json").write_bytes(self.world.chain.genesis.to_json())
        self.write()

    def write(self) -> None:
        """Write its ``service.toml``."""
        write_service(
            self.folder,
            EnclaveFile(name=NAME, genesis="../genesis.json", user=self.user, log_level=self.log_level),
        )

    def settings(self, uid: int | None = None) -> str:
        """Return what the command gives the program as its argument: for a user, or for none."""
        settings = enclave_settings(self.folder, read_service(self.folder, EnclaveFile))
        return msgspec.json.encode(replace(settings, uid=uid, gid=uid)).decode()

    def skip_command(self) -> None:
        """Start the program itself from now on, which is quicker, as the user that starts it."""
        self.command = ("-P", "-m", "services.payee.enclave_program", self.settings())

    @property
    def path(self) -> Path:
        return self.folder / "run" / "environment.sock"

    def popen(self, *options: str) -> "subprocess.Popen[str]":
        """Start it and do not wait."""
        return subprocess.Popen(
            [sys.executable, *self.command, "--home", str(self.folder), *options],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def running(self, *options: str) -> "Iterator[subprocess.Popen[str]]":
        """Give the process once it answers; it has ended after the block, by SIGTERM where the block has not."""
        process = self.popen(*options)
        assert process.stderr is not None
        try:
            for line in process.stderr:
                self._note(line)
                if self.lines and self.lines[-1]["event"] == "ready":
                    break
            else:
                raise AssertionError(f"it did not begin: {self.said}")
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(SECONDS_MAX)
        finally:
            process.kill()
            for line in process.stderr:
                self._note(line)
            process.wait()
            process.stderr.close()

    def fails(self, *options: str) -> str:
        """Start it, see it end at once, and return what it said."""
        done = self.popen(*options)
        _, said = done.communicate(timeout=SECONDS_MAX)
        assert done.returncode != 0
        return said

    def _note(self, line: str) -> None:
        self.said += line
        if line.startswith("{"):
            self.lines.append(json.loads(line))

    # -- asking ------------------------------------------------------------------------------------------

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(SECONDS_MAX)
            stream.connect(str(self.path))
            yield stream

    def tell(self, ask: AskQuote | AskResolve) -> Told:
        """Return what one ask is told, over a connection of its own."""
        with self.connected() as stream:
            return ask_over(stream, ask)

    def quote(self) -> Quote:
        told = self.tell(AskQuote(bytes(16)))
        assert told.code == "", told.message
        return quote_codec.decode_untrusted(told.body)

    def trust(self, quote: Quote) -> None:
        """Put the platforms' keys on the chain, wrapped for what the environment says of itself."""
        for server, secret in SECRETS.items():
            wrap = wrap_epoch_key(
                EpochKey(secret),
                server=server,
                epoch=1,
                environment=NAME,
                exchange_key=quote.exchange_key,
                fresh=ExchangeKey.generate(),
            )
            self.world.chain.state.apply({wrap_key(server, 1, NAME).encode(): encode({"wrap": wrap})})

    def resolution(self, mode: Mode = Mode.TARGET) -> AskResolve:
        """Return a true ask of wallet-p about merchant 0, now."""
        now_ms = time.time_ns() // 1_000_000
        chain = self.world.chain
        body = QueryBody(chain.chain_id, "wallet-p", identity(0), mode, OWN.public, bytes(16), now_ms)
        signature = self.world.platforms["wallet-p"].sign(Purpose.PAYEE_QUERY, chain.chain_id, query_hash(body))
        query = Query(body, signature, None)
        states = self.world.states(self.world.keys_for(query, NAME), time_ms=now_ms)
        return AskResolve(query_codec.encode(query), states)


def ask_over(stream: socket.socket, ask: AskQuote | AskResolve) -> Told:
    """Ask over an open connection."""
    message = ask_codec.encode(ask)
    stream.sendall(len(message).to_bytes(4, "big") + message)
    return told_codec.decode_untrusted(_receive(stream, int.from_bytes(_receive(stream, 4), "big")))


def _receive(stream: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = stream.recv(count - len(data))
        assert part, "the environment hung up"
        data += part
    return bytes(data)
