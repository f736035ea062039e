"""Throws inputs at the targets in this process and collects what came out that must not."""

import inspect
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from consensus.ledger.errors import HansaError
from tests.fuzz import (
    targets_agency,
    targets_ledger,
    targets_node,
    targets_payee_client,
    targets_payee_codes,
    targets_payee_environment,
    targets_payee_node,
    targets_services,
    targets_settlement,
    targets_stream,
)
from tests.fuzz.mutate import absences, draw
from tests.fuzz.target import Target

FINDINGS_MAX = 20
SHOWN_BYTES = 800


@dataclass
class Outcome:
    """What a run gave: how many inputs, how each ended, and the findings."""

    inputs: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Say it in one line."""
        ends = ", ".join(f"{count} {what}" for what, count in self.ends.most_common(8))
        return f"{self.inputs} inputs: {ends}"


async def throw(targets: Sequence[Target], count: int, seed: int) -> Outcome:
    """Throw ``count`` inputs, shared among the targets by their weight, each drawn from seed and target's name."""
    outcome = Outcome()
    shares = sum(target.weight for target in targets)
    for target in targets:
        random = Random(f"{seed}/{target.name}")
        for _ in range(max(1, count * target.weight // shares)):
            await attempt(target, draw(random, target.samples, is_json=target.is_json), outcome)
    return outcome


async def throw_absences(targets: Sequence[Target]) -> Outcome:
    """Leave out, and set to nil, every field of every sample of MessagePack, one at a time."""
    outcome = Outcome()
    for target in targets:
        if not target.is_json:
            for sample in target.samples:
                for data in _absences(sample):
                    await attempt(target, data, outcome)
    return outcome


def _absences(sample: bytes) -> list[bytes]:
    try:
        return list(absences(sample))
    except Exception:  # a sample that is no MessagePack has no fields
        return []


async def attempt(target: Target, data: bytes, outcome: Outcome) -> None:
    """Throw one input and note how it ended."""
    outcome.inputs += 1
    try:
        result = target.call(data)
        if inspect.isawaitable(result):
            await result
        outcome.ends["taken"] += 1
    except target.may as error:
        outcome.ends[error.code if isinstance(error, HansaError) else type(error).__name__] += 1
    except Exception as error:
        outcome.ends["FOUND"] += 1
        if len(outcome.findings) < FINDINGS_MAX:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            shown = data[:SHOWN_BYTES].hex()
            outcome.findings.append(f"{target.name}: {type(error).__name__} at {place}: {error!s:.300} | {shown}")


@contextmanager
def all_targets(folder: Path) -> Iterator[list[Target]]:
    """Give all targets; their databases are in a folder."""
    with targets_node.targets(folder) as rest:
        services = [*targets_services.targets(folder), *targets_agency.targets(folder), *targets_settlement.targets()]
        payee = [*targets_payee_codes.targets(), *targets_payee_node.targets(), *targets_payee_client.targets()]
        payee += targets_payee_environment.targets()
        yield [*targets_ledger.targets(), *rest, *services, *payee, *targets_stream.targets()]
