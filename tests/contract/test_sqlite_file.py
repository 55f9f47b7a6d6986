"""What the SQLite driver does with damaged files: it goes on with what is whole and says what is lost, or refuses.

Each story begins with what a process left that died: half of its commits are in the database, the other half only in
the write-ahead log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import OperatorError
from perdure.store.db import Operation, Rows
from perdure.store.sqlite import SqliteDatabase
from perdure.store.sqlite_file import find_damage

Run = Callable[[Coroutine[Any, Any, Any]], Any]

HALF = 40
INSERT_ONE_BY_ONE = """
import asyncio, os, sys
from pathlib import Path
from perdure.store.db import Do
from perdure.store.sqlite import SqliteDatabase

def insert(number):
    text = f"what was said {number} " * 150
    yield Do("INSERT INTO threads (id, project_id, created_at, body) VALUES ($1, 'p', 1, $2)", f"{number:03}", text)

async def half(first, last):
    database = await SqliteDatabase.open(Path(sys.argv[1]))
    for number in range(first, last):
        await database.run(insert, number)
    return database

async def main():
    await (await half(0, 40)).close()
    await half(40, 80)
    os._exit(9)

asyncio.run(main())
"""


class Files:
    """The three files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "perdure.db"
        self.wal = folder / "perdure.db-wal"
        self.index = folder / "perdure.db-shm"

    def contents(self) -> list[bytes]:
        """Of database and log; one that is not there is as good as an empty one."""
        return [path.read_bytes() if path.exists() else b"" for path in (self.database, self.wal)]


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("died")
    command = [sys.executable, "-c", INSERT_ONE_BY_ONE, str(folder / "perdure.db")]
    assert subprocess.run(command, check=False).returncode == 9
    return folder


@pytest.fixture
def files(died: Path, tmp_path: Path) -> Files:
    shutil.copytree(died, tmp_path / "data")
    return Files(tmp_path / "data")


