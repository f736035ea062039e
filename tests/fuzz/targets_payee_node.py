"""Targets between client, node and environment: proven states, and what an environment says to its node."""

import trio.testing

from consensus.ledger.block import Header
from consensus.ledger.codec import encode
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey
from consensus.ledger.payees import AskQuote, AskResolve, Quote, Told, ask_codec, query_codec, told_codec
from consensus.ledger.state_tree import prove, update
from consensus.ledger.states import CertifiedChange, StateEntry, StatesChecker, StatesProof, states_codec
from node.environment import Session
from tests.fuzz.target import Target
from tests.ledger.builders import certify, make_block, make_genesis, make_genesis_block, make_keys, make_set

FIRST, SECOND = make_keys(4), make_keys(4, first=20)
GENESIS = make_genesis(FIRST)
STATE = {b"payees/record/wallet-p/%032x" % number: encode({"version": number}) for number in range(30)}
TREE = update({}, STATE)
KEYS = [*sorted(STATE)[:3], b"payees/record/wallet-q/00"]
QUOTE = Quote("bank-a", bytes(32), bytes(33), PrivateKey.from_secret(7).public.compressed, bytes(16), bytes(64))


def targets() -> list[Target]:
    """Return the targets."""
    return [_states_target(), _asks_target(), _told_target()]


def _states_target() -> Target:
    """States whose decoder, head and paths are reached; what is taken holds what was sealed and nothing else."""
    checker = StatesChecker(GENESIS)

    def check(data: bytes) -> None:
        proven = checker.check_untrusted(data)
        for key in KEYS:
            if key.decode() in proven._values and proven.stored(key.decode()) != STATE.get(key):
                raise AssertionError("something was proven that the chain does not have")

    first = make_block(make_genesis_block(GENESIS.chain_id(), make_set(FIRST)).header, make_set(FIRST))
    second = make_block(first.header, make_set(FIRST), following=make_set(SECOND))
    third = make_block(second.header, make_set(SECOND), sealed_root=TREE.root)
    change = CertifiedChange(second.header, certify(second.header, FIRST), make_set(SECOND).encode())
    samples = [_proof(third.header, [change], KEYS), _proof(third.header, [change], KEYS[-1:])]
    reaches = [
        "consensus/ledger/states.py:check_untrusted",
        "consensus/ledger/states.py:_check_head_untrusted",
        "consensus/ledger/states.py:_following_untrusted",
        "consensus/ledger/proof.py:following_set_untrusted",
    ]
    return Target("proven states", check, samples, tuple(reaches), weight=2)


def _proof(header: Header, changes: list[CertifiedChange], keys: list[bytes]) -> bytes:
    nodes = {path: blob for path, blob in TREE.nodes.items() if blob is not None}
    entries = [StateEntry(key.decode(), STATE.get(key), prove(nodes, key)) for key in keys]
    return states_codec.encode(StatesProof(ChainId(header.chain_id), changes, header, certify(header, SECOND), entries))


def _asks_target() -> Target:
    samples = [ask_codec.encode(AskQuote(bytes(16))), ask_codec.encode(AskResolve(bytes(200), bytes(300)))]

    def decode(data: bytes) -> None:
        ask = ask_codec.decode_untrusted(data)
        if isinstance(ask, AskResolve):
            query_codec.decode_untrusted(ask.query)

    return Target("asks of an environment", decode, samples)


def _told_target() -> Target:
    """Whatever an environment sends ends an ask with an answer or an error of its own, and never the node."""

    async def tell(data: bytes) -> None:
        near, far = trio.testing.memory_stream_pair()
        session = Session(near, QUOTE, 0)
        refusals: list[PeerError] = []
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.run)
                await far.send_all(data)
                await far.send_eof()
                try:
                    await session.ask(AskQuote(bytes(16)))
                except PeerError as error:
                    refusals.append(error)
                session.broken("")
        for error in refusals:
            raise error

    told = [Told("", "", b"body"), Told("bad_query", "why", b""), Told("else", "", bytes(2_000))]
    frames = [told_codec.encode(one) for one in told]
    samples = [len(frame).to_bytes(4, "big") + frame for frame in frames]
    return Target("words of an environment", tell, [*samples, samples[0] + samples[1]])
