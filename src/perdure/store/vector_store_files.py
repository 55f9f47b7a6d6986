"""Files of vector stores: adding, listing, changing and removing them, and the one function that writes a status.

Rules. Whoever moves a file holds its vector store's lock and counts the move in a `Tally`. A file stands once in a
store: adding it again changes its attributes, and reads it again only if it is cut into other chunks or was not
completed; it then belongs to the batch that named it last. A file that is moved away from `in_progress`, or begun anew,
gets a higher attempt number, which is the fence that keeps a worker without a hold from writing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from perdure.errors import ApiError, NotFound
from perdure.store.bodies import encode, read_vector_store_file
from perdure.store.db import Do, Operation, Row, Rows, Value
from perdure.store.found_files import list_file_names, pieces, placeholders
from perdure.store.pages import insert_tombstone, list_page, within
from perdure.store.vector_stores import StoreRow, Tally, get_store_row, refuse_expired, settle
from perdure.wire.page import Page, PageQuery
from perdure.wire.tools import StaticChunkingStrategy
from perdure.wire.vector_stores import AUTO, Attributes, FileError, FileStatus, VectorStoreFile

FEW = 10
"""Files of that many added at once go before those that come in larger numbers: somebody may be waiting for them."""
COLUMNS = "seq, body, batch_id, attempt, worker_id, recoveries, changed"


class AskedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that shall be in a vector store. Attributes of None are left as they are, or empty on a new one."""

    file_id: str
    attributes: Attributes | None = None
    chunking: StaticChunkingStrategy = msgspec.field(default_factory=lambda: AUTO)


class FileRow(msgspec.Struct):
    """A file of a vector store with the columns beside its body."""

    seq: int
    file: VectorStoreFile
    batch_id: str | None
    attempt: int
    worker_id: str | None
    recoveries: int
    changed: int


class Added(msgspec.Struct, frozen=True):
    """Files that were added, in the order in which they were asked for, and those whose work has become pointless."""

    files: list[VectorStoreFile]
    stopped: list[int]


def no_store_file(file_id: str, store_id: str) -> ApiError:
    """Return the refusal of a file that is not in the vector store."""
    return NotFound(f"No file found with id '{file_id}' in vector store '{store_id}'.")


def read_file_row(row: Any) -> FileRow:
    """Return the columns of `COLUMNS` as a FileRow."""
    seq, body, *rest = row
    return FileRow(seq, read_vector_store_file(body), *rest)


# -- adding


def add_files(row: StoreRow, asked: Sequence[AskedFile], now: int, batch_id: str | None = None) -> Operation[Added]:
    """Put files into a store whose lock the caller holds; the batch, if one is named, has just been made.

    Raises NotFound for a file that is not in the project, and InvalidRequest if the store has expired.
    """
    refuse_expired(row.store, now)
    wanted = list({one.file_id: one for one in asked}.values())
    yield from list_file_names([one.file_id for one in wanted], row.project_id, now)
    tally, bulk = Tally(row), int(len(wanted) > FEW)
    there = yield from _find_rows(row.store.id, [one.file_id for one in wanted])
    shown: dict[str, VectorStoreFile] = {}
    stopped: list[int] = []
    fresh: list[VectorStoreFile] = []
    for one in wanted:
        old = there.get(one.file_id)
        if old is None:
            fresh.append(_new_file(one, row.store.id, now))
            tally.move(batch_id, None, "in_progress")
            shown[one.file_id] = fresh[-1]
        else:
            if old.worker_id is not None and _begins_anew(old.file, one):
                stopped.append(old.seq)
            shown[one.file_id] = yield from _add_again(tally, old, one, batch_id, bulk)
    yield from _insert_files(fresh, batch_id, bulk)
    yield from settle(tally)
    return Added([shown[one.file_id] for one in wanted], stopped)


def _find_rows(store_id: str, file_ids: Sequence[str]) -> Operation[dict[str, FileRow]]:
    found: dict[str, FileRow] = {}
    for piece in pieces(file_ids):
        rows = yield Rows(
            f"SELECT {COLUMNS} FROM vector_store_files WHERE vector_store_id = $1 "
            f"AND id IN ({placeholders(2, len(piece))})",
            store_id,
            *piece,
        )
        found |= {one.file.id: one for one in map(read_file_row, rows)}
    return found


def _new_file(asked: AskedFile, store_id: str, now: int) -> VectorStoreFile:
    return VectorStoreFile(
        id=asked.file_id,
        usage_bytes=0,
        created_at=now,
        vector_store_id=store_id,
        status="in_progress",
        last_error=None,
        chunking_strategy=asked.chunking,
        attributes=asked.attributes or {},
    )


