"""What the SQLite driver promises beyond the contract: durability, and manners on a full or broken disk."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import OperatorError, Unavailable
from perdure.store.db import Do, Operation, Row
from perdure.store.sqlite import SqliteDatabase

Run = Callable[[Coroutine[Any, Any, Any]], Any]

INSERT = "INSERT INTO threads (id, project_id, created_at, body) VALUES ($1, 'proj_default', 1, $2)"

DIE_AFTER_COMMITS = """
import asyncio, os, sys
from pathlib import Path
from perdure.store.db import Do
from perdure.store.sqlite import SqliteDatabase

def insert(number):
    yield Do("INSERT INTO projects (id, name, created_at) VALUES ($1, $1, 0)", f"n{number}")

async def main():
    database = await SqliteDatabase.open(Path(sys.argv[1]))
    await asyncio.gather(*(database.run(insert, number) for number in range(100)))
    os._exit(9)

asyncio.run(main())
"""

FILL_THE_DISK = """
import asyncio, resource, sys
from pathlib import Path
from perdure.errors import Unavailable
from perdure.store.db import Do, Row
from perdure.store.sqlite import SqliteDatabase

def insert(number):
    yield Do("INSERT INTO threads (id, project_id, created_at, body) VALUES ($1, 'p', 1, $2)", f"n{number}", "x" * 9000)

def count():
    return (yield Row("SELECT count(*) FROM threads"))[0]

async def main():
    database = await SqliteDatabase.open(Path(sys.argv[1]))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    outcomes = await asyncio.gather(*(database.run(insert, i) for i in range(300)), return_exceptions=True)
    for i in range(300, 310):
        outcomes += await asyncio.gather(database.run(insert, i), return_exceptions=True)
    failed = [one for one in outcomes if one is not None]
    assert failed and all(isinstance(one, Unavailable) for one in failed), failed
    assert all("nothing of this request was stored" in one.message for one in failed), failed
    stored = len(outcomes) - len(failed)
    assert await database.read(count) == stored
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await asyncio.gather(*(database.run(insert, i) for i in range(1000, 1100)))
    assert await database.read(count) == stored + 100
    await database.close()

