"""A look at SQLite's files before they are opened: at what SQLite passes over in silence.

After a crash SQLite reads the write-ahead log up to the first bad checksum and forgets the rest without a word; it does
not miss a log that was deleted, nor pages at the end of a file that was cut short. Here that is noticed before anything
is changed.

Rules. Only who opens the files first looks: beside others SQLite does not read the log anew. Looking changes nothing:
what it touches is put back. A torn tail, as a power cut leaves it, is no damage and holds nobody up.

The witness of what was committed is the index of the log, `-shm`. With `synchronous=FULL` a commit is counted there
after it was synced, so a log that ends before that count has lost something. After a power cut the index may be old;
then commits behind the bad place tell: at most one, the last, can have been under way.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple

from perdure.errors import OperatorError
from perdure.store.sqlite_failures import is_damage

log = logging.getLogger(__name__)

CHECK_BYTES = 256_000_000
"""Up to this size the file is checked before it is opened: 0.2 s for each 256 MB in memory, 1 s from a slow disk."""

_MAGIC = b"SQLite format 3\0"
_FORMAT = 3_007_000  # of log and index, in all versions of SQLite so far
_LOG_MAGIC = 0x377F0683  # with the lowest bit: its checksums read big-endian words
_LOG_HEAD, _FRAME_HEAD = 32, 24
_OPEN_LOCK = 128  # the byte of the index on which everybody who has the database open holds a shared lock


class Files(NamedTuple):
    """The database, its write-ahead log and the index of that."""

    database: Path
    log: Path
    log_index: Path


class Witness(NamedTuple):
    """What the index says: so many frames of the log with these salts are committed, so many of them copied back."""

    salts: bytes
    frames: int
    merged: int


class Log(NamedTuple):
    """A write-ahead log: the salts of its head, None if that can not be read, and which frames end a commit."""

    salts: bytes | None
    commits: list[int]


class Report(NamedTuple):
    """What was seen. `fault` is what a check has against the database, None if it is whole."""

    fault: str | None
    read: int = 0
    """Frames of the log that can be read."""
    lost: int | None = 0
    """Frames behind them that belong to acknowledged commits; None if that can not be told."""
    log_there: bool = True
    log_useless: bool = False
    """The head of the log can not be read, or the file is newer than what can be read of the log."""


def files_of(database: Path) -> Files:
    """Return the three paths."""
    return Files(database, Path(f"{database}-wal"), Path(f"{database}-shm"))


def look_before_opening(database: Path) -> None:
    """Look at the files; keep a copy of a damaged log and tell the operator's log what is lost.

    The process must not have this database open. Raises OperatorError if it is not fit to be opened.
    """
    files = files_of(database)
    report = examine(files, most_bytes=CHECK_BYTES)
    if report is None:
        return
    if report.fault is not None:
        raise OperatorError(
            f"the database {database} can not be used: {report.fault}. Nothing was changed; bring back a backup with "
            "`perdure restore FILE --force`"
        )
    if report.lost != 0 or report.log_useless:
        _go_on_without(files, report)


def find_damage(database: Path) -> str | None:
    """Check all of the database, also beside a server that has it open; return what is wrong, None if it is whole.

    Changes nothing. The process must not have this database open. Raises OperatorError if it can not be read.
    """
    files = files_of(database)
    report = examine(files)
    if report is None:
        if not database.exists():
            return None
        try:
            with closing(_connect(database, "mode=ro")) as connection:
                return _fault(connection, database, None)
        except sqlite3.Error as error:
            return str(error)
    if report.fault is None and (report.lost != 0 or report.log_useless):
        return f"its write-ahead log is damaged: {_in_words(report)}"
    return report.fault


def examine(files: Files, *, most_bytes: int | None = None) -> Report | None:
    """Say what state the files are in, changing nothing; None if there are none or another process has them open.

    A file of more than `most_bytes` is not checked, unless its log is damaged. Raises OperatorError.
    """
    try:
        if _size(files.log) == 0 and _size(files.database) == 0:
            return None
        fault = _fault_of_head(files)
        if fault is not None:
            return Report(fault)
        if _is_open(files.log_index):
            return None
        with _put_back(files.log_index):
            return _examine(files, most_bytes)
    except OSError as error:
        raise OperatorError(
            f"the database {files.database} can not be read: {error.strerror}; check the data folder, its permissions "
            "and its disk"
        ) from None


def _fault_of_head(files: Files) -> str | None:
    if _size(files.database) == 0:  # SQLite would delete the log
        return f"it is missing or empty, though its log {files.log.name} is there"
    with files.database.open("rb") as file:
        return None if file.read(len(_MAGIC)) == _MAGIC else "file is not a database"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _alone(index: Path) -> Iterator[IO[bytes] | None]:
    """Open the index with nobody else having the database open, and keep it so; None if somebody has.

    Windows can not tell; there nobody is thought to, and the index is left alone.
    """
    if sys.platform == "win32" or not index.exists():
        yield None
        return
    import fcntl  # noqa: PLC0415  # not there on Windows

    with index.open("r+b", buffering=0) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _OPEN_LOCK)
        except (BlockingIOError, PermissionError):
            yield None
        else:
            yield file


def _is_open(index: Path) -> bool:
    if sys.platform == "win32" or not index.exists():
        return False
    with _alone(index) as file:
        return file is None


@contextmanager
def _put_back(index: Path) -> Iterator[None]:
    """Leave the index as it is now: reading the log makes a new one, which knows nothing of what can not be read."""
    before = index.read_bytes() if index.exists() else b""
    try:
        yield
    finally:
        with _alone(index) as file:
            if file is not None:  # else somebody has opened the database meanwhile: it is theirs now
                file.truncate(0)
                file.write(before)


def _examine(files: Files, most_bytes: int | None) -> Report:
    witness, found = _read_witness(files.log_index), _read_log(files.log)
    try:
        with closing(_connect(files.database, "mode=ro")) as connection:
            read = _frames_read(connection, files.log_index)
            lost = _count_lost(witness, found, read)
            stale = _is_stale(witness, found, read)
            if not stale:
                fault = _fault(connection, files.database, most_bytes if lost == 0 else None)
        if stale:  # the file is the newer one: SQLite must not see the log any more
            with closing(_connect(files.database, "mode=ro&immutable=1")) as connection:
                fault = _fault(connection, files.database, None)
    except sqlite3.Error as error:
        if is_damage(error):
            return Report(str(error))
        return Report(None)  # locked, not permitted: opening it will tell
    useless = stale or (found is not None and found.salts is None)
    return Report(fault, read, lost, log_there=found is not None, log_useless=useless)


def _connect(database: Path, how: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.absolute().as_uri()}?{how}", uri=True, isolation_level=None)


def _frames_read(connection: sqlite3.Connection, index: Path) -> int:
    """Let SQLite read the log, and return how far it came."""
    connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    witness = _read_witness(index)
    return 0 if witness is None else witness.frames


def _fault(connection: sqlite3.Connection, database: Path, most_bytes: int | None) -> str | None:
    """Check the pages, and if no size limits it the indexes too; return what is wrong."""
    if most_bytes is not None and _size(database) > most_bytes:
        return None
    check = "integrity_check" if most_bytes is None else "quick_check"
    (verdict,) = connection.execute(f"PRAGMA {check}(1)").fetchone()
    return None if verdict == "ok" else f"database disk image is malformed ({' '.join(verdict.split())})"


# -- what was committed, and what is left of it


def _known(witness: Witness | None, found: Log | None) -> Witness | None:
    """Return the witness if it speaks of this log. An index from before a power cut may know an older one."""
    if witness is not None and found is not None and found.salts not in {None, witness.salts}:
        return None
    return witness


def _count_lost(witness: Witness | None, found: Log | None, read: int) -> int | None:
    """Return how many frames of acknowledged commits can not be read, None if that can not be told."""
    known = _known(witness, found)
    if known is not None and known.frames >= read:
        return max(known.frames - max(read, known.merged), 0)
    if found is None:
        return 0
    if found.salts is None:
        return None
    behind = [frame for frame in found.commits if frame > read]
    return behind[-2] - read if len(behind) > 1 else 0  # the last one may have been under way


def _is_stale(witness: Witness | None, found: Log | None, read: int) -> bool:
    """Say whether the file has commits that the readable part of the log has not: the two would not fit together."""
    known = _known(witness, found)
    return known is not None and found is not None and 0 < read < known.merged


def _read_witness(index: Path) -> Witness | None:
    """Read the index's head, which is written twice and has a checksum."""
    try:
        with index.open("rb", buffering=0) as file:
            head = file.read(100)
    except OSError:  # none there; or Windows, where others have a part of it locked
        return None
    if len(head) < 100 or head[:48] != head[48:96]:  # noqa: PLR2004 - its length
        return None
    version, is_set, frames, salts, one, two = struct.unpack_from("=I8xB3xI12x8sII", head)
    if version != _FORMAT or is_set != 1 or _checksum(head[:40], sys.byteorder) != (one, two):
        return None
    return Witness(salts, frames, struct.unpack_from("=I", head, 96)[0])


