"""Backups of old databases, restored into each store: from the laptop's SQLite into Postgres, and back."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from perdure.app import open_database
from perdure.backup import make_backup, restore_backup
from perdure.errors import OperatorError
from perdure.settings import Settings, read_settings
from perdure.store import dump, postgres, sqlite
from perdure.store.db import Database, Do, Operation, Row, Rows
from perdure.store.dump import Table
from perdure.store.migrations import migrations
from perdure.store.sqlite import SqliteDatabase
from tests.contract.old_databases import FILES_SINCE, PART_BLOB, Old, check_all, make_postgres, make_sqlite

Run = Callable[[Coroutine[Any, Any, Any]], Any]
VERSIONS = [migration.version for migration in migrations()]
STORES = ["sqlite", "postgres"]
BYTES = b"\0\xff bytes"


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Settings, Old]:
    """An old database in the store and of the version that the test names."""
    store, version = request.param
    data = tmp_path / "source"
    data.mkdir()
    if store == "sqlite":
        return read_settings(data=data), make_sqlite(data / "perdure.db", version)
    url: str = request.getfixturevalue("empty_postgres")
    return read_settings(data=data, database_url=url), make_postgres(url, version)


@pytest.fixture
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """An empty place in the store that the test names."""
    if request.param == "sqlite":
        return read_settings(data=tmp_path / "target")
    return read_settings(data=tmp_path / "target", database_url=request.getfixturevalue("postgres_url"))


def lay_bytes(settings: Settings, old: Old) -> Path | None:
    """Lay the bytes of one blob where they belong, of those that the version's rows name."""
    if old.version < FILES_SINCE:
        return None
    blob = Path("files") / PART_BLOB[:2] / PART_BLOB
    (settings.data / blob).parent.mkdir(parents=True)
    (settings.data / blob).write_bytes(BYTES)
    return blob


@pytest.mark.parametrize("target", STORES, indirect=True)
@pytest.mark.parametrize("source", [(store, version) for store in STORES for version in VERSIONS], indirect=True)
def test_a_backup_fits_every_store(source: tuple[Settings, Old], target: Settings, tmp_path: Path, run: Run) -> None:
    settings, old = source
    blob = lay_bytes(settings, old)
    manifest = make_backup(settings, tmp_path / "backup.zip", force=False)
    assert manifest.schema_version == old.version, "a backup does not migrate: an older server may be at work"
    assert {name: manifest.tables[name].rows for name in old.tables} == {
        name: len(rows) for name, rows in old.tables.items()
    }
    assert restore_backup(target, tmp_path / "backup.zip", force=False).aside is None
    assert blob is None or (target.data / blob).read_bytes() == BYTES
    assert len(manifest.lost) == (0 if blob is None else 3)

    async def story() -> None:
        database = await open_database(target)
        await check_all(database, old)
        await database.close()

    run(story())


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A backup of the newest version's database."""
    data = tmp_path / "saved"
    data.mkdir()
    make_sqlite(data / "perdure.db", VERSIONS[-1])
    make_backup(read_settings(data=data), tmp_path / "backup.zip", force=False)
    return tmp_path / "backup.zip"


