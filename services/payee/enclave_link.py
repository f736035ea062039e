"""Asks an environment on this machine what it is; answers to queries are the node's to ask for."""

import os
import secrets
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

import trio

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PublicKey, Purpose
from consensus.ledger.payees import (
    NONCE_BYTES,
    AskQuote,
    Quote,
    ask_codec,
    quote_codec,
    quote_hash,
    told_codec,
)
from services.client.errors import Refused, Unreachable
from services.client.sockets import address_of

ANSWER_BYTES_MAX = 4_096
TIMEOUT_S = 5.0
_LENGTH_BYTES = 4
_PEER = struct.Struct("@iII")
"""struct ucred: process, user, group."""
_FILTERED = "2"
"""How the system shows a process whose system calls are filtered."""


@dataclass(frozen=True, slots=True)
class Quoted:
    """A quote whose signature is right, and who listens on the socket, as the system says."""

    quote: Quote
    process: int
    user: int


async def ask_quote(path: Path, chain_id: ChainId) -> Quoted:
    """Return what the environment behind a socket says of itself, asked with a fresh nonce.

    That the chain knows its keys and allows its measurement is not checked.

    Raises:
        Unreachable: ``environment_unreachable``.
        Refused: the environment refuses, with its code.
        PeerError: ``bad_quote``.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    body, (process, user) = await _ask(path, ask_codec.encode(AskQuote(nonce)))
    try:
        quote = quote_codec.decode_untrusted(body)
        covered = quote_hash(quote.environment, quote.measurement, quote.exchange_key, quote.signing_key, nonce)
        key = PublicKey.load_untrusted(quote.signing_key)
    except PeerError as error:
        raise PeerError("bad_quote", f"{path}: {error.message}") from None
    if quote.nonce != nonce or not key.verifies(quote.signature, Purpose.PAYEE_QUOTE, chain_id, covered):
        raise PeerError(
            "bad_quote", f"{path}: the quote is not signed for this chain and nonce by the key that it names"
        )
    return Quoted(quote, process, user)


def look_at(process: int, user: int) -> dict[str, str]:
    """Return what keeps a process apart, by name, in words, as the system shows it to whoever asks."""
    try:
        lines = Path(f"/proc/{process}/status").read_text("ascii", "replace").splitlines()
        shown = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    except OSError:
        return {"walls": "the system shows nothing of the process"}
    try:
        is_apart = os.readlink(f"/proc/{process}/ns/net") != os.readlink("/proc/self/ns/net")
        network = "none: a namespace of its own" if is_apart else "the machine's"
    except OSError:
        network = "not shown to this user"
    is_filtered = shown.get("Seccomp") == [_FILTERED]
    return {
        "own user": "no" if user in {0, os.geteuid()} else "yes",
        "other groups": ", ".join(shown.get("Groups", [])) or "none",
        "network": network,
        "system calls": "filtered: no network sockets, no new programs" if is_filtered else "all",
        "new privileges": "no" if shown.get("NoNewPrivs") == ["1"] else "possible",
    }


async def _ask(path: Path, ask: bytes) -> tuple[bytes, tuple[int, int]]:
    """Return what is told, and process and user of who listens."""
    try:
        with trio.fail_after(TIMEOUT_S), address_of(path) as address:
            async with await trio.open_unix_socket(address) as stream:
                peer = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
                await stream.send_all(len(ask).to_bytes(_LENGTH_BYTES, "big") + ask)
                length = int.from_bytes(await _receive(stream, _LENGTH_BYTES), "big")
                if length > ANSWER_BYTES_MAX:
                    raise PeerError("bad_quote", f"{path} answers {length} bytes")
                told = told_codec.decode_untrusted(await _receive(stream, length))
    except (OSError, EOFError, trio.BrokenResourceError, trio.TooSlowError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "it does not answer"
        raise Unreachable(f"no environment answers on {path}: {why}", code="environment_unreachable") from None
    except PeerError as error:
        raise PeerError("bad_quote", f"{path}: {error.message}") from None
    if told.code:
        raise Refused(told.code, told.message)
    process, user, _ = _PEER.unpack(peer)
    return told.body, (process, user)


async def _receive(stream: trio.SocketStream, count: int) -> bytes:
    """Return so many bytes; EOFError where the stream ends before."""
    data = bytearray()
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
