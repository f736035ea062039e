"""What one side of a channel refuses, and what becomes of messages at each turn of the registry."""

import msgspec
import pytest

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import ChainId, NodeName
from consensus.ledger.keys import PrivateKey
from p2p.frames import FrameKind
from p2p.private.channel_machine import ChannelLimits, ChannelMachine, ChannelState, SendMessage
from p2p.private.port import PAYLOAD_BYTES_MAX, ChannelFacts, Phase
from p2p.private.records import Message, Open, Receipt, decode_record_untrusted, encode_signed
from tests.p2p.private.sides import KEYS, LIMITS, NAME, Entered, Pair
from tests.p2p.support import CHAIN

OTHER_CHAIN = ChainId(b"\x99" * 32)
STRANGER = PrivateKey.from_secret(99)
X = bytes([7]) * 32


@pytest.fixture
def pair() -> Pair:
    """Both sides, connected, three orders taken, an answer taken, nothing under way."""
    pair = Pair()
    for number in range(3):
        pair.sides["bank"].submit(f"order {number}", b"o%d" % number)
    pair.sides["issuer"].submit("answer 0", b"a0")
    pair.settle()
    return pair


def signed(side: str, record: Message | Receipt | Open, *, key: PrivateKey | None = None, chain: ChainId = CHAIN):
    """Return a record as it comes off the wire."""
    return decode_record_untrusted(*encode_signed(record, key or KEYS[side][0], chain))


def next_message(pair: Pair) -> Message:
    """Return the bank's next message, as it will be sent."""
    bank = pair.sides["bank"]
    bank.submit("next", b"next")
    batch = bank.machine.take()
    [item] = [item for item in batch.send if isinstance(item, SendMessage)]
    bank.store.put(bank.log.writes(NAME, batch.keep))
    return bank.log.message(NAME, item.entry, to_bank=False)


def receipt_of(pair: Pair) -> Receipt:
    """Return the issuer's receipt for all that the bank has sent."""
    state = pair.sides["issuer"].machine.state
    return Receipt(*NAME, 1, False, state.received, state.received_head)


def opening_of(pair: Pair) -> Open:
    """Return the issuer's opening."""
    state = pair.sides["issuer"].machine.state
    return Open(*NAME, 1, False, state.received, state.received_head, False, False, 0, 0, bytes(32))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"bank": "bank-b"}, "wrong_channel"),
        ({"issuer": "issuer-f"}, "wrong_channel"),
        ({"to_bank": True}, "wrong_direction"),
        ({"epoch": 2}, "wrong_epoch"),
        ({"epoch": 0}, "wrong_epoch"),
        ({"number": 5}, "wrong_number"),
        ({"number": 3}, "wrong_head"),
        ({"previous": X}, "wrong_previous"),
    ],
)
def test_r81_a_message_that_belongs_elsewhere_is_refused_though_its_signature_holds(pair, changes, code):
    """Replayed from another channel, epoch, direction or place: each is signed, and each is checked."""
    message = msgspec.structs.replace(next_message(pair), **changes)
    issuer = pair.sides["issuer"].machine
    before = issuer.state
    with pytest.raises(PeerError) as refusal:
        issuer.receive_untrusted(signed("bank", message))
    assert (refusal.value.code, issuer.state, issuer.take().keep) == (code, before, [])


@pytest.mark.parametrize("field", ["bank", "issuer", "epoch", "to_bank", "number", "previous", "payload", "signature"])
def test_every_field_of_a_message_is_signed(pair, field):
    honest = signed("bank", next_message(pair))
    value = getattr(honest, field)
    match value:
        case bool():
            other: object = not value
        case int():
            other = value + 1
        case bytes():
            other = bytes([value[0] ^ 1]) + value[1:]
        case _:
            other = value + "x"
    forged = msgspec.structs.replace(honest, **{field: other})
    with pytest.raises(PeerError) as refusal:
        pair.sides["issuer"].machine.receive_untrusted(forged)
    assert refusal.value.code in ("bad_signature", "wrong_channel", "wrong_direction")


