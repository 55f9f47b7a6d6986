"""Whole tables out of one snapshot, and back into an empty database: what a backup holds.

Rows come and go as they are, columns and all, so the same dump fits SQLite and Postgres. Rules: tables are read in
pieces by their primary key, never whole; a dump is loaded into the schema version that it was made from, and migrated
then; all of a load is one transaction.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from perdure.errors import OperatorError
from perdure.store.db import Dialect, Do, Operation, Row, Rows
from perdure.store.migrations import apply_next, read_version, tables_of

FIRST_ROWS, MOST_ROWS = 100, 2000  # read at once
PIECE_BYTES = 4_000_000  # what a piece should weigh: the number of rows follows it
INSERT_ROWS = 50  # in one statement
BINARY = {"BLOB", "bytea"}


class Table(NamedTuple):
    """A table as it stands in the database. `binary` columns hold bytes; in a dump they are base64 text."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    binary: frozenset[str]

    @property
    def counts(self) -> bool:
        """Whether its key is a sequence that the database counts."""
        return self.key == ("seq",)


class Intake(Protocol):
    """Takes a dump. What it raises breaks the dump off."""

    def begin(self, version: int) -> None:
        """Begin a dump of that schema version. Called a second time if the database had to begin anew."""
        ...

    def begin_table(self, table: Table) -> None:
        """Begin a table; its rows follow."""
        ...

    def take(self, rows: Sequence[Sequence[Any]]) -> int:
        """Take some rows; return what they weigh, in bytes."""
        ...


RowsOf = Callable[[str], tuple[Sequence[str], Iterator[list[Any]]]]
"""Gives a dumped table's columns and its rows, from the first one whenever it is asked."""


def dump_tables(dialect: Dialect, intake: Intake) -> Operation[None]:
    """Hand all rows of all tables to `intake`, in one snapshot. Unlike other operations this one has an effect."""
    version = yield from read_version()
    intake.begin(version)
    for table in (yield from list_tables(dialect, version)):
        intake.begin_table(table)
        yield from _dump_table(table, intake)


def list_tables(dialect: Dialect, version: int) -> Operation[list[Table]]:
    """Return those tables of a schema version that are there."""
    rows = yield Rows(dialect.columns)
    return [
        Table(
            name,
            columns=tuple(row[1] for row in rows if row[0] == name),
            key=tuple(row[1] for row in sorted(rows, key=lambda one: one[2]) if row[0] == name and row[2]),
            binary=frozenset(row[1] for row in rows if row[0] == name and row[3] in BINARY),
        )
        for name in tables_of(version)
        if any(row[0] == name for row in rows)
    ]


def _dump_table(table: Table, intake: Intake) -> Operation[None]:
    columns, key = ", ".join(table.columns), ", ".join(table.key)
    places = [table.columns.index(column) for column in table.key]
    numbers = ", ".join(f"${number}" for number in range(2, len(places) + 2))
    most = FIRST_ROWS
    last: Sequence[Any] | None = None
    while True:
        after, args = (
            ("", list[Any]()) if last is None else (f"WHERE ({key}) > ({numbers}) ", [last[place] for place in places])
        )
        rows = yield Rows(f"SELECT {columns} FROM {table.name} {after}ORDER BY {key} LIMIT $1", most, *args)
        if rows:
            weight = intake.take(rows)
            last = rows[-1]
        if len(rows) < most:
            return
        most = max(1, min(MOST_ROWS, 2 * most, most * PIECE_BYTES // max(1, weight)))


def load_tables(dialect: Dialect, version: int, rows_of: RowsOf, aside: str | None = None) -> Operation[str | None]:
    """Fill a database with a dump of that schema version, then migrate it.

    A database that holds something is refused; on Postgres with `aside` its tables are moved to a schema of that name,
    or one like it. Returns the name if it was used. Raises OperatorError.
    """
    if dialect.lock is not None:
        yield Row(dialect.lock)
    yield from _refuse_others(dialect)
    used = yield from _make_room(dialect, aside)
    while (yield from apply_next(dialect, most=version)):
        pass
    tables = yield from list_tables(dialect, version)
    for table in tables:
        yield Do(f"DELETE FROM {table.name}")  # migrations make the default project
        columns, rows = rows_of(table.name)
        if set(columns) != set(table.columns):
            raise OperatorError(
                f"the backup's table {table.name} does not have the columns of schema version {version}"
            )
        yield from _load_table(table, columns, rows)
    yield from _set_counters(dialect, tables)
    while (yield from apply_next(dialect)):
        pass
    return used


def _refuse_others(dialect: Dialect) -> Operation[None]:
    if dialect.others is not None and (yield Row(dialect.others))[0]:
        raise OperatorError("another Perdure uses the database: stop all servers on it, then restore")


def _make_room(dialect: Dialect, aside: str | None) -> Operation[str | None]:
    """Drop the tables of an empty database, or move those of another one away. Raises OperatorError."""
    version = yield from read_version()
    tables = yield from list_tables(dialect, version)
    full = False
    for table in tables:
        rest = " WHERE id <> 'proj_default'" if table.name == "projects" else ""
        full = full or (yield Row(f"SELECT 1 FROM {table.name}{rest} LIMIT 1")) is not None
    if full and aside is None:
        raise OperatorError(
            "the database is not empty: restore into an empty one, or let --force move what is there out of the way"
        )
    if full:
        aside = yield from _free_schema(str(aside))
        yield Do(f"CREATE SCHEMA {aside}")
    for name in [*(table.name for table in tables), "schema_version"]:
        yield Do(f"ALTER TABLE {name} SET SCHEMA {aside}" if full else f"DROP TABLE {name}")
    return aside if full else None


def _free_schema(wanted: str) -> Operation[str]:
    """Return a name that no schema has: another restore may have been there in the same second."""
    name = wanted
    for number in itertools.count(2):
        if (yield Row("SELECT 1 FROM pg_namespace WHERE nspname = $1", name)) is None:
            break
        name = f"{wanted}_{number}"
    return name


def _load_table(table: Table, columns: Sequence[str], rows: Iterator[list[Any]]) -> Operation[None]:
    piece: list[list[Any]] = []
    for row in rows:
        if len(row) != len(columns):
            raise OperatorError(f"the backup's table {table.name} has a row of {len(row)} values: it is damaged")
        piece.append(
            [
                base64.b64decode(value) if value is not None and column in table.binary else value
                for column, value in zip(columns, row, strict=True)
            ]
        )
        if len(piece) == INSERT_ROWS:
            yield _insert(table.name, columns, piece)
            piece = []
    if piece:
        yield _insert(table.name, columns, piece)


def _insert(name: str, columns: Sequence[str], rows: list[list[Any]]) -> Do:
    numbers = iter(range(1, len(columns) * len(rows) + 1))
    values = ", ".join(f"({', '.join(f'${next(numbers)}' for _ in columns)})" for _ in rows)
    return Do(f"INSERT INTO {name} ({', '.join(columns)}) VALUES {values}", *(value for row in rows for value in row))


def _set_counters(dialect: Dialect, tables: list[Table]) -> Operation[None]:
    """Let sequences go on above all that was used: a deleted object's place must not be given away again."""
    (deleted,) = yield Row("SELECT coalesce(max(seq), 0) FROM tombstones")
    for table in tables:
        if not table.counts:
            continue
        (used,) = yield Row(f"SELECT coalesce(max(seq), 0) FROM {table.name}")
        highest = max(int(deleted), int(used))
        for statement in dialect.counter if highest else ():
            yield Row(statement.format(table=table.name, number=highest))
