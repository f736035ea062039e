"""How a demo shows that it is at work: a line of progress."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Watch:
    """Progress on standard error; silent unless that is a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def say(self, text: str) -> None:
        """Say what happens now."""
        self._progress.update(self._task, description=text)

    def begin(self, total: int) -> None:
        """Say how many steps there are."""
        self._progress.update(self._task, total=total)

    def done(self, count: int) -> None:
        """Say how many steps are done."""
        self._progress.update(self._task, completed=count)


@contextmanager
def open_watch(*, is_quiet: bool) -> Iterator[Watch]:
    """Show progress for the time of the block."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    is_silent = is_quiet or not sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=is_silent) as progress:
        yield Watch(progress)


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Log nothing for the time of the block: parts of programs that run in this process would write to our output."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)
