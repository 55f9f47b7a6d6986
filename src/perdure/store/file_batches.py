"""File batches: files that were added to a vector store together. Rule: a batch's counts are those of its files."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.errors import ApiError, NotFound
from perdure.store.bodies import encode, read_file_batch
from perdure.store.db import Do, Operation, Row
from perdure.store.vector_store_files import AskedFile, add_files, list_batch_files, rows_of_batch, stop_files
from perdure.store.vector_stores import Tally, get_store_row, refuse_expired, settle, write_batch
from perdure.wire.page import Page, PageQuery
from perdure.wire.vector_stores import FileBatch, FileCounts, FileStatus


def no_batch(batch_id: str) -> ApiError:
    """Return the refusal."""
    return NotFound(f"No file batch found with id '{batch_id}'.")


def insert_batch(
    batch_id: str, store_id: str, project_id: str, asked: Sequence[AskedFile], now: int
) -> Operation[tuple[FileBatch, list[int]]]:
    """Add files to a store as a batch; also return the files whose work has become pointless.

    Raises NotFound and InvalidRequest.
    """
    row = yield from get_store_row(store_id, project_id, lock=True)
    refuse_expired(row.store, now)
    batch = FileBatch(
        id=batch_id, created_at=now, status="in_progress", vector_store_id=store_id, file_counts=FileCounts()
    )
    yield Do(
        "INSERT INTO file_batches (id, vector_store_id, created_at, body) VALUES ($1, $2, $3, $4)",
        batch_id,
        store_id,
        now,
        encode(batch),
    )
    added = yield from add_files(row, asked, now, batch_id)
    return (yield from find_batch(batch_id, store_id)), added.stopped


def find_batch(batch_id: str, store_id: str) -> Operation[FileBatch]:
    """Return a batch; the caller has seen that the store is the project's. Raises NotFound."""
    row = yield Row("SELECT body FROM file_batches WHERE id = $1 AND vector_store_id = $2", batch_id, store_id)
    if row is None:
        raise no_batch(batch_id)
    return read_file_batch(row[0])


def get_batch(batch_id: str, store_id: str, project_id: str) -> Operation[FileBatch]:
    """Return a batch. Raises NotFound."""
    yield from get_store_row(store_id, project_id)
    return (yield from find_batch(batch_id, store_id))


def cancel_batch(batch_id: str, store_id: str, project_id: str) -> Operation[tuple[FileBatch, list[int]]]:
    """Cancel a batch and all its files that are in progress; also return those in work.

    A batch that is done stays as it is [recorded]. Raises NotFound.
    """
    tally = Tally((yield from get_store_row(store_id, project_id, lock=True)))
    batch = yield from find_batch(batch_id, store_id)
    if batch.status != "in_progress":
        return batch, []
    held = yield from stop_files(tally, (yield from rows_of_batch(batch_id, "in_progress")))
    yield from settle(tally)
    batch = yield from find_batch(batch_id, store_id)
    batch.status = "cancelled"
    yield from write_batch(batch)
    return batch, held


def list_files_of_batch(
    batch_id: str, store_id: str, project_id: str, query: PageQuery, status: FileStatus | None
) -> Operation[Page]:
    """Return a page of a batch's files. Raises NotFound and InvalidRequest."""
    yield from get_batch(batch_id, store_id, project_id)
    return (yield from list_batch_files(batch_id, query, status))
