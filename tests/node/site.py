"""Whole nodes in one trio process: real homes, keys, LevelDB, TLS over loopback, drivers; only the RPC is left out."""

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
import trio

from consensus.ledger.block import Block
from consensus.ledger.errors import HansaError
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.transaction import ATOMIC, Call, Transaction, sign_transaction
from consensus.ledger.validators import Certificate, Signature, vote_payload
from consensus.pbft.messages import Message, decode_message_untrusted, encode_message
from contracts.runtime.registry import Registry
from node.clock import Clock
from node.config import ConsensusTimes, NodeConfig, load_config
from node.network.genesis import activations_of, default_plan
from node.network.homes import init_network
from node.program import Node, leaves
from node.storage.leveldb import LevelStore
from node.storage.private import SealedStore
from node.storage.store import Store
from p2p.frames import FrameKind
from p2p.network import Network, NetworkConfig
from p2p.tls import TlsIdentity, Trust
from tests.node.network.test_local import free_port_base

WAIT_S = 60
LOOK_AGAIN_S = 0.05
VALIDITY_MS = 600_000


class Running:
    """One node at work; ``errors`` are what ended it."""

    def __init__(self, node: Node, store: Store, touch: Callable[[], None], sealed: SealedStore | None = None) -> None:
        self.node = node
        self._sealed = sealed
        self.ended = trio.Event()
        self.errors: list[BaseException] = []
        self._store = store
        self._touch = touch
        self._scope = trio.CancelScope()
        node.driver.on_commit(lambda commit: touch())
        node.driver.on_view(touch)

    @property
    def height(self) -> int:
        return self.node.chain.head.header.height

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.node.network.run)
                    if self.node.private is not None:
                        await nursery.start(self.node.private.run, self.node.network)
                    await nursery.start(self.node.driver.run)
                    nursery.start_soon(self.node.intake.run)
                    task_status.started()
        except* HansaError as group:
            self.errors = list(leaves(group))
        finally:
            self._store.close()
            if self._sealed is not None:
                self._sealed.close()
            self.ended.set()
            self._touch()

    async def stop(self) -> None:
        self._scope.cancel()
        await self.ended.wait()


