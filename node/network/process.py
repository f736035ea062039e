"""One local process: started apart from us, known by a pid file, never confused with a stranger.

A pid file names the pid and the moment the process began; a pid that was given to another process in
the meantime has another beginning and is left alone. The file is removed when the process is stopped.
"""

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import msgspec
import trio

from consensus.ledger.errors import LocalError

POLL_S = 0.02
LOG_LINES_MAX = 60
"""How much of the end of a log is read for a process's last words; a traceback fits."""
_REFUSAL = re.compile(r"error (\w+):? ?(.*)")
"""How a command says that it could not start."""
_RAISED = re.compile(r"[|+\-\s]*((?:\w+\.)*\w+(?:Error|Exception|Interrupt)\b.*)")
"""An exception's line in a traceback, also within a group's frame."""
_BEGINNINGS = frozenset({"listening", "ready"})
"""What a node says when it begins; whatever its log says before that is of an earlier life."""
_PID_FILE_VARIABLE = "HANSA_PID_FILE"
"""By this a process is found whose starter was killed before it could write the pid file."""
_STAT = Path("/proc/self/stat")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STOPPED_STATES = frozenset({"T", "t"})
_GONE_STATES = frozenset({"Z", "X", "x"})
_ENDING = "D"


class ProcessState(Enum):
    """What a process does, as the operating system sees it."""

    RUNNING = "running"
    FROZEN = "frozen"
    STOPPED = "stopped"


class _PidFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pid: Annotated[int, msgspec.Meta(gt=1)]
    began: str


