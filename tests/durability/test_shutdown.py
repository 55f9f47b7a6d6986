"""SIGTERM drains; one data folder has one server."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.durability.load import SLOW_ANSWER, check_free, end_of, poll, restarted, text_of, write_script
from tests.server import Client, ServerProcess, server_process


def begin_slow_run(client: Client) -> Any:
    """Create a run that answers for a second, and wait until its message is begun."""
    assistant = client.beta.assistants.create(model="gpt-4o")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "slow"}])
    run = client.beta.threads.runs.create(thread.id, assistant_id=assistant.id)
    poll(lambda: list(client.beta.threads.messages.list(thread.id, run_id=run.id)), "a message to begin")
    return run


def test_a_short_run_ends_within_the_grace(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"script": write_script(tmp_path), "shutdown_grace_seconds": 20}
    server = ServerProcess(tmp_path / "data", **settings)
    names: list[str] = []
    with Client(server.url) as client:
        run = begin_slow_run(client)
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "slow"}])
        stream = client.beta.threads.runs.create(thread.id, assistant_id=run.assistant_id, stream=True)
        reader = threading.Thread(target=lambda: names.extend(event.event for event in stream))
        reader.start()
        poll(lambda: "thread.message.delta" in names or names[-1:] == ["thread.message.in_progress"], "the stream")
        server.stop()
        reader.join(30)
    assert server.process.returncode == 0
    assert names[-1] == "thread.run.completed"
    with server_process(tmp_path / "data", **settings) as again, Client(again.url) as client:
        assert client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id).status == "completed"
        messages = list(client.beta.threads.messages.list(run.thread_id, run_id=run.id))
        assert [text_of(message) for message in messages] == [SLOW_ANSWER]


def test_a_long_run_goes_back_to_the_queue_and_ends_after_the_restart(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"script": write_script(tmp_path), "shutdown_grace_seconds": 0.1}
    server = ServerProcess(tmp_path / "data", **settings)
    with Client(server.url) as client:
        run = begin_slow_run(client)
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "slow"}])
        stream = client.beta.threads.runs.create(thread.id, assistant_id=run.assistant_id, stream=True)
        assert next(iter(stream)).event == "thread.run.created"
        server.process.terminate()
        with pytest.raises(openai.APIError, match=r"The server is shutting down\. The run goes on when it is back"):
            list(stream)
        server.process.wait(30)  # told once already; a second signal may reach a loop that is closed
        server.stop()
    assert server.process.returncode == 0
    assert "Traceback" not in server.log.read_text()
    assert f"{run.id} went back to the queue" in server.log.read_text()
    again = restarted(server, tmp_path / "data", **settings)
    try:
        with Client(again.url) as client:
            assert end_of(client, run.thread_id, run.id).status == "completed"
            messages = list(client.beta.threads.messages.list(run.thread_id, run_id=run.id, order="asc"))
            assert [message.status for message in messages] == ["incomplete", "completed"]
            check_free(client, run.thread_id)
    finally:
        again.stop()


def test_a_second_server_on_the_folder_is_refused_with_the_owners_pid(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with server_process(data) as server:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
        second = subprocess.run(
            [sys.executable, "-m", "perdure", "serve", "--port", "0", "--data", str(data)],
            env={**environment, "PERDURE_BUILTIN_MODEL": "scripted"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 2
        assert len(second.stderr.splitlines()) == 1
        assert str(server.process.pid) in second.stderr
        with Client(server.url) as client:  # the first one is unharmed
            assert client.beta.assistants.create(model="gpt-4o").id
        server.kill()
    with server_process(data) as again, Client(again.url) as client:  # a dead owner's lock holds nobody up
        assert len(list(client.beta.assistants.list())) == 1


def run_perdure(data: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    return subprocess.run(
        [sys.executable, "-m", "perdure", *words],
        env={**environment, "PERDURE_BUILTIN_MODEL": "scripted", "PERDURE_PORT": "0", "PERDURE_DATA": str(data)},
        cwd=data.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_folder_s_owner_is_found_on_every_way_and_the_commands_work_beside_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (tmp_path / "link").symlink_to(data)
    with server_process(data) as server, Client(server.url) as client:
        (data / "perdure.pid").write_text("1\n")  # somebody else's, and alive: the note says so, the lock decides
        for way in (tmp_path / "link", Path("data"), data / ".." / "data"):
            second = run_perdure(tmp_path / "data", "serve", "--data", str(way))
            assert second.returncode == 2
            assert second.stderr.startswith("perdure: the data folder ")
            assert "is in use by another Perdure (process 1)" in second.stderr
        made = run_perdure(data, "keys", "create")
        assert made.returncode == 0, made.stderr
        assert "is whole" in run_perdure(data, "doctor").stdout
        with pytest.raises(openai.AuthenticationError):
            client.beta.assistants.create(model="gpt-4o")
        with Client(server.url, key=made.stdout.strip()) as with_key:
            assert with_key.beta.assistants.create(model="gpt-4o").id


@pytest.mark.parametrize("note", ["", "no number", "999999999"])
def test_a_dead_owner_s_lock_and_pid_hold_nobody_up(tmp_path: Path, note: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "perdure.lock").touch()
    (data / "perdure.pid").write_text(note)
    with server_process(data) as server:
        assert (data / "perdure.pid").read_text() == f"{server.process.pid}\n"


def test_of_servers_that_start_at_the_same_moment_one_serves(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "perdure.pid").write_text("999999999\n")
    servers: list[ServerProcess] = []
    refusals: list[str] = []
    starting = threading.Barrier(3)

    def start() -> None:
        starting.wait(30)
        try:
            servers.append(ServerProcess(data))
        except AssertionError as refused:
            refusals.append(str(refused))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    try:
        assert (len(servers), len(refusals)) == (1, 2)
        for refused in refusals:
            assert f"is in use by another Perdure (process {servers[0].process.pid})" in refused
        with Client(servers[0].url) as client:
            assert client.beta.assistants.create(model="gpt-4o").id
    finally:
        for server in servers:
            server.stop()
