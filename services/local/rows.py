"""Statements that SQLite and PostgreSQL spell alike, but SQLAlchemy only for each of them."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import sqlalchemy
from sqlalchemy.dialects import postgresql, sqlite

_SIZES = (512, 64, 8, 1)
"""Values in one list: few sizes, so that all these statements stay prepared."""

Value = TypeVar("Value")


def insert_new(connection: sqlalchemy.Connection, table: sqlalchemy.Table) -> sqlalchemy.Insert:
    """Return an INSERT that leaves rows out whose key is there already."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


def insert_or_update(
    connection: sqlalchemy.Connection, table: sqlalchemy.Table, key: str, values: dict[str, object]
) -> sqlalchemy.Insert:
    """Return an INSERT of one row that takes the place of the one with its key."""
    others = {name: value for name, value in values.items() if name != key}
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table).values(values).on_conflict_do_update(index_elements=[key], set_=others)
    return postgresql.insert(table).values(values).on_conflict_do_update(index_elements=[key], set_=others)


def lists_of(values: Sequence[Value]) -> Iterator[Sequence[Value]]:
    """Cut values into lists for ``column.in_``, of few lengths; the last value fills the last list up."""
    start = 0
    while start < len(values):
        size = next(size for size in reversed(_SIZES) if size >= len(values) - start or size == _SIZES[0])
        part = list(values[start : start + size])
        yield part + part[-1:] * (size - len(part))
        start += size
