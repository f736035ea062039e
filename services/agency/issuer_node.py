"""The issuer-node part of a gateway: takes a bank's packages, has the issuer end answer them, sends the answers.

What comes in is judged in this order, and nothing of it is done twice:

- **N1** A message speaks of its own channel, else ``wrong_channel``: it is dropped with an alarm, as is a package whose
  root or bank's signature does not hold. A bank learns nothing of another bank's packages.
- **N2** A package that we have: its answers go out again, or its refusal; one that still waits goes on waiting.
- **N3** A new one that can never be taken gets a refusal: ``no_channel``, ``channel_revoked`` (also where the package
  is of an epoch before), ``channel_expired``, ``wrong_interface``. It is kept, since the bank has signed it.
- **N4** All others are kept, and then stand in line for the issuer end, which asks from a position of its own.
- **N5** One answer counts for each round of a package. It is checked against the package and our own business key,
  kept, sent and set down for anchoring in one write; the same again has no effect, another one is refused,
  ``answer_exists``. Round 1 confirms exactly what round 0 left open.
- **N6** A question is answered with what we have; a question about what we do not have is asked back, since packages
  come in order on a channel: we had it and lost it. An answer that comes with our own signature is taken back.
"""

from dataclasses import dataclass
from typing import assert_never

import msgspec
import structlog

from consensus.ledger.errors import LocalError, PeerError
from services.agency.gateway import Gateway, Origin
from services.agency.gateway_store import AnchorJob, Changes, Head, round_key
from services.agency.interfaces import AnswerSubmit, Done, Next, PackageArrived, PackagesNext
from services.agency.packages import (
    Answer,
    Message,
    Package,
    Question,
    Refusal,
    check_answer_untrusted,
    check_package_untrusted,
    waiting_places,
)
from services.local.service import LocalService

PACKAGES_PAGE_MAX = 4
"""Packages in one page: with the largest there may be, half of what an answer on a local socket may have."""

