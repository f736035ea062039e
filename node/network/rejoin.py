"""Giving a node whose data are lost, old or damaged a vote again: set aside, new vote key, catch up, ``replace_key``.

A vote key whose log is lost must never vote again (:mod:`node.vote_log`), so the node gets a new one. Nothing is
deleted: data go to ``data.aside-N``, or to ``data/aside-N`` where ``data`` is a mount point, the key and its
incarnation to files beside their successors. A home that is lost itself is made anew first. Every step looks first
at what is there and what the chain says, so a rejoin that was interrupted is simply run again.

The private database is no part of the chain: it stays in ``data/private`` where all of it opens with its key, and goes
to ``data/private.aside-N`` where not. What its channels had under way is lost then, and the other sides, who hear of
numbers that begin again, take nothing more until the channels are opened anew.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from consensus.ledger.errors import HansaError, LocalError, StorageError
from consensus.ledger.genesis import decode_genesis_untrusted
from contracts.runtime.execution import Executor
from contracts.runtime.registry import Registry
from node.audit import AuditResult, StoreSource, verify_chain
from node.config import PRIVATE_FOLDER, NodeConfig, load_config
from node.members import REMOVED
from node.network import local
from node.network.homes import LocalNetwork
from node.network.joining import own_admin
from node.network.keys import ASIDE_MAX, load_vote_key, renew_vote_key
from node.network.members import STEP_MS_MAX, MembershipChain, Tell, find_node, quiet, take_seat
from node.network.restore import restore_home
from node.storage.check import check_files
from node.storage.leveldb import LevelStore
from node.storage.private import SealedStore

_ATTEMPTS = 2
_MOVING = "aside.moving"
_NO_DATA = {"LOCK", "lost+found", PRIVATE_FOLDER, _MOVING}
_NO_DATA_PREFIXES = ("aside-", f"{PRIVATE_FOLDER}.aside-")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A home that is ready to rejoin: its new vote key (33 bytes), and where its data went, None if they stayed.

    ``private_aside`` likewise says where a private database went that did not open.
    """

    vote_key: bytes
    data_aside: Path | None
    private_aside: Path | None


def prepare(
    config: NodeConfig, *, keep_data: bool = False, on_height: Callable[[int], None] = lambda _: None
) -> Prepared:
    """Set a stopped node's data and vote key aside and make a new key; the next start fetches the chain from peers.

    Args:
        config: of the node.
        keep_data: leave the data where they are, if all of them prove to be whole: catching up is shorter then.
        on_height: hears the heights that were proven.

    Raises:
        LocalError: ``still_running``; ``chain_broken`` naming what does not hold of data that were to be kept;
            ``file_error``, ``no_home``, ``bad_key``.
        StorageError: ``corrupted`` likewise.
    """
    require_stopped(config)
    aside = None
    if keep_data:
        verify_data(config, on_height=on_height)
    else:
        aside = set_data_aside(config.data, within=True)
    private_aside = _set_private_aside(config)
    # The key last: a node that is started in between still has the old one, without its log, and does not vote.
    return Prepared(renew_vote_key(config.keys).public.compressed, aside, private_aside)


def require_stopped(config: NodeConfig) -> None:
    """Check that no process has the node's database open.

    Raises:
        LocalError: ``still_running``.
    """
    try:
        with (config.data / "LOCK").open("rb+") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"{config.name} runs: process {_holder(lock)} holds {config.data}; end it first"
                raise LocalError("still_running", message) from None
    except FileNotFoundError:
        return


def _holder(lock: BinaryIO) -> int:
    """Return the process that holds a lock on the file, 0 when it is not seen from here."""
    asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock of Linux
    pid: int = struct.unpack("hhqqi", fcntl.fcntl(lock, fcntl.F_GETLK, asked))[-1]
    return pid


def has_data(data: Path) -> bool:
    """Tell whether the folder holds a database, damaged or not."""
    return data.is_dir() and bool(_entries(data))


def set_data_aside(data: Path, *, within: bool = False, with_private: bool = False) -> Path | None:
    """Rename a node's data folder to ``data.aside-N`` and leave an empty one; None when it held no chain.

    Args:
        data: the folder.
        within: where it is a mount point, which cannot be renamed, move what it holds to ``data/aside-N``.
        with_private: the private database goes along; else it comes back.

    Raises:
        LocalError: ``file_error``.
    """
    if not has_data(data) and not (data / _MOVING).exists():
        if not with_private:
            _bring_private_back(data)  # which an interrupted run has not done
        return None
    aside = _free_name(data.parent, f"{data.name}.aside")
    try:
        data.rename(aside)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        if not within:
            raise mount_point_error(data) from None
        return _set_aside_within(data)
    data.mkdir(mode=0o700)
    sync_folder(data.parent)
    if not with_private:
        _bring_private_back(data)
    return aside


def _bring_private_back(data: Path) -> None:
    """Take the private database out of what was set aside last: it is none of the chain's."""
    names = (data.with_name(f"{data.name}.aside-{number}") for number in range(ASIDE_MAX, 0, -1))
    last = next((path for path in names if path.exists()), data) / PRIVATE_FOLDER
    if last.exists() and not (data / PRIVATE_FOLDER).exists():
        data.mkdir(mode=0o700, exist_ok=True)
        last.rename(data / PRIVATE_FOLDER)
        sync_folder(data)


