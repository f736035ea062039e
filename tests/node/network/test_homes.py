"""Network folders: complete or not there, the same when made twice, and nothing of others touched."""

import stat

import pytest
from cryptography.hazmat.primitives import serialization

from consensus.ledger.errors import LocalError
from consensus.ledger.genesis import decode_genesis_untrusted
from consensus.ledger.keys import PrivateKey
from contracts.runtime.registry import Registry
from node.config import load_config
from node.network import homes
from node.network.genesis import activations_of, default_plan
from node.network.homes import init_network, is_network, load_network, wipe_data
from node.vote_log import INCARNATION_FILE
from p2p.tls import TlsIdentity, Trust

_DER = serialization.Encoding.DER


@pytest.fixture
def network(tmp_path):
    """The default network with the shipped contracts."""
    return init_network(tmp_path / "net", default_plan(), activations_of(Registry.shipped()))


def code_of(function, *arguments, **settings):
    """Return the code of the LocalError that a call raises."""
    with pytest.raises(LocalError) as raised:
        function(*arguments, **settings)
    return raised.value.code


def test_default_consortium(network):
    assert [node.name for node in network.nodes] == ["bank-a", "issuer-c", "issuer-f", "permission"]
    assert network.genesis.validator_set().names == ("bank-a", "issuer-c", "issuer-f", "permission")
    names = {identity.name for identity in network.identities}
    assert names >= {"shop", "merchant-m", "wallet-p", "wallet-q", "user-b", "user-e", "bank-a", "permission"}
    assert "issuer-d" in {organisation.name for organisation in network.genesis.organisations}
    assert {contract.name for contract in network.genesis.contracts} >= {"membership", "tokens", "rights"}
    assert network.rpc_urls[0] == "http://127.0.0.1:26700"
    assert network.node("permission").p2p.port == 26603


def test_every_home_holds_what_its_node_needs(network):
    trust = Trust.of_genesis(network.genesis)
    vote_keys = {validator.name: validator.vote_key for validator in network.genesis.validators}
    for node in network.nodes:
        config = load_config(node.folder)
        identity = TlsIdentity.load(config.tls_certificate, config.tls_key)
        seen = trust.identify_untrusted(identity.certificate.public_bytes(_DER))
        assert (seen.name, seen.organisation) == (node.name, node.organisation)
        vote_key = PrivateKey.from_pem(config.vote_key.read_bytes())
        assert vote_key.public.compressed.hex() == vote_keys[node.name]
        assert decode_genesis_untrusted(config.genesis.read_bytes()) == network.genesis
        assert config.peers == {peer.name: (peer.p2p.host, peer.p2p.port) for peer in network.nodes if peer != node}
        assert all(folder.is_dir() for folder in (config.data, config.log, config.run))


def test_identities_open_with_the_passphrase_and_are_the_accounts_of_genesis(network):
    accounts = {account.name: account for account in network.genesis.accounts}
    for identity in network.identities:
        assert network.key(identity.name).public.address == identity.address == accounts[identity.name].address
        assert f"Address: 0x{identity.address.hex()}".encode() in identity.path.read_bytes()
        assert code_of(PrivateKey.from_pem, identity.path.read_bytes(), b"wrong") == "wrong_passphrase"


def test_secrets_are_readable_by_their_owner_alone(network):
    secrets = [*network.folder.rglob("*.pem"), network.passphrase_file]
    assert len(secrets) > 20
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}


def test_init_twice_gives_the_same_network(network):
    before = {path: path.read_bytes() for path in network.folder.rglob("*") if path.is_file()}
    again = init_network(network.folder, default_plan(), [])
    assert again == network == load_network(network.folder)
    assert {path: path.read_bytes() for path in network.folder.rglob("*") if path.is_file()} == before


def test_another_network_in_the_folder_is_refused(network):
    assert code_of(init_network, network.folder, default_plan(validators=3), []) == "network_exists"
    assert code_of(init_network, network.folder, default_plan(), [], port_base=30_000) == "network_exists"


def test_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not touch")
    assert code_of(init_network, tmp_path, default_plan(), []) == "folder_not_empty"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert code_of(init_network, tmp_path / "thesis.txt", default_plan(), []) == "bad_folder"


def test_unfinished_folder_is_finished(tmp_path):
    folder = tmp_path / "net"
    (folder / ".partial" / "nodes").mkdir(parents=True)
    (folder / "ca").mkdir()
    assert not is_network(folder)
    assert len(init_network(folder, default_plan(), []).nodes) == 4
    assert not (folder / ".partial").exists()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_other_sizes(tmp_path, count):
    network = init_network(tmp_path / "net", default_plan(validators=count), [], port_base=30_000)
    assert len(network.nodes) == network.genesis.validator_set().size == count
    assert {identity.name for identity in network.identities} >= {"bank-a", "issuer-c", "permission", "shop"}
    assert [node.rpc.port for node in network.nodes] == list(range(30_100, 30_100 + count))


def test_impossible_sizes_and_ports_are_refused(tmp_path):
    assert code_of(default_plan, validators=0) == "bad_validators"
    assert code_of(default_plan, validators=101) == "bad_validators"
    for port_base in (80, 65_500):
        assert code_of(init_network, tmp_path / "net", default_plan(), [], port_base=port_base) == "bad_port"
    assert not (tmp_path / "net").exists()


def test_damaged_folders_are_named(network, tmp_path):
    assert code_of(load_network, tmp_path) == "no_network"
    genesis = network.genesis_path.read_bytes()
    network.genesis_path.write_bytes(genesis.replace(b"hansa-local", b"other-local"))
    assert code_of(load_network, network.folder) == "bad_network"
    network.genesis_path.unlink()
    assert code_of(load_network, network.folder) == "no_network"
    (network.folder / "network.toml").write_text("name = 3")
    assert code_of(load_network, network.folder) == "bad_network"


def test_unknown_names_are_typed_errors(network):
    assert code_of(network.node, "nobody") == "unknown_node"
    assert code_of(network.identity, "nobody") == "unknown_identity"


def test_wiping_takes_the_data_and_nothing_else(network):
    before = {path: path.read_bytes() for path in network.folder.rglob("*") if path.is_file()}
    for node in network.nodes:
        (node.data / "db").mkdir()
        (node.data / "db" / "000001.log").write_bytes(b"x")
        (node.folder / "keys" / INCARNATION_FILE).write_bytes(b"of a vote log that is wiped with the data")
    wipe_data(network)
    assert {path: path.read_bytes() for path in network.folder.rglob("*") if path.is_file()} == before
    assert all(node.data.is_dir() for node in network.nodes)


def test_r49_wiping_that_breaks_off_lets_no_wiped_node_vote(network, monkeypatch):
    for node in network.nodes:
        (node.folder / "keys" / INCARNATION_FILE).write_bytes(b"says that the key has voted")
    last, empty = network.nodes[-1].data, homes._empty

    def breaks_off(path):
        if path == last:
            raise KeyboardInterrupt
        empty(path)

    monkeypatch.setattr(homes, "_empty", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        wipe_data(network)
    assert all((node.folder / "keys" / INCARNATION_FILE).exists() for node in network.nodes)
