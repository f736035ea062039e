"""What a gateway offers to people and to both ends: products, packages, claims, recovery, disclosure, backups."""

from typing import Any

import msgspec
import structlog
import trio

from consensus.ledger.errors import LocalError, PeerError
from services.agency.anchoring import Anchoring
from services.agency.disclosure import anchor_key, make_disclosure
from services.agency.gateway import Gateway, Origin, Part
from services.agency.gateway_store import AnchorJob, Changes, Head
from services.agency.interfaces import (
    ChannelQuery,
    Disclosed,
    DiscloseQuery,
    Done,
    ExportPage,
    ExportQuery,
    Import,
    Imported,
    PackageState,
    ProductQuery,
    ProductTerms,
    Recovered,
    RootQuery,
    RoundState,
    Status,
    StatusQuery,
)
from services.agency.packages import Answer, Question, message_codec
from services.client.answers import StateAnswer, hex_of
from services.client.client import Client
from services.client.connection import Parameters
from services.client.errors import Unreachable
from services.local.service import LocalService

CLAIM_WAIT_MS = 20_000
EXPORT_BYTES_MAX = 16 * 1024 * 1024
QUESTIONS_MAX = 1_000
"""How many lost packages are asked for at a time; asking again asks for the rest."""

log = structlog.get_logger("gateway")


