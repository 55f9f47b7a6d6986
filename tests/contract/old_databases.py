"""Databases of earlier versions, as servers of those versions left them, and what must be in them for ever.

`released/` has, for each schema version, a database as a server left it when it was killed at work: schema and rows as
plain SQL, never edited again.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest

from perdure.errors import NotFound
from perdure.search.terms import term_hash, unpack_terms
from perdure.store import postgres, sqlite
from perdure.store.assistants import get_assistant, list_assistants
from perdure.store.chunks import list_texts, list_vectors, read_snapshot
from perdure.store.db import Database, Dialect
from perdure.store.event_log import list_events
from perdure.store.files import find_orphans, get_file, list_files
from perdure.store.ingestion import list_held_files, recover_file
from perdure.store.keys import find_door, hash_key, list_keys
from perdure.store.messages import list_messages
from perdure.store.migrations import split_statements
from perdure.store.postgres import PostgresDatabase
from perdure.store.runs import get_run_body, list_held_runs, list_runs
from perdure.store.sqlite import SqliteDatabase
from perdure.store.steps import list_steps
from perdure.store.threads import get_thread_body, insert_thread, list_threads
from perdure.store.vector_store_files import list_store_files
from perdure.store.vector_stores import list_vector_stores
from perdure.wire.page import Page, PageQuery
from perdure.wire.threads import Thread, ThreadFilters
from perdure.wire.tools import ToolResources

Body = dict[str, Any]
Tables = dict[str, list[dict[str, Any]]]

RELEASED = Path(__file__).parent / "released"
KEYS = {
    1: "sk-perdure-dfWUp-neCk4vLIvV5ptB8dWiq55Q7lFoCc2aR3duZjo",
    2: "sk-perdure-oPMy7z5cEjYlJtJHXbq2ZKd7xb4wq0vFpccd4WsYcg0",
    3: "sk-perdure-oPMy7z5cEjYlJtJHXbq2ZKd7xb4wq0vFpccd4WsYcg0",
    4: "sk-perdure-oPMy7z5cEjYlJtJHXbq2ZKd7xb4wq0vFpccd4WsYcg0",
}
"""A key of each old database's default project; it opens nothing else."""

DEFAULT = "proj_default"
FILES_SINCE, FILES_TIME = 3, 1795632900
PART_BLOB = "3c80821683e0a7daaf054da96ba4b553"
ALL = PageQuery(limit=100, order="asc")
TABLES = ("projects", "api_keys", "assistants", "threads", "messages", "runs", "steps", "run_events", "tombstones")
"""What every version has."""
STORES_SINCE = 4
NEW_TABLES = (
    *("thread_metadata", "files", "file_uses", "uploads", "upload_parts"),
    *("vector_stores", "file_batches", "vector_store_files", "chunks", "dead_chunks"),
)
"""What came later."""


class Old(NamedTuple):
    """A database of an earlier version: how to open it, what was in its tables, and a way around the driver."""

    version: int
    open: Callable[[], Coroutine[Any, Any, Database]]
    tables: Tables
    execute: Callable[[str], None]
    shape: Callable[[], list[str]]


def statements(version: int, dialect: Dialect) -> list[str]:
    """Return the SQL of a version; bytes are written `{blob 00ff}`, as the databases spell them differently."""
    literal = r"X'\1'" if dialect.binary == "BLOB" else r"'\\x\1'"
    text = (RELEASED / f"{version:04}.sql").read_text(encoding="utf-8")
    return split_statements(re.sub(r"\{blob ([0-9a-f]*)\}", literal, text), dialect.serial, dialect.binary)


def counters(tables: Tables, dialect: Dialect) -> list[str]:
    """Return what sets the counters to where the old server had left them: deleted objects have been counted too."""
    highest = max(row["seq"] for row in tables["tombstones"])
    numbers = {
        name: max(highest, *(row["seq"] for row in rows))
        for name, rows in tables.items()
        if name != "tombstones" and "seq" in rows[0]
    }
    return [one.format(table=name, number=number) for name, number in numbers.items() for one in dialect.counter]


