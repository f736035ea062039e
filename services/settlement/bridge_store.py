"""What the bridge keeps: how far it has read, the units that are to be issued, and every sale with its present attempt.

A page of the feed is one transaction: its sales, what has to be issued for them, and the position. A sale that is known
stays as it is, so that the same purchase read twice is one sale. SQLite, synced; calls block for the time of a write.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import msgspec

from services.local.sqlite import Tables, open_tables
from services.settlement.states import Terms

FORMAT = 1
_TABLES = (
    "CREATE TABLE place (one INTEGER PRIMARY KEY CHECK (one = 1), position INTEGER NOT NULL)",
    "CREATE TABLE issue (id TEXT PRIMARY KEY, units BLOB NOT NULL, is_done INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TABLE sale (id TEXT PRIMARY KEY, issue TEXT NOT NULL, attempt INTEGER NOT NULL, terms BLOB NOT NULL,
        state TEXT NOT NULL, code TEXT NOT NULL, tries INTEGER NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX sale_open ON sale (tries, id) WHERE state = 'OPEN'",
    "CREATE INDEX sale_failed ON sale (id) WHERE state = 'FAILED'",
)


class SaleState(StrEnum):
    """How a sale stands here."""

    OPEN = "OPEN"
    """To be placed, or on its way."""
    SETTLED = "SETTLED"
    """Units and money have moved."""
    FAILED = "FAILED"
    """Neither has; an operator may try again."""


class Sale(msgspec.Struct, frozen=True):
    """A purchase as a trade to be; ``issue`` names what has to be issued before it."""

    id: str
    issue: str
    attempt: int
    terms: Terms
    state: SaleState = SaleState.OPEN
    code: str = ""

    @property
    def event(self) -> str:
        """The id of the present attempt's event."""
        return self.id if self.attempt == 1 else f"{self.id}-{self.attempt}"


class Issue(msgspec.Struct, frozen=True):
    """Units to be issued to the seller, by unit; once for ever under its id."""

    id: str
    units: dict[str, int]


class BridgeStore:
    """Opened by :func:`open_bridge_store`; ``LocalError`` and ``StorageError`` as :mod:`services.local.sqlite`."""

    def __init__(self, tables: Tables) -> None:
        """Take over an open database."""
        self._tables = tables
        self._terms = msgspec.msgpack.Decoder(Terms)
        self._units = msgspec.msgpack.Decoder(dict[str, int])

    @property
    def position(self) -> int | None:
        """How far the feed was read, None before the first time."""
        rows = self._tables.rows("SELECT position FROM place")
        return int(rows[0][0]) if rows else None

    def take(self, position: int, issues: Sequence[Issue], sales: Sequence[Sale]) -> None:
        """Keep sales and issues that are new, and how far the feed was read."""
        with self._tables.writing() as connection:
            connection.execute("INSERT OR REPLACE INTO place VALUES (1, ?)", (position,))
            connection.executemany(
                "INSERT OR IGNORE INTO issue VALUES (?, ?, 0)",
                [(issue.id, msgspec.msgpack.encode(issue.units)) for issue in issues],
            )
            connection.executemany(
                "INSERT OR IGNORE INTO sale VALUES (?, ?, ?, ?, ?, ?, 0)",
                [
                    (sale.id, sale.issue, sale.attempt, msgspec.msgpack.encode(sale.terms), sale.state, sale.code)
                    for sale in sales
                ],
            )

    def known(self, ids: Sequence[str]) -> set[str]:
        """Return those of some ids that are sales here already."""
        marks = ", ".join("?" * len(ids))
        return {name for (name,) in self._tables.rows(f"SELECT id FROM sale WHERE id IN ({marks})", ids)}

    def unissued(self, limit: int) -> list[Issue]:
        """Return what is to be issued."""
        rows = self._tables.rows("SELECT id, units FROM issue WHERE NOT is_done ORDER BY id LIMIT ?", (limit,))
        return [Issue(name, self._units.decode(units)) for name, units in rows]

    def issued(self, issue: str) -> None:
        """Know that units were issued."""
        with self._tables.writing() as connection:
            connection.execute("UPDATE issue SET is_done = 1 WHERE id = ?", (issue,))

    def open_sales(self, limit: int) -> list[Sale]:
        """Return open sales whose units are issued, the least tried first, and count the try."""
        with self._tables.writing() as connection:
            rows = connection.execute(
                "SELECT sale.id, issue, attempt, terms, state, code FROM sale JOIN issue ON issue.id = sale.issue"
                " WHERE state = 'OPEN' AND is_done ORDER BY tries, sale.id LIMIT ?",
                (limit,),
            ).fetchall()
            connection.executemany("UPDATE sale SET tries = tries + 1 WHERE id = ?", [(row[0],) for row in rows])
        return [self._sale(*row) for row in rows]

    def put(self, sales: Sequence[Sale]) -> None:
        """Keep how sales stand now."""
        with self._tables.writing() as connection:
            connection.executemany(
                "UPDATE sale SET attempt = ?, state = ?, code = ? WHERE id = ?",
                [(sale.attempt, sale.state, sale.code, sale.id) for sale in sales],
            )

    def failed(self, after: str, limit: int) -> list[Sale]:
        """Return failed sales by id."""
        query = (
            "SELECT id, issue, attempt, terms, state, code FROM sale"
            " WHERE state = 'FAILED' AND id > ? ORDER BY id LIMIT ?"
        )
        return [self._sale(*row) for row in self._tables.rows(query, (after, limit))]

    def totals(self) -> dict[str, int]:
        """Return how many sales stand how."""
        counts = dict(self._tables.rows("SELECT state, count(*) FROM sale GROUP BY state"))
        return {state.value: counts.get(state.value, 0) for state in SaleState}

    def _sale(self, name: str, issue: str, attempt: int, terms: bytes, state: str, code: str) -> Sale:
        return Sale(name, issue, attempt, self._terms.decode(terms), SaleState(state), code)


@contextmanager
def open_bridge_store(folder: Path) -> Iterator[BridgeStore]:
    """Give the store of a folder, made where there is none; one process at a time has it.

    Raises:
        LocalError: ``store_locked``.
        StorageError: ``wrong_format`` and others.
    """
    with open_tables(folder / "bridge.db", _TABLES, FORMAT) as tables:
        yield BridgeStore(tables)
