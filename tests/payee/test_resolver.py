"""The client that resolves: what it takes for true, and each lie of a node or an environment that it sees through."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from consensus.ledger.errors import HansaError, PeerError
from consensus.ledger.keys import Purpose
from consensus.ledger.payees import (
    HEAD_AGE_MS_MAX,
    AnswerContent,
    Content,
    Delegation,
    Mode,
    Query,
    Served,
    allowed_key,
    answer_codec,
    delegation_hash,
    environment_key,
    merchant_key,
    platform_key,
    query_codec,
    record_key,
)
from consensus.ledger.states import states_codec
from contracts.runtime.execution import Executor
from services.client.errors import Refused, Unreachable
from services.payee.resolver import Asked, Candidate, QuerySigner, Resolved, Resolver, record_query
from tests.client.support import SoloNode, client_of, running, signer
from tests.contracts.domain.payees import MEASUREMENT, identity, key
from tests.contracts.domain.support import shared_registry
from tests.ledger.builders import flips
from tests.payee.resolving import SALT, Node, Nodes, PayeeWorld, acquiring, resolver_of

WHO = identity(0)
MARKERS = ("Tea at", "merchant-m", "m-q")
"""Of what the records of these worlds say."""
Lie = Callable[[Node, bytes, Query], tuple[bytes, bytes]]


def make_world(*, is_shareable: bool = True, has_consent: bool = False) -> PayeeWorld:
    """Return a world where both platforms have a record of merchant 0, and wallet-p one of merchant 1."""
    world = PayeeWorld()
    world.call("merchant-m", "register_merchant", **world.registration(1))
    world.add("wallet-p", is_shareable=is_shareable)
    world.add("wallet-p", merchant=1, account="m-1")
    world.add("wallet-q", is_shareable=is_shareable, account="m-q")
    if has_consent:
        world.call("merchant-m", "set_consent", **world.consent())
    return world


@cache
def shared_world() -> PayeeWorld:
    """Return a world that no test changes."""
    return make_world(has_consent=True)


def content_of(server: str = "wallet-p", account: str = "merchant-m") -> Content:
    """Return what a record of this world holds."""
    return Content(SALT, msgspec.json.encode(acquiring(server, account)))


TRUE = Served("wallet-p", 1, content_of())
OTHER = Served("wallet-q", 1, content_of("wallet-q", "m-q"))


def asked_of(asked: Asked) -> Query:
    """Return a query as nodes get it."""
    return query_codec.decode_untrusted(asked.raw)


async def code_of(resolver: Resolver, mode: Mode = Mode.TARGET) -> str:
    """Return the code that asking for merchant 0 ends with."""
    with pytest.raises(HansaError) as error:
        await resolver.resolve(WHO, mode)
    return error.value.code


# -- the truth -------------------------------------------------------------------------------------------


async def test_a_platform_gets_its_own_record() -> None:
    world = make_world()
    for server, account in (("wallet-p", "merchant-m"), ("wallet-q", "m-q")):
        found = await resolver_of(world, Node(world), server=server).resolve(WHO)
        assert found.candidates == (Candidate(server, 1, acquiring(server, account)),)
        assert found.target == found.candidates[0]
        assert found.merchant_key == world.merchants[WHO].public.compressed
        assert (found.height, found.time_ms) == (world.chain.height, world.now_ms)
        assert (found.environment, found.node, found.server) == ("bank-a", "http://n0", server)


async def test_an_update_is_seen() -> None:
    world = make_world()
    resolver = resolver_of(world, Node(world))
    await resolver.resolve(WHO)
    world.add("wallet-p", version=2, account="m-new")
    assert (await resolver.resolve(WHO)).target == Candidate("wallet-p", 2, acquiring("wallet-p", "m-new"))


async def test_what_is_not_there_is_proven_to_be_absent() -> None:
    world = make_world()
    resolver = resolver_of(world, Node(world))
    for mode in Mode:
        with pytest.raises(Refused, match="knows no merchant") as error:
            await resolver.resolve(identity(9), mode)
        assert error.value.code == "unknown_identity"


async def test_a_removed_record_is_none() -> None:
    world = make_world()
    for version, server in ((2, "wallet-p"), (2, "wallet-q")):
        world.call("merchant-m", "remove_record", **world.removal(version, by="merchant", server=server))
        assert await code_of(resolver_of(world, Node(world), server=server)) == "no_platform"
    assert await code_of(resolver_of(world, Node(world)), Mode.CANDIDATES) == "no_platform"
    world.add("wallet-p", version=3, account="m-3")
    assert (await resolver_of(world, Node(world)).resolve(WHO)).target == Candidate(
        "wallet-p", 3, acquiring("wallet-p", "m-3")
    )


@pytest.mark.parametrize("has_consent", [False, True])
@pytest.mark.parametrize("is_shareable", [False, True])
async def test_candidates(has_consent: bool, is_shareable: bool) -> None:
    world = make_world(has_consent=has_consent, is_shareable=is_shareable)
    found = await resolver_of(world, Node(world)).resolve(WHO, Mode.CANDIDATES)
    shown = acquiring("wallet-q", "m-q") if has_consent and is_shareable else None
    assert found.candidates == (
        Candidate("wallet-p", 1, acquiring("wallet-p")),
        Candidate("wallet-q", 1, shown),
    )
    assert (found.target, found.is_consenting) == (found.candidates[0], has_consent)


async def test_candidates_without_the_own_platform() -> None:
    world = make_world()
    world.call("wallet-p", "remove_record", **world.removal(2, by="platform"))
    found = await resolver_of(world, Node(world)).resolve(WHO, Mode.CANDIDATES)
    assert found.candidates == (Candidate("wallet-q", 1, None),)
    assert found.target is None


async def test_what_is_no_acquiring_information() -> None:
    world = make_world(has_consent=True)
    world.add("wallet-q", version=2, plaintext=b"{}", is_shareable=True)
    assert await code_of(resolver_of(world, Node(world), server="wallet-q")) == "bad_record"
    found = await resolver_of(world, Node(world)).resolve(WHO, Mode.CANDIDATES)
    assert found.candidates[1] == Candidate("wallet-q", 2, None), "another's nonsense is in nobody's way"


async def test_a_delegate_asks() -> None:
    world = make_world()
    delegate, until_ms = key(900), world.now_ms + 60_000
    covered = delegation_hash("wallet-p", delegate.public.compressed, until_ms)

    async def asked(owner: str, until: int, server: str = "wallet-p") -> Resolved:
        signature = world.sign(world.platforms[owner], Purpose.PAYEE_PLATFORM, covered)
        delegation = Delegation(server, delegate.public.compressed, until, signature)
        nodes = Nodes(world, {"http://n0": Node(world)})
        signing = QuerySigner(server, delegate, delegation)
        return await Resolver(nodes, signing, now_ms=lambda: world.now_ms, random_bytes=bytes).resolve(WHO)

    assert (await asked("wallet-p", until_ms)).target == Candidate("wallet-p", 1, acquiring("wallet-p"))
    for owner, until, server in (
        ("wallet-q", until_ms, "wallet-p"),
        ("wallet-p", until_ms + 1, "wallet-p"),
        ("wallet-p", until_ms, "wallet-q"),
    ):
        with pytest.raises(Refused) as error:
            await asked(owner, until, server)
        assert error.value.code == "bad_query"


# -- lies ------------------------------------------------------------------------------------------------


def forging(*served: Served, code: str = "") -> Lie:
    """Return the lie of a registered environment that works with its node: whatever it likes, well signed."""
    return lambda node, raw, query: (node.forged(query, AnswerContent(code, list(served))), node.states(query))


def without(name: str) -> Lie:
    """Return the lie of a node that proves everything but one key."""

    def lie(node: Node, raw: bytes, query: Query) -> tuple[bytes, bytes]:
        answer, _ = node.truth(raw, query)
        return answer, node.world.states(node.world.keys_for(query, node.environment) - {name})

    return lie


def as_environment(name: str) -> Lie:
    """Return the lie of a node that signs as an environment whose keys it has not."""
    content = AnswerContent("", [TRUE])
    return lambda node, raw, query: (node.forged(query, content, name=name), node.states(query))


def for_another(node: Node, raw: bytes, query: Query) -> tuple[bytes, bytes]:
    """Answer with what is there for another identity, as if it had been asked for."""
    other = replace(query, body=replace(query.body, identity=identity(1)))
    return node.forged(query, AnswerContent("", [Served("wallet-p", 1, content_of(account="m-1"))])), node.states(other)


def of_another_height(node: Node, raw: bytes, query: Query) -> tuple[bytes, bytes]:
    """Speak of an older head in the answer than in the states."""
    return node.forged(query, AnswerContent("", [TRUE]), height=node.world.chain.height - 1), node.states(query)


def unsigned(node: Node, raw: bytes, query: Query) -> tuple[bytes, bytes]:
    """Answer truly, with the signature of another answer."""
    answer, states = node.truth(raw, query)
    again, _ = node.truth(raw, query)
    signature = answer_codec.decode_untrusted(again).signature
    return answer_codec.encode(replace(answer_codec.decode_untrusted(answer), signature=signature)), states


def short_of_votes(node: Node, raw: bytes, query: Query) -> tuple[bytes, bytes]:
    """Prove with a certificate that lacks a vote."""
    answer, states = node.truth(raw, query)
    proof = states_codec.decode_untrusted(states)
    certificate = replace(proof.certificate, signatures=proof.certificate.signatures[:-1])
    return answer, states_codec.encode(replace(proof, certificate=certificate))


def with_value(name: str, value: bytes | None) -> Lie:
    """Return the lie of a node that proves another value at a key."""

    def lie(node: Node, raw: bytes, query: Query) -> tuple[bytes, bytes]:
        answer, states = node.truth(raw, query)
        proof = states_codec.decode_untrusted(states)
        entries = [replace(one, value=value) if one.key == name else one for one in proof.entries]
        return answer, states_codec.encode(replace(proof, entries=entries))

    return lie


LIES: dict[str, tuple[Lie, str]] = {
    "another payee": (forging(Served("wallet-p", 1, content_of(account="thief"))), "commits to"),
    "another salt": (forging(Served("wallet-p", 1, Content(bytes(32), content_of().plaintext))), "commits to"),
    "another platform's payee": (forging(Served("wallet-p", 1, content_of("wallet-q", "m-q"))), "commits to"),
    "another platform's record": (forging(OTHER), "other platforms"),
    "another identity's payee": (forging(Served("wallet-p", 1, content_of(account="m-1"))), "commits to"),
    "another identity": (for_another, "nothing is proven"),
    "a version that is gone": (forging(replace(TRUE, version=0)), "version 0"),
    "a version to come": (forging(replace(TRUE, version=2)), "version 2"),
    "no record": (forging(), "other platforms"),
    "two records": (forging(TRUE, OTHER), "other platforms"),
    "the record twice": (forging(TRUE, TRUE), "other platforms"),
    "a record held back": (forging(replace(TRUE, content=None)), "held back"),
    "no merchant": (forging(code="unknown_identity"), "the answer says unknown_identity"),
    "no platform": (forging(code="no_platform"), "the answer says no_platform"),
    "a record and none": (forging(TRUE, code="no_platform"), "the answer says no_platform"),
    "a code of its own": (forging(TRUE, code="all_good"), "the answer says all_good"),
    "another height": (of_another_height, "another head"),
    "another's signature": (unsigned, "not signed"),
    "the other environment's name": (as_environment("issuer-c"), "nothing is proven about payees/environment/issuer-c"),
    "nobody's name": (as_environment("nobody"), "nothing is proven about payees/environment/nobody"),
    "no proof of the merchant": (without(merchant_key(WHO)), "nothing is proven about payees/merchant"),
    "no proof of the record": (without(record_key("wallet-p", WHO)), "nothing is proven about payees/record"),
    "no proof of the environment": (without(environment_key("bank-a")), "nothing is proven about payees/environment"),
    "no proof of what is allowed": (without(allowed_key(MEASUREMENT)), "nothing is proven about payees/allowed"),
    "a vote too few": (short_of_votes, "quorum"),
    "no such merchant": (with_value(merchant_key(WHO), None), ""),
    "another platform's key": (with_value(platform_key("wallet-p"), b"\x80"), ""),
}


@pytest.mark.parametrize("name", LIES)
async def test_a_lie_is_named_and_the_next_node_asked(name: str) -> None:
    world = shared_world()
    lie, why = LIES[name]
    liar, honest = Node(world, lie=lie), Node(world)
    resolver = resolver_of(world, liar, honest)
    found = await resolver.resolve(WHO)
    assert (found.node, found.target) == ("http://n1", (await resolver_of(world, honest).resolve(WHO)).target)
    (named,) = found.liars
    assert re.match(f"http://n0 answers falsely: .*{why}", named)
    assert (await resolver.resolve(WHO)).liars == ()
    assert len(liar.asked) == 1, "it is not asked first again"
    alone = Node(world, lie=lie)
    with pytest.raises(PeerError, match=f"^http://n0 answers falsely: .*{why}") as error:
        await resolver_of(world, alone).resolve(WHO)
    assert error.value.code == "bad_answer"
    assert not any(marker in text for text in (named, str(error.value)) for marker in ("thief", *MARKERS))


async def test_where_all_lie_another_node_is_first_the_next_time() -> None:
    world = shared_world()
    lie, _ = LIES["another payee"]
    first, second = Node(world, lie=lie), Node(world, lie=lie)
    resolver = resolver_of(world, first, second)
    assert await code_of(resolver) == "bad_answer"
    first.lie = second.lie = None
    assert (await resolver.resolve(WHO)).node == "http://n1"


async def test_what_a_record_says_stands_in_no_text_about_it() -> None:
    """What is logged or shown in a traceback is a text about an object."""
    resolver = resolver_of(shared_world(), Node(shared_world()))
    asked = resolver.query(WHO, Mode.CANDIDATES)
    found = await resolver.ask(asked)
    assert [one.acquiring is not None for one in found.candidates] == [True, True]
    said = f"{found!r} {found.candidates!r} {asked!r} {resolver!r} {TRUE!r}"
    assert not any(marker in said for marker in MARKERS)


SHOWN = Served("wallet-q", 1, content_of("wallet-q", "m-q"))
MODE_B_LIES: dict[str, tuple[tuple[Served, ...], str]] = {
    "one hidden": ((TRUE,), "other platforms"),
    "the own one hidden": ((SHOWN,), "other platforms"),
    "one too many": ((TRUE, SHOWN, Served("wallet-r", 1, None)), "other platforms"),
    "one twice": ((TRUE, SHOWN, SHOWN), "other platforms"),
    "another order": ((SHOWN, TRUE), "other platforms"),
    "the own one held back": ((replace(TRUE, content=None), SHOWN), "held back"),
    "another version": ((TRUE, replace(SHOWN, version=9)), "version 9"),
    "another payee": ((TRUE, Served("wallet-q", 1, content_of("wallet-q", "thief"))), "commits to"),
}


@pytest.mark.parametrize("name", MODE_B_LIES)
async def test_a_lie_about_candidates(name: str) -> None:
    world = shared_world()
    served, why = MODE_B_LIES[name]
    with pytest.raises(PeerError, match=f"answers falsely: .*{why}") as error:
        await resolver_of(world, Node(world, lie=forging(*served))).resolve(WHO, Mode.CANDIDATES)
    assert error.value.code == "bad_answer"


@pytest.mark.parametrize(("has_consent", "is_shareable"), [(False, True), (True, False), (False, False)])
async def test_a_record_shown_without_leave(has_consent: bool, is_shareable: bool) -> None:
    world = make_world(has_consent=has_consent, is_shareable=is_shareable)
    resolver = resolver_of(world, Node(world, lie=forging(TRUE, SHOWN)))
    with pytest.raises(PeerError, match="without leave"):
        await resolver.resolve(WHO, Mode.CANDIDATES)


async def test_a_removed_record_that_is_shown_all_the_same() -> None:
    world = make_world()
    world.call("merchant-m", "remove_record", **world.removal(2, by="merchant"))
    for version in (1, 2):
        lie = forging(replace(TRUE, version=version))
        assert await code_of(resolver_of(world, Node(world, lie=lie))) == "bad_answer"


async def test_a_merchant_that_is_not_there_is_made_up() -> None:
    world = PayeeWorld()
    assert await code_of(resolver_of(world, Node(world, lie=forging(TRUE)))) == "bad_answer"
    unknown = resolver_of(world, Node(world, lie=forging(code="no_platform")))
    with pytest.raises(PeerError, match="the chain unknown_identity"):
        await unknown.resolve(identity(5))


async def test_an_old_record_under_a_new_head() -> None:
    """The environment keeps what it has opened before, and sells it as what is there now."""
    world = make_world()
    world.add("wallet-p", version=2, account="m-2")
    for version in (1, 2):
        lie = forging(Served("wallet-p", version, content_of()))
        assert await code_of(resolver_of(world, Node(world, lie=lie))) == "bad_answer"


async def test_an_answer_to_another_query() -> None:
    world = shared_world()
    node = Node(world)
    kept: list[tuple[bytes, bytes]] = []

    def replay(node: Node, raw: bytes, query: Query) -> tuple[bytes, bytes]:
        kept.append(node.truth(raw, query))
        return kept[0]

    node.lie = replay
    resolver = resolver_of(world, node)
    await resolver.resolve(WHO)
    with pytest.raises(PeerError, match="another query"):
        await resolver.resolve(WHO)


@pytest.mark.parametrize("name", ["user-b", "issuer-c", "bank-a"])
async def test_an_environment_that_nobody_trusts(name: str) -> None:
    """One that was never registered, one that was withdrawn, one whose measurement is allowed no more."""
    world = make_world()
    if name == "issuer-c":
        world.call("issuer-c", "withdraw_environment", name="issuer-c")
    elif name == "bank-a":
        world.call("permission", "disallow_measurement", measurement=MEASUREMENT)
    why = "allow-list" if name == "bank-a" else "not registered"
    node = Node(world, environment=name, lie=forging(TRUE))
    with pytest.raises(PeerError, match=why) as error:
        await resolver_of(world, node).resolve(WHO)
    assert error.value.code == "bad_answer"


async def test_a_disallowed_measurement_counts_at_once() -> None:
    world = make_world()
    resolver = resolver_of(world, Node(world))
    await resolver.resolve(WHO)
    world.call("permission", "disallow_measurement", measurement=MEASUREMENT)
    assert await code_of(resolver) == "bad_answer"
    world.call("permission", "allow_measurement", measurement=MEASUREMENT, note="again")
    assert (await resolver.resolve(WHO)).target is not None


# -- damage ----------------------------------------------------------------------------------------------


class Damaged:
    """One query with its true answer, and what comes of the same answer damaged."""

    def __init__(self, mode: Mode = Mode.TARGET) -> None:
        self.node = Node(shared_world())
        self.resolver = resolver_of(shared_world(), self.node)
        self.asked: Asked = self.resolver.query(WHO, mode)
        self.answer, self.states = self.node.truth(self.asked.raw, asked_of(self.asked))

    async def code(self, answer: bytes, states: bytes) -> str:
        """Return the code that such an answer ends with, "" where it is taken."""
        self.node.lie = lambda node, raw, query: (answer, states)
        found: HansaError | None = None
        try:
            await self.resolver.ask(self.asked)
        except HansaError as error:
            found = error
        assert not any(marker in f"{found!r} {found}" for marker in MARKERS)
        return "" if found is None else found.code


async def test_every_byte_of_an_answer_counts() -> None:
    damaged = Damaged()
    assert await damaged.code(damaged.answer, damaged.states) == ""
    codes = {await damaged.code(answer, damaged.states) for answer in flips(damaged.answer)}
    assert codes == {"bad_answer"}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_anywhere(data: st.DataObject) -> None:
    damaged = _damaged(data.draw(st.sampled_from(Mode)))
    parts = [damaged.answer, damaged.states]
    which = data.draw(st.integers(0, 1))
    whole = parts[which]
    place = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "drop", "repeat"]))
    match kind:
        case "flip":
            made = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
        case "cut":
            made = whole[:place]
        case "insert":
            made = whole[:place] + data.draw(st.binary(min_size=1, max_size=40)) + whole[place:]
        case "drop":
            made = whole[:place] + whole[place + data.draw(st.integers(1, 64)) :]
        case _:
            made = whole + whole[:place]
    parts[which] = made
    if made != whole:
        assert trio.run(damaged.code, *parts) == "bad_answer"


@cache
def _damaged(mode: Mode) -> Damaged:
    return Damaged(mode)


# -- which node ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        Unreachable("gone"),
        Refused("environment_missing", "none here"),
        Refused("environment_down", "down"),
        Refused("environment_refused", "another measurement"),
        Refused("busy", "too much"),
        Refused("bad_states", "not enough"),
        PeerError("wrong_chain", "serves another chain"),
    ],
    ids=lambda error: error.code,
)
async def test_the_next_node_is_asked(error: HansaError) -> None:
    world = shared_world()
    first, second = Node(world, error=error), Node(world, environment="issuer-c")
    resolver = resolver_of(world, first, second)
    found = await resolver.resolve(WHO)
    assert (found.node, found.environment) == ("http://n1", "issuer-c")
    await resolver.resolve(WHO)
    assert len(first.asked) == 1, "the one that answered is asked first"
    assert first.asked[0] == second.asked[0], "with the same query"


async def test_an_environment_without_the_key() -> None:
    world = PayeeWorld()
    world.epochs["wallet-p"] = 2
    world.wrap("wallet-p", "issuer-c")
    world.add("wallet-p")
    without_key, with_key = Node(world), Node(world, environment="issuer-c")
    assert (await resolver_of(world, without_key, with_key).resolve(WHO)).environment == "issuer-c"
    with pytest.raises(Refused, match="bank-a") as error:
        await resolver_of(world, without_key).resolve(WHO)
    assert error.value.code == "missing_key"


async def test_a_proven_answer_is_final() -> None:
    world = PayeeWorld()
    first, second = Node(world), Node(world)
    assert await code_of(resolver_of(world, first, second)) == "no_platform"
    assert second.asked == []


DOWN, MISSING, GONE = Refused("environment_down", ""), Refused("environment_missing", ""), Unreachable("gone")


@pytest.mark.parametrize(
    ("errors", "code", "kind"),
    [
        ([MISSING, DOWN, GONE], "environment_down", Unreachable),
        ([MISSING, GONE, MISSING], "node_unreachable", Unreachable),
        ([GONE, Refused("unknown_platform", ""), DOWN], "unknown_platform", Refused),
        ([MISSING, MISSING], "environment_missing", Unreachable),
        ([MISSING, PeerError("wrong_chain", "")], "wrong_chain", PeerError),
    ],
)
async def test_the_error_that_says_most(errors: list[HansaError], code: str, kind: type[HansaError]) -> None:
    world = shared_world()
    with pytest.raises(kind) as error:
        await resolver_of(world, *(Node(world, error=each) for each in errors)).resolve(WHO)
    assert error.value.code == code
    assert all(each.code in str(error.value.message) for each in errors if each.code != code)


# -- freshness -------------------------------------------------------------------------------------------


async def test_an_old_head_is_not_believed() -> None:
    world = make_world()
    now_ms = world.now_ms + HEAD_AGE_MS_MAX
    resolver = resolver_of(world, Node(world, lie=forging(TRUE)), clock=lambda: now_ms)
    assert (await resolver.resolve(WHO)).time_ms == now_ms - HEAD_AGE_MS_MAX
    now_ms += 1
    assert await code_of(resolver) == "stale_answer"


async def test_no_head_older_than_one_before() -> None:
    world = make_world()
    node, fresh = Node(world), Node(world)
    resolver = resolver_of(world, node)
    asked = resolver.query(WHO)
    old = node.truth(asked.raw, asked_of(asked))
    node.lie = lambda node, raw, query: old
    assert (await resolver.ask(asked)).target is not None, "who has seen nothing newer cannot know"
    world.add("wallet-p", version=2, account="m-2")
    node.lie = None
    await resolver.resolve(WHO)
    node.lie = lambda node, raw, query: old
    with pytest.raises(Refused, match="was proven before") as error:
        await resolver.ask(asked)
    assert error.value.code == "stale_answer"
    resolver = resolver_of(world, fresh, node)
    await resolver.resolve(WHO)
    fresh.error = Unreachable("gone")
    with pytest.raises(Refused) as error:
        await resolver.ask(asked)
    assert error.value.code == "stale_answer", "it counts whoever proved the newer one"


async def test_a_node_that_is_behind_is_passed_over() -> None:
    world = make_world()
    node = Node(world)
    resolver = resolver_of(world, node, Node(world))
    asked = resolver.query(WHO)
    old = node.truth(asked.raw, asked_of(asked))
    world.add("wallet-p", version=2, account="m-2")
    await resolver.resolve(WHO)
    node.lie = lambda node, raw, query: old
    assert (await resolver.ask(asked)).node == "http://n1"


async def test_answers_may_overtake_each_other() -> None:
    world = make_world()
    gate = trio.Event()
    node = Node(world, gate=gate)
    resolver = resolver_of(world, node)
    found: list[Resolved] = []

    async def ask() -> None:
        found.append(await resolver.resolve(WHO))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        world.add("wallet-p", version=2, account="m-2")
        node.gate = None
        await ask()
        gate.set()
    assert [one.candidates[0].version for one in found] == [2, 1]


# -- on record -------------------------------------------------------------------------------------------


async def test_a_query_on_record(tmp_path: Path) -> None:
    node = SoloNode(tmp_path, executor=Executor(shared_registry()))
    asked = resolver_of(shared_world(), Node(shared_world())).query(WHO)
    async with running(node), client_of(node) as client:
        height = await record_query(client, signer("user-b"), asked)
        kept = await client.query("payees", "query_record", {"query": bytes(asked.hash)})
        assert isinstance(kept, dict)
        assert (kept["account"], kept["height"]) == (signer("user-b").address, height)
        with pytest.raises(Refused) as error:
            await record_query(client, signer("user-b"), asked)
        assert error.value.code == "query_exists"
