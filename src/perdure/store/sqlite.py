"""The SQLite driver: one writer thread that commits in groups, readers on connections of their own.

Rules. Whoever waits while a commit is being written to disk shares the next one, so durable commits
(`synchronous=FULL`) stay cheap under load. An answer is given only after the commit that holds it; if that commit
fails, nobody in it gets one.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from perdure.errors import OperatorError, Unavailable
from perdure.store.db import Dialect, Edge, EdgeWatch, Operation, Row, Rows, Statement
from perdure.store.migrations import apply_next
from perdure.store.sqlite_failures import code_of, in_words, is_database_failure, refusal, translated
from perdure.store.sqlite_file import look_before_opening

T = TypeVar("T")
P = ParamSpec("P")

log = logging.getLogger(__name__)

OLDEST_SQLITE = (3, 35, 0)  # the first with RETURNING
DIALECT = Dialect(
    serial="INTEGER PRIMARY KEY AUTOINCREMENT",
    binary="BLOB",
    lock=None,
    columns="SELECT m.name, c.name, c.pk, c.type FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c "
    "WHERE m.type = 'table' ORDER BY m.name, c.cid",
    counter=(
        "DELETE FROM sqlite_sequence WHERE name = '{table}'",
        "INSERT INTO sqlite_sequence (name, seq) VALUES ('{table}', {number})",
    ),
    others=None,
)
BATCH = 256  # operations in one commit at most: bounds the wait of the first and the size of a rollback
SCAN_THREADS = 2
BUSY_SECONDS = 5.0
WAL_PAGES = 16000  # 64 MB between checkpoints: a page that is written often is copied back once

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = OFF",
    f"PRAGMA wal_autocheckpoint = {WAL_PAGES}",
    "PRAGMA cache_size = -32000",
)


class _Write(NamedTuple):
    """One operation that waits for the writer, and who waits for its answer."""

    begin: partial[Operation[Any]]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class _Outcome(NamedTuple):
    """What an operation came to: an answer, or the error for its caller."""

    answer: Any
    error: BaseException | None


class _MoreStatementsError(Exception):
    """A read takes more statements than one: it needs a transaction to see one snapshot."""


class _UndoOneError(Exception):
    """An operation failed after it had written, in a batch without savepoints."""


class SqliteDatabase:
    """`Database` on one SQLite file. `path` must lie in a folder that exists."""

    def __init__(self, path: Path, connection: sqlite3.Connection, watch: EdgeWatch | None = None) -> None:
        self._path = path
        self._writer = _Writer(connection, watch)
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._scanners = ThreadPoolExecutor(SCAN_THREADS, thread_name_prefix="perdure-scan")
        self._closed = False
        self._longer: set[Callable[..., Any]] = set()  # reads that were seen to take several statements
        self._told: set[int] = set()  # kinds of failing reads that the log has: each is told once

    @classmethod
    async def open(cls, path: Path, *, watch: EdgeWatch | None = None, newest: int | None = None) -> SqliteDatabase:
        """Open or make the file and bring its schema up to date. Raises OperatorError with one line.

        `watch` is called on the writer thread. With `newest`, no migration after that version is applied.
        """
        return cls(path, await asyncio.to_thread(_open_here.open, path, newest), watch)

    async def run(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run on the writer thread; return after the commit is on disk."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._writer.put(_Write(partial(operation, *args, **kwargs), future, loop))
        return await future

    async def read(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run at once on the calling thread: a look-up is shorter than handing it to another thread."""
        if operation not in self._longer:
            try:
                return self._look_once(operation(*args, **kwargs))
            except _MoreStatementsError:
                self._longer.add(operation)
        return self._look(operation(*args, **kwargs))

    async def scan(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run on one of the scan threads."""
        self._check_open()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._scanners, self._look, operation(*args, **kwargs))

    async def close(self) -> None:
        """Commit what was queued, then close. What comes later is refused with Unavailable."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._scanners.shutdown()
        for connection in self._readers:
            connection.close()
        self._writer.close()
        _open_here.closed(self._path)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("The server is shutting down; retry when it is back.")

    def _look_once(self, steps: Operation[T]) -> T:
        """Run a read of one statement, which is a snapshot by itself. Raises _MoreStatementsError at a second one."""
        self._check_open()
        try:
            return _drive(self._reader().cursor(), steps, most=1)
        except sqlite3.Error as error:
            raise self._read_failure(error) from error

    def _look(self, steps: Operation[T]) -> T:
        """Run a read-only operation on this thread's connection, in one snapshot."""
        self._check_open()
        try:
            cursor = self._reader().cursor()
            cursor.execute("BEGIN")
            try:
                return _drive(cursor, steps)
            finally:
                cursor.execute("ROLLBACK")  # nothing was written; also resets a statement with rows left
        except sqlite3.Error as error:
            raise self._read_failure(error) from error

    def _read_failure(self, error: sqlite3.Error) -> sqlite3.Error | Unavailable:
        if code_of(error) == sqlite3.SQLITE_READONLY or not is_database_failure(error):
            return error  # a writing statement in a read, or a wrong one: a bug of ours
        if code_of(error) not in self._told:
            self._told.add(code_of(error))
            log.error("reads fail: %s", in_words(error))
        return translated(error)

    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = _connect(self._path)
            connection.execute("PRAGMA query_only = ON")
            connection.execute("PRAGMA cache_size = -16000")
            self._local.connection = connection
            self._readers.append(connection)
        return connection


class _Writer:
    """The thread that owns the writing connection."""

    def __init__(self, connection: sqlite3.Connection, watch: EdgeWatch | None) -> None:
        self._connection = connection
        self._watch = watch
        self._cursor = connection.cursor()
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="perdure-writer", daemon=True)
        self._thread.start()

    def put(self, write: _Write) -> None:
        """Queue one operation."""
        with self._gate:
            if self._closed:
                raise Unavailable("The server is shutting down; retry when it is back.")
            self._queue.put(write)

    def close(self) -> None:
        """Let the thread finish its queue, then copy the log back into the file and close."""
        with self._gate:
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        with suppress(sqlite3.Error):  # a full disk: the log stays beside the file and is read at the next start
            self._cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._cursor.close()
        self._connection.close()

    def _work(self) -> None:
        going = True
        while going:
            batch, going = self._take()
            if batch:
                _deliver(batch, self._commit(batch))

    def _take(self) -> tuple[list[_Write], bool]:
        """Wait for a write, take with it what else waits; also return whether to go on after it."""
        write = self._queue.get()
        batch: list[_Write] = []
        while write is not None:
            batch.append(write)
            if len(batch) == BATCH:
                return batch, True
            try:
                write = self._queue.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _commit(self, batch: list[_Write]) -> list[_Outcome]:
        """Run a batch in one transaction. A failure of the database undoes all of it, for everybody."""
        try:
            try:
                outcomes = self._attempt(batch, savepoints=False)
            except _UndoOneError:
                self._roll_back()
                outcomes = self._attempt(batch, savepoints=True)
        except sqlite3.Error as error:
            self._roll_back()
            if not self._failing:
                log.error("writes fail: %s", in_words(error))  # noqa: TRY400 - one line; a full disk is no bug
            self._failing = True
            return [_Outcome(None, translated(error)) for _ in batch]
        if self._failing:
            self._failing = False
            log.info("writes work again")
        return outcomes

    def _attempt(self, batch: list[_Write], *, savepoints: bool) -> list[_Outcome]:
        """Run and commit a batch.

        Savepoints cost as much as a small insert and are hardly ever needed, as most operations that fail do so before
        they write. So the first attempt goes without; if one has to be undone after all, the batch is run again with
        them.
        """
        cursor = self._cursor
        cursor.execute("BEGIN IMMEDIATE")
        outcomes = []
        for write in batch:
            if savepoints:
                cursor.execute("SAVEPOINT one")
            self._tell("begun", [write])
            outcomes.append(self._run_one(write, savepoints=savepoints))
            if savepoints:
                cursor.execute("RELEASE one")
        self._tell("written", batch)
        cursor.execute("COMMIT")
        self._tell("committed", batch)
        return outcomes

    def _tell(self, edge: Edge, writes: list[_Write]) -> None:
        """Tell whoever watches where these operations are."""
        if self._watch is not None:
            for write in writes:
                self._watch(edge, write.begin.func.__name__)

    def _run_one(self, write: _Write, *, savepoints: bool) -> _Outcome:
        before = self._connection.total_changes  # counts rows, not changes of the schema: those belong to migrations
        try:
            return _Outcome(_drive(self._cursor, write.begin()), None)
        except BaseException as error:  # whatever it is, it is for the caller on the other thread
            if isinstance(error, sqlite3.Error) and is_database_failure(error):
                raise
            if savepoints:
                self._cursor.execute("ROLLBACK TO one")
            elif self._connection.total_changes != before:
                raise _UndoOneError from error
            return _Outcome(None, error)

    def _roll_back(self) -> None:
        """Undo the transaction, if SQLite has not done so already."""
        if self._connection.in_transaction:
            with suppress(sqlite3.Error):  # the disk is failing; a later BEGIN tells
                self._cursor.execute("ROLLBACK")


