"""Targets of the payer's client: answers of nodes and environments; what is taken is what the chain commits to."""

import msgspec

from consensus.ledger.errors import PeerError
from consensus.ledger.payees import AnswerContent, Content, Mode, Served, answer_content_codec, query_codec
from services.client.errors import Refused
from services.payee.resolver import Asked, Candidate, Resolved, Resolver, Told, check_content_untrusted
from services.payee.shown import check_shown_untrusted, shown_file
from tests.contracts.domain.payees import identity
from tests.fuzz.target import Target
from tests.payee.resolving import SALT, Node, PayeeWorld, acquiring, resolver_of

_RESOLVER = "services/payee/resolver.py"
_MAY = (PeerError, Refused)


def targets() -> list[Target]:
    """Return the targets, which share one world."""
    world = PayeeWorld()
    for server in ("wallet-p", "wallet-q"):
        world.add(server, is_shareable=True)
    world.call("merchant-m", "set_consent", **world.consent())
    node = Node(world)
    resolver = resolver_of(world, node)
    truth = tuple(Candidate(server, 1, acquiring(server)) for server in ("wallet-p", "wallet-q"))
    asked = resolver.query(identity(0), Mode.CANDIDATES)
    answer, states = node.truth(asked.raw, query_codec.decode_untrusted(asked.raw))

    def check(told: Told) -> None:
        code, found = _checked(resolver, asked, told)
        if code or found.candidates != truth:
            raise AssertionError("the client took something for true that is not")

    proven = resolver._checker.check_untrusted(states)

    def check_content(data: bytes) -> None:
        _, _, found = check_content_untrusted(asked.body, answer_content_codec.decode_untrusted(data), proven)
        shown = [one for one in found if one.acquiring is not None]
        if any(one not in truth for one in shown) or [one.server for one in found] != ["wallet-p", "wallet-q"]:
            raise AssertionError("the client took a payee for true that nobody committed to")

    served = [Served(one.server, 1, Content(SALT, _plaintext(one.server))) for one in truth]
    contents = [
        AnswerContent("", served),
        AnswerContent("", served[:1]),
        AnswerContent("no_platform", []),
        AnswerContent("", [served[0], Served("wallet-q", 1, None)]),
    ]
    file = shown_file(asked, resolver._check_untrusted(asked, Told(answer, states), "", 0)[1])
    genesis = world.chain.genesis

    def check_file(data: bytes) -> None:
        if check_shown_untrusted(data, genesis)[1].candidates != truth:
            raise AssertionError("a file shows what was not there")

    reaches = [f"{_RESOLVER}:{name}" for name in ("_check_untrusted", "judged_untrusted", "open_untrusted")]
    return [
        Target("answers to a payer", lambda data: check(Told(data, states)), [answer], tuple(reaches), _MAY),
        Target("states for a payer", lambda data: check(Told(answer, data)), [states], may=_MAY),
        Target(
            "what was shown",
            check_file,
            [file],
            ("services/payee/shown.py:check_shown_untrusted", "services/payee/shown.py:_check_signed_untrusted"),
            is_json=True,
        ),
        Target(
            "what an answer says",
            check_content,
            [answer_content_codec.encode(content) for content in contents],
            (f"{_RESOLVER}:check_content_untrusted", f"{_RESOLVER}:_candidate_untrusted"),
        ),
    ]


def _checked(resolver: Resolver, asked: Asked, told: Told) -> tuple[str, Resolved]:
    return resolver._check_untrusted(asked, told, "http://n0", 0)


def _plaintext(server: str) -> bytes:
    return msgspec.json.encode(acquiring(server))
