"""The node's end of its trusted environment: a process of its own behind a local socket, and what it must show.

``environment.toml`` beside ``node.toml`` names it and is read at each connect, so an environment may come, go and
change while the node runs. At each connect the kernel says which user listens there, and a quote over a fresh nonce
says what runs; the quote is held against the chain before each ask and again before its answer is handed on. The
environment is an emulation without hardware isolation: what it says of itself is vouched for by nothing but its key.

One connection is kept. Asks go out and answers come in, in order; an environment that is silent, talks nonsense or
closes costs its own connection and the asks on it, nothing else.
"""

import os
import secrets
import struct
import tomllib
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from socket import SO_PEERCRED, SOL_SOCKET
from typing import Annotated, Literal

import msgspec
import structlog
import trio

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PublicKey, Purpose
from consensus.ledger.payees import (
    ANSWER_BYTES_MAX,
    NONCE_BYTES,
    AskQuote,
    AskResolve,
    EnvironmentName,
    Key,
    Quote,
    Told,
    allowed_key,
    ask_codec,
    environment_key,
    quote_codec,
    quote_hash,
    told_codec,
)
from contracts.runtime.state import StateReader
from node.sockets import short_name

ENVIRONMENT_FILE_BYTES_MAX = 16 * 1024
ASKS_MAX = 128
"""How many asks may wait for the environment, and how many callers for a connection to it."""
ASKS_BYTES_MAX = 64 * 1024 * 1024
"""Size of the asks that wait to be sent."""
TOLD_BYTES_MAX = ANSWER_BYTES_MAX + 16 * 1024
"""Longest message that is taken from an environment."""
CONNECT_MS_MAX = 3_000
"""Time for a connection and its quote."""
ANSWER_MS_MAX = 5_000
"""Time for the answer that is next; then the connection is ended."""
TOLD_CODES = frozenset(
    {"malformed", "wrong_chain", "bad_query", "query_expired", "unknown_platform", "bad_states", "stale_states"}
)
"""What an environment may refuse a query with; see :class:`consensus.ledger.payees.Told`."""

_LENGTH_BYTES = 4
_CREDENTIALS = struct.Struct("3i")
"""``struct ucred``: process, user, group."""

