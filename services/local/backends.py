"""The two databases behind :mod:`services.local.database`; everything here runs in worker threads.

:class:`SqliteFile` and :class:`PostgresServer` differ in how a store is locked, how a connection is set up, and in
what the driver's errors mean. A work sees neither: it gets a SQLAlchemy connection inside a transaction.
"""

import fcntl
import hashlib
import os
import sqlite3
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from consensus.ledger.errors import InvariantError, LocalError, StorageError
from services.local.schema import bring_up_to_date, version_table
from services.local.sqlite import disk_error, sync_folder, typed_errors
from services.local.urls import shown

CONNECTIONS_MAX = 5
"""One that writes, the others read."""
_BUSY_S = 5.0
"""How long one attempt waits for who holds the file, an operator's shell say."""
_LOCK_MS = 5_000
"""How long a new owner waits for the session of one that died to end."""
_CONNECT_S = 5
_SWITCH_S = 0.0002

_PRAGMAS = (
    # Readers do not block the writer, and one sync of one file makes a transaction durable.
    "PRAGMA journal_mode = WAL",
    # Sync the log at every commit: what was returned survives a power cut. NORMAL would lose the last ones.
    "PRAGMA synchronous = FULL",
    # Move the log into the database each 8 MiB: seldom enough that pages written again and again move once.
    "PRAGMA wal_autocheckpoint = 2048",
    # After a burst the log's file shrinks to this again.
    "PRAGMA journal_size_limit = 16777216",
    # 32 MiB of pages in memory for each connection.
    "PRAGMA cache_size = -32768",
    # Sorting of a page of a listing needs no file.
    "PRAGMA temp_store = MEMORY",
)

_NOTICED = ("-c tcp_keepalives_idle=10", "-c tcp_keepalives_interval=5", "-c tcp_keepalives_count=3")
"""The server notices within half a minute that we vanished: by default it keeps our session and lock for two hours."""

_LOST = {"57P01", "57P02", "57P03", "53300"}
"""The server ends, starts, or has no room for one more session."""
_STANDBY = "25006"
"""To who writes: the server has become a standby. A reader's work that writes gets the same, and is wrong."""
_REPEAT = {"40001", "40P01", "55P03", "57014"}
"""The transaction lost against another one, or was ended by an administrator."""

Result = TypeVar("Result")
Work = Callable[[sqlalchemy.Connection], Result]


class ServerLost(Exception):
    """The database server is away at present, or wants the transaction once more. Only inside of this package."""


class Backend(ABC):
    """One store: a connection that writes and a few that read."""

    is_server = False

    def __init__(self, url: URL, migrations: str, *, is_shared: bool) -> None:
        """Keep what is needed to open it."""
        self.name = shown(url)
        self.trouble = ""
        self.is_over = False
        """Set before :meth:`close`: a thread that nobody waits for any more closes what it has."""
        self._url, self._migrations, self._is_shared = url, migrations, is_shared
        self._engine: sqlalchemy.Engine | None = None
        self._writer: sqlalchemy.Connection | None = None

    @abstractmethod
    def open(self) -> None:
        """Take the store over and bring its tables up to date; may be called again after :class:`ServerLost`."""

    @abstractmethod
    def close(self) -> None:
        """Close all connections, then let go of the lock; twice is harmless."""

    @abstractmethod
    def ready(self) -> None:
        """Make sure that there is a session to write with."""

    @abstractmethod
    def write(self, work: Work[Result]) -> Result:
        """Run a work in a transaction of the writer, and commit it."""

    @abstractmethod
    def read(self, work: Work[Result]) -> Result:
        """Run a work in a transaction of a reader, and roll it back."""

    def _disposed(self) -> None:
        writer, self._writer = self._writer, None
        engine, self._engine = self._engine, None
        with suppress(SQLAlchemyError):
            if writer is not None:
                writer.close()
            if engine is not None:
                engine.dispose()


