"""The sales-node part (第一节点): takes many orders at once, sends packages, takes confirmations, has them anchored.

Applications with one interface id travel together, in packages of at most 1,024 under one signature. What a
batch led to, its packages and their way out are one write: the same batch again has the first result, and a
package goes out once, whenever the program dies.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import structlog
import trio

from consensus.ledger.cooperation import PACKAGE_ORDERS_MAX, SALT_BYTES
from consensus.ledger.errors import PeerError
from services.agency.gateway import Gateway, Origin
from services.agency.gateway_store import AnchorJob, Changes, Head, News, round_key
from services.agency.interfaces import (
    Next,
    OrdersSubmit,
    OrdersSubmitted,
    OutcomesNext,
    PackageOutcome,
    Sent,
)
from services.agency.interfaces import Refused as RefusedOrder
from services.agency.orders import Application, Confirmation, application_codec
from services.agency.packages import (
    MESSAGE_BYTES_MAX,
    Answer,
    Message,
    Package,
    Question,
    Refusal,
    answer_id,
    check_answer_untrusted,
    check_package_untrusted,
    make_package,
    waiting_places,
)
from services.client.errors import Refused, Unreachable
from services.local.service import LocalService

PACKAGE_BYTES_MAX = MESSAGE_BYTES_MAX - PACKAGE_ORDERS_MAX * (SALT_BYTES + 4) - 4096
"""How many bytes of applications a package holds, so that the message around them fits."""
ASK_PAUSE_MS = 1_000
ASK_INTERVAL_MS_MAX = 3_600_000
OUTCOMES_CONFIRMATIONS_MAX = 8 * PACKAGE_ORDERS_MAX
"""How many confirmations a page of news holds at the most, beside those of its first."""

log = structlog.get_logger("sales-node")


@dataclass(frozen=True, slots=True)
class _Way:
    """Where an interface id leads: a channel, or why there is none."""

    issuer: str
    epoch: int
    code: str
    message: str


class SalesNode:
    """The bank's half of the gateway; a :class:`services.agency.gateway.Part`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._store = gateway.store
        self._submitting = trio.Lock()

    def add_methods(self, service: LocalService) -> None:
        """Add what the sales end calls."""
        service.add("orders_submit", OrdersSubmit, self.submit)
        service.add("outcomes_next", Next, self.outcomes_next, waits=True)

    # -- from the sales end ----------------------------------------------------------------------------

    async def submit(self, params: OrdersSubmit) -> OrdersSubmitted:
        """Package a batch and have it sent.

        Raises:
            Unreachable, Refused: the registry cannot be read now; nothing was taken.
        """
        async with self._submitting:
            if (known := self._store.batch(params.batch)) is not None:
                return known
            groups, refused = _group(params.applications)
            changes, packages = Changes(), list[Sent]()
            for interface, applications in groups.items():
                way = await self._way(interface)
                if way.code:
                    refused += [RefusedOrder(item.serial, way.code, way.message) for item in applications]
                    continue
                for chunk in _chunks(applications):
                    packages.append(await trio.to_thread.run_sync(self._pack, changes, way, chunk))
            result = OrdersSubmitted(packages, refused)
            changes.keep_batch(params.batch, msgspec.json.encode(result))
            await self._store.commit(changes)
            log.info(
                "batch taken",
                packages=len(packages),
                orders=sum(len(item.serials) for item in packages),
                refused=len(refused),
            )
            return result

    async def _way(self, interface: str) -> _Way:
        """Return where an interface id leads, by the registry as the own node has it now."""
        chain, bank = self._gateway.chain, self._gateway.organisation
        found = await chain.interface(interface)
        if found is None:
            return _Way("", 0, "unknown_interface", f"nobody has the interface {interface}")
        channel = await chain.channel(bank, found.issuer)
        if channel is None:
            return _Way(
                found.issuer, 0, "no_channel", f"no agreement, no channel: {bank} may not sell for {found.issuer}"
            )
        if channel.status != "OPEN":
            return _Way(found.issuer, 0, "channel_revoked", f"the channel of {bank} and {found.issuer} is revoked")
        if channel.expires_ms <= self._gateway.now_ms():
            return _Way(found.issuer, 0, "channel_expired", f"the agreement of {bank} and {found.issuer} has run out")
        if not await self._is_key_known(found.issuer):
            return _Way(found.issuer, 0, "key_not_registered", f"{bank} has not registered the key that signs here")
        return _Way(found.issuer, channel.epoch, "", "")

    async def _is_key_known(self, issuer: str) -> bool:
        """Tell whether the issuer will take what our business key signs."""
        key = self._gateway.business.public.compressed
        for is_newest in (False, True):
            signers = await self._gateway.chain.signers(self._gateway.organisation, issuer, is_newest=is_newest)
            if signers is not None and key in signers.bank_keys:
                return True
        return False

    def _pack(self, changes: Changes, way: _Way, applications: Sequence[Application]) -> Sent:
        gateway = self._gateway
        package = make_package(
            gateway.business,
            gateway.chain_id,
            bank=gateway.organisation,
            issuer=way.issuer,
            epoch=way.epoch,
            created_ms=gateway.now_ms(),
            salts=[secrets.token_bytes(SALT_BYTES) for _ in applications],
            applications=applications,
        )
        changes.keep_package(package, is_bank=True)
        gateway.post_kept(changes, package.bank, package.issuer, package.root.hex(), b"p" + package.root)
        serials = [item.serial for item in applications]
        return Sent(package.root, package.bank, package.issuer, package.epoch, serials)

    async def outcomes_next(self, params: Next) -> OutcomesNext:
        """Return the news after a position, waiting for the first."""
        await self._store.news.wait(params.after, params.wait_ms)
        items: list[PackageOutcome] = []
        count = 0
        for position, news in self._store.news_after(params.after, params.limit):
            outcome = self._outcome(position, news)
            count += len(outcome.confirmations)
            if items and count > OUTCOMES_CONFIRMATIONS_MAX:
                break
            items.append(outcome)
        return OutcomesNext(items)

    def _outcome(self, position: int, news: News) -> PackageOutcome:
        head = self._store.head(news.root)
        confirmations: list[Confirmation] = []
        places: list[int] = []
        if news.kind in {"answered", "allotted"} and (answer := self._first_answer(news.root, news.round_number)):
            confirmations, places = answer.confirmations, answer.places
        return PackageOutcome(
            position,
            news.kind,
            news.root,
            self._gateway.organisation,
            head.issuer if head is not None else "",
            news.round_number,
            confirmations,
            places,
            news.code,
            news.message,
            news.transaction_id,
            news.height,
        )

    def _first_answer(self, root: bytes, round_number: int) -> Answer | None:
        """Return the answer that counts: where there are two, the one that came first, which alone was news."""
        answers = self._store.answers(root, round_number)
        if len(answers) < 2:
            return answers[0] if answers else None
        first = self._store.first_outcome(root, round_number)
        return next((item for item in answers if item.outcome_root == first), answers[0])

    # -- from the channel ------------------------------------------------------------------------------

    async def on_message(self, origin: Origin, message: Message) -> None:
        """Take what an issuer sends; see :class:`services.agency.gateway.Part`."""
        match message:
            case Answer():
                await self._on_answer(origin, message)
            case Refusal(root, code, text):
                await self._on_refused(origin, root, code, text)
            case Question():
                await self._on_question(origin, message)
            case Package():
                await self._on_own_package(origin, message)

    async def on_lost(self, origin: Origin, message_id: str, code: str) -> None:
        """Hear that a package of ours will never be taken."""
        root = _root_of(message_id)
        if root is not None and message_id == root.hex():
            await self._on_refused(origin, root, code, "the channel does not take it any more")

    async def _on_answer(self, origin: Origin, answer: Answer) -> None:
        gateway, store = self._gateway, self._store
        package = store.package(answer.root)
        if package is None:
            await self._ask_lost(origin, answer.root)
            return
        if (package.bank, package.issuer) != (origin.bank, origin.issuer):
            raise PeerError("wrong_channel", "the answer is to a package of another channel")
        await self._check(origin, answer, package)
        if answer.round_number:
            first = self._first_answer(answer.root, 0)
            if first is None:
                raise PeerError("round_missing", "an allotment came before the first answer")
            if answer.places != waiting_places(first.confirmations):
                raise PeerError("bad_places", "an allotment confirms exactly what the first answer left open")
        async with store.lock:
            others = store.rounds_of(answer.root, answer.round_number)
            if answer.outcome_root in others:
                return
            head = store.head(answer.root)
            changes = Changes()
            changes.keep_answer(answer)
            changes.set_job(_anchor_job(package, answer))
            if others:
                gateway.alarm(changes, "contradicted", origin.channel, f"package {answer.root.hex()}")
            else:
                self._check_follows(changes, origin, answer)
                changes.keep_first(answer.root, answer.round_number, answer.outcome_root)
                kind = "allotted" if answer.round_number else "answered"
                changes.news.append(News(kind, answer.root, answer.round_number, "", "", b"", 0))
            if head is not None and head.state != "answered":
                changes.set_head(answer.root, msgspec.structs.replace(head, state="answered", code="", message=""))
            await store.commit(changes)
        log.info("answered", root=answer.root.hex(), round=answer.round_number, count=len(answer.confirmations))

    def _check_follows(self, changes: Changes, origin: Origin, answer: Answer) -> None:
        """Tell of two answers that follow the same one: an issuer end went back to an older state, or lies."""
        known = self._store.next_answer(answer)
        if known is None:
            changes.keep_next(answer)
        elif known != answer_id(answer):
            self._gateway.alarm(changes, "answers_forked", origin.channel, f"package {answer.root.hex()}")

    async def _check(self, origin: Origin, answer: Answer, package: Package) -> None:
        """Check an answer by the keys that count now, or else by what the chain holds of it since long ago."""
        check = partial(check_answer_untrusted, answer, package, self._gateway.chain_id)
        try:
            await self._gateway.check_signed(origin, check, is_bank_key=False)
        except PeerError as error:
            if error.code != "bad_signature":
                raise
            anchors = await self._gateway.chain.anchors_of(*origin.parties, answer.root, answer.round_number)
            if (answer.outcome_root, answer.signature) not in {
                (anchor.outcome_root, anchor.answer_signature) for anchor in anchors
            }:
                raise

    async def _on_refused(self, origin: Origin, root: bytes, code: str, text: str) -> None:
        store = self._store
        async with store.lock:
            head = store.head(root)
            if head is None or head.state != "sent":
                return
            if (head.bank, head.issuer) != (origin.bank, origin.issuer):
                raise PeerError("wrong_channel", "the refusal is of a package of another channel")
            changes = Changes()
            changes.set_head(root, msgspec.structs.replace(head, state="refused", code=code, message=text))
            changes.news.append(News("refused", root, 0, code, text, b"", 0))
            await store.commit(changes)
        log.warning("package refused", root=root.hex(), code=code)

    async def _on_question(self, origin: Origin, question: Question) -> None:
        """Give an issuer again what it lost: the package, and its own answers."""
        head = self._store.head(question.root)
        if not question.is_lost or head is None or head.issuer != origin.issuer:
            return
        changes = Changes()
        name = f"{question.root.hex()}/again/{origin.epoch}-{origin.number}"
        if self._store.package(question.root) is not None:
            self._gateway.post_kept(changes, head.bank, head.issuer, name, b"p" + question.root)
        for answer in self._store.answers(question.root):
            # The round and a piece of the root tell answers apart; a node takes no id beyond 128 characters.
            message_id = f"{name}/{answer.round_number}-{answer.outcome_root.hex()[:16]}"
            key = b"a" + round_key(answer.root, answer.round_number, answer.outcome_root)
            self._gateway.post_kept(changes, head.bank, head.issuer, message_id, key)
        await self._store.commit(changes)

    async def _on_own_package(self, origin: Origin, package: Package) -> None:
        """Take back a package of ours that we lost: our own signature says that it is whole."""
        gateway = self._gateway
        if (package.bank, package.issuer) != (origin.bank, origin.issuer):
            raise PeerError("wrong_channel", "the package is of another channel")
        check = partial(check_package_untrusted, package, gateway.chain_id)
        try:
            await gateway.check_signed(origin, check, is_bank_key=True)
        except PeerError as error:
            if error.code != "bad_signature":
                raise
            anchors = await gateway.chain.anchors_of(*origin.parties, package.root, 0)
            if package.signature not in {anchor.orders_signature for anchor in anchors}:
                raise
        async with self._store.lock:
            if self._store.head(package.root) is not None:
                return
            changes = Changes()
            changes.keep_package(package, is_bank=True)
            await self._store.commit(changes)
        log.info("package recovered", root=package.root.hex())

    # -- deadlines and loss ----------------------------------------------------------------------------

    async def ask_forever(self) -> None:
        """Ask for the answer to every package that has waited long, again and again."""
        while True:
            await self.ask_late()
            await trio.sleep(ASK_PAUSE_MS / 1000)

    async def ask_late(self) -> None:
        """Ask for the answers that are late now, where the issuer's node is reached.

        Each time twice as late as before, up to an hour: an issuer may be away for days.
        """
        store, now_ms, after_ms = self._store, self._gateway.now_ms(), self._gateway.settings.ask_after_ms
        late = [(root, asked) for root, asked in store.unanswered() if now_ms - asked >= after_ms]
        if not late:
            return
        try:
            channels = await self._gateway.owner.channels()
        except (Unreachable, Refused):
            return
        reached = {item.issuer for item in channels if item.connected}
        for root, asked_ms in late:
            async with store.lock:
                head = store.head(root)
                if head is None or head.state != "sent" or head.issuer not in reached:
                    continue
                if now_ms - asked_ms >= min(asked_ms - head.created_ms, ASK_INTERVAL_MS_MAX):
                    await self.ask(root, head)

    async def ask(self, root: bytes, head: Head) -> None:
        """Ask the issuer for its answer to a package."""
        changes, now_ms = Changes(), self._gateway.now_ms()
        changes.set_asked(root, now_ms)
        message_id = f"{root.hex()}/ask/{now_ms}"
        self._gateway.post(changes, head.bank, head.issuer, message_id, Question(root, is_lost=False))
        await self._store.commit(changes)

    async def _ask_lost(self, origin: Origin, root: bytes) -> None:
        """Ask for a package that an answer speaks of and that is not here: only our signature can make it ours."""
        changes = Changes()
        self._gateway.alarm(changes, "unknown_package", origin.channel, f"package {root.hex()}")
        message_id = f"{root.hex()}/lost/{origin.epoch}-{origin.number}"
        self._gateway.post(changes, origin.bank, origin.issuer, message_id, Question(root, is_lost=True))
        await self._store.commit(changes)


