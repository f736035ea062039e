"""The payer's client asks a node about an identity, and believes nothing that it has not checked.

A node hands the query to its environment and returns the answer with the states that the environment looked at. Those
lead to the pinned genesis document: which platforms have a record, what each commits to, which environments are
registered, which measurements are allowed. So the answer must be what the states say, opened: another payee does not
fit the commitment, another record not the version, and that there is none is proven as well. A node that cannot answer
is passed over; so is one that answers falsely, which is named and not asked first again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeVar

import msgspec

from consensus.ledger.errors import HansaError, LocalError, PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.ids import ChainId, Hash
from consensus.ledger.keys import PrivateKey, PublicKey, Purpose
from consensus.ledger.payees import (
    CONTRACT,
    HEAD_AGE_MS_MAX,
    NONCE_BYTES,
    Answer,
    AnswerContent,
    Content,
    Delegation,
    Mode,
    Query,
    QueryBody,
    Served,
    allowed_key,
    answer_codec,
    answer_hash,
    environment_key,
    merchant_key,
    query_codec,
    query_hash,
    record_key,
)
from consensus.ledger.states import ProvenStates, StatesChecker
from services.client.client import Client
from services.client.connection import Transport
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.payee.interfaces import Acquiring, SplitAcquiring
from services.payee.sealing import ExchangeKey, check_commitment, open_answer
from services.payee.split import Plaintext, decode_plaintext

ACTIVE: Final = "ACTIVE"
ALLOWED: Final = "ALLOWED"
RESOLVE_MS_MAX = 6_500
"""How long one node is waited for: longer than it waits for its environment, so that it says what is the matter."""
UNPROVEN = frozenset({"missing_key", "bad_record"})
"""What an environment may say without proof: it could not open a record. Another one may."""
_MISSING = "environment_missing"
_NO_ENVIRONMENT = frozenset({_MISSING, "method_not_found", "node_error"})
_CANNOT_ANSWER = frozenset({"environment_down", "environment_refused", "busy"})

T = TypeVar("T")


class _Stored(msgspec.Struct, frozen=True, rename="camel"):
    """Base of what the contract keeps; fields that nobody here looks at are passed over."""


class _Merchant(_Stored, frozen=True):
    key: bytes
    consent: bool
    servers: list[str]


class _StoredRecord(_Stored, frozen=True):
    version: int
    commitment: bytes
    is_shareable: bool
    status: str


class _Environment(_Stored, frozen=True):
    signing_key: bytes
    measurement: bytes
    status: str


class _Allowed(_Stored, frozen=True):
    status: str


_DECODERS: dict[type[_Stored], "msgspec.msgpack.Decoder[_Stored]"] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (_Merchant, _StoredRecord, _Environment, _Allowed)
}

S = TypeVar("S", bound=_Stored)


class Told(msgspec.Struct, frozen=True, rename="camel"):
    """What ``payee_resolve`` returns; bytes travel in base64."""

    answer: bytes
    states: bytes


@dataclass(frozen=True, slots=True)
class QuerySigner:
    """Who signs queries: the platform itself, or a key that it has delegated to."""

    server: str
    key: PrivateKey
    delegation: Delegation | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A signed query: its canonical bytes, its hash, and the key that alone opens its answer."""

    body: QueryBody
    hash: Hash
    raw: bytes
    exchange: ExchangeKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One platform's record of an identity; ``acquiring`` is None where only the platform's name may be told.

    ``split`` is there of a record with a split key, which only a code's part and its platform's part open.
    """

    server: str
    version: int
    acquiring: Acquiring | None = field(repr=False)
    split: SplitAcquiring | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What was found for an identity, checked against the chain at ``height``, whose head is of ``time_ms`` UTC.

    ``merchant_key`` is the merchant's proven key, ``is_consenting`` whether others' records may be shown. ``node`` is
    the URL of who answered; its ``environment`` is an emulation without hardware isolation. ``answer`` and ``states``
    are the bytes that were checked. ``liars`` says which nodes were asked before and answered falsely, and how.
    """

    identity: bytes
    server: str
    mode: Mode
    candidates: tuple[Candidate, ...]
    merchant_key: bytes
    is_consenting: bool
    height: int
    time_ms: int
    environment: str
    query: Hash
    node: str
    answer: bytes = field(repr=False)
    states: bytes = field(repr=False)
    liars: tuple[str, ...] = ()

    @property
    def target(self) -> Candidate | None:
        """The asking platform's own record; None where it has none, which only mode B can bring."""
        return next((one for one in self.candidates if one.server == self.server), None)


