"""Vector stores in the store. A vector store's row is the lock of its files and batches: who moves one takes it first.

Rule: counts, status, usage and version of a vector store and its batches are written by `settle` alone, in the
transaction that moves the files, so that they are exact whenever somebody looks.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import UnsetType

from perdure.domain.vector_stores import expiry_of
from perdure.errors import ApiError, InvalidRequest, NotFound
from perdure.store.bodies import encode, read_file_batch, read_vector_store
from perdure.store.db import Do, Operation, Row, Rows
from perdure.store.pages import insert_tombstone, list_page
from perdure.wire.page import Page, PageQuery
from perdure.wire.vector_stores import (
    BatchStatus,
    FileBatch,
    FileCounts,
    FileStatus,
    ModifyVectorStore,
    StoreStatus,
    VectorStore,
)

TOUCH_SECONDS = 60
"""A store's last activity is written down at most that often."""
COLUMNS = "seq, body, project_id, embedder, version"


class StoreRow(msgspec.Struct):
    """A vector store with the columns beside its body."""

    seq: int
    store: VectorStore
    project_id: str
    embedder: str
    version: int


class Tally:
    """The moves of one transaction, on their way into the counts of a vector store and of its batches."""

    def __init__(self, row: StoreRow) -> None:
        self.row = row
        self.changed = False
        self.batches: dict[str, list[tuple[FileStatus | None, FileStatus | None]]] = {}

    @property
    def next_version(self) -> int:
        """The version that files get which are changed for readers."""
        return self.row.version + 1

    def move(self, batch_id: str | None, old: FileStatus | None, new: FileStatus | None) -> None:
        """Count a file out of one status and into another; None is not to be there."""
        _shift(self.row.store.file_counts, old, new)
        self.move_in_batch(batch_id, old, new)

    def move_in_batch(self, batch_id: str | None, old: FileStatus | None, new: FileStatus | None) -> None:
        """Count a file of a batch only."""
        if batch_id is not None:
            self.batches.setdefault(batch_id, []).append((old, new))

    def use(self, more_bytes: int) -> None:
        """Count bytes that are searchable now, or with a minus no more: readers have something to load."""
        if self.row.store.status != "expired":  # nothing in it takes room any more
            self.row.store.usage_bytes += more_bytes
        self.changed = True


def _shift(counts: FileCounts, old: FileStatus | None, new: FileStatus | None) -> None:
    for status, more in ((old, -1), (new, 1)):
        if status is not None:
            setattr(counts, status, getattr(counts, status) + more)
            counts.total += more


def no_vector_store(store_id: str) -> ApiError:
    """Return the refusal."""
    return NotFound(f"Vector store with id [{store_id}] not found.")


def has_expired(store: VectorStore, now: float) -> bool:
    """Say whether a store's time is over, be it written down or not."""
    return store.status == "expired" or (store.expires_at is not None and store.expires_at <= now)


def refuse_expired(store: VectorStore, now: float) -> None:
    """Raise InvalidRequest for a store whose time is over."""
    if has_expired(store, now):
        raise InvalidRequest(
            f"Vector store with id [{store.id}] has expired. Make a new one with its files: they are still listed.",
            code="vector_store_expired",
        )


def shown(store: VectorStore, now: float) -> VectorStore:
    """Return a store as clients see it: it is `expired` at once when its time is over."""
    return msgspec.structs.replace(store, status="expired") if has_expired(store, now) else store


def insert_vector_store(store: VectorStore, embedder: str, project_id: str) -> Operation[StoreRow]:
    """Store a new vector store. The project's row is locked: list order is the order of creation."""
    yield Row("SELECT id FROM projects WHERE id = $1", project_id, lock="wait")
    body = encode(store)
    row = yield Row(
        "INSERT INTO vector_stores (id, project_id, created_at, last_active_at, expires_at, embedder, body) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING seq",
        store.id,
        project_id,
        store.created_at,
        store.last_active_at,
        store.expires_at,
        embedder,
        body,
    )
    return StoreRow(row[0], read_vector_store(body), project_id, embedder, 0)  # the caller's own is left as it is


def find_store_row(store_id: str, *, lock: bool = False) -> Operation[StoreRow | None]:
    """Return a vector store of any project."""
    row = yield Row(f"SELECT {COLUMNS} FROM vector_stores WHERE id = $1", store_id, lock="wait" if lock else None)
    return None if row is None else StoreRow(row[0], read_vector_store(row[1]), *row[2:])


def get_store_row(store_id: str, project_id: str, *, lock: bool = False) -> Operation[StoreRow]:
    """Return a vector store of the project. Raises NotFound."""
    row = yield Row(
        f"SELECT {COLUMNS} FROM vector_stores WHERE id = $1 AND project_id = $2",
        store_id,
        project_id,
        lock="wait" if lock else None,
    )
    if row is None:
        raise no_vector_store(store_id)
    return StoreRow(row[0], read_vector_store(row[1]), *row[2:])


def get_vector_store(store_id: str, project_id: str, now: float) -> Operation[VectorStore]:
    """Return a vector store as clients see it. Raises NotFound."""
    row = yield from get_store_row(store_id, project_id)
    return shown(row.store, now)


