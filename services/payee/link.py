"""The payers' side of a platform program, over HTTP (:mod:`services.payee.interfaces`)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from consensus.ledger.payees import Delegation
from services.local.asking import Program, ProgramLink, open_program
from services.payee.identity import identity_text
from services.payee.interfaces import AskPart, Delegate, Delegated, Part, Pay, Payment

ANSWER_MS_MAX = 30_000
"""How long an answer may take: the platform waits half of that for its account system."""


class PlatformLink:
    """Asks a platform program; made by :func:`open_platform`.

    All calls raise ``Unreachable`` (``platform_unreachable``: it is unknown what was done, and the same again is safe)
    and ``Refused`` with the platform's code.
    """

    def __init__(self, program: ProgramLink) -> None:
        self._program = program

    async def delegate(self, key: bytes) -> Delegation:
        """Have the platform let a key (33 bytes) sign queries for it, for some time."""
        asked = f"0x{key.hex()}"
        given = await self._program.post("/delegations", Delegate(asked), Delegated)
        if given.key != asked:
            raise self._program.unreachable("lets another key sign than it was asked for")
        return Delegation(given.server, key, given.until_ms, bytes.fromhex(given.signature.removeprefix("0x")))

    async def part(self, identity: bytes) -> bytes:
        """Return the platform's part of the split key of its record of a merchant."""
        given = await self._program.post("/parts", AskPart(identity_text(identity)), Part)
        return bytes.fromhex(given.part.removeprefix("0x"))

    async def pay(self, asked: Pay) -> Payment:
        """Pay; the same again is the same payment."""
        return await self._program.post("/payments", asked, Payment)


@asynccontextmanager
async def open_platform(url: str, *, token: str = "") -> AsyncIterator[PlatformLink]:
    """Give a link to ``http://HOST:PORT``; nothing is asked before the first call.

    Raises:
        LocalError: ``bad_url``.
    """
    async with open_program(
        Program(url, "platform", "platform_unreachable"), token=token, answer_ms_max=ANSWER_MS_MAX
    ) as program:
        yield PlatformLink(program)
