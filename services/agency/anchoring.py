"""Anchoring: brings what both sides signed to the contract ``evidence``, in few transactions.

An anchoring is durable before anything is done about it (:class:`services.agency.gateway_store.AnchorJob`). What waits
together goes in one transaction, each call for itself; the next one follows when that is final, so that under load
transactions get fuller and not more. The contract answers an anchor that it has with its first result: so a job
that a killed program leaves is simply done again.

The bank anchors at once. An issuer waits ``anchor_after_ms`` and then anchors what its bank has not.
"""

from collections.abc import Sequence
from hashlib import sha256

import msgspec
import structlog

from consensus.ledger.codec import Value, decode_untrusted
from consensus.ledger.errors import PeerError
from consensus.ledger.receipt import OK, Receipt
from consensus.ledger.transaction import Call, make_call
from services.agency.gateway import Gateway, patiently
from services.agency.gateway_store import Anchored, AnchorJob, Changes, News, round_key
from services.client.client import Client
from services.client.outcome import Outcome
from services.client.submission import Submitter

ANCHORS_PER_TRANSACTION_MAX = 64
DUE_PAUSE_MS = 1_000
RETRY_MS = 60_000
"""When an anchor is tried again that the contract did not take and may take later."""
_FINAL = frozenset({"bad_signature", "unknown_channel"})
"""Why the contract will never take an anchor. All else, as an account of somebody else's, may be mended by people."""

log = structlog.get_logger("anchoring")


class _Result(msgspec.Struct, frozen=True, rename="camel"):
    """What ``evidence.anchor`` returns."""

    status: str
    height: int


class Anchoring:
    """Does a gateway's anchorings, one transaction under way at a time."""

    def __init__(self, gateway: Gateway, client: Client) -> None:
        self._gateway = gateway
        self._store = gateway.store
        account = gateway.settings.account
        # A lane of its own: whoever else signs for the account does not take its numbers.
        lanes = client.lanes(account, count=1, prefix=b"ag" + sha256(gateway.settings.name.encode()).digest()[:8])
        self._submitter = Submitter(client, account, lanes, now_ms=gateway.now_ms)

    @property
    def trouble(self) -> str:
        """Why nothing gets to the chain at present, "" while it does."""
        return self._submitter.trouble

    async def run(self) -> None:
        """Anchor for ever what is due."""
        while True:
            if not await self.anchor_due():
                await self._store.wait_job(DUE_PAUSE_MS)

    async def anchor_due(self) -> int:
        """Anchor what is due now, up to one transaction full; return how many were dealt with."""
        now_ms = self._gateway.now_ms()
        due = self._store.jobs_due(now_ms, ANCHORS_PER_TRANSACTION_MAX)
        waiting = [job for job in due if not await self._is_anchored(job)]
        if waiting:
            outcome = await self._submitter.submit([_call(job) for job in waiting])
            await self._take(waiting, outcome)
        return len(due)

    async def _is_anchored(self, job: AnchorJob) -> bool:
        """Tell whether the other side has anchored it meanwhile; then it is done. The bank does not ask."""
        if job.bank == self._gateway.organisation:
            return False
        ask = self._gateway.chain.anchors_of
        anchors = await patiently("chain", lambda: ask(job.bank, job.issuer, job.root, job.round_number))
        is_wanted = bool(job.orders_signature)
        for anchor in anchors:
            if anchor.outcome_root == job.outcome_root and (anchor.status == "MUTUAL" or not is_wanted):
                changes = Changes()
                changes.drop_job(job)
                changes.set_anchored(_key(job), _anchored(job, b"", anchor.height, anchor.status))
                await self._store.commit(changes)
                return True
        return False

    async def _take(self, jobs: Sequence[AnchorJob], outcome: Outcome) -> None:
        changes = Changes()
        for job, receipt in zip(jobs, outcome.receipts, strict=True):
            changes.drop_job(job)
            if receipt.status != OK:
                self._on_refused(changes, job, receipt.code)
                continue
            result = _result_of(receipt)
            # Of an anchor that was there before, the transaction is another one.
            transaction_id = outcome.transaction.id if result.height == outcome.height else b""
            changes.set_anchored(_key(job), _anchored(job, transaction_id, result.height, result.status))
            if job.bank == self._gateway.organisation and self._is_news(job):
                news = News("anchored", job.root, job.round_number, "", "", transaction_id, result.height)
                changes.news.append(news)
        await self._store.commit(changes)
        log.info("anchored", count=len(jobs), height=outcome.height, transaction=outcome.transaction.id.hex())

    def _on_refused(self, changes: Changes, job: AnchorJob, code: str) -> None:
        known = self._store.anchored(_key(job))
        if known is None or known.status != code:
            self._gateway.alarm(changes, code, f"{job.bank}/{job.issuer}", f"anchor of {job.root.hex()}")
        if known is None or not known.height:  # what stands on the chain goes on standing
            changes.set_anchored(_key(job), _anchored(job, b"", 0, code))
        if code not in _FINAL:
            changes.set_job(msgspec.structs.replace(job, due_ms=self._gateway.now_ms() + RETRY_MS))

    def _is_news(self, job: AnchorJob) -> bool:
        """Tell whether the sales end is told: of answers that count, not of claims and contradictions."""
        return job.outcome_root == self._store.first_outcome(job.root, job.round_number)


def _call(job: AnchorJob) -> Call:
    arguments: dict[str, Value] = {
        "bank": job.bank,
        "issuer": job.issuer,
        "epoch": job.epoch,
        "root": job.root,
        "count": job.count,
        "orders_signature": job.orders_signature,
        "round_number": job.round_number,
        "outcome_root": job.outcome_root,
        "previous": job.previous,
        "answer_signature": job.answer_signature,
    }
    return make_call("evidence", "anchor", arguments)


def _key(job: AnchorJob) -> bytes:
    return round_key(job.root, job.round_number, job.outcome_root)


def _anchored(job: AnchorJob, transaction_id: bytes, height: int, status: str) -> Anchored:
    return Anchored(job.previous, job.answer_signature, transaction_id, height, status)


def _result_of(receipt: Receipt) -> _Result:
    try:
        return msgspec.convert(decode_untrusted(receipt.values[0]), _Result)
    except (msgspec.ValidationError, IndexError) as error:
        raise PeerError("bad_answer", f"evidence.anchor returns another shape: {error}") from None
