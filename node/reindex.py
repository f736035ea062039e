"""Making everything anew that follows from the blocks: receipts, writes, state, tree, indexes.

The blocks of a stopped node are executed again from genesis, each checked against its certificate, into a
second database; the votes and their incarnation are copied; then the folders change places, and the old one
stays as ``data.aside-N``, without the private database, which goes along. What does not follow from anything –
blocks, certificates, votes – must be readable with its checksums; where it is not, the node has to rejoin.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from consensus.ledger.errors import LocalError, StorageError
from consensus.ledger.genesis import decode_genesis_untrusted
from contracts.runtime.execution import Executor
from contracts.runtime.registry import Registry
from node.audit import AuditFailure, AuditResult, StoreSource, rebuild
from node.chain import Chain
from node.config import PRIVATE_FOLDER, NodeConfig
from node.network.rejoin import has_data, mount_point_error, require_stopped, set_data_aside, sync_folder, verify_data
from node.storage import layout
from node.storage.check import check_files
from node.storage.leveldb import LevelStore

_UNFINISHED = ".rebuilding"
_COMPLETE = ".rebuilt"


@dataclass(frozen=True, slots=True)
class Reindexed:
    """What was proven on the way, and where the old data went."""

    result: AuditResult
    data_aside: Path | None


def reindex(config: NodeConfig, *, on_height: Callable[[int], None] = lambda _: None) -> Reindexed:
    """Rebuild a stopped node's database from its blocks; run it again when it was interrupted.

    Args:
        config: of the node.
        on_height: hears the heights that are done.

    Raises:
        LocalError: ``still_running``; ``no_home`` without data; ``file_error`` where ``data`` is a mount point;
            ``rejoin_needed`` when blocks, certificates or votes are damaged, naming what.
    """
    require_stopped(config)
    unfinished, complete = (config.data.with_name(config.data.name + suffix) for suffix in (_UNFINISHED, _COMPLETE))
    if not has_data(config.data) and has_data(complete):
        # The last run ended between its two renames.
        _put_in_place(complete, config.data)
        return Reindexed(verify_data(config, on_height=on_height), None)
    if not has_data(config.data):
        raise LocalError("no_home", f"{config.data} holds no database")
    if config.data.is_mount():
        raise mount_point_error(config.data)
    shutil.rmtree(unfinished, ignore_errors=True)
    set_data_aside(complete, with_private=True)  # whatever it is: the node may have run since
    try:
        result = _build(config, unfinished, on_height)
    except (AuditFailure, StorageError) as error:
        message = f"{error.message}; hansa node rejoin fetches the chain from the others"
        raise LocalError("rejoin_needed", message) from None
    unfinished.rename(complete)
    aside = set_data_aside(config.data)
    _put_in_place(complete, config.data)
    return Reindexed(result, aside)


def _build(config: NodeConfig, folder: Path, on_height: Callable[[int], None]) -> AuditResult:
    """Write the second database; the first one is only read."""
    check_files(config.data)
    genesis = decode_genesis_untrusted(config.genesis.read_bytes())
    store = LevelStore.open(config.data)
    try:
        made = LevelStore.open(folder)
        try:
            chain = Chain(made, genesis, Executor(Registry.shipped()))
            result = rebuild(StoreSource(store), chain, made, on_height)
            incarnation = store.get(layout.META_INCARNATION)
            made.write([(layout.META_INCARNATION, incarnation), *store.scan(layout.VOTE)])
        finally:
            made.close()
    finally:
        store.close()
    return result


def _put_in_place(complete: Path, data: Path) -> None:
    (data / "LOCK").unlink(missing_ok=True)
    if data.is_dir():
        if (data / PRIVATE_FOLDER).exists():
            (data / PRIVATE_FOLDER).rename(complete / PRIVATE_FOLDER)
        data.rmdir()
    complete.rename(data)
    sync_folder(data.parent)
