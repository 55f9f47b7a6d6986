"""Damaged files: the server starts with what is whole and says what is lost, or refuses in one line; never in silence.

Each story begins with the folder of a server that was killed: half of what it had acknowledged is in the database, the
other half only in the write-ahead log. More kinds of damage are in `tests/contract/test_sqlite_file.py`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import openai
import pytest

from tests.durability.load import end_of, poll
from tests.server import Client, ServerProcess, server_process

MESSAGES = 40
TEXT = "what was said " * 150
FRAME_HEAD = 24


class Story(NamedTuple):
    """A folder that a killed server left, and what it had acknowledged, in order: path and body."""

    data: Path
    promises: dict[str, bytes]

    @property
    def database(self) -> Path:
        return self.data / "perdure.db"

    @property
    def wal(self) -> Path:
        return self.data / "perdure.db-wal"


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Story:
    story = Story(tmp_path_factory.mktemp("crashed") / "data", {})
    with server_process(story.data) as server, Client(server.url) as client:
        thread_id = client.beta.threads.create().id
        say(client, thread_id, story.promises)
    server = ServerProcess(story.data)
    with Client(server.url) as client:
        say(client, thread_id, story.promises)
    server.kill()
    assert story.wal.stat().st_size > 100_000
    return story


@pytest.fixture
def story(crashed: Story, tmp_path: Path) -> Story:
    shutil.copytree(crashed.data, tmp_path / "data")
    return Story(tmp_path / "data", crashed.promises)


def say(client: Client, thread_id: str, promises: dict[str, bytes]) -> None:
    for _ in range(MESSAGES):
        text = f"{len(promises)} {TEXT}"
        made = client.beta.threads.messages.with_raw_response.create(thread_id, role="user", content=text)
        promises[f"/threads/{thread_id}/messages/{made.parse().id}"] = made.http_response.content


# -- damage


def flip(story: Story) -> None:
    """Turn the bits of a byte in the middle of the log."""
    overwrite(story.wal, story.wal.stat().st_size // 2, lambda old: bytes(255 - byte for byte in old), 1)


def overwrite(path: Path, at: int, change: Callable[[bytes], bytes], length: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(length)
        file.seek(at)
        file.write(change(old))


def zero_a_page(story: Story) -> None:
    overwrite(story.database, 4096 * leaf_page(story), lambda old: bytes(len(old)), 4096)


def leaf_page(story: Story) -> int:
    """Return the number, from 0, of a page in the middle of the file that holds messages."""
    data = story.database.read_bytes()
    pages = [
        at // 4096 for at in range(0, len(data), 4096) if data[at] == 13 and b"what was said" in data[at : at + 4096]
    ]
    return pages[len(pages) // 2]


# -- what came of it


def kept(client: Client, story: Story) -> int:
    """Return how much of what was acknowledged is there, from the beginning; behind it there must be nothing."""
    found = []
    for path, body in story.promises.items():
        try:
            assert client.get(path, cast_to=httpx2.Response).content == body
            found.append(True)
        except openai.NotFoundError:
            found.append(False)
    assert found == sorted(found, reverse=True), "what is left is a beginning"
    return sum(found)


def check_whole(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def errors_in(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if " ERROR " in line or "Traceback" in line]


def use(client: Client) -> None:
    """The server works: a run comes to its end."""
    assistant = client.beta.assistants.create(model="gpt-4o")
    run = client.beta.threads.create_and_run(
        assistant_id=assistant.id, thread={"messages": [{"role": "user", "content": "hello"}]}
    )
    assert end_of(client, run.thread_id, run.id).status == "completed"


def start(story: Story) -> tuple[int, list[str], list[Path]]:
    """Start, use, stop; return how much is there, the errors in the log, and logs kept aside."""
    with server_process(story.data) as server, Client(server.url) as client:
        there = kept(client, story)
        use(client)
    assert server.process.returncode == 0
    errors = errors_in(server.log)
    check_whole(story.database)
    return there, errors, sorted(story.data.glob("perdure.db-wal.damaged-*"))


def run_perdure(data: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    return subprocess.run(
        [sys.executable, "-m", "perdure", *words],
        env={**environment, "PERDURE_BUILTIN_MODEL": "scripted", "PERDURE_PORT": "0", "PERDURE_DATA": str(data)},
        cwd=data.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )


def refused(story: Story) -> str:
    """Try to start; return the one line. Nothing is changed."""
    before = hashes(story)
    second = run_perdure(story.data, "serve")
    assert second.returncode == 2, second.stderr
    assert len(second.stderr.splitlines()) == 1, second.stderr
    assert hashes(story) == before
    return second.stderr


def hashes(story: Story) -> dict[str, str]:
    """Of the database and its log; one that is not there is as good as an empty one."""
    return {
        path.name: hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest()
        for path in (story.database, story.wal)
    }


def test_a_log_damaged_in_the_middle_is_read_up_to_there_and_kept(story: Story) -> None:
    flip(story)
    before = story.wal.read_bytes()
    there, errors, logs = start(story)
    assert MESSAGES < there < MESSAGES * 2
    assert len(errors) == 1
    assert "pages of acknowledged commits" in errors[0]
    assert "`perdure restore FILE --force` brings back a backup" in errors[0]
    assert [log.read_bytes() for log in logs] == [before]
    assert logs[0].name in errors[0]


def test_a_log_cut_in_the_middle_of_a_frame_gives_back_all_before_the_cut(story: Story) -> None:
    os.truncate(story.wal, story.wal.stat().st_size * 2 // 3 + 7)
    there, errors, _ = start(story)
    assert MESSAGES < there < MESSAGES * 2
    assert len(errors) == 1, "what was acknowledged and is missing is told"


def test_a_damaged_file_is_refused_untouched_and_a_backup_brings_it_back(story: Story) -> None:
    backup = str(story.data.parent / "backup.zip")
    assert run_perdure(story.data, "backup", backup).returncode == 0
    zero_a_page(story)
    line = refused(story)
    assert line.startswith(f"perdure: the database {story.database} can not be used: ")
    assert "malformed" in line
    assert line.endswith("bring back a backup with `perdure restore FILE --force`\n")
    assert run_perdure(story.data, "restore", backup, "--force").returncode == 0
    assert start(story) == (MESSAGES * 2, [], [])


def test_a_page_that_goes_bad_under_a_running_server_is_told(story: Story) -> None:
    with server_process(story.data) as server, Client(server.url) as client:
        zero_a_page(story)
        refusals = []
        for path in story.promises:
            try:
                client.get(path, cast_to=httpx2.Response)
            except openai.InternalServerError as error:
                refusals.append(error)
        assert refusals
        assert {error.status_code for error in refusals} == {503}
        assert "the database file is damaged" in refusals[0].message
        assert "bring back a backup: `perdure restore FILE --force`" in refusals[0].message
        assert len(refusals) < len(story.promises), "the rest is served"
        use(client)
        poll(lambda: "reads fail: database disk image is malformed" in server.log.read_text(), "the log's line")
    assert server.process.returncode == 0
    assert len(errors_in(server.log)) == 1


def test_doctor_finds_damage_beside_a_running_server_and_without(story: Story) -> None:
    flip(story)
    found = run_perdure(story.data, "doctor")
    assert found.returncode == 1
    assert "FAIL database: " in found.stdout
    assert "pages of acknowledged commits behind page" in found.stdout
    with server_process(story.data) as server:
        assert "pages of acknowledged commits behind page" in errors_in(server.log)[0], "doctor has changed nothing"
        whole = run_perdure(story.data, "doctor")
        assert f"ok   database: {story.database} is whole" in whole.stdout
        zero_a_page(story)
        assert "FAIL database: " in run_perdure(story.data, "doctor").stdout
