"""The line of files that wait to be read: the claim, the fence, and the ends of work on a file.

The rows are the queue: a file `in_progress` that nobody holds waits. Every write of a worker is conditional on its
attempt number: whoever lost its hold finds no row and gets `FileLost`. Locks are taken in one order: store, file,
batch; a claim takes the file's alone, as it changes no count.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from perdure.store.bodies import read_file, read_vector_store_file
from perdure.store.chunks import StoredChunk, insert_chunks
from perdure.store.db import Do, Operation, Row, Rows
from perdure.store.vector_store_files import (
    COLUMNS,
    FileRow,
    begin_anew,
    bury,
    move_file,
    read_file_row,
    rows_of_store,
    stop_files,
)
from perdure.store.vector_stores import (
    StoreRow,
    Tally,
    bury_chunks,
    files_in_work,
    find_store_row,
    get_store_row,
    has_expired,
    refuse_expired,
    settle,
)
from perdure.wire.tools import StaticChunking
from perdure.wire.vector_stores import FileError, VectorStore

CRASHED = (
    "The server was interrupted {times} times while it read this file, and gave up. Split the file or save it in "
    "another format, then add it again."
)


class FileLost(Exception):
    """This attempt holds the file no more: it was cancelled, taken out of its store, or another attempt has it."""


class FileHold(msgspec.Struct, frozen=True):
    """A worker's hold on a file of a vector store."""

    seq: int
    attempt: int
    worker_id: str


