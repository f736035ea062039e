"""Rejoining and reindexing from a home folder: what is set aside, refused, kept, and run again when interrupted."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from consensus.ledger.errors import LocalError, StorageError
from consensus.ledger.keys import PrivateKey
from node import reindex as reindexing
from node.config import NodeConfig
from node.network import rejoin
from node.network.keys import load_vote_key
from node.reindex import reindex
from node.storage import layout
from node.storage.check import check_before_opening, check_files
from node.storage.leveldb import LevelStore
from node.vote_log import INCARNATION_FILE
from tests.conftest import require
from tests.node.consortium import Consortium
from tests.node.test_driver import define, signers
from tests.node.test_members import work

FOOTER_BYTES = 48
HOLDER = "import sys; from pathlib import Path; from node.storage.leveldb import LevelStore as S; \
s = S.open(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"


@contextmanager
def held(data: Path) -> Iterator[int]:
    """Have another process hold the database, as a running node does; its pid."""
    command = [sys.executable, "-c", HOLDER, str(data)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        try:
            yield process.pid
        finally:
            process.communicate(b"")


async def worked(folder: Path, nursery: trio.Nursery, validators: int) -> Consortium:
    """Nodes that have committed a few blocks, all stopped."""
    site = Consortium(folder, nursery, validators=validators)
    await site.start()
    await work(site, site.names[0], 4, first=0)
    await site.stop()
    return site


@pytest.fixture
async def site(tmp_path: Path, nursery: trio.Nursery) -> Consortium:
    return await worked(tmp_path, nursery, 4)


@pytest.fixture
async def config(tmp_path: Path, nursery: trio.Nursery) -> NodeConfig:
    """The home of a node that votes alone."""
    site = await worked(tmp_path, nursery, 1)
    return site.config(site.names[0])


def names_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def flip(config: NodeConfig, key: bytes) -> None:
    """Flip a bit of a stored record."""
    store = LevelStore.open(config.data)
    value = bytearray(store.get(key) or b"")
    value[len(value) // 2] ^= 1
    store.write([(key, bytes(value))])
    store.close()


def records(config: NodeConfig) -> dict[bytes, bytes]:
    store = LevelStore.open(config.data)
    found = dict(store.scan(b""))
    store.close()
    return found


# -- rejoin ------------------------------------------------------------------------------------------------


async def test_a_rejoin_refuses_while_the_node_runs_and_touches_nothing(config: NodeConfig) -> None:
    keys, home = names_in(config.keys), names_in(config.data.parent)
    key = load_vote_key(config.keys).public
    with held(config.data) as pid:
        for command in (rejoin.prepare, reindex):
            with pytest.raises(LocalError) as error:
                command(config)
            assert error.value.code == "still_running"
            assert f"process {pid} holds" in error.value.message
    assert (names_in(config.keys), names_in(config.data.parent)) == (keys, home)
    assert load_vote_key(config.keys).public == key


async def test_r49_a_rejoined_node_fetches_all_anew_and_votes_once_its_key_is_admitted(site: Consortium) -> None:
    name, *others = site.names
    config, old = site.config(name), site.vote_key(name)
    prepared = rejoin.prepare(config)
    assert prepared.data_aside is not None
    assert prepared.data_aside.name == "data.aside-1"
    assert (prepared.data_aside / "CURRENT").is_file()
    assert prepared.vote_key == site.vote_key(name).public.compressed != old.public.compressed
    assert PrivateKey.from_pem((config.keys / "vote.aside-1.pem").read_bytes()).public == old.public
    assert INCARNATION_FILE not in names_in(config.keys)
    await site.start()
    await work(site, others[0], 2, first=4)
    height = site.running[name].height
    assert not any(name in signers(site, others[0], above) for above in (height - 1, height))
    proof = site.seat_proof(name, site.vote_key(name), height)
    await site.change(name, "replace_key", vote_key=prepared.vote_key, **proof)
    await site.stop(others[0])
    await work(site, name, 2, first=6)
    assert name in signers(site, others[1], site.running[name].height)
    await site.stop()


async def test_r18_two_wiped_of_four_are_silent_together_and_come_back_one_after_the_other(site: Consortium) -> None:
    """More than f lost logs at once: who forgot its votes must not vote, so the chain stands, with what it has."""
    first, second, *others = site.names
    height = 4
    backup = site.config(first).data.with_name("backup")
    shutil.copytree(site.config(first).data, backup)
    for name in (first, second):
        site.wipe(name)
    await site.start()
    await site.reach(height)  # both fetch the chain again
    site.submit(others[0], site.sign("bank-a", define("u4"), sequence=4))
    survivor = site.running[others[0]].node.driver.engine
    await site.until(lambda: survivor.status().view >= 1)
    assert {site.running[name].height for name in site.names} == {site.running[others[0]].height}
    assert {name for name in site.names if site.running[name].node.driver.engine.status().is_validator} == set(others)
    await site.stop()
    # The disk of one is found again, as it was when it stopped: three of four vote, and the other may rejoin.
    shutil.rmtree(site.config(first).data)
    backup.rename(site.config(first).data)
    prepared = rejoin.prepare(site.config(second))
    await site.start()
    await work(site, others[0], 1, first=4)  # it waited in memory alone
    proof = site.seat_proof(second, site.vote_key(second), site.running[second].height)
    await site.change(second, "replace_key", vote_key=prepared.vote_key, at=others[0], **proof)
    await site.stop(others[1])
    await work(site, second, 2, first=5)
    assert second in signers(site, others[0], site.running[second].height)
    await site.stop()


async def test_a_second_rejoin_keeps_what_the_first_one_set_aside(config: NodeConfig) -> None:
    keys = [load_vote_key(config.keys).public.compressed]
    asides = []
    for _ in range(3):
        prepared = rejoin.prepare(config)
        keys.append(prepared.vote_key)
        asides.append(prepared.data_aside and prepared.data_aside.name)
        LevelStore.open(config.data).close()
    assert asides == ["data.aside-1", "data.aside-2", "data.aside-3"]
    assert len(set(keys)) == 4
    kept = [PrivateKey.from_pem(path.read_bytes()).public.compressed for path in config.keys.glob("vote.aside-*.pem")]
    assert sorted(kept) == sorted(keys[:3])
    assert all((path.stat().st_mode & 0o777) == 0o600 for path in config.keys.glob("vote*.pem"))


async def test_an_interrupted_rejoin_is_run_again(config: NodeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between data and key the node has its old key without a log: it would not vote."""
    old = load_vote_key(config.keys).public.compressed

    def interrupted(keys: Path) -> PrivateKey:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rejoin, "renew_vote_key", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rejoin.prepare(config)
    assert load_vote_key(config.keys).public.compressed == old
    prepared = rejoin.prepare(config)
    assert prepared.data_aside is None
    assert "data.aside-1" in names_in(config.data.parent)
    assert prepared.vote_key != old


