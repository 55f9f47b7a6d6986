"""SQLite's failures in words: what a client and the operator can do.

Rule: what is not listed here is a bug of ours and passes as it is.
"""

from __future__ import annotations

import sqlite3

from perdure.errors import OperatorError, Unavailable

_DAMAGED = (
    "the database file is damaged ({error}). Stop the server and bring back a backup: `perdure restore FILE --force`."
)
_CAUSES = {
    sqlite3.SQLITE_FULL: "the disk that holds the database is full. Free space there, then retry.",
    sqlite3.SQLITE_IOERR: "the disk refused a write or read ({error}). Check the disk and its free space, then retry.",
    sqlite3.SQLITE_READONLY: "the database can not be written ({error}). "
    "Check the permissions of the data folder and whether its disk is mounted read-only.",
    sqlite3.SQLITE_CANTOPEN: "the database can not be opened ({error}). "
    "Check that the data folder exists and can be written, and that its disk has room.",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_BUSY: "another program holds the database locked. Close it, then retry.",
    sqlite3.SQLITE_PROTOCOL: "another program holds the database locked. Close it, then retry.",
    sqlite3.SQLITE_NOMEM: "the machine is out of memory. Free some, then retry.",
}
_AT_THE_START = {
    sqlite3.SQLITE_FULL: "its disk is full: free space there",
    sqlite3.SQLITE_IOERR: "check its disk and the free space there",
    sqlite3.SQLITE_READONLY: "check the folder's permissions and whether its disk is mounted read-only",
    sqlite3.SQLITE_CANTOPEN: "check the folder's permissions",
    sqlite3.SQLITE_CORRUPT: "bring back a backup with `perdure restore FILE --force`",
    sqlite3.SQLITE_NOTADB: "bring back a backup with `perdure restore FILE --force`",
    sqlite3.SQLITE_BUSY: "close the other program that holds it",
}


def code_of(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code, 0 if the error came from Python's side."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def in_words(error: sqlite3.Error) -> str:
    """Return one line for the log: SQLite's text and the name of its code."""
    return f"{error} ({getattr(error, 'sqlite_errorname', 'no code')})"


def is_damage(error: sqlite3.Error) -> bool:
    """Say whether SQLite found the file damaged."""
    return code_of(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_database_failure(error: sqlite3.Error) -> bool:
    """Say whether the database failed, not a statement of ours."""
    return code_of(error) in _CAUSES


def translated(error: sqlite3.Error) -> sqlite3.Error | Unavailable:
    """Say what a client and the operator can do; errors that are our own bugs pass as they are."""
    cause = _CAUSES.get(code_of(error))
    if cause is None:
        return error
    return Unavailable(f"The database failed, nothing of this request was stored: {cause.format(error=error)}")


def refusal(path: object, what: str, error: sqlite3.Error) -> OperatorError:
    """Return the one line for a database that can not be taken into use; `what` is `opened` or `used`."""
    advice = _AT_THE_START.get(code_of(error), "check the file and its folder")
    return OperatorError(f"the database {path} can not be {what}: {error}; {advice}")
