"""The program of one node: opens what it needs in order, runs it, and closes in order.

    store → chain → private part → vote log → engine → p2p → driver → RPC and the owner's socket

SIGTERM and SIGINT end it within ``STOP_TIMEOUT_S``; a disk that fails or a chain that diverges ends it
at once, with the reason in the log and in the exit code. ``kill -9`` at any moment loses nothing that
was acknowledged.
"""

import gc
import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from random import SystemRandom

import msgspec
import structlog
import trio

from consensus.ledger.errors import HansaError, InvariantError, LocalError, PeerError, StorageError
from consensus.ledger.genesis import decode_genesis_untrusted
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import PrivateKey
from consensus.pbft.config import Config
from consensus.pbft.engine import Engine
from consensus.pbft.signing import KeySigner, KeyVerifier
from contracts.runtime.execution import Executor
from contracts.runtime.registry import Registry
from node import vote_log
from node.chain import Chain
from node.clock import Clock, SystemClock
from node.config import NodeConfig, load_config
from node.divergence import Divergence, write_bundle
from node.driver import Commit, Driver
from node.environment import EnvironmentLink
from node.intake import Intake
from node.members import VALIDATOR, Members
from node.mempool import Mempool, PoolLimits
from node.network.keys import load_channel_key
from node.owner import OwnerDesk
from node.private import PrivatePart
from node.rpc.node_backend import NodeBackend
from node.rpc.server import RpcConfig, serve_rpc
from node.storage.leveldb import LevelStore
from node.storage.private import SealedStore
from node.storage.store import Store
from node.votes import Standing
from p2p.frames import FrameKind
from p2p.network import Network, NetworkConfig
from p2p.private.port import PrivateStore
from p2p.recorder import FrameRecorder
from p2p.tls import TlsIdentity

NOT_VOTING = NodeName("(not voting)")
"""Stands for a node whose key may not vote; no validator can have this name, so the engine observes."""

STOP_TIMEOUT_S = 5.0
DISTRIBUTION = "hansa"
OWN_PACKAGES = ("consensus", "contracts", "p2p", "node", "services", "cli", "bench")

EXIT_OK = 0
EXIT_REFUSED = 1
EXIT_STORAGE = 3
EXIT_INVARIANT = 4

log = structlog.get_logger("node")


def run(home: Path, *, record_frames: Path | None = None) -> int:
    """Run the node whose home folder this is until it is told to stop; return the exit code.

    Args:
        home: the folder.
        record_frames: where every frame is written down in clear, instead of what its configuration says.

    Raises:
        LocalError: it cannot start: ``bad_config``, ``bad_genesis``, ``wrong_chain``, ``store_locked``,
            ``port_in_use``, ``contract_code_missing``, ``foreign_package`` and the like.
    """
    check_packages()
    config = load_config(home)
    if record_frames is not None:
        config = msgspec.structs.replace(config, record_frames=record_frames)
    configure_logs(config.log_level)
    try:
        trio.run(_main, config, strict_exception_groups=True)
    except BaseExceptionGroup as group:
        return _exit_code(group, config)
    except HansaError as error:
        return _exit_code(BaseExceptionGroup("", [error]), config)
    return EXIT_OK


def _exit_code(group: BaseExceptionGroup[BaseException], config: NodeConfig) -> int:
    """Turn what ended the node into an exit code; a LocalError is the caller's to show, a bug stays a bug."""
    errors = list(leaves(group))
    for error in errors:
        if not isinstance(error, HansaError):
            raise group
    fatal = [error for error in errors if isinstance(error, InvariantError | StorageError)]
    # What ended it is its last word; the network's doctor reads it from there.
    for error in sorted(fatal, key=lambda error: isinstance(error, InvariantError)):
        code = EXIT_INVARIANT if isinstance(error, InvariantError) else EXIT_STORAGE
        more = {"bundle": _leave_bundle(config.log, error)} if isinstance(error, Divergence) else {}
        log.error("stopped", code=getattr(error, "code", ""), why=str(error), exit=code, **more)
    if fatal:
        return EXIT_INVARIANT if any(isinstance(error, InvariantError) for error in fatal) else EXIT_STORAGE
    raise errors[0]


def _leave_bundle(folder: Path, error: Divergence) -> str:
    """Write the bundle and return where it is, or why it is not there."""
    try:
        return str(write_bundle(folder, error))
    except OSError as refusal:
        return f"not written: {refusal.strerror}"


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Yield the single exceptions of a group."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


def check_packages() -> None:
    """Refuse to run where another distribution owns one of our import names.

    Raises:
        LocalError: ``foreign_package``.
    """
    owners = importlib.metadata.packages_distributions()
    for package in OWN_PACKAGES:
        foreign = sorted(set(owners.get(package, ())) - {DISTRIBUTION})
        if foreign:
            raise LocalError("foreign_package", f"{foreign[0]} installs a package {package}; use an own environment")


class _LineLogger:
    """Writes a line to standard error at once. What a full disk does not take is lost, and nothing else."""

    def msg(self, line: str) -> None:
        """Write one line."""
        with suppress(OSError):
            os.write(sys.stderr.fileno(), f"{line}\n".encode(errors="replace"))

    debug = info = warning = error = critical = exception = msg


