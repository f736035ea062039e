"""Gives a watcher the last iteration of each stream, so that it settles or claims should this program be away.

What a watcher has may be a few seconds old: that much of the due stands in nobody else's hands. Nothing waits for it.
"""

from typing import Protocol, TypeVar

import structlog
import trio

from consensus.ledger.ids import ChainId
from services.client.errors import Refused, Unreachable
from services.stream.desk import Desk
from services.stream.iteration_file import Carried, encode_carried
from services.stream.watcher_interface import Watch, Watched

ITERATIONS_PATH = "/iterations"
T = TypeVar("T")

log = structlog.get_logger("stream")


class Poster(Protocol):
    """A watcher's HTTP side; :class:`services.local.asking.ProgramLink` is one."""

    async def post(self, path: str, content: object, kind: type[T]) -> T:
        """Return the answer to a POST of JSON; ``Refused``, ``Unreachable``."""


class HandOver:
    """Brings iterations to one watcher, each stream's newest every ``pause_ms``."""

    def __init__(self, desk: Desk, chain_id: ChainId, watcher: Poster, pause_ms: int) -> None:
        self._desk = desk
        self._chain_id = chain_id
        self._watcher = watcher
        self._pause_ms = pause_ms
        self._given: dict[bytes, bytes] = {}
        """By stream the iteration that the watcher has, or refused."""
        self.trouble = ""

    async def run(self) -> None:
        """Hand over until cancelled."""
        while True:
            await self.round()
            await trio.sleep(self._pause_ms / 1000)

    async def round(self) -> None:
        """Bring what the watcher does not have; what does not arrive is brought the next time."""
        entries = self._desk.uncollected()
        self._given = {
            entry.kept.stream: raw for entry in entries if (raw := self._given.get(entry.kept.stream)) is not None
        }
        for entry in entries:
            kept = entry.kept
            if self._given.get(kept.stream) == kept.raw:
                continue
            content = encode_carried(Carried(kept.terms, entry.payer_key, kept.raw), self._chain_id).decode()
            try:
                await self._watcher.post(ITERATIONS_PATH, Watch(content), Watched)
            except Unreachable as error:
                if self.trouble != error.code:
                    log.warning("watcher away", code=error.code, why=error.message)
                self.trouble = error.code
                return
            except Refused as error:
                log.warning("watcher refuses", stream=kept.stream.hex(), code=error.code, why=error.message)
            self.trouble = ""
            self._given[kept.stream] = kept.raw