log = structlog.get_logger("node")


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``environment.toml``: the environment's name on chain, its socket, and who runs it, else the node's own user."""

    name: EnvironmentName
    socket: Annotated[str, msgspec.Meta(min_length=1, max_length=4_096)]
    user: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _Registered(msgspec.Struct, frozen=True, rename="camel"):
    """An environment as the contract has it."""

    exchange_key: Key
    signing_key: Key
    measurement: bytes
    status: Literal["ACTIVE", "WITHDRAWN"]


class _Allowed(msgspec.Struct, frozen=True):
    status: Literal["ALLOWED", "DISALLOWED"]


_registered_decoder = msgspec.msgpack.Decoder(_Registered)
_allowed_decoder = msgspec.msgpack.Decoder(_Allowed)


def check_standing(state: StateReader, quote: Quote) -> None:
    """Check that the chain has this environment as it says it is, and allows what runs there.

    Raises:
        PeerError: ``environment_refused``.
    """
    name = quote.environment
    data = state.get(environment_key(name).encode())
    try:
        found = None if data is None else _registered_decoder.decode(data)
        data = state.get(allowed_key(quote.measurement).encode())
        allowed = None if data is None else _allowed_decoder.decode(data)
    except msgspec.MsgspecError:
        raise _refused(f"what the chain has of environment {name} cannot be read") from None
    if found is None:
        raise _refused(f"environment {name} is not registered")
    if found.status != "ACTIVE":
        raise _refused(f"environment {name} has been withdrawn")
    said = (quote.exchange_key, quote.signing_key, quote.measurement)
    if said != (found.exchange_key, found.signing_key, found.measurement):
        raise _refused(f"environment {name} is registered with other keys or another measurement")
    if allowed is None or allowed.status != "ALLOWED":
        raise _refused(f"measurement {quote.measurement.hex()} of environment {name} is not allowed")


def _refused(why: str) -> PeerError:
    return PeerError("environment_refused", why)


@dataclass(slots=True, eq=False)
class _Ask:
    """An encoded ask and, once it is done, what the environment told; None when the connection ended first."""

    data: bytes
    done: trio.Event = field(default_factory=trio.Event)
    told: Told | None = None


class Session:
    """One connection to an environment whose user and quote have been checked.

    Args:
        stream: the connection; the session owns it.
        quote: what the environment has said of itself.
        user: who listens on the socket, a uid.
    """

    def __init__(self, stream: trio.abc.Stream, quote: Quote, user: int) -> None:
        self.quote = quote
        self.user = user
        self.is_live = True
        self._stream = stream
        self.ended = PeerError("environment_down", "the connection to the environment has ended")
        """Why asks fail once the session is not live."""
        self._queue: deque[_Ask] = deque()
        self._queue_bytes = 0
        self._sent: deque[_Ask] = deque()
        self._more = trio.Event()
        self._scope = trio.CancelScope()
        self._answering = trio.CancelScope()

    @property
    def waiting(self) -> int:
        """How many asks have no answer yet."""
        return len(self._queue) + len(self._sent)

    async def ask(self, ask: AskQuote | AskResolve) -> bytes:
        """Return the body of what the environment tells.

        Raises:
            PeerError: ``busy``, ``environment_down``, or one of ``TOLD_CODES``.
        """
        item = _Ask(ask_codec.encode(ask))
        if not self.is_live:
            raise PeerError(self.ended.code, self.ended.message)
        if self.waiting >= ASKS_MAX or self._queue_bytes + len(item.data) > ASKS_BYTES_MAX:
            raise PeerError("busy", "too many queries wait for this node's environment")
        self._queue.append(item)
        self._queue_bytes += len(item.data)
        self._more.set()
        try:
            await item.done.wait()
        finally:
            if item in self._queue:
                self._queue.remove(item)
                self._queue_bytes -= len(item.data)
        if item.told is None:
            raise PeerError(self.ended.code, self.ended.message)
        if not item.told.code:
            return item.told.body
        if item.told.code in TOLD_CODES:
            raise PeerError(item.told.code, item.told.message)
        raise PeerError("environment_down", f"the environment says {item.told.code}")

    def end(self, error: PeerError) -> None:
        """End the connection; asks under way fail with this error."""
        if self.is_live:
            self.ended = error
            self.is_live = False
            self._scope.cancel()

    def broken(self, why: str) -> PeerError:
        """End the connection, and return the error ``environment_down`` that its asks fail with."""
        error = PeerError("environment_down", why)
        self.end(error)
        return error

    async def run(self) -> None:
        """Carry asks and answers until the connection ends; errors of the environment end it quietly."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send)
                    nursery.start_soon(self._receive)
        finally:
            self.is_live = False
            for item in [*self._sent, *self._queue]:
                item.done.set()
            await trio.aclose_forcefully(self._stream)

    async def _send(self) -> None:
        try:
            while True:
                while not self._queue:
                    self._more = trio.Event()
                    await self._more.wait()
                item = self._queue.popleft()
                self._queue_bytes -= len(item.data)
                self._sent.append(item)
                if len(self._sent) == 1:
                    self._answering.deadline = trio.current_time() + ANSWER_MS_MAX / 1_000
                await _send_frame(self._stream, item.data)
        except (OSError, trio.BrokenResourceError) as error:
            self.broken(f"the environment has gone: {error}")

    async def _receive(self) -> None:
        try:
            with self._answering:
                while True:
                    told = told_codec.decode_untrusted(await _receive_frame(self._stream))
                    if not self._sent:
                        raise PeerError("malformed", "an answer to nothing")
                    item = self._sent.popleft()
                    item.told = told
                    item.done.set()
                    since = trio.current_time() if self._sent else float("inf")
                    self._answering.deadline = since + ANSWER_MS_MAX / 1_000
            if self._answering.cancelled_caught:
                self.broken(f"the environment has not answered within {ANSWER_MS_MAX} ms")
        except (OSError, trio.BrokenResourceError, PeerError) as error:
            self.broken(f"the environment has gone or talks nonsense: {error}")


@dataclass(slots=True, eq=False)
class _Attempt:
    """A connection that callers wait for; when it is done there is a session or an error."""

    done: trio.Event = field(default_factory=trio.Event)
    waiting: int = 0
    session: Session | None = None
    error: PeerError = field(default_factory=lambda: PeerError("environment_down", "the node has not connected to it"))


