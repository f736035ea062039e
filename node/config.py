"""``node.toml``: everything one node needs to know, read once at start.

Relative paths are taken from the folder that holds the file. Unknown fields are refused, so that a
misspelt name does not silently leave a default in force.
"""

import tomllib
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from consensus.ledger.errors import LocalError
from consensus.ledger.ids import NodeName
from consensus.ledger.validators import NodeNameText

CONFIG_FILE = "node.toml"
ENVIRONMENT_FILE = "environment.toml"
CONFIG_BYTES_MAX = 256 * 1024
PRIVATE_FOLDER = "private"
"""Below ``data``: what goes through private channels, sealed."""

Port: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Milliseconds: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=86_400_000)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Host: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
Address: TypeAlias = tuple[str, int]
"""Host and port."""


class Endpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to listen. Port 0 takes a free one."""

    host: Host
    port: Port


class ConsensusTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Intervals of the consensus; the same on all nodes of a network, or some will change views needlessly."""

    timeout_ms: Milliseconds = 1_000
    """Time without progress after which a view is given up."""
    timeout_ms_max: Milliseconds = 8_000
    """What ``timeout_ms`` doubles up to."""
    quiet_ms: Milliseconds = 1_000
    """Time after the last activity until the quiet block."""
    heartbeat_ms: Milliseconds = 30_000
    """Time between blocks while idle."""
    tick_ms: Milliseconds = 25
    """How often the engine is told the time."""


class PoolSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the transactions that wait on a node."""

    transactions_max: Count = 20_000
    """Waiting transactions in all."""
    bytes_max: Count = 64 * 1024 * 1024
    """Their size in all."""
    transactions_per_sender_max: Count = 8_000
    """Waiting transactions of one account."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file as it is written."""

    name: NodeNameText
    organisation: NodeNameText
    p2p: Endpoint
    rpc: Endpoint
    peers: dict[NodeNameText, str] = {}
    genesis: str = "genesis.json"
    keys: str = "keys"
    data: str = "data"
    log: str = "log"
    run: str = "run"
    log_level: Annotated[str, msgspec.Meta(pattern="^(debug|info|warning|error)$")] = "info"
    rpc_hosts: list[Host] = []
    record_frames: str = ""
    consensus: ConsensusTimes = ConsensusTimes()
    pool: PoolSettings = PoolSettings()


class NodeConfig(msgspec.Struct, frozen=True):
    """A node's configuration with all paths resolved.

    ``peers`` are the other nodes' p2p addresses. ``rpc_hosts`` are names beside loopback that the RPC
    accepts in a request's Host header. ``data`` holds the database, ``run`` pid file and local socket. Every
    frame that goes through a session is written to ``record_frames`` in clear, when it is given: for tests.
    """

    path: Path
    name: NodeName
    organisation: str
    p2p: Endpoint
    rpc: Endpoint
    peers: dict[NodeName, Address]
    genesis: Path
    keys: Path
    data: Path
    log: Path
    run: Path
    log_level: str
    rpc_hosts: tuple[str, ...]
    record_frames: Path | None
    consensus: ConsensusTimes
    pool: PoolSettings

    @property
    def tls_key(self) -> Path:
        """The TLS key, PKCS#8 PEM without passphrase, mode 0600."""
        return self.keys / "tls.pem"

    @property
    def tls_certificate(self) -> Path:
        """The TLS certificate, PEM."""
        return self.keys / "tls.crt"

    @property
    def vote_key(self) -> Path:
        """The key that signs votes, PKCS#8 PEM without passphrase, mode 0600."""
        return self.keys / "vote.pem"

    @property
    def channel_key(self) -> Path:
        """The key that signs messages and receipts of private channels, PKCS#8 PEM without passphrase, mode 0600."""
        return self.keys / "channel.pem"

    @property
    def private_data(self) -> Path:
        """The database of private channels."""
        return self.data / PRIVATE_FOLDER

    @property
    def private_key(self) -> Path:
        """The 32 bytes under which that database is sealed, mode 0600."""
        return self.keys / "private.key"

    @property
    def owner_socket(self) -> Path:
        """Where the owner's programs reach the node."""
        return self.run / "owner.sock"

    @property
    def environment(self) -> Path:
        """What names the node's trusted environment; a node without one has no such file."""
        return self.path.parent / ENVIRONMENT_FILE

    def validate(self) -> None:
        """Check what holds between fields.

        Raises:
            LocalError: ``bad_config``.
        """
        if self.name in self.peers:
            raise self._wrong(f"peers.{self.name}", "a node is no peer of itself")
        if self.consensus.timeout_ms > self.consensus.timeout_ms_max:
            raise self._wrong("consensus.timeout_ms", "must not exceed timeout_ms_max")
        if self.consensus.tick_ms * 4 > self.consensus.timeout_ms:
            raise self._wrong("consensus.tick_ms", "must be at most a quarter of timeout_ms")
        if self.consensus.quiet_ms >= self.consensus.heartbeat_ms:
            raise self._wrong("consensus.quiet_ms", "must be less than heartbeat_ms")
        if self.pool.transactions_per_sender_max > self.pool.transactions_max:
            raise self._wrong("pool.transactions_per_sender_max", "must not exceed transactions_max")
        if self.p2p.port != 0 and (self.p2p.host, self.p2p.port) == (self.rpc.host, self.rpc.port):
            raise self._wrong("rpc.port", "p2p listens on the same port")

    def _wrong(self, field: str, message: str) -> LocalError:
        return LocalError("bad_config", f"{self.path}: {field}: {message}")


