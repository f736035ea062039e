"""Meters: what supplies units and counts them, asked over HTTP, or the charging session that is played here.

A meter of one's own answers ``GET /streams/STREAM?allowed=UNITS`` (the stream in hex without 0x) with JSON,
``{"units": …, "isDone": …}``: it may supply up to ``allowed`` units in all, and says how many it has supplied in all.
The number never falls and is never above what was allowed, also after a restart. ``isDone``: nothing more is wanted.
"""

import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import trio

from consensus.ledger.errors import LocalError, PeerError, StorageError
from services.client.errors import Refused
from services.local.asking import Program, ProgramLink, open_program
from services.local.files import replace_file
from services.stream.charging import PULSES, Pulse, charging_session
from services.stream.interfaces import Meter, Reading

DEMO: Final = "demo"
DEMO_SEED = 9
DEMO_SPEED = 100
"""How many times faster than a real car the session goes: about 25 minutes in 15 seconds."""
PULSES_MAX = 10_000
_NUMBER: Final = re.compile("[0-9]{1,9}")
ANSWER_MS_MAX = 5_000
COUNT_BYTES_MAX = 256
METERED_MAX = 4_096
"""Sessions that the demo keeps in memory; those asked for longest ago are read from disk again."""


class _Count(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What the demo keeps of a stream."""

    units: int


class _Answer(msgspec.Struct, frozen=True, rename="camel"):
    units: int
    is_done: bool


class HttpMeter:
    """A meter that another program is; see the module and :class:`services.stream.interfaces.Meter`."""

    def __init__(self, link: ProgramLink) -> None:
        self._link = link

    async def read(self, stream: bytes, allowed_units: int) -> Reading:
        """Ask it."""
        try:
            answer = await self._link.ask("GET", f"/streams/{stream.hex()}?allowed={allowed_units}", None, _Answer)
        except Refused as error:
            raise PeerError("bad_meter", f"the meter refuses: {error.code}: {error.message}") from None
        if not 0 <= answer.units <= allowed_units:
            raise PeerError("bad_meter", f"the meter says {answer.units} units where {allowed_units} were allowed")
        return Reading(answer.units, answer.is_done)


class ChargingMeter:
    """Plays a seeded charging session for each stream; what it has supplied is durable before it is told.

    A pulse comes when its time has passed since the one before, and only as far as it is allowed: the car waits for
    its payer. ``speed`` is how many times faster than a real car it goes, 0 for at once.
    """

    def __init__(
        self,
        folder: Path,
        seed: int = DEMO_SEED,
        speed: int = DEMO_SPEED,
        pulses: int = PULSES,
        now_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        self._folder = folder
        self._session = charging_session(seed, pulses)
        self._speed = speed
        self._now_ms = now_ms
        self._counted: dict[bytes, tuple[int, int]] = {}
        """Of each stream the units in all and when the last of them came."""

    async def read(self, stream: bytes, allowed_units: int) -> Reading:
        """Let the car take what has come due since it was asked last.

        Raises:
            StorageError: ``disk_failed``: the count cannot be kept, and nothing was supplied.
        """
        if stream in self._counted:
            units, since_ms = self._counted.pop(stream)
        else:
            units, since_ms = await self._load(stream), self._now_ms()
        supplied, at_ms = self._due(units, since_ms, allowed_units)
        if supplied > units:
            await trio.to_thread.run_sync(self._save, stream, supplied)
            units, since_ms = supplied, at_ms
        self._counted[stream] = units, since_ms
        while len(self._counted) > METERED_MAX:
            self._counted.pop(next(iter(self._counted)))
        return Reading(units, units >= self._session[-1].units)

    def _due(self, units: int, since_ms: int, allowed_units: int) -> tuple[int, int]:
        """Return how many units have come in all by now, and when the last of them did: one pulse at the most."""
        last = next((pulse for pulse in reversed(self._session) if pulse.units <= units), Pulse(0, 0, 0, 0))
        pulse = next((pulse for pulse in self._session if pulse.units > units), last)
        gap_ms = (pulse.at_ms - last.at_ms) // self._speed if self._speed else 0
        # The rest of a pulse that was not allowed at once comes as soon as it is.
        is_due = units > last.units or self._now_ms() >= since_ms + gap_ms
        return (min(pulse.units, max(allowed_units, units)) if is_due else units), self._now_ms()

    def _path(self, stream: bytes) -> Path:
        return self._folder / f"{stream.hex()}.json"

    async def _load(self, stream: bytes) -> int:
        def load() -> int:
            try:
                with self._path(stream).open("rb") as source:
                    return msgspec.json.decode(source.read(COUNT_BYTES_MAX), type=_Count).units
            except FileNotFoundError:
                return 0
            except (OSError, msgspec.MsgspecError) as error:
                raise StorageError("disk_failed", f"{self._path(stream)}: {error}") from None

        return await trio.to_thread.run_sync(load)

    def _save(self, stream: bytes, units: int) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._path(stream), msgspec.json.encode(_Count(units)))
        except OSError as error:
            raise StorageError("disk_failed", f"{self._path(stream)}: {error}") from None


@asynccontextmanager
async def open_meter(text: str, folder: Path) -> AsyncIterator[Meter]:
    """Give the meter that ``--meter`` names: an HTTP root, or ``demo[:SEED[:SPEED[:PULSES]]]``.

    ``folder`` is where the demo keeps its counts.

    Raises:
        LocalError: ``bad_url``, ``bad_meter_name``.
    """
    name, *numbers = text.split(":")
    if name == DEMO:
        defaults = (DEMO_SEED, DEMO_SPEED, PULSES)
        if len(numbers) > len(defaults) or not all(_NUMBER.fullmatch(number) for number in numbers):
            raise LocalError("bad_meter_name", f"{text} is neither a URL nor demo[:SEED[:SPEED[:PULSES]]]")
        seed, speed, pulses = (*map(int, numbers), *defaults[len(numbers) :])
        if not 0 < pulses <= PULSES_MAX:
            raise LocalError("bad_meter_name", f"{text}: a session has 1 to {PULSES_MAX} pulses")
        yield ChargingMeter(folder, seed, speed, pulses)
        return
    async with open_program(Program(text, "meter", "meter_unreachable"), answer_ms_max=ANSWER_MS_MAX) as link:
        yield HttpMeter(link)