class SqliteFile(Backend):
    """A file of this machine, with its lock beside it."""

    def __init__(self, url: URL, migrations: str, *, is_shared: bool) -> None:
        """Keep what is needed to open it."""
        super().__init__(url, migrations, is_shared=is_shared)
        self._path = Path(url.database or "")
        self._lock: int | None = None

    def open(self) -> None:
        """See :class:`Backend`."""
        self._lock = _locked(self._path, is_shared=self._is_shared)
        # SQLite lets go of the interpreter's lock at every row. Beside a busy event loop each comes back only after the
        # switch interval: 256 rows took half a second with the usual 5 ms.
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
        try:
            with self._typed():
                self._engine = sqlalchemy.create_engine(
                    self._url,
                    poolclass=QueuePool,
                    pool_size=CONNECTIONS_MAX,
                    max_overflow=0,
                    connect_args={"timeout": _BUSY_S, "check_same_thread": False},
                )
                event.listen(self._engine, "connect", _set_up_sqlite)
                event.listen(self._engine, "begin", _begin_sqlite)
                self._writer = self._engine.connect().execution_options(begin="BEGIN IMMEDIATE")
                with self._writer.begin():
                    bring_up_to_date(self._writer, self._migrations)
            sync_folder(self._path.parent)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See :class:`Backend`."""
        self._disposed()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def write(self, work: Work[Result]) -> Result:
        """See :class:`Backend`."""
        if self._writer is None:
            raise InvariantError(f"{self.name} is not open")
        with self._typed(is_waiting=True), self._writer.begin():
            return work(self._writer)

    def ready(self) -> None:
        """See :class:`Backend`; a file does not go away."""

    def read(self, work: Work[Result]) -> Result:
        """See :class:`Backend`."""
        if self._engine is None:
            raise LocalError("store_closed", f"{self.name} is not open")
        with self._typed(), self._engine.connect() as connection:
            return work(connection)

    @contextmanager
    def _typed(self, *, is_waiting: bool = False) -> Iterator[None]:
        """Say what the driver's errors mean; those of a work's own statements stay as they are.

        With ``is_waiting`` somebody else's lock, an operator's shell say, is as a server that is away.
        """
        try:
            yield
        except DBAPIError as error:
            if not isinstance(error.orig, sqlite3.Error) or _is_of_the_statement(error.orig):
                raise
            if is_waiting and _primary(error.orig) == sqlite3.SQLITE_BUSY:
                self.trouble = _words(error)
                raise ServerLost(self.trouble) from None
            with typed_errors(self._path):
                raise error.orig from None


class PostgresServer(Backend):
    """A database of a server, which may go away and come back."""

    is_server = True

    def __init__(self, url: URL, migrations: str, *, is_shared: bool) -> None:
        """Keep what is needed to open it."""
        super().__init__(url, migrations, is_shared=is_shared)
        self._connections: list[Any] = []

    def open(self) -> None:
        """See :class:`Backend`."""
        try:
            with self._typed():
                self._connect()
        except DBAPIError as error:
            self.close()
            raise LocalError("bad_database", f"{self.name}: {_words(error)}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See :class:`Backend`."""
        self._disposed()
        for connection in self._connections:
            connection.close()

    def ready(self) -> None:
        """See :class:`Backend`."""
        if self._writer is None or self._writer.closed or self._writer.invalidated:
            with self._typed():
                self._connect()

    def write(self, work: Work[Result]) -> Result:
        """See :class:`Backend`."""
        if self._writer is None:
            raise InvariantError(f"{self.name} is not open")
        with self._typed(is_writing=True), self._writer.begin():
            return work(self._writer)

    def read(self, work: Work[Result]) -> Result:
        """See :class:`Backend`."""
        if self._engine is None:
            raise LocalError("store_closed", f"{self.name} is not open")
        reading = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with self._typed(), reading.connect() as connection:
            try:
                return work(connection)
            finally:
                if self.is_over:
                    connection.invalidate()

    def _connect(self) -> None:
        """Open the session that writes, with its lock, and look at the tables."""
        if self._engine is None:
            self._engine = self._new_engine()
        _dropped(self._writer)
        self._writer = None
        writer = self._engine.connect()
        try:
            with writer.begin():
                self._take_lock(writer)
                _check_server(writer, self.name)
                bring_up_to_date(writer, self._migrations)
        except BaseException:
            _dropped(writer)
            raise
        self._writer = writer

    def _new_engine(self) -> sqlalchemy.Engine:
        # What was returned survives a power cut, whatever the server does by default.
        options = [*self._url.normalized_query.get("options", ()), "-c synchronous_commit=on", *_NOTICED]
        engine = sqlalchemy.create_engine(
            self._url,
            poolclass=QueuePool,
            pool_size=CONNECTIONS_MAX,
            max_overflow=0,
            connect_args={
                "options": " ".join(options),
                "connect_timeout": _CONNECT_S,
                # A machine that vanished is noticed within half a minute.
                "keepalives_idle": 10,
                "tcp_user_timeout": 20_000,
            },
        )
        event.listen(engine, "do_connect", self._new_connection)
        return engine

    def _new_connection(self, dialect: sqlalchemy.Dialect, _record: object, _given: object, options: Any) -> Any:
        """Connect, and remember it: SQLAlchemy forgets one whose server dies while it is set up."""
        connection = dialect.connect(**options)
        self._connections = [one for one in self._connections if not one.closed] + [connection]
        return connection

    def _take_lock(self, writer: sqlalchemy.Connection) -> None:
        """Lock the store for as long as this session lives, or a shared one for the look at its tables."""
        schema = writer.scalar(sqlalchemy.select(sqlalchemy.func.current_schema()))
        name = f"{schema}.{version_table(self._migrations)}"
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
        lock = sqlalchemy.func.pg_advisory_xact_lock if self._is_shared else sqlalchemy.func.pg_advisory_lock
        writer.execute(sqlalchemy.text(f"SET LOCAL lock_timeout = {_LOCK_MS}"))
        try:
            writer.execute(sqlalchemy.select(lock(key)))
        except DBAPIError as error:
            if _state(error) == "55P03":
                raise LocalError("store_locked", f"another process holds {self.name}") from None
            raise

    @contextmanager
    def _typed(self, *, is_writing: bool = False) -> Iterator[None]:
        """Say what the driver's errors mean; those of a work's own statements stay as they are."""
        try:
            yield
        except DBAPIError as error:
            if is_writing and _state(error) == _STANDBY:
                self.trouble = _words(error)
                raise ServerLost(self.trouble) from None
            self._raise_typed(error)

    def _raise_typed(self, error: DBAPIError) -> NoReturn:
        state, words = _state(error), _words(error)
        is_refused = isinstance(error, sqlalchemy.exc.OperationalError) and not state
        if error.connection_invalidated or is_refused or state in _LOST or state.startswith("08"):
            self.trouble = words
            raise ServerLost(words) from None
        match state:
            case _ if state in _REPEAT:
                self.trouble = words
                raise ServerLost(words) from None
            case "53100":
                raise StorageError("disk_full", f"{self.name}: {words}") from None
            case "58030":
                raise StorageError("disk_failed", f"{self.name}: {words}") from None
            case "XX001" | "XX002":
                raise StorageError("corrupted", f"{self.name}: {words}") from None
            case _:
                raise error