def _group(applications: Sequence[Application]) -> tuple[dict[str, list[Application]], list[RefusedOrder]]:
    """Return the applications by interface id, and those whose serial stands twice."""
    groups: dict[str, list[Application]] = {}
    refused: list[RefusedOrder] = []
    serials: set[str] = set()
    for item in applications:
        if item.serial in serials:
            refused.append(RefusedOrder(item.serial, "duplicate_serial", "the serial stands twice in the batch"))
            continue
        serials.add(item.serial)
        groups.setdefault(item.interface, []).append(item)
    return groups, refused


def _chunks(applications: Sequence[Application]) -> Iterator[list[Application]]:
    """Cut applications so that each part fits a package."""
    chunk: list[Application] = []
    size = 0
    for item in applications:
        item_bytes = len(application_codec.encode(item))
        if chunk and (len(chunk) == PACKAGE_ORDERS_MAX or size + item_bytes > PACKAGE_BYTES_MAX):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += item_bytes
    if chunk:
        yield chunk


def _anchor_job(package: Package, answer: Answer) -> AnchorJob:
    return AnchorJob(
        package.bank,
        package.issuer,
        package.epoch,
        package.root,
        len(package.applications),
        package.signature,
        answer.round_number,
        answer.outcome_root,
        answer.previous,
        answer.signature,
        0,
    )


def _root_of(message_id: str) -> bytes | None:
    """Return the package's root that begins a message's id, None where it is none of ours."""
    try:
        root = bytes.fromhex(message_id.partition("/")[0])
    except ValueError:
        return None
    return root if len(root) == 32 else None
