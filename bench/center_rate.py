"""How exactly the message centre keeps its rate, measured where it counts: at the consumer, over a real socket.

The centre runs as a process of its own, the consumer is the client library in this one; both read one monotonic
clock. ``python -m bench.center_rate`` prints a table.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import trio

from consensus.ledger.errors import LocalError
from services.messages.link import LinkSubscription, open_link
from services.messages.logs import READY_FILE
from services.messages.port import Settlement, Verdict
from services.messages.program import CenterSettings, run
from services.messages.store import NewMessage

RATES_PER_S = (50, 100, 200, 500, 1_000, 2_000, 3_000)
SECONDS = 4.0
DELIVERIES_MAX = 20_000
REACHED_SHARES_MIN = (0.98, 0.9, 0.5)
"""How much of a configured rate has to be reached for it to count; what a delivery takes on its way is not made up."""
START_TIMEOUT_S = 20.0
_NS_PER_S = 1_000_000_000
_SETTLE_EACH = 50
_POLL_S = 0.01
_LOG_BYTES = 2_000
TOKEN = "of the measurement"


@dataclass(frozen=True, slots=True)
class RateFigure:
    """What one configured rate came to.

    ``excess`` is by how many deliveries the worst window of all was above rate × T + 1; 0 or less: the rate was kept.
    """

    rate_per_s: float
    reached_per_s: float
    deliveries: int
    excess: Fraction

    @property
    def is_kept(self) -> bool:
        """No window of T seconds held more than rate × T + 1 deliveries."""
        return self.excess <= 0

    @property
    def reached_share(self) -> float:
        """How much of what is configured was delivered, 0 to 1."""
        return self.reached_per_s / self.rate_per_s


def worst_excess(received_ns: Sequence[int], rate_per_s: float) -> Fraction:
    """Return the most by which any window of T seconds held more than rate × T + 1; exact, over all windows.

    Of all windows that hold deliveries i to j the shortest is the strictest: it holds j − i + 1 in t_j − t_i.
    """
    rate = Fraction(rate_per_s)
    worst: Fraction | None = None
    lowest: Fraction | None = None  # of what a window that begins with an earlier one has in its favour
    for index, moment_ns in enumerate(received_ns):
        ahead = index - rate * moment_ns / _NS_PER_S
        if lowest is not None:
            worst = ahead - lowest if worst is None else max(worst, ahead - lowest)
        lowest = ahead if lowest is None else min(lowest, ahead)
    return worst if worst is not None else Fraction(-1)


@dataclass(frozen=True, slots=True)
class CenterProcess:
    """A centre that runs on its own, and where."""

    address: str
    process: trio.Process


@asynccontextmanager
async def center_process(folder: Path, rate_per_s: float) -> AsyncIterator[CenterProcess]:
    """Run a centre on a Unix socket in ``folder`` as a process, and end it with the block.

    Raises:
        LocalError: ``program_exited``: it did not start; its log is in the message.
    """
    ready = folder / READY_FILE
    with (folder / "log").open("ab") as log:
        command = [sys.executable, "-m", "bench.center_rate", "serve", str(folder), repr(rate_per_s)]
        process = await trio.lowlevel.open_process(command, stderr=log, stdin=subprocess.DEVNULL)
    try:
        with trio.move_on_after(START_TIMEOUT_S):
            while process.poll() is None:
                if ready.exists() and ready.read_text("ascii").strip() == str(process.pid):
                    break
                await trio.sleep(_POLL_S)
        if process.poll() is not None or not ready.exists():
            raise LocalError("program_exited", (folder / "log").read_text("utf-8", "replace")[-_LOG_BYTES:])
        yield CenterProcess(f"unix:{folder}/socket", process)
    finally:
        process.terminate()
        with trio.move_on_after(START_TIMEOUT_S) as patience:
            patience.shield = True
            await process.wait()
        if process.returncode is None:
            process.kill()


async def measure_one(address: str, rate_per_s: float, deliveries: int) -> RateFigure:
    """Let so many messages be delivered and say how they came."""
    async with open_link(address, token=TOKEN, name="bench") as link:
        for first in range(0, deliveries, 1_000):
            count = min(1_000, deliveries - first)
            await link.publish([NewMessage(f"m{first + i}", f"lane{first + i}", os.urandom(600)) for i in range(count)])
        async with link.consume("bench", window=1_024) as subscription, trio.open_nursery() as nursery:
            received, batch = 0, list[Settlement]()
            while received < deliveries:
                delivery = await anext(subscription)
                received += 1
                batch.append(Settlement(delivery.sequence, delivery.fence, Verdict.DONE))
                if len(batch) == _SETTLE_EACH or received == deliveries:
                    nursery.start_soon(subscription.settle, batch)
                    batch = []
    times = list(subscription.received_ns) if isinstance(subscription, LinkSubscription) else []
    seconds = (times[-1] - times[0]) / _NS_PER_S
    return RateFigure(rate_per_s, (len(times) - 1) / seconds, len(times), worst_excess(times, rate_per_s))


async def measure_rate(rates_per_s: Sequence[float] = RATES_PER_S, seconds: float = SECONDS) -> list[RateFigure]:
    """Measure each rate for about so many seconds, with a centre of its own."""
    figures = []
    for rate_per_s in rates_per_s:
        with tempfile.TemporaryDirectory(prefix="hansa-rate-") as folder:
            async with center_process(Path(folder), rate_per_s) as center:
                deliveries = max(2, min(round(rate_per_s * seconds), DELIVERIES_MAX))
                figures.append(await measure_one(center.address, rate_per_s, deliveries))
    return figures


def largest_kept(figures: Sequence[RateFigure], share_min: float = REACHED_SHARES_MIN[0]) -> float:
    """Return the largest configured rate that was kept and of which so much was reached; 0 without one."""
    kept = (figure.rate_per_s for figure in figures if figure.is_kept and figure.reached_share >= share_min)
    return max(kept, default=0)


def main(arguments: Sequence[str]) -> None:
    """Serve, for a measurement, or measure the rates given (or those of the table)."""
    if arguments[:1] == ["serve"]:
        folder = Path(arguments[1])
        settings = CenterSettings(
            listen=f"unix:{folder}/socket",
            token=TOKEN,
            store="embedded",
            data=folder / "data",
            run=folder,
            rate_per_s=float(arguments[2]),
        )
        trio.run(run, settings, strict_exception_groups=True)
        return
    figures = trio.run(measure_rate, [float(argument) for argument in arguments] or RATES_PER_S)
    for figure in figures:
        print(
            f"{figure.rate_per_s:>9,.0f}/s: {'kept' if figure.is_kept else f'EXCEEDED by {float(figure.excess):.3f}'}, "
            f"{figure.reached_per_s:>9,.1f}/s reached ({figure.reached_share:.1%}), "
            f"{figure.deliveries} deliveries"
        )
    for share in REACHED_SHARES_MIN:
        print(f"largest rate kept exactly and reached to {share:.0%}: {largest_kept(figures, share):,.0f}/s")


if __name__ == "__main__":
    main(sys.argv[1:])