@pytest.mark.parametrize("what", [next_message, receipt_of, opening_of])
def test_records_of_strangers_and_other_chains_are_refused(pair, what):
    record = what(pair)
    sender = "bank" if isinstance(record, Message) else "issuer"
    machine = pair.sides[pair.other(sender)].machine
    for forged in (signed(sender, record, key=STRANGER), signed(sender, record, chain=OTHER_CHAIN)):
        with pytest.raises(PeerError, match="not the peer's own"):
            machine.receive_untrusted(forged)
    machine.receive_untrusted(signed(sender, record))


def test_our_own_records_reflected_are_refused(pair):
    """Whoever sends back what we said has it signed by our key, not by the peer's, and in the wrong direction."""
    issuer = pair.sides["issuer"].machine
    mine = Message(*NAME, 1, True, 2, issuer.state.sent_head, b"mine")
    for record in (mine, receipt_of(pair), opening_of(pair)):
        with pytest.raises(PeerError) as refusal:
            issuer.receive_untrusted(signed("issuer", record))
        assert refusal.value.code == "wrong_direction"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"number": 4}, "peer_ahead"),
        ({"head": X}, "wrong_head"),
        ({"epoch": 2}, "wrong_epoch"),
        ({"to_bank": True}, "wrong_direction"),
        ({"number": 2**53 - 1}, "peer_ahead"),
    ],
)
def test_receipts_for_what_was_not_sent_are_refused(pair, changes, code):
    bank = pair.sides["bank"].machine
    with pytest.raises(PeerError) as refusal:
        bank.receive_untrusted(signed("issuer", msgspec.structs.replace(receipt_of(pair), **changes)))
    assert (refusal.value.code, bank.state.delivered) == (code, 3)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"number": 4}, "peer_ahead"),
        ({"number": 2, "head": X}, "peer_behind"),
        ({"number": 0, "head": bytes(32)}, "peer_behind"),
        ({"head": X}, "wrong_head"),
        ({"last_epoch": 1, "last_number": 1}, "malformed"),
    ],
)
def test_openings_that_cannot_be_are_refused(pair, changes, code):
    """Among them that of a peer whose store was wiped or is an older copy: only a new epoch helps."""
    bank = pair.sides["bank"].machine
    with pytest.raises(PeerError) as refusal:
        bank.receive_untrusted(signed("issuer", msgspec.structs.replace(opening_of(pair), **changes)))
    assert refusal.value.code == code


def test_only_what_goes_to_the_issuer_can_be_final(pair):
    state = pair.sides["bank"].machine.state
    opening = Open(*NAME, 1, True, state.received, state.received_head, True, False, 0, 0, bytes(32))
    with pytest.raises(PeerError) as refusal:
        pair.sides["issuer"].machine.receive_untrusted(signed("bank", opening))
    assert refusal.value.code == "malformed"


def test_after_a_final_opening_nothing_more_is_acknowledged(pair):
    """A peer that says it ended at 3 and then has 4 after all is wrong, and no reason to stop this node."""
    message = next_message(pair)
    bank = pair.sides["bank"].machine
    bank.receive_untrusted(signed("issuer", msgspec.structs.replace(opening_of(pair), is_final=True)))
    with pytest.raises(PeerError) as refusal:
        bank.receive_untrusted(signed("issuer", Receipt(*NAME, 1, False, 4, message.head)))
    assert refusal.value.code == "peer_ahead"
    with pytest.raises(LocalError) as refused:
        bank.submit("later", b"")
    assert refused.value.code == "channel_revoked"


