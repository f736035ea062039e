"""node.toml: what is read, and every way of being wrong named with file and field."""

import pytest

from consensus.ledger.errors import LocalError
from node.config import Endpoint, config_text, load_config

TEXT = config_text(
    name="bank-a",
    organisation="bank-a",
    p2p=Endpoint("127.0.0.1", 26600),
    rpc=Endpoint("127.0.0.1", 26700),
    peers={"issuer-c": Endpoint("127.0.0.1", 26601)},
)


def write(folder, text):
    """Write a configuration and return its path."""
    path = folder / "node.toml"
    path.write_text(text)
    return path


def test_defaults_and_paths_from_the_home_folder(tmp_path):
    config = load_config(write(tmp_path, TEXT).parent)
    assert (config.name, config.organisation, config.p2p.port, config.rpc.port) == ("bank-a", "bank-a", 26600, 26700)
    assert config.peers == {"issuer-c": ("127.0.0.1", 26601)}
    assert config.data == tmp_path / "data"
    assert config.tls_certificate == tmp_path / "keys" / "tls.crt"
    assert config.vote_key == tmp_path / "keys" / "vote.pem"
    assert (config.consensus.timeout_ms, config.consensus.heartbeat_ms) == (1_000, 30_000)


def test_absolute_paths_and_ipv6_peers(tmp_path):
    text = f'data = "{tmp_path}/elsewhere"\n' + TEXT + 'issuer-f = "[::1]:26602"\n'
    config = load_config(write(tmp_path, text))
    assert config.data == tmp_path / "elsewhere"
    assert config.peers["issuer-f"] == ("::1", 26602)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("port = 26600", "port = 70000"), "p2p.port"),
        (("port = 26600", 'port = "x"'), "p2p.port"),
        (('name = "bank-a"', 'name = "Bank A"'), "name"),
        (('name = "bank-a"\n', ""), "name"),
        (('name = "bank-a"', 'nane = "bank-a"'), "nane"),
        (("127.0.0.1:26601", "127.0.0.1"), "peers.issuer-c"),
        (("127.0.0.1:26601", "127.0.0.1:0"), "peers.issuer-c"),
        (("issuer-c =", "bank-a ="), "peers.bank-a"),
        (("port = 26700", "port = 26600"), "rpc.port"),
        (("[p2p]", "[consensus]\ntimeout_ms = 9000\n[p2p]"), "consensus.timeout_ms"),
        (("[p2p]", "[consensus]\ntick_ms = 500\n[p2p]"), "consensus.tick_ms"),
        (("[p2p]", "[consensus]\nquiet_ms = 30000\n[p2p]"), "consensus.quiet_ms"),
        (("[p2p]", "[consensus]\nquiet_ms = 0\n[p2p]"), "consensus.quiet_ms"),
        (("[p2p]", "[pool]\ntransactions_max = 5\n[p2p]"), "pool.transactions_per_sender_max"),
        (("[p2p]", 'log_level = "loud"\n[p2p]'), "log_level"),
        (("[p2p]", "[p2p"), "line"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, said):
    path = write(tmp_path, TEXT.replace(*change))
    with pytest.raises(LocalError) as raised:
        load_config(path)
    assert raised.value.code == "bad_config"
    assert str(path) in raised.value.message
    assert said in raised.value.message


def test_missing_or_huge_file_is_a_typed_error(tmp_path):
    for prepare in (
        lambda: None,
        lambda: write(tmp_path, "#" * 300_000),
        lambda: (tmp_path / "node.toml").write_bytes(b"\xff"),
    ):
        prepare()
        with pytest.raises(LocalError) as raised:
            load_config(tmp_path / "node.toml")
        assert raised.value.code == "bad_config"
