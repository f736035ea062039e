"""Streams while everything is killed: ``python -m tests.network.stream_faults --rounds 10 --seed 1``.

In each round cars are charged in both modes, each by a payer's process of its own, while payers, service party, watcher
and a node die; some payers never come back. However it goes, what a service party has supplied and what it was paid
differ by one step at the most, in either direction, and nothing is lost or made.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import trio

from cli.stream_trial import StreamTrial, stream_trial
from services.demo.stream_gather import Balances, Look
from services.demo.stream_network import NODE, SERVICE_PROGRAM, WATCHER_PROGRAM
from services.demo.stream_till import Till, open_till
from services.stream.setup import PAYERS, SERVICE, UNIT
from tests.network.support import pass_time

MODES = ("service-first", "payment-first")
DEPOSIT, FINE = 10_000, 500
COUNT = 60
"""Iterations after which a stream ends."""
STEP_MS = 8_000
"""How long either waits for the other: longer than a program is away, so that only who stays away is given up."""
PAUSE_MS_MAX = 400
METER = "demo:{seed}:150"
ENDED = frozenset({"SETTLED", "CLAIMED", "CLOSED"})
PAYER = "payer"


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of one stream; amounts in smallest units. ``supplied`` is by the meter's own durable count."""

    title: str
    price: int
    step_max: int
    supplied: int
    paid: int
    due: int
    fined: bool
    held: int
    status: str
    reason: str

    def faults(self) -> list[str]:
        """Return what is wrong."""
        worth = self.supplied * self.price
        found = []
        if self.status not in ENDED:
            found.append(f"{self.title} stands at {self.status} ({self.reason})")
        if worth - self.paid > self.step_max:
            found.append(f"{self.title}: worth {worth} was supplied and {self.paid} was paid, step {self.step_max}")
        if self.paid - worth > self.step_max:
            found.append(f"{self.title}: {self.paid} was paid for what is worth {worth}, step {self.step_max}")
        if self.paid != self.due:
            found.append(f"{self.title}: {self.paid} was paid and {self.due} was due")
        if self.fined:
            found.append(f"{self.title}: the payer was fined and had burned nothing")
        return found


@dataclass
class Faults:
    """Streams that are paid, and what is killed meanwhile."""

    till: Till
    trial: StreamTrial
    random: Random
    streams: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    """Of each stream mode and payer."""
    killed: list[str] = field(default_factory=list)

    async def play(self, streams: int, kills: int) -> None:
        """Have cars charged while some of the system die one after the other, until all streams have ended.

        One more stream of each mode has a payer that is killed and never comes back.
        """
        opened = [await self._open(MODES[number % len(MODES)]) for number in range(streams)]
        gone = [await self._open(mode) for mode in MODES]
        for stream in gone:
            await self.till.until(stream, lambda shown: shown.count > 0)
            await self.trial.kill_payer(stream)
        for _ in range(kills):
            await pass_time(self.random.randrange(PAUSE_MS_MAX))
            await self._kill(self.random.choice((PAYER, PAYER, SERVICE_PROGRAM, WATCHER_PROGRAM, NODE)), opened)
        for stream in (*opened, *gone):
            await self.till.until(stream, lambda shown: shown.status in ENDED)

    async def _open(self, mode: str) -> bytes:
        payer = PAYERS[len(self.streams) % len(PAYERS)]
        agreed = await self.till.offer(payer, mode=mode, deposit=DEPOSIT, fine=FINE, count_max=COUNT)
        stream = await self.till.open(payer, agreed)
        self.streams[stream] = mode, payer
        self.trial.start_payer(stream, payer)
        return stream

    async def _kill(self, name: str, opened: Sequence[bytes]) -> None:
        self.killed.append(name)
        if name == PAYER:
            stream = self.random.choice(opened)
            await self.trial.kill_payer(stream)
            self.trial.start_payer(stream, self.streams[stream][1])
        elif name == NODE:
            await self.trial.kill(name)
            await self.trial.start(name)
        else:
            await self.trial.kill_program(name)
            await self.trial.start_program(name)

    async def ended(self) -> list[Ended]:
        """Return what became of each stream."""
        found = []
        for stream, (mode, _) in self.streams.items():
            shown, record = await self.till.shown(stream), await self.till.record(stream)
            assert shown is not None
            terms = shown.terms
            fine = record.fine if record.is_fined else 0
            held = record.deposit - record.taken - fine if record.status == "OPEN" else 0
            found.append(
                Ended(
                    title=f"{mode} {stream.hex()[:8]}",
                    price=int(terms["price"]),
                    step_max=int(terms["stepMax"]),
                    supplied=self._metered(stream),
                    paid=record.paid,
                    due=shown.due,
                    fined=record.is_fined,
                    held=held,
                    status=shown.status,
                    reason=shown.reason,
                )
            )
        return found

    def _metered(self, stream: bytes) -> int:
        """Return what the meter itself says to have supplied."""
        path = self.trial.program(SERVICE_PROGRAM).folder / "data" / "meter" / f"{stream.hex()}.json"
        return int(json.loads(path.read_text())["units"]) if path.exists() else 0

    async def faults(self, ended: Sequence[Ended], before: Balances, after: Balances) -> list[str]:
        """Return what is wrong once all streams have ended."""
        found = [fault for item in ended for fault in item.faults()]
        paid, held = sum(item.paid for item in ended), sum(item.held for item in ended)
        change = {name: after.held[name] - before.held[name] for name in after.held}
        if change[SERVICE] != paid:
            found.append(f"the service party has {change[SERVICE]} {UNIT} more and was paid {paid}")
        if sum(change[name] for name in PAYERS) != -paid - held:
            found.append(f"payers paid {paid}, {held} are held, and their balances say otherwise")
        if before.supply != after.supply or any(
            moved for name, moved in change.items() if name not in (SERVICE, *PAYERS)
        ):
            found.append("money is not conserved")
        return found


async def play(
    trial: StreamTrial, *, seed: int, streams: int, kills: int, rounds: int = 1
) -> tuple[Faults, list[Ended], list[str]]:
    """Play rounds on a running network; return what was seen, how streams ended, and what is wrong."""
    doors = await trial.open_streams(meter=METER.format(seed=seed), step_ms=STEP_MS)
    async with open_till(trial, doors) as till:
        look = Look(trial, till)
        before = await look.balances()
        faults = Faults(till, trial, Random(seed))
        for _ in range(rounds):
            await faults.play(streams, kills)
        ended = await faults.ended()
        return faults, ended, await faults.faults(ended, before, await look.balances())


async def _run(rounds: int, seed: int, streams: int, kills: int) -> list[str]:
    async with stream_trial() as trial:
        seen, ended, wrong = await play(trial, seed=seed, streams=streams, kills=kills, rounds=rounds)
    lost = max(abs(item.supplied * item.price - item.paid) for item in ended)
    print(f"{len(ended)} streams ended: {dict(Counter(item.reason for item in ended))}; at most {lost} {UNIT} lost")
    print(f"killed: {dict(Counter(seen.killed))}")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.network.stream_faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args(arguments)
    wrong = trio.run(_run, options.rounds, options.seed, options.streams, options.kills)
    print("\n".join(wrong) or "held")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
