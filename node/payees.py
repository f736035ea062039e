"""Queries for payees as a node answers them: it proves what the chain has, and its environment makes the answer of it.

The node opens nothing. It finds by the query which keys speak of it, proves them all under one head, and hands both
to its environment, which checks everything itself; whoever asked gets the answer and the same proven states.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from consensus.ledger.codec import Value, decode
from consensus.ledger.errors import PeerError
from consensus.ledger.payees import (
    NONCE_BYTES,
    PLATFORMS_MAX,
    AskQuote,
    AskResolve,
    Mode,
    QueryBody,
    Quote,
    allowed_key,
    answer_codec,
    environment_key,
    merchant_key,
    platform_key,
    query_codec,
    query_hash,
    record_key,
    wrap_key,
)
from consensus.ledger.states import states_codec
from node.chain import Chain
from node.environment import EnvironmentLink, Session, check_standing
from node.proofs import ProofMaker

ISOLATION = "emulated, without hardware isolation"


@dataclass(frozen=True, slots=True)
class Resolution:
    """An environment's answer and the proven states that it was made from, both encoded."""

    answer: bytes
    states: bytes
    environment: str


@dataclass(frozen=True, slots=True)
class EnvironmentReport:
    """What a node knows of its environment; ``code`` is empty when queries are answered."""

    code: str
    message: str
    quote: Quote | None
    user: int | None


class PayeeDesk:
    """Answers queries for payees out of the chain's state with the help of the node's environment.

    Args:
        chain, proofs: of the node.
        link: to its environment, None where it can have none.
        settled: returns once no block is being written.
    """

    def __init__(
        self,
        chain: Chain,
        proofs: ProofMaker,
        link: EnvironmentLink | None,
        settled: Callable[[], Awaitable[None]],
    ) -> None:
        self._chain = chain
        self._proofs = proofs
        self._link = link
        self._settled = settled

    async def resolve(self, query: bytes) -> Resolution:
        """Return the answer to an encoded query, and the states behind it.

        Raises:
            PeerError: ``malformed``, ``wrong_chain``, ``environment_missing``, ``environment_down``,
                ``environment_refused``, ``busy``, ``genesis_unsigned``, or what the environment tells.
        """
        body = query_codec.decode_untrusted(query).body
        if body.chain_id != self._chain.chain_id:
            raise PeerError("wrong_chain", "the query is for another chain")
        session = await self._session()
        await self._settled()
        # From here to the ask nothing is awaited: all is read and proven at one head.
        self._check(session)
        states = states_codec.encode(self._proofs.states(self._keys(body, session.quote)))
        data = await session.ask(AskResolve(query, states))
        self._check(session)
        name = session.quote.environment
        try:
            answer = answer_codec.decode_untrusted(data)
        except PeerError as error:
            raise session.broken(f"environment {name} talks nonsense: {error}") from None
        if (answer.query, answer.environment) != (query_hash(body), name):
            raise session.broken(f"environment {name} answered another query")
        return Resolution(data, states, name)

    async def report(self) -> EnvironmentReport:
        """Return how the environment is, after asking it for a sign of life."""
        session: Session | None = None
        try:
            session = await self._session()
            await session.ask(AskQuote(bytes(NONCE_BYTES)))
            self._check(session)
        except PeerError as error:
            known = (None, None) if session is None else (session.quote, session.user)
            return EnvironmentReport(error.code, error.message, *known)
        return EnvironmentReport("", "", session.quote, session.user)

    def figures(self) -> dict[str, int]:
        """Return figures for ``/metrics``."""
        return {} if self._link is None else self._link.figures()

    async def _session(self) -> Session:
        if self._link is None:
            raise PeerError("environment_missing", "this node has no trusted environment")
        return await self._link.session()

    def _check(self, session: Session) -> None:
        """Check the quote against the newest state, and against the sealed one, by which the asker judges the answer.

        One that does not hold ends the connection.

        Raises:
            PeerError: ``environment_refused``.
        """
        try:
            for state in (self._chain.state, self._chain.state.sealed):
                check_standing(state, session.quote)
        except PeerError as error:
            session.end(error)
            raise
        if self._link is not None:
            self._link.note("ready")

    def _keys(self, body: QueryBody, quote: Quote) -> list[str]:
        """Return the keys that speak of a query."""
        identity, environment = body.identity, quote.environment
        keys = [
            merchant_key(identity),
            platform_key(body.server),
            environment_key(environment),
            allowed_key(quote.measurement),
        ]
        servers = [body.server]
        if body.mode == Mode.CANDIDATES:
            merchant = self._sealed(merchant_key(identity))
            listed = merchant.get("servers") if isinstance(merchant, dict) else None
            servers = [str(server) for server in listed[:PLATFORMS_MAX]] if isinstance(listed, list) else []
        for server in servers:
            key = record_key(server, identity)
            keys.append(key)
            record = self._sealed(key)
            epoch = record.get("epoch") if isinstance(record, dict) else None
            if isinstance(epoch, int):
                keys.append(wrap_key(server, epoch, environment))
        return keys

    def _sealed(self, key: str) -> Value:
        data = self._chain.state.sealed.get(key.encode())
        return None if data is None else decode(data)