class _LogLine(msgspec.Struct, frozen=True):
    level: str
    event: str = ""
    code: str = ""
    why: str = ""
    exit: int | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process came to its end. ``exit_code`` is None where its log does not name it.

    ``code`` is an error's, or ``ended`` (it was told to), ``killed`` (its log breaks off), ``crashed`` (a bug),
    ``failed`` (it says why in its own words), ``never_started``; ``why`` are its last words.
    """

    code: str
    why: str
    exit_code: int | None = None

    @property
    def words(self) -> str:
        """The ending in one line."""
        return (f"exit {self.exit_code}, " if self.exit_code is not None else "") + f"{self.code}: {self.why}"


@dataclass(frozen=True, slots=True)
class LocalProcess:
    """A program of ours on this machine, whether it runs or not.

    Args:
        name: for messages.
        arguments: program and arguments.
        pid_file: where it is remembered; its folder is made when missing.
        log_file: takes what it prints, appended; its folder is made when missing.
    """

    name: str
    arguments: tuple[str, ...]
    pid_file: Path
    log_file: Path

    def start(self, environment: dict[str, str]) -> int:
        """Start it in a session of its own and return its pid, at once; the one it has when it runs already.

        Raises:
            LocalError: ``cannot_start``.
        """
        if (pid := self.find()) is not None:
            return pid
        for path in (self.pid_file, self.log_file):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = (os.POSIX_SPAWN_OPEN, 1, str(self.log_file), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        no_input = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        actions = [no_input, log, (os.POSIX_SPAWN_DUP2, 1, 2)]
        try:
            marked = environment | self._mark()
            pid = os.posix_spawn(self.arguments[0], self.arguments, marked, file_actions=actions, setsid=True)
        except OSError as error:
            raise LocalError("cannot_start", f"{self.name}: {error.strerror}") from None
        self._note(pid)
        return pid

    def find(self) -> int | None:
        """Return the pid, also of a process whose starter was killed before it could note it; it is noted then."""
        if (pid := self.pid()) is None and (pid := _running_with(self.arguments, self._mark())) is not None:
            self._note(pid)
        return pid

    def _mark(self) -> dict[str, str]:
        return {_PID_FILE_VARIABLE: str(self.pid_file)}

    def _note(self, pid: int) -> None:
        seen = _look_at(pid)
        record = _PidFile(pid, seen[0] if seen else "")
        self.pid_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self.pid_file.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(record))
        temporary.replace(self.pid_file)

    def pid(self) -> int | None:
        """Return the pid while the process lives, frozen or not."""
        return None if self.state() is ProcessState.STOPPED else self._record().pid

    def state(self) -> ProcessState:
        """Return what the process does."""
        record = self._record()
        seen = _look_at(record.pid) if record.pid > 1 else None
        if seen is None or seen[0] != record.began or seen[1] in _GONE_STATES:
            return ProcessState.STOPPED
        return ProcessState.FROZEN if seen[1] in _STOPPED_STATES else ProcessState.RUNNING

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal.

        Raises:
            LocalError: ``not_running``.
        """
        if not self._try_signal(number):
            raise LocalError("not_running", f"{self.name} does not run")

    def _try_signal(self, number: signal.Signals) -> bool:
        """Send a signal; return false when the process does not run, or ends at this very moment."""
        pid = self.pid()
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    async def stop(self, *, timeout_ms: int) -> bool:
        """End the process: SIGTERM, and SIGKILL after ``timeout_ms``; false when that was needed.

        A frozen process is woken, so that it can end in order. Does nothing when it does not run.
        """
        self.find()
        orderly = True
        if self._try_signal(signal.SIGTERM):
            self._try_signal(signal.SIGCONT)  # who was awake may be gone by now
            with trio.move_on_after(timeout_ms / 1000):
                await self.wait_stopped()
            if self.pid() is not None:
                orderly = False
                await self.kill()
        self.pid_file.unlink(missing_ok=True)
        return orderly

    async def kill(self) -> None:
        """End the process with SIGKILL and wait until it is gone; does nothing when it does not run."""
        if self._try_signal(signal.SIGKILL):
            await self.wait_stopped()

    async def wait_stopped(self) -> None:
        """Wait until the process is gone."""
        while self.state() is not ProcessState.STOPPED:  # noqa: ASYNC110  (another program's child sends us no event)
            await trio.sleep(POLL_S)

    def log_tail(self, *, lines: int = 5) -> str:
        """Return the last lines of what the process printed."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(0, self.log_file.stat().st_size - 8_192))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def ending(self) -> "Ending":
        """Return how the process ended last, as far as its log says; nothing of one that runs."""
        lines = [line.strip() for line in self.log_tail(lines=LOG_LINES_MAX).splitlines() if line.strip()]
        ending = _ending(lines)
        if ending.code == "killed" and _is_full(self.log_file):
            return Ending("disk_full", "its log breaks off, and its disk has no room; make room and start it again")
        return ending

    def _record(self) -> _PidFile:
        try:
            return msgspec.json.decode(self.pid_file.read_bytes(), type=_PidFile)
        except (OSError, msgspec.MsgspecError):
            return _NOBODY


_NOBODY = _PidFile(0, "")


def _is_full(path: Path) -> bool:
    try:
        return os.statvfs(path).f_bavail == 0
    except OSError:
        return False


def _ending(lines: Sequence[str]) -> Ending:
    """Read the last words of the newest life that a log tells of."""
    for line in reversed(lines):
        try:
            entry = msgspec.json.decode(line, type=_LogLine)
        except msgspec.MsgspecError:
            if found := _REFUSAL.fullmatch(line):
                return Ending(found[1], found[2])
            if found := _RAISED.fullmatch(line):
                return Ending("crashed", found[1])
            continue
        if entry.event == "stopped":
            is_error = entry.level == "error"
            return Ending(entry.code or "failed", entry.why, entry.exit) if is_error else Ending("ended", "in order", 0)
        if entry.event in _BEGINNINGS:
            return Ending("killed", "its log breaks off: kill -9, no memory left, or a power cut")
    return Ending("failed", lines[-1]) if lines else Ending("never_started", "its log says nothing")


def _running_with(arguments: Sequence[str], mark: dict[str, str]) -> int | None:
    """Return the pid of a process with exactly these arguments and this mark; without /proc none is found."""
    wanted = "".join(f"{argument}\0" for argument in arguments).encode()
    marks = {f"{name}={value}".encode() for name, value in mark.items()}
    for path in _STAT.parent.parent.glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == wanted and marks <= {*path.with_name("environ").read_bytes().split(b"\0")}:
                return int(path.parent.name)
        except OSError:
            continue  # it has ended meanwhile, or is somebody else's
    return None


def _look_at(pid: int) -> tuple[str, str] | None:
    """Return when a process began, in words that no other process shares, and its state letter; None when gone.

    A child of ours that has ended is reaped on the way, so that it does not stay as a zombie.
    """
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return None
    except (ChildProcessError, OSError):
        pass
    if _STAT.exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()
        state, threads, began = fields[0], int(fields[17]), fields[19]
        # A killed process looks gone while its last threads still hold its ports and locks.
        is_ending = state in _GONE_STATES and threads > 1
        return f"{_BOOT_ID.read_text().strip()}:{began}", _ENDING if is_ending else state
    return _ask_ps(["ps", "-o", "state=,lstart=", "-p", str(pid)])


def _ask_ps(command: Sequence[str]) -> tuple[str, str] | None:
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split(maxsplit=1)
    return (answer[1].strip(), answer[0][0]) if len(answer) == 2 else None
