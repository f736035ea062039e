"""What a trusted environment answers, to whom, and what it refuses; without its process."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from consensus.ledger.codec import Value, decode, encode
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.payees import (
    DELEGATION_MS_MAX,
    HEAD_AGE_MS_MAX,
    QUERY_AGE_MS_MAX,
    Answer,
    AnswerContent,
    AskQuote,
    AskResolve,
    Content,
    Delegation,
    Mode,
    Query,
    QueryBody,
    Served,
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
from consensus.ledger.states import states_codec
from services.payee.enclave import Environment
from services.payee.sealing import EpochKey, ExchangeKey, open_answer
from tests.contracts.domain.payees import MEASUREMENT, identity, key
from tests.payee.resolving import SALT, SECRETS, PayeeWorld, acquiring, environment_keys

NAME = "bank-a"
WHO = identity(0)
DELEGATE = key(900)
OWN = ExchangeKey.from_secret((77_001).to_bytes(32, "big"))


def content_of(server: str, account: str = "merchant-m") -> Content:
    """Return what the platform's record of the world below holds."""
    return Content(SALT, msgspec.json.encode(acquiring(server, account)))


@dataclass
class Desk:
    """An environment and whoever asks it: everything is right unless a test makes it wrong."""

    world: PayeeWorld
    clock_ms: int = 0
    environment: Environment = field(init=False)

    def __post_init__(self) -> None:
        self.clock_ms = self.clock_ms or self.world.now_ms
        self.environment = self.begin()

    def begin(self, *, height: int = 0) -> Environment:
        """Return an environment as it begins."""
        return Environment(
            self.world.chain.genesis,
            NAME,
            environment_keys(NAME),
            measurement=MEASUREMENT,
            clock_ms=lambda: self.clock_ms,
            height=height,
        )

    def body(self, server: str = "wallet-p", who: bytes = WHO, mode: Mode = Mode.TARGET) -> QueryBody:
        chain_id = self.world.chain.chain_id
        return QueryBody(chain_id, server, who, mode, OWN.public, bytes(16), self.clock_ms)

    def signed(self, body: QueryBody, signer: PrivateKey | None = None, delegation: Delegation | None = None) -> Query:
        signer = signer or self.world.platforms[body.server]
        signature = signer.sign(Purpose.PAYEE_QUERY, self.world.chain.chain_id, query_hash(body))
        return Query(body, signature, delegation)

    def delegation(self, left_ms: int = 1_000, *, server: str = "wallet-p", by: PrivateKey | None = None) -> Delegation:
        until_ms = self.world.now_ms + left_ms
        covered = delegation_hash(server, DELEGATE.public.compressed, until_ms)
        by = by or self.world.platforms[server]
        signature = by.sign(Purpose.PAYEE_PLATFORM, self.world.chain.chain_id, covered)
        return Delegation(server, DELEGATE.public.compressed, until_ms, signature)

    def states(self, query: Query, *, without: Sequence[str] = (), time_ms: int = 0) -> bytes:
        return self.world.states(self.world.keys_for(query, NAME) - {*without}, time_ms=time_ms)

    def resolve(self, query: Query, states: bytes | None = None) -> Answer:
        states = self.states(query) if states is None else states
        return self.environment.resolve(query_codec.encode(query), states)

    def asked(self, server: str = "wallet-p", who: bytes = WHO, mode: Mode = Mode.TARGET) -> AnswerContent:
        """Ask and open the answer, whose signature must be the environment's."""
        query = self.signed(self.body(server, who, mode))
        answer = self.resolve(query)
        name = query_hash(query.body)
        covered = answer_hash(name, NAME, answer.height, answer.exchange_key, answer.sealed)
        signing = environment_keys(NAME).signing.public
        assert signing.verifies(answer.signature, Purpose.PAYEE_ANSWER, self.world.chain.chain_id, covered)
        assert (answer.query, answer.environment, answer.height) == (name, NAME, self.world.chain.height)
        return open_answer(
            answer.sealed,
            query=name,
            environment=NAME,
            height=answer.height,
            exchange_key=answer.exchange_key,
            own=OWN,
        )

    def refusal(self, query: Query, states: bytes | None = None) -> str:
        """Return the code of a refusal."""
        with pytest.raises(PeerError) as caught:
            self.resolve(query, states)
        return caught.value.code

    def put(self, state_key: str, **changes: Value) -> None:
        """Change what stands on the chain as no contract would."""
        old: Any = decode(self.world.chain.state.entries()[state_key.encode()])
        self.world.chain.state.apply({state_key.encode(): encode({**old, **changes})})


