"""What merchants, platforms and trusted environments sign about payees, and how a query travels.

A merchant has an *identity*: 16 random bytes, in its code and nowhere tied to a legal name. A platform keeps a *record*
for it: acquiring information that only the platform and environments it trusts can open. The record *commits* to salt
and plaintext, so that whoever opens it can be checked by whoever asked.

Contract, node, environment and programs spell it the same: the hashes here are those that a contract gets from
``context.hash`` for the same parts, and a signature covers the 32 bytes of such a hash for its purpose on its chain.

Pure.
"""

from enum import IntEnum
from typing import Annotated, Final, TypeAlias

import msgspec

from consensus.ledger.codec import Record, RecordCodec, Value, encode
from consensus.ledger.errors import LocalError
from consensus.ledger.ids import Hash, tagged_hash
from consensus.ledger.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES
from consensus.ledger.merkle import HashBytes

IDENTITY_BYTES = 16
SALT_BYTES = 32
NONCE_BYTES = 16
PLAINTEXT_BYTES_MAX = 2_048
CIPHERTEXT_BYTES_MAX = 4_096
PLATFORMS_MAX = 32
"""How many platforms have an active record of one identity."""
ENVIRONMENTS_MAX = 32
"""How many environments one platform trusts with one epoch's key."""
WRAP_BYTES_MAX = 256
DELEGATION_MS_MAX = 24 * 3_600 * 1_000
QUERY_AGE_MS_MAX = 60_000
"""How far a query's time may be from the clock of who answers it."""
HEAD_AGE_MS_MAX = 120_000
"""How old a head may be that states are proven under; an idle chain makes a block every 30 s."""

QUERY_BYTES_MAX = 1_024
ANSWER_BYTES_MAX = 256 * 1_024
STATES_BYTES_MAX = 4 * 1_024 * 1_024
FRAME_BYTES_MAX = STATES_BYTES_MAX + 64 * 1_024
"""Size of a message between node and environment, after its four bytes of length."""

CONTRACT: Final = "payees"

Identity: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=IDENTITY_BYTES, max_length=IDENTITY_BYTES)]
Server: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
"""A platform: the name of its organisation."""
EnvironmentName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
Key: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
Signature: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Nonce: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
TimeMs: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Natural: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Code: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[a-z_]{0,40}\Z")]


class Mode(IntEnum):
    """What a query asks for."""

    TARGET = 0
    """The asking platform's own record and nothing else (mode A)."""
    CANDIDATES = 1
    """All platforms of the identity; the client picks (mode B)."""


# -- state keys ------------------------------------------------------------------------------------------


def merchant_key(identity: bytes) -> str:
    """Return the state key of a merchant's record, with the servers that have an active record of it."""
    return f"{CONTRACT}/merchant/{identity.hex()}"


def record_key(server: str, identity: bytes) -> str:
    """Return the state key of a platform's record of an identity."""
    return f"{CONTRACT}/record/{server}/{identity.hex()}"


def platform_key(server: str) -> str:
    """Return the state key of a platform's key and epoch."""
    return f"{CONTRACT}/platform/{server}"


def wrap_key(server: str, epoch: int, environment: str) -> str:
    """Return the state key of an epoch's key wrapped for an environment."""
    return f"{CONTRACT}/wrap/{server}/{epoch:06d}/{environment}"


def environment_key(environment: str) -> str:
    """Return the state key of an environment's keys and measurement."""
    return f"{CONTRACT}/environment/{environment}"


def allowed_key(measurement: bytes) -> str:
    """Return the state key that says whether a measurement is on the allow-list."""
    return f"{CONTRACT}/allowed/{measurement.hex()}"


# -- what merchants sign, for Purpose.PAYEE_MERCHANT -----------------------------------------------------


def merchant_hash(identity: bytes, key: bytes) -> Hash:
    """Return what a new merchant signs with ``key``, which thereby it is shown to hold."""
    return _hash("payee-merchant", identity, key)


def merchant_change_hash(identity: bytes, number: int, new_key: bytes) -> Hash:
    """Return what old and new key sign when a merchant's key is replaced for the ``number``-th time, from 1 on."""
    return _hash("payee-merchant-key", identity, number, new_key)