@pytest.fixture
def mounted(config: NodeConfig) -> Iterator[NodeConfig]:
    """The home with its data on a disk of their own."""
    kept = config.data.rename(config.data.with_name("kept"))
    config.data.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=64m", "hansa-test", str(config.data)]
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        require("tmpfs", "mount is missing")
    except subprocess.CalledProcessError as error:
        require("tmpfs", f"no disk of its own can be mounted: {error.stderr.strip()}")
    try:
        shutil.copytree(kept, config.data, dirs_exist_ok=True)
        yield config
    finally:
        subprocess.run(["umount", "--lazy", str(config.data)], check=True)


async def test_data_on_a_disk_of_their_own_are_set_aside_on_it(
    mounted: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount point cannot be renamed: what it holds is moved, and an interruption is gone on with."""
    data = mounted.data
    held_before = names_in(data) - {"LOCK"}
    with pytest.raises(LocalError, match="is a mount point"):
        reindex(mounted)
    assert names_in(data) - {"LOCK"} == held_before
    (data / "lost+found").mkdir()

    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rejoin, "sync_folder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rejoin.prepare(mounted)
    with pytest.raises(StorageError, match="CURRENT is missing"):
        LevelStore.open(data)
    assert rejoin.prepare(mounted).data_aside == data / "aside-1"
    assert names_in(data / "aside-1") == held_before
    LevelStore.open(data).close()
    assert rejoin.prepare(mounted).data_aside == data / "aside-2"
    assert rejoin.prepare(mounted).data_aside is None
    assert names_in(data) == {"LOCK", "lost+found", "aside-1", "aside-2"}


async def test_data_stay_when_they_are_whole_and_the_key_changes_all_the_same(site: Consortium) -> None:
    name, *others = site.names
    config = site.config(name)
    height = 4
    prepared = rejoin.prepare(config, keep_data=True)
    assert prepared.data_aside is None
    await site.start()
    assert site.running[name].height >= height
    await work(site, others[0], 1, first=4)
    assert not site.running[name].node.driver.engine.status().is_validator
    await site.stop()


@pytest.mark.parametrize("kind", [layout.BLOCK, layout.RECEIPTS])
async def test_data_that_are_not_whole_do_not_stay(config: NodeConfig, kind: bytes) -> None:
    flip(config, layout.at_height(kind, 3))
    key = load_vote_key(config.keys).public
    with pytest.raises(LocalError) as error:
        rejoin.prepare(config, keep_data=True)
    assert error.value.code == "chain_broken"
    assert "height 3" in error.value.message
    assert load_vote_key(config.keys).public == key
    assert rejoin.prepare(config).data_aside is not None


# -- reindex -----------------------------------------------------------------------------------------------


async def test_reindex_makes_everything_that_follows_from_the_blocks_anew(site: Consortium) -> None:
    name, *others = site.names
    config = site.config(name)
    before = records(config)
    store = LevelStore.open(config.data)
    derived = [
        key for key in before if key[:1] in {layout.TRANSACTION, layout.HISTORY, layout.EVENT, layout.BLOCK_INDEX}
    ]
    store.write([(key, None) for key in derived])
    store.write([(key, b"rubbish") for key in before if key[:1] in {layout.STATE, layout.TREE, layout.RECEIPTS}])
    store.close()
    done = reindex(config)
    assert done.result.height >= 4
    assert done.data_aside is not None
    assert done.data_aside.name == "data.aside-1"
    assert records(config) == before
    await site.start()
    await site.stop(others[0])
    await work(site, name, 2, first=4)  # it votes: key and log still belong together
    assert name in signers(site, others[1], site.running[name].height)
    await site.stop()


@pytest.mark.parametrize("kind", [layout.BLOCK, layout.CERTIFICATE])
async def test_reindex_refuses_when_blocks_are_damaged_and_points_to_rejoin(config: NodeConfig, kind: bytes) -> None:
    flip(config, layout.at_height(kind, 2))
    before = records(config)
    with pytest.raises(LocalError) as error:
        reindex(config)
    assert error.value.code == "rejoin_needed"
    assert "height 2" in error.value.message
    assert records(config) == before
    assert not any(entry.startswith("data.aside") for entry in names_in(config.data.parent))


async def test_reindex_refuses_a_database_that_cannot_be_read(config: NodeConfig) -> None:
    manifest = next(config.data.glob("MANIFEST-*"))
    content = bytearray(manifest.read_bytes())
    content[20] ^= 1
    manifest.write_bytes(bytes(content))
    with pytest.raises((LocalError, StorageError)) as error:
        reindex(config)
    assert error.value.code == "rejoin_needed"


async def test_reindex_trusts_no_table_whose_filter_is_damaged(config: NodeConfig) -> None:
    """LevelDB passes such damage over, and would answer that there is no incarnation, or no vote."""
    LevelStore.open(config.data).close()  # what was in its log is a table now
    table = max(config.data.glob("*.ldb"))
    whole = table.read_bytes()
    for place in range(len(whole) - FOOTER_BYTES - 1, 0, -1):
        table.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            check_before_opening(config.data)
            check_files(config.data)
        except StorageError as error:
            if "filter" in error.message:
                break
    with pytest.raises(LocalError) as refusal:
        reindex(config)
    assert refusal.value.code == "rejoin_needed"
    assert "filter" in refusal.value.message


async def test_reindex_between_its_two_renames_is_run_again(
    config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = records(config)

    def interrupted(complete: Path, data: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reindexing, "_put_in_place", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reindex(config)
    assert not rejoin.has_data(config.data)
    assert reindex(config).result.height >= 4
    assert records(config) == before


async def test_reindex_of_a_home_without_data(config: NodeConfig) -> None:
    rejoin.prepare(config)
    with pytest.raises(LocalError) as error:
        reindex(config)
    assert error.value.code == "no_home"