def load_config(path: Path) -> NodeConfig:
    """Load and validate a node's configuration.

    Args:
        path: the file, or the home folder that holds ``node.toml``.

    Raises:
        LocalError: ``bad_config`` naming the file and the field.
    """
    if path.is_dir():
        path = path / CONFIG_FILE
    path = path.resolve()
    try:
        with path.open("rb") as source:
            content = source.read(CONFIG_BYTES_MAX + 1)
        if len(content) > CONFIG_BYTES_MAX:
            raise LocalError("bad_config", f"{path}: has more than {CONFIG_BYTES_MAX} bytes")
        file = msgspec.convert(tomllib.loads(content.decode()), _File)
    except OSError as error:
        raise LocalError("bad_config", f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise LocalError("bad_config", f"{path}: {error}") from None
    home = path.parent
    config = NodeConfig(
        path=path,
        name=NodeName(file.name),
        organisation=file.organisation,
        p2p=file.p2p,
        rpc=file.rpc,
        peers={NodeName(name): _address(path, name, text) for name, text in file.peers.items()},
        genesis=home / file.genesis,
        keys=home / file.keys,
        data=home / file.data,
        log=home / file.log,
        run=home / file.run,
        log_level=file.log_level,
        rpc_hosts=tuple(file.rpc_hosts),
        record_frames=home / file.record_frames if file.record_frames else None,
        consensus=file.consensus,
        pool=file.pool,
    )
    config.validate()
    return config


def _address(path: Path, name: str, text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isascii() and port.isdecimal() and 0 < int(port) < 65_536):
        raise LocalError("bad_config", f"{path}: peers.{name}: {text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def config_text(*, name: str, organisation: str, p2p: Endpoint, rpc: Endpoint, peers: dict[str, Endpoint]) -> str:
    """Return the text of a ``node.toml`` with defaults for everything else."""
    lines = [
        f'name = "{name}"',
        f'organisation = "{organisation}"',
        "",
        "[p2p]",
        f'host = "{p2p.host}"',
        f"port = {p2p.port}",
        "",
        "[rpc]",
        f'host = "{rpc.host}"',
        f"port = {rpc.port}",
        "",
        "[peers]",
        *(f'{peer} = "{endpoint.host}:{endpoint.port}"' for peer, endpoint in sorted(peers.items())),
    ]
    return "\n".join(lines) + "\n"