log = structlog.get_logger("gateway")


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Why a package as a whole is refused, "" where it is taken; ``is_known``: the chain has our answer to it."""

    code: str = ""
    message: str = ""
    is_known: bool = False


class IssuerNode:
    """The issuer's half of a gateway, see :class:`services.agency.gateway.Part`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._store = gateway.store

    def add_methods(self, service: LocalService) -> None:
        """Add ``packages_next`` and ``answer_submit``."""
        service.add("packages_next", Next, self.packages_next, waits=True)
        service.add("answer_submit", AnswerSubmit, self.answer_submit)

    # -- from the bank ---------------------------------------------------------------------------------

    async def on_message(self, origin: Origin, message: Message) -> None:
        """Take a message of a bank; see :meth:`services.agency.gateway.Part.on_message`."""
        match message:
            case Package():
                await self._on_package(origin, message)
            case Question():
                await self._on_question(origin, message)
            case Answer():
                await self._on_own_answer(origin, message)
            case Refusal():
                raise PeerError("unexpected_message", "a bank refuses no package")
            case _:
                assert_never(message)

    async def on_lost(self, origin: Origin, message_id: str, code: str) -> None:
        """Hear that an answer will not be taken: it stays here for who asks, and is anchored now."""
        root = _root_of(message_id)
        async with self._store.lock:
            changes = Changes()
            self._gateway.alarm(changes, code, origin.channel, f"not delivered: {message_id}")
            package = self._store.package(root)
            for answer in self._store.answers(root) if package else ():
                anchored = self._store.anchored(_key(answer))
                if package and anchored and anchored.status == "waiting":
                    changes.set_job(_job(package, answer, self._gateway.now_ms()))
            await self._store.commit(changes)

    async def _on_package(self, origin: Origin, package: Package) -> None:
        _check_origin(origin, package.bank, package.issuer)
        head = self._store.head(package.root)
        if head is None:
            await self._check_package(package)
            verdict = await self._judge(origin, package)
            async with self._store.lock:
                head = self._store.head(package.root)
                if head is None:
                    await self._store.commit(self._taken(package, verdict))
                    return
        async with self._store.lock:
            changes = Changes()
            self._repeat(changes, origin, package.root, head)
            await self._store.commit(changes)

    async def _check_package(self, package: Package) -> None:
        """Check root and signature, with the bank's key in force or, once, with what the chain has now."""
        chain = self._gateway.chain
        for is_newest in (False, True):
            signers = await chain.signers(package.bank, package.issuer, is_newest=is_newest)
            for key in signers.bank_keys if signers else ():
                try:
                    check_package_untrusted(package, self._gateway.chain_id, key)
                    return
                except PeerError as error:
                    if error.code != "bad_signature":
                        raise
        raise PeerError("bad_signature", f"not signed by {package.bank}")

    async def _judge(self, origin: Origin, package: Package) -> _Verdict:
        chain = self._gateway.chain
        anchors = await chain.anchors_of(package.bank, package.issuer, package.root, 0)
        if any(anchor.answer_signature for anchor in anchors):
            return _Verdict(is_known=True)
        channel = await chain.channel(package.bank, package.issuer)
        if channel is None:
            return _Verdict("no_channel", "there is no channel")
        if channel.status != "OPEN" or not package.epoch == origin.epoch == channel.epoch:
            return _Verdict("channel_revoked", f"epoch {package.epoch} of the channel is over")
        if channel.expires_ms <= self._gateway.now_ms():
            return _Verdict("channel_expired", "the channel has expired")
        ids = {application.interface for application in package.applications}
        interface = await chain.interface(next(iter(ids))) if len(ids) == 1 else None
        is_ours = interface is not None and interface.issuer == self._gateway.organisation
        if not is_ours or interface is None or self._gateway.node not in ("", interface.node):
            return _Verdict("wrong_interface", "a package has one interface id, which resolves to this node")
        return _Verdict()

    def _taken(self, package: Package, verdict: _Verdict) -> Changes:
        changes = Changes()
        changes.keep_package(package, is_bank=False)
        about = {"channel": f"{package.bank}/{package.issuer}", "root": package.root.hex()}
        if verdict.code:
            changes.set_head(package.root, _with_state(_head_of(package), "refused", verdict))
            refusal = Refusal(package.root, verdict.code, verdict.message)
            self._gateway.post(changes, package.bank, package.issuer, f"{package.root.hex()}/refusal", refusal)
            log.warning("package refused", code=verdict.code, **about)
        elif verdict.is_known:
            asked = Question(package.root, True)
            self._gateway.post(changes, package.bank, package.issuer, f"{package.root.hex()}/ask", asked)
            log.warning("package taken back", **about)
        else:
            changes.arrivals.append(package.root)
            log.info("package received", count=len(package.applications), **about)
        return changes

    def _repeat(self, changes: Changes, origin: Origin, root: bytes, head: Head, *, is_lost: bool = False) -> None:
        """Send again what the other side has of us about a package (N2, N6)."""
        suffix = f"again/{origin.epoch}-{origin.number}"
        package = self._store.package(root)
        if is_lost and package is not None:
            key = b"p" + root
            self._gateway.post_kept(changes, origin.bank, origin.issuer, f"{root.hex()}/package/{suffix}", key)
        if head.state == "refused":
            refusal = Refusal(root, head.code, head.message)
            self._gateway.post(changes, origin.bank, origin.issuer, f"{root.hex()}/refusal/{suffix}", refusal)
        for answer in self._store.answers(root):
            message_id = f"{root.hex()}/{answer.round_number}/{suffix}"
            self._gateway.post_kept(changes, origin.bank, origin.issuer, message_id, b"a" + _key(answer))

    async def _on_question(self, origin: Origin, question: Question) -> None:
        async with self._store.lock:
            changes = Changes()
            head = self._store.head(question.root)
            if head is not None:
                _check_origin(origin, head.bank, head.issuer)
                self._repeat(changes, origin, question.root, head, is_lost=question.is_lost)
            elif not question.is_lost:
                message_id = f"{question.root.hex()}/ask/{origin.epoch}-{origin.number}"
                asked = Question(question.root, True)
                self._gateway.post(changes, origin.bank, origin.issuer, message_id, asked)
                log.warning("package lost, asked for again", channel=origin.channel, root=question.root.hex())
            await self._store.commit(changes)

    async def _on_own_answer(self, origin: Origin, answer: Answer) -> None:
        """Take back an answer of ours that we lost."""
        _check_origin(origin, answer.bank, answer.issuer)
        package = self._store.package(answer.root)
        if package is None:
            raise PeerError("unknown_package", "an answer to a package that is not here")
        await self._check_own(answer, package)
        async with self._store.lock:
            known = self._store.answers(answer.root, answer.round_number)
            if any(item.outcome_root == answer.outcome_root for item in known):
                return
            if known:
                raise PeerError("contradicted", "another answer of ours to this package and round")
            await self._store.commit(self._answered(package, answer, is_sent=True))

    async def _check_own(self, answer: Answer, package: Package) -> None:
        signers = await self._gateway.chain.signers(answer.bank, answer.issuer)
        keys = signers.issuer_keys if signers else []
        for key in dict.fromkeys([self._gateway.business.public.compressed, *keys]):
            try:
                check_answer_untrusted(answer, package, self._gateway.chain_id, key)
                return
            except PeerError as error:
                if error.code != "bad_signature":
                    raise
        raise PeerError("bad_signature", "an answer that we never signed")

    # -- the issuer end --------------------------------------------------------------------------------

    async def packages_next(self, params: Next) -> PackagesNext:
        """Return the packages after a position, oldest first; waits for the first."""
        await self._store.arrivals.wait(params.after, params.wait_ms)
        items = []
        for position, root in self._store.arrivals_after(params.after, min(params.limit, PACKAGES_PAGE_MAX)):
            package = self._store.package(root)
            if package is not None:
                items.append(_arrived(position, package))
        return PackagesNext(items)

    async def answer_submit(self, params: AnswerSubmit) -> Done:
        """Keep, send and set down for anchoring an answer of the issuer end (N5).

        Raises:
            LocalError: ``unknown_package``, ``package_refused``, ``round_missing``, ``bad_places``, ``answer_exists``.
            PeerError: the answer does not hold: ``malformed``, ``bad_root``, ``bad_signature``.
        """
        async with self._store.lock:
            head, package = self._store.head(params.root), self._store.package(params.root)
            if head is None or package is None or head.is_bank or head.bank != params.bank:
                raise LocalError("unknown_package", f"{params.bank} has sent no package {params.root.hex()}")
            if head.state == "refused":
                raise LocalError("package_refused", f"the package was refused as a whole: {head.code}")
            answer = _answer(params, package)
            if known := self._store.answers(params.root, params.round_number):
                if answer in known:
                    return Done()
                raise LocalError("answer_exists", f"round {params.round_number} of the package has another answer")
            check_answer_untrusted(answer, package, self._gateway.chain_id, self._gateway.business.public.compressed)
            self._check_round(answer, package)
            await self._store.commit(self._answered(package, answer))
        log.info("package answered", bank=package.bank, root=package.root.hex(), round=answer.round_number)
        return Done()

    def _check_round(self, answer: Answer, package: Package) -> None:
        if answer.round_number == 0:
            return
        first = self._store.answers(package.root, 0)
        if not first:
            raise LocalError("round_missing", "the package has no first answer yet")
        if answer.places != waiting_places(first[0].confirmations):
            raise LocalError("bad_places", "an allotment confirms exactly what the first answer left open")

    def _answered(self, package: Package, answer: Answer, *, is_sent: bool = False) -> Changes:
        changes = Changes()
        changes.keep_answer(answer)
        changes.set_head(package.root, _with_state(_head_of(package), "answered", _Verdict()))
        changes.set_job(_job(package, answer, self._gateway.now_ms() + self._gateway.settings.anchor_after_ms))
        if not is_sent:
            message_id = f"{answer.root.hex()}/{answer.round_number}"
            self._gateway.post_kept(changes, answer.bank, answer.issuer, message_id, b"a" + _key(answer))
        return changes


