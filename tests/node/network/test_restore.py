"""A home that lost a file which no node runs without is made anew; what is left of it is kept."""

import shutil
from pathlib import Path

import pytest

from node.config import load_config
from node.network.genesis import activations_of, default_plan
from node.network.homes import LocalNetwork, init_network, wipe_data
from node.network.keys import load_vote_key
from node.network.restore import restore_home
from tests.contracts.domain.support import shared_registry

NAME = "issuer-f"


@pytest.fixture
def network(tmp_path: Path) -> LocalNetwork:
    return init_network(tmp_path / "net", default_plan(), activations_of(shared_registry()), port_base=21_200)


@pytest.mark.parametrize(
    "lost", ["", "node.toml", "genesis.json", "keys", "keys/vote.pem", "keys/tls.pem", "keys/tls.crt"]
)
async def test_a_home_that_lost_a_file_comes_back_with_its_ports_and_new_keys(network: LocalNetwork, lost: str) -> None:
    home = network.node(NAME)
    before, old_key = load_config(home.folder), load_vote_key(home.folder / "keys")
    path = home.folder / lost
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    told: list[str] = []
    await restore_home(network, NAME, told.append)
    config = load_config(home.folder)
    assert (config.p2p, config.rpc, config.organisation) == (before.p2p, before.rpc, before.organisation)
    assert sorted(config.peers) == sorted(node.name for node in network.nodes if node.name != NAME)
    assert config.genesis.read_bytes() == network.genesis_path.read_bytes()
    assert config.tls_certificate.is_file()
    assert load_vote_key(config.keys).public != old_key.public
    assert home.folder.with_name(f"{NAME}.aside-1").exists() == bool(lost)
    assert len(told) == 1
    await restore_home(network, NAME, told.append)
    assert len(told) == 1, "a whole home stays as it is"


async def test_a_second_loss_keeps_what_the_first_one_left(network: LocalNetwork) -> None:
    for number in (1, 2):
        (network.node(NAME).folder / "keys" / "vote.pem").unlink()
        await restore_home(network, NAME, lambda _: None)
        assert network.node(NAME).folder.with_name(f"{NAME}.aside-{number}").is_dir()


async def test_a_reset_finds_the_first_key_of_a_home_made_anew(network: LocalNetwork) -> None:
    keys = network.node(NAME).folder / "keys"
    first = load_vote_key(keys).public
    for _ in range(2):
        certificate = (keys / "tls.crt").read_bytes()
        (network.node(NAME).folder / "node.toml").unlink()
        await restore_home(network, NAME, lambda _: None)
        assert load_vote_key(keys).public != first
        assert certificate in [path.read_bytes() for path in keys.glob("tls.aside-*.crt")]
    wipe_data(network)
    assert load_vote_key(keys).public == first