class Nodes(Protocol):
    """Who can be asked: a :class:`services.client.reader.Reader`."""

    genesis: Genesis
    chain_id: ChainId

    def each_node(self) -> Mapping[str, Transport]:
        """Return the nodes by their URLs."""
        ...


class Resolver:
    """Asks the nodes of a consortium about identities, for one platform."""

    def __init__(
        self,
        reader: Nodes,
        signer: QuerySigner,
        *,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        checker: StatesChecker | None = None,
    ) -> None:
        """Take what asks and signs.

        Args:
            reader: to the nodes, with the pinned genesis document.
            signer: of the queries.
            now_ms: the clock that heads are judged by, ms UTC.
            random_bytes: makes the nonces.
            checker: one that other resolvers in this process use as well.
        """
        self._chain_id = reader.chain_id
        self._nodes = list(reader.each_node().items())
        self._preferred = 0
        self._signer = signer
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._checker = checker or StatesChecker(reader.genesis)
        self._height = 0
        """The highest head that was proven."""

    async def resolve(self, identity: bytes, mode: Mode = Mode.TARGET) -> Resolved:
        """Return what the chain has of an identity; errors as :meth:`ask`."""
        return await self.ask(self.query(identity, mode))

    def query(self, identity: bytes, mode: Mode = Mode.TARGET) -> Asked:
        """Return a new signed query, good for a minute."""
        exchange = ExchangeKey.generate()
        body = QueryBody(
            chain_id=self._chain_id,
            server=self._signer.server,
            identity=identity,
            mode=int(mode),
            exchange_key=exchange.public,
            nonce=self._random_bytes(NONCE_BYTES),
            time_ms=self._now_ms(),
        )
        name = query_hash(body)
        signature = self._signer.key.sign(Purpose.PAYEE_QUERY, self._chain_id, name)
        return Asked(body, name, query_codec.encode(Query(body, signature, self._signer.delegation)), exchange)

    async def ask(self, asked: Asked) -> Resolved:
        """Ask one node after the other until one answers, and check what it says.

        Raises:
            Refused: ``unknown_identity`` and ``no_platform`` are proven; ``stale_answer`` where no node proves a head
                of the last two minutes, or as new as one before; else what the nodes said.
            Unreachable: no node can be reached, or none's environment: ``environment_down``.
            PeerError: ``bad_answer`` names a node whose answer is not what the chain says, where no other one answers.
        """
        failures: list[tuple[str, HansaError]] = []
        first = self._preferred
        for step in range(len(self._nodes)):
            index = (first + step) % len(self._nodes)
            url, node = self._nodes[index]
            seen = self._height
            try:
                told = await node.request("payee_resolve", {"query": asked.raw}, Told, timeout_ms=RESOLVE_MS_MAX)
                code, resolved = self._check_untrusted(asked, told, url, seen)
            except (Unreachable, Refused) as error:
                failures.append((url, error))
                continue
            except PeerError as error:
                is_lie = error.code != "wrong_chain"
                lie = PeerError("bad_answer", f"{url} answers falsely: {error.message}")
                failures.append((url, lie if is_lie else error))
                continue
            self._preferred = index
            if code:
                raise Refused(code, _WORDS[code].format(server=asked.body.server))
            liars = tuple(error.message for _, error in failures if error.code == "bad_answer")
            return replace(resolved, liars=liars)
        # Whoever has lied is not asked first again.
        self._preferred = (first + 1) % len(self._nodes)
        raise _told_best(failures)

    def _check_untrusted(self, asked: Asked, told: Told, url: str, seen: int) -> tuple[str, Resolved]:
        """Return what an answer says, with a code where there is nothing to show.

        Raises:
            PeerError: it is not what the chain says.
            Refused: ``stale_answer``, ``missing_key``, ``bad_record``: another node may do better.
        """
        states = self._checker.check_untrusted(told.states)
        age_ms = self._now_ms() - states.time_ms
        if age_ms > HEAD_AGE_MS_MAX:
            raise Refused("stale_answer", f"its newest block is {age_ms // 1000} s old by this clock")
        if states.height < seen:
            raise Refused("stale_answer", f"it proves block {states.height}, and block {seen} was proven before")
        self._height = max(self._height, states.height)
        return judged_untrusted(asked, told, states, url)


