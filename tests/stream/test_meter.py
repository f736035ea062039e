"""Meters: the charging session is irregular and the same again, and no meter supplies more than was allowed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.ledger.errors import HansaError, LocalError, StorageError
from services.stream.charging import (
    BATTERY_MJ,
    POWER_W_MAX,
    PULSE_UNITS_MAX,
    PULSES,
    UNIT_MJ,
    charging_session,
    pulse_at,
)
from services.stream.interfaces import Meter, Reading
from services.stream.meter import ChargingMeter, open_meter

STREAM, OTHER = bytes(32), bytes([1]) * 32


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.time_ms = 5_000

    def now_ms(self) -> int:
        return self.time_ms


# -- the session -------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32))
def test_a_session_is_what_a_car_could_do(seed: int) -> None:
    session = charging_session(seed)
    assert len(session) == PULSES
    steps = [after.units - before.units for before, after in pairwise(session)]
    assert {1, 2, 3} <= set(steps) <= set(range(1, PULSE_UNITS_MAX + 1))
    assert 1 <= session[0].units <= PULSE_UNITS_MAX
    times = [pulse.at_ms for pulse in session]
    gaps = {after - before for before, after in pairwise(times)}
    assert min(gaps) > 0
    assert len(gaps) > PULSES // 2
    charges = [pulse.charge_percent for pulse in session]
    assert charges == sorted(charges)
    # The battery holds what was counted, but for less than a unit and the rounded percentage.
    gained_mj = (charges[-1] - charges[0]) * BATTERY_MJ // 100
    assert abs(gained_mj - (session[-1].units - session[0].units) * UNIT_MJ) <= BATTERY_MJ // 100 + UNIT_MJ
    assert all(0 < pulse.power_w <= POWER_W_MAX * 104 // 100 for pulse in session)
    assert session[-1].power_w < session[0].power_w


def test_a_seed_has_one_session_for_ever() -> None:
    session = charging_session(9)
    assert session == charging_session(9) != charging_session(8)
    assert [pulse.units for pulse in session[:8]] == [2, 5, 7, 9, 10, 12, 15, 17]
    assert (session[-1].units, session[-1].at_ms, session[-1].charge_percent) == (365, 1_583_390, 82)
    assert charging_session(9, 20) == session[:20]


def test_a_pulse_is_found_by_its_units() -> None:
    session = charging_session(9)
    assert pulse_at(session, 0) == session[0]
    assert [pulse_at(session, units).units for units in (2, 3, 5, 365, 366)] == [2, 5, 5, 365, 365]


# -- the meter that plays it -------------------------------------------------------------------------------


async def read_all(meter: Meter, allowed_units: int, count: int) -> list[int]:
    return [(await meter.read(STREAM, allowed_units)).units for _ in range(count)]


async def test_each_reading_is_one_pulse(tmp_path: Path) -> None:
    meter = ChargingMeter(tmp_path, speed=0)
    session = charging_session(9)
    readings = [await meter.read(STREAM, 10_000) for _ in session]
    assert [reading.units for reading in readings] == [pulse.units for pulse in session]
    assert [reading.is_done for reading in readings] == [False] * (PULSES - 1) + [True]
    assert await meter.read(STREAM, 10_000) == Reading(365, True)


async def test_nothing_is_supplied_that_is_not_allowed(tmp_path: Path) -> None:
    meter = ChargingMeter(tmp_path, speed=0)
    assert await read_all(meter, 0, 2) == [0, 0]
    assert await read_all(meter, 4, 3) == [2, 4, 4]
    assert await read_all(meter, 6, 3) == [5, 6, 6]
    assert await read_all(meter, 3, 1) == [6]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400), st.booleans()), max_size=40))
async def test_a_count_never_falls_and_never_passes_what_was_allowed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, bool]]
) -> None:
    folder, clock = tmp_path_factory.mktemp("meter"), Clock()
    meter = ChargingMeter(folder, speed=100, now_ms=clock.now_ms)
    counted = most = 0
    for allowed, passed_ms, is_new in steps:
        clock.time_ms += passed_ms
        most = max(most, allowed)
        if is_new:
            meter = ChargingMeter(folder, speed=100, now_ms=clock.now_ms)
        reading = await meter.read(STREAM, allowed)
        assert counted <= reading.units <= most
        counted = reading.units


async def test_a_pulse_comes_when_its_time_has_passed(tmp_path: Path) -> None:
    clock = Clock()
    meter = ChargingMeter(tmp_path, speed=10, now_ms=clock.now_ms)
    first, second, *_ = charging_session(9)
    assert await read_all(meter, 100, 1) == [0]
    clock.time_ms += first.at_ms // 10 - 1
    assert await read_all(meter, 100, 1) == [0]
    clock.time_ms += 1
    assert await read_all(meter, 100, 2) == [2, 2]
    clock.time_ms += (second.at_ms - first.at_ms) // 10
    # Two were not allowed now; they come as soon as they are.
    assert await read_all(meter, 3, 2) == [3, 3]
    assert await read_all(meter, 100, 2) == [5, 5]


async def test_streams_are_counted_apart_and_through_a_restart(tmp_path: Path) -> None:
    meter = ChargingMeter(tmp_path / "counts", speed=0)
    assert await read_all(meter, 100, 3) == [2, 5, 7]
    assert (await meter.read(OTHER, 100)).units == 2
    again = ChargingMeter(tmp_path / "counts", speed=0)
    assert await read_all(again, 100, 2) == [9, 10]
    assert (await again.read(OTHER, 100)).units == 5


async def test_what_cannot_be_kept_is_not_supplied(tmp_path: Path) -> None:
    (tmp_path / "counts").write_text("in the way")
    with pytest.raises(StorageError) as caught:
        await ChargingMeter(tmp_path / "counts", speed=0).read(STREAM, 100)
    assert caught.value.code == "disk_failed"
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / f"{STREAM.hex()}.json").write_text('{"units": ')
    with pytest.raises(StorageError):
        await ChargingMeter(broken, speed=0).read(STREAM, 100)


@pytest.mark.parametrize("text", ["demo:", "demo:x", "demo:1:2:3:4", "demo:1:2:0", "demo:-1", "demo:²", "demo:1:"])
async def test_a_demo_is_named_by_seed_and_speed(tmp_path: Path, text: str) -> None:
    with pytest.raises(LocalError) as caught:
        async with open_meter(text, tmp_path):
            pass
    assert caught.value.code == "bad_meter_name"


@pytest.mark.parametrize(("text", "first"), [("demo:9:0", 2), ("demo:0:0", charging_session(0)[0].units)])
async def test_the_demo_opens_with_its_seed(tmp_path: Path, text: str, first: int) -> None:
    async with open_meter(text, tmp_path) as meter:
        assert (await meter.read(STREAM, 100)).units == first
    for usual in ("demo", "demo:3"):
        async with open_meter(usual, tmp_path / "other") as meter:
            assert await meter.read(STREAM, 100) == Reading(0, False)


# -- a meter elsewhere -------------------------------------------------------------------------------------


@dataclass
class Page:
    """What a program answers to everything, and what it was asked for."""

    status: int
    content: bytes
    targets: list[str] = field(default_factory=list)

    async def answer(self, stream: trio.SocketStream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive_some()
        self.targets.append(head.split()[1].decode())
        about = f"HTTP/1.1 {self.status} -\r\ncontent-length: {len(self.content)}\r\nconnection: close\r\n\r\n"
        await stream.send_all(about.encode() + self.content)
        await stream.aclose()


@asynccontextmanager
async def served(page: Page) -> AsyncIterator[str]:
    """Give the root URL of a page while it is there."""
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, page.answer, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def http_meter(page: Page) -> AsyncIterator[Meter]:
    async with served(page) as url, open_meter(url, Path("unused")) as meter:
        yield meter


async def test_another_program_is_asked_with_stream_and_allowance() -> None:
    page = Page(200, b'{"units": 7, "isDone": false, "voltage": 400}')
    async with http_meter(page) as meter:
        assert await meter.read(OTHER, 9) == Reading(7, False)
        page.content = b'{"units": 9, "isDone": true}'
        assert await meter.read(STREAM, 9) == Reading(9, True)
    assert page.targets == [f"/streams/{OTHER.hex()}?allowed=9", f"/streams/{STREAM.hex()}?allowed=9"]


@pytest.mark.parametrize(
    ("status", "content", "code"),
    [
        (200, b'{"units": 10, "isDone": false}', "bad_meter"),
        (200, b'{"units": -1, "isDone": false}', "bad_meter"),
        (404, b'{"error": {"code": "unknown_stream", "message": "never heard of it"}}', "bad_meter"),
        (200, b'{"units": "7", "isDone": false}', "meter_unreachable"),
        (200, b'{"units": 7}', "meter_unreachable"),
        (200, b"", "meter_unreachable"),
        (503, b'{"error": {"code": "broken", "message": "down"}}', "meter_unreachable"),
    ],
)
async def test_what_no_meter_may_say(status: int, content: bytes, code: str) -> None:
    async with http_meter(Page(status, content)) as meter:
        with pytest.raises(HansaError) as caught:
            await meter.read(STREAM, 9)
    assert caught.value.code == code


async def test_a_meter_that_is_away_is_unreachable() -> None:
    async with served(Page(200, b"")) as url:
        pass
    async with open_meter(url, Path("unused")) as meter:
        with pytest.raises(HansaError) as caught:
            await meter.read(STREAM, 9)
    assert caught.value.code == "meter_unreachable"


async def test_a_url_is_a_root() -> None:
    with pytest.raises(LocalError) as caught:
        async with open_meter("http://127.0.0.1:1/meter", Path("unused")):
            pass
    assert caught.value.code == "bad_url"