def make_desk(*, consent: bool = False, shareable: bool = False) -> Desk:
    """Return a world of two merchants: both platforms have a record of the first, and wallet-p of the second."""
    world = PayeeWorld()
    world.call("merchant-m", "register_merchant", **world.registration(1))
    world.add("wallet-p", is_shareable=shareable)
    world.add("wallet-q", is_shareable=shareable)
    world.add("wallet-p", merchant=1, account="m-1")
    if consent:
        world.call("merchant-m", "set_consent", **world.consent())
    return Desk(world)


@cache
def shared_world(*, consent: bool = False, shareable: bool = False) -> PayeeWorld:
    """Return such a world for tests that change nothing of it."""
    return make_desk(consent=consent, shareable=shareable).world


@pytest.fixture
def desk() -> Desk:
    return Desk(shared_world())


# -- who gets what ---------------------------------------------------------------------------------------


def test_mode_a_gives_the_asking_platforms_own_record_and_nothing_else() -> None:
    desk = Desk(shared_world(consent=True, shareable=True))
    assert desk.asked() == AnswerContent("", [Served("wallet-p", 1, content_of("wallet-p"))])
    assert desk.asked("wallet-q") == AnswerContent("", [Served("wallet-q", 1, content_of("wallet-q"))])
    assert desk.asked(who=identity(1)) == AnswerContent("", [Served("wallet-p", 1, content_of("wallet-p", "m-1"))])


@pytest.mark.parametrize("consent", [False, True])
@pytest.mark.parametrize("shareable", [False, True])
def test_mode_b_gives_anothers_content_only_if_merchant_and_platform_let_it(consent: bool, shareable: bool) -> None:
    desk = Desk(shared_world(consent=consent, shareable=shareable))
    theirs = content_of("wallet-q") if consent and shareable else None
    own = Served("wallet-p", 1, content_of("wallet-p"))
    assert desk.asked(mode=Mode.CANDIDATES) == AnswerContent("", [own, Served("wallet-q", 1, theirs)])


def test_mode_b_names_others_to_a_platform_that_has_no_record(desk: Desk) -> None:
    told = desk.asked("wallet-q", identity(1), Mode.CANDIDATES)
    assert told == AnswerContent("", [Served("wallet-p", 1, None)])


def test_who_is_unknown_or_not_served_is_told_so(desk: Desk) -> None:
    for mode in Mode:
        assert desk.asked(who=identity(9), mode=mode) == AnswerContent("unknown_identity", [])
    assert desk.asked("wallet-q", identity(1)) == AnswerContent("no_platform", [])


def test_a_removed_record_is_none() -> None:
    desk = make_desk(consent=True, shareable=True)
    desk.world.call("merchant-m", "remove_record", **desk.world.removal(2, by="merchant"))
    assert desk.asked() == AnswerContent("no_platform", [])
    theirs = Served("wallet-q", 1, content_of("wallet-q"))
    assert desk.asked(mode=Mode.CANDIDATES) == AnswerContent("", [theirs])
    desk.world.call("merchant-m", "remove_record", **desk.world.removal(2, by="merchant", server="wallet-q"))
    for mode in Mode:
        assert desk.asked(mode=mode) == AnswerContent("no_platform", [])


def test_a_withdrawn_consent_counts_at_once() -> None:
    desk = make_desk(consent=True, shareable=True)
    assert desk.asked(mode=Mode.CANDIDATES).served[1].content == content_of("wallet-q")
    desk.world.call("merchant-m", "set_consent", **desk.world.consent(2, is_given=False))
    assert desk.asked(mode=Mode.CANDIDATES).served[1] == Served("wallet-q", 1, None)