def _check_origin(origin: Origin, bank: str, issuer: str) -> None:
    if (bank, issuer) != (origin.bank, origin.issuer):
        raise PeerError("wrong_channel", f"speaks of {bank}/{issuer}")


def _root_of(message_id: str) -> bytes:
    try:
        return bytes.fromhex(message_id.partition("/")[0])
    except ValueError:
        return b""


def _key(answer: Answer) -> bytes:
    return round_key(answer.root, answer.round_number, answer.outcome_root)


def _head_of(package: Package) -> Head:
    count = len(package.applications)
    return Head(
        package.bank,
        package.issuer,
        package.epoch,
        False,
        package.created_ms,
        count,
        package.signature,
        "received",
        "",
        "",
    )


def _with_state(head: Head, state: str, verdict: _Verdict) -> Head:
    return msgspec.structs.replace(head, state=state, code=verdict.code, message=verdict.message)


def _job(package: Package, answer: Answer, due_ms: int) -> AnchorJob:
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
        due_ms,
    )


def _arrived(position: int, package: Package) -> PackageArrived:
    return PackageArrived(
        position=position,
        root=package.root,
        bank=package.bank,
        issuer=package.issuer,
        epoch=package.epoch,
        created_ms=package.created_ms,
        signature=package.signature,
        salts=package.salts,
        applications=package.applications,
    )


def _answer(params: AnswerSubmit, package: Package) -> Answer:
    return Answer(
        package.bank,
        package.issuer,
        package.epoch,
        package.root,
        params.round_number,
        params.places,
        params.outcome_root,
        params.previous,
        params.signature,
        params.confirmations,
    )