def test_a_repeated_message_is_acknowledged_again_and_not_delivered_again(pair):
    message = next_message(pair)
    issuer = pair.sides["issuer"].machine
    issuer.receive_untrusted(signed("bank", message))
    assert len(issuer.take().keep) == 2
    issuer.receive_untrusted(signed("bank", message))
    batch = issuer.take()
    assert batch.keep == []
    assert [item.number for item in batch.send] == [4]
    with pytest.raises(PeerError) as refusal:
        issuer.receive_untrusted(signed("bank", msgspec.structs.replace(message, payload=b"another")))
    assert refusal.value.code == "wrong_head"


@pytest.mark.parametrize("kind", [FrameKind.CONSENSUS, FrameKind.TRANSACTIONS, FrameKind.SYNC_REQUEST])
def test_frames_of_the_public_protocol_are_none_of_a_channels(kind):
    with pytest.raises(PeerError) as refusal:
        decode_record_untrusted(kind, b"\xc0")
    assert refusal.value.code == "unexpected_frame"


@pytest.mark.parametrize("kind", [FrameKind.PRIVATE_OPEN, FrameKind.PRIVATE_MESSAGE, FrameKind.PRIVATE_RECEIPT])
@pytest.mark.parametrize("payload", [b"", b"\xc0", b"\x90", b"\xdd\xff\xff\xff\xff", bytes(5_000), b"\x81\xa0\xc0"])
def test_bytes_that_are_no_record_are_refused(kind, payload):
    with pytest.raises(PeerError) as refusal:
        decode_record_untrusted(kind, payload)
    assert refusal.value.code in ("malformed", "too_large")


def read_on(pair: Pair, *entered: Entered, sides: tuple[str, ...] = ("bank", "issuer")) -> None:
    """Let the registry go on, and these sides read it."""
    pair.registry += entered
    for name in sides:
        pair.sides[name].read = len(pair.registry) - 1
        pair.sides[name].change()
        pair.sides[name].work()


GRACE, CLOSED, ANEW = Entered(1, Phase.GRACE), Entered(1, Phase.CLOSED), Entered(2, Phase.OPEN)


def test_a_revocation_in_flight_tells_for_each_order_whether_it_was_taken(pair):
    """Two orders on the wire, one of them arrives before the issuer reads of the revocation, a third never left."""
    bank = pair.sides["bank"]
    for name in ("taken", "lost"):
        bank.submit(name, name.encode())
    bank.work()
    pair.arrive("bank")
    pair.sides["issuer"].work()
    pair.disconnect()
    bank.submit("never sent", b"")
    read_on(pair, GRACE)
    assert [(item.id, item.code) for item in pair.delivered["bank"][1:]] == [("never sent", "channel_revoked")]
    with pytest.raises(LocalError) as refusal:
        bank.submit("new", b"")
    assert refusal.value.code == "channel_revoked"
    pair.sides["issuer"].submit("answer 1", b"a1")
    pair.settle()
    assert [(item.id, item.payload, item.code) for item in pair.delivered["bank"][2:]] == [
        ("lost", b"", "channel_revoked"),
        ("", b"a1", ""),
    ]
    assert [item.payload for item in pair.delivered["issuer"]] == [b"o0", b"o1", b"o2", b"taken"]
    assert bank.machine.waiting == 0


def test_orders_that_come_after_the_issuer_read_of_the_revocation_are_not_taken(pair):
    bank = pair.sides["bank"]
    bank.submit("late", b"late")
    bank.work()
    read_on(pair, GRACE, sides=("issuer",))
    pair.settle()
    assert [item.code for item in pair.delivered["bank"][1:]] == ["channel_revoked"]
    assert pair.refusals == []


def test_what_is_in_doubt_when_the_channel_closes_is_told_when_it_is_opened_anew(pair):
    bank = pair.sides["bank"]
    for name in ("taken", "lost"):
        bank.submit(name, name.encode())
    bank.work()
    pair.arrive("bank")
    pair.sides["issuer"].work()
    pair.disconnect()
    read_on(pair, GRACE, CLOSED)
    assert bank.machine.waiting == 2
    assert len(pair.delivered["bank"]) == 1
    bank.crash()
    assert bank.machine.waiting == 2
    read_on(pair, ANEW)
    bank.submit("new", b"new")
    pair.settle()
    assert [(item.id, item.code) for item in pair.delivered["bank"][1:]] == [("lost", "channel_closed")]
    assert [(item.epoch, item.number, item.payload) for item in pair.delivered["issuer"][3:]] == [
        (1, 4, b"taken"),
        (2, 1, b"new"),
    ]