class Site:
    """A network folder with its nodes; the nursery is the test's."""

    def __init__(self, folder: Path, nursery: trio.Nursery, *, validators: int = 4, timeout_ms: int = 500) -> None:
        plan = default_plan(validators=validators)
        base = free_port_base(nodes=validators)
        self.network = init_network(folder / "net", plan, activations_of(Registry.shipped()), port_base=base)
        self.genesis = self.network.genesis
        self.chain_id = self.genesis.chain_id()
        self.names = [node.name for node in self.network.nodes]
        self.running: dict[str, Running] = {}
        self._nursery = nursery
        self._timeout_ms = timeout_ms
        self._changed = trio.Event()

    def touch(self) -> None:
        """Let everyone who waits look again."""
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; it is asked again whenever something happened, and now and then."""
        with trio.fail_after(WAIT_S):
            while not condition():
                with trio.move_on_after(LOOK_AGAIN_S):
                    await self._changed.wait()

    @property
    def height(self) -> int:
        """The highest head; a node may be behind it by the block of which the test has just heard."""
        return max(item.height for item in self.running.values())

    async def reach(self, height: int, *names: str) -> None:
        """Wait until these nodes, or all, have this height."""
        nodes = [self.running[name] for name in names or self.running]
        await self.until(lambda: all(item.height >= height for item in nodes))

    # -- nodes -----------------------------------------------------------------------------------------

    def config(self, name: str) -> NodeConfig:
        config = load_config(self.network.node(name).folder)
        times = ConsensusTimes(timeout_ms=self._timeout_ms, quiet_ms=self._timeout_ms)
        return msgspec.structs.replace(config, consensus=times)

    async def start(
        self,
        *names: str,
        wrap: Callable[[Store], Store] = lambda store: store,
        prepare: Callable[[Node], None] = lambda node: None,
        clock: Clock | None = None,
        is_private: bool = False,
    ) -> list[Running]:
        """Open nodes and run them.

        ``wrap`` may put a faulting store around the real one, ``prepare`` change a node before it runs, and
        ``clock`` be another than this machine's. With ``is_private`` they have private channels.
        """
        # The smaller name of a pair dials first: who starts last finds everyone.
        for name in sorted(names or self.names, reverse=True):
            config = self.config(name)
            store = wrap(LevelStore.open(config.data))
            sealed = None
            if is_private:
                sealed = SealedStore.open(config.private_data, config.private_key, self.chain_id)
            node = Node(config, store, clock=clock, sealed=sealed)
            prepare(node)
            self.running[name] = Running(node, store, self.touch, sealed)
            await self._nursery.start(self.running[name].run)
        await self.meet()
        return [self.running[name] for name in names or self.names]

    async def meet(self) -> None:
        """Wait until all nodes that run here are connected with each other."""
        networks = [item.node.network for item in self.running.values() if not item.ended.is_set()]
        with trio.fail_after(WAIT_S):
            while any(len(set(network.connected()) & set(self.running)) < len(networks) - 1 for network in networks):
                await trio.lowlevel.checkpoint()

    async def stop(self, *names: str) -> None:
        for name in names or list(self.running):
            await self.running.pop(name).stop()

    def wipe(self, name: str) -> None:
        """Remove the data of a node that is stopped; its keys stay."""
        shutil.rmtree(self.config(name).data)

    async def puppet(self, name: str, *, dials: bool = False) -> "Puppet":
        """Run a validator's network of which the test decides every frame; before the nodes, so that they find it."""
        puppet = Puppet(self, name, dials=dials)
        await self._nursery.start(puppet.network.run)
        return puppet

    def vote_key(self, name: str) -> PrivateKey:
        return PrivateKey.from_pem(self.config(name).vote_key.read_bytes())

    # -- chain -----------------------------------------------------------------------------------------

    def sign(self, name: str, calls: list[Call], *, sequence: int = 0, lane: bytes = b"") -> Transaction:
        valid_until_ms = self.genesis.time_ms + VALIDITY_MS
        return sign_transaction(
            self.network.key(name),
            self.chain_id,
            calls,
            sequence=sequence,
            lane=lane,
            mode=ATOMIC,
            valid_until_ms=valid_until_ms,
        )

    def submit(self, name: str, *transactions: Transaction) -> None:
        """Hand transactions to a node; it must take them."""
        answers = self.running[name].node.intake.submit_untrusted([item.raw for item in transactions])
        assert [answer.code for answer in answers] == [""] * len(transactions)

    def certify(self, block: Block, view: int = 0) -> Certificate:
        """Return the certificate that a quorum would give the block."""
        payload = vote_payload(block.height, view, block.hash)
        votes = [
            Signature(name, self.vote_key(name).sign(Purpose.COMMIT, self.chain_id, payload))
            for name in sorted(self.names)[: self.genesis.validator_set().quorum]
        ]
        return Certificate(block.height, view, block.hash, votes)


class Puppet:
    """A validator's network without a node behind it. ``answer`` may react to a frame with frames of its own.

    Unless it ``dials``, only others do: of two sessions begun at once one would end, with what was just said on it.
    """

    def __init__(self, site: Site, name: str, *, dials: bool) -> None:
        config = site.config(name)
        self.name = NodeName(name)
        self.frames: list[tuple[NodeName, FrameKind, bytes]] = []
        self.answer: Callable[[NodeName, FrameKind, bytes], None] = lambda peer, kind, payload: None
        self._site = site
        self.network = Network(
            NetworkConfig(
                name=config.name,
                chain_id=site.chain_id,
                identity=TlsIdentity.load(config.tls_certificate, config.tls_key),
                trust=Trust.of_genesis(site.genesis),
                host=config.p2p.host,
                port=config.p2p.port,
                peers=config.peers if dials else {},
            ),
            self._handle,
            admits=lambda name, organisation, fingerprint: True,
            random=Random(name),
            on_peer=lambda peer, connected: site.touch(),
        )

    async def _handle(self, peer: NodeName, kind: FrameKind, payload: bytes) -> None:
        self.frames.append((peer, kind, payload))
        self.answer(peer, kind, payload)
        self._site.touch()

    def messages(self, peer: str) -> list[Message]:
        """Return the consensus messages that came from a peer, in order."""
        return [
            decode_message_untrusted(payload)
            for sender, kind, payload in self.frames
            if sender == peer and kind is FrameKind.CONSENSUS
        ]

    def say(self, message: Message, *peers: str) -> None:
        """Send a consensus message to some peers, or to all."""
        for peer in peers or self.network.connected():
            assert self.network.send(NodeName(peer), FrameKind.CONSENSUS, encode_message(message))

    async def meet(self, *peers: str) -> None:
        """Wait until these peers are connected."""
        await self._site.until(lambda: set(peers) <= set(self.network.connected()))
