"""Who belongs, as the chain says: real nodes over real TLS follow it while they run."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from consensus.ledger.codec import Value, encode
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import Transaction
from contracts.runtime.state import MemoryState
from node.members import Members
from node.network.ca import Authority, to_pem, utc_now
from node.program import Node
from node.rpc.doctor import diagnose
from node.shares import MESSAGE_OVERHEAD_BYTES, OBSERVER_BYTES_MAX, PEER_BYTES_MAX, InboxShares, Ticket
from node.votes import Standing
from p2p.frames import FrameKind
from p2p.tls import TlsIdentity
from tests.node.consortium import Consortium
from tests.node.site import Running
from tests.node.test_driver import define, signers


def sessions(site: Consortium, *names: str) -> dict[tuple[str, str], int]:
    """Since when each of these nodes is connected with the others of them."""
    return {
        (name, peer.name): peer.connected_since_ms
        for name in names
        for peer in site.running[name].node.network.peers()
        if peer.name in names
    }


def leave_dialling_to_the_smaller(node: Node) -> None:
    """Keep a slow start from dialling twice: one session of the pair would give way to the other later."""
    node.network._config = replace(node.network._config, second_dial_ms=600_000)


async def work(site: Consortium, at: str, count: int, *, first: int) -> None:
    """Have so many transactions of bank-a become final on every node, one after the other."""
    for number in range(first, first + count):
        transaction = site.sign("bank-a", define(f"u{number}"), sequence=number)
        site.submit(at, transaction)
        await site.reach(await until_final(site, transaction))


async def until_final(site: Consortium, transaction: Transaction) -> int:
    """Wait until a transaction is final on every node, and return its height: empty blocks come too."""
    readers = [item.node.chain.reader for item in site.running.values()]
    await site.until(lambda: all(reader.locate(transaction.id) is not None for reader in readers))
    location = readers[0].locate(transaction.id)
    assert location is not None
    return location.height


async def test_a_new_organisations_node_joins_and_votes_while_nobody_restarts(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    site = Consortium(tmp_path, nursery)
    old = site.names
    await site.start(prepare=leave_dialling_to_the_smaller)
    before = sessions(site, *old)
    authority, admin_key = Authority.create("yourbank", now=utc_now()), PrivateKey.generate()
    address = site.newcomer("yourbank-1", "yourbank", authority)
    vote_key = site.vote_key("yourbank-1")
    await site.agree(
        "admit_organisation",
        organisation="yourbank",
        roles=["member"],
        root_certificate=to_pem(authority.certificate).decode(),
        admin_key=admin_key.public.compressed,
    )
    await site.agree(
        "admit_node",
        node="yourbank-1",
        organisation="yourbank",
        vote_key=vote_key.public.compressed,
        address=address,
    )
    [newcomer] = await site.start("yourbank-1")
    await work(site, old[0], 2, first=0)
    assert not newcomer.node.driver.engine.status().is_validator
    assert not any("yourbank-1" in signers(site, old[0], height) for height in range(1, newcomer.height + 1))
    with capture_logs() as logs:
        await site.change(admin_key, "seat_node", **site.seat_proof("yourbank-1", vote_key, newcomer.height))
        await site.until(lambda: newcomer.node.driver.engine.status().is_validator)
    assert Standing.VOTING.value in [entry.get("why") for entry in logs]
    await site.stop(old[1])
    height = site.height
    await work(site, "yourbank-1", 2, first=2)  # of five, four are needed
    assert "yourbank-1" in signers(site, old[0], height + 2)
    rest = [name for name in old if name != old[1]]
    assert sessions(site, *rest) == {pair: since for pair, since in before.items() if old[1] not in pair}
    await site.stop()


async def test_a_removed_members_frames_reach_nobody_any_more(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Consortium(tmp_path, nursery)
    leaver, *others = reversed(site.names)
    puppet = await site.puppet(leaver, dials=True)
    await site.start(*others)
    await puppet.meet(*others)
    taken: list[str] = []
    for name in others:
        driver = site.running[name].node.driver
        original = driver.receive_untrusted

        async def receive(peer: NodeName, payload: bytes, original=original) -> None:  # type: ignore[no-untyped-def]
            taken.append(peer)
            await original(peer, payload)

        driver.receive_untrusted = receive  # type: ignore[method-assign]
    await site.agree("remove_node", node=leaver)
    await site.until(lambda: puppet.network.connected() == ())
    assert all(leaver not in site.running[name].node.chain.head.validators.names for name in others)
    taken.clear()
    # It dials on, is turned down each time, and has nobody to send to.
    await site.until(lambda: {peer.last_error for peer in puppet.network.peers()} == {"refused_by_peer"})
    assert puppet.network.broadcast(FrameKind.CONSENSUS, b"anybody there?") == 0
    await work(site, others[0], 2, first=0)
    assert set(taken) <= set(others)
    assert all(leaver not in {peer.name for peer in site.running[name].node.network.peers()} for name in others)
    await site.stop()


async def test_r71_a_certificate_revoked_on_chain_loses_its_live_session_and_its_successor_may_come(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    site = Consortium(tmp_path, nursery)
    lost, *others = site.names
    await site.start()
    config = site.config(lost)
    fingerprint = TlsIdentity.load(config.tls_certificate, config.tls_key).fingerprint
    site.certify(lost, site.authority(lost))  # made in time; the running process still shows the old one
    await site.change(lost, "revoke_certificate", at=others[0], node=lost, fingerprint=fingerprint)
    await site.until(lambda: not any(site.is_connected(lost, other) for other in others))
    network = site.running[lost].node.network
    await site.until(lambda: "refused_by_peer" in {peer.last_error for peer in network.peers()})
    await site.stop(lost)
    await work(site, others[0], 1, first=0)
    await site.start(lost)
    await site.until(lambda: site.is_connected(lost, *others))
    await work(site, others[0], 2, first=1)
    await site.stop()


async def test_p24_a_joiner_catches_up_from_genesis_although_every_member_of_genesis_has_left(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Its state knows no node that is left, and nobody it knows signs the newest certificate."""
    site = Consortium(tmp_path, nursery)
    old = site.names
    await site.start()
    bank, issuer = site.authority("bank-a"), site.authority("issuer-c")
    for name, organisation, authority in (("bank-2", "bank-a", bank), ("issuer-2", "issuer-c", issuer)):
        address = site.newcomer(name, organisation, authority, *old)
        key = site.vote_key(name)
        public = key.public.compressed
        await site.agree("admit_node", node=name, organisation=organisation, vote_key=public, address=address)
        [newcomer] = await site.start(name)
        await site.until(lambda n=newcomer: n.height == site.running[old[0]].height)
        await site.change(organisation, "seat_node", at=old[0], **site.seat_proof(name, key, newcomer.height))
    address = site.newcomer("bank-3", "bank-a", bank, "bank-2")
    public = site.vote_key("bank-3").public.compressed
    await site.agree("admit_node", node="bank-3", organisation="bank-a", vote_key=public, address=address)
    for leaver in reversed(old):
        await site.remove(leaver, *old, at="bank-2")
    assert site.running["bank-2"].node.chain.head.validators.names == ("bank-2", "issuer-2")
    [joiner] = await site.start("bank-3")
    await site.until(lambda: joiner.height == site.running["bank-2"].height)
    await site.until(lambda: site.is_connected("bank-3", "bank-2", "issuer-2"))
    await site.stop()