asyncio.run(main())
"""


def insert(name: str, body: str = "") -> Operation[None]:
    yield Do(INSERT, name, body)


def count() -> Operation[int]:
    (number,) = yield Row("SELECT count(*) FROM threads")
    return int(number)


def limit_pages(pages: int) -> Operation[None]:
    yield Row(f"PRAGMA max_page_count = {pages}")


def test_what_was_answered_survives_a_process_that_dies(sqlite_path: Path, run: Run) -> None:
    def projects() -> Operation[int]:
        (number,) = yield Row("SELECT count(*) FROM projects WHERE id <> 'proj_default'")
        return int(number)

    died = subprocess.run([sys.executable, "-c", DIE_AFTER_COMMITS, str(sqlite_path)], check=False)
    assert died.returncode == 9

    async def story() -> None:
        database = await SqliteDatabase.open(sqlite_path)
        assert await database.read(projects) == 100
        await database.close()

    run(story())


def test_every_commit_is_synced(sqlite_path: Path, run: Run) -> None:
    def pragmas() -> Operation[tuple[str, int, int]]:
        (mode,) = yield Row("PRAGMA journal_mode")
        (synchronous,) = yield Row("PRAGMA synchronous")
        (foreign_keys,) = yield Row("PRAGMA foreign_keys")
        return mode, synchronous, foreign_keys

    async def story() -> None:
        database = await SqliteDatabase.open(sqlite_path)
        assert await database.run(pragmas) == ("wal", 2, 0)
        await database.close()

    run(story())


def test_closing_leaves_one_file(sqlite_path: Path, run: Run) -> None:
    async def story() -> None:
        database = await SqliteDatabase.open(sqlite_path)
        await database.run(insert, "thread_1")
        assert await database.read(count) == await database.scan(count) == 1
        await database.close()

    run(story())
    assert [file.name for file in sqlite_path.parent.iterdir()] == [sqlite_path.name]


def test_a_full_disk_refuses_and_recovers(sqlite_path: Path, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        database = await SqliteDatabase.open(sqlite_path)
        await database.run(insert, "before")
        await database.run(limit_pages, 60)
        work = (database.run(insert, f"n{i}", "x" * 50_000) for i in range(20))
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        for one in outcomes:
            assert isinstance(one, Unavailable)
            assert "disk that holds the database is full. Free space there" in one.message
        assert await database.read(count) == 1
        await database.run(insert, "small")
        await database.run(limit_pages, 1_000_000)
        await asyncio.gather(*(database.run(insert, f"n{i}", "x" * 50_000) for i in range(20)))
        assert await database.read(count) == 22
        await database.close()

    with caplog.at_level(logging.INFO, "perdure.store.sqlite"):
        run(story())
    assert [record.message for record in caplog.records] == [
        "writes fail: database or disk is full (SQLITE_FULL)",
        "writes work again",
    ]
    assert all(record.exc_info is None for record in caplog.records)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
def test_a_disk_that_refuses_writes_loses_nothing_that_was_answered(sqlite_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(sqlite_path)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_an_operation_that_must_be_undone_does_not_disturb_its_batch(sqlite_path: Path, run: Run) -> None:
    """Several operations share one transaction: the writer is held up until all of them wait."""
    gate = threading.Event()

    def hold() -> Operation[None]:
        gate.wait(30)
        yield Row("SELECT 1")

    def insert_twice_then_refuse(name: str) -> Operation[None]:
        yield Do(INSERT, name, "")
        yield Do(INSERT, f"{name}_again", "")
        raise ValueError(name)

    async def story() -> None:
        database = await SqliteDatabase.open(sqlite_path)
        held = asyncio.create_task(database.run(hold))
        work = [database.run(insert if i % 2 else insert_twice_then_refuse, f"n{i}") for i in range(600)]
        waiting = asyncio.gather(*work, return_exceptions=True)
        await asyncio.sleep(0.05)
        gate.set()
        outcomes = await waiting
        await held
        assert [type(one) for one in outcomes] == [type(None) if i % 2 else ValueError for i in range(600)]
        assert await database.read(count) == 300
        await database.close()

    run(story())


def test_callers_may_live_on_several_loops(sqlite_path: Path, run: Run) -> None:
    database: SqliteDatabase = run(SqliteDatabase.open(sqlite_path))

    async def story(prefix: str) -> None:
        await asyncio.gather(*(database.run(insert, f"{prefix}{i}") for i in range(50)))
        assert await database.read(count) >= 50

    threads = [threading.Thread(target=lambda name=name: asyncio.run(story(name))) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run(database.scan(count)) == 150
    run(database.close())


def _open_and_close(path: str) -> None:
    async def story() -> None:
        database = await SqliteDatabase.open(Path(path))
        await database.close()

    asyncio.run(story())


def test_processes_that_open_at_once_migrate_once(sqlite_path: Path, run: Run) -> None:
    def versions() -> Operation[int]:
        (number,) = yield Row("SELECT count(*) FROM schema_version WHERE version = 1")
        return int(number)

    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        pool.map(_open_and_close, [str(sqlite_path)] * 4, chunksize=1)

    async def story() -> None:
        database = await SqliteDatabase.open(sqlite_path)
        assert await database.read(versions) == 1
        await database.close()

    run(story())


def test_a_folder_that_is_not_there_is_told_in_one_line(tmp_path: Path, run: Run) -> None:
    with pytest.raises(OperatorError, match=r"can not be opened: .*check the folder's permissions$"):
        run(SqliteDatabase.open(tmp_path / "no" / "perdure.db"))


def test_a_file_that_is_no_database_is_told_in_one_line(sqlite_path: Path, run: Run) -> None:
    sqlite_path.write_bytes(b"this is a letter, not a database" * 100)
    with pytest.raises(OperatorError, match="can not be used: file is not a database"):
        run(SqliteDatabase.open(sqlite_path))
