"""A full disk and one that can not be written: 503 that says what to do, reads go on, nothing acknowledged is lost."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.durability.disks import Disk, LimitedDisk, SmallDisk, may_mount, small_disk
from tests.durability.load import SLOW_ANSWER, end_of, poll, text_of, write_script
from tests.server import Client, server_process

MOUNTS = may_mount()
NO_RIGHTS = "bind" if MOUNTS else "mode" if os.geteuid() else "none"
"""How a folder is made that can not be written: a read-only mount, or its mode, which does not bind root."""
SETTINGS: dict[str, Any] = {"lease_seconds": 1, "poll_hold_seconds": 0, "keepalive_seconds": 1}
NOTHING_STORED = "The database failed, nothing of this request was stored: the disk "


@pytest.fixture(params=["small", "limited"] if MOUNTS else ["limited"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """Every machine has one; where it may mount, also a really full one."""
    if request.param == "limited":
        limited = LimitedDisk(tmp_path)
        yield limited
        limited.end()
        return
    with small_disk(tmp_path) as small:
        yield small


class Story:
    """What was acknowledged: messages of one thread."""

    def __init__(self, client: Client) -> None:
        self._thread_id = client.beta.threads.create().id
        self.promises: dict[str, bytes] = {}

    def say(self, client: Client) -> None:
        text = f"{len(self.promises)} " + "what was said " * 300
        made = client.beta.threads.messages.with_raw_response.create(self._thread_id, role="user", content=text)
        self.promises[f"/threads/{self._thread_id}/messages/{made.parse().id}"] = made.http_response.content

    def say_until_refused(self, client: Client) -> openai.InternalServerError:
        for _ in range(1000):
            try:
                self.say(client)
            except openai.InternalServerError as refusal:
                return refusal
        raise AssertionError("the disk is never full")

    def check(self, client: Client) -> None:
        for path, body in self.promises.items():
            assert client.get(path, cast_to=httpx2.Response).content == body
        listed = client.beta.threads.messages.list(self._thread_id, limit=100)
        assert sum(1 for _ in listed) == len(self.promises), "what was refused is not there"


class Reader(threading.Thread):
    """Reads a streamed run to its end, whatever that is."""

    def __init__(self, client: Client, question: str) -> None:
        super().__init__()
        assistant = client.beta.assistants.create(model="gpt-4o")
        messages: Any = [{"role": "user", "content": question}]
        self.events: list[Any] = []
        self.failure: Exception | None = None
        self._stream = client.beta.threads.create_and_run(
            assistant_id=assistant.id, thread={"messages": messages}, stream=True
        )
        self.start()
        self.run_object = poll(self._run, "a run").data

    def _run(self) -> Any:
        return next((event for event in self.events if event.event == "thread.run.created"), None)

    def run(self) -> None:
        try:
            for event in self._stream:
                self.events.append(event)
        except openai.APIError as failure:
            self.failure = failure

    def has(self, name: str) -> bool:
        return any(event.event == name for event in self.events)

    def text_of_deltas(self, message_id: str) -> str:
        deltas = [event.data for event in self.events if event.event == "thread.message.delta"]
        return "".join(one.delta.content[0].text.value for one in deltas if one.id == message_id)


def check_whole(disk: Disk) -> None:
    with closing(sqlite3.connect(disk.seen / "perdure.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_disk_that_fills_under_running_runs(disk: Disk, tmp_path: Path) -> None:
    server = disk.serve(script=write_script(tmp_path), **SETTINGS)
    with Client(server.url) as client:
        story = Story(client)
        story.say(client)
        reader = Reader(client, "slow")
        poll(lambda: reader.has("thread.message.delta"), "the stream to begin")
        disk.fill(server, 60_000)
        refusal = story.say_until_refused(client)
        assert refusal.status_code == 503
        assert refusal.response.headers["retry-after"] == "1"
        assert refusal.body == {"message": refusal.body["message"], "type": "server_error", "param": None, "code": None}  # type: ignore[index]
        assert NOTHING_STORED in refusal.message
        assert "ree space" in refusal.message
        disk.fill(server, 0)
        poll(lambda: f"{reader.run_object.id}: left for recovery" in server.log.read_text(), "the run to be left")
        story.check(client)  # reads go on
        with pytest.raises(openai.InternalServerError, match="nothing of this request was stored"):
            Reader(client, "streamed on a full disk")
        poll(lambda: "can not be recovered, it is tried again" in server.log.read_text(), "a recovery that fails")
        assert reader.is_alive(), "the stream waits"
        disk.free(server)
        run = end_of(client, reader.run_object.thread_id, reader.run_object.id)
        assert run.status == "completed"
        reader.join(30)
        assert not reader.is_alive()
        check_stream(client, reader)
        story.say(client)
        story.check(client)
    server.stop()
    assert server.process.returncode == 0
    assert "Traceback" not in server.log.read_text()
    check_whole(disk)


def check_stream(client: Client, reader: Reader) -> None:
    """The half-written message became incomplete, a new one was begun, and the reader has seen both."""
    assert reader.failure is None
    assert reader.events[-1].event == "thread.run.completed"
    run = reader.run_object
    messages = list(client.beta.threads.messages.list(run.thread_id, run_id=run.id, order="asc"))
    assert [message.status for message in messages] == ["incomplete", "completed"]
    assert text_of(messages[1]) == SLOW_ANSWER == reader.text_of_deltas(messages[1].id)
    assert reader.text_of_deltas(messages[0].id).startswith(text_of(messages[0]))


def test_a_server_ends_on_a_full_disk(disk: Disk, tmp_path: Path) -> None:
    server = disk.serve(script=write_script(tmp_path), shutdown_grace_seconds=0.1, **SETTINGS)
    with Client(server.url) as client:
        story = Story(client)
        reader = Reader(client, "slow")
        disk.fill(server, 60_000)
        story.say_until_refused(client)
        disk.fill(server, 0)
        server.stop()
        reader.join(30)
        assert "The server is shutting down" in str(reader.failure)
    assert server.process.returncode == 0
    assert "Traceback" not in server.log.read_text()
    check_starts_on_a_full_disk(disk, story)
    disk.free(server)
    check_later_start(disk, tmp_path, story, reader)


def test_a_server_killed_on_a_full_disk(disk: Disk, tmp_path: Path) -> None:
    server = disk.serve(script=write_script(tmp_path), **SETTINGS)
    with Client(server.url) as client:
        story = Story(client)
        reader = Reader(client, "slow")
        disk.fill(server, 60_000)
        story.say_until_refused(client)
        disk.fill(server, 0)
    server.kill()
    reader.join(30)
    check_starts_on_a_full_disk(disk, story)
    if isinstance(disk, SmallDisk):
        (disk.seen / "perdure.keys").unlink()  # no room for a new one: a line, not a signal
        disk.fill(server, 0)
        check_starts_on_a_full_disk(disk, story)
    disk.free(server)
    check_later_start(disk, tmp_path, story, reader)


def check_starts_on_a_full_disk(disk: Disk, story: Story) -> None:
    """It serves what is there, or refuses in one line."""
    if isinstance(disk, LimitedDisk):
        return  # the limit went with the process
    told_before = len(disk.log.read_text())
    try:
        server = disk.serve(**SETTINGS)
    except AssertionError:
        told = disk.log.read_text()[told_before:]
        assert (told.startswith("perdure: "), told.count("\n")) == (True, 1), told
        return
    with Client(server.url) as client:
        story.check(client)
        with pytest.raises(openai.InternalServerError, match="nothing of this request was stored"):
            story.say(client)
    server.stop()
    assert server.process.returncode == 0
    assert "Traceback" not in server.log.read_text()


def check_later_start(disk: Disk, folder: Path, story: Story, reader: Reader) -> None:
    server = disk.serve(script=folder / "script.json", **SETTINGS)
    with Client(server.url) as client:
        run = reader.run_object
        assert end_of(client, run.thread_id, run.id).status == "completed"
        story.check(client)
    server.stop()
    check_whole(disk)


def test_a_folder_that_can_not_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with server_process(data):
        pass
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    for told in refusals_of(data, before):
        assert told.startswith("perdure: ")
        assert told.count("\n") == 1
        assert "can not be" in told
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before


def refusals_of(data: Path, files: Iterable[str]) -> Iterator[str]:
    """Start where the folder can not be written, with the files in it and without them."""
    yield refusal(Path("/proc/perdure"), [])
    if NO_RIGHTS == "bind":
        script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
        before = ["unshare", "-Urm", "sh", "-c", script, str(data)]
        yield refusal(data, before)
        bare = data.with_name("bare")
        bare.mkdir()
        yield refusal(bare, [*before[:-1], str(bare)])
    elif NO_RIGHTS == "mode":
        for name in files:
            (data / name).chmod(0o400)
        data.chmod(0o500)
        yield refusal(data, [])
        data.chmod(0o700)


def refusal(data: Path, before: list[str]) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    ended = subprocess.run(
        [*before, sys.executable, "-m", "perdure", "serve", "--data", str(data), "--port", "0"],
        env={**environment, "PERDURE_BUILTIN_MODEL": "scripted"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    return ended.stderr