async def record_query(client: Client, signer: Signer, asked: Asked) -> int:
    """Have the chain keep that a query was made, by its hash; return the height of the block.

    Raises:
        Refused, Unreachable, PeerError: as :meth:`Client.call`, and the contract's.
    """
    outcome = await client.call(signer, CONTRACT, "record_query", {"query": bytes(asked.hash)})
    outcome.check()
    return outcome.height


def judged_untrusted(asked: Asked, told: Told, states: ProvenStates, url: str) -> tuple[str, Resolved]:
    """Return what an answer says, held against the states that it came with; a code where there is nothing to show.

    Raises:
        PeerError: it is not what the chain says.
        Refused: ``missing_key``, ``bad_record``: the environment cannot open a record, which proves nothing.
    """
    answer, content = open_untrusted(asked, told.answer, states)
    if content.code in UNPROVEN:
        raise Refused(content.code, f"environment {answer.environment} cannot open a record")
    code, merchant, candidates = check_content_untrusted(asked.body, content, states)
    return code, Resolved(
        identity=asked.body.identity,
        server=asked.body.server,
        mode=Mode(asked.body.mode),
        candidates=candidates,
        merchant_key=merchant.key if merchant else b"",
        is_consenting=merchant is not None and merchant.consent,
        height=states.height,
        time_ms=states.time_ms,
        environment=answer.environment,
        query=asked.hash,
        node=url,
        answer=told.answer,
        states=told.states,
    )


def open_untrusted(asked: Asked, data: bytes, states: ProvenStates) -> tuple[Answer, AnswerContent]:
    """Return an answer and what it says, once it is shown to be of a trusted environment, to this query.

    Raises:
        PeerError: it is not.
    """
    answer = answer_codec.decode_untrusted(data)
    if answer.query != asked.hash:
        raise PeerError("bad_answer", "the answer is to another query")
    if answer.height != states.height:
        raise PeerError("bad_answer", "the answer speaks of another head than the states")
    name = answer.environment
    environment = _stored(states, environment_key(name), _Environment)
    if environment is None or environment.status != ACTIVE:
        raise PeerError("bad_answer", f"environment {name} is not registered, or was withdrawn")
    allowed = _stored(states, allowed_key(environment.measurement), _Allowed)
    if allowed is None or allowed.status != ALLOWED:
        raise PeerError("bad_answer", f"the measurement of environment {name} is not on the allow-list")
    signed = answer_hash(answer.query, name, answer.height, answer.exchange_key, answer.sealed)
    key = PublicKey.load_untrusted(environment.signing_key)
    if not key.verifies(answer.signature, Purpose.PAYEE_ANSWER, ChainId(asked.body.chain_id), signed):
        raise PeerError("bad_answer", f"the answer is not signed by environment {name}")
    content = open_answer(
        answer.sealed,
        query=answer.query,
        environment=name,
        height=answer.height,
        exchange_key=answer.exchange_key,
        own=asked.exchange,
    )
    return answer, content