def _insert_files(files: Sequence[VectorStoreFile], batch_id: str | None, bulk: int) -> Operation[None]:
    for piece in pieces(files):
        args: list[Value] = []
        for file in piece:
            args += [file.vector_store_id, file.id, batch_id, bulk, file.status, file.created_at, encode(file)]
        width = len(args) // len(piece)
        rows = ", ".join(f"({placeholders(1 + width * index, width)})" for index in range(len(piece)))
        yield Do(
            "INSERT INTO vector_store_files (vector_store_id, id, batch_id, bulk, status, created_at, body) "
            f"VALUES {rows}",
            *args,
        )


def _begins_anew(old: VectorStoreFile, asked: AskedFile) -> bool:
    return old.status in {"failed", "cancelled"} or old.chunking_strategy != asked.chunking


def _add_again(
    tally: Tally, old: FileRow, asked: AskedFile, batch_id: str | None, bulk: int
) -> Operation[VectorStoreFile]:
    if asked.attributes is not None and asked.attributes != old.file.attributes:
        yield from _change_attributes(tally, old, asked.attributes)
    if batch_id is not None and batch_id != old.batch_id:
        tally.move_in_batch(old.batch_id, old.file.status, None)
        tally.move_in_batch(batch_id, None, old.file.status)
        old.batch_id = batch_id
    if _begins_anew(old.file, asked):
        old.file.chunking_strategy = asked.chunking
        yield from begin_anew(tally, old, bulk)
    else:
        yield Do("UPDATE vector_store_files SET batch_id = $2 WHERE seq = $1", old.seq, old.batch_id)
    return old.file


def add_file(store_id: str, project_id: str, asked: AskedFile, now: int) -> Operation[Added]:
    """Put one file into a store. Raises NotFound and InvalidRequest."""
    row = yield from get_store_row(store_id, project_id, lock=True)
    return (yield from add_files(row, [asked], now))


# -- moves


def move_file(
    tally: Tally,
    row: FileRow,
    to: FileStatus,
    *,
    error: FileError | None = None,
    usage_bytes: int = 0,
    bulk: int | None = None,
) -> Operation[None]:
    """Write a file's status: the only statement that does. The caller holds its store's lock and settles the tally.

    The hold on it ends. Unless it is completed, its chunks are left for deletion.
    """
    completed = to == "completed"
    if not completed:
        yield from bury(row.seq, row.attempt)
    if completed or row.file.status == "completed":
        tally.use(usage_bytes - row.file.usage_bytes)
        row.changed = tally.next_version
    tally.move(row.batch_id, row.file.status, to)
    row.file.status, row.file.last_error, row.file.usage_bytes = to, error, usage_bytes
    row.attempt += not completed
    row.worker_id = None
    yield Do(
        "UPDATE vector_store_files SET status = $2, body = $3, attempt = $4, changed = $5, batch_id = $6, "
        "recoveries = $7, bulk = coalesce($8, bulk), worker_id = NULL, lease_until = NULL WHERE seq = $1",
        row.seq,
        to,
        encode(row.file),
        row.attempt,
        row.changed,
        row.batch_id,
        row.recoveries,
        bulk,
    )


def begin_anew(tally: Tally, row: FileRow, bulk: int) -> Operation[None]:
    """Put a file into the line of those that are to be read, whatever it was."""
    row.recoveries = 0
    yield from move_file(tally, row, "in_progress", bulk=bulk)


def stop_files(tally: Tally, rows: Sequence[FileRow]) -> Operation[list[int]]:
    """Move those that are in progress to `cancelled`; return those that workers held."""
    held = [row.seq for row in rows if row.worker_id is not None]
    for row in rows:
        if row.file.status == "in_progress":
            yield from move_file(tally, row, "cancelled")
    return held


def bury(file_seq: int, attempt: int) -> Operation[None]:
    """Leave a file's chunks for deletion, up to and with those of that attempt."""
    if attempt:
        yield Do(
            "INSERT INTO dead_chunks (file_seq, attempt) VALUES ($1, $2) "
            "ON CONFLICT (file_seq) DO UPDATE SET attempt = excluded.attempt",
            file_seq,
            attempt,
        )


# -- one file


def get_store_file(file_id: str, store_id: str, project_id: str) -> Operation[str]:
    """Return the stored JSON. Raises NotFound."""
    yield from get_store_row(store_id, project_id)
    row = yield Row("SELECT body FROM vector_store_files WHERE vector_store_id = $1 AND id = $2", store_id, file_id)
    if row is None:
        raise no_store_file(file_id, store_id)
    return str(row[0])


class Content(msgspec.Struct, frozen=True):
    """Where the chunks of a completed file are, and whether they overlap."""

    seq: int
    attempt: int
    overlaps: bool


