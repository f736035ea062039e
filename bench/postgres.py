"""A PostgreSQL server for the time of a block: a cluster of its own in a temporary folder, on a unix socket alone.

It syncs as servers do. PostgreSQL refuses to run as root: then it runs as the system's user ``postgres``.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from consensus.ledger.errors import LocalError

PLACES = ("/usr/lib/postgresql/*/bin", "/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql*/bin")
USER = "postgres"
START_S_MAX = 60
CONNECTIONS = 100


@contextmanager
def postgres_cluster() -> Iterator[str]:
    """Give the URL of a new server's database; the server ends with the block, and its files go.

    Raises:
        LocalError: ``postgres_missing``: its programs are not installed, or do not start.
    """
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="hansa-pg-"))
    try:
        if os.geteuid() == 0:
            owner = pwd.getpwnam(USER)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        data = folder / "data"
        _run([programs / "initdb", "--auth=trust", "--encoding=UTF8", "--no-locale", f"--username={USER}", "-D", data])
        options = f"-c listen_addresses= -c max_connections={CONNECTIONS} -k {folder}"
        log = folder / "log"
        _run([programs / "pg_ctl", "-D", data, "-l", log, "-w", "-t", START_S_MAX, "-o", options, "start"])
        try:
            yield f"postgresql://{USER}@/{USER}?host={quote(str(folder))}"
        finally:
            _run([programs / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def has_postgres() -> bool:
    """Tell whether a server can be started here."""
    try:
        _programs()
    except LocalError:
        return False
    return True


def _programs() -> Path:
    """Return the folder of the newest ``initdb``."""
    found = [path for place in PLACES for path in Path("/").glob(f"{place.removeprefix('/')}/initdb")]
    if (named := shutil.which("initdb")) is not None:
        return Path(named).parent
    if not found:
        raise LocalError("postgres_missing", "no initdb is installed (Debian: apt install postgresql)")
    if os.geteuid() == 0 and USER not in {entry.pw_name for entry in pwd.getpwall()}:
        raise LocalError("postgres_missing", f"PostgreSQL does not run as root, and there is no user {USER}")
    return max(found).parent


def _run(arguments: Sequence[object]) -> None:
    """Run a program, as the user ``postgres`` where we are root.

    Raises:
        LocalError: ``postgres_missing`` with what it said.
    """
    command = [str(argument) for argument in arguments]
    if os.geteuid() == 0:
        command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", *command]
    # What it starts keeps its outputs open: to a file, or waiting for their end would never end.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        output.seek(0)
        said = output.read().decode(errors="replace").strip()
    if done.returncode:
        raise LocalError("postgres_missing", f"{Path(command[-1]).name}: {said[-500:]}")


@contextmanager
def postgres_cluster() -> Iterator[str]:
    """Give the URL of an empty database on a server of its own; errors as :func:`postgres_server`."""
    with postgres_server() as server:
        yield server.new_database()


def has_postgres() -> bool:
    """Tell whether a server can be started here."""
    return postgres_programs() is not None
