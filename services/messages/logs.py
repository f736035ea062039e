"""What the service programs have in common: log lines as a node's, a file that says ready, signals that end them."""

import fcntl
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import structlog
import trio

from consensus.ledger.errors import LocalError

READY_FILE = "ready"
"""In a program's ``run`` folder: its process id, from when it answers until it ends in order."""
LOCK_FILE = "lock"
"""Beside it: locked while the program lives; the file itself stays, and says nothing."""


class _LineLogger:
    """Writes a line to standard error at once. What a full disk does not take is lost, and nothing else."""

    def msg(self, line: str) -> None:
        """Write one line."""
        with suppress(OSError):
            os.write(sys.stderr.fileno(), f"{line}\n".encode(errors="replace"))

    debug = info = warning = error = critical = exception = msg


def configure_logs(level: str) -> None:
    """Log one JSON object a line to standard error, from ``level`` (debug, info, warning, error) on.

    Raises:
        LocalError: ``bad_config`` for another level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise LocalError("bad_config", f"log_level {level!r} is none of debug, info, warning, error")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _LineLogger(),
        cache_logger_on_first_use=True,
    )


@contextmanager
def ready_file(folder: Path) -> Iterator[None]:
    """Keep ``folder/ready`` with our process id for the time of the block; whoever starts a program waits for it.

    It appears whole or not at all. What a killed program left behind names another process and is replaced; one that
    lives holds the folder's lock.

    Raises:
        LocalError: ``already_running``; ``bad_config`` when the folder cannot be written.
    """
    path, draft = folder / READY_FILE, folder / f".{READY_FILE}"
    with _locked(folder):
        try:
            draft.write_text(f"{os.getpid()}\n", "ascii")
            draft.replace(path)
        except OSError as error:
            raise LocalError("bad_config", f"{path}: {error.strerror}") from None
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Be the only process with this ``run`` folder; the system lets go of the lock of one that was killed."""
    path = folder / LOCK_FILE
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalError("already_running", f"another process runs this program in {folder.parent}") from None
        except OSError as error:
            raise LocalError("bad_config", f"{path}: {error.strerror}") from None
        yield


@asynccontextmanager
async def stop_signals() -> AsyncIterator[trio.Event]:
    """Give an event that the first SIGTERM or SIGINT sets; more of them change nothing."""
    stopping = trio.Event()
    log = structlog.get_logger("program")
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                async for number in signals:
                    if not stopping.is_set():
                        log.info("stopping", signal=signal.Signals(number).name)
                    stopping.set()

            nursery.start_soon(watch)
            yield stopping
            nursery.cancel_scope.cancel()
