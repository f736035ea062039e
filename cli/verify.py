"""Where ``chain verify`` takes the blocks from: a running node over RPC, or a stopped node's home."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from cli.output import Output
from cli.place import Place, read_genesis
from consensus.ledger.errors import LocalError, PeerError, StorageError
from consensus.ledger.genesis import Genesis
from contracts.runtime.execution import Executor
from contracts.runtime.registry import Registry
from node.audit import AuditFailure, AuditResult, StoreSource, verify_chain
from node.storage.check import check_files
from node.storage.leveldb import LevelStore
from services.client.answers import Answer, HexText, bytes_of
from services.client.sync import SyncClient, connect

PAGE_BLOCKS = 100
PROGRESS_BLOCKS = 500


class _RawBlock(Answer, frozen=True):
    height: int
    raw: HexText
    certificate_raw: HexText | None
    receipts_raw: HexText


class _RawPage(Answer, frozen=True):
    blocks: list[_RawBlock]
    next: int | None
    head: int


class RemoteSource:
    """Downloads the blocks in pages, up to the head at the time of the first page."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client

    def final_blocks(self) -> Iterator[tuple[int, bytes, bytes, bytes]]:
        """Yield (height, block, certificate, receipts) from height 1 on."""
        height, head = 1, None
        while head is None or height <= head:
            params = {"start": height, "limit": PAGE_BLOCKS, "order": "ascending", "raw": True}
            page = self._client.request("chain_getBlocks", params, _RawPage)
            head = page.head if head is None else head
            if not page.blocks and height <= head:
                raise PeerError("bad_answer", f"the node has no block {height}")
            for block in page.blocks:
                if block.height != height:
                    raise PeerError("bad_answer", f"the node answers block {block.height} instead of {height}")
                if height > head:
                    return
                certificate = bytes_of(block.certificate_raw or "0x")
                yield height, bytes_of(block.raw), certificate, bytes_of(block.receipts_raw)
                height += 1


def verify_remote(place: Place, output: Output) -> AuditResult:
    """Verify the chain that a running node serves."""
    with place.explaining(), connect(place.genesis, place.urls) as client:
        return verify_chain(
            RemoteSource(client), place.genesis, Executor(Registry.shipped()), on_height=_progress(output)
        )


def verify_home(home: Path, place: Place, output: Output) -> AuditResult:
    """Verify everything that a stopped node has stored.

    Raises:
        LocalError: ``no_home``; ``store_locked`` while the node runs; ``wrong_chain`` when ``--genesis`` or
            ``--network`` name another chain than the home's.
    """
    from node.config import load_config

    if not home.is_dir():
        raise LocalError("no_home", f"{home} is no node's home folder")
    config = load_config(home)
    if not (config.data / "CURRENT").is_file():
        raise LocalError("no_home", f"{config.data} holds no database")
    genesis = read_genesis(config.genesis)
    if place.genesis_path is not None or place.given is not None:
        wanted, found = place.genesis.chain_id().hex(), genesis.chain_id().hex()
        if wanted != found:
            raise LocalError("wrong_chain", f"{home} belongs to chain 0x{found}, not 0x{wanted}")
    try:
        check_files(config.data)
        store = LevelStore.open(config.data)
    except StorageError as error:
        if error.code != "corrupted":
            raise
        return _locate_damage(config.data, genesis, error, output)
    return _verify_store(store, genesis, output)


def replay_bundle(bundle: Path, home: Path) -> dict[str, object]:
    """Execute the block of a divergence bundle on the state of a stopped node.

    Raises:
        LocalError: ``no_home``, ``bad_bundle``, ``bad_height``, ``store_locked`` while the node runs.
    """
    from node.chain import Chain
    from node.config import load_config
    from node.divergence import replay

    if not home.is_dir():
        raise LocalError("no_home", f"{home} is no node's home folder")
    config = load_config(home)
    if not (config.data / "CURRENT").is_file():
        raise LocalError("no_home", f"{config.data} holds no database")
    store = LevelStore.open(config.data)
    try:
        result = replay(Chain(store, read_genesis(config.genesis), Executor(Registry.shipped())), bundle)
    finally:
        store.close()
    return {"ok": result["holds"], **result}


def _verify_store(store: LevelStore, genesis: Genesis, output: Output) -> AuditResult:
    try:
        return verify_chain(StoreSource(store), genesis, Executor(Registry.shipped()), on_height=_progress(output))
    finally:
        store.close()


def _locate_damage(data: Path, genesis: Genesis, error: StorageError, output: Output) -> NoReturn:
    """Find out how far a damaged database holds, on a copy of it.

    Raises:
        AuditFailure: always.
    """
    with tempfile.TemporaryDirectory(prefix="hansa-salvage-") as folder:
        copy = Path(folder) / "data"
        shutil.copytree(data, copy)
        try:
            store = LevelStore.open(copy, is_salvage=True)
        except StorageError as problem:
            message = problem.message.replace(str(copy), str(data))
            raise AuditFailure(None, f"the database cannot be read at all: {message}") from None
        result = _verify_store(store, genesis, output)
    raise AuditFailure(None, f"{error.message}; all blocks up to height {result.height} hold")


def _progress(output: Output) -> Callable[[int], None]:
    """Return what says every so many blocks how far the work is."""

    def on_height(height: int) -> None:
        if height % PROGRESS_BLOCKS == 0:
            output.progress(f"{height} blocks hold …")

    return on_height
