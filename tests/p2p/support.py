"""Real certificates, real TLS, real sockets on loopback for the tests of p2p."""

import socket
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import trio

from consensus.ledger.ids import ChainId, NodeName
from consensus.ledger.keys import PrivateKey
from node.network.ca import Authority, to_pem, utc_now
from p2p.frames import FrameKind
from p2p.network import Network, NetworkConfig, PrivateSide
from p2p.session import SessionLimits, system_wall_ms
from p2p.tls import TlsIdentity, Trust

CHAIN = ChainId(b"\x11" * 32)
HOST = "127.0.0.1"
LONG_AGO = utc_now() - timedelta(days=1_000)


class Certificates:
    """A consortium of organisations ``org-NAME``, one for each node, in a folder."""

    def __init__(self, folder: Path, *nodes: str) -> None:
        self.folder = folder
        self.now = utc_now()
        self.roots = {f"org-{node}": Authority.create(f"org-{node}", now=self.now) for node in nodes}
        self.trust = Trust.of((name, to_pem(root.certificate).decode()) for name, root in self.roots.items())

    def identity(
        self,
        node: str,
        *,
        root: Authority | None = None,
        organisation: str | None = None,
        now: datetime | None = None,
        days: int = 100,
    ) -> TlsIdentity:
        """Return a new identity of a node, issued by its own organisation's root unless told otherwise."""
        root = root or self.roots[f"org-{node}"]
        key = PrivateKey.generate()
        certificate = root.issue(
            node, key.exchange.public_key(), now=now or self.now, days=days, organisation=organisation
        )
        stem = self.folder / f"{node}-{certificate.serial_number}"
        stem.with_suffix(".crt").write_bytes(to_pem(certificate))
        stem.with_suffix(".pem").write_bytes(key.to_pem(None))
        return TlsIdentity.load(stem.with_suffix(".crt"), stem.with_suffix(".pem"))


class Inbox:
    """A handler that keeps what it gets and lets a test wait for it."""

    def __init__(self) -> None:
        self.frames: list[tuple[NodeName, FrameKind, bytes]] = []
        self._changed = trio.Event()

    async def handle(self, peer: NodeName, kind: FrameKind, payload: bytes) -> None:
        """Keep a frame."""
        self.frames.append((peer, kind, payload))
        self.touch()

    def touch(self) -> None:
        """Let waiting tests look again."""
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], bool], *, timeout_s: float = 30) -> None:
        """Wait until the condition holds; it is asked again after each touch."""
        with trio.fail_after(timeout_s):
            while not condition():
                await self._changed.wait()

    async def has(self, count: int) -> None:
        """Wait for this many frames."""
        await self.until(lambda: len(self.frames) >= count)


def make_network(
    certificates: Certificates,
    name: str,
    inbox: Inbox,
    *,
    port: int = 0,
    peers: dict[str, int] | None = None,
    identity: TlsIdentity | None = None,
    chain_id: ChainId = CHAIN,
    admits: Callable[[NodeName, str, bytes], bool] = lambda name, organisation, fingerprint: True,
    handler: Callable[[NodeName, FrameKind, bytes], object] | None = None,
    limits: SessionLimits | None = None,
    trust: Trust | None = None,
    wall_ms: Callable[[], int] = system_wall_ms,
    private: PrivateSide | None = None,
    **settings: int,
) -> Network:
    """Return a network of a node that touches its inbox whenever a session begins or ends."""
    config = NetworkConfig(
        name=NodeName(name),
        chain_id=chain_id,
        identity=identity or certificates.identity(name),
        trust=trust or certificates.trust,
        host=HOST,
        port=port,
        peers={NodeName(peer): (HOST, peer_port) for peer, peer_port in (peers or {}).items()},
        limits=limits or SessionLimits(),
        **settings,  # type: ignore[arg-type]
    )
    return Network(
        config,
        handler or inbox.handle,  # type: ignore[arg-type]
        admits=admits,
        random=Random(name),
        on_peer=lambda peer, connected: inbox.touch(),
        wall_ms=wall_ms,
        private=private,
    )


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