async def test_a_process_whose_key_was_replaced_stops_voting_at_once_and_says_so(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    site = Consortium(tmp_path, nursery)
    name, *others = site.names
    await site.start()
    await work(site, name, 2, first=0)
    key = PrivateKey.generate()
    proof = site.seat_proof(name, key, site.running[name].height)
    with capture_logs() as logs:
        await site.change(name, "replace_key", vote_key=key.public.compressed, **proof)
        height = site.height
        await work(site, name, 3, first=2)
    assert [entry["why"] for entry in logs if entry["event"] == "standing changed"] == [Standing.OTHER_KEY.value]
    assert findings(site.running[name])["not_voting"] == name
    assert all(name not in signers(site, others[0], above) for above in range(height + 1, height + 4))
    await site.stop(name)
    site.config(name).vote_key.write_bytes(key.to_pem(None))
    await site.start(name)
    await site.stop(others[0])
    height = site.height
    await work(site, name, 2, first=5)  # three of four are needed
    assert name in signers(site, others[1], height + 2)
    await site.stop()


def findings(running: Running) -> dict[str, str]:
    return {finding.code: finding.about for finding in diagnose(running.node.backend.facts())}


# What the state says, without a network


def root(organisation: str) -> str:
    return to_pem(Authority.create(organisation, now=utc_now()).certificate).decode()


def node(organisation: str, status: str = "validator", address: str = "", *revoked: bytes) -> dict[str, Value]:
    return {
        "organisation": organisation,
        "voteKey": b"\2" * 33,
        "status": status,
        "address": address,
        "revoked": [*revoked],
    }


def state(records: dict[str, Value]) -> MemoryState:
    return MemoryState({f"membership/{key}".encode(): encode(value) for key, value in records.items()})


@pytest.fixture
def members() -> Members:
    lost = sha256(b"lost").digest()
    return Members.read(
        state(
            {
                "organisation/a": {"roles": [], "rootCertificate": root("a"), "status": "active"},
                "organisation/b": {"roles": [], "rootCertificate": root("b"), "status": "suspended"},
                "organisation/bad": {"roles": [], "rootCertificate": "PEM", "status": "active"},
                "organisation/odd": {"roles": []},
                "node/a-1": node("a", "validator", "a1.example:26600", lost),
                "node/a-2": node("a", "observer", "[::1]:26601"),
                "node/a-3": node("a", "removed", "a3.example:26600"),
                "node/a-4": node("a", "observer", "a4.example:99999999999999999999"),
                "node/b-1": node("b", "validator", "b1.example:26600"),
                "node/bad-1": node("bad", "validator", "bad.example:26600"),
                "node/odd-1": {"organisation": "a", "status": "king"},
                "account/00": {"name": "a-9"},
            }
        )
    )


@pytest.mark.parametrize(
    ("name", "organisation", "certificate", "is_admitted"),
    [
        ("a-1", "a", b"fresh", True),
        ("a-1", "a", b"lost", False),
        ("a-1", "b", b"fresh", False),
        ("a-2", "a", b"lost", True),
        ("a-3", "a", b"fresh", False),
        ("b-1", "b", b"fresh", False),
        ("bad-1", "bad", b"fresh", False),
        ("odd-1", "a", b"fresh", False),
        ("a-9", "a", b"fresh", False),
    ],
)
def test_who_is_let_in(members: Members, name: str, organisation: str, certificate: bytes, is_admitted: bool) -> None:
    assert members.admits(NodeName(name), organisation, sha256(certificate).digest()) is is_admitted


def test_a_root_that_is_none_and_a_record_of_another_shape_end_nothing(members: Members) -> None:
    assert set(members.trust.roots) == {"a"}
    assert set(members.nodes) == {"a-1", "a-2", "a-3", "a-4", "b-1", "bad-1"}


def test_whom_to_dial_where(members: Members) -> None:
    a1, a2, a3, new = NodeName("a-1"), NodeName("a-2"), NodeName("a-3"), NodeName("new-1")
    assert members.addresses() == {a1: ("a1.example", 26600), a2: ("::1", 26601)}
    configured = {a1: ("10.0.0.1", 1), a3: ("10.0.0.3", 3), new: ("10.0.0.9", 9)}
    assert members.to_dial(configured) == {a1: ("10.0.0.1", 1), a2: ("::1", 26601), new: ("10.0.0.9", 9)}


def test_more_nodes_than_a_page_are_all_read() -> None:
    records: dict[str, Value] = {f"node/n-{number:04}": node("a") for number in range(600)}
    assert len(Members.read(state(records)).nodes) == 600


# Shares of the inbox


def test_all_observers_together_wait_in_no_more_room_than_one_validator() -> None:
    shares = InboxShares()

    def fill(name: str, *, is_observer: bool) -> list[Ticket]:
        tickets = []
        while (ticket := shares.take(NodeName(name), 1_000, is_observer=is_observer)) is not None:
            tickets.append(ticket)
        return tickets

    size = 1_000 + MESSAGE_OVERHEAD_BYTES
    crowd = [fill(f"o{number}", is_observer=True) for number in range(100)]
    assert len(crowd[0]) == OBSERVER_BYTES_MAX // size
    assert PEER_BYTES_MAX - size < sum(ticket.size for tickets in crowd for ticket in tickets) <= PEER_BYTES_MAX
    assert len(fill("v", is_observer=False)) == PEER_BYTES_MAX // size
    for tickets in crowd:
        for ticket in tickets:
            shares.give_back(ticket)
    assert len(fill("o99", is_observer=True)) == OBSERVER_BYTES_MAX // size


def test_a_message_larger_than_a_share_waits_alone() -> None:
    shares = InboxShares()
    for is_observer in (False, True):
        ticket = shares.take(NodeName("a"), 2 * PEER_BYTES_MAX, is_observer=is_observer)
        assert ticket is not None
        assert shares.take(NodeName("a"), 1, is_observer=is_observer) is None
        shares.give_back(ticket)