async def fetch(url: str, sql: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


def test_a_postgres_that_is_not_empty_is_refused_or_kept_aside(
    backup: Path, empty_postgres: str, tmp_path: Path, run: Run
) -> None:
    settings = read_settings(data=tmp_path / "data", database_url=empty_postgres)
    old = make_postgres(empty_postgres, VERSIONS[0])
    asyncio.run(fetch(empty_postgres, "CREATE TABLE somebody_elses (text TEXT)"))
    with pytest.raises(OperatorError, match="the database is not empty"):
        restore_backup(settings, backup, force=False)
    assert run(fetch(empty_postgres, "SELECT version FROM schema_version")) == [(VERSIONS[0],)]
    restored = restore_backup(settings, backup, force=True)
    assert restored.aside is not None
    schema = restored.aside.removeprefix("the schema ")
    kept = run(fetch(empty_postgres, f"SELECT id FROM {schema}.threads ORDER BY seq"))
    assert kept == [(row["id"],) for row in old.tables["threads"]]
    assert run(fetch(empty_postgres, "SELECT count(*) FROM somebody_elses")) == [(0,)]
    assert run(fetch(empty_postgres, "SELECT count(*) FROM threads")) == [(7,)]


def test_a_restore_into_a_postgres_that_is_in_use_is_refused(
    backup: Path, postgres_url: str, tmp_path: Path, run: Run
) -> None:
    settings = read_settings(data=tmp_path / "data", database_url=postgres_url)
    server: Database = run(open_database(settings))
    with pytest.raises(OperatorError, match="another Perdure uses the database"):
        restore_backup(settings, backup, force=True)
    run(server.close())
    restore_backup(settings, backup, force=False)


def test_a_load_that_breaks_off_leaves_an_empty_database(run: Run, tmp_path: Path) -> None:
    """All of a load is one transaction."""

    class GoneError(Exception):
        pass

    def rows_of(name: str) -> tuple[Sequence[str], Iterator[list[Any]]]:
        if name == "runs":
            raise GoneError
        columns = {"projects": ["id", "name", "created_at"]}.get(name)
        if columns is None:
            table = next(one for one in tables if one.name == name)
            return table.columns, iter(())
        return columns, iter([["proj_1", "one", 1]])

    def names() -> Operation[list[tuple[str]]]:
        rows = yield Rows("SELECT name FROM sqlite_master WHERE name = 'projects'")
        return list(rows)

    async def story() -> None:
        full = await SqliteDatabase.open(tmp_path / "full.db")
        tables.extend(await full.read(dump.list_tables, sqlite.DIALECT, VERSIONS[-1]))
        await full.close()
        database = await SqliteDatabase.open(tmp_path / "empty.db", newest=0)
        with pytest.raises(GoneError):
            await database.run(dump.load_tables, sqlite.DIALECT, VERSIONS[-1], rows_of)
        assert await database.read(names) == []
        await database.close()

    tables: list[Table] = []
    run(story())


class Pieces:
    """Takes a dump in memory."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.rows: list[Sequence[Any]] = []

    def begin(self, version: int) -> None:
        raise NotImplementedError

    def begin_table(self, table: Table) -> None:
        raise NotImplementedError

    def take(self, rows: Sequence[Sequence[Any]]) -> int:
        self.sizes.append(len(rows))
        self.rows += [tuple(row) for row in rows]
        return sum(len(row[2]) for row in rows)


def test_tables_are_read_in_pieces_and_bytes_come_back(database: Database, run: Run) -> None:
    """Pieces grow while rows are small and shrink when they are large, so that memory stays bounded."""
    dialect = sqlite.DIALECT if isinstance(database, SqliteDatabase) else postgres.DIALECT
    table = Table("things", ("a", "b", "c", "d"), ("a", "b"), frozenset({"d"}))
    rows: list[list[Any]] = [
        [f"name {n // 7:04}", n, "x" * (20 if n < 1000 else 20_000), bytes([n % 256, 0])] for n in range(2000)
    ]
    as_text = [[*row[:3], base64.b64encode(row[3]).decode()] for row in rows]

    def make() -> Operation[None]:
        yield Do(
            f"CREATE TABLE things (a TEXT, b BIGINT, c TEXT NOT NULL, d {dialect.binary}, PRIMARY KEY (a, b))",
        )
        yield from dump._load_table(table, table.columns, iter(as_text))

    def read() -> Operation[Pieces]:
        pieces = Pieces()
        yield from dump._dump_table(table, pieces)
        return pieces

    def key() -> Operation[list[tuple[Any, ...]]]:
        found = yield Rows(dialect.columns)
        return [tuple(row) for row in found if row[0] == "things"]

    def count() -> Operation[int]:
        (number,) = yield Row("SELECT count(*) FROM things")
        return int(number)

    async def story() -> None:
        await database.run(make)
        assert await database.read(count) == 2000
        pieces = await database.scan(read)
        assert sorted(pieces.rows, key=lambda row: row[1]) == [tuple(row) for row in rows]
        assert pieces.sizes[0] == dump.FIRST_ROWS
        largest = pieces.sizes.index(max(pieces.sizes))
        assert pieces.sizes[: largest + 1] == sorted(pieces.sizes[: largest + 1])
        assert pieces.sizes[largest + 1] < pieces.sizes[largest] / 2
        columns = await database.read(key)
        assert [row[1:3] for row in columns] == [("a", 1), ("b", 2), ("c", 0), ("d", 0)]
        assert [row[3] in dump.BINARY for row in columns] == [False, False, False, True]

    run(story())