def content_hash(identity: bytes, server: str, version: int, commitment_: bytes, is_shareable: bool) -> Hash:
    """Return what the merchant signs of a record: what the platform may say of it, from this version on.

    It stays in force while the platform encrypts the same content anew under later versions.
    """
    return _hash("payee-content", identity, server, version, commitment_, is_shareable)


def consent_hash(identity: bytes, number: int, is_given: bool) -> Hash:
    """Return what a merchant signs when it lets other platforms' clients see its shareable records, or no more."""
    return _hash("payee-consent", identity, number, is_given)


def removal_hash(identity: bytes, server: str, version: int) -> Hash:
    """Return what merchant or platform signs to remove a record; ``version`` is the next one.

    The merchant's counts also while the platform goes on to encrypt the same content anew.
    The platform's signature of it is for ``Purpose.PAYEE_PLATFORM``.
    """
    return _hash("payee-removal", identity, server, version)


# -- what platforms sign, for Purpose.PAYEE_PLATFORM -----------------------------------------------------


def record_hash(
    identity: bytes,
    server: str,
    version: int,
    content_version: int,
    epoch: int,
    commitment_: bytes,
    ciphertext: bytes,
    is_shareable: bool,
) -> Hash:
    """Return what the platform signs of a record; ``content_version`` is the one that the merchant has signed."""
    return _hash(
        "payee-record", identity, server, version, content_version, epoch, commitment_, ciphertext, is_shareable
    )


def log_hash(log: bytes, number: int, signed: bytes) -> Hash:
    """Return a merchant's log after its ``number``-th change, from 1 on, for which ``signed`` was signed.

    Before the first the log is 32 zero bytes; a change's event names ``number`` and ``signed``.
    """
    return _hash("payee-log", log, number, signed)


def wrap_hash(server: str, epoch: int, environment: str, wrap: bytes) -> Hash:
    """Return what a platform signs of its epoch's key wrapped for an environment."""
    return _hash("payee-wrap", server, epoch, environment, wrap)


def delegation_hash(server: str, key: bytes, until_ms: int) -> Hash:
    """Return what a platform signs so that ``key`` may sign queries for it until then, ms UTC."""
    return _hash("payee-delegation", server, key, until_ms)


# -- what a record holds ---------------------------------------------------------------------------------


def commitment(salt: bytes, plaintext: bytes) -> Hash:
    """Return what a record says of its content.

    Raises:
        LocalError: ``bad_salt`` for one that has not 32 bytes: a byte more could be the content's first.
    """
    if len(salt) != SALT_BYTES:
        raise LocalError("bad_salt", f"a salt has {SALT_BYTES} bytes, not {len(salt)}")
    return tagged_hash("payee-content", salt, plaintext)


def record_place(identity: bytes, server: str, version: int) -> bytes:
    """Return the associated data that a record's ciphertext is bound to."""
    return encode(["payee-record", identity, server, version])