def overwrite(path: Path, at: int, change: Callable[[bytes], bytes], length: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(length)
        file.seek(at)
        file.write(change(old))


def flip(files: Files) -> None:
    """Turn the bits of a byte in the middle of the log."""
    overwrite(files.wal, files.wal.stat().st_size // 2, lambda old: bytes(255 - byte for byte in old), 1)


def flip_without_index(files: Files) -> None:
    flip(files)
    files.index.unlink()


def flip_with_damaged_index(files: Files) -> None:
    flip(files)
    overwrite(files.index, 16, lambda old: bytes(len(old)), 4)


def tear(files: Files) -> None:
    """Cut the log in the middle of a frame."""
    os.truncate(files.wal, files.wal.stat().st_size * 2 // 3 + 7)


def garble(files: Files) -> None:
    overwrite(files.wal, 0, lambda old: os.urandom(len(old)), files.wal.stat().st_size)


def zero_a_page(files: Files) -> None:
    data = files.database.read_bytes()
    leaves = [at for at in range(0, len(data), 4096) if data[at] == 13 and b"what was said" in data[at : at + 4096]]
    overwrite(files.database, leaves[len(leaves) // 2], lambda old: bytes(len(old)), 4096)


def shorten(files: Files) -> None:
    os.truncate(files.database, files.database.stat().st_size // 2)


def replace_by_a_letter(files: Files) -> None:
    files.database.write_text("Dear SQLite, " * 5000)


def delete(files: Files) -> None:
    files.database.unlink()


def empty(files: Files) -> None:
    os.truncate(files.database, 0)


def merge(files: Files) -> None:
    """Copy the log back into the file, as a clean end does."""
    with closing(sqlite3.connect(files.database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def names() -> Operation[list[str]]:
    rows = yield Rows("SELECT id FROM threads ORDER BY id")
    return [row[0] for row in rows]


def opened(files: Files, run: Run, log: pytest.LogCaptureFixture) -> tuple[int, list[str]]:
    """Open twice; return how many of the commits are there, the first ones, and what the first time was told."""

    async def story() -> int:
        database = await SqliteDatabase.open(files.database)
        found = await database.read(names)
        await database.close()
        assert found == [f"{number:03}" for number in range(len(found))]
        return len(found)

    there = run(story())
    told = [record.message for record in log.records if record.levelno >= logging.WARNING]
    with closing(sqlite3.connect(files.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    log.clear()
    assert run(story()) == there
    assert not log.records, "it is told once"
    return there, told


def kept(files: Files) -> list[bytes]:
    return [path.read_bytes() for path in files.folder.glob("perdure.db-wal.damaged-*")]


# -- what is no damage


@pytest.mark.parametrize("damage", [lambda _: None, lambda files: files.index.unlink(), merge])
def test_what_a_crash_leaves_is_whole(
    files: Files, run: Run, caplog: pytest.LogCaptureFixture, damage: Callable[[Files], None]
) -> None:
    damage(files)
    assert find_damage(files.database) is None
    assert opened(files, run, caplog) == (HALF * 2, [])


@pytest.mark.parametrize("index", [True, False])
def test_a_commit_that_was_under_way_is_left_out(
    files: Files, run: Run, caplog: pytest.LogCaptureFixture, index: bool
) -> None:
    head = files.wal.read_bytes()[:32]
    with files.wal.open("ab") as log:  # pages of a commit that came to the disk out of order, its end among them
        for pages_after in (0, 0, 100):
            log.write(struct.pack(">II", 2, pages_after) + head[16:24] + bytes(8) + bytes(4096))
        log.write(b"torn")
    if not index:
        files.index.unlink()
    assert opened(files, run, caplog) == (HALF * 2, [])


def test_a_last_commit_cut_by_a_power_cut_is_left_out(files: Files, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    os.truncate(files.wal, files.wal.stat().st_size - 100)
    files.index.unlink()
    assert opened(files, run, caplog) == (HALF * 2 - 1, [])


# -- a damaged log


@pytest.mark.parametrize("damage", [flip, flip_without_index, flip_with_damaged_index, tear])
def test_a_log_is_read_up_to_the_damage_and_kept(
    files: Files, run: Run, caplog: pytest.LogCaptureFixture, damage: Callable[[Files], None]
) -> None:
    damage(files)
    before = files.contents()
    assert "pages of acknowledged commits behind page" in str(find_damage(files.database))
    assert files.contents() == before
    there, told = opened(files, run, caplog)
    assert HALF < there < HALF * 2
    assert len(told) == 1
    assert "pages of acknowledged commits behind page" in told[0]
    assert told[0].endswith("`perdure restore FILE --force` brings back a backup")
    assert kept(files) == [before[1]]


@pytest.mark.parametrize("index", [True, False])
def test_a_log_of_garbage_is_put_aside(files: Files, run: Run, caplog: pytest.LogCaptureFixture, index: bool) -> None:
    garble(files)
    if not index:
        files.index.unlink()
    before = files.contents()
    there, told = opened(files, run, caplog)
    assert (there, len(told)) == (HALF, 1)
    assert ("pages of acknowledged commits behind page 0" if index else "acknowledged commits may be lost") in told[0]
    assert kept(files) == [before[1]]


def test_a_deleted_log_is_missed(files: Files, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    files.wal.unlink()
    there, told = opened(files, run, caplog)
    assert (there, len(told)) == (HALF, 1)
    assert "is gone or empty, and with it what was acknowledged last" in told[0]


def test_a_log_older_than_the_file_is_not_mixed_with_it(
    files: Files, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """All of the log was copied back into the file, then the log was damaged: its beginning is older than the file."""
    paths = (files.database, files.wal, files.index)
    with closing(sqlite3.connect(files.database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        now = [path.read_bytes() for path in paths]
    for path, data in zip(paths, now, strict=True):
        path.write_bytes(data)
    flip(files)
    before = files.contents()
    there, told = opened(files, run, caplog)
    assert (there, len(told)) == (HALF * 2, 1)
    assert "nothing is lost" in told[0]
    assert kept(files) == [before[1]]


# -- a damaged file


@pytest.mark.parametrize("first", [lambda _: None, merge, flip])
@pytest.mark.parametrize("damage", [zero_a_page, shorten, replace_by_a_letter])
def test_a_damaged_file_is_refused_and_left_as_it_is(
    files: Files, run: Run, first: Callable[[Files], None], damage: Callable[[Files], None]
) -> None:
    first(files)
    damage(files)
    before = files.contents()
    assert find_damage(files.database) is not None
    for _ in range(2):
        with pytest.raises(
            OperatorError, match=r"can not be used: .*bring back a backup with `perdure restore FILE --force`$"
        ):
            run(SqliteDatabase.open(files.database))
        assert files.contents() == before
    assert not kept(files)


@pytest.mark.parametrize("damage", [delete, empty])
def test_a_log_without_its_file_is_not_deleted(files: Files, run: Run, damage: Callable[[Files], None]) -> None:
    damage(files)
    before = files.contents()
    with pytest.raises(OperatorError, match=r"is missing or empty, though its log perdure\.db-wal is there"):
        run(SqliteDatabase.open(files.database))
    assert files.contents() == before


def test_a_database_that_is_open_is_not_looked_at_again(files: Files, run: Run) -> None:
    async def story() -> None:
        first = await SqliteDatabase.open(files.database)
        second = await SqliteDatabase.open(files.database)
        await second.close()
        third = await SqliteDatabase.open(files.database)
        more = INSERT_ONE_BY_ONE.replace("half(0, 40)", "half(80, 90)").replace("half(40, 80)", "half(90, 120)")
        command = [sys.executable, "-c", more, str(files.database)]
        assert (await asyncio.to_thread(subprocess.run, command, check=False)).returncode == 9
        assert len(await first.read(names)) == len(await third.read(names)) == HALF * 3
        await third.close()
        await first.close()

    run(story())