class FileClaim(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a worker has just got hold of, with what it needs to read it. `blob` is None for a deleted file."""

    hold: FileHold
    file_id: str
    store_id: str
    filename: str
    blob: str | None
    embedder: str
    chunking: StaticChunking


def claim_file(worker_id: str, lease_until: float) -> Operation[FileClaim | None]:
    """Take hold of a waiting file; None if there is none. Few files at once go before many, else the oldest first."""
    row = yield Row(
        "SELECT seq, attempt, id, vector_store_id, body FROM vector_store_files "
        "WHERE status = 'in_progress' AND worker_id IS NULL ORDER BY bulk, seq LIMIT 1",
        lock="skip",
    )
    if row is None:
        return None
    seq, attempt, file_id, store_id, body = row
    written = yield Do(
        "UPDATE vector_store_files SET attempt = $3, worker_id = $4, lease_until = $5 WHERE seq = $1 AND attempt = $2",
        seq,
        attempt,
        attempt + 1,
        worker_id,
        lease_until,
    )
    if written != 1:
        return None
    store = yield Row("SELECT embedder FROM vector_stores WHERE id = $1", store_id)
    file = yield Row("SELECT body, blob FROM files WHERE id = $1", file_id)
    return FileClaim(
        hold=FileHold(seq, attempt + 1, worker_id),
        file_id=file_id,
        store_id=store_id,
        filename=read_file(file[0]).filename if file else "",
        blob=file[1] if file else None,
        embedder=store[0] if store else "",
        chunking=read_vector_store_file(body).chunking_strategy.static,
    )


def has_waiting_files() -> Operation[bool]:
    """Say whether a file waits to be read."""
    row = yield Row("SELECT 1 FROM vector_store_files WHERE status = 'in_progress' AND worker_id IS NULL LIMIT 1")
    return row is not None


def renew_file_leases(holds: Sequence[FileHold], lease_until: float) -> Operation[set[int]]:
    """Extend the leases; return the numbers of the files whose hold is lost."""
    lost: set[int] = set()
    for hold in holds:
        written = yield Do(
            "UPDATE vector_store_files SET lease_until = $4 WHERE seq = $1 AND attempt = $2 AND worker_id = $3",
            hold.seq,
            hold.attempt,
            hold.worker_id,
            lease_until,
        )
        if written != 1:
            lost.add(hold.seq)
    return lost


def append_chunks(hold: FileHold, chunks: Sequence[StoredChunk]) -> Operation[None]:
    """Store some chunks of a file in work. Raises FileLost."""
    yield from _lock_held(hold)
    yield from insert_chunks(hold.seq, hold.attempt, chunks)


def _lock_held(hold: FileHold) -> Operation[FileRow]:
    row = yield Row(
        f"SELECT {COLUMNS} FROM vector_store_files WHERE seq = $1 AND attempt = $2 AND worker_id = $3",
        hold.seq,
        hold.attempt,
        hold.worker_id,
        lock="wait",
    )
    if row is None:
        raise FileLost
    return read_file_row(row)


def _lock_store_of(file_seq: int) -> Operation[StoreRow]:
    """Lock the store of a file. Raises FileLost if either is gone."""
    row = yield Row("SELECT vector_store_id FROM vector_store_files WHERE seq = $1", file_seq)
    store = None if row is None else (yield from find_store_row(row[0], lock=True))
    if store is None:
        raise FileLost
    return store


def complete_file(hold: FileHold, usage_bytes: int) -> Operation[None]:
    """End work on a file whose chunks are stored: from now on they are found. Raises FileLost."""
    tally = Tally((yield from _lock_store_of(hold.seq)))
    row = yield from _lock_held(hold)
    yield from move_file(tally, row, "completed", usage_bytes=usage_bytes)
    yield from settle(tally)


def fail_file(hold: FileHold, error: FileError) -> Operation[None]:
    """End work on a file that gave nothing. Raises FileLost."""
    tally = Tally((yield from _lock_store_of(hold.seq)))
    row = yield from _lock_held(hold)
    yield from move_file(tally, row, "failed", error=error)
    yield from settle(tally)


def release_file(hold: FileHold) -> Operation[None]:
    """Put a file in work back into the line; whoever claims it begins at its start. Raises FileLost."""
    row = yield from _lock_held(hold)
    yield from _let_go(row, row.recoveries)


def _let_go(row: FileRow, recoveries: int) -> Operation[None]:
    yield from bury(row.seq, row.attempt)
    yield Do(
        "UPDATE vector_store_files SET worker_id = NULL, lease_until = NULL, attempt = $2, recoveries = $3 "
        "WHERE seq = $1",
        row.seq,
        row.attempt + 1,
        recoveries,
    )


def list_held_files(lapsed_before: float | None) -> Operation[list[int]]:
    """Return files in work whose lease has lapsed by that time, all of them for None."""
    condition, args = ("", []) if lapsed_before is None else (" AND lease_until < $1", [lapsed_before])
    rows = yield Rows(f"SELECT seq FROM vector_store_files WHERE worker_id IS NOT NULL{condition} ORDER BY seq", *args)
    return [int(row[0]) for row in rows]


def recover_file(file_seq: int, lapsed_before: float | None, most: int) -> Operation[bool]:
    """Take a file from a worker that is gone: back into the line, or after `most` times to `failed`.

    Returns whether there was something to take. A lease that was renewed meanwhile is left alone.
    """
    try:
        tally = Tally((yield from _lock_store_of(file_seq)))
    except FileLost:
        return False
    found = yield Row(
        f"SELECT {COLUMNS}, lease_until FROM vector_store_files WHERE seq = $1 AND worker_id IS NOT NULL",
        file_seq,
        lock="wait",
    )
    if found is None:
        return False
    *columns, lease_until = found
    if lapsed_before is not None and lease_until >= lapsed_before:
        return False
    row = read_file_row(columns)
    row.recoveries += 1
    if row.recoveries < most:
        yield from _let_go(row, row.recoveries)
        return True
    error = FileError(code="server_error", message=CRASHED.format(times=row.recoveries))
    yield from move_file(tally, row, "failed", error=error)
    yield from settle(tally)
    return True


# -- whole stores


def expire_store(store_id: str, now: int) -> Operation[list[int]]:
    """Write down that a store's time is over, and leave its chunks for deletion; return its files in work.

    Its files stay listed: programs make a new store out of them.
    """
    row = yield from find_store_row(store_id, lock=True)
    if row is None or row.store.status == "expired" or not has_expired(row.store, now):
        return []
    tally = Tally(row)
    held = yield from stop_files(tally, (yield from rows_of_store(store_id, "in_progress")))
    yield from bury_chunks(store_id)
    tally.use(-row.store.usage_bytes)
    row.store.status = "expired"
    yield from settle(tally)
    return held


def rebuild_store(store_id: str, project_id: str, embedder: str, now: int) -> Operation[tuple[VectorStore, list[int]]]:
    """Read all files of a store again, for another embedding model; also return those that were in work.

    Raises NotFound, and InvalidRequest for an expired store.
    """
    row = yield from get_store_row(store_id, project_id, lock=True)
    refuse_expired(row.store, now)
    row.embedder = embedder
    tally = Tally(row)
    held = yield from files_in_work(store_id)
    for one in (yield from rows_of_store(store_id)):
        if one.file.status != "cancelled":
            yield from begin_anew(tally, one, bulk=1)
    tally.changed = True
    yield from settle(tally)
    return row.store, held