def test_a_key_that_was_not_given_is_missing() -> None:
    """Mode B goes on without others' keys, and never without the asking platform's own."""
    desk = make_desk(consent=True, shareable=True)
    wrap = desk.world.chain.state.entries()[wrap_key("wallet-q", 1, NAME).encode()]
    removed: dict[bytes, bytes | None] = {wrap_key("wallet-q", 1, NAME).encode(): None}
    desk.world.chain.state.apply(removed)
    assert desk.asked(mode=Mode.CANDIDATES).served[1] == Served("wallet-q", 1, None)
    for mode in Mode:
        assert desk.asked("wallet-q", mode=mode) == AnswerContent("missing_key", [])
    # a wrap of another platform's, or of another epoch, is no key of this one's
    for bad in (desk.world.chain.state.entries()[wrap_key("wallet-p", 1, NAME).encode()], encode({"wrap": b"short"})):
        desk.world.chain.state.apply({wrap_key("wallet-q", 1, NAME).encode(): bad})
        assert desk.asked("wallet-q") == AnswerContent("missing_key", [])
    desk.world.chain.state.apply({wrap_key("wallet-q", 1, NAME).encode(): wrap})
    assert desk.asked("wallet-q").code == ""


def test_a_record_that_does_not_open_to_what_it_commits_to_is_bad() -> None:
    desk = make_desk(consent=True, shareable=True)
    place = record_key("wallet-q", WHO)
    good: Any = decode(desk.world.chain.state.entries()[place.encode()])
    other = EpochKey(SECRETS["wallet-q"]).seal_record(
        Content(SALT, b"another payee"), identity=WHO, server="wallet-q", version=1, random_bytes=bytes
    )
    moved: Any = decode(desk.world.chain.state.entries()[record_key("wallet-p", WHO).encode()])
    for ciphertext in (other, b"", moved["ciphertext"], good["ciphertext"][:-1]):
        desk.put(place, ciphertext=ciphertext)
        assert desk.asked("wallet-q") == AnswerContent("bad_record", [])
        assert desk.asked("wallet-q", mode=Mode.CANDIDATES) == AnswerContent("bad_record", [])
        assert desk.asked(mode=Mode.CANDIDATES).served[1] == Served("wallet-q", 1, None)
    desk.put(place, ciphertext=good["ciphertext"], version=2)
    assert desk.asked("wallet-q") == AnswerContent("bad_record", [])


# -- who may ask -----------------------------------------------------------------------------------------


def test_only_the_platforms_key_asks_for_it(desk: Desk) -> None:
    body = desk.body()
    for stranger in (desk.world.platforms["wallet-q"], DELEGATE, desk.world.merchants[WHO]):
        assert desk.refusal(desk.signed(body, stranger)) == "bad_query"
    platform = desk.world.platforms["wallet-p"]
    for purpose in set(Purpose) - {Purpose.PAYEE_QUERY}:
        signature = platform.sign(purpose, desk.world.chain.chain_id, query_hash(body))
        assert desk.refusal(Query(body, signature, None)) == "bad_query"
    elsewhere = platform.sign(Purpose.PAYEE_QUERY, ChainId(bytes(32)), query_hash(body))
    assert desk.refusal(Query(body, elsewhere, None)) == "bad_query"


def test_every_word_of_a_query_is_signed(desk: Desk) -> None:
    query = desk.signed(desk.body())
    changes: list[dict[str, Any]] = [
        {"server": "wallet-q"},
        {"identity": identity(1)},
        {"mode": 1},
        {"exchange_key": DELEGATE.public.compressed},
        {"nonce": b"\1" * 16},
        {"time_ms": query.body.time_ms + 1},
    ]
    assert {name for change in changes for name in change} == {*QueryBody.__struct_fields__} - {"chain_id"}
    for change in changes:
        altered = Query(replace(query.body, **change), query.signature, None)
        assert desk.refusal(altered, desk.states(altered)) == "bad_query"
    foreign = Query(replace(query.body, chain_id=bytes(32)), query.signature, None)
    assert desk.refusal(foreign) == "wrong_chain"


