"""The main road on Postgres: one server, two servers on one database, and one that is killed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from tests.postgres_server import mortal_postgres, postgres_server
from tests.server import Client, ServerProcess, running_server, server_process

SLOW = {"rules": [{"when": "slowly", "pieces": [f"{n} " for n in range(40)], "delay_seconds": 0.1}]}


@pytest.fixture(scope="module")
def database_url() -> Iterator[str]:
    """An empty database of a real Postgres."""
    with postgres_server() as url:
        yield url


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script that takes four seconds to answer whatever has `slowly` in it."""
    path = tmp_path / "script.json"
    path.write_text(json.dumps(SLOW))
    return path


def wait_for_end(client: Client, run_id: str, thread_id: str) -> str:
    for _ in range(400):
        run = client.beta.threads.runs.retrieve(run_id, thread_id=thread_id)
        if run.status not in {"queued", "in_progress", "cancelling"}:
            return run.status
        time.sleep(0.05)
    raise AssertionError("the run did not end")


def test_the_main_road(database_url: str, tmp_path: Path) -> None:
    with running_server(tmp_path / "data", database_url=database_url) as url, Client(url) as client:
        assistant = client.beta.assistants.create(model="gpt-4o", instructions="Be brief.")
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "안녕"}])
        run = client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)
        assert run.status == "completed"
        with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
            assert "".join(stream.text_deltas) == "You said: 안녕"
        assert [message.role for message in client.beta.threads.messages.list(thread.id)] == [
            "assistant",
            "assistant",
            "user",
        ]


def test_two_servers_share_one_database(database_url: str, tmp_path: Path, script: Path) -> None:
    """A run is worked once; the other server streams it, and cancels it."""
    settings = {"database_url": database_url, "script": script, "lease_seconds": 1.5}
    with (
        server_process(tmp_path / "one", **settings) as one,
        server_process(tmp_path / "two", **settings) as two,
        Client(one.url) as first,
        Client(two.url) as second,
    ):
        assistant = first.beta.assistants.create(model="gpt-4o", instructions="Be brief.")
        thread = second.beta.threads.create(messages=[{"role": "user", "content": "slowly"}])
        run = first.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id)
        assert second.beta.threads.runs.retrieve(run.id, thread_id=thread.id).id == run.id
        second.beta.threads.runs.cancel(run.id, thread_id=thread.id)
        assert wait_for_end(first, run.id, thread.id) == "cancelled"
        again = second.beta.threads.runs.create_and_poll(
            thread_id=thread.id,
            assistant_id=assistant.id,
            additional_messages=[{"role": "user", "content": "quickly"}],
        )
        assert again.status == "completed"
        answers = first.beta.threads.messages.list(thread.id, run_id=again.id).data
        assert [answer.status for answer in answers] == ["completed"]


def test_a_killed_server_s_runs_are_taken_up_by_the_next(database_url: str, tmp_path: Path, script: Path) -> None:
    settings = {"database_url": database_url, "script": script, "lease_seconds": 1.5}
    doomed = ServerProcess(tmp_path / "doomed", **settings)
    with Client(doomed.url) as client:
        assistant = client.beta.assistants.create(model="gpt-4o", instructions="Be brief.")
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "slowly"}])
        run = client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id)
        while client.beta.threads.runs.retrieve(run.id, thread_id=thread.id).status != "in_progress":
            time.sleep(0.02)
    doomed.kill()
    with server_process(tmp_path / "next", **settings) as server, Client(server.url) as client:
        assert wait_for_end(client, run.id, thread.id) == "completed"
        newest = client.beta.threads.messages.list(thread.id, limit=1).data[0]
        assert newest.status == "completed"


def test_health_needs_no_key(database_url: str, tmp_path: Path) -> None:
    with running_server(tmp_path / "data", database_url=database_url) as url:
        health = httpx2.get(url.removesuffix("/v1") + "/health")
        assert (health.status_code, health.json()) == (200, {"status": "ok"})


def test_postgres_dies_under_load_and_comes_back(tmp_path: Path, script: Path) -> None:
    """503 that says what to do, and streams that go on; then all that was acknowledged is there, and every run ends."""
    kept: dict[str, bytes] = {}
    refusals: list[openai.InternalServerError] = []
    over = threading.Event()

    def load(url: str, thread_id: str) -> None:
        with Client(url, timeout=30) as client:
            while not over.is_set():
                try:
                    made = client.beta.threads.messages.with_raw_response.create(
                        thread_id, role="user", content="hello"
                    )
                except openai.InternalServerError as refusal:
                    refusals.append(refusal)
                else:
                    kept[f"/threads/{thread_id}/messages/{made.parse().id}"] = made.http_response.content

    with (
        mortal_postgres(settings={"restart_after_crash": "off"}) as postgres,
        server_process(
            tmp_path / "data", database_url=postgres.url, script=script, lease_seconds=1, poll_hold_seconds=0
        ) as server,
        Client(server.url) as client,
    ):
        assistant = client.beta.assistants.create(model="gpt-4o")
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "slowly"}])
        run = client.beta.threads.runs.create(thread.id, assistant_id=assistant.id)
        loads = [threading.Thread(target=load, args=(server.url, client.beta.threads.create().id)) for _ in range(4)]
        for one in loads:
            one.start()
        wait_until(lambda: len(kept) > 20)
        postgres.kill()
        wait_until(lambda: len(refusals) > 4)
        known = len(kept)
        postgres.start()
        wait_until(lambda: len(kept) > known + 20)
        over.set()
        for one in loads:
            one.join(60)
        assert wait_for_end(client, run.id, thread.id) == "completed"
        assert {refusal.status_code for refusal in refusals} == {503}
        assert any("Check that it runs and has room, then retry." in refusal.message for refusal in refusals)
        for path, body in kept.items():
            assert client.get(path, cast_to=httpx2.Response).content == body
        client.beta.threads.messages.create(thread.id, role="user", content="quickly")
        again = client.beta.threads.runs.create(thread.id, assistant_id=assistant.id)
        assert wait_for_end(client, again.id, thread.id) == "completed"
    assert "Traceback" not in server.log.read_text()


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it took too long")