def _drive(cursor: sqlite3.Cursor, steps: Generator[Statement, Any, T], *, most: int | None = None) -> T:
    """Run an operation's statements one by one and send it their answers; after `most` raise _MoreStatementsError."""
    answer: Any = None
    taken = 0
    while True:
        try:
            statement = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        taken += 1
        if most is not None and taken > most:
            raise _MoreStatementsError
        try:
            sql, order = _nameless(statement.sql)
            args = statement.args if order is None else [statement.args[place] for place in order]
            cursor.execute(sql, args)
        except sqlite3.Error as error:
            error.add_note(f"in {statement.sql}")
            raise
        if isinstance(statement, Row):
            answer = cursor.fetchone()
        elif isinstance(statement, Rows):
            answer = cursor.fetchall()
        else:
            answer = max(cursor.rowcount, 0)


@lru_cache(maxsize=2048)
def _nameless(sql: str) -> tuple[str, tuple[int, ...] | None]:
    """Spell `$1` as `?`, and say in which order the parameters are then wanted; None: as they come, each once.

    Not `?1`: Python 3.12 up to 3.12.3 takes that for a name and warns.
    """
    order = tuple(int(number) - 1 for number in re.findall(r"\$(\d+)", sql))
    return re.sub(r"\$\d+", "?", sql), None if order == tuple(range(len(order))) else order