class Desk:
    """Methods of the gateway's socket that belong to neither part."""

    def __init__(self, gateway: Gateway, client: Client, anchoring: Anchoring, sales: Part, issuer: Part) -> None:
        self._gateway = gateway
        self._store = gateway.store
        self._client = client
        self._anchoring = anchoring
        self._sales = sales
        self._issuer = issuer

    def add_methods(self, service: LocalService) -> None:
        """Add them."""
        service.add("product", ProductQuery, self.product)
        service.add("package", RootQuery, self.package)
        service.add("claim", RootQuery, self.claim, waits=True)
        service.add("ask", RootQuery, self.ask)
        service.add("recover", ChannelQuery, self.recover)
        service.add("disclose", DiscloseQuery, self.disclose)
        service.add("status", StatusQuery, self.status)
        service.add("export", ExportQuery, self.export)
        service.add("import", Import, self.take_import)

    async def product(self, params: ProductQuery) -> ProductTerms:
        """Return a product with the terms in force; ``unknown_product``."""
        found = await self._gateway.chain.product(params.product, params.bank)
        if found is None:
            raise LocalError("unknown_product", f"the chain has no product {params.product}")
        return found

    async def package(self, params: RootQuery) -> PackageState:
        """Return how a package stands; ``unknown_package``."""
        return self._state(params.root, self._head(params.root))

    async def ask(self, params: RootQuery) -> Done:
        """Ask the other side for what it has of a package now."""
        head = self._head(params.root)
        changes, now_ms = Changes(), self._gateway.now_ms()
        message_id = f"{params.root.hex()}/ask/{now_ms}"
        self._gateway.post(changes, head.bank, head.issuer, message_id, Question(params.root, is_lost=False))
        await self._store.commit(changes)
        return Done()

    async def claim(self, params: RootQuery) -> PackageState:
        """Anchor a package with the one signature that we have, and wait until that is final.

        Raises:
            LocalError: ``unknown_package``, ``already_anchored``: both signatures are on their way to the chain;
                ``nothing_to_claim``: an issuer that has not answered.
        """
        root = params.root
        async with self._store.lock:
            job = self._claim_of(root, self._head(root))
            changes = Changes()
            changes.set_job(job)
            await self._store.commit(changes)
        with trio.move_on_after(CLAIM_WAIT_MS / 1000):
            while self._store.has_job(job):
                await self._store.wait_anchored()
            return self._state(root, self._head(root))
        raise Unreachable("the claim is kept and not yet on the chain", code="outcome_unknown")

    def _claim_of(self, root: bytes, head: Head) -> AnchorJob:
        answers = self._store.answers(root)
        if head.is_bank:
            if answers:
                raise LocalError("already_anchored", "the issuer has answered: both signatures are anchored")
            signature = head.signature
            return AnchorJob(head.bank, head.issuer, head.epoch, root, head.count, signature, 0, b"", b"", b"", 0)
        if not answers:
            raise LocalError("nothing_to_claim", "an issuer claims what it has answered")
        answer = answers[0]
        signed = (answer.round_number, answer.outcome_root, answer.previous, answer.signature)
        return AnchorJob(head.bank, head.issuer, head.epoch, root, head.count, b"", *signed, 0)

    # -- loss ------------------------------------------------------------------------------------------

    async def recover(self, params: ChannelQuery) -> Recovered:
        """Ask the other side for every package that the chain's log of a channel has and this gateway has not."""
        gateway = self._gateway
        roots: dict[bytes, None] = {}
        start = 0
        while page := await gateway.chain.log(params.bank, params.issuer, start):
            roots |= dict.fromkeys(entry.root for entry in page)
            start = page[-1].number + 1
        lost = [root for root in roots if self._is_lost(root)]
        changes, now_ms = Changes(), gateway.now_ms()
        for root in lost[:QUESTIONS_MAX]:
            message_id = f"{root.hex()}/lost/{now_ms}"
            gateway.post(changes, params.bank, params.issuer, message_id, Question(root, is_lost=True))
        await self._store.commit(changes)
        return Recovered(len(roots), len(lost), min(len(lost), QUESTIONS_MAX))

    def _is_lost(self, root: bytes) -> bool:
        """Tell whether package or answer of an anchored root is not here; a claim of ours may have no answer yet."""
        head = self._store.head(root)
        return head is None or self._store.package(root) is None

    async def export(self, params: ExportQuery) -> ExportPage:
        """Return packages and answers of a channel as they travelled, from the root ``after`` on."""
        messages: list[bytes] = []
        last, size = params.after, 0
        for root, head in self._store.packages(after=params.after):
            if (head.bank, head.issuer) != (params.bank, params.issuer):
                last = root
                continue
            found = [message_codec.encode(answer) for answer in self._store.answers(root)]
            if (package := self._store.package(root)) is not None:
                found.insert(0, message_codec.encode(package))
            if messages and size + sum(map(len, found)) > EXPORT_BYTES_MAX:
                return ExportPage(messages, last, is_last=False)
            messages += found
            size += sum(map(len, found))
            last = root
        return ExportPage(messages, last, is_last=True)

    async def take_import(self, params: Import) -> Imported:
        """Take back exported packages and answers, each judged as if the other side had sent it again.

        Raises:
            PeerError: one does not hold; those before it are kept.
        """
        gateway, before = self._gateway, self._count()
        part = self._sales if params.bank == gateway.organisation else self._issuer
        origin = Origin(params.bank, params.issuer, 0, 0, is_bank=params.bank == gateway.organisation)
        for data in params.messages:
            message = message_codec.decode_untrusted(data)
            if isinstance(message, Question):
                raise PeerError("malformed", "a backup has packages and answers alone")
            if isinstance(message, Answer) and self._store.package(message.root) is None:
                raise PeerError("wrong_package", "an answer stands before its package")
            await part.on_message(origin, message)
        return Imported(self._count() - before)

    def _count(self) -> int:
        return sum(1 for _ in self._store.packages())

    # -- proofs and people -----------------------------------------------------------------------------

    async def disclose(self, params: DiscloseQuery) -> Disclosed:
        """Return one order's disclosure: what an outsider checks by itself, with the newest proof of its anchor.

        Raises:
            LocalError: ``unknown_package``, ``unknown_order``, ``not_allotted``, ``not_anchored``.
        """
        head = self._head(params.root)
        package = self._store.package(params.root)
        if package is None:
            raise LocalError("unknown_package", "its payload is not here; hansa channel recover asks for it")
        first = self._store.first_outcome(params.root, params.round_number)
        answers = self._store.answers(params.root, params.round_number)
        answer = next((item for item in answers if first in (None, item.outcome_root)), None)
        outcome_root = b"" if answer is None else answer.outcome_root
        key = anchor_key(head.bank, head.issuer, params.root, params.round_number, outcome_root)
        proof = await self._proof(key)
        document = await trio.to_thread.run_sync(make_disclosure, package, params.serial, answer, proof)
        return Disclosed(msgspec.to_builtins(document))

    async def _proof(self, key: str) -> dict[str, Any]:
        """Return the proof file's object of a state key, as of the newest block."""
        found = await self._client.state(key, is_newest=True)
        if found.value is None:
            raise LocalError("not_anchored", "the chain has no anchor of it yet")
        request: Parameters = {"key": key, "prove": True, "minHeight": found.height}
        return (await self._client.request("state_get", request, StateAnswer)).proof

    async def status(self, params: StatusQuery) -> Status:
        """Return how the gateway stands; channels are none while the node is away."""
        gateway, store = self._gateway, self._store
        try:
            channels = [msgspec.to_builtins(item) for item in await gateway.owner.channels()]
        except Unreachable:
            channels = []
        packages: dict[str, int] = {}
        for _, head in store.packages():
            packages[head.state] = packages.get(head.state, 0) + 1
        alarms = [f"{item.code} {item.channel} {item.about}".strip() for item in store.newest_alarms()]
        return Status(
            gateway.organisation,
            gateway.node,
            hex_of(gateway.chain_id),
            hex_of(gateway.business.public.compressed),
            channels,
            packages,
            store.job_count(),
            alarms,
            self._anchoring.trouble,
        )

    def _head(self, root: bytes) -> Head:
        head = self._store.head(root)
        if head is None:
            raise LocalError("unknown_package", f"the gateway has no package 0x{root.hex()}")
        return head

    def _state(self, root: bytes, head: Head) -> PackageState:
        rounds = [
            RoundState(
                number,
                outcome_root,
                item.previous,
                item.signature,
                item.transaction_id,
                item.height,
                item.status,
            )
            for number, outcome_root, item in self._store.rounds(root)
        ]
        return PackageState(
            root,
            head.bank,
            head.issuer,
            head.epoch,
            head.is_bank,
            head.created_ms,
            head.count,
            head.state,
            head.code,
            head.signature,
            rounds,
        )