def test_r79_messages_of_an_epoch_that_ended_are_refused_by_whoever_is_in_the_next(pair):
    """A member that was removed and kept what it recorded, or its old node, gets nothing in and nothing out."""
    old = next_message(pair)
    read_on(pair, GRACE, CLOSED, ANEW)
    pair.settle()
    issuer = pair.sides["issuer"].machine
    before = issuer.state
    with pytest.raises(PeerError) as refusal:
        issuer.receive_untrusted(signed("bank", old))
    assert (refusal.value.code, issuer.state) == ("wrong_epoch", before)


def test_r79_a_peer_that_gave_its_key_up_is_not_heard_under_it(pair):
    message = next_message(pair)
    read_on(pair, Entered(1, Phase.OPEN, bank_key=1), sides=("issuer",))
    issuer = pair.sides["issuer"].machine
    with pytest.raises(PeerError, match="not the peer's own"):
        issuer.receive_untrusted(signed("bank", message))
    issuer.receive_untrusted(signed("bank", message, key=KEYS["bank"][1]))
    assert issuer.state.received == 4


def test_a_message_of_the_old_epoch_under_way_is_no_fault_until_the_peer_opens_the_new_one(pair):
    old = next_message(pair)
    read_on(pair, GRACE, CLOSED, ANEW, sides=("issuer",))
    issuer = pair.sides["issuer"].machine
    issuer.receive_untrusted(signed("bank", old))
    assert issuer.state.received == 0


def test_nothing_passes_while_the_registry_that_is_read_is_older_than_what_was_seen(pair):
    """A node that reads its chain anew from the start must not go back to an epoch that it has left."""
    read_on(pair, GRACE, CLOSED, ANEW)
    pair.settle()
    bank = pair.sides["bank"]
    bank.read = 0
    bank.change()
    with pytest.raises(LocalError) as refusal:
        bank.submit("new", b"")
    assert (refusal.value.code, bank.machine.phase, bank.machine.state.epoch) == ("channel_closed", Phase.CLOSED, 2)
    assert bank.machine.take().keep == []
    pair.settle()
    bank.submit("new", b"new")
    pair.settle()
    assert pair.delivered["issuer"][-1].payload == b"new"


def test_a_new_epoch_within_a_session_is_opened_by_asking(pair):
    """The issuer reads of it first and says so; the bank, that could not use this then, asks for it later."""
    pair.registry += [GRACE, CLOSED, ANEW]
    for side in ("issuer", "bank"):
        pair.sides[side].read = len(pair.registry) - 1
        pair.sides[side].change()
        flow(pair)
    pair.sides["bank"].submit("new", b"new")
    flow(pair)
    assert pair.delivered["issuer"][-1].payload == b"new"
    assert pair.refusals == []


def test_a_full_inbox_leaves_messages_and_asks_for_them_when_there_is_room(pair):
    bank, issuer = pair.sides["bank"], pair.sides["issuer"]
    issuer.machine.room(has_room=False)
    for number in range(3):
        bank.submit(f"more {number}", b"m%d" % number)
    flow(pair)
    assert bank.machine.waiting == 3
    issuer.machine.room(has_room=True)
    flow(pair)
    assert [item.payload for item in pair.delivered["issuer"]] == [b"o0", b"o1", b"o2", b"m0", b"m1", b"m2"]
    assert (bank.machine.waiting, pair.refusals) == (0, [])


