"""Targets in ``p2p``, ``node`` and the client: frames, hello, certificates, RPC bodies, transactions, execution."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import trio.testing
from cryptography.hazmat.primitives import serialization

from consensus.ledger.block import Block, decode_block_untrusted, transactions_root
from consensus.ledger.errors import InvariantError, LocalError, PeerError
from consensus.ledger.ids import NodeName
from consensus.ledger.transaction import Call, decode_transaction_untrusted
from node.chain import Chain
from node.clock import SystemClock
from node.intake import Intake
from node.reader import ChainReader
from node.results import _Request, _request_codec, check_results_untrusted, serve_results_untrusted
from node.rpc import render
from node.rpc.frames import decode_frame_untrusted
from node.rpc.methods import methods
from node.rpc.protocol import parse_json_untrusted, parse_untrusted
from node.rpc.schema import convert_untrusted
from node.rpc.subscriptions import check_topic_untrusted
from node.storage.leveldb import LevelStore
from node.sync import CatchUp, Server, _Question, serve_request_untrusted
from p2p.clock import ClockProbe
from p2p.frames import FRAME_BYTES_MAX, Frame, FrameDecoder, FrameKind, encode_frame
from p2p.hello_machine import decode_bye_untrusted
from p2p.session import Session, SessionLimits
from services.client import connection
from services.client.errors import Refused
from tests.fuzz import samples
from tests.fuzz.target import Target
from tests.node.rpc.support import TestNode
from tests.p2p.support import Certificates, Inbox
from tests.p2p.test_hello_machine import DIALLER, LISTENER
from tests.p2p.test_session import PEER

SENDERS = ("user-b", "bank-a", "shop")
"""A plain account, an administrator, a business."""
WORDS = (("cny", 20), ("people", 33), ("node-0", 32), ("user-b", 64))
"""What arguments are filled with: a unit, an organisation, a node, an account; lengths that bytes may need."""
HEAD = b'{"jsonrpc":"2.0","id":1,"result":'


@contextmanager
def targets(folder: Path) -> Iterator[list[Target]]:
    """Give the targets of the rooms around consensus; their databases are in a folder."""
    store = LevelStore.open(folder / "data")
    try:
        node = TestNode(store)
        node.commit([node.money()])
        yield [
            *_p2p_targets(folder),
            *_rpc_targets(),
            *_chain_targets(node),
            *_intake_targets(node),
            *_sync_targets(store),
            *_client_targets(),
        ]
    finally:
        store.close()


# -- p2p ---------------------------------------------------------------------------------------------------


def _p2p_targets(folder: Path) -> list[Target]:
    certificates = Certificates(folder, "a", "b")
    ders = [
        certificate.public_bytes(serialization.Encoding.DER)
        for certificate in (
            certificates.identity("a").certificate,
            certificates.identity("b").certificate,
            certificates.roots["org-a"].certificate,
        )
    ]
    frames = [encode_frame(kind, sample) for kind, sample in _frame_samples()]
    return [
        Target("frames", _decode_frames, frames, ("p2p/frames.py:next_untrusted",)),
        Target("session", _Sessions().take, frames, ("p2p/session.py:_handle_untrusted",)),
        Target(
            "hello",
            _shake,
            [bytes([state]) + frame for state, frame in enumerate(_hello_frames())],
            tuple(f"p2p/hello_machine.py:{name}_untrusted" for name in ("receive", "_check_greeting", "_check_proof")),
        ),
        Target(
            "clock question",
            lambda data: ClockProbe.answer_untrusted(data, wall_ms=1),
            [ClockProbe().ask(now_ms=0)],
            ("p2p/clock.py:answer_untrusted",),
        ),
        Target(
            "clock answer",
            _take_time,
            [ClockProbe.answer_untrusted(ClockProbe().ask(now_ms=0), wall_ms=1_700_000_000_000)],
            ("p2p/clock.py:answered_untrusted",),
        ),
        Target("bye", decode_bye_untrusted, [b"malformed", b"x" * 200], ("p2p/hello_machine.py:decode_bye_untrusted",)),
        Target(
            "certificate of a peer", certificates.trust.identify_untrusted, ders, ("p2p/tls.py:identify_untrusted",)
        ),
    ]


def _frame_samples() -> list[tuple[FrameKind, bytes]]:
    return [
        (FrameKind.CONSENSUS, samples.message_samples()[3]),
        (FrameKind.TRANSACTIONS, samples.batch_samples()[1]),
        (FrameKind.SYNC_REQUEST, samples.sync_request_samples()[0]),
        (FrameKind.SYNC_RESPONSE, samples.sync_response_samples()[0]),
        (FrameKind.KEEP_ALIVE, b""),
        (FrameKind.BYE, b"shutting_down"),
        (FrameKind.GREETING, b"\x93\x01\xc4\x01\x00\xc4\x01\x00"),
    ]


def _take_time(data: bytes) -> None:
    probe = ClockProbe()
    probe.ask(now_ms=0)
    probe.answered_untrusted(data, now_ms=5, wall_ms=1_700_000_000_000)


def _decode_frames(data: bytes) -> None:
    decoder = FrameDecoder(payload_bytes_max=FRAME_BYTES_MAX)
    for start in range(0, len(data), 97):
        decoder.feed(data[start : start + 97])
        while decoder.next_untrusted() is not None:
            pass


def _hello_frames() -> list[bytes]:
    """Return what the dialler says in each state of the listener."""
    dialler, listener = DIALLER.machine(), LISTENER.machine()
    said: list[Frame] = list(dialler.start())
    heard = list(listener.start())
    for _ in range(2):
        said += [answer for frame in heard for answer in dialler.receive_untrusted(frame)]
        heard = listener.receive_untrusted(said[-2])
    return [encode_frame(kind, payload) for kind, payload in said]


def _shake(data: bytes) -> None:
    """Bring the listener into the state that the first byte names, and let it hear the rest."""
    dialler, listener = DIALLER.machine(), LISTENER.machine()
    said, heard = dialler.start(), listener.start()
    for _ in range(data[0] % 3 if data else 0):
        answers = [answer for frame in heard for answer in dialler.receive_untrusted(frame)]
        heard = [answer for frame in said for answer in listener.receive_untrusted(frame)]
        said = answers
    decoder = FrameDecoder(payload_bytes_max=1024)
    decoder.feed(data[1:])
    while (frame := decoder.next_untrusted()) is not None:
        listener.receive_untrusted(frame)
        if listener.is_done and encode_frame(*frame) != _hello_frames()[2]:
            raise AssertionError("a changed hello is accepted")


class _Sessions:
    """Feeds the reader of a session as the network does; every input is a session of its own."""

    async def take(self, data: bytes) -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        session = Session(
            identity=PEER,
            stream=ours,
            decoder=FrameDecoder(payload_bytes_max=FRAME_BYTES_MAX),
            handler=Inbox().handle,
            blame=lambda name, code: False,
            limits=SessionLimits(),
            address="memory",
            dialled=False,
            connected_since_ms=0,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            await theirs.send_all(data)
            await theirs.send_eof()


# -- rpc ---------------------------------------------------------------------------------------------------


def _text(function: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: function(data.decode("utf-8", "replace"))


def _rpc_targets() -> list[Target]:
    kinds = ["int", "amount", "text", "bytes", "account", "list<amount>", "map<bytes>", "value", "list<list<int>>?"]
    texts = [b"0x", b"0x00ff", b"0xzz", b"-1", b"9223372036854775807", b"blocks", b"chain_status", b"kg=="]
    frames = [
        msgspec.msgpack.encode([7, samples.transaction_samples(), 500]),
        msgspec.msgpack.encode([0, []]),
    ]

    def value(data: bytes) -> None:
        given = parse_json_untrusted(data)
        for kind in kinds:
            try:
                render.value_of_untrusted(kind, given)
            except PeerError:
                continue
        render.arguments_of_untrusted(dict.fromkeys("abc", "amount"), given if isinstance(given, dict) else {})

    def parameters(data: bytes) -> None:
        given = parse_json_untrusted(data)
        if not isinstance(given, list | dict):
            given = [given]
        for method in methods.methods.values():
            try:
                convert_untrusted(method.params, given)
            except PeerError:
                continue

    values = [b'{"a":"12","b":"0x00","c":[1,"2",null,{"d":[]}]}', b'["0x01",[[1]],{"x":"-5"}]', b'{"height":1}']
    render_file, protocol = "node/rpc/render.py", "node/rpc/protocol.py"
    return [
        Target(
            "rpc body",
            parse_untrusted,
            samples.RPC_SAMPLES,
            (f"{protocol}:parse_untrusted", f"{protocol}:parse_json_untrusted"),
            is_json=True,
        ),
        Target(
            "rpc values",
            value,
            values,
            tuple(f"{render_file}:{name}_untrusted" for name in ("value_of", "arguments_of", "_decimal")),
            is_json=True,
        ),
        Target("rpc parameters", parameters, values, ("node/rpc/schema.py:convert_untrusted",), is_json=True),
        Target("hex", _text(render.hex_untrusted), texts, (f"{render_file}:hex_untrusted",)),
        Target(
            "transaction as text",
            _text(render.transaction_bytes_untrusted),
            texts,
            (f"{render_file}:transaction_bytes_untrusted",),
        ),
        Target("method", _text(methods.find_untrusted), texts, ("node/rpc/schema.py:find_untrusted",)),
        Target("topic", _text(check_topic_untrusted), texts, ("node/rpc/subscriptions.py:check_topic_untrusted",)),
        Target("binary frame", decode_frame_untrusted, frames, ("node/rpc/frames.py:decode_frame_untrusted",)),
    ]


# -- chain, mempool, execution -----------------------------------------------------------------------------


def _chain_targets(node: TestNode) -> list[Target]:
    chain = node.chain
    good = chain.build("node-0", chain.head.header.time_ms + 10, [node.transfer(0)])[0].block
    turns = itertools.count()

    def check(data: bytes) -> None:
        block = decode_block_untrusted(data)
        if next(turns) % 2:  # under the header that fits, so that execution is reached
            block = _with_fitting_header(chain, block)
        candidate = chain.check_untrusted(block)
        if candidate.block.header != block.header:
            raise AssertionError("another header is taken for ours")

    def body(data: bytes) -> None:
        chain.check_body_untrusted(decode_block_untrusted(data))

    return [
        Target(
            "block above the head",
            check,
            [good.encode(), Block.of(good.header, [good.transactions[0]] * 2).encode()],
            ("node/chain.py:check_untrusted",),
        ),
        Target("block body", body, [good.encode()], ("node/chain.py:check_body_untrusted",)),
        _call_target(node),
    ]


def _with_fitting_header(chain: Chain, block: Block) -> Block:
    leaves = [decode_transaction_untrusted(raw).leaf for raw in block.transactions]
    header = chain.next_block("node-0", chain.head.header.time_ms + 10)
    changed = msgspec.structs.replace(
        block.header,
        chain_id=chain.chain_id,
        height=header.height,
        parent_hash=chain.head.hash,
        time_ms=header.time_ms,
        uptime_ms=header.uptime_ms,
        validators_hash=chain.head.header.next_validators_hash,
        sealed_height=chain.head.header.sealed_height,
        sealed_root=chain.head.header.sealed_root,
        transactions_root=transactions_root(leaves),
    )
    return Block.of(changed, block.transactions)


def _call_target(node: TestNode) -> Target:
    """Every method of every contract with whatever arguments: agreed blocks always execute (R42)."""
    shipped = node.chain.executor.registry.newest()
    places = [(contract.name, name) for contract in shipped for name in sorted(contract.methods)]
    every = [method for contract in shipped for method in contract.methods.values()]
    arguments = [samples.ledger_samples()[-2], *(_arguments(method, word) for method in every for word in WORDS)]
    turns = Random(5)

    def call(data: bytes) -> None:
        calls = [Call(*turns.choice(places), data) for _ in range(2)]
        try:
            raw = samples.signed_calls(calls, turns.choice(SENDERS))
        except LocalError:  # what no client could even sign
            return
        transaction = node.chain.verifier.decode_untrusted(raw)
        _, refused = node.chain.build("node-0", node.chain.head.header.time_ms + 10, [transaction])
        node.chain.verifier.forget(raw)
        if refused and refused[0][1].code != "block_too_heavy":
            raise AssertionError(f"a block is refused for what its calls ask: {refused[0][1]}")

    return Target("execution", call, arguments, weight=3)


def _arguments(method: Any, word: tuple[str, int]) -> bytes:
    """Return arguments of the declared types; ``word`` stands for every text, and says how long bytes are."""
    text, size = word
    values: dict[str, Any] = {"int": 3, "text": text, "bytes": bytes(size), "bool": True, "value": [1], "nil": None}
    values |= {"account": bytes(20), "amount": 5}

    def value(kind: str) -> Any:
        kind = kind.removesuffix("?")
        if kind.startswith("list<"):
            return [value(kind[5:-1])]
        if kind.startswith("map<"):
            return {"a": value(kind[4:-1])}
        return values.get(kind, 1)

    return msgspec.msgpack.encode({item.name: value(item.type) for item in method.arguments}, order="deterministic")


class _NoNetwork:
    """A network without peers."""

    def broadcast(self, *_: object, **__: object) -> int:
        return 0

    def send(self, *_: object) -> bool:
        return False

    def peers(self) -> list[object]:
        return []


def _intake_targets(node: TestNode) -> list[Target]:
    verifier, chain = node.chain.verifier, node.chain
    network: Any = _NoNetwork()
    intake = Intake(chain=chain, mempool=node.mempool, network=network, clock=SystemClock(), on_work=lambda: None)

    def admit(data: bytes) -> None:
        block = chain.next_block("", chain.head.header.time_ms + 1)
        node.mempool.add_untrusted(data, chain.state, block, now_ms=0)

    def signed(data: bytes) -> None:
        """Give it a valid signature, so that what is behind the signature is reached."""
        try:
            body = msgspec.msgpack.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return
        admit(samples.resigned(body))

    def verify(data: bytes) -> None:
        transaction = verifier.decode_untrusted(data)
        verifier.forget(data)
        verifier.check_unchanged_untrusted(transaction, chain.state)
        verifier.check_signature_untrusted(transaction, chain.state)

    def submit(data: bytes) -> None:
        (answer,) = intake.submit_untrusted([data])
        intake._outgoing.clear()
        if answer.transaction_id is None and not answer.code:
            raise AssertionError("a transaction is accepted and has no id")

    transactions = samples.transaction_samples()
    bodies = [msgspec.msgpack.decode(raw)[0] for raw in transactions]
    file = "node/verification.py"
    reached = ("decode", "check_signature", "check_unchanged")
    return [
        Target("mempool", admit, transactions, ("node/mempool.py:add_untrusted",)),
        Target("mempool, signed", signed, bodies, weight=2),
        Target("verification", verify, transactions, tuple(f"{file}:{name}_untrusted" for name in reached)),
        Target("submitting", submit, transactions, ("node/intake.py:submit_untrusted",)),
        Target(
            "frame of transactions",
            intake.receive_untrusted,
            samples.batch_samples(),
            ("node/intake.py:receive_untrusted",),
        ),
    ]


def _sync_targets(store: LevelStore) -> list[Target]:
    requests, answers = samples.sync_request_samples(), samples.sync_response_samples()
    network: Any = _NoNetwork()
    catch_up = CatchUp(network, lambda peer, item: _never())
    peers = itertools.count()

    def answer(data: bytes) -> None:
        catch_up._question = _Question(NodeName("b"), 1)
        catch_up.answered_untrusted(NodeName("b"), data)

    async def ask(data: bytes) -> bytes:
        return await Server(store).answer_untrusted(NodeName(f"peer-{next(peers)}"), data)

    def serve(data: bytes) -> bytes:
        return serve_request_untrusted(data, store)

    return [
        Target("sync request", serve, requests, ("node/sync.py:serve_request_untrusted",)),
        Target("sync server", ask, requests, ("node/sync.py:answer_untrusted",)),
        Target("sync answer", answer, answers, ("node/sync.py:answered_untrusted",)),
        *_result_targets(store),
    ]


def _result_targets(store: LevelStore) -> list[Target]:
    genesis = ChainReader(store).block(0)
    if genesis is None:
        raise InvariantError("the store holds no genesis block")
    peers = itertools.count()

    async def ask(data: bytes) -> bytes:
        return await Server(store).answer_results_untrusted(NodeName(f"peer-{next(peers)}"), data)

    requests = [_request_codec.encode(_Request(height)) for height in (0, 1, 2**63 - 1)]
    answers = [serve_results_untrusted(request, store) for request in requests]
    header = genesis.header
    return [
        Target("results asked", ask, requests, ("node/sync.py:answer_results_untrusted",)),
        Target(
            "results served",
            lambda data: serve_results_untrusted(data, store),
            requests,
            ("node/results.py:serve_results_untrusted",),
        ),
        Target(
            "results told",
            lambda data: check_results_untrusted(header, data, NodeName("b")),
            answers,
            ("node/results.py:check_results_untrusted",),
        ),
    ]


async def _never() -> bool:
    raise InvariantError("nothing is delivered here")


def _client_targets() -> list[Target]:
    error = b'{"code":-32000,"message":"m","data":{"code":"c"}}'
    answers = [HEAD + b'{"height":1}}', b'{"jsonrpc":"2.0","id":1,"error":' + error + b"}"]
    frames: Sequence[bytes] = [msgspec.msgpack.encode([[1, [[bytes(32), "", 5, 0]]], [2, []]])]

    def answer(data: bytes) -> None:
        connection.decode_answer_untrusted(data, dict[str, int], "an answer")

    def binary(data: bytes) -> None:
        connection._decode_answers_untrusted(data, "url")

    file = "services/client/connection.py"
    return [
        Target(
            "a node's answer",
            answer,
            answers,
            (f"{file}:decode_answer_untrusted",),
            may=(PeerError, Refused),
            is_json=True,
        ),
        Target("a node's binary answer", binary, frames, (f"{file}:_decode_answers_untrusted",)),
    ]
