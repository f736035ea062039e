"""Frames against a running node, over real TLS: as a validator with its own keys, and as a stranger.

A session says many frames and then asks for a block: the node handles a peer's frames in order, so its answer
shows that all of them were handled. What breaks the stream (a huge length, an unknown kind) comes last.
"""

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import trio

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.pbft.messages import decode_message_untrusted, encode_message
from node.network import local
from node.network.homes import NodeHome
from node.sync import SyncRequest, request_codec, response_codec
from p2p.frames import HEADER_BYTES, FrameKind, encode_frame
from p2p.handshake import Handshake, Handshaker
from p2p.hello_machine import Side
from p2p.tls import TlsIdentity, Trust, client_context, server_context
from tests.fuzz import samples
from tests.fuzz.liar import as_liar
from tests.fuzz.live import Live
from tests.fuzz.mutate import draw, mutate_bytes, random_bytes

SESSION_FRAMES = 2_000
BATCH_FRAMES = 50
HEARD_MAX = 300
"""Consensus messages of the nodes that are kept to be changed."""
BARRIER_S_MAX = 60
STRANGER_S_MAX = 8
BARRIER_NUMBER_MIN = 1 << 40

KINDS = (
    *[FrameKind.CONSENSUS] * 58,
    *[FrameKind.TRANSACTIONS] * 28,
    *[FrameKind.SYNC_RESPONSE] * 5,
    *[FrameKind.RESULT_RESPONSE] * 2,
    *[FrameKind.CLOCK_ANSWER] * 5,
    FrameKind.SYNC_REQUEST,
    FrameKind.RESULT_REQUEST,
)


