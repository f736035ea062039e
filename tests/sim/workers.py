"""Many schedules on a few processes, in order of their seeds, with nothing left behind."""

from collections.abc import Iterable, Iterator
from multiprocessing import get_context

from tests.sim.simulation import Result, run_seed

SCHEDULES_PER_WORKER_MAX = 500


def run_seeds(seeds: Iterable[int], workers: int) -> Iterator[Result]:
    """Yield the results in order; one worker means this process."""
    if workers <= 1:
        yield from map(run_seed, seeds)
        return
    with get_context("spawn").Pool(workers, maxtasksperchild=SCHEDULES_PER_WORKER_MAX) as pool:
        yield from pool.imap(run_seed, seeds)
        pool.close()
        pool.join()