class Content(Record, frozen=True):
    """What a record's ciphertext holds: a salt and the plaintext that the record commits to."""

    salt: Annotated[bytes, msgspec.Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    plaintext: Annotated[bytes, msgspec.Meta(max_length=PLAINTEXT_BYTES_MAX)]

    def __repr__(self) -> str:
        """Say nothing of what it holds: logs and errors may show any object."""
        return "Content(…)"


content_codec: RecordCodec[Content] = RecordCodec(Content, bytes_max=PLAINTEXT_BYTES_MAX + 64)


# -- queries ---------------------------------------------------------------------------------------------


class Delegation(Record, frozen=True):
    """A platform lets ``key`` sign queries for it until ``until_ms``, at most a day ahead."""

    server: Server
    key: Key
    until_ms: TimeMs
    signature: Signature


class QueryBody(Record, frozen=True):
    """Who asks about whom, in which mode; the answer is encrypted to ``exchange_key``, which is made for it alone."""

    chain_id: HashBytes
    server: Server
    identity: Identity
    mode: Annotated[int, msgspec.Meta(ge=0, le=1)]
    exchange_key: Key
    nonce: Nonce
    time_ms: TimeMs


class Query(Record, frozen=True):
    """A query with its signature by the platform's key, or by the delegation's, for ``Purpose.PAYEE_QUERY``."""

    body: QueryBody
    signature: Signature
    delegation: Delegation | None


query_codec: RecordCodec[Query] = RecordCodec(Query, bytes_max=QUERY_BYTES_MAX)


def query_hash(body: QueryBody) -> Hash:
    """Return what a query's signature covers; it also names the query, in its answer and on the chain."""
    return tagged_hash("payee-query", encode(_parts(body)))


# -- answers ---------------------------------------------------------------------------------------------


class Served(Record, frozen=True):
    """One platform's record in an answer; ``content`` is None where only the platform's name may be told."""

    server: Server
    version: Natural
    content: Content | None


class AnswerContent(Record, frozen=True):
    """What an answer says once it is decrypted: records, or a code and none.

    Codes: ``unknown_identity``, ``no_platform`` (the asking platform has no active record), ``missing_key`` (its
    platform has not given the environment the epoch's key), ``bad_record`` (what the platform stored does not open).
    """

    code: Code
    served: Annotated[list[Served], msgspec.Meta(max_length=PLATFORMS_MAX)]


class Answer(Record, frozen=True):
    """An environment's answer, encrypted to the query, signed for ``Purpose.PAYEE_ANSWER``.

    ``height`` is of the head whose proven states it was made from.
    """

    query: HashBytes
    environment: EnvironmentName
    height: Natural
    exchange_key: Key
    sealed: Annotated[bytes, msgspec.Meta(max_length=ANSWER_BYTES_MAX)]
    signature: Signature


answer_content_codec: RecordCodec[AnswerContent] = RecordCodec(AnswerContent, bytes_max=ANSWER_BYTES_MAX)
answer_codec: RecordCodec[Answer] = RecordCodec(Answer, bytes_max=ANSWER_BYTES_MAX + 1_024)


def answer_hash(query: bytes, environment: str, height: int, exchange_key: bytes, sealed: bytes) -> Hash:
    """Return what the environment signs of an answer."""
    return _hash("payee-answer", query, environment, height, exchange_key, sealed)


# -- the environment's interface: frames of four bytes of length, big-endian, and one of these ----------


class Quote(Record, frozen=True):
    """An environment says what it is, signed for ``Purpose.PAYEE_QUOTE`` over a nonce of the asker.

    ``measurement`` is the hash of the code that runs. The emulation measures itself: no hardware vouches for it.
    """

    environment: EnvironmentName
    measurement: HashBytes
    exchange_key: Key
    signing_key: Key
    nonce: Nonce
    signature: Signature


quote_codec: RecordCodec[Quote] = RecordCodec(Quote, bytes_max=512)


def quote_hash(environment: str, measurement: bytes, exchange_key: bytes, signing_key: bytes, nonce: bytes) -> Hash:
    """Return what a quote's signature covers."""
    return _hash("payee-quote", environment, measurement, exchange_key, signing_key, nonce)


class AskQuote(Record, frozen=True, tag=1):
    """Ask for a quote; told with a ``Quote``."""

    nonce: Nonce


class AskResolve(Record, frozen=True, tag=2):
    """Ask for an answer to a query out of proven states (:mod:`consensus.ledger.states`); told with an ``Answer``."""

    query: Annotated[bytes, msgspec.Meta(max_length=QUERY_BYTES_MAX)]
    states: Annotated[bytes, msgspec.Meta(max_length=STATES_BYTES_MAX)]


class Told(Record, frozen=True):
    """What comes of each ask, in order: its body, or a code and words without any content of a record.

    Codes: ``malformed``, ``wrong_chain``, ``bad_query`` (signature or delegation), ``query_expired``,
    ``unknown_platform``, ``bad_states`` (a proof does not hold or one is missing), ``stale_states`` (the head
    is too old or older than one seen before), ``busy`` (too many are connected), ``internal`` (a bug).
    """

    code: Code
    message: Annotated[str, msgspec.Meta(max_length=1_000)]
    body: Annotated[bytes, msgspec.Meta(max_length=ANSWER_BYTES_MAX + 1_024)]


ask_codec: RecordCodec[AskQuote | AskResolve] = RecordCodec(AskQuote | AskResolve, bytes_max=FRAME_BYTES_MAX)
told_codec: RecordCodec[Told] = RecordCodec(Told, bytes_max=FRAME_BYTES_MAX)


def _parts(body: QueryBody) -> list[Value]:
    return [
        body.chain_id,
        body.server,
        body.identity,
        int(body.mode),
        body.exchange_key,
        body.nonce,
        body.time_ms,
    ]


def _hash(*parts: Value) -> Hash:
    return tagged_hash("contract-data", encode([*parts]))
