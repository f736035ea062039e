"""How fast two nodes talk over TLS on loopback, both in one process: frames a second, bytes, round trip."""

import argparse
import json
import tempfile
import time
from pathlib import Path
from random import Random

import trio

from consensus.ledger.ids import ChainId, NodeName
from consensus.ledger.keys import PrivateKey
from node.network.ca import Authority, to_pem, utc_now
from p2p.frames import FrameKind
from p2p.network import Network, NetworkConfig
from p2p.tls import TlsIdentity, Trust

FRAMES = 50_000
FRAME_BYTES = 250
BLOCKS = 40
BLOCK_BYTES = 4 * 1024 * 1024
ROUND_TRIPS = 2_000
WINDOW = 4_000
"""Frames sent before the sender waits, half of what a queue holds."""


class _End:
    """One node: counts what arrives and answers sync requests."""

    def __init__(self, folder: Path, name: str, peers: dict[NodeName, tuple[str, int]], authority: Authority) -> None:
        self.received = 0
        self.changed = trio.Event()
        key = PrivateKey.generate()
        certificate, secret = folder / f"{name}.crt", folder / f"{name}.pem"
        certificate.write_bytes(to_pem(authority.issue(name, key.exchange.public_key(), now=utc_now())))
        secret.write_bytes(key.to_pem(None))
        config = NetworkConfig(
            name=NodeName(name),
            chain_id=ChainId(bytes(32)),
            identity=TlsIdentity.load(certificate, secret),
            trust=Trust({authority.organisation: (authority.certificate,)}),
            host="127.0.0.1",
            port=0,
            peers=peers,
        )
        self.network = Network(
            config, self._handle, admits=lambda *_: True, random=Random(0), on_peer=lambda *_: self._touch()
        )

    def _touch(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def _handle(self, peer: NodeName, kind: FrameKind, payload: bytes) -> None:
        self.received += 1
        if kind is FrameKind.SYNC_REQUEST:
            self.network.send(peer, FrameKind.SYNC_RESPONSE, payload)
        self._touch()

    async def has(self, count: int) -> None:
        """Wait for this many frames in all."""
        while self.received < count:
            await self.changed.wait()


async def measure() -> dict[str, float]:
    """Return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority.create("org", now=utc_now())
        b = _End(Path(folder), "b", {}, authority)
        async with trio.open_nursery() as nursery:
            port = await nursery.start(b.network.run)
            a = _End(Path(folder), "a", {NodeName("b"): ("127.0.0.1", port)}, authority)
            nursery.start_soon(a.network.run)
            for end in (a, b):
                while not end.network.connected():
                    await end.changed.wait()
            frames_s = await _stream(a, b, FRAME_BYTES, FRAMES, WINDOW)
            blocks_s = await _stream(a, b, BLOCK_BYTES, BLOCKS, 2)
            began = time.perf_counter()
            for number in range(ROUND_TRIPS):
                a.network.send(NodeName("b"), FrameKind.SYNC_REQUEST, b"ping")
                await a.has(number + 1)
            round_trip_s = (time.perf_counter() - began) / ROUND_TRIPS
            nursery.cancel_scope.cancel()
    return {
        "frames_per_s": round(frames_s),
        "megabytes_per_s": round(blocks_s * BLOCK_BYTES / 1e6),
        "round_trip_us": round(round_trip_s * 1e6),
    }


async def _stream(sender: _End, receiver: _End, size: int, count: int, window: int) -> float:
    payload, base = bytes(size), receiver.received
    began = time.perf_counter()
    for number in range(count):
        sender.network.send(NodeName("b"), FrameKind.CONSENSUS, payload)
        if number % window == window - 1:
            await receiver.has(base + number + 1 - window // 2)
    await receiver.has(base + count)
    return count / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    figures = trio.run(measure)
    if arguments.json:
        print(json.dumps(figures))
        return
    print(f"{figures['frames_per_s']:>10,.0f} frames of {FRAME_BYTES} B a second")
    print(f"{figures['megabytes_per_s']:>10,.0f} MB a second in frames of 4 MiB")
    print(f"{figures['round_trip_us']:>10,.0f} µs a round trip")


if __name__ == "__main__":
    main()