@dataclass
class FrameFuzz:
    """Throws frames; ``handled`` counts those that a node has demonstrably worked through."""

    live: Live
    random: Random
    handled: int = 0
    sessions: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    heard: list[bytes] = field(default_factory=lambda: list(samples.message_samples()))

    def __post_init__(self) -> None:
        config = self.live.attacker_config
        self._name = config.name
        self._chain_id = self.live.network.genesis.chain_id()
        self._vote_key = PrivateKey.from_pem(config.vote_key.read_bytes())
        trust = Trust.of_genesis(self.live.network.genesis)
        identity = TlsIdentity.load(config.tls_certificate, config.tls_key)
        self._client_context = client_context(identity, trust)
        self._handshaker = Handshaker(
            chain_id=self._chain_id,
            identity=identity,
            trust=trust,
            server_context=server_context(identity, trust),
            client_context=self._client_context,
            welcome=lambda peer, side: None,
            timeout_ms=10_000,
        )
        self._number = BARRIER_NUMBER_MIN

    # -- as a validator ------------------------------------------------------------------------------------

    async def throw(self, count: int) -> None:
        """Throw this many frames at the node without penalties, in sessions one after the other."""
        goal = self.handled + count
        while self.handled < goal:
            await self._session(self.live.soft, min(SESSION_FRAMES, goal - self.handled))

    async def visit(self, home: NodeHome) -> bool:
        """Misbehave before a node with penalties until it ends the session; tell whether it let us in at all."""
        try:
            done = await self._meet(home)
        except PeerError as error:
            self.ends[f"turned away: {error.code}"] += 1
            return False
        async with done.stream:
            self.sessions += 1
            with trio.move_on_after(BARRIER_S_MAX):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read, done, trio.Event(), nursery.cancel_scope)
                    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        for _ in range(BATCH_FRAMES):
                            await done.stream.send_all(self._frame())
                    await trio.sleep_forever()  # the reader sees the end
        self.ends["sessions ended by a node with penalties"] += 1
        return True

    async def _meet(self, home: NodeHome) -> Handshake:
        try:
            transport = await trio.open_tcp_stream(home.p2p.host, home.p2p.port)
        except OSError:
            words = local.node_process(home).last_words()
            raise AssertionError(f"{home.name} cannot be reached; its log says {words[:400]}") from None
        return await self._handshaker.shake(transport, Side.DIALLER, expected=NodeName(home.name))

    async def _session(self, home: NodeHome, count: int) -> None:
        done = await self._meet(home)
        self.sessions += 1
        async with done.stream:
            answered = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, done, answered, nursery.cancel_scope)
                with trio.fail_after(BARRIER_S_MAX):
                    for _ in range(-(-count // BATCH_FRAMES)):
                        await done.stream.send_all(b"".join(self._frame() for _ in range(BATCH_FRAMES)))
                    self._number += 1
                    question = request_codec.encode(SyncRequest(self._number, 0))
                    await done.stream.send_all(encode_frame(FrameKind.SYNC_REQUEST, question))
                    await answered.wait()
                self.handled += -(-count // BATCH_FRAMES) * BATCH_FRAMES
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                    with trio.fail_after(BARRIER_S_MAX):
                        await done.stream.send_all(self._last_words())
                        await trio.sleep_forever()  # the reader sees the end

    async def _read(self, done: Handshake, answered: trio.Event, scope: trio.CancelScope) -> None:
        """Read what the node says: keep its consensus messages, notice the answer, and its end."""
        try:
            while True:
                while (frame := done.decoder.next_untrusted()) is not None:
                    self._hear(frame.kind, frame.payload, answered)
                data = await done.stream.receive_some(65_536)
                if not data:
                    break
                done.decoder.feed(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.ends["broken connections"] += 1
        scope.cancel()

    def _hear(self, kind: FrameKind, payload: bytes, answered: trio.Event) -> None:
        if kind is FrameKind.CONSENSUS:
            self.heard.append(payload)
            if len(self.heard) > HEARD_MAX:
                del self.heard[self.random.randrange(HEARD_MAX)]
        elif kind is FrameKind.SYNC_RESPONSE:
            if response_codec.decode_untrusted(payload).number == self._number:
                answered.set()
        elif kind is FrameKind.BYE:
            self.ends[f"bye: {payload.decode(errors='replace')}"] += 1

    # -- what it says --------------------------------------------------------------------------------------

    def _frame(self) -> bytes:
        kind = self.random.choice(KINDS)
        match kind:
            case FrameKind.CONSENSUS:
                payload = self._consensus()
            case FrameKind.TRANSACTIONS:
                payload = draw(self.random, samples.batch_samples())
            case FrameKind.SYNC_REQUEST:
                payload = draw(self.random, samples.sync_request_samples())
            case FrameKind.RESULT_REQUEST:
                payload = draw(self.random, [b"\x91\x01", b"\x91\xcf" + b"\x7f" * 8])
            case FrameKind.CLOCK_ANSWER:  # one that does not decode ends the session
                payload = b"\x92" + self.random.choice((b"\x00\x00", b"\x01\xcf\x00\x1f" + b"\xff" * 6, b"\x7f\x01"))
            case _:
                payload = draw(self.random, samples.sync_response_samples())
        return encode_frame(kind, payload)

    def _consensus(self) -> bytes:
        """Return a changed message; when it still decodes, often with our valid signature under it."""
        payload = draw(self.random, self.heard)
        if self.random.random() < 0.5:
            return payload
        try:
            message = decode_message_untrusted(payload)
        except PeerError:
            return payload
        return encode_message(as_liar(message, self._name, self._sign))

    def _sign(self, purpose: Purpose, payload: bytes) -> bytes:
        return self._vote_key.sign(purpose, self._chain_id, payload)

    def _last_words(self) -> bytes:
        """Return bytes that no session survives."""
        junk = random_bytes(self.random)
        return self.random.choice(
            (
                b"\xff\xff\xff\xff\x01" + junk,
                b"\x00\x50\x00\x01\x01" + junk,
                b"\x00\x00\x00\x00\x00",
                len(junk).to_bytes(4, "big") + b"\x63" + junk,
                encode_frame(FrameKind.GREETING, junk),
                encode_frame(FrameKind.HELLO, b""),
                encode_frame(FrameKind.ACK, junk),
                encode_frame(FrameKind.BYE, junk),
            )
        )

    # -- as a stranger, and within the handshake ---------------------------------------------------------------

    async def strange(self, home: NodeHome) -> None:
        """Open one connection and do something with it that is no handshake, or nearly one."""
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            with trio.move_on_after(STRANGER_S_MAX):
                stream = await trio.open_tcp_stream(home.p2p.host, home.p2p.port)
                async with stream:
                    await self.random.choice(_STRANGE)(self, stream)
        self.ends["strangers"] += 1

    async def _say_nonsense(self, stream: trio.SocketStream) -> None:
        head = self.random.choice(
            (b"", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\n\r\n", bytes(HEADER_BYTES))
        )
        await stream.send_all(head + random_bytes(self.random))
        if self.random.random() < 0.5:
            await stream.send_eof()
        await _drain(stream)

    async def _leave_at_once(self, stream: trio.SocketStream) -> None:
        if self.random.random() < 0.5:
            await stream.send_all(random_bytes(self.random))

    async def _bend_hello(self, stream: trio.SocketStream) -> None:
        """Finish TLS with the validator's certificate, then say a changed greeting, or frames before their time."""
        tls = trio.SSLStream(stream, self._client_context, https_compatible=True)
        await tls.do_handshake()
        greeting = encode_frame(FrameKind.GREETING, _greeting(self._chain_id, self.random.randbytes(32)))
        said = self.random.choice(
            (
                mutate_bytes(self.random, greeting, ()),
                greeting + mutate_bytes(self.random, encode_frame(FrameKind.HELLO, b"\x91\xc4\x40" + bytes(64)), ()),
                greeting + encode_frame(FrameKind.HELLO, b"\x91\xc4\x40" + self.random.randbytes(64)),
                greeting * 3,
                self._frame(),
                b"\x00\x00\x04\x01\x40",
                encode_frame(FrameKind.BYE, random_bytes(self.random)),
            )
        )
        await tls.send_all(said)
        await _drain(tls)


_STRANGE: tuple[Callable[[FrameFuzz, trio.SocketStream], object], ...] = (
    FrameFuzz._say_nonsense,
    FrameFuzz._leave_at_once,
    FrameFuzz._bend_hello,
    FrameFuzz._bend_hello,
)


def _greeting(chain_id: bytes, nonce: bytes) -> bytes:
    return b"\x93\x01\xc4\x20" + chain_id + b"\xc4\x20" + nonce


async def _drain(stream: trio.abc.ReceiveStream) -> None:
    while await stream.receive_some(4_096):
        pass
