"""What a trusted environment decides: bytes in, bytes out, no input or output of its own.

It trusts the genesis document, its clock and its keys, and nobody who asks. Out of proven states it learns who asks,
which records there are and which keys it was given; it checks that the head they are proven under is fresh and not
older than one it has seen; then it decrypts, and encrypts the answer to whoever asked. The node that brings query and
states, and takes the answer away, learns which identity is asked for and how long the answer is.

A plaintext or a key stands in no refusal and no log. This is an emulation without hardware isolation: the root of the
machine can read its memory and its keys.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final, Literal, TypeVar, assert_never

import msgspec

from consensus.ledger.errors import PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey, PublicKey, Purpose
from consensus.ledger.payees import (
    DELEGATION_MS_MAX,
    HEAD_AGE_MS_MAX,
    PLATFORMS_MAX,
    QUERY_AGE_MS_MAX,
    Answer,
    AnswerContent,
    AskQuote,
    AskResolve,
    Content,
    Delegation,
    Key,
    Mode,
    Natural,
    Query,
    QueryBody,
    Quote,
    Served,
    Server,
    Told,
    answer_codec,
    answer_hash,
    ask_codec,
    delegation_hash,
    merchant_key,
    platform_key,
    query_codec,
    query_hash,
    quote_codec,
    quote_hash,
    record_key,
    told_codec,
    wrap_key,
)
from consensus.ledger.states import ProvenStates, StatesChecker
from services.payee.sealing import EpochKey, ExchangeKey, check_commitment, seal_answer, unwrap_epoch_key

EPOCH_KEYS_MAX: Final = 1_024
"""How many epochs' keys are remembered once they were unwrapped."""
DELEGATIONS_MAX: Final = 4_096
"""How many delegations are remembered once their signature was checked."""

_ACTIVE = "ACTIVE"
_TEXT_MAX = 200
"""Characters of a refusal's words."""


class _Merchant(msgspec.Struct, frozen=True):
    """Of a merchant's state: whether others' clients may see its shareable records, and who has one of it."""

    consent: bool
    servers: Annotated[list[Server], msgspec.Meta(max_length=PLATFORMS_MAX)]


class _Platform(msgspec.Struct, frozen=True):
    key: Key


class _Record(msgspec.Struct, frozen=True, rename="camel"):
    version: Natural
    epoch: Natural
    commitment: bytes
    ciphertext: bytes
    is_shareable: bool
    status: Literal["ACTIVE", "REMOVED"]


class _Wrap(msgspec.Struct, frozen=True):
    wrap: bytes


S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class EnvironmentKeys:
    """What an environment keeps sealed: a key that epochs' keys are wrapped for, and one that signs what it says."""

    exchange: ExchangeKey
    signing: PrivateKey


