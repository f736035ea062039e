"""A node that decides alone, for tests of the client: real chain, pool, RPC and certificates, no consensus."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import trio

from consensus.ledger.genesis import Genesis
from consensus.ledger.ids import NodeName
from consensus.ledger.proof import Proof, ReceiptClaim, StateClaim
from consensus.ledger.receipt import Receipt
from consensus.pbft.events import EngineStatus, Phase
from contracts.runtime.execution import Executor
from node.chain import Chain
from node.clock import Clock
from node.driver import Commit
from node.intake import Intake
from node.mempool import Mempool
from node.rpc.node_backend import NodeBackend
from node.rpc.server import RpcConfig, serve_rpc
from node.storage.layout import Location
from node.storage.leveldb import LevelStore
from node.votes import VoteReport
from p2p.network import Network
from services.client.client import Client, open_client
from services.client.keystore import Signer
from tests.node.support import GENESIS_TIME_MS, Consortium, extend, make_consortium, make_executor

NOW_MS = GENESIS_TIME_MS + 1_000
CONSORTIUM = make_consortium()


class FixedClock:
    """A wall clock that stands still, a moment after genesis."""

    def wall_ms(self) -> int:
        return NOW_MS

    def monotonic_ms(self) -> int:
        return 0


class SoloNode:
    """Commits what its pool holds, a block at a time, unless ``is_deciding`` is false."""

    def __init__(
        self,
        folder: Path,
        consortium: Consortium = CONSORTIUM,
        clock: Clock = FixedClock(),  # noqa: B008
        executor: Executor | None = None,
    ) -> None:
        self.consortium = consortium
        self.store = LevelStore.open(folder)
        self.chain = Chain(self.store, consortium.genesis, executor or make_executor())
        self.mempool = Mempool(self.chain.executor, self.chain.verifier)
        self.is_deciding = True
        self.submitted: list[bytes] = []
        self.port = 0
        self._work = trio.Event()
        # The intake hands nothing on here: its network is never used.
        intake = Intake(
            chain=self.chain, mempool=self.mempool, network=cast(Network, None), clock=clock, on_work=self.wake
        )

        def submit(raws: Sequence[bytes]) -> list[object]:
            self.submitted += raws
            return intake.submit_untrusted(raws)  # type: ignore[return-value]

        self.backend = self.backend_type(
            name=NodeName("node-0"),
            chain=self.chain,
            mempool=self.mempool,
            clock=clock,
            submit=submit,  # type: ignore[arg-type]
            engine_status=self.status,
            peers=list,
            is_ready=lambda: True,
            votes=lambda: VoteReport({}, {}, None, ()),
        )

    backend_type: type[NodeBackend] = NodeBackend

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wake(self) -> None:
        """Look at the pool."""
        self._work.set()

    def status(self) -> EngineStatus:
        """Return what an engine would say that waits for nothing."""
        validators, height = self.chain.head.validators, self.chain.head.header.height + 1
        return EngineStatus(
            height=height,
            view=0,
            phase=Phase.OPEN,
            primary=validators.primary(height, 0),
            is_validator=True,
            validators=validators.names,
            quorum=validators.quorum,
            block_hash=None,
            prepares=(),
            commits=(),
            view_changes={},
            timeout_ms=1_000,
            deadline_in_ms=None,
            suspected=(),
            evidence=None,
            peers={},
        )

    def decide(self) -> None:
        """Commit one block of everything that may stand in it; an empty one when nothing may."""
        head_ms = self.chain.head.header.time_ms
        ready = self.mempool.select(count_max=500, bytes_max=1 << 20, calls_max=2_000, time_ms=head_ms + 10)
        candidate = extend(self.chain, self.store, self.consortium, ready)
        self.mempool.committed(candidate.transactions)
        self.backend.on_commit(Commit(candidate, self.consortium.certify(candidate)))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve and decide until cancelled."""
        async with trio.open_nursery() as nursery:
            port = await nursery.start(self._serve)
            self.port = port
            task_status.started()
            while True:
                await self._work.wait()
                self._work = trio.Event()
                while self.is_deciding and self.mempool.is_waiting:
                    self.decide()
                    await trio.lowlevel.checkpoint()

    async def _serve(self, task_status: trio.TaskStatus[int]) -> None:
        await serve_rpc(self.backend, RpcConfig(port=self.port), stopping=trio.Event(), task_status=task_status)


class LyingBackend(NodeBackend):
    """Changes what it proves, by the name of the lie."""

    lie = ""

    def prove_receipt(self, location: Location, receipt_index: int) -> Proof:
        proof = super().prove_receipt(location, receipt_index)
        claim = proof.claim
        assert isinstance(claim, ReceiptClaim)
        receipt = claim.receipt
        match self.lie:
            case "status":
                return replace(proof, claim=ReceiptClaim(_failed(receipt), claim.path))
            case "certificate":
                return replace(proof, certificate=self._certificate_short_of_one(proof))
            case "other receipt":
                return super().prove_receipt(Location(1, 0, 0, 1), 0)
            case "other call":
                return super().prove_receipt(location, 0)
        return proof

    def prove_state(self, key: bytes) -> Proof:
        proof = super().prove_state(key)
        claim = proof.claim
        assert isinstance(claim, StateClaim)
        match self.lie:
            case "value":
                return replace(proof, claim=StateClaim(claim.key, b"\xc4\x01x", claim.path))
            case "absence":
                return replace(proof, claim=StateClaim(claim.key, None, claim.path))
            case "other key":
                return super().prove_state(b"membership/other")
        return proof

    @staticmethod
    def _certificate_short_of_one(proof: Proof) -> object:
        certificate = proof.certificate
        return type(certificate)(
            certificate.height, certificate.view, certificate.block_hash, certificate.signatures[:-1]
        )


def _failed(receipt: Receipt) -> Receipt:
    return Receipt(receipt.transaction_id, receipt.call_index, 1, "made_up", [], [], receipt.steps)


class LyingNode(SoloNode):
    """A node that lies about what it proves."""

    backend_type = LyingBackend


@asynccontextmanager
async def running(*nodes: SoloNode) -> AsyncIterator[None]:
    """Run nodes for the time of the block."""
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.run)
        yield
        nursery.cancel_scope.cancel()
    for node in nodes:
        node.store.close()


@asynccontextmanager
async def client_of(*nodes: SoloNode, genesis: Genesis | None = None) -> AsyncIterator[Client]:
    """Give a client of nodes, by default with the right genesis document."""
    urls = [node.url for node in nodes]
    async with open_client(genesis or CONSORTIUM.genesis, urls, now_ms=lambda: NOW_MS) as client:
        yield client


def signer(name: str) -> Signer:
    """Return the signer of one of the consortium's accounts."""
    return Signer.of(name, CONSORTIUM.account_keys[name])


def address(name: str) -> bytes:
    """Return the address of one of the consortium's accounts."""
    return CONSORTIUM.account_keys[name].public.address