def _read_log(path: Path) -> Log | None:
    """Read the heads of the log and of its frames, which are numbered from 1; None if there are none."""
    if _size(path) <= _LOG_HEAD:
        return None
    with path.open("rb") as file:
        head = file.read(_LOG_HEAD)
        salts = _salts(head)
        if salts is None:
            return Log(None, [])
        frame_bytes = _FRAME_HEAD + int.from_bytes(head[8:12], "big")
        commits = []
        for number in range((_size(path) - _LOG_HEAD) // frame_bytes):
            file.seek(_LOG_HEAD + number * frame_bytes)
            _, pages_after, of = struct.unpack(">II8s", file.read(16))
            if of == salts and pages_after:
                commits.append(number + 1)
        return Log(salts, commits)


def _salts(head: bytes) -> bytes | None:
    """Return the salts of a log's head, None if it is damaged."""
    if len(head) < _LOG_HEAD:
        return None
    magic, version, _, _, salts, one, two = struct.unpack(">IIII8sII", head)
    order: Literal["big", "little"] = "big" if magic & 1 else "little"
    good = magic | 1 == _LOG_MAGIC and version == _FORMAT and _checksum(head[:24], order) == (one, two)
    return salts if good else None


def _checksum(data: bytes, order: Literal["big", "little"]) -> tuple[int, int]:
    """Return SQLite's checksum of log and index."""
    one = two = 0
    for at in range(0, len(data), 8):
        one = (one + int.from_bytes(data[at : at + 4], order) + two) & 0xFFFFFFFF
        two = (two + int.from_bytes(data[at + 4 : at + 8], order) + one) & 0xFFFFFFFF
    return one, two


# -- going on


def _go_on_without(files: Files, report: Report) -> None:
    """Keep a damaged log aside, and say in one line what it means."""
    if not report.log_there:
        log.error(
            "the write-ahead log of %s is gone or empty, and with it what was acknowledged last, %d pages: it is "
            "a part of the database and must not be deleted. `perdure restore FILE --force` brings back a backup",
            files.database,
            report.lost,
        )
        return
    kept = files.log.with_name(f"{files.log.name}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}")
    _keep(files, kept, move=report.log_useless)
    log.error(
        "the write-ahead log of %s is damaged: %s. The database is whole without it; the damaged log is kept as %s. "
        "`perdure restore FILE --force` brings back a backup",
        files.database,
        _in_words(report),
        kept.name,
    )


def _in_words(report: Report) -> str:
    if report.lost is None:
        return "what it held can not be told; acknowledged commits may be lost"
    if report.lost:
        return f"{report.lost} pages of acknowledged commits behind page {report.read} of it are lost"
    return "all that it held is in the database, nothing is lost"


def _keep(files: Files, kept: Path, *, move: bool) -> None:
    try:
        if move:
            files.log.replace(kept)
        else:
            shutil.copy2(files.log, kept)
    except OSError as error:
        raise OperatorError(
            f"the write-ahead log {files.log} is damaged and could not be kept aside ({error.strerror}): make room in "
            "the data folder and start again"
        ) from None