class EnvironmentLink:
    """The connection to the environment that a file names, made when it is needed.

    Args:
        path: of ``environment.toml``.
        chain_id: of the chain that quotes are signed for.
    """

    def __init__(self, path: Path, chain_id: ChainId) -> None:
        self._path = path
        self._chain_id = chain_id
        self._session: Session | None = None
        self._attempt = _Attempt()
        self._wanted = trio.Event()
        self._status = ""

    async def run(self) -> None:
        """Connect whenever somebody asks for a session, until cancelled. A bug costs its connection."""
        while True:
            await self._wanted.wait()
            try:
                await self._connect_once()
            except Exception:  # the border: the environment is a service of the node, not its life
                log.exception("the link to the environment failed")

    async def session(self) -> Session:
        """Return the live session, after connecting if there is none.

        Raises:
            PeerError: ``environment_missing``, ``environment_down``, ``environment_refused``, ``busy``.
        """
        if self._session is not None and self._session.is_live:
            return self._session
        attempt = self._attempt
        if attempt.waiting >= ASKS_MAX:
            raise PeerError("busy", "too many queries wait for this node's environment")
        attempt.waiting += 1
        self._wanted.set()
        await attempt.done.wait()
        if attempt.session is None:
            raise PeerError(attempt.error.code, attempt.error.message)
        return attempt.session

    def figures(self) -> dict[str, int]:
        """Return figures for ``/metrics``."""
        session = self._session
        is_up = session is not None and session.is_live
        waiting = self._attempt.waiting if session is None or not is_up else session.waiting
        return {"payee_environment_up": int(is_up), "payee_asks_waiting": waiting}

    def note(self, status: str, why: str = "") -> None:
        """Log how the environment is, ``ready`` or a code, when that has changed."""
        if status != self._status:
            tell = log.info if status == "ready" else log.warning
            tell("environment", status=status, why=why)
            self._status = status

    async def _connect_once(self) -> None:
        attempt = self._attempt
        try:
            attempt.session = await self._open()
        except PeerError as error:
            attempt.error = error
            self.note(error.code, error.message)
        finally:
            self._attempt, self._wanted = _Attempt(), trio.Event()
            self._session = attempt.session
            attempt.done.set()
        if attempt.session is not None:
            await attempt.session.run()
            self.note(attempt.session.ended.code, attempt.session.ended.message)

    async def _open(self) -> Session:
        """Connect, and check who listens and what it says of itself."""
        file = _load(self._path)
        try:
            with trio.fail_after(CONNECT_MS_MAX / 1_000):
                with short_name(self._path.parent / file.socket) as name:
                    stream = await trio.open_unix_socket(name)
                try:
                    user = _check_user(stream, file)
                    return Session(stream, await self._quote(stream, file), user)
                except BaseException:
                    await trio.aclose_forcefully(stream)
                    raise
        except OSError as error:
            raise PeerError("environment_down", f"environment {file.name}: {error.strerror or error}") from None
        except (trio.TooSlowError, trio.BrokenResourceError):
            raise PeerError("environment_down", f"environment {file.name} does not say what it is") from None

    async def _quote(self, stream: trio.abc.Stream, file: _File) -> Quote:
        """Ask for a quote and check all of it that does not depend on the chain's state."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        await _send_frame(stream, ask_codec.encode(AskQuote(nonce)))
        try:
            told = told_codec.decode_untrusted(await _receive_frame(stream))
            if told.code:
                raise PeerError(told.code, f"it says {told.code}")
            quote = quote_codec.decode_untrusted(told.body)
            key = PublicKey.load_untrusted(quote.signing_key)
        except PeerError as error:
            raise PeerError("environment_down", f"environment {file.name} shows no quote: {error}") from None
        signed = quote_hash(quote.environment, quote.measurement, quote.exchange_key, quote.signing_key, nonce)
        if quote.nonce != nonce or not key.verifies(quote.signature, Purpose.PAYEE_QUOTE, self._chain_id, signed):
            raise _refused(f"the quote of environment {file.name} is not signed for this node")
        if quote.environment != file.name:
            raise _refused(f"environment {quote.environment} answers, not {file.name}")
        return quote


def _load(path: Path) -> _File:
    try:
        with path.open("rb") as source:
            content = source.read(ENVIRONMENT_FILE_BYTES_MAX)
        return msgspec.convert(tomllib.loads(content.decode()), _File)
    except FileNotFoundError:
        raise PeerError("environment_missing", "this node has no trusted environment") from None
    except OSError as error:
        raise PeerError("environment_missing", f"{path.name}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise PeerError("environment_missing", f"{path.name}: {error}") from None


def _check_user(stream: trio.SocketStream, file: _File) -> int:
    """Return the user that listens on the socket, as the kernel knows it, if it is the one that should."""
    credentials = stream.socket.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    expected = os.getuid() if file.user is None else file.user
    if user != expected:
        raise _refused(f"environment {file.name} runs as user {user}, not {expected}")
    return int(user)


async def _send_frame(stream: trio.abc.SendStream, data: bytes) -> None:
    await stream.send_all(len(data).to_bytes(_LENGTH_BYTES, "big") + data)


async def _receive_frame(stream: trio.abc.ReceiveStream) -> bytes:
    """Return the next frame's content; nothing is read beyond it.

    Raises:
        PeerError: ``malformed`` for a frame too long or cut off.
    """
    length = int.from_bytes(await _receive_exactly(stream, _LENGTH_BYTES), "big")
    if length > TOLD_BYTES_MAX:
        raise PeerError("malformed", f"a frame of {length} bytes")
    return await _receive_exactly(stream, length)


async def _receive_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    parts: list[bytes | bytearray] = []
    while size:
        part = await stream.receive_some(size)
        if not part:
            raise PeerError("malformed", "the connection was closed")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