def configure_logs(level: str) -> None:
    """Log one JSON object a line to standard error."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _LineLogger(),
        cache_logger_on_first_use=True,
    )


class Node:
    """Everything that one node is made of, opened and wired; nothing runs yet.

    Without a ``sealed`` store it has no private channels. A ``recorder`` gets every frame in clear.
    """

    def __init__(
        self,
        config: NodeConfig,
        store: Store,
        *,
        clock: Clock | None = None,
        sealed: PrivateStore | None = None,
        recorder: FrameRecorder | None = None,
    ) -> None:
        self.config = config
        self.is_ready = False
        self.clock = clock or SystemClock()
        genesis = decode_genesis_untrusted(_read(config.genesis))
        executor = Executor(Registry.shipped(), log=_log_contract)
        self.chain = Chain(store, genesis, executor)
        self._check_contracts()
        pool = PoolLimits(
            transactions_max=config.pool.transactions_max,
            bytes_max=config.pool.bytes_max,
            transactions_per_sender_max=config.pool.transactions_per_sender_max,
        )
        self.mempool = Mempool(executor, self.chain.verifier, pool)
        self.members = Members.read(self.chain.state)
        self.private = None if sealed is None else self._private_part(sealed)
        self.network = Network(
            NetworkConfig(
                name=config.name,
                chain_id=self.chain.chain_id,
                identity=TlsIdentity.load(config.tls_certificate, config.tls_key),
                trust=self.members.trust,
                host=config.p2p.host,
                port=config.p2p.port,
                peers=self.members.to_dial(config.peers),
                recorder=recorder,
            ),
            self._handle,
            admits=self._admits,
            random=SystemRandom(),
            wall_ms=self.clock.wall_ms,
            private=self.private,
        )
        self.driver = Driver(
            name=config.name,
            chain=self.chain,
            store=store,
            mempool=self.mempool,
            engine=self._engine(store),
            network=self.network,
            clock=self.clock,
            tick_ms=config.consensus.tick_ms,
        )
        self.intake = Intake(
            chain=self.chain,
            mempool=self.mempool,
            network=self.network,
            clock=self.clock,
            on_work=self.driver.work_changed,
        )
        self.environment = EnvironmentLink(config.environment, self.chain.chain_id)
        self.backend = NodeBackend(
            name=config.name,
            chain=self.chain,
            mempool=self.mempool,
            clock=self.clock,
            submit=self.intake.submit_untrusted,
            engine_status=self.driver.engine.status,
            votes=self.driver.votes.report,
            peers=self.network.peers,
            is_ready=lambda: self.is_ready,
            standing=self.standing,
            evidence=lambda: tuple(self.driver.evidence),
            certified_height=lambda: self.driver.certified_height,
            private_figures=dict if self.private is None else self.private.figures,
            environment=self.environment,
        )
        self.driver.on_commit(self._on_commit)
        self.driver.on_commit(self.backend.on_commit)
        self.driver.on_view(self.backend.on_consensus)

    def _private_part(self, sealed: PrivateStore) -> PrivatePart:
        part = PrivatePart(
            name=self.config.name,
            chain_id=self.chain.chain_id,
            key=load_channel_key(self.config.channel_key),
            store=sealed,
            random=SystemRandom(),
        )
        part.read(self.chain.state, self.chain.head.header.time_ms)
        return part

    def _engine(self, store: Store) -> Engine:
        times, chain_id = self.config.consensus, self.chain.chain_id
        key = PrivateKey.from_pem(_read(self.config.vote_key))
        self._vote_key = key.public.compressed
        self._may_vote, records = vote_log.open_log(store, self.config.keys, key.public.compressed)
        self._last_standing = self.standing()
        if not self._may_vote:
            log.error(
                "not voting",
                why="this store is not where the vote key's votes are written; docs/errors.md says what to do",
            )
        config = Config(
            name=self.config.name if self._may_vote else NOT_VOTING,
            signer=KeySigner(key, chain_id),
            verifier=KeyVerifier(chain_id),
            timeout_ms=times.timeout_ms,
            timeout_ms_max=times.timeout_ms_max,
            quiet_after_ms=times.quiet_ms,
            heartbeat_ms=times.heartbeat_ms,
        )
        return Engine.restore(config, self.chain.head, records)

    def _check_contracts(self) -> None:
        missing = self.chain.executor.registry.missing(self.chain.state, self.chain.head.header.height + 1)
        if missing:
            item = missing[0]
            raise LocalError(
                "contract_code_missing",
                f"the chain has {item.name} {item.version} with code 0x{item.code_hash.hex()}, this node has not",
            )

    def _admits(self, name: NodeName, organisation: str, fingerprint: bytes) -> bool:
        """Tell whether a node may be a peer: who belongs by the newest state may, and keeps a revoked certificate out.

        So may one that the operator names and the state does not know: a node that is behind has not read of it yet.
        """
        if name in self.members.nodes:
            return self.members.admits(name, organisation, fingerprint)
        return name in self.config.peers

    def _on_commit(self, commit: Commit) -> None:
        """Follow what a block changed about channels and about who belongs, and say what it changed for this node."""
        if self.private is not None:
            block, writes = commit.candidate.block, commit.candidate.execution.writes
            self.private.committed(self.chain.state, writes, block.header.time_ms)
        if not Members.touched_by(commit.candidate.execution.writes):
            return
        self.members = Members.read(self.chain.state)
        self.network.members_changed(self.members.trust, self.members.to_dial(self.config.peers))
        if self.private is not None:
            self.private.recheck(lambda peer: self._admits(peer.name, peer.organisation, peer.fingerprint))
        standing = self.standing()
        if standing != self._last_standing:
            tell = log.info if standing in (Standing.VOTING, Standing.OBSERVING) else log.error
            tell("standing changed", why=standing.value, height=commit.candidate.block.height)
        self._last_standing = standing

    def standing(self) -> Standing:
        """Return what the newest state lets this node do with the vote key that it holds."""
        own = self.members.nodes.get(self.config.name)
        if own is None or not self.members.belongs(self.config.name):
            return Standing.OUTSIDE
        if own.vote_key != self._vote_key:
            return Standing.OTHER_KEY
        if own.status != VALIDATOR:
            return Standing.OBSERVING
        return Standing.VOTING if self._may_vote else Standing.NO_LOG

    async def _handle(self, peer: NodeName, kind: FrameKind, payload: bytes) -> None:
        match kind:
            case FrameKind.CONSENSUS:
                await self.driver.receive_untrusted(peer, payload)
            case FrameKind.TRANSACTIONS:
                await self.intake.receive_untrusted(payload)
            case FrameKind.SYNC_REQUEST:
                answer = await self.driver.answer_request_untrusted(peer, payload)
                self.network.send(peer, FrameKind.SYNC_RESPONSE, answer)
            case FrameKind.SYNC_RESPONSE:
                self.driver.take_response_untrusted(peer, payload)
            case FrameKind.RESULT_REQUEST:
                answer = await self.driver.answer_results_untrusted(peer, payload)
                self.network.send(peer, FrameKind.RESULT_RESPONSE, answer)
            case FrameKind.RESULT_RESPONSE:
                self.driver.take_results(peer, payload)
            case _:
                raise PeerError("malformed", f"frame kind {kind} has no handler")


async def _main(config: NodeConfig) -> None:
    chain_id = decode_genesis_untrusted(_read(config.genesis)).chain_id()
    with ExitStack() as opened:
        store = LevelStore.open(config.data)
        opened.callback(store.close)
        sealed = SealedStore.open(config.private_data, config.private_key, chain_id)
        opened.callback(sealed.close)
        recorder = None if config.record_frames is None else FrameRecorder(config.record_frames)
        if recorder is not None:
            opened.callback(recorder.close)
            log.warning("every frame is recorded in clear", file=str(config.record_frames))
        node = Node(config, store, sealed=sealed, recorder=recorder)
        # What is loaded by now stays for ever: the collector need not walk it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        await _run(node)


async def _run(node: Node) -> None:
    config = node.config
    stopping, network_ended = trio.Event(), trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(_run_network, node.network, network_ended)
            if node.private is not None:
                await nursery.start(node.private.run, node.network)
            await nursery.start(node.driver.run)
            nursery.start_soon(node.intake.run)
            nursery.start_soon(node.environment.run)
            async with trio.open_nursery() as serving:
                port = await serving.start(_serve, node, stopping)
                node.is_ready = True
                log.info("ready", node=config.name, height=node.chain.head.header.height, rpc_port=port)
                async for number in signals:
                    log.info("stopping", signal=signal.Signals(number).name)
                    break
                stopping.set()
                serving.cancel_scope.deadline = trio.current_time() + STOP_TIMEOUT_S / 2
            node.network.stop()
            with trio.move_on_after(STOP_TIMEOUT_S / 2):
                await network_ended.wait()
            # A write that is under way is waited for; what follows from it would have been lost to kill -9 too.
            nursery.cancel_scope.cancel()
    log.info("stopped", height=node.chain.head.header.height)


async def _run_network(network: Network, ended: trio.Event, *, task_status: trio.TaskStatus[int]) -> None:
    await network.run(task_status=task_status)
    ended.set()


async def _serve(node: Node, stopping: trio.Event, *, task_status: trio.TaskStatus[int]) -> None:
    config = node.config
    rpc = RpcConfig(host=config.rpc.host, port=config.rpc.port, host_names=frozenset(config.rpc_hosts))
    desk = None
    if node.private is not None:
        desk = OwnerDesk(config.owner_socket, config.organisation, node.private.key, node.private, stopping)
    await serve_rpc(node.backend, rpc, stopping=stopping, desk=desk, task_status=task_status)


def _log_contract(contract: str, method: str, text: str) -> None:
    log.warning("contract error", contract=contract, method=method, text=text)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LocalError("bad_config", f"{path}: {error.strerror}") from None
