"""What becomes of a node's private database and keys when its chain's data, or its home, are made anew."""

from pathlib import Path

import pytest

from contracts.runtime.registry import Registry
from node.chain import Chain
from node.config import NodeConfig, load_config
from node.network import rejoin
from node.network.genesis import activations_of, default_plan
from node.network.homes import LocalNetwork, init_network, wipe_data
from node.network.keys import load_channel_key
from node.network.restore import restore_home
from node.reindex import reindex
from node.storage.leveldb import LevelStore
from node.storage.private import SealedStore
from tests.node.support import make_executor

NAME = "bank-a"


@pytest.fixture
def network(tmp_path: Path) -> LocalNetwork:
    return init_network(tmp_path / "net", default_plan(validators=1), activations_of(Registry.shipped()))


@pytest.fixture
async def config(network: LocalNetwork) -> NodeConfig:
    """A home with a chain of one block and one private value."""
    config = load_config(network.node(NAME).folder)
    store = LevelStore.open(config.data)
    Chain(store, network.genesis, make_executor())
    store.close()
    load_channel_key(config.channel_key)
    sealed = open_private(config, network)
    await sealed.write([(b"a", b"private")])
    sealed.close()
    return config


def open_private(config: NodeConfig, network: LocalNetwork) -> SealedStore:
    return SealedStore.open(config.private_data, config.private_key, network.genesis.chain_id())


def value(config: NodeConfig, network: LocalNetwork) -> bytes | None:
    store = open_private(config, network)
    try:
        return store.get(b"a")
    finally:
        store.close()


async def test_a_rejoin_leaves_private_data_that_are_whole(config: NodeConfig, network: LocalNetwork) -> None:
    prepared = rejoin.prepare(config)
    assert prepared.data_aside is not None
    assert prepared.private_aside is None
    assert (prepared.data_aside / "CURRENT").exists()
    assert not (prepared.data_aside / "private").exists()
    assert value(config, network) == b"private"
    assert not rejoin.has_data(config.data)
    assert rejoin.prepare(config).data_aside is None  # run again
    assert value(config, network) == b"private"


async def test_a_rejoin_that_broke_off_brings_private_data_back_when_it_is_run_again(
    config: NodeConfig, network: LocalNetwork
) -> None:
    config.data.rename(config.data.with_name("data.aside-1"))
    assert rejoin.prepare(config).data_aside is None
    assert value(config, network) == b"private"


@pytest.mark.parametrize("fault", ["altered", "no key", "no CURRENT"])
async def test_a_rejoin_sets_private_data_aside_that_do_not_open(
    config: NodeConfig, network: LocalNetwork, fault: str
) -> None:
    if fault == "altered":
        plain = LevelStore.open(config.private_data)
        plain.write([(b"a", b"x" * 40)])
        plain.close()
    elif fault == "no key":
        config.private_key.unlink()
    else:
        (config.private_data / "CURRENT").unlink()
    prepared = rejoin.prepare(config)
    assert prepared.private_aside == config.data / "private.aside-1"
    assert prepared.private_aside.is_dir()
    assert value(config, network) is None
    assert not rejoin.has_data(config.data)


async def test_reindexing_leaves_private_data_where_they_are(config: NodeConfig, network: LocalNetwork) -> None:
    done = reindex(config)
    assert done.data_aside is not None
    assert not (done.data_aside / "private").exists()
    assert value(config, network) == b"private"


async def test_a_home_made_anew_keeps_private_data_and_their_keys(config: NodeConfig, network: LocalNetwork) -> None:
    channel_key, sealing_key = config.channel_key.read_bytes(), config.private_key.read_bytes()
    config.path.unlink()
    await restore_home(network, NAME, lambda text: None)
    assert (config.channel_key.read_bytes(), config.private_key.read_bytes()) == (channel_key, sealing_key)
    assert config.channel_key.stat().st_mode & 0o777 == 0o600
    assert config.private_key.stat().st_mode & 0o777 == 0o600
    assert value(load_config(config.path), network) == b"private"


async def test_a_reset_wipes_private_data_and_leaves_keys(config: NodeConfig, network: LocalNetwork) -> None:
    channel_key, sealing_key = config.channel_key.read_bytes(), config.private_key.read_bytes()
    wipe_data(network)
    assert not config.private_data.exists()
    assert (config.channel_key.read_bytes(), config.private_key.read_bytes()) == (channel_key, sealing_key)
    assert value(config, network) is None


async def test_a_moved_home_takes_its_channels_along(config: NodeConfig, network: LocalNetwork, tmp_path: Path) -> None:
    key = load_channel_key(config.channel_key).public
    moved = load_config(config.path.parent.rename(tmp_path / "elsewhere"))
    assert value(moved, network) == b"private"
    assert load_channel_key(moved.channel_key).public == key
