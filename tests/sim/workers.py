"""Many schedules on a few processes, in order of their seeds, with nothing left behind."""

import time
from collections.abc import Iterable, Iterator
from itertools import count, islice, takewhile
from multiprocessing import get_context

from tests.sim.simulation import Result, run_seed

SCHEDULES_PER_WORKER_MAX = 500
SCHEDULES_PER_PART = 20


def run_seeds(seeds: Iterable[int], workers: int) -> Iterator[Result]:
    """Yield the results in order; one worker means this process."""
    if workers <= 1:
        yield from map(run_seed, seeds)
        return
    with get_context("spawn").Pool(workers, maxtasksperchild=SCHEDULES_PER_WORKER_MAX) as pool:
        yield from pool.imap(run_seed, seeds)
        pool.close()
        pool.join()


def run_seeds_until(end_s: float, first: int, workers: int) -> Iterator[Result]:
    """Yield the results of one seed after the other until ``time.perf_counter`` passes a moment."""
    seeds = takewhile(lambda _: time.perf_counter() < end_s, count(first))
    if workers <= 1:
        yield from map(run_seed, seeds)
        return
    with get_context("spawn").Pool(workers, maxtasksperchild=SCHEDULES_PER_WORKER_MAX) as pool:
        while part := list(islice(seeds, SCHEDULES_PER_PART * workers)):
            yield from pool.imap(run_seed, part)
        pool.close()
        pool.join()