def _set_private_aside(config: NodeConfig) -> Path | None:
    """Rename a private database that does not open, or not all of it, to ``private.aside-N``; None where it stays."""
    if not config.private_data.exists() or _opens(config):
        return None
    aside = _free_name(config.data, f"{PRIVATE_FOLDER}.aside")
    config.private_data.rename(aside)
    sync_folder(config.data)
    return aside


def _opens(config: NodeConfig) -> bool:
    """Tell whether all of the private database opens with its key."""
    try:
        check_files(config.private_data)
        chain_id = decode_genesis_untrusted(config.genesis.read_bytes()).chain_id()
        store = SealedStore.open(config.private_data, config.private_key, chain_id)
        try:
            for _ in store.scan(b""):
                pass
        finally:
            store.close()
    except (StorageError, LocalError):
        return False
    return True


def mount_point_error(data: Path) -> LocalError:
    """Return the error of a folder that cannot change places with another one."""
    return LocalError("file_error", f"{data} is a mount point and cannot be renamed; hansa node rejoin does without")


def _set_aside_within(data: Path) -> Path:
    """Move what a folder holds to one in it that gets its name when all is there: an interrupted run is gone on with.

    ``CURRENT`` goes first: without it what is left is never opened (:mod:`node.storage.check`).
    """
    moving = data / _MOVING
    if (data / "CURRENT").exists() and (moving / "CURRENT").exists():  # the node has begun another one since
        moving.rename(_free_name(data, "aside"))
    moving.mkdir(mode=0o700, exist_ok=True)
    for entry in sorted(_entries(data), key=lambda item: item.name != "CURRENT"):
        entry.rename(moving / entry.name)
        sync_folder(data)
    sync_folder(moving)
    aside = _free_name(data, "aside")
    moving.rename(aside)
    sync_folder(data)
    return aside


def _entries(data: Path) -> list[Path]:
    """Return what belongs to a database in a folder, which what was set aside does not."""
    return [
        entry for entry in data.iterdir() if entry.name not in _NO_DATA and not entry.name.startswith(_NO_DATA_PREFIXES)
    ]


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def verify_data(config: NodeConfig, *, on_height: Callable[[int], None] = lambda _: None) -> AuditResult:
    """Prove all that a stopped node has stored, from genesis on.

    Raises:
        LocalError: ``chain_broken``, ``store_locked``, ``wrong_chain``.
        StorageError: ``corrupted``.
    """
    check_files(config.data)
    genesis = decode_genesis_untrusted(config.genesis.read_bytes())
    store = LevelStore.open(config.data)
    try:
        return verify_chain(StoreSource(store), genesis, Executor(Registry.shipped()), on_height=on_height)
    finally:
        store.close()


async def rejoin(
    network: LocalNetwork,
    chain: MembershipChain,
    name: str,
    *,
    keep_data: bool = False,
    tell: Tell = quiet,
    timeout_ms: int = STEP_MS_MAX,
) -> bytes:
    """Do all of it for a node of a local network: stop, set aside, start, catch up, ``replace_key``, wait for its vote.

    Args:
        network: the folder, which holds the key of the organisation's admin.
        chain: reaches the other nodes.
        name: of the node.
        keep_data: as in :func:`prepare`.
        tell: hears what is done.
        timeout_ms: for catching up, and again until it votes.

    Returns:
        the vote key (33 bytes) that it votes with now.

    Raises:
        LocalError: ``unknown_node``, ``node_state`` for a removed node, ``not_enough_admins``, what :func:`prepare`
            and the start raise, ``not_caught_up``, ``not_voting``, or what the chain refuses with.
    """
    home = network.node(name)
    admin = own_admin(network, home.organisation)
    record = await find_node(chain, name)
    if record is None or record.status == REMOVED:
        raise LocalError("node_state", f"{name} is no member: hansa member add {name} admits it anew")
    await restore_home(network, name, tell)
    config = load_config(home.folder)
    # A key that the chain does not name is of a rejoin that was interrupted, a home made anew, or an old copy of one.
    goes_on = load_vote_key(config.keys).public.compressed != record.vote_key
    for attempt in range(_ATTEMPTS):
        if attempt or not goes_on:
            tell(f"{name}: stopping")
            await local.stop(network, [name])
            prepared = prepare(config, keep_data=keep_data)
            if prepared.data_aside is not None:
                tell(f"{name}: its data are in {prepared.data_aside} now")
            if prepared.private_aside is not None:
                tell(f"{name}: its private database does not open and is in {prepared.private_aside} now")
            tell(f"{name}: has a new vote key")
        try:
            tell(f"{name}: starting")
            await local.start(network, [name])
            await take_seat(chain, config, admin=admin, tell=tell, timeout_ms=timeout_ms)
            break
        except HansaError as error:
            is_last = attempt == _ATTEMPTS - 1
            if is_last or not goes_on or error.code not in ("key_used", "node_exited"):
                raise
            tell(f"{name}: cannot go on with what is there ({error.code}); beginning anew")
    return load_vote_key(config.keys).public.compressed


def _free_name(folder: Path, name: str) -> Path:
    for number in range(1, ASIDE_MAX + 1):
        aside = folder / f"{name}-{number}"
        if not aside.exists():
            return aside
    raise LocalError("file_error", f"{folder}: {ASIDE_MAX} older data folders stand there")
