"""Databases of every earlier version, brought up to this one, on SQLite and on a real Postgres.

A new migration needs three things here: its fingerprint and that of its step if it has one, a database of its version
in `released/` with a key in `old_databases.KEYS`, and a way to break it half-way.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Coroutine
from importlib import resources
from pathlib import Path
from typing import Any

import httpx2
import pytest

from perdure.errors import OperatorError
from perdure.store.migrations import STEPS, migrations, read_version
from tests.contract.old_databases import (
    KEYS,
    NEW_TABLES,
    RELEASED,
    TABLES,
    Old,
    check_all,
    make_postgres,
    make_sqlite,
)
from tests.server import server_process

Run = Callable[[Coroutine[Any, Any, Any]], Any]

FINGERPRINTS = {
    "0001_start.sql": "570c56bbfb95add903b945305fba388c975901f0a64ed34fe62fe6e8bc1ccddf",
    "0002_waiting.sql": "e316b70d8803133ae3d34a78c04afd7d60edffa4deab0d8d91e445c478491542",
    "0003_files.sql": "68a5ab7907d066775864b671821ad8ecf95ba8b35a7d3edff9aa511420c96408",
    "0004_vector_stores.sql": "5f3ffa6c3f3b66b1bd7a6b10fd2f9c5950322b78cd46b1dc4083a2583f101ad0",
    "fill_0002.py": "ebd70fcc7c0d8b877d59445c654cb6fe5220e050145644c0276b8b27eb1ed055",
}

VERSIONS = [migration.version for migration in migrations()]
NEWEST = VERSIONS[-1]
OLDER = VERSIONS[:-1]


@pytest.fixture(params=["sqlite", "postgres"])
def make_old(request: pytest.FixtureRequest) -> Callable[[int], Old]:
    """Give a function that makes the test's own database, of an earlier version."""
    if request.param == "sqlite":
        path: Path = request.getfixturevalue("sqlite_path")
        return lambda version: make_sqlite(path, version)
    url: str = request.getfixturevalue("empty_postgres")
    return lambda version: make_postgres(url, version)


def test_every_migration_has_a_database_of_its_version() -> None:
    assert sorted(path.name for path in RELEASED.iterdir()) == [f"{version:04}.sql" for version in VERSIONS]
    assert sorted(KEYS) == VERSIONS
    assert list(range(1, NEWEST + 1)) == VERSIONS


def test_what_was_released_is_never_edited() -> None:
    folder = resources.files("perdure.store.schema")
    named = [file.name for file in folder.iterdir() if file.is_file() and file.name[0] != "_"]
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in named}
    assert found == FINGERPRINTS
    assert {f"fill_{version:04}.py" for version in STEPS} == {name for name in found if name.endswith(".py")}


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_is_there_after_the_migration(version: int, make_old: Callable[[int], Old], run: Run) -> None:
    old = make_old(version)

    async def story() -> None:
        database = await old.open()
        assert await database.read(read_version) == NEWEST
        await check_all(database, old)
        await database.close()

    run(story())


@pytest.mark.parametrize("version", OLDER)
def test_a_migrated_database_has_the_shape_of_a_new_one(version: int, make_old: Callable[[int], Old], run: Run) -> None:
    old = make_old(version)
    run(opened_and_closed(old))
    migrated = old.shape()
    for table in (*tables_there(migrated), "schema_version"):
        old.execute(f"DROP TABLE {table}")
    run(opened_and_closed(old))
    assert old.shape() == migrated


def tables_there(shape: list[str]) -> list[str]:
    known = (*TABLES, *NEW_TABLES)
    return [name for name in known if any(name in line for line in shape)]


async def opened_and_closed(old: Old) -> None:
    database = await old.open()
    await database.close()


BREAKS = {
    1: ("CREATE TABLE thread_metadata (other BIGINT)", "DROP TABLE thread_metadata"),
    2: ("CREATE TABLE upload_parts (other BIGINT)", "DROP TABLE upload_parts"),
    3: ("CREATE TABLE dead_chunks (other BIGINT)", "DROP TABLE dead_chunks"),
}
"""For each earlier version: what is in the way of the next migration after its first statements, and its end."""


@pytest.mark.parametrize("version", OLDER)
def test_a_migration_that_breaks_off_leaves_the_version_before(
    version: int, make_old: Callable[[int], Old], run: Run
) -> None:
    break_it, mend_it = BREAKS[version]
    old = make_old(version)
    old.execute(break_it)
    before = old.shape()
    with pytest.raises(OperatorError, match="already exists"):
        run(old.open())
    assert old.shape() == before
    old.execute(mend_it)

    async def story() -> None:
        database = await old.open()
        assert await database.read(read_version) == NEWEST
        await check_all(database, old)
        await database.close()

    run(story())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_starts_on_an_old_folder_and_ends_its_runs(version: int, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    old = make_sqlite(data / "perdure.db", version)
    with server_process(data) as server, httpx2.Client(headers={"Authorization": f"Bearer {KEYS[version]}"}) as client:
        for row in old.tables["runs"]:
            path = f"{server.url}/threads/{row['thread_id']}/runs/{row['id']}"
            if row["ended_at"] is not None:
                assert client.get(path).text == row["body"]
                continue
            with client.stream("GET", f"{path}/events", timeout=60) as events:
                assert events.read().endswith(b"data: [DONE]\n\n")
            waits = bool(row.get("waits"))  # its time begins when it is let in
            assert client.get(path).json()["status"] == ("completed" if waits else "expired")
        for row in old.tables["messages"]:
            if row["status"] == "completed" and row["thread_id"] in {one["thread_id"] for one in old.tables["runs"]}:
                got = client.get(f"{server.url}/threads/{row['thread_id']}/messages/{row['id']}")
                assert got.text == row["body"]


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["keys", "list"], ["backup", "file.zip"], ["export"]])
def test_a_program_that_is_older_than_its_database_says_so_in_one_line(command: list[str], tmp_path: Path) -> None:
    make_sqlite(tmp_path / "perdure.db", NEWEST).execute("INSERT INTO schema_version (version) VALUES (9999)")
    before = (tmp_path / "perdure.db").read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "perdure", *command, "--data", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"perdure: the database has schema version 9999, this Perdure knows {NEWEST}: start the Perdure that wrote it, "
        "or a newer one\n"
    )
    assert (tmp_path / "perdure.db").read_bytes() == before