def backend_of(url: str, migrations: str, *, is_shared: bool) -> Backend:
    """Return the store that a URL names, not open yet.

    Raises:
        LocalError: ``bad_database``.
    """
    try:
        parsed = make_url(url)
        kind = parsed.get_backend_name()
        driver = parsed.get_driver_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise LocalError("bad_database", "the database's URL cannot be read") from None
    match kind, driver:
        case "sqlite", "pysqlite" if parsed.database not in (None, "", ":memory:") and not parsed.query:
            return SqliteFile(parsed, migrations, is_shared=is_shared)
        case "postgresql", "psycopg" if parsed.database:
            return PostgresServer(parsed, migrations, is_shared=is_shared)
        case _:
            raise LocalError("bad_database", "a store's URL is sqlite:///PATH or postgresql+psycopg://HOST/DATABASE")


def _locked(path: Path, *, is_shared: bool) -> int:
    """Make the folder and lock the file's name; the lock lives as long as the descriptor, and ends with the process."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Not the file itself: to close any descriptor of it would drop SQLite's own locks.
        descriptor = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not path.exists():  # its log takes the same mode
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise disk_error(path.parent, error.errno, error.strerror or "") from None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise LocalError("store_locked", f"another process holds {path}") from None
    return descriptor


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # Transactions begin where SQLAlchemy says, not where the driver guesses.
    connection.isolation_level = None
    for pragma in _PRAGMAS:
        connection.execute(pragma)


def _begin_sqlite(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def _dropped(connection: sqlalchemy.Connection | None) -> None:
    """End a session, and with it its locks."""
    if connection is not None:
        with suppress(SQLAlchemyError):
            connection.invalidate()
            connection.close()


def _check_server(connection: sqlalchemy.Connection, name: str) -> None:
    """Refuse a server that may lose what it has answered, or cannot keep our texts."""
    names = ("fsync", "full_page_writes", "server_encoding")
    settings = {one: connection.execute(sqlalchemy.text(f"SHOW {one}")).scalar_one() for one in names}
    wrong = [f"{one} = {value}" for one, value in settings.items() if value not in ("on", "UTF8")]
    if wrong:
        raise LocalError("bad_database", f"{name} may lose what it answered, or change texts: {', '.join(wrong)}")


def _is_of_the_statement(error: sqlite3.Error) -> bool:
    """Whether the statement or its values are wrong, which is a bug or a broken rule of the tables: not the disk."""
    if not isinstance(error, sqlite3.OperationalError | sqlite3.DatabaseError):
        return True
    return _primary(error) in (0, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH)


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _state(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _words(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split())
