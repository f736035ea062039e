"""A network folder that members join and leave: homes, roots, identities, and what a reset makes of it."""

from pathlib import Path

import msgspec
import pytest

from consensus.ledger.errors import LocalError
from consensus.ledger.ids import ChainId
from contracts.runtime.registry import Registry
from node.config import load_config
from node.network.genesis import activations_of, default_plan
from node.network.homes import (
    LocalNetwork,
    add_home,
    add_organisation,
    init_network,
    load_authority,
    load_network,
    mark_removed,
    wipe_data,
)
from node.network.joining import admin_of, request_of
from node.network.keys import load_vote_key, renew_vote_key
from node.network.members import decode_request
from tests.contracts.domain.support import shared_registry

BASE = 21_000


def init(folder: Path, registry: Registry | None = None) -> LocalNetwork:
    return init_network(folder, default_plan(), activations_of(registry or shared_registry()), port_base=BASE)


@pytest.fixture
def network(tmp_path: Path) -> LocalNetwork:
    return init(tmp_path / "net")


def test_a_later_home_knows_the_nodes_that_are_there(network: LocalNetwork) -> None:
    grown = add_home(network, "bank-e", add_organisation(network, "bank-e"), 7)
    home = grown.node("bank-e")
    assert (home.p2p.port, home.rpc.port) == (BASE + 7, BASE + 107)
    config = load_config(home.folder)
    assert sorted(config.peers) == sorted(node.name for node in network.nodes)
    assert config.genesis.read_bytes() == network.genesis_path.read_bytes()
    assert admin_of(grown, "bank-e") == "bank-e"
    assert grown.identity("bank-e").address == grown.key("bank-e").public.address
    again = add_home(grown, "bank-e", add_organisation(grown, "bank-e"), 9)
    assert again.node("bank-e") == home, "its home stays as it was made"
    assert [node.name for node in again.nodes].count("bank-e") == 1
    assert load_authority(again, "bank-e").certificate == load_authority(grown, "bank-e").certificate


def test_an_organisation_whose_files_are_half_there_is_made_whole(network: LocalNetwork) -> None:
    add_organisation(network, "bank-e")
    address = load_network(network.folder).identity("bank-e").address
    (network.folder / "ca" / "bank-e.pem").unlink()
    with pytest.raises(LocalError) as refusal:
        load_authority(network, "bank-e")
    assert refusal.value.code == "unknown_organisation"
    authority = add_organisation(network, "bank-e")
    assert load_authority(network, "bank-e").certificate == authority.certificate
    assert load_network(network.folder).identity("bank-e").address == address


def test_who_has_left_is_no_node_and_keeps_its_home(network: LocalNetwork) -> None:
    left = mark_removed(network, "issuer-f", is_removed=True)
    assert [node.name for node in left.nodes] == ["bank-a", "issuer-c", "permission"]
    assert [node.name for node in left.removed] == ["issuer-f"]
    assert left.removed[0] == network.node("issuer-f")
    assert mark_removed(left, "issuer-f", is_removed=False).nodes == network.nodes
    with pytest.raises(LocalError) as refusal:
        mark_removed(network, "nobody", is_removed=True)
    assert refusal.value.code == "unknown_node"


def test_the_same_network_is_found_again_whoever_has_joined_or_left(network: LocalNetwork) -> None:
    add_home(network, "bank-e", add_organisation(network, "bank-e"), 4)
    mark_removed(network, "issuer-f", is_removed=True)
    assert [node.name for node in init(network.folder).nodes] == ["bank-a", "issuer-c", "permission", "bank-e"]


def test_a_reset_goes_back_to_the_members_and_keys_of_genesis(network: LocalNetwork) -> None:
    keys = network.node("issuer-c").folder / "keys"
    first = load_vote_key(keys).public
    renew_vote_key(keys)
    renew_vote_key(keys)
    (network.node("issuer-f").data / "block").write_bytes(b"x")
    grown = add_home(network, "bank-e", add_organisation(network, "bank-e"), 4)
    wipe_data(mark_removed(grown, "issuer-f", is_removed=True))
    assert load_vote_key(keys).public.compressed == first.compressed
    again = load_network(network.folder)
    assert {node.name for node in again.nodes} == {"bank-a", "issuer-c", "issuer-f", "permission", "bank-e"}
    assert not any(any(node.data.iterdir()) for node in again.nodes)


def test_a_reset_refuses_before_it_wipes_when_a_first_vote_key_is_lost(network: LocalNetwork) -> None:
    keys = network.node("issuer-f").folder / "keys"
    block = network.node("bank-a").data / "block"
    block.write_bytes(b"x")
    renew_vote_key(keys)
    (keys / "vote.aside-1.pem").unlink()
    with pytest.raises(LocalError) as refusal:
        wipe_data(network)
    assert refusal.value.code == "genesis_key_lost"
    assert "issuer-f" in refusal.value.message
    assert "hansa network init" in refusal.value.message
    assert block.exists()


def test_a_request_says_what_the_contract_takes(network: LocalNetwork) -> None:
    grown = add_home(network, "bank-e", add_organisation(network, "bank-e"), 4)
    request = request_of(grown, grown.node("bank-e"))
    assert request.node_arguments()["address"] == f"127.0.0.1:{BASE + 4}"
    assert str(request.organisation_arguments()["root_certificate"]).startswith("-----BEGIN CERTIFICATE-----")


def test_a_request_with_anothers_root_is_refused_before_anyone_approves(network: LocalNetwork) -> None:
    grown = add_home(network, "bank-e", add_organisation(network, "bank-e"), 4)
    request = request_of(grown, grown.node("bank-e"))
    chain_id = network.genesis.chain_id()
    assert decode_request(msgspec.json.encode(request), chain_id) == request
    root = network.genesis.organisations[0].root_certificate
    with pytest.raises(LocalError, match="its subject names") as refusal:
        decode_request(msgspec.json.encode(msgspec.structs.replace(request, root_certificate=root)), chain_id)
    assert refusal.value.code == "bad_certificate_file"


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("bad_request", b""),
        ("bad_request", b"{}"),
        ("bad_request", b"x" * 100_000),
        ("bad_request", b'{"request": []}'),
        ("bad_request", b"[" * 60_000),
        ("bad_request", b'{"chainId": 1}'),
        ("bad_request", b'{"chainId":"' + b"0" * 64 + b'","node":"A","organisation":"a","voteKey":"","address":""}'),
        (
            "wrong_chain",
            b'{"chainId":"%s","node":"a","organisation":"a","voteKey":"02%s","address":""}' % (b"0" * 64, b"1" * 64),
        ),
    ],
)
def test_files_that_are_no_request(code: str, data: bytes) -> None:
    with pytest.raises(LocalError) as refusal:
        decode_request(data, ChainId(b"\1" * 32))
    assert refusal.value.code == code