def test_a_delegate_asks_while_its_delegation_is_in_force(desk: Desk) -> None:
    for left_ms in (0, 1, DELEGATION_MS_MAX):
        desk.resolve(desk.signed(desk.body(), DELEGATE, desk.delegation(left_ms)))
    for left_ms in (-1, DELEGATION_MS_MAX + HEAD_AGE_MS_MAX + 1):
        assert desk.refusal(desk.signed(desk.body(), DELEGATE, desk.delegation(left_ms))) == "bad_query"


def test_a_delegation_is_the_platforms_own_and_for_one_key(desk: Desk) -> None:
    for by in (desk.world.platforms["wallet-q"], DELEGATE):
        assert desk.refusal(desk.signed(desk.body(), DELEGATE, desk.delegation(by=by))) == "bad_query"
    assert desk.refusal(desk.signed(desk.body("wallet-q"), DELEGATE, desk.delegation())) == "bad_query"
    assert desk.refusal(desk.signed(desk.body(), key(901), desk.delegation())) == "bad_query"
    platform = desk.world.platforms["wallet-p"]
    assert desk.refusal(desk.signed(desk.body(), platform, desk.delegation())) == "bad_query"
    longer = replace(desk.delegation(), until_ms=desk.world.now_ms + 2_000)
    assert desk.refusal(desk.signed(desk.body(), DELEGATE, longer)) == "bad_query"


def test_a_platform_that_the_chain_does_not_know_asks_nothing(desk: Desk) -> None:
    query = desk.signed(desk.body("wallet-x"), key(902))
    states = desk.world.states({platform_key("wallet-x"), merchant_key(WHO)})
    assert desk.refusal(query, states) == "unknown_platform"


def test_a_platforms_replaced_key_asks_no_more() -> None:
    desk = make_desk()
    old, new = desk.world.platforms["wallet-p"], key(903)
    delegation = desk.delegation()
    desk.resolve(desk.signed(desk.body(), DELEGATE, delegation))
    desk.world.call("wallet-p", "register_platform", key=new.public.compressed)
    assert desk.refusal(desk.signed(desk.body(), old)) == "bad_query"
    assert desk.refusal(desk.signed(desk.body(), DELEGATE, delegation)) == "bad_query"
    desk.resolve(desk.signed(desk.body(), new))


def test_an_answer_cannot_be_asked_for_under_no_key(desk: Desk) -> None:
    body = replace(desk.body(), exchange_key=b"\2" + b"\xff" * 32)
    query = desk.signed(body)
    with pytest.raises(PeerError) as caught:
        desk.resolve(query)
    assert caught.value.code == "bad_query"


# -- when ------------------------------------------------------------------------------------------------


def test_a_query_counts_for_a_minute_by_the_environments_clock(desk: Desk) -> None:
    query = desk.signed(desk.body())
    begun_ms = desk.clock_ms
    for apart_ms in (QUERY_AGE_MS_MAX, -QUERY_AGE_MS_MAX):
        desk.clock_ms = begun_ms + apart_ms
        desk.resolve(query)
        desk.clock_ms += 1 if apart_ms > 0 else -1
        assert desk.refusal(query) == "query_expired"


def test_states_of_an_old_head_are_refused(desk: Desk) -> None:
    begun_ms = desk.clock_ms
    for apart_ms in (HEAD_AGE_MS_MAX, -HEAD_AGE_MS_MAX):
        desk.clock_ms = begun_ms + apart_ms
        query = desk.signed(desk.body())
        desk.resolve(query)
        desk.clock_ms += 1 if apart_ms > 0 else -1
        query = desk.signed(desk.body())
        assert desk.refusal(query) == "stale_states"


