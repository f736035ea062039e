"""The tables of a store: brought up to date by alembic, with every statement's shape known to both databases."""

import importlib
import threading
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from consensus.ledger.errors import InvariantError, StorageError
from services.local.urls import shown

KEY_TEXT = sqlalchemy.Text().with_variant(sqlalchemy.Text(collation="C"), "postgresql")
"""Texts that are sorted by their bytes, on both databases alike."""
NUMBER = sqlalchemy.BigInteger().with_variant(sqlalchemy.Integer, "sqlite")
"""Whole numbers of 64 bits; on SQLite the kind that a rising primary key needs."""

_ENVIRONMENT = Path(__file__).parent / "migrations"
_ALEMBIC = threading.Lock()
"""alembic keeps the step under way in a variable of its module."""


def version_table(migrations: str) -> str:
    """Return the name of the table that says how new a store's tables are."""
    return f"{migrations.split('.')[-2]}_version"


def bring_up_to_date(connection: sqlalchemy.Connection, migrations: str) -> None:
    """Run the steps that are due, inside the caller's transaction.

    Raises:
        StorageError: ``wrong_format``: the tables are another program's, or a newer version's.
    """
    (folder,) = importlib.import_module(migrations).__path__
    table = version_table(migrations)
    config = Config(attributes={"connection": connection, "version_table": table})
    for option, value in {
        "script_location": str(_ENVIRONMENT),
        "version_locations": folder,
        "path_separator": "newline",
    }.items():
        config.set_main_option(option, value.replace("%", "%%"))
    with _ALEMBIC:
        script = ScriptDirectory.from_config(config)
        now = set(MigrationContext.configure(connection, opts={"version_table": table}).get_current_heads())
        newest = set(script.get_heads())
        if not newest:
            raise InvariantError(f"{migrations} has no steps")
        if now == newest:
            return
        where = shown(connection.engine.url)
        if now - {step.revision for step in script.walk_revisions()}:
            raise StorageError("wrong_format", f"{where} was written by a newer version ({', '.join(sorted(now))})")
        if not now and connection.dialect.name == "sqlite" and sqlalchemy.inspect(connection).get_table_names():
            raise StorageError("wrong_format", f"{where} holds the tables of another program")
        try:
            command.upgrade(config, "head")
        except sqlalchemy.exc.ProgrammingError as error:
            if getattr(error.orig, "sqlstate", "") not in ("42P07", "42701"):
                raise
            raise StorageError("wrong_format", f"{where} holds the tables of another program") from None