class Environment:
    """One environment of one chain. Not for several threads."""

    def __init__(
        self,
        genesis: Genesis,
        name: str,
        keys: EnvironmentKeys,
        *,
        measurement: bytes,
        clock_ms: Callable[[], int],
        height: int = 0,
    ) -> None:
        """Begin; ``height`` is of the highest head seen before, ``clock_ms`` gives the time in ms UTC."""
        self.name = name
        self.measurement = measurement
        self.height = height
        """Of the highest fresh head that was seen, whoever brought it; it never falls."""
        self._chain_id: ChainId = genesis.chain_id()
        self._keys = keys
        self._clock_ms = clock_ms
        self._checker = StatesChecker(genesis)
        # Both depend on what they are given alone, so that what is remembered stays true.
        self._epoch_key = lru_cache(maxsize=EPOCH_KEYS_MAX)(self._unwrap)
        self._is_delegated = lru_cache(maxsize=DELEGATIONS_MAX)(self._has_signed)

    def tell(self, ask: bytes) -> bytes:
        """Return what comes of one message of :mod:`consensus.ledger.payees`: a body or a refusal, as ``Told``."""
        try:
            told = Told("", "", self._body(ask))
        except PeerError as error:
            told = Told(error.code, error.message[:_TEXT_MAX], b"")
        return told_codec.encode(told)

    def quote(self, nonce: bytes) -> Quote:
        """Return, signed, what this environment is."""
        exchange, signing = self._keys.exchange.public, self._keys.signing.public.compressed
        covered = quote_hash(self.name, self.measurement, exchange, signing, nonce)
        signature = self._keys.signing.sign(Purpose.PAYEE_QUOTE, self._chain_id, covered)
        return Quote(self.name, self.measurement, exchange, signing, nonce, signature)

    def resolve(self, query: bytes, states: bytes) -> Answer:
        """Return the answer to a signed query out of proven states.

        Raises:
            PeerError: ``malformed``, ``wrong_chain``, ``bad_query``, ``query_expired``, ``unknown_platform``,
                ``bad_states`` or ``stale_states``.
        """
        asked = _decoded(query)
        body = asked.body
        if body.chain_id != self._chain_id:
            raise PeerError("wrong_chain", "the query belongs to another chain")
        now_ms = self._clock_ms()
        if abs(now_ms - body.time_ms) > QUERY_AGE_MS_MAX:
            raise PeerError("query_expired", f"a query's time is within {QUERY_AGE_MS_MAX} ms of this clock")
        proven = self._proven(states, now_ms)
        platform = _needed(proven, platform_key(body.server), _Platform)
        if platform is None:
            raise PeerError("unknown_platform", f"the chain has no key of {body.server}")
        name = self._check_signed(asked, platform.key, proven.time_ms)
        return self._answer(name, body, proven.height, self._content(body, proven))

    def _body(self, data: bytes) -> bytes:
        try:
            ask = ask_codec.decode_untrusted(data)
        except PeerError as error:
            raise PeerError("malformed", error.message) from None
        match ask:
            case AskQuote(nonce=nonce):
                return quote_codec.encode(self.quote(nonce))
            case AskResolve(query=query, states=states):
                return answer_codec.encode(self.resolve(query, states))
            case _:
                assert_never(ask)

    def _proven(self, states: bytes, now_ms: int) -> ProvenStates:
        """Return what states prove under a head that is fresh."""
        try:
            proven = self._checker.check_untrusted(states)
        except PeerError as error:
            code = error.code if error.code in {"wrong_chain", "malformed"} else "bad_states"
            raise PeerError(code, error.message) from None
        if proven.height < self.height:
            raise PeerError("stale_states", f"head {proven.height} is older than {self.height}, which was seen before")
        if abs(now_ms - proven.time_ms) > HEAD_AGE_MS_MAX:
            raise PeerError("stale_states", f"the head's time is not within {HEAD_AGE_MS_MAX} ms of this clock")
        self.height = proven.height
        return proven

    def _check_signed(self, query: Query, platform: bytes, time_ms: int) -> bytes:
        """Return a query's hash, once its signature is the platform's or its delegate's at this block time."""
        body, delegation = query.body, query.delegation
        signer = platform
        if delegation is not None:
            # The platform's clock may be ahead of the head's, by no more than the head may be old.
            left_ms = delegation.until_ms - time_ms
            is_in_force = 0 <= left_ms <= DELEGATION_MS_MAX + HEAD_AGE_MS_MAX
            if delegation.server != body.server or not is_in_force or not self._is_delegated(platform, delegation):
                raise PeerError("bad_query", "the query's delegation is not in force, or not the platform's")
            signer = delegation.key
        name = query_hash(body)
        if not _verifies(signer, query.signature, Purpose.PAYEE_QUERY, self._chain_id, name):
            raise PeerError("bad_query", "the query's signature is not the platform's, nor its delegate's")
        return name

    def _has_signed(self, platform: bytes, delegation: Delegation) -> bool:
        covered = delegation_hash(delegation.server, delegation.key, delegation.until_ms)
        return _verifies(platform, delegation.signature, Purpose.PAYEE_PLATFORM, self._chain_id, covered)

    def _content(self, body: QueryBody, proven: ProvenStates) -> AnswerContent:
        """Return what is told: nothing of another platform's but what merchant and platform let it be told."""
        merchant = _needed(proven, merchant_key(body.identity), _Merchant)
        if merchant is None:
            return AnswerContent("unknown_identity", [])
        mode = Mode(body.mode)
        match mode:
            case Mode.TARGET:
                servers = [body.server]
            case Mode.CANDIDATES:
                servers = merchant.servers
            case _:
                assert_never(mode)
        served: list[Served] = []
        for server in servers:
            record = _needed(proven, record_key(server, body.identity), _Record)
            if record is None or record.status != _ACTIVE:
                continue
            is_own = server == body.server
            content: Content | None = None
            if is_own or (merchant.consent and record.is_shareable):
                try:
                    content = self._opened(proven, server, body.identity, record)
                except PeerError as error:
                    if error.code == "bad_states":
                        raise
                    if is_own:
                        return AnswerContent(error.code, [])
            served.append(Served(server, record.version, content))
        return AnswerContent("" if served else "no_platform", served)

    def _opened(self, proven: ProvenStates, server: str, identity: bytes, record: _Record) -> Content:
        """Return what a record holds.

        Raises:
            PeerError: ``missing_key`` or ``bad_record``, as answers say it; ``bad_states``.
        """
        given = _needed(proven, wrap_key(server, record.epoch, self.name), _Wrap)
        if given is None:
            raise PeerError("missing_key")
        try:
            key = self._epoch_key(given.wrap, server, record.epoch)
        except PeerError:
            raise PeerError("missing_key") from None
        try:
            content = key.open_record(record.ciphertext, identity=identity, server=server, version=record.version)
            check_commitment(content, record.commitment)
        except PeerError:
            raise PeerError("bad_record") from None
        return content

    def _unwrap(self, wrap: bytes, server: str, epoch: int) -> EpochKey:
        return unwrap_epoch_key(wrap, server=server, epoch=epoch, environment=self.name, exchange=self._keys.exchange)

    def _answer(self, name: bytes, body: QueryBody, height: int, content: AnswerContent) -> Answer:
        fresh = ExchangeKey.generate()
        try:
            sealed = seal_answer(
                content,
                query=name,
                environment=self.name,
                height=height,
                exchange_key=body.exchange_key,
                fresh=fresh,
            )
        except PeerError:
            raise PeerError("bad_query", "the query's exchange key is no key") from None
        covered = answer_hash(name, self.name, height, fresh.public, sealed)
        signature = self._keys.signing.sign(Purpose.PAYEE_ANSWER, self._chain_id, covered)
        return Answer(name, self.name, height, fresh.public, sealed, signature)


def _decoded(query: bytes) -> Query:
    try:
        return query_codec.decode_untrusted(query)
    except PeerError as error:
        raise PeerError("malformed", error.message) from None


def _needed(proven: ProvenStates, key: str, kind: type[S]) -> S | None:
    """Return what is proven to stand at a key, None where nothing does.

    Raises:
        PeerError: ``bad_states``.
    """
    try:
        value = proven.value(key)
        # Bytes are bytes: a text in their place is not taken for base64.
        return None if value is None else msgspec.convert(value, kind, builtin_types=(bytes,))
    except (PeerError, msgspec.ValidationError):
        # The key itself would say in the node's log who is asked for.
        raise PeerError("bad_states", f"of {key.split('/')[1]} nothing that is understood is proven") from None


def _verifies(key: bytes, signature: bytes, purpose: Purpose, chain_id: ChainId, covered: bytes) -> bool:
    try:
        return PublicKey.load_untrusted(key).verifies(signature, purpose, chain_id, covered)
    except PeerError:
        return False
