"""What keeps a node from starting or ends it, and how it says so: a typed error or an exit code."""

import gc
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from consensus.ledger.errors import InvariantError, LocalError, PeerError, StorageError
from contracts.runtime.registry import Registry
from node import program, vote_log
from node.config import CONFIG_FILE, load_config
from node.divergence import Divergence
from node.network.genesis import activations_of, default_plan
from node.network.homes import LocalNetwork, init_network
from node.storage import layout
from node.storage.leveldb import LevelStore
from node.storage.private import SealedStore
from tests.node.network.test_local import free_port_base


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalNetwork]:
    monkeypatch.setattr(program, "configure_logs", lambda level: None)
    base = free_port_base(nodes=2)
    yield init_network(tmp_path / "net", default_plan(validators=2), activations_of(Registry.shipped()), port_base=base)
    gc.unfreeze()


@pytest.fixture
def home(network: LocalNetwork) -> Path:
    return network.nodes[0].folder


def refusal(home: Path) -> LocalError:
    with pytest.raises(LocalError) as error:
        program.run(home)
    return error.value


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def opened(home: Path) -> LevelStore:
    """The store of a home whose node has been opened once."""
    config = load_config(home)
    store = LevelStore.open(config.data)
    program.Node(config, store)
    return store


def test_a_config_that_is_wrong_names_the_field(home: Path) -> None:
    edit(home / CONFIG_FILE, "[p2p]", "colour = 1\n[p2p]")
    error = refusal(home)
    assert error.code == "bad_config"
    assert "colour" in error.message


@pytest.mark.parametrize("missing", ["keys/vote.pem", "keys/tls.pem", "keys/tls.crt"])
def test_a_missing_key_names_the_file(home: Path, missing: str) -> None:
    (home / missing).unlink()
    error = refusal(home)
    assert error.code in {"bad_config", "bad_key", "bad_certificate_file"}
    assert missing in error.message


def test_a_genesis_file_that_is_none(network: LocalNetwork, home: Path) -> None:
    load_config(home).genesis.write_bytes(b"{}")
    assert refusal(home).code == "bad_genesis"


def test_data_of_another_chain(network: LocalNetwork, home: Path) -> None:
    opened(home).close()
    edit(load_config(home).genesis, '"hansa-local"', '"another"')
    assert refusal(home).code == "wrong_chain"


def test_data_that_another_process_holds(home: Path) -> None:
    store = LevelStore.open(load_config(home).data)
    try:
        assert refusal(home).code == "store_locked"
    finally:
        store.close()


@pytest.mark.parametrize("endpoint", ["p2p", "rpc"])
def test_a_port_that_is_taken_ends_the_start_and_frees_the_store(
    network: LocalNetwork, home: Path, endpoint: str
) -> None:
    taken = getattr(network.nodes[0], endpoint).port
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", taken))
        holder.listen()
        error = refusal(home)
    assert error.code == "port_in_use"
    assert str(taken) in error.message
    LevelStore.open(load_config(home).data).close()


def test_code_that_the_chain_needs_and_the_node_lacks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(home).close()
    shipped = Registry.shipped()
    missing = [item for item in activations_of(shipped) if item.name == "tokens"]
    monkeypatch.setattr(Registry, "missing", lambda self, state, height: shipped.newest()[-1:])
    assert missing
    error = refusal(home)
    assert error.code == "contract_code_missing"
    assert shipped.newest()[-1].name in error.message


@pytest.mark.parametrize(
    "key", [layout.META_HEAD, layout.at_height(layout.BLOCK, 0), layout.at_height(layout.VALIDATORS, 1)]
)
@pytest.mark.parametrize("value", [None, b"\xc1"])
def test_a_damaged_store_ends_with_its_own_exit_code(
    home: Path, monkeypatch: pytest.MonkeyPatch, key: bytes, value: bytes | None
) -> None:
    monkeypatch.setattr(program, "_run", _never)
    store = opened(home)
    store.write([(key, value)])
    store.close()
    assert program.run(home) == program.EXIT_STORAGE


def test_an_unreadable_incarnation_ends_with_the_storage_code(home: Path) -> None:
    opened(home).close()
    (load_config(home).keys / vote_log.INCARNATION_FILE).write_bytes(b"\xc1")
    assert program.run(home) == program.EXIT_STORAGE


def test_private_data_that_do_not_open_end_the_node_and_a_lost_key_names_both_files(
    network: LocalNetwork, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "_run", _never)
    config = load_config(home)
    SealedStore.open(config.private_data, config.private_key, network.genesis.chain_id()).close()
    key = config.private_key.read_bytes()
    config.private_key.write_bytes(bytes(32))
    assert program.run(home) == program.EXIT_STORAGE
    config.private_key.unlink()
    error = refusal(home)
    assert error.code == "key_lost"
    assert str(config.private_key) in error.message
    assert str(config.private_data) in error.message
    config.private_key.write_bytes(key)
    config.private_key.chmod(0o600)
    plain = LevelStore.open(config.private_data)
    plain.write([(b"d", b"x" * 40)])  # read when the channels are opened
    plain.close()
    assert program.run(home) == program.EXIT_STORAGE


def test_a_divergence_leaves_a_bundle_and_wins_over_what_follows_from_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(home)
    store = opened(home)
    block = program.Node(config, store).chain.reader.block(0)
    store.close()
    assert block is not None

    async def diverge(node: program.Node) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_raise, Divergence(block, PeerError("result_mismatch", "another root")))
            nursery.start_soon(_raise, StorageError("disk_failed"))

    monkeypatch.setattr(program, "_run", diverge)
    assert program.run(home) == program.EXIT_INVARIANT
    [path] = config.log.glob("divergence-*.json")
    bundle = json.loads(path.read_text())
    assert (bundle["height"], bundle["code"]) == (0, "result_mismatch")
    assert bundle["block"] == "0x" + block.encode().hex()


def test_a_divergence_whose_bundle_cannot_be_written_is_still_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(home)
    store = opened(home)
    block = program.Node(config, store).chain.reader.block(0)
    store.close()
    assert block is not None
    (config.log / "divergence-0.json").mkdir(parents=True)

    async def diverge(node: program.Node) -> None:
        raise Divergence(block, PeerError("result_mismatch", "another root"))

    monkeypatch.setattr(program, "_run", diverge)
    assert program.run(home) == program.EXIT_INVARIANT


def test_a_bug_stays_a_bug(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stumble(node: program.Node) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_raise, ZeroDivisionError())

    monkeypatch.setattr(program, "_run", stumble)
    with pytest.raises(BaseExceptionGroup):
        program.run(home)


async def _never(node: program.Node) -> None:
    raise AssertionError("the node has started")


async def _raise(error: Exception) -> None:
    raise error


def test_a_broken_invariant_has_its_own_exit_code(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stumble(node: program.Node) -> None:
        raise InvariantError("impossible")

    monkeypatch.setattr(program, "_run", stumble)
    assert program.run(home) == program.EXIT_INVARIANT


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_that_takes_nothing_more_changes_nothing_about_how_the_node_ends() -> None:
    lines = "from node.program import *\nconfigure_logs('info')\nlog.error('stopped')\nexit(3)"
    with Path("/dev/full").open("wb") as full:
        assert subprocess.run([sys.executable, "-c", lines], stderr=full, check=False).returncode == 3
