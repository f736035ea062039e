"""From the bytes of a request to the bytes of its answer, with deadline, metrics and one border for bugs."""

from dataclasses import dataclass, field, replace

import structlog
import trio

from consensus.ledger.errors import HansaError, InvariantError, PeerError, StorageError
from node.rpc.context import Context, Subscriber
from node.rpc.metrics import RpcMetrics
from node.rpc.protocol import (
    ANSWER_BYTES_MAX,
    BODY_BYTES_MAX,
    Faulty,
    Request,
    batch_bytes,
    error_bytes,
    parse_untrusted,
    result_bytes,
)

CALL_MS_MAX = 70_000
"""Longest time any call may take; waiting methods have shorter limits of their own."""
NODE_FAILED = "node_failed"
"""Code of the answer whose work met the failure that ends the node; clients go to another one."""

log = structlog.get_logger("rpc")


@dataclass(slots=True)
class Failure:
    """Set when a read met a broken disk or invariant, upon which the node must stop."""

    happened: trio.Event = field(default_factory=trio.Event)
    error: HansaError | None = None

    def report(self, error: HansaError) -> None:
        """Keep the first fatal error and wake the server."""
        if self.error is None:
            self.error = error
        self.happened.set()


class Dispatcher:
    """Answers requests against one node; ``body_bytes_max`` bounds what comes over plain HTTP at once."""

    def __init__(
        self, context: Context, metrics: RpcMetrics, failure: Failure, *, body_bytes_max: int = BODY_BYTES_MAX
    ) -> None:
        self._context = context
        self.metrics = metrics
        self.body_bytes_max = body_bytes_max
        self._failure = failure

    def context_for(self, subscriber: Subscriber) -> Context:
        """Return the context of calls that come over a session."""
        return replace(self._context, subscriber=subscriber)

    @property
    def context(self) -> Context:
        """The context of calls over plain HTTP."""
        return self._context

    def report(self, group: BaseExceptionGroup[HansaError]) -> None:
        """Report the first error of a group as fatal to the node."""
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, HansaError):
            self._failure.report(error)

    async def answer_body(self, data: bytes) -> bytes:
        """Answer an HTTP body: one document, a list for a batch, empty when it holds notifications alone."""
        try:
            body = parse_untrusted(data, self.body_bytes_max)
        except PeerError as error:
            return error_bytes(None, error)
        if not body.is_batch:
            return await self.answer(body.entries[0], self._context)
        return await self.answer_batch(body.entries, self._context)

    async def answer_batch(self, entries: tuple[Request | Faulty, ...], context: Context) -> bytes:
        """Answer a batch, its requests side by side, in the order they were asked."""
        answers: dict[int, bytes] = {}
        size = 0

        async def answer_one(index: int, entry: Request | Faulty) -> None:
            nonlocal size
            answer = await self.answer(entry, context)
            size += len(answer)
            if size > ANSWER_BYTES_MAX:
                answer = error_bytes(entry.id, PeerError("answer_too_large", "the batch's answers exceed their cap"))
            answers[index] = answer

        async with trio.open_nursery() as nursery:
            for index, entry in enumerate(entries):
                nursery.start_soon(answer_one, index, entry)
        present = [answers[index] for index in range(len(entries)) if answers[index]]
        return batch_bytes(present) if present else b""

    async def answer(self, entry: Request | Faulty, context: Context) -> bytes:
        """Answer one request; empty for a notification."""
        if isinstance(entry, Faulty):
            return error_bytes(entry.id, entry.error)
        started_s = trio.current_time()
        label = entry.method if entry.method in context.table.methods else "unknown"
        code = ""
        try:
            with trio.fail_after(CALL_MS_MAX / 1000):
                method = context.table.find_untrusted(entry.method)
                answer = result_bytes(entry.id, await method.call(context, entry.params))
        except trio.TooSlowError:
            code, answer = "timeout", error_bytes(entry.id, PeerError("timeout", "the call took too long"))
        except (StorageError, InvariantError) as error:
            self._failure.report(error)
            code, answer = error.code, error_bytes(entry.id, PeerError(NODE_FAILED, "the node has failed and stops"))
        except HansaError as error:
            code, answer = error.code, error_bytes(entry.id, error)
        except Exception:  # the border: a bug in one method must not end other callers' sessions
            log.exception("a method failed", method=entry.method)
            code, answer = "internal", error_bytes(entry.id, PeerError("internal", "the method failed; see the log"))
        self.metrics.answered(label, code, trio.current_time() - started_s)
        return b"" if entry.is_notification else answer