def test_heads_never_go_back() -> None:
    desk = make_desk()
    query = desk.signed(desk.body())
    before = desk.states(query)
    desk.resolve(query, before)
    desk.world.call("merchant-m", "set_consent", **desk.world.consent())
    after = desk.states(query)
    assert desk.resolve(query, after).height == desk.world.chain.height
    assert desk.refusal(query, before) == "stale_states"
    desk.resolve(query, after)
    kept = desk.environment.height
    desk.environment = desk.begin(height=kept)
    assert desk.refusal(query, before) == "stale_states"
    desk.environment = desk.begin()
    desk.resolve(query, before)  # so it was the height that kept it out


# -- states ----------------------------------------------------------------------------------------------


def test_nothing_is_answered_without_proof_of_all_it_depends_on(desk: Desk) -> None:
    desk = Desk(shared_world(consent=True, shareable=True))
    servers = ("wallet-p", "wallet-q")
    for mode, asked in ((Mode.TARGET, servers[:1]), (Mode.CANDIDATES, servers)):
        query = desk.signed(desk.body(mode=mode))
        needed = [merchant_key(WHO), platform_key("wallet-p")]
        needed += [record_key(server, WHO) for server in asked] + [wrap_key(server, 1, NAME) for server in asked]
        for one in needed:
            assert desk.refusal(query, desk.states(query, without=[one])) == "bad_states"
        desk.resolve(query, desk.world.states({*needed}))  # and on nothing else


def test_states_of_another_value_head_or_chain_are_refused(desk: Desk) -> None:
    query = desk.signed(desk.body())
    proof = states_codec.decode_untrusted(desk.states(query))
    foreign = replace(proof, chain_id=bytes(32))
    assert desk.refusal(query, states_codec.encode(foreign)) == "wrong_chain"
    entries = [replace(one, value=encode({})) if one.value else one for one in proof.entries]
    assert desk.refusal(query, states_codec.encode(replace(proof, entries=entries))) == "bad_states"
    fewer = replace(proof.certificate, signatures=proof.certificate.signatures[:1])
    assert desk.refusal(query, states_codec.encode(replace(proof, certificate=fewer))) == "bad_states"
    later = replace(proof.header, height=proof.header.height + 1)
    assert desk.refusal(query, states_codec.encode(replace(proof, header=later))) == "bad_states"
    for broken in (b"", b"\xc1", desk.states(query)[:-1]):
        assert desk.refusal(query, broken) == "malformed"


def test_values_of_a_form_it_does_not_know_are_refused() -> None:
    desk = make_desk()
    query = desk.signed(desk.body())
    for state_key, change in (
        (merchant_key(WHO), {"consent": 1}),
        (platform_key("wallet-p"), {"key": b"short"}),
        (record_key("wallet-p", WHO), {"status": "PAUSED"}),
        (wrap_key("wallet-p", 1, NAME), {"wrap": "text"}),
    ):
        good: Any = decode(desk.world.chain.state.entries()[state_key.encode()])
        changed: dict[str, Value] = dict(change)
        desk.put(state_key, **changed)
        assert desk.refusal(query) == "bad_states", state_key
        desk.put(state_key, **good)
    desk.resolve(query)


# -- bytes -----------------------------------------------------------------------------------------------


def tell(environment: Environment, ask: bytes) -> Told:
    return told_codec.decode_untrusted(environment.tell(ask))


def test_a_quote_says_what_it_is_and_is_signed_over_the_nonce(desk: Desk) -> None:
    keys = environment_keys(NAME)
    nonce = bytes(range(16))
    told = tell(desk.environment, ask_codec.encode(AskQuote(nonce)))
    assert told.code == ""
    quote = quote_codec.decode_untrusted(told.body)
    assert (quote.environment, quote.measurement, quote.nonce) == (NAME, MEASUREMENT, nonce)
    assert (quote.exchange_key, quote.signing_key) == (keys.exchange.public, keys.signing.public.compressed)
    covered = quote_hash(NAME, MEASUREMENT, quote.exchange_key, quote.signing_key, nonce)
    assert keys.signing.public.verifies(quote.signature, Purpose.PAYEE_QUOTE, desk.world.chain.chain_id, covered)