def make_sqlite(path: Path, version: int) -> Old:
    def execute(sql: str) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(sql)

    def shape() -> list[str]:
        with closing(sqlite3.connect(path)) as connection:
            return sorted(sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"))

    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        for statement in statements(version, sqlite.DIALECT):
            connection.execute(statement)
        connection.commit()
        connection.row_factory = sqlite3.Row
        tables = {name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")] for name in TABLES}
        for statement in counters(tables, sqlite.DIALECT):
            connection.execute(statement)
        connection.commit()
    return Old(version, lambda: SqliteDatabase.open(path), tables, execute, shape)


def make_postgres(url: str, version: int) -> Old:
    async def fetch(sql: str) -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return list(await connection.fetch(sql))
        finally:
            await connection.close()

    async def fill() -> Tables:
        for statement in statements(version, postgres.DIALECT):
            await fetch(statement)
        tables = {name: [dict(row) for row in await fetch(f"SELECT * FROM {name}")] for name in TABLES}
        for statement in counters(tables, postgres.DIALECT):
            await fetch(statement)
        return tables

    def execute(sql: str) -> None:
        asyncio.run(fetch(sql))

    def shape() -> list[str]:
        columns = asyncio.run(fetch(postgres.DIALECT.columns))
        indexes = asyncio.run(fetch("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'"))
        return sorted([*(str(tuple(row)) for row in columns), *(row[0] for row in indexes)])

    return Old(version, lambda: PostgresDatabase.open(url), asyncio.run(fill()), execute, shape)


def bodies(page: Page) -> list[Body]:
    return [json.loads(bytes(raw)) for raw in page.data]


def of(rows: list[dict[str, Any]], column: str, value: str) -> list[Body]:
    """Return the bodies of some rows as a list shows them: those that wait last, else in order."""
    found = [row for row in rows if row[column] == value]
    return [json.loads(row["body"]) for row in sorted(found, key=lambda row: (row.get("waits", 0), row["seq"]))]


async def check_all(database: Database, old: Old) -> None:
    """Everything is there. Adds a thread."""
    await check_project(database, old.tables)
    await check_threads(database, old.tables)
    await check_keys(database, old)
    await check_order(database, old.tables)
    if old.version >= FILES_SINCE:
        await check_files(database)
    if old.version >= STORES_SINCE:
        await check_stores(database)


async def check_project(database: Database, tables: Tables) -> None:
    """Assistants and threads are listed as before, and threads are found by their metadata."""
    for project in tables["projects"]:
        page = await database.read(list_assistants, project["id"], ALL)
        assert bodies(page) == of(tables["assistants"], "project_id", project["id"]) != []
        threads = of(tables["threads"], "project_id", project["id"])
        assert bodies(await database.read(list_threads, project["id"], ALL, ThreadFilters())) == threads != []
        for thread in threads:
            for pair in thread["metadata"].items():
                found = bodies(await database.read(list_threads, project["id"], ALL, ThreadFilters(metadata=(pair,))))
                assert found == [one for one in threads if pair in one["metadata"].items()]
    for row in tables["assistants"]:
        assistant, extra = await database.read(get_assistant, row["id"], row["project_id"])
        assert (assistant.id, extra.given) == (row["id"], json.loads(row["extra"]).get("given", []))


async def check_threads(database: Database, tables: Tables) -> None:
    """Messages, runs, steps and event logs are as before."""
    for thread in tables["threads"]:
        page = await database.read(list_messages, thread["id"], ALL, None)
        assert bodies(page) == of(tables["messages"], "thread_id", thread["id"])
        assert bodies(await database.read(list_runs, thread["id"], ALL)) == of(
            tables["runs"], "thread_id", thread["id"]
        )
    statuses = {row["status"] for row in tables["runs"]}
    assert statuses >= {"completed", "failed", "cancelled", "requires_action", "in_progress"}
    for row in tables["runs"]:
        assert await database.read(get_run_body, row["id"], row["thread_id"], row["project_id"]) == row["body"]
        assert bodies(await database.read(list_steps, row["id"], ALL)) == of(tables["steps"], "run_id", row["id"])
        events = await database.read(list_events, row["id"], 0)
        stored = [events for log in tables["run_events"] if log["run_id"] == row["id"] for events in [log["events"]]]
        assert len(events) == sum(len(json.loads(one)) for one in stored) > 0
    held = [row["id"] for row in tables["runs"] if row["worker_id"] is not None]
    assert await database.read(list_held_runs, None) == held != []


async def check_keys(database: Database, old: Old) -> None:
    """Keys open what they opened; what was revoked stays so."""
    door = await database.read(find_door, hash_key(KEYS[old.version]))
    assert door.project_id == DEFAULT
    keys = await database.read(list_keys)
    assert {key.id: key.revoked_at for key in keys} == {row["id"]: row["revoked_at"] for row in old.tables["api_keys"]}
    assert any(key.revoked_at is not None for key in keys)


async def check_stores(database: Database) -> None:
    """Vector stores and files are listed with their counts; chunks are there; a file in work is found again."""
    stores = bodies(await database.read(list_vector_stores, DEFAULT, ALL, FILES_TIME))
    assert [(one["name"], one["status"]) for one in stores] == [
        ("Fruit", "completed"),
        ("", "completed"),
        ("At work", "in_progress"),
    ]
    for store in stores:
        files = bodies(await database.read(list_store_files, store["id"], DEFAULT, ALL, None))
        assert store["file_counts"]["total"] == len(files)
        for status in ("in_progress", "completed", "failed"):
            assert store["file_counts"][status] == sum(one["status"] == status for one in files)
    snapshot = await database.read(read_snapshot, stores[0]["id"])
    assert snapshot is not None
    (live,) = snapshot.files
    (vector,) = await database.read(list_vectors, live.seq, live.attempt, -1, 10)
    assert unpack_terms(vector.terms)[term_hash("apple")] == 1
    assert len(vector.vector) % 4 == 0
    (text,) = await database.read(list_texts, live.seq, live.attempt)
    assert text.startswith("Apples and pears.")
    (held,) = await database.read(list_held_files, None)
    assert await database.run(recover_file, held, None, 3)
    assert await database.read(list_held_files, None) == []


async def check_files(database: Database) -> None:
    """Files are listed and found, and neither their blobs nor a part of an upload are orphans."""
    listed = bodies(await database.scan(list_files, DEFAULT, ALL, None, FILES_TIME))
    assert [one["filename"] for one in listed] == ["a.txt", "표 1.csv", "b.txt"]
    files = [await database.read(get_file, one["id"], DEFAULT, FILES_TIME) for one in listed]
    blobs = [file.blob for file in files]
    assert await database.read(find_orphans, [*blobs, PART_BLOB, "0" * 32]) == ["0" * 32]


async def check_order(database: Database, tables: Tables) -> None:
    """Cursors of deleted objects keep their place, and what is new comes last, at a number that was never used."""
    deleted = {row["id"]: row for row in tables["tombstones"]}
    for row in deleted.values():
        if row["id"].startswith("thread_"):
            with pytest.raises(NotFound):
                await database.read(get_thread_body, row["id"], row["parent"])
            query = PageQuery(limit=100, order="asc", after=row["id"])
            left = [one["id"] for one in tables["threads"] if one["seq"] > row["seq"]]
            found = await database.read(list_threads, row["parent"], query, ThreadFilters())
            assert [one["id"] for one in bodies(found)] == left
    new = Thread(id="thread_new", created_at=0, metadata={"user": "new"}, tool_resources=ToolResources())
    await database.run(insert_thread, new, [], DEFAULT)
    threads = await database.read(list_threads, DEFAULT, PageQuery(limit=1), ThreadFilters())
    assert threads.first_id == "thread_new"
    (gone,) = (name for name in deleted if name.startswith("thread_"))
    after = await database.read(list_threads, DEFAULT, PageQuery(order="asc", after=gone), ThreadFilters())
    assert after.first_id == "thread_new"
