"""``hansa node``: rejoin and reindex of a home folder, and how they refuse; the whole of it runs in tests/network."""

from pathlib import Path

import pytest

from contracts.runtime.registry import Registry
from node import program
from node.config import load_config
from node.network.genesis import activations_of, default_plan
from node.network.homes import init_network
from node.network.keys import load_vote_key
from node.network.trial import free_port_base
from node.storage import layout
from node.storage.leveldb import LevelStore
from tests.cli.support import answer, fault, hansa


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A network folder whose one node was started once and is stopped."""
    plan, activations = default_plan(validators=1), activations_of(Registry.shipped())
    made = init_network(tmp_path / "net", plan, activations, port_base=free_port_base(1))
    config = load_config(made.nodes[0].folder)
    store = LevelStore.open(config.data)
    program.Node(config, store)
    store.close()
    return made.folder


@pytest.fixture
def home(network: Path) -> Path:
    return network / "nodes" / "bank-a"


def test_rejoin_prepares_a_home_and_says_what_comes_next(home: Path) -> None:
    before = load_vote_key(home / "keys").public.compressed
    said = answer(hansa("node", "rejoin", "--home", str(home), "--json"))
    now = load_vote_key(home / "keys").public.compressed
    assert said["voteKey"] == "0x" + now.hex() != "0x" + before.hex()
    assert said["dataAside"] == str(home / "data.aside-1")
    assert [step.split()[:3] for step in said["next"]] == [["hansa", "node", "run"], ["hansa", "member", "seat"]]
    again = hansa("node", "rejoin", "--home", str(home))
    assert again.exit_code == 0
    assert "there were none" in again.stdout


def test_rejoin_keeps_data_that_are_whole(home: Path) -> None:
    said = answer(hansa("node", "rejoin", "--home", str(home), "--keep-data", "--json"))
    assert said["dataAside"] is None
    assert (home / "data" / "CURRENT").is_file()


def test_reindex_says_what_was_rebuilt(home: Path) -> None:
    said = answer(hansa("node", "reindex", "--home", str(home), "--json"))
    assert (said["height"], said["dataAside"]) == (0, str(home / "data.aside-1"))
    text = hansa("node", "reindex", "--home", str(home))
    assert text.exit_code == 0
    assert "data.aside-2" in text.stdout


@pytest.mark.parametrize(
    "arguments",
    [("rejoin",), ("rejoin", "bank-a", "--home", "x"), ("rejoin", "--home", "x", "--network", "y"), ("reindex",)],
)
def test_one_home_or_one_name(arguments: tuple[str, ...]) -> None:
    assert hansa("node", *arguments).exit_code == 2


def test_refusals(network: Path, home: Path) -> None:
    assert fault(hansa("node", "rejoin", "nobody", "--network", str(network)), 2) == "unknown_node"
    assert fault(hansa("node", "rejoin", "bank-a", "--network", str(network)), 1) == "node_unreachable"
    assert fault(hansa("node", "rejoin", "bank-a", "--network", str(home)), 2) == "no_network"
    assert fault(hansa("node", "rejoin", "--home", str(network)), 2) == "no_home"
    assert fault(hansa("node", "reindex", "--home", str(network)), 2) == "no_home"
    store = LevelStore.open(home / "data")
    store.write([(layout.META_HEAD, layout.number(1))])
    store.close()
    assert fault(hansa("node", "reindex", "--home", str(home)), 1) == "rejoin_needed"
    assert fault(hansa("node", "rejoin", "--home", str(home), "--keep-data"), 1) == "chain_broken"