def test_a_whole_ask_is_told_with_an_answer(desk: Desk) -> None:
    query = desk.signed(desk.body())
    told = tell(desk.environment, ask_codec.encode(AskResolve(query_codec.encode(query), desk.states(query))))
    assert told.code == ""
    assert answer_codec.decode_untrusted(told.body).query == query_hash(query.body)


@pytest.mark.parametrize("broken", [b"", b"\x90", b"\x93\x01\xc4\x00\xc4\x00", b"\x93\x02\xc4\x00\xc4\x00", bytes(9)])
def test_bytes_that_are_no_ask_are_malformed(desk: Desk, broken: bytes) -> None:
    assert tell(desk.environment, broken).code == "malformed"


CODES = {"malformed", "wrong_chain", "bad_query", "query_expired", "unknown_platform", "bad_states", "stale_states"}


@cache
def whole_ask(mode: Mode) -> tuple[Desk, bytes, bytes]:
    """Return a desk, an ask, and where in it anything may be altered."""
    desk = Desk(shared_world(consent=False, shareable=True))
    query = desk.signed(desk.body(mode=mode), DELEGATE, desk.delegation())
    return desk, query_codec.encode(query), desk.states(query)


def with_changes(data: bytes, changes: Sequence[tuple[int, int]], cut: int) -> bytes:
    altered = bytearray(data[: len(data) - cut])
    for at, value in changes:
        altered[at % len(altered)] = value
    return bytes(altered)


Changes = st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), max_size=3)


@settings(max_examples=400)
@given(
    mode=st.sampled_from(Mode),
    in_query=Changes,
    in_states=Changes,
    in_ask=Changes,
    cut=st.sampled_from([0, 0, 0, 1, 100]),
)
def test_an_altered_ask_is_refused_or_is_the_same(
    mode: Mode,
    in_query: list[tuple[int, int]],
    in_states: list[tuple[int, int]],
    in_ask: list[tuple[int, int]],
    cut: int,
) -> None:
    """Whatever is altered: a typed refusal, or the true answer; never a crash, never what is another's."""
    desk, query, states = whole_ask(mode)
    ask = AskResolve(with_changes(query, in_query, 0), with_changes(states, in_states, cut))
    told = tell(desk.environment, with_changes(ask_codec.encode(ask), in_ask, 0))
    if told.code:
        assert told.code in CODES
        assert told.body == b""
        return
    assert ask.query == query, "a query that is not as it was signed was answered"
    answer = answer_codec.decode_untrusted(told.body)
    name = query_hash(query_codec.decode_untrusted(query).body)
    content = open_answer(
        answer.sealed, query=name, environment=NAME, height=answer.height, exchange_key=answer.exchange_key, own=OWN
    )
    others = [Served("wallet-q", 1, None)] if mode is Mode.CANDIDATES else []
    assert content == AnswerContent("", [Served("wallet-p", 1, content_of("wallet-p")), *others])


def test_refusals_do_not_hold_what_was_asked_about(desk: Desk) -> None:
    """A node logs what its environment refuses: no identity, and nothing of a record."""
    query = desk.signed(desk.body(), key(904))
    told = tell(desk.environment, ask_codec.encode(AskResolve(query_codec.encode(query), desk.states(query))))
    assert told.code == "bad_query"
    assert WHO.hex() not in told.message
    query = desk.signed(desk.body())
    for missing in desk.world.keys_for(query, NAME):
        states = desk.states(query, without=[missing])
        told = tell(desk.environment, ask_codec.encode(AskResolve(query_codec.encode(query), states)))
        assert WHO.hex() not in told.message


def test_what_is_remembered_is_bounded_and_true() -> None:
    """Unwrapped keys are remembered by the wrap itself: an epoch's key that is wrapped anew is unwrapped anew."""
    desk = make_desk()
    assert desk.asked().code == ""
    place = wrap_key("wallet-p", 1, NAME)
    good: Any = decode(desk.world.chain.state.entries()[place.encode()])
    desk.put(place, wrap=good["wrap"][:-1] + bytes([good["wrap"][-1] ^ 1]))
    assert desk.asked() == AnswerContent("missing_key", [])
    desk.put(place, **good)
    assert desk.asked().code == ""
