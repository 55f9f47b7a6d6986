"""The database port: operations are generators of SQL, a driver runs them inside one transaction.

An operation is a plain function that yields statements and is sent their answers. It does no I/O, knows no driver, and
may be run again from the start (a deadlock on Postgres), so it takes everything it needs, fresh ids and the time
included, as arguments. What it raises undoes what it did, and nothing else.

The SQL text is written once for SQLite and Postgres, with `$1` parameters. Text, numbers and bytes only: bodies
are JSON text.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Literal, NamedTuple, ParamSpec, Protocol, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

Value = str | int | float | bytes | None


class Statement:
    """One SQL statement with its parameters."""

    __slots__ = ("args", "sql")

    def __init__(self, sql: str, *args: Value) -> None:
        self.sql = sql
        self.args = args


class Row(Statement):
    """Answers with the first row, a tuple-like, or None.

    `lock="wait"` holds the row until the transaction ends; `lock="skip"` passes over rows that somebody else holds.
    SQLite needs neither: its writers stand in line.
    """

    __slots__ = ("lock",)

    def __init__(self, sql: str, *args: Value, lock: Literal["wait", "skip"] | None = None) -> None:
        super().__init__(sql, *args)
        self.lock = lock


class Rows(Statement):
    """Answers with all rows, a list of tuple-likes."""

    __slots__ = ()


class Do(Statement):
    """Answers with the number of rows written."""

    __slots__ = ()


Operation = Generator[Statement, Any, T]

Edge = Literal["begun", "written", "committed"]
"""The edges of a transaction: before its first statement; its statements done, not committed; on disk, not answered."""

EdgeWatch = Callable[[Edge, str], None]
"""Told of each edge of each writing transaction, with the operation's name, by the driver. Tests crash there."""


class Dialect(NamedTuple):
    """Where the two databases differ in SQL that is no operation on objects: the schema, and moving whole tables."""

    serial: str
    """The column type of a key that counts."""
    binary: str
    """The column type of bytes."""
    lock: str | None
    """A statement that makes other servers wait with their migrations, where a write transaction alone does not."""
    columns: str
    """Answers with table, column, place in the primary key (0: none) and type of all columns, in order."""
    counter: tuple[str, ...]
    """Statements that set where `{table}.seq` goes on counting, above `{number}`."""
    others: str | None
    """Answers with the number of other programs of ours on the database, where the data folder's lock can not tell."""


class Database(Protocol):
    """What a driver offers. Failures of the database itself are raised as `errors.Unavailable`."""

    async def run(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in a read-write transaction; return after the commit is on disk.

        A caller that is cancelled while waiting does not undo a commit under way.
        """
        ...

    async def read(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a short look-up on one snapshot. It may run on the caller's thread: at most some 100 rows."""
        ...

    async def scan(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a long read on one snapshot, off the caller's thread."""
        ...

    async def close(self) -> None:
        """Finish what was begun and let go of the database."""
        ...
