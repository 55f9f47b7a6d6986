"""What the Postgres driver promises beyond the contract.

Connections die, servers start together, passwords stay hidden.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from perdure.errors import OperatorError, Unavailable
from perdure.store.db import Do, Operation, Row, Rows
from perdure.store.postgres import PostgresDatabase

Run = Callable[[Coroutine[Any, Any, Any]], Any]

KILL_THE_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


def insert(name: str) -> Operation[None]:
    yield Do("INSERT INTO projects (id, name, created_at) VALUES ($1, $1, 0)", name)


def names() -> Operation[list[str]]:
    rows = yield Rows("SELECT name FROM projects WHERE id <> 'proj_default' ORDER BY name")
    return [name for (name,) in rows]


async def kill_the_others(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(KILL_THE_OTHERS)
    await connection.close()


class Cable:
    """A TCP relay to the server that can be cut: for good, or when the client sends a given word."""

    def __init__(self, url: str) -> None:
        self.server = urlsplit(url)
        self.cut_at: bytes | None = None
        self.passes_before_cut = False
        self.port = 0
        self._cutting = False
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return self.server._replace(netloc=f"postgres@127.0.0.1:{self.port}").geturl()

    async def plug(self) -> None:
        self._listener = await asyncio.start_server(self._relay, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for writer in list(self._writers):
            writer.close()
        await asyncio.sleep(0.01)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self.server.hostname, self.server.port)
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._pass_on(reader, back, watched=True), self._pass_on(there, writer, watched=False))
        finally:
            for one in (writer, back):
                one.close()
                self._writers.discard(one)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, watched: bool) -> None:
        try:
            while data := await reader.read(65536):
                cut = watched and self.cut_at is not None and self.cut_at in data
                self._cutting |= cut
                if not self._cutting or (cut and self.passes_before_cut):
                    writer.write(data)
                    await writer.drain()
                if cut:
                    self.cut_at = None
                    await asyncio.sleep(0.05)
                    await self.cut()
                    self._cutting = False
                    await self.plug()
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def cabled(url: str) -> AsyncIterator[tuple[Cable, PostgresDatabase]]:
    cable = Cable(url)
    await cable.plug()
    database = await PostgresDatabase.open(cable.url)
    try:
        yield cable, database
    finally:
        await database.close()
        await cable.cut()


def test_connections_killed_between_operations_are_replaced(postgres_url: str, run: Run) -> None:
    async def story() -> None:
        database = await PostgresDatabase.open(postgres_url)
        await asyncio.gather(*(database.run(insert, f"n{i}") for i in range(20)))
        for _ in range(3):
            await kill_the_others(postgres_url)
            assert len(await database.read(names)) == 20
        await kill_the_others(postgres_url)
        await asyncio.gather(*(database.run(insert, f"m{i}") for i in range(20)))
        assert len(await database.scan(names)) == 40
        await database.close()

    run(story())


def test_a_connection_killed_inside_an_operation_makes_it_run_again(postgres_url: str, run: Run) -> None:
    attempts: list[str] = []

    def insert_and_die(name: str) -> Operation[int]:
        yield from insert(name)
        attempts.append(name)
        if len(attempts) < 3:
            yield Row("SELECT pg_terminate_backend(pg_backend_pid())")
        return len(attempts)

    async def story() -> None:
        database = await PostgresDatabase.open(postgres_url)
        assert await database.run(insert_and_die, "one") == 3
        assert await database.read(names) == ["one"]
        await database.close()

    run(story())


@pytest.mark.parametrize("arrived", [True, False])
def test_a_connection_lost_during_commit_has_an_unknown_outcome(postgres_url: str, run: Run, arrived: bool) -> None:
    async def story() -> None:
        async with cabled(postgres_url) as (cable, database):
            cable.cut_at, cable.passes_before_cut = b"COMMIT\0", arrived
            with pytest.raises(Unavailable, match="whether this request was stored is unknown"):
                await database.run(insert, "one")
            assert await database.read(names) == (["one"] if arrived else [])

    run(story())


def test_a_server_that_is_away_is_unavailable_until_it_is_back(
    postgres_url: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        async with cabled(postgres_url) as (cable, database):
            await cable.cut()
            for calling in (database.run, database.read, database.scan):
                with pytest.raises(Unavailable, match="nothing of this request was stored"):
                    await calling(names)
            await cable.plug()
            await database.run(insert, "one")
            assert await database.read(names) == ["one"]

    with caplog.at_level(logging.INFO, "perdure.store.postgres"):
        run(story())
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]


def test_more_callers_than_connections_stand_in_line(postgres_url: str, run: Run) -> None:
    async def story() -> None:
        database = await PostgresDatabase.open(postgres_url, pool_size=2)
        await asyncio.gather(*(database.run(insert, f"n{i}") for i in range(100)))
        assert len(await database.read(names)) == 100
        await database.close()

    run(story())


def test_a_cancelled_callers_statement_comes_to_its_end(postgres_url: str, run: Run) -> None:
    def insert_slowly(name: str) -> Operation[None]:
        yield Row("SELECT pg_sleep(0.3)")
        yield from insert(name)

    async def story() -> None:
        database = await PostgresDatabase.open(postgres_url, pool_size=1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(database.run(insert_slowly, "slow"), 0.1)
        assert await database.read(names) == ["slow"]
        await database.close()

    run(story())


def test_servers_that_open_at_once_migrate_once(empty_postgres: str, run: Run) -> None:
    def versions() -> Operation[int]:
        (number,) = yield Row("SELECT count(*) FROM schema_version WHERE version = 1")
        return int(number)

    async def story() -> None:
        opened = await asyncio.gather(*(PostgresDatabase.open(empty_postgres) for _ in range(4)))
        assert [await one.read(versions) for one in opened] == [1] * 4
        for one in opened:
            await one.close()

    run(story())


def test_a_server_that_is_not_there_is_told_in_one_line_without_the_password(run: Run) -> None:
    with pytest.raises(OperatorError) as caught:
        run(PostgresDatabase.open("postgresql://perdure:very%2Fsecret@127.0.0.1:9/perdure"))
    text = str(caught.value)
    assert text.startswith("Postgres at 127.0.0.1:9/perdure can not be used: ")
    assert "secret" not in text
    assert "\n" not in text


def test_a_password_that_breaks_the_url_is_not_shown(run: Run) -> None:
    for url in ("postgresql://perdure:12/secret@host/db", "postgresql://perdure:12?secret@host/db"):
        with pytest.raises(OperatorError, match="PERDURE_DATABASE_URL can not be read") as caught:
            run(PostgresDatabase.open(url))
        assert "secret" not in str(caught.value)


def test_a_database_that_is_not_there_is_told(postgres: str, run: Run) -> None:
    with pytest.raises(OperatorError, match='/nowhere can not be used: database "nowhere" does not exist'):
        run(PostgresDatabase.open(urlsplit(postgres)._replace(path="/nowhere").geturl()))


def test_a_database_that_can_not_hold_every_text_is_refused(postgres: str, run: Run) -> None:
    async def story() -> None:
        connection = await asyncpg.connect(postgres)
        await connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        await connection.close()
        with pytest.raises(OperatorError, match="encoded in LATIN1"):
            await PostgresDatabase.open(urlsplit(postgres)._replace(path="/latin").geturl())

    run(story())
