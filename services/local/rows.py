"""Statements that SQLite and PostgreSQL spell alike, but SQLAlchemy only for each of them."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy.dialects import postgresql, sqlite

_SIZES = (512, 64, 8, 1)
"""Values in one list: few sizes, so that all these statements stay prepared."""

Value = TypeVar("Value")


@cache
def insert_new(dialect: str, table: sqlalchemy.Table, *returned: sqlalchemy.Column[Any]) -> sqlalchemy.Executable:
    """Return an INSERT that leaves rows out whose key is there already, and gives these columns of the others."""
    adding = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    return adding.on_conflict_do_nothing().returning(*returned)


@cache
def insert_or_update(dialect: str, table: sqlalchemy.Table) -> sqlalchemy.Executable:
    """Return an INSERT of rows that take the place of those with their keys."""
    adding = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    keys = [column.name for column in table.primary_key]
    others = {column.name: adding.excluded[column.name] for column in table.c if column.name not in keys}
    return adding.on_conflict_do_update(index_elements=keys, set_=others)


def lists_of(values: Sequence[Value]) -> Iterator[Sequence[Value]]:
    """Cut values into lists for ``column.in_``, of few lengths; the last value fills the last list up."""
    start = 0
    while start < len(values):
        size = next(size for size in reversed(_SIZES) if size >= len(values) - start or size == _SIZES[0])
        part = list(values[start : start + size])
        yield part + part[-1:] * (size - len(part))
        start += size
