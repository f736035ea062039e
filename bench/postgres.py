"""A PostgreSQL of one's own in a folder: unix socket only, every commit synced; for benches, demos and tests."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from consensus.ledger.errors import LocalError

PLACES = ("usr/lib/postgresql/*/bin", "usr/local/pgsql/bin", "opt/homebrew/opt/postgresql*/bin")
"""Where its programs lie if they are not in the search path."""
START_S_MAX = 60
_SAID_BYTES_MAX = 2_000
_USER = "postgres" if os.geteuid() == 0 else None
"""PostgreSQL refuses to run as root."""
_GUARD = 'exec 3<&0; "$@" 3<&- & server=$!; { cat <&3; kill -QUIT $server; } >/dev/null 2>&1 & wait $server'
"""A shell that ends the server once its own input ends: also when who started it was killed."""
_GROUPS = None if _USER is None else [_USER]


class PostgresCluster:
    """A server with its files in a folder; it can be stopped at once, as by a crash, and started again."""

    def __init__(self, folder: Path, programs: Path) -> None:
        """Name the folder, which must be its user's, and the server's programs."""
        self.folder, self._programs = folder, programs
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._schemas = 0

    def create(self) -> None:
        """Make the files of an empty server."""
        self._run(
            *("initdb", "--auth=trust", "--encoding=UTF8", "--no-locale", "--username=hansa", "-D", self._data),
        )

    def start(self) -> None:
        """Start the server, if it does not run, and wait until it takes connections."""
        if self._process is not None:
            return
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("sh", "-c", _GUARD, "sh"),
                    *self._command(
                        *("postgres", "-D", self._data, "-k", self.folder),
                        *("-c", "listen_addresses=", "-c", "max_wal_size=4GB"),
                        # After a crash one sync of the disk, not one for each file.
                        *("-c", "recovery_init_sync_method=syncfs"),
                    ),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                user=_USER,
                group=_USER,
                extra_groups=_GROUPS,
            )
        deadline = time.monotonic() + START_S_MAX
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "log").read_text("utf-8", "replace")[-_SAID_BYTES_MAX:]
                raise LocalError("postgres_failed", f"PostgreSQL does not start in {self.folder}: {said}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it at once, as a crash would: the next start recovers; twice is harmless."""
        process, self._process = self._process, None
        if process is not None:
            process.communicate()

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        self._databases += 1
        name = f"d{os.getpid()}_{self._databases}"
        self._run("createdb", "--host", self.folder, "--username", "hansa", name)
        return f"postgresql+psycopg://hansa@/{name}?host={quote(str(self.folder))}"

    def new_schema(self) -> str:
        """Make an empty schema, which takes a moment only, and return the URL of a database that begins there."""
        self._schemas += 1
        name = f"s{self._schemas}"
        self._run(
            *("psql", "--quiet", "--host", self.folder, "--username", "hansa", "--dbname", "postgres"),
            *("--command", f"CREATE SCHEMA {name}"),
        )
        options = quote(f"-c search_path={name}")
        return f"postgresql+psycopg://hansa@/postgres?host={quote(str(self.folder))}&options={options}"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _is_ready(self) -> bool:
        asked = self._command("pg_isready", "--quiet", "--host", self.folder)
        return subprocess.run(asked, stdin=subprocess.DEVNULL, check=False).returncode == 0

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            self._command(program, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            user=_USER,
            group=_USER,
            extra_groups=_GROUPS,
        )
        if done.returncode:
            raise LocalError("postgres_failed", f"{program}: {done.stderr.strip()[-_SAID_BYTES_MAX:]}")

    def _command(self, program: str, *arguments: str | Path) -> list[str]:
        return [str(self._programs / program), *map(str, arguments)]


@contextmanager
def postgres_server() -> Iterator[PostgresCluster]:
    """Make a server in a new folder, start it, and remove it all at the end.

    Raises:
        LocalError: ``postgres_missing``, ``postgres_failed``.
    """
    programs = _programs()
    # Not below another temporary folder: the server's user must be able to enter it.
    folder = Path(tempfile.mkdtemp(prefix="hansa-postgres-"))
    try:
        if _USER is not None:
            shutil.chown(folder, _USER)
        cluster = PostgresCluster(folder, programs)
        try:
            cluster.create()
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgres_cluster() -> Iterator[str]:
    """Give the URL of an empty database on a server of its own; errors as :func:`postgres_server`."""
    with postgres_server() as server:
        yield server.new_database()


def has_postgres() -> bool:
    """Tell whether a server can be started here."""
    try:
        _programs()
    except LocalError:
        return False
    return True


def _programs() -> Path:
    """Return the folder of the newest ``initdb`` and ``postgres``."""
    found = [path for place in PLACES for path in Path("/").glob(f"{place}/initdb")]
    if (named := shutil.which("initdb")) is not None:
        found.append(Path(named).resolve())
    if not found:
        raise LocalError("postgres_missing", "PostgreSQL is not installed (Debian: apt-get install postgresql)")
    if _USER is not None and _USER not in {entry.pw_name for entry in pwd.getpwall()}:
        raise LocalError("postgres_missing", f"PostgreSQL does not run as root, and there is no user {_USER}")
    return max(found).parent