def find_content(file_id: str, store_id: str, project_id: str) -> Operation[Content | None]:
    """Return where a file's chunks are; None while there are none that count. Raises NotFound."""
    store = (yield from get_store_row(store_id, project_id)).store
    row = yield Row(
        f"SELECT {COLUMNS} FROM vector_store_files WHERE vector_store_id = $1 AND id = $2", store_id, file_id
    )
    if row is None:
        raise no_store_file(file_id, store_id)
    found = read_file_row(row)
    if found.file.status != "completed" or store.status == "expired":
        return None
    return Content(found.seq, found.attempt, found.file.chunking_strategy.static.chunk_overlap_tokens > 0)


def lock_store_file(file_id: str, store_id: str) -> Operation[FileRow]:
    """Return a file, locked; the caller holds its store's lock. Raises NotFound."""
    row = yield Row(
        f"SELECT {COLUMNS} FROM vector_store_files WHERE vector_store_id = $1 AND id = $2",
        store_id,
        file_id,
        lock="wait",
    )
    if row is None:
        raise no_store_file(file_id, store_id)
    return read_file_row(row)


def update_attributes(
    file_id: str, store_id: str, project_id: str, attributes: Attributes
) -> Operation[VectorStoreFile]:
    """Replace a file's attributes. Raises NotFound."""
    tally = Tally((yield from get_store_row(store_id, project_id, lock=True)))
    row = yield from lock_store_file(file_id, store_id)
    yield from _change_attributes(tally, row, attributes)
    yield from settle(tally)
    return row.file


def _change_attributes(tally: Tally, row: FileRow, attributes: Attributes) -> Operation[None]:
    row.file.attributes = attributes
    if row.file.status == "completed":
        tally.use(0)
        row.changed = tally.next_version
    yield Do(
        "UPDATE vector_store_files SET body = $2, changed = $3 WHERE seq = $1", row.seq, encode(row.file), row.changed
    )


def remove_store_file(file_id: str, store_id: str, project_id: str, now: int) -> Operation[list[int]]:
    """Take a file out of a store; return its number if a worker held it. Raises NotFound."""
    tally = Tally((yield from get_store_row(store_id, project_id, lock=True)))
    row = yield from lock_store_file(file_id, store_id)
    yield from bury(row.seq, row.attempt)
    tally.move(row.batch_id, row.file.status, None)
    if row.file.status == "completed":
        tally.use(-row.file.usage_bytes)
    yield Do("DELETE FROM vector_store_files WHERE seq = $1", row.seq)
    for parent in (store_id, row.batch_id):
        if parent is not None:
            yield from insert_tombstone(within(parent, file_id), row.seq, parent, now)
    yield from settle(tally)
    return [] if row.worker_id is None else [row.seq]


def remove_from_stores(file_id: str, project_id: str, now: int) -> Operation[list[int]]:
    """Take a file that is being deleted out of all stores; return the numbers of those that workers held."""
    rows = yield Rows("SELECT vector_store_id FROM vector_store_files WHERE id = $1 ORDER BY vector_store_id", file_id)
    held: list[int] = []
    for row in rows:
        try:
            held += yield from remove_store_file(file_id, row[0], project_id, now)
        except NotFound:
            continue  # taken out while we came here
    return held


# -- lists


def list_store_files(store_id: str, project_id: str, query: PageQuery, status: FileStatus | None) -> Operation[Page]:
    """Return a page of a store's files, of one status only if it is given. Raises NotFound and InvalidRequest."""
    yield from get_store_row(store_id, project_id)
    return (yield from _list("vector_store_id", store_id, query, status))


def list_batch_files(batch_id: str, query: PageQuery, status: FileStatus | None) -> Operation[Page]:
    """Return a page of a batch's files; the caller has seen that the batch is the project's. Raises InvalidRequest."""
    return (yield from _list("batch_id", batch_id, query, status))


def _list(column: str, owner: str, query: PageQuery, status: FileStatus | None) -> Operation[Page]:
    filters = [] if status is None else [("status = ?", [status])]
    return (yield from list_page("vector_store_files", (column, owner), query, filters=filters))


def rows_of_store(store_id: str, status: FileStatus | None = None) -> Operation[list[FileRow]]:
    """Return a store's files, of one status only if it is given; the caller holds the store's lock."""
    return (yield from _rows_of("vector_store_id", store_id, status))


def rows_of_batch(batch_id: str, status: FileStatus) -> Operation[list[FileRow]]:
    """Return a batch's files of that status; the caller holds the store's lock."""
    return (yield from _rows_of("batch_id", batch_id, status))


def _rows_of(column: str, owner: str, status: FileStatus | None) -> Operation[list[FileRow]]:
    where, args = (f"{column} = $1", [owner]) if status is None else (f"{column} = $1 AND status = $2", [owner, status])
    rows = yield Rows(f"SELECT {COLUMNS} FROM vector_store_files WHERE {where} ORDER BY seq", *args)
    return [read_file_row(row) for row in rows]