def check_content_untrusted(
    body: QueryBody, content: AnswerContent, states: ProvenStates
) -> "tuple[str, _Merchant | None, tuple[Candidate, ...]]":
    """Return what the states say, opened by an answer: a proven code or none, the merchant, the candidates.

    Raises:
        PeerError: the answer says something else.
        Refused: ``bad_record``: what the asking platform wrote is no acquiring information.
    """
    merchant = _stored(states, merchant_key(body.identity), _Merchant)
    mode, own = Mode(body.mode), body.server
    wanted: list[tuple[str, _StoredRecord]] = []
    if merchant is not None:
        servers = [own] if mode is Mode.TARGET else merchant.servers
        found = [(server, _stored(states, record_key(server, body.identity), _StoredRecord)) for server in servers]
        wanted = [(server, record) for server, record in found if record is not None and record.status == ACTIVE]
    code = "unknown_identity" if merchant is None else "" if wanted else "no_platform"
    if content.code != code:
        raise PeerError("bad_answer", f"the answer says {content.code or 'a record'}, the chain {code or 'a record'}")
    if [served.server for served in content.served] != [server for server, _ in wanted]:
        raise PeerError("bad_answer", "the answer has records of other platforms than the chain")
    is_shown = merchant is not None and merchant.consent
    candidates = tuple(
        _candidate_untrusted(served, record, is_own=served.server == own, is_shown=is_shown)
        for served, (_, record) in zip(content.served, wanted, strict=True)
    )
    return code, merchant, candidates


def _candidate_untrusted(served: Served, record: _StoredRecord, *, is_own: bool, is_shown: bool) -> Candidate:
    """Return one record, once it is shown to be what the chain commits to and may be told."""
    if served.version != record.version:
        raise PeerError("bad_answer", f"{served.server}: version {served.version}, the chain has {record.version}")
    if served.content is None:
        if is_own:
            raise PeerError("bad_answer", f"{served.server}: its own record is held back")
        return Candidate(served.server, served.version, None)
    if not (is_own or (is_shown and record.is_shareable)):
        raise PeerError("bad_answer", f"{served.server}: its record is shown without leave")
    check_commitment(served.content, record.commitment)
    match _plaintext(served.content, served.server, is_own=is_own):
        case SplitAcquiring() as split:
            return Candidate(served.server, served.version, None, split)
        case acquiring:
            return Candidate(served.server, served.version, acquiring)


def _plaintext(content: Content, server: str, *, is_own: bool) -> Plaintext | None:
    """Return what a record says, None where another platform wrote something else."""
    try:
        return decode_plaintext(content.plaintext)
    except PeerError:
        if not is_own:
            return None
        raise Refused("bad_record", f"what {server} keeps of this identity is no acquiring information") from None


def _stored(states: ProvenStates, key: str, kind: type[S]) -> S | None:
    """Return a proven value of the contract's.

    Raises:
        PeerError: ``not_proven``; ``bad_answer`` for one of another form than this program knows.
    """
    data = states.stored(key)
    if data is None:
        return None
    try:
        found = _DECODERS[kind].decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerError("bad_answer", f"{key.split('/')[1]} on the chain has another form: {error}") from None
    if not isinstance(found, kind):
        raise LocalError("bad_answer", f"{kind.__name__} is decoded as {type(found).__name__}")
    return found


_WORDS = {
    "unknown_identity": "the chain knows no merchant with this identity",
    "no_platform": "{server} has no record of this merchant",
}
"""What is proven where there is nothing to show."""


def _told_best(failures: list[tuple[str, HansaError]]) -> HansaError:
    """Return the failure that says most: a lie, what an environment refused, then why none answers."""

    def rank(error: HansaError) -> int:
        if error.code == "bad_answer":
            return -1
        if error.code in _NO_ENVIRONMENT:
            return 3
        if isinstance(error, Refused):
            return 1 if error.code in _CANNOT_ANSWER else 0
        return 2

    url, best = min(failures, key=lambda failure: rank(failure[1]))
    message = best.message if best.code == "bad_answer" else f"{url}: {best.message}"
    others = ", ".join(f"{other} {error.code}" for other, error in failures if other != url)
    if others:
        message += f" (others: {others})"
    if isinstance(best, PeerError):
        return PeerError(best.code, message)
    if isinstance(best, Unreachable) or best.code in {*_CANNOT_ANSWER, _MISSING}:
        return Unreachable(message, best.code)
    return Refused(best.code, message)
