"""A restore that is killed leaves what was there or what was restored, or is noticed; nothing of the old is ever lost.

It is killed before each of its changes from the first that counts, before some earlier ones, and at random moments.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import asyncpg
import pytest

from perdure.errors import OperatorError
from tests.postgres_server import postgres_server
from tests.server import Client, running_server

PROGRAM = Path(__file__).with_name("mortal_restore.py")
MARKER, MARKER_GOES = "open perdure.restoring", "os.remove perdure.restoring"
RANDOM_KILLS = 4
OLD, NEW = "old", "new"
OLD_NAME = f'"name":"{OLD}"'


class Place(NamedTuple):
    """Where a server keeps everything."""

    data: Path
    database_url: str | None = None

    @property
    def settings(self) -> dict[str, str]:
        return {} if self.database_url is None else {"database_url": self.database_url}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
        given = {f"PERDURE_{name.upper()}": value for name, value in self.settings.items()}
        return subprocess.Popen(
            [sys.executable, *arguments],
            env={**clean, "PERDURE_DATA": str(self.data), **given},
            cwd=self.data.parent,
            stderr=subprocess.PIPE,
        )


def fill(place: Place, name: str) -> None:
    """Make a thread, and files of several sizes, all with this name in them."""
    with running_server(place.data, **place.settings) as url, Client(url) as client:
        client.beta.threads.create(metadata={"name": name}, messages=[{"role": "user", "content": name * 1000}] * 100)
        for number in range(12):
            client.files.create(file=(f"{number}", name.encode() * (1 + number * 40_000)), purpose="assistants")


def state(place: Place) -> str:
    """Serve, and return the name that everything has. Raises OperatorError where the start is refused."""
    with running_server(place.data, **place.settings) as url, Client(url) as client:
        (thread,) = client.get("/threads", cast_to=object)["data"]  # type: ignore[index]
        name: str = thread["metadata"]["name"]
        files = client.files.list(order="asc").data
        assert [one.filename for one in files] == [f"{number}" for number in range(12)]
        for number, one in enumerate(files):
            assert client.files.content(one.id).read() == name.encode() * (1 + number * 40_000)
        return name


def done(process: subprocess.Popen[bytes]) -> str:
    """Wait for its end; return what it said."""
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0, said
    return said


class Scene:
    """A backup of the new state, and as many places in the old state as are asked for."""

    def __init__(self, tmp_path: Path, server: str | None) -> None:
        self._folder, self._server, self._count = tmp_path, server, 0
        self._template = Place(tmp_path / "template", self._database("template_old"))
        fill(self._template, OLD)
        self.backup = tmp_path / "backup.zip"
        source = Place(tmp_path / "source")
        fill(source, NEW)
        done(source.start("-m", "perdure", "backup", str(self.backup)))

    def place(self) -> Place:
        self._count += 1
        name = f"place{self._count}"
        shutil.copytree(self._template.data, self._folder / name)
        return Place(self._folder / name, self._database(name, "template_old"))

    def _database(self, name: str, template: str = "template1") -> str | None:
        if self._server is None:
            return None
        asyncio.run(execute(self._server, f"CREATE DATABASE {name} TEMPLATE {template}"))
        return urlsplit(self._server)._replace(path=f"/{name}").geturl()

    def restore(self, place: Place, first: str, at: int, notes: Path) -> subprocess.Popen[bytes]:
        return place.start(str(PROGRAM), first, str(at), str(notes), "restore", str(self.backup), "--force")

    def check(self, place: Place) -> str:
        """Look at what a kill has left, and bring the new state in; return what was found."""
        try:
            found = state(place)
        except OperatorError as error:
            assert "broke off: run `perdure restore FILE --force` again" in str(error)  # noqa: PT017
            found = "refused"
        self._restore_again(place)
        assert state(place) == NEW
        assert found == NEW or self._keeps_old(place)
        return found

    def _restore_again(self, place: Place) -> None:
        """Restore. On Postgres what the killed one had begun ends a moment after it."""
        for _ in range(50):
            process = place.start("-m", "perdure", "restore", str(self.backup), "--force")
            said = process.communicate(timeout=60)[1].decode()
            if "another Perdure uses the database" not in said:
                break
            time.sleep(0.1)
        assert process.returncode == 0, said
        assert not (place.data / "restore.tmp").exists()
        assert not (place.data / "perdure.restoring").exists()

    def _keeps_old(self, place: Place) -> bool:
        """Say whether the old database and the bytes of its files are set aside."""
        asides = list(place.data.glob("before-restore-*"))
        content = {one.read_bytes() for aside in asides for one in aside.glob("files/*/*") if one.is_file()}
        assert {OLD.encode() * (1 + number * 40_000) for number in range(12)} <= content
        if place.database_url is not None:
            return asyncio.run(find_old_schema(place.database_url))
        return any(has_old_thread(aside / "perdure.db") for aside in asides)


async def execute(url: str, sql: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(sql))
    finally:
        await connection.close()


def has_old_thread(file: Path) -> bool:
    if not file.exists():
        return False
    with closing(sqlite3.connect(file)) as connection:
        return any(OLD_NAME in body for (body,) in connection.execute("SELECT body FROM threads"))


async def find_old_schema(url: str) -> bool:
    rows = await execute(url, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'before_restore_%'")
    bodies = [row[0] for one in rows for row in await execute(url, f"SELECT body FROM {one[0]}.threads")]
    return any(OLD_NAME in body for body in bodies)


@pytest.fixture(params=["sqlite", "postgres"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    if request.param == "sqlite":
        yield Scene(tmp_path, None)
        return
    with postgres_server() as url:
        yield Scene(tmp_path, url)


def test_a_killed_restore_leaves_one_state_or_is_noticed(scene: Scene, tmp_path: Path) -> None:
    assert state(scene.place()) == OLD
    whole, notes = scene.place(), tmp_path / "changes"
    done(scene.restore(whole, "-", 0, notes))
    assert state(whole) == NEW
    changes = notes.read_text().splitlines()
    late = changes[changes.index(MARKER) :]
    found: list[str] = []
    for first, at in [("-", 3), ("-", 20), *((MARKER, at) for at in range(1, len(late) + 1))]:
        place = scene.place()
        process = scene.restore(place, first, at, tmp_path / "ignored")
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, late
        found.append(scene.check(place))
    assert found[:3] == [OLD] * 3, "before the marker is there nothing has changed"
    end = late.index(MARKER_GOES)
    assert found[3:] == ["refused"] * end + [NEW] * (len(late) - end - 1)
    seed = random.randrange(2**32)  # noqa: S311  # no secret
    dice = random.Random(seed)  # noqa: S311
    for _ in range(RANDOM_KILLS):
        place = scene.place()
        process = scene.restore(place, "-", 0, tmp_path / "ignored")
        time.sleep(dice.uniform(0.4, 1.6))
        process.kill()
        process.communicate(timeout=60)
        assert scene.check(place) in {OLD, NEW, "refused"}, seed
