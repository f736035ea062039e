"""Files of what was shown: they hold with the genesis document alone, and in no other form."""

from functools import cache
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.ledger.errors import PeerError
from consensus.ledger.keys import Purpose
from consensus.ledger.payees import AnswerContent, Delegation, Mode, Query, delegation_hash, query_codec, query_hash
from services.payee.resolver import Asked, QuerySigner, Resolved, Resolver
from services.payee.shown import ShownFile, check_shown_untrusted, shown_file
from tests.contracts.domain.payees import identity, key, payee_genesis
from tests.contracts.domain.support import shared_registry
from tests.payee.resolving import Node, Nodes, PayeeWorld, acquiring
from tests.payee.test_resolver import forging, shared_world

WHO = identity(0)


def signer(world: PayeeWorld, *, is_delegated: bool, until_ms: int | None = None) -> QuerySigner:
    if not is_delegated:
        return QuerySigner("wallet-p", world.platforms["wallet-p"])
    public = key(901).public.compressed
    until_ms = world.now_ms + 60_000 if until_ms is None else until_ms
    covered = delegation_hash("wallet-p", public, until_ms)
    signature = world.sign(world.platforms["wallet-p"], Purpose.PAYEE_PLATFORM, covered)
    return QuerySigner("wallet-p", key(901), Delegation("wallet-p", public, until_ms, signature))


async def kept(mode: Mode = Mode.TARGET, *, is_delegated: bool = False) -> tuple[Asked, Resolved, bytes]:
    """Return a resolution and its file."""
    world = shared_world()
    nodes = Nodes(world, {"http://n0": Node(world)})
    signing = signer(world, is_delegated=is_delegated)
    resolver = Resolver(nodes, signing, now_ms=lambda: world.now_ms, random_bytes=bytes)
    asked = resolver.query(WHO, mode)
    resolved = await resolver.ask(asked)
    return asked, resolved, shown_file(asked, resolved)


def code_of(data: bytes) -> str:
    """Return the code that checking a file ends with."""
    with pytest.raises(PeerError) as error:
        check_shown_untrusted(data, shared_world().chain.genesis)
    assert "Tea at" not in str(error.value)
    return error.value.code


def changed(data: bytes, **parts: bytes) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(msgspec.json.decode(data, type=ShownFile), **parts))


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("is_delegated", [False, True])
async def test_what_was_shown_is_shown_again(mode: Mode, is_delegated: bool) -> None:
    asked, resolved, data = await kept(mode, is_delegated=is_delegated)
    query, found = check_shown_untrusted(data, shared_world().chain.genesis)
    assert query.body == asked.body
    assert query.delegation == signer(shared_world(), is_delegated=is_delegated).delegation
    assert found.candidates == resolved.candidates
    assert found.candidates[0].acquiring == acquiring("wallet-p")
    assert (found.query, found.height, found.environment) == (resolved.query, resolved.height, "bank-a")


async def test_a_query_that_its_platform_did_not_sign() -> None:
    asked, _, data = await kept()
    _, _, by_delegate = await kept(is_delegated=True)
    delegated = query_codec.decode_untrusted(msgspec.json.decode(by_delegate, type=ShownFile).query)
    world, body = shared_world(), asked.body
    as_wallet_q = world.platforms["wallet-q"].sign(Purpose.PAYEE_QUERY, world.chain.chain_id, query_hash(body))
    by_key = key(901).sign(Purpose.PAYEE_QUERY, world.chain.chain_id, query_hash(body))
    late = signer(world, is_delegated=True, until_ms=world.now_ms - 1).delegation
    for query in (
        Query(body, as_wallet_q, None),
        Query(body, by_key, None),
        Query(body, by_key, late),
        Query(delegated.body, delegated.signature, None),
    ):
        assert code_of(changed(data, query=query_codec.encode(query))) == "bad_query"


async def test_another_answer_or_another_key() -> None:
    world = shared_world()
    asked, _, data = await kept()
    _, _, other = await kept()
    file = msgspec.json.decode(other, type=ShownFile)
    assert code_of(changed(data, answer=file.answer)) == "bad_answer"
    assert code_of(changed(data, exchange=file.exchange)) == "bad_query"
    assert code_of(changed(data, exchange=bytes(32))) == "malformed"
    assert code_of(changed(data, query=file.query)) == "bad_query"
    nothing, _ = forging(code="no_platform")(Node(world), b"", Query(asked.body, b"", None))
    assert code_of(changed(data, answer=nothing)) == "bad_answer"
    unopened = Node(world).forged(Query(asked.body, b"", None), AnswerContent("missing_key", []))
    assert code_of(changed(data, answer=unopened)) == "bad_answer"


async def test_absence_is_no_payee() -> None:
    world = PayeeWorld()
    resolver = Resolver(
        Nodes(world, {}), signer(world, is_delegated=False), now_ms=lambda: world.now_ms, random_bytes=bytes
    )
    asked, node = resolver.query(WHO), Node(world)
    answer, states = node.truth(asked.raw, query_codec.decode_untrusted(asked.raw))
    data = msgspec.json.encode(ShownFile("hansa-payee-1", asked.raw, asked.exchange.secret(), answer, states))
    with pytest.raises(PeerError, match="no_platform"):
        check_shown_untrusted(data, world.chain.genesis)


async def test_another_chain() -> None:
    _, _, data = await kept()
    other = msgspec.structs.replace(payee_genesis(shared_registry()), name="other")
    with pytest.raises(PeerError) as error:
        check_shown_untrusted(data, other)
    assert error.value.code == "wrong_chain"


@cache
def parts() -> dict[str, Any]:
    """Return the parts of one file."""
    _, _, data = trio.run(kept)
    return msgspec.structs.asdict(msgspec.json.decode(data, type=ShownFile))


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(["query", "exchange", "answer", "states"]), data=st.data())
def test_damage_anywhere(name: str, data: st.DataObject) -> None:
    part = parts()[name]
    place = data.draw(st.integers(0, len(part) - 1))
    made = part[:place] + bytes([part[place] ^ data.draw(st.integers(1, 255))]) + part[place + 1 :]
    code_of(changed(msgspec.json.encode(ShownFile(**parts())), **{name: made}))


def test_what_is_no_such_file() -> None:
    for data in (b"", b"{}", b"[]", b"[" * 10_000, b'{"format":"hansa-payee-2"}', bytes(100)):
        assert code_of(data) == "malformed"