def list_vector_stores(project_id: str, query: PageQuery, now: float) -> Operation[Page]:
    """Return a page of the project's vector stores."""
    page = yield from list_page("vector_stores", ("project_id", project_id), query)
    data = [msgspec.Raw(encode(shown(read_vector_store(bytes(body)), now)).encode()) for body in page.data]
    return msgspec.structs.replace(page, data=data)


def find_missing_store(store_ids: list[str], project_id: str) -> Operation[str | None]:
    """Return the first of the ids that is no vector store of the project."""
    for store_id in store_ids:
        row = yield Row("SELECT 1 FROM vector_stores WHERE id = $1 AND project_id = $2", store_id, project_id)
        if row is None:
            return store_id
    return None


def update_vector_store(store_id: str, project_id: str, change: ModifyVectorStore, now: int) -> Operation[VectorStore]:
    """Change a vector store. Raises NotFound. A new expiry counts from now; what has expired stays so."""
    row = yield from get_store_row(store_id, project_id, lock=True)
    store = row.store
    if not isinstance(change.name, UnsetType):
        store.name = change.name or ""
    if not isinstance(change.metadata, UnsetType):
        store.metadata = change.metadata or {}
    if not isinstance(change.expires_after, UnsetType):
        store.expires_after = change.expires_after
        if not has_expired(store, now):
            _use_now(store, now)
    yield from _write(row)
    return shown(store, now)


def _use_now(store: VectorStore, now: int) -> None:
    store.last_active_at = now
    store.expires_at = expiry_of(now, store.expires_after)


def touch_stores(store_ids: Iterable[str], now: int) -> Operation[None]:
    """Note that stores are part of a run or a search: their expiry moves. What has expired stays so."""
    for store_id in sorted(set(store_ids)):
        old = yield Row(
            "SELECT 1 FROM vector_stores WHERE id = $1 AND last_active_at <= $2", store_id, now - TOUCH_SECONDS
        )
        row = None if old is None else (yield from find_store_row(store_id, lock=True))
        if row is not None and not has_expired(row.store, now):
            _use_now(row.store, now)
            yield from _write(row)


def _write(row: StoreRow) -> Operation[None]:
    yield Do(
        "UPDATE vector_stores SET body = $2, version = $3, last_active_at = $4, expires_at = $5, embedder = $6 "
        "WHERE seq = $1",
        row.seq,
        encode(row.store),
        row.version,
        row.store.last_active_at,
        None if row.store.status == "expired" else row.store.expires_at,  # nothing is left to do when it comes
        row.embedder,
    )


def settle(tally: Tally) -> Operation[None]:
    """Write down what the moves of a transaction come to. The caller holds the store's lock."""
    row = tally.row
    if row.store.status != "expired":
        status: StoreStatus = "in_progress" if row.store.file_counts.in_progress else "completed"
        row.store.status = status
    if tally.changed:
        row.version += 1
    yield from _write(row)
    for batch_id in sorted(tally.batches):
        found = yield Row("SELECT body FROM file_batches WHERE id = $1", batch_id, lock="wait")
        if found is not None:
            batch = read_file_batch(found[0])
            for old, new in tally.batches[batch_id]:
                _shift(batch.file_counts, old, new)
            yield from write_batch(batch)


def write_batch(batch: FileBatch) -> Operation[None]:
    """Write a batch over its old self. It is done when none of its files is in progress; cancelled it stays."""
    if batch.status != "cancelled":
        status: BatchStatus = "in_progress" if batch.file_counts.in_progress else "completed"
        batch.status = status
    yield Do("UPDATE file_batches SET body = $2 WHERE id = $1", batch.id, encode(batch))


def delete_vector_store(store_id: str, project_id: str, now: int) -> Operation[list[int]]:
    """Delete a vector store with all that is in it; return its files in work, which is pointless now.

    The ids that assistants and threads hold of it stay, as with the hosted server. Raises NotFound.
    """
    row = yield from get_store_row(store_id, project_id, lock=True)
    stopped = yield from files_in_work(store_id)
    yield from bury_chunks(store_id)
    for table in ("vector_store_files", "file_batches"):
        yield Do(f"DELETE FROM {table} WHERE vector_store_id = $1", store_id)
    yield Do("DELETE FROM vector_stores WHERE seq = $1", row.seq)
    yield from insert_tombstone(store_id, row.seq, project_id, now)
    return stopped


def files_in_work(store_id: str) -> Operation[list[int]]:
    """Return the files of a store that workers hold."""
    rows = yield Rows(
        "SELECT seq FROM vector_store_files WHERE vector_store_id = $1 AND worker_id IS NOT NULL ORDER BY seq", store_id
    )
    return [int(row[0]) for row in rows]


def bury_chunks(store_id: str) -> Operation[None]:
    """Leave all chunks of a store's files for deletion."""
    yield Do(
        "INSERT INTO dead_chunks (file_seq, attempt) SELECT seq, attempt FROM vector_store_files "
        "WHERE vector_store_id = $1 AND attempt > 0 ON CONFLICT (file_seq) DO UPDATE SET attempt = excluded.attempt",
        store_id,
    )


def list_overdue_stores(now: int, most: int = 100) -> Operation[list[str]]:
    """Return stores whose time is over and that do not say so yet."""
    rows = yield Rows(
        "SELECT id FROM vector_stores WHERE expires_at IS NOT NULL AND expires_at <= $1 ORDER BY expires_at LIMIT $2",
        now,
        most,
    )
    return [str(row[0]) for row in rows]
