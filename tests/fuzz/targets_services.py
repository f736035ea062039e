"""Targets of the business services: frames of the message centre, posted events, signed events, history files."""

from pathlib import Path

import msgspec

from consensus.ledger.codec import encode
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import tagged_hash
from consensus.ledger.keys import Purpose
from consensus.ledger.proof import Proof, StateClaim, proof_to_json
from consensus.ledger.state_tree import prove, update
from services.client.reader import list_leaves_untrusted
from services.messages import wire
from services.messages.port import Settlement, Verdict
from services.messages.store import State
from services.rights import history, requests
from services.rights.events import Event, Kind, decode_signed_untrusted, sign_events, signed_codec
from tests.fuzz.target import Target
from tests.ledger.builders import (
    CHAIN,
    CLIENT,
    certify,
    make_block,
    make_genesis,
    make_genesis_block,
    make_keys,
    make_set,
)

SERVER = bytes(range(20))


def targets(folder: Path) -> list[Target]:
    """Return the targets of the services; a file that is read goes into the folder."""
    receipts = [msgspec.msgpack.encode([[msgspec.Raw(encode(["a", 1])), msgspec.Raw(encode(None))], [1, 1]])]
    leaves = Target(
        "receipts of a block", list_leaves_untrusted, receipts, ("services/client/reader.py:list_leaves_untrusted",)
    )
    return [leaves, *_message_targets(), *_rights_targets(), *_history_targets(folder)]


