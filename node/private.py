"""The private part of a node: its channels, kept to what the chain says of them.

It stands beside the chain and never in its way: nothing of it enters a block, and a bug in it ends it alone, is
logged, and lets the node go on. Only a disk that fails ends the node, as anywhere. Its owner's programs and its
partners then hear ``private_failed`` and nothing, and find everything as it was after the next start.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import Random

import structlog
import trio

from consensus.ledger.errors import LocalError, PeerError, StorageError
from consensus.ledger.ids import ChainId, NodeName
from consensus.ledger.keys import PrivateKey
from contracts.runtime.state import StateReader
from node.channels import ChannelRegistry
from p2p.handshake import Handshake
from p2p.hello_machine import Side
from p2p.network import Network
from p2p.private.network import PrivateConfig, PrivateNetwork
from p2p.private.port import ChannelFacts, ChannelName, ChannelStatus, Delivery, Phase, PrivateStore
from p2p.tls import PeerIdentity

log = structlog.get_logger("node")


class PrivatePart:
    """Channels, their network and the owner's view of them.

    It fills :class:`node.owner.PrivateDesk` for the owner's programs and ``p2p.network.PrivateSide`` for connections.

    Args:
        name: of the node.
        chain_id: of its chain.
        key: the channel key.
        store: the private database; whoever opened it closes it.
        random: source of the jitter in dialling.
    """

    def __init__(
        self, *, name: NodeName, chain_id: ChainId, key: PrivateKey, store: PrivateStore, random: Random
    ) -> None:
        self.key = key.public.compressed
        self._name = name
        config = PrivateConfig(name=name, chain_id=chain_id, key=key)
        self._network = PrivateNetwork(config, store, random=random)
        self._facts: tuple[ChannelFacts, ...] = ()
        self._registry = ChannelRegistry({}, {})
        self._deadline_ms: int | None = None
        self._scopes: set[trio.CancelScope] = set()
        self._has_failed = False

    # What the node tells

    def read(self, state: StateReader, time_ms: int) -> None:
        """Take over what the newest state says of our channels; ``time_ms`` is that of its block."""
        try:
            self._read(state, time_ms)
        except Exception as error:
            self._fail(error)

    def _read(self, state: StateReader, time_ms: int) -> None:
        self._registry = ChannelRegistry.read(state)
        if self._registry.key_of(self._name) not in (None, self.key):
            log.error("channel key not registered", why="the chain names another one: register the party again")
        self._look(time_ms)

    def committed(self, state: StateReader, writes: Mapping[bytes, bytes | None], time_ms: int) -> None:
        """Follow a block: what it wrote, and deadlines that its time has reached."""
        try:
            if ChannelRegistry.touched_by(writes):
                self._read(state, time_ms)
            elif self._deadline_ms is not None and time_ms >= self._deadline_ms:
                self._look(time_ms)
        except Exception as error:
            self._fail(error)

    def recheck(self, is_admitted: Callable[[PeerIdentity], bool]) -> None:
        """End sessions with nodes that are let in no longer."""
        self._network.recheck(is_admitted)

    def _look(self, time_ms: int) -> None:
        facts = self._registry.facts(self._name, time_ms)
        self._deadline_ms = self._registry.next_deadline_ms(time_ms)
        if facts != self._facts and not self._has_failed:
            for fact in facts:
                log.info("channel", channel=str(fact.name), epoch=fact.epoch, phase=fact.phase.value)
            self._facts = facts
            self._network.channels_changed(facts)

    # The work

    async def run(self, network: Network, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled, or until a bug ends it.

        Raises:
            StorageError: the disk failed, or the private database holds what cannot be.
        """
        if self._has_failed:  # over the state that it began with
            task_status.started()
            return
        scope = trio.CancelScope()
        self._scopes.add(scope)
        try:
            with scope:
                await self._network.run(network, task_status=task_status)
        except Exception as error:
            self._fail(error)
        finally:
            self._scopes.discard(scope)

    def welcome(self, identity: PeerIdentity, side: Side) -> None:
        """Refuse a member that may have no private session now; see ``p2p.network``."""
        if self._has_failed:
            raise PeerError("private_failed", "this node has no private channels until it is started again")
        self._network.welcome(identity, side)

    async def serve(self, done: Handshake, address: str) -> None:
        """Run the session of an accepted connection to its end."""
        try:
            with self._alive():
                await self._network.serve(done, address)
        except Exception as error:
            self._fail(error)
        finally:
            await trio.aclose_forcefully(done.stream)

    def _fail(self, error: Exception) -> None:
        """End the private part for a bug; a broken disk goes on to end the node."""
        if isinstance(error, StorageError) or (isinstance(error, ExceptionGroup) and error.subgroup(StorageError)):
            raise error
        if not self._has_failed:
            log.error("private channels failed", exc_info=error)
        self._has_failed = True
        for scope in self._scopes:
            scope.cancel()

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Give up when the private part fails meanwhile.

        Raises:
            LocalError: ``private_failed``.
        """
        scope = trio.CancelScope()
        self._scopes.add(scope)
        try:
            if not self._has_failed:
                with scope:
                    yield
                    return
        finally:
            self._scopes.discard(scope)
        raise LocalError("private_failed", "private channels met a bug, see the node's log; start the node again")

    # What the owner asks

    async def send(self, channel: ChannelName, message_id: str, payload: bytes) -> tuple[int, int]:
        """Put a message into the outbox; see :class:`node.owner.PrivateDesk`."""
        with self._alive():
            return await self._network.send(channel, message_id, payload)

    def receive(self, after: int, *, limit: int, bytes_max: int) -> list[Delivery]:
        """Return what came above a position; it can be read even after a failure."""
        return self._network.receive(after, limit=limit, bytes_max=bytes_max)

    async def wait(self, after: int) -> None:
        """Return once something above the position waits for the owner."""
        await self._network.wait(after)

    async def done(self, position: int) -> None:
        """Forget everything up to a position, durably."""
        with self._alive():
            await self._network.done(position)

    def status(self) -> list[ChannelStatus]:
        """Return our channels, by name."""
        return self._network.status()

    def figures(self) -> dict[str, int]:
        """Return figures for ``/metrics``: over all channels, since who has how many with whom is nobody's affair."""
        channels = self._network.status()
        return {
            "private_failed": int(self._has_failed),
            "channels_open": sum(item.facts.phase is Phase.OPEN for item in channels),
            "channels_connected": sum(item.is_connected for item in channels),
            "channel_messages_sent": sum(item.sent for item in channels),
            "channel_messages_received": sum(item.received for item in channels),
            "channel_messages_waiting": sum(item.waiting for item in channels),
            "channel_rules_broken": self._network.refused.total(),
        }
