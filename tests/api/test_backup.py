"""Backup and restore, as an operator does them: the real command line beside the real server."""

from __future__ import annotations

import json
import re
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.scenes import SCRIPT, WEATHER, ask, asked, hanging, reached, settled, write_script
from tests.api.test_cli import perdure, refused
from tests.server import Client, server_process

QUIET: dict[str, Any] = {"otherwise": {"say": "You said: {question}"}}


def backed_up(data: Path, file: Path, *options: str) -> str:
    done = perdure("backup", str(file), "--data", str(data), *options, cwd=data.parent)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr


def restored(file: Path, data: Path, *options: str) -> str:
    done = perdure("restore", str(file), "--data", str(data), *options, cwd=file.parent)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr


def answer(url: str, path: str, key: str = "test-key") -> bytes:
    got = httpx2.get(url + path, headers={"Authorization": f"Bearer {key}"})
    assert got.status_code == 200, got.text
    return got.content


class Program(threading.Thread):
    """Makes threads and runs until it is told to stop; remembers what it was answered and never changes again."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.over = threading.Event()
        self.answers: dict[str, bytes] = {}
        self._url = url

    def run(self) -> None:
        with Client(self._url) as client:
            assistant = client.beta.assistants.create(model="gpt-4o")
            while not self.over.is_set():
                text: Any = {"role": "user", "content": f"안녕 {len(self.answers)}"}
                thread = client.beta.threads.create(messages=[text], metadata={"n": str(len(self.answers))})
                run = settled(client, client.beta.threads.runs.create(thread.id, assistant_id=assistant.id))
                self._remember(f"/threads/{thread.id}")
                self._remember(f"/threads/{thread.id}/runs/{run.id}")
                self._remember(f"/threads/{thread.id}/runs/{run.id}/steps")
                self._remember(f"/threads/{thread.id}/messages?order=asc")

    def _remember(self, path: str) -> None:
        self.answers[path] = answer(self._url, path)


def test_a_backup_under_load_has_all_that_was_answered_before(data: Path, tmp_path: Path) -> None:
    with server_process(data) as server:
        programs = [Program(server.url) for _ in range(3)]
        for program in programs:
            program.start()
        while min(len(program.answers) for program in programs) < 20:
            programs[0].join(0.05)
        promised = {path: body for program in programs for path, body in list(program.answers.items())}
        said = backed_up(data, tmp_path / "backup.zip")
        assert all(program.is_alive() for program in programs)
        for program in programs:
            program.over.set()
            program.join()
        later = backed_up(data, tmp_path / "later.zip")
    assert said.startswith(f"{tmp_path / 'backup.zip'}: 3 assistants, ")
    assert not list(tmp_path.glob(".*.part"))
    assert "restored 3 assistants" in restored(tmp_path / "backup.zip", tmp_path / "new")
    with server_process(tmp_path / "new") as server:
        for path, body in promised.items():
            assert answer(server.url, path) == body
    restored(tmp_path / "later.zip", tmp_path / "newer")
    with server_process(tmp_path / "newer") as server:
        for program in programs:
            for path, body in program.answers.items():
                assert answer(server.url, path) == body
    assert later != said


def test_active_runs_go_on_where_they_are_restored(data: Path, tmp_path: Path) -> None:
    with server_process(data, script=write_script(tmp_path)) as server, Client(server.url) as client:
        waiting = asked(client, "weather")
        assert waiting.status == "requires_action"
        at_work = hanging(client)
        ended = asked(client, "hello")
        backed_up(data, tmp_path / "backup.zip")
    restored(tmp_path / "backup.zip", tmp_path / "new")
    (tmp_path / "other").mkdir()
    rules: list[Any] = [rule for rule in SCRIPT["rules"] if rule.get("role") == "tool"]
    script = write_script(tmp_path / "other", {**QUIET, "rules": rules})
    with server_process(tmp_path / "new", script=script) as server, Client(server.url) as client:
        assert reached(client, at_work, "completed").id == at_work.id
        assert waiting.required_action is not None
        call = waiting.required_action.submit_tool_outputs.tool_calls[0]
        output: Any = {"tool_call_id": call.id, "output": "warm"}
        client.beta.threads.runs.submit_tool_outputs(waiting.id, thread_id=waiting.thread_id, tool_outputs=[output])
        assert reached(client, waiting, "completed").usage is not None
        assert client.beta.threads.runs.retrieve(ended.id, thread_id=ended.thread_id) == ended
        again = client.beta.threads.runs.create(at_work.thread_id, assistant_id=at_work.assistant_id)
        assert settled(client, again).status == "completed"


def test_keys_come_along_and_weights_do_not(data: Path, tmp_path: Path) -> None:
    key = perdure("keys", "create", "--data", str(data), cwd=tmp_path).stdout.strip()
    (data / "models").mkdir()
    (data / "models" / "weights.gguf").write_bytes(b"large")
    with server_process(data) as server, Client(server.url, key=key) as client:
        assistant = client.beta.assistants.create(model="gpt-4o", tools=[WEATHER])
        assert "1 assistant, 1 key" in backed_up(data, tmp_path / "backup.zip")
    restored(tmp_path / "backup.zip", tmp_path / "new")
    assert not (tmp_path / "new" / "models").exists()
    with server_process(tmp_path / "new") as server:
        assert httpx2.get(f"{server.url}/assistants").status_code == 401
        assert json.loads(answer(server.url, f"/assistants/{assistant.id}", key))["id"] == assistant.id


def test_a_restore_leaves_alone_what_is_there(data: Path, tmp_path: Path) -> None:
    with server_process(data) as server, Client(server.url) as client:
        first = client.beta.threads.create()
        backed_up(data, tmp_path / "backup.zip")
        second = client.beta.threads.create()
        line = refused(perdure("restore", str(tmp_path / "backup.zip"), "--data", str(data), "--force", cwd=tmp_path))
        assert "is in use by another Perdure" in line
    line = refused(perdure("restore", str(tmp_path / "backup.zip"), "--data", str(data), cwd=tmp_path))
    assert f"{data} is not empty (it has perdure.db)" in line
    said = restored(tmp_path / "backup.zip", data, "--force")
    aside = Path(said.strip().rpartition(" kept in ")[2])
    assert aside.parent == data
    with server_process(data) as server:
        assert answer(server.url, f"/threads/{first.id}")
        assert httpx2.get(f"{server.url}/threads/{second.id}", headers={"api-key": "any"}).status_code == 404
    shutil.copytree(aside, tmp_path / "before")
    with server_process(tmp_path / "before") as server:
        assert answer(server.url, f"/threads/{second.id}")


def test_a_restore_that_broke_off_is_noticed(data: Path, tmp_path: Path) -> None:
    """The marker lies there while files are renamed; a crash just then leaves it."""
    with server_process(data) as server, Client(server.url) as client:
        thread = client.beta.threads.create()
    backed_up(data, tmp_path / "backup.zip")
    (data / "perdure.restoring").touch()
    (data / "perdure.db").unlink()
    for command in (["serve", "--port", "0"], ["keys", "list"], ["export"], ["backup", "x.zip"]):
        assert "broke off" in refused(perdure(*command, "--data", str(data), cwd=tmp_path))
    restored(tmp_path / "backup.zip", data, "--force")
    with server_process(data) as server:
        assert answer(server.url, f"/threads/{thread.id}")


def test_what_is_no_backup_is_refused_before_anything_is_touched(data: Path, tmp_path: Path) -> None:
    with server_process(data) as server, Client(server.url) as client:
        ask(client, "hello")
    good = tmp_path / "backup.zip"
    backed_up(data, good)
    whole = good.read_bytes()

    def edited(name: str, edit: Callable[[str], str]) -> Path:
        path = tmp_path / "edited.zip"
        with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
            for one in source.namelist():
                text = source.read(one).decode()
                target.writestr(one, edit(text) if one == name else text)
        return path

    def line_of(path: Path) -> str:
        return refused(perdure("restore", str(path), "--data", str(tmp_path / "new"), cwd=tmp_path))

    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    assert "is no whole backup" in line_of(tmp_path / "cut.zip")
    spoilt = bytearray(whole)
    spoilt[len(whole) // 3] ^= 0xFF
    (tmp_path / "spoilt.zip").write_bytes(spoilt)
    assert "spoilt.zip" in line_of(tmp_path / "spoilt.zip")
    (tmp_path / "text.txt").write_text("not a zip")
    assert "is another file" in line_of(tmp_path / "text.txt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("readme", "hello")
    assert "no backup of Perdure" in line_of(tmp_path / "other.zip")
    changed = edited("tables/threads.jsonl", lambda text: text.replace("thread_", "thread-"))
    assert "tables/threads.jsonl does not have the SHA-256" in line_of(changed)
    newer = edited("manifest.json", lambda text: text.replace('"schema_version": ', '"schema_version": 999'))
    assert "has schema version 999" in line_of(newer)
    other_format = edited("manifest.json", lambda text: text.replace('"format_version": 1', '"format_version": 99'))
    assert "has the format perdure-backup 99" in line_of(other_format)
    assert "there is no file" in line_of(tmp_path / "nothing.zip")
    assert not (tmp_path / "new").exists()


def test_a_name_that_leads_out_of_the_folder_is_refused(data: Path, tmp_path: Path) -> None:
    with server_process(data) as server, Client(server.url) as client:
        client.files.create(file=b"content", purpose="assistants")
        backed_up(data, tmp_path / "backup.zip")
    with zipfile.ZipFile(tmp_path / "backup.zip") as source, zipfile.ZipFile(tmp_path / "evil.zip", "w") as target:
        for name in source.namelist():
            evil = re.sub("files/../[0-9a-f]{32}", "files/../../file-1", source.read(name).decode())
            target.writestr(re.sub("files/../[0-9a-f]{32}", "files/../../file-1", name), evil)
    done = perdure("restore", str(tmp_path / "evil.zip"), "--data", str(tmp_path / "deep" / "new"), cwd=tmp_path)
    assert "'files/../../file-1'" in refused(done)
    assert not list(tmp_path.rglob("deep/file-1"))


def test_a_backup_is_there_whole_or_not_at_all(data: Path, tmp_path: Path) -> None:
    nothing = perdure("backup", "backup.zip", "--data", str(data), cwd=tmp_path)
    assert "there is nothing to back up" in refused(nothing)
    assert not data.exists()
    with server_process(data):
        pass
    file = tmp_path / "backup.zip"
    backed_up(data, file)
    before = file.read_bytes()
    assert "exists already" in refused(perdure("backup", str(file), "--data", str(data), cwd=tmp_path))
    assert file.read_bytes() == before
    backed_up(data, file, "--force")
    assert file.stat().st_mode & 0o777 == 0o600
    assert "can not be written" in refused(perdure("backup", "no/such/x.zip", "--data", str(data), cwd=tmp_path))
    assert "is a folder" in refused(perdure("backup", str(tmp_path), "--data", str(data), cwd=tmp_path))
    (data / "perdure.db").write_bytes(b"x" * 10_000)
    assert "perdure.db" in refused(perdure("backup", "other.zip", "--data", str(data), cwd=tmp_path))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["backup.zip", "data", "data.log"]


@pytest.mark.parametrize("command", ["backup", "restore", "export", "import"])
def test_each_command_explains_itself(command: str, tmp_path: Path) -> None:
    done = perdure(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "FILE" in done.stdout
