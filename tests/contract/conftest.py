"""Fixtures for the contracts: each implementation of a port, opened on something real."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg
import pytest

from perdure.store.db import Database
from perdure.store.postgres import PostgresDatabase
from perdure.store.sqlite import SqliteDatabase
from tests.postgres_server import postgres_server

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

_numbers = itertools.count(1)


@pytest.fixture
def run() -> Iterator[Run[Any]]:
    """Run coroutines on one event loop, which lasts as long as the test."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Start Postgres and migrate a database `template` that each test copies; give the server's URL."""
    with postgres_server() as url:
        asyncio.run(_make_template(url))
        yield url


async def _make_template(url: str) -> None:
    await _execute(url, "CREATE DATABASE template")
    database = await PostgresDatabase.open(_on_same_server(url, "template"))
    await database.close()


async def _execute(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


def _on_same_server(url: str, name: str) -> str:
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@pytest.fixture
def empty_postgres(postgres: str) -> Iterator[str]:
    """Give the URL of a fresh database without any table."""
    yield from _fresh(postgres, "template1")


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """Give the URL of a fresh, migrated database."""
    yield from _fresh(postgres, "template")


def _fresh(server: str, template: str) -> Iterator[str]:
    name = f"test{next(_numbers)}"
    asyncio.run(_execute(server, f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield _on_same_server(server, name)
    asyncio.run(_execute(server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    return tmp_path / "perdure.db"


@pytest.fixture(params=["sqlite", "postgres"])
def open_database(request: pytest.FixtureRequest) -> Callable[[], Coroutine[Any, Any, Database]]:
    """Give a function that opens the test's own database, again and again if wanted."""
    if request.param == "sqlite":
        path: Path = request.getfixturevalue("sqlite_path")
        return lambda: SqliteDatabase.open(path)
    url: str = request.getfixturevalue("postgres_url")
    return lambda: PostgresDatabase.open(url)


@pytest.fixture
def database(open_database: Callable[[], Coroutine[Any, Any, Database]], run: Run[Any]) -> Iterator[Database]:
    """Give an opened driver; use it inside `run`."""
    opened: Database = run(open_database())
    yield opened
    run(opened.close())