def _message_targets() -> list[Target]:
    asked: list[wire.FromPeer] = [
        wire.Find(1, ["create/o1/1"]),
        wire.Ended(2, State.DEAD, 0, 10),
        wire.Replay(3, [1, 2]),
        wire.Discard(6, [1, 2]),
        wire.Leave(),
        wire.Ask(4),
        wire.Settle(5, [Settlement(1, 1, Verdict.PARK, "unknown_order")]),
        wire.Received(1, 2**40),
    ]
    answered: list[wire.FromCenter] = [
        wire.Welcome(1, True),
        wire.Replayed(3, 2),
        wire.Discarded(6, 2),
        wire.Settled(5, [True, False]),
    ]
    hello = wire.Hello(wire.VERSION, "rights-server", "token", "boot", 512)

    def read(decoder: "msgspec.msgpack.Decoder[wire.Frame]", data: bytes) -> None:
        """Read a stream that comes in two parts; it either ends or breaks off."""
        reader = wire.Reader(decoder, payload_bytes_max=wire.FRAME_BYTES_MAX, rest=data[: len(data) // 2])
        reader.feed(data[len(data) // 2 :])
        for _ in data:
            if reader.next_untrusted() is None:
                break

    def read_payload(data: bytes) -> None:
        """Put the length before it, so that what is behind the length is reached."""
        for decoder in (wire.hello_decoder, wire.peer_decoder, wire.center_decoder):
            try:
                read(decoder, len(data).to_bytes(wire.LENGTH_BYTES) + data)
            except PeerError as error:
                if error.code not in ("malformed", "too_large"):
                    raise AssertionError("an undocumented code") from error

    frames = [wire.encode(frame) for frame in (hello, *asked, *answered)]
    place = ("services/messages/wire.py:next_untrusted",)
    return [
        Target("message frames", lambda data: read(wire.peer_decoder, data), [b"".join(frames[1:7])], place),
        Target("message payloads", read_payload, [frame[wire.LENGTH_BYTES :] for frame in frames], place, weight=2),
    ]


def _rights_targets() -> list[Target]:
    order = b'{"order":"o1","user":"u1","campaign":"c","amount":5,"event":"2"}'
    redemption = b'{"redemption":"r1","user":"u1","items":{"cup":2},"amount":9}'
    mixed = b'[{"kind":"cancel","order":"o1","amount":4},{"kind":"redeem",' + redemption[1:] + b"]"
    every = [
        Event("create", "o1", "1", "u1", "c", 5, [], 1),
        Event("redeem", "r1", "1", "u1", "", 5, [("cup", 2), ("tea", 1)], 1),
        Event("cancel", "o1", "1", "", "", 0, [], 1),
    ]
    signed = sign_events(CLIENT, CHAIN, SERVER, every)

    def one(data: bytes) -> None:
        for decode in (requests.decode_order, requests.decode_redemption, requests.decode_any):
            try:
                requests.decode_one_untrusted(data, decode, 1)
            except PeerError as error:
                if error.code not in ("malformed", "bad_field"):
                    raise AssertionError("an undocumented code") from error

    def carried(data: bytes) -> None:
        """What still is signed is what was signed."""
        event = decode_signed_untrusted(data)
        is_signed = CLIENT.public.verifies(event.signature, Purpose.BUSINESS_EVENTS, CHAIN, event.server + event.root)
        if is_signed and (event.event not in every or event.server != SERVER):
            raise AssertionError("a forged event is signed")

    def listed(data: bytes) -> None:
        requests.decode_list_untrusted(data, requests.decode_any, 1)

    def changed(data: bytes) -> None:
        requests.decode_change_untrusted(Kind.CANCEL, "o1", data, 1)

    def named(data: bytes) -> None:
        requests.decode_change_untrusted(Kind.CANCEL, data.decode("utf-8", "replace"), b"", 1)

    file = "services/rights/requests.py"
    changes = (f"{file}:decode_change_untrusted",)
    return [
        Target("posted event", one, [order, redemption], (f"{file}:decode_one_untrusted",), is_json=True),
        Target("posted list", listed, [mixed], (f"{file}:decode_list_untrusted",), is_json=True),
        Target("posted change", changed, [b'{"amount":3,"event":"2"}', b"{}"], changes, is_json=True),
        Target("posted name", named, [b"o1"], changes),
        Target(
            "signed event",
            carried,
            [signed_codec.encode(item) for item in signed],
            ("services/rights/events.py:decode_signed_untrusted",),
        ),
    ]


def _history_targets(folder: Path) -> list[Target]:
    keys = make_keys(4)
    genesis, validators = make_genesis(keys), make_set(keys)
    changes = {"created": 5, "reserved": 5}
    head = tagged_hash("contract-data", encode([bytes(32), ["create", "o1", "e", {**changes}, 1, 1]]))
    key, value = f"rights/user/u1/{SERVER.hex()}".encode(), encode([1, head, [5, 5, 0, 0, 0, 0, 0], []])
    tree = update({}, {key: value})
    parent = make_genesis_block(genesis.chain_id(), validators).header
    header = make_block(parent, validators, sealed_root=tree.root).header
    claim = StateClaim(key, value, prove({path: blob for path, blob in tree.nodes.items() if blob is not None}, key))
    document = proof_to_json(Proof(genesis.chain_id(), (), header, certify(header, keys), claim))
    entry = history.Entry(0, "create", "o1", "e", changes, 1, 1)
    good = history.HistoryFile(history.FORMAT, "u1", "0x" + SERVER.hex(), [entry], document)
    proven = history.verify_history(good, genesis)

    def check(data: bytes) -> None:
        verified = history.verify_history(history.decode_history_untrusted(data), genesis)
        if (verified.entries, verified.balance) != (proven.entries, proven.balance):
            raise AssertionError("another history holds")

    def load(data: bytes) -> None:
        (folder / "some.history").write_bytes(data)
        history.load_untrusted(folder / "some.history")

    file, samples = "services/rights/history.py", [history.encode_history(good)]
    reached = ("decode_history", "_read_proof")
    return [
        Target("history", check, samples, tuple(f"{file}:{name}_untrusted" for name in reached), is_json=True),
        Target("history file", load, samples, (f"{file}:load_untrusted",), is_json=True),
    ]
