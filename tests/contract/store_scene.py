"""Vector stores without a server: files whose bytes are nowhere, and short ways to stores and what is in them."""

from __future__ import annotations

from typing import Any

from perdure.domain.vector_stores import new_vector_store
from perdure.store.bodies import read_vector_store_file
from perdure.store.chunks import StoredChunk
from perdure.store.db import Database, Operation, Row, Rows
from perdure.store.file_batches import get_batch, insert_batch
from perdure.store.files import insert_file
from perdure.store.vector_store_files import Added, AskedFile, add_files
from perdure.store.vector_stores import get_store_row, get_vector_store, insert_vector_store
from perdure.wire.files import File, StoredFile
from perdure.wire.vector_stores import CreateVectorStore, ExpiresAfter, FileBatch, VectorStore, VectorStoreFile

PROJECT = "proj_default"
NOW = 1_800_000_000
EMBEDDER = "hashing"


async def make_file(
    database: Database, file_id: str, filename: str = "", blob: str = "", project: str = PROJECT
) -> str:
    """Store a file's row; return its id."""
    file = File(
        id=file_id,
        purpose="assistants",
        filename=filename or f"{file_id}.txt",
        bytes=1,
        created_at=NOW,
        expires_at=None,
    )
    await database.run(insert_file, StoredFile(file, project, blob or file_id, "0" * 64))
    return file_id


async def make_files(database: Database, count: int, name: str = "file") -> list[str]:
    return [await make_file(database, f"{name}-{number}") for number in range(count)]


async def make_store(
    database: Database, store_id: str = "vs_1", days: int | None = None, embedder: str = EMBEDDER
) -> str:
    expires = None if days is None else ExpiresAfter(anchor="last_active_at", days=days)
    store = new_vector_store(CreateVectorStore(name=store_id, expires_after=expires), store_id, NOW)
    await database.run(insert_vector_store, store, embedder, PROJECT)
    return store_id


def add(store_id: str, asked: list[AskedFile], now: int = NOW) -> Operation[Added]:
    row = yield from get_store_row(store_id, PROJECT, lock=True)
    return (yield from add_files(row, asked, now))


async def put_in(database: Database, store_id: str, *file_ids: str, **options: Any) -> Added:
    return await database.run(add, store_id, [AskedFile(file_id=one, **options) for one in file_ids])


async def put_batch(database: Database, batch_id: str, store_id: str, *file_ids: str, **options: Any) -> FileBatch:
    asked = [AskedFile(file_id=one, **options) for one in file_ids]
    batch, _ = await database.run(insert_batch, batch_id, store_id, PROJECT, asked, NOW)
    return batch


async def store_of(database: Database, store_id: str = "vs_1", now: float = NOW) -> VectorStore:
    return await database.read(get_vector_store, store_id, PROJECT, now)


async def batch_of(database: Database, batch_id: str, store_id: str = "vs_1") -> FileBatch:
    return await database.read(get_batch, batch_id, store_id, PROJECT)


def _bodies(store_id: str) -> Operation[list[VectorStoreFile]]:
    rows = yield Rows("SELECT body FROM vector_store_files WHERE vector_store_id = $1 ORDER BY seq", store_id)
    return [read_vector_store_file(row[0]) for row in rows]


async def files_of(database: Database, store_id: str = "vs_1") -> list[VectorStoreFile]:
    return await database.read(_bodies, store_id)


def _count_chunks() -> Operation[int]:
    return int((yield Row("SELECT count(*) FROM chunks"))[0])


async def chunks_kept(database: Database) -> int:
    """Return how many chunks there are, needed or not."""
    return await database.read(_count_chunks)


def a_chunk(number: int, text: str = "text") -> StoredChunk:
    return StoredChunk(number, None, 1, text, b"\0\0\x80?", b"\x01\xff\0")


def counts(thing: VectorStore | FileBatch) -> tuple[int, int, int, int, int]:
    """Return in progress, completed, failed, cancelled, total."""
    one = thing.file_counts
    return one.in_progress, one.completed, one.failed, one.cancelled, one.total