def _deliver(batch: list[_Write], outcomes: list[_Outcome]) -> None:
    """Give every caller its outcome, with one wake-up of each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], _Outcome]]] = {}
    for write, outcome in zip(batch, outcomes, strict=True):
        by_loop.setdefault(write.loop, []).append((write.future, outcome))
    for loop, answers in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, answers)


def _resolve(answers: list[tuple[asyncio.Future[Any], _Outcome]]) -> None:
    for future, outcome in answers:
        if future.done():  # its caller was cancelled
            continue
        if outcome.error is None:
            future.set_result(outcome.answer)
        else:
            future.set_exception(outcome.error)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        path, isolation_level=None, timeout=BUSY_SECONDS, cached_statements=1024, check_same_thread=False
    )


class _OpenHere:
    """The databases that this process has open.

    Their files must not be looked at: a process that closes any file gives up all its locks on it, SQLite's too.
    """

    def __init__(self) -> None:
        self._paths: Counter[Path] = Counter()
        self._gate = threading.Lock()

    def open(self, path: Path, newest: int | None) -> sqlite3.Connection:
        with self._gate:
            if not self._paths[path.resolve()]:
                look_before_opening(path)
            connection = _open_for_writing(path, newest)
            self._paths[path.resolve()] += 1
            return connection

    def closed(self, path: Path) -> None:
        with self._gate:
            self._paths[path.resolve()] -= 1


_open_here = _OpenHere()


def _open_for_writing(path: Path, newest: int | None) -> sqlite3.Connection:
    """Connect, set up and migrate. Raises OperatorError."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise OperatorError(
            f"this Python comes with SQLite {sqlite3.sqlite_version}; Perdure needs 3.35 or newer: use a newer Python"
        )
    try:
        connection = _connect(path)
    except sqlite3.Error as error:
        raise refusal(path, "opened", error) from None
    try:
        for pragma in _PRAGMAS:
            _patiently(connection, pragma)
        _migrate(connection, newest)
    except sqlite3.Error as error:
        connection.close()
        raise refusal(path, "used", error) from None
    except OperatorError:
        connection.close()
        raise
    return connection


def _patiently(connection: sqlite3.Connection, pragma: str) -> None:
    """Set a pragma; the change to WAL does not wait by itself while another process makes it too."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute(pragma).fetchall()
        except sqlite3.OperationalError as error:
            if code_of(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _migrate(connection: sqlite3.Connection, newest: int | None) -> None:
    more = True
    while more:
        cursor = connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            more = _drive(cursor, apply_next(DIALECT, most=newest))
            cursor.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                cursor.execute("ROLLBACK")
            raise