def flow(pair: Pair) -> None:
    """Let everything happen in order within the session that stands."""
    for _ in range(6):
        for name in ("bank", "issuer"):
            pair.sides[name].work()
            while pair.wire[name]:
                pair.arrive(name)


def test_outbox_is_bounded_by_messages_and_by_bytes(pair):
    bank = pair.sides["bank"].machine
    pair.disconnect()
    for number in range(LIMITS.outbox_messages_max):
        bank.submit(f"{number}", b"")
    with pytest.raises(LocalError) as refusal:
        bank.submit("more", b"")
    assert refusal.value.code == "outbox_full"
    issuer = pair.sides["issuer"].machine
    issuer.submit("large", bytes(LIMITS.outbox_bytes_max))
    with pytest.raises(LocalError) as refusal:
        issuer.submit("more", b"x")
    assert refusal.value.code == "outbox_full"
    with pytest.raises(LocalError) as refusal:
        issuer.submit("larger", bytes(PAYLOAD_BYTES_MAX + 1))
    assert refusal.value.code == "too_large"


@pytest.mark.parametrize("message_id", ["", "x" * 129, "ä", "a\nb"])
def test_ids_are_short_and_printable(pair, message_id):
    with pytest.raises(LocalError) as refusal:
        pair.sides["bank"].machine.submit(message_id, b"")
    assert refusal.value.code == "bad_id"


def test_window_bounds_what_is_under_way():
    """By count, and by bytes, though one message always goes."""
    limits = ChannelLimits(window_messages_max=3, window_bytes_max=100)
    for size, expected in ((0, 3), (50, 2), (51, 1), (1_000, 1)):
        peer_key = KEYS["issuer"][0].public.compressed
        facts = ChannelFacts(NAME, 1, Phase.OPEN, True, NodeName("issuer"), peer_key)
        machine = ChannelMachine(facts, CHAIN, limits, ChannelState(), [])
        machine.session_up()
        for number in range(5):
            machine.submit(f"{number}", bytes(size))
        opening = Open(*NAME, 1, False, 0, bytes(32), False, False, 0, 0, bytes(32))
        machine.receive_untrusted(signed("issuer", opening))
        sends = machine.take().send
        assert len(sends) == 1 + expected
        assert isinstance(sends[0], Open)
        first = machine.state.delivered
        receipt = Receipt(*NAME, 1, False, 1, next(item.entry.head for item in sends[1:]))
        machine.receive_untrusted(signed("issuer", receipt))
        assert len(machine.take().send) == 1
        assert (first, machine.state.delivered) == (0, 1)


def test_the_oldest_ids_are_forgotten_one_by_one(monkeypatch):
    monkeypatch.setattr("p2p.private.log.IDS_KEPT", 3)
    pair = Pair()
    bank = pair.sides["bank"]
    for number in range(6):
        bank.submit(f"{number}", b"")
        pair.settle()
    assert [bank.log.placed(NAME, f"{number}") for number in range(6)] == [None] * 3 + [(1, 4), (1, 5), (1, 6)]
    assert sum(key.startswith((b"k", b"n")) for key in bank.store.data) == 6


@pytest.mark.parametrize(("side", "phase"), [("bank", Phase.GRACE), ("bank", Phase.CLOSED), ("issuer", Phase.CLOSED)])
def test_a_node_that_reads_the_chain_anew_sends_nothing_more_in_an_epoch_that_it_saw_end(pair, side, phase):
    """Its chain was lost and comes back block by block: the channel is open again for a while, also at its peer."""
    one = pair.sides[side]
    pair.disconnect()
    one.submit("given up", b"x")
    pair.registry += [Entered(1, phase), Entered(1, Phase.OPEN)]
    for one.read in (1, 2):
        one.change()
        one.work()
    assert pair.delivered[side][-1].id == "given up"
    with pytest.raises(LocalError) as refusal:
        one.submit("anew", b"x")
    assert refusal.value.code == "channel_revoked"
    pair.settle()
    assert not pair.refusals
