"""A server that is frozen for longer than its lease, and then goes on: it writes nothing that is not its to write.

SIGSTOP is what a laptop's lid, a paused virtual machine or a swapping host do to a worker.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from tests.durability.load import SCRIPT, SLOW_ANSWER, TERMINAL, WEATHER, end_of, poll, text_of
from tests.postgres_server import postgres_server
from tests.server import Client, ServerProcess, server_process

LEASE_SECONDS = 1
SETTINGS: dict[str, Any] = {"lease_seconds": LEASE_SECONDS, "poll_hold_seconds": 0, "keepalive_seconds": 1}
CITY = "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch " * 5
SLOW_CALL = {
    "when": "^slow call",
    "call": [{"name": "get_weather", "arguments": {"city": CITY}}],
    "delay_seconds": 0.03,
}
HANG = {"when": "^hang", "say": "one two three", "hang_after": 2}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.json"
    path.write_text(json.dumps({**SCRIPT, "rules": [SLOW_CALL, HANG, *SCRIPT["rules"]]}))
    return path


@pytest.fixture(scope="module")
def database_url() -> Iterator[str]:
    with postgres_server() as url:
        yield url


class Reader(threading.Thread):
    """Follows a run's events on one server to its end. `seen` has number, name and body of each."""

    def __init__(self, url: str, thread_id: str, run_id: str) -> None:
        super().__init__()
        self._url = f"{url}/threads/{thread_id}/runs/{run_id}/events"
        self.seen: list[tuple[int, str, Any]] = []
        self.start()

    def run(self) -> None:
        headers = {"authorization": "Bearer test-key"}
        with httpx2.stream("GET", self._url, headers=headers, timeout=60) as response:
            frame: dict[str, str] = {}
            for line in response.iter_lines():
                field, colon, value = line.partition(": ")
                if colon and field:
                    frame[field] = value
                elif not line and "id" in frame:
                    self.seen.append((int(frame["id"]), frame["event"], json.loads(frame["data"])))
                    frame = {}

    def names(self) -> list[str]:
        return [name for _, name, _ in self.seen]

    def check(self, messages: list[Any]) -> None:
        """In order, nothing twice; what it saw of each message is what the message is.

        Of a message that broke off it may have seen a little more: deltas are shown before they are committed.
        """
        self.join(60)
        assert not self.is_alive()
        numbers = [number for number, _, _ in self.seen]
        assert numbers == sorted(set(numbers))
        for message in messages:
            seen, written = self._text(message.id), text_of(message)
            assert seen == written or (message.status == "incomplete" and seen.startswith(written))
            assert f"thread.message.{message.status}" in self.names()

    def _text(self, message_id: str) -> str:
        bodies = [body for _, name, body in self.seen if name == "thread.message.delta" and body["id"] == message_id]
        return "".join(body["delta"]["content"][0]["text"]["value"] for body in bodies)


def begin(client: Client, question: str) -> Any:
    assistant = client.beta.assistants.create(model="gpt-4o", tools=[WEATHER])
    messages: Any = [{"role": "user", "content": question}]
    return client.beta.threads.create_and_run(assistant_id=assistant.id, thread={"messages": messages})


def until_half_written(reader: Reader) -> None:
    poll(lambda: sum(name.endswith("delta") for name in reader.names()) > 4, "a few deltas")


def rest_of(client: Client, run: Any) -> Any:
    """Poll a run until it ends, or waits for outputs."""

    def rests() -> Any:
        now = client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
        return now if now.status in TERMINAL | {"requires_action"} else None

    return poll(rests, f"{run.id} to rest")


@contextmanager
def frozen(server: ServerProcess) -> Iterator[None]:
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def check_free(client: Client, thread_id: str, assistant_id: str) -> None:
    client.beta.threads.messages.create(thread_id, role="user", content="still there?")
    run = client.beta.threads.runs.create(thread_id, assistant_id=assistant_id)
    assert end_of(client, thread_id, run.id).status == "completed"


def rows_of(url: str, thread_id: str, run_id: str) -> list[str]:
    """Return all that the database has of a run, as text."""

    async def ask() -> list[str]:
        connection = await asyncpg.connect(url)
        try:
            rows = []
            for table, column, value in (
                ("runs", "id", run_id),
                ("run_events", "run_id", run_id),
                ("steps", "run_id", run_id),
                ("messages", "thread_id", thread_id),
                ("threads", "id", thread_id),
            ):
                rows += await connection.fetch(
                    f"SELECT t::text FROM {table} AS t WHERE {column} = $1 ORDER BY 1", value
                )
            return [row[0] for row in rows]
        finally:
            await connection.close()

    return asyncio.run(ask())


@pytest.mark.parametrize("question", ["slow", "slow call"])
def test_a_worker_that_was_frozen_writes_nothing_more(
    database_url: str, script: Path, tmp_path: Path, question: str
) -> None:
    settings = {"database_url": database_url, "script": script, **SETTINGS}
    with (
        server_process(tmp_path / "a", **settings) as a,
        server_process(tmp_path / "b", **settings) as b,
        Client(a.url) as client_of_a,
        Client(b.url) as client,
    ):
        run = begin(client_of_a, question)
        readers = [Reader(server.url, run.thread_id, run.id) for server in (a, b)]
        until_half_written(readers[0])
        with frozen(a):
            ended = rest_of(client, run)
            before = rows_of(database_url, run.thread_id, run.id)
        poll(lambda: f"{run.id}: the lease was lost" in a.log.read_text(), "the frozen one to hear of it")
        assert rows_of(database_url, run.thread_id, run.id) == before
        if question == "slow call":
            ended = answer_the_call(client_of_a, ended)
        messages = list(client.beta.threads.messages.list(run.thread_id, run_id=run.id, order="asc"))
        for reader in readers:
            reader.check(messages)
        assert ended.status == "completed"
        if question == "slow":
            assert [message.status for message in messages] == ["incomplete", "completed"]
            assert text_of(messages[1]) == SLOW_ANSWER
        for one in (client_of_a, client):
            check_free(one, run.thread_id, run.assistant_id)
        assert client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id) == ended
    assert "Traceback" not in a.log.read_text() + b.log.read_text()


def answer_the_call(client: Client, run: Any) -> Any:
    """The broken call was closed, the new one waits for its output."""
    assert run.status == "requires_action"
    steps = list(client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc"))
    assert [step.status for step in steps] == ["failed", "in_progress"]
    outputs: Any = [
        {"tool_call_id": call.id, "output": "warm"} for call in run.required_action.submit_tool_outputs.tool_calls
    ]
    client.beta.threads.runs.submit_tool_outputs(run.id, thread_id=run.thread_id, tool_outputs=outputs)
    return end_of(client, run.thread_id, run.id)


def check_ended_once(client: Client, run: Any) -> None:
    assert end_of(client, run.thread_id, run.id).status == "completed"
    messages = list(client.beta.threads.messages.list(run.thread_id, run_id=run.id, order="asc"))
    assert [message.status for message in messages].count("completed") == 1
    assert text_of(messages[-1]) == SLOW_ANSWER
    reader = Reader(str(client.base_url).rstrip("/"), run.thread_id, run.id)
    reader.check(messages)
    assert reader.names().count("thread.run.completed") == 1
    check_free(client, run.thread_id, run.assistant_id)


def test_a_lone_server_that_was_frozen_ends_its_run_once(script: Path, tmp_path: Path) -> None:
    with server_process(tmp_path / "data", script=script, **SETTINGS) as server, Client(server.url) as client:
        run = begin(client, "slow")
        reader = Reader(server.url, run.thread_id, run.id)
        until_half_written(reader)
        with frozen(server):
            time.sleep(LEASE_SECONDS * 1.5)
        check_ended_once(client, run)
        reader.check(list(client.beta.threads.messages.list(run.thread_id, run_id=run.id)))
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("edge", ["written", "committed"])
def test_a_server_that_was_frozen_inside_a_transaction(script: Path, tmp_path: Path, edge: str) -> None:
    """Others read meanwhile; then the transaction comes to its end."""

    class Freezing(ServerProcess):
        program = (str(Path(__file__).with_name("freezing_server.py")), edge, "append_deltas")

    server = Freezing(tmp_path / "data", script=script, **SETTINGS)
    try:
        with Client(server.url) as client:
            run = begin(client, "slow")
            _, status = os.waitpid(server.process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            time.sleep(LEASE_SECONDS * 1.5)
            with closing(sqlite3.connect(tmp_path / "data" / "perdure.db")) as connection:
                (found,) = connection.execute("SELECT count(*) FROM run_events WHERE events LIKE '%delta%'").fetchone()
                assert (found > 0) == (edge == "committed")
            server.process.send_signal(signal.SIGCONT)
            check_ended_once(client, run)
    finally:
        server.process.send_signal(signal.SIGCONT)
        server.stop()
    assert "Traceback" not in server.log.read_text()


def test_a_run_whose_model_hangs_expires(script: Path, tmp_path: Path) -> None:
    """Before its first word, in the middle of an answer, and an upstream that is frozen itself."""
    upstream = subprocess.Popen(
        [sys.executable, "-m", "perdure.models.scripted", "--script", str(script)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert upstream.stdout is not None
        url = upstream.stdout.readline().split()[-1]
        settings = {"script": script, "run_expiry_seconds": 2, "upstream_url": url, **SETTINGS}
        with server_process(tmp_path / "data", **settings) as server, Client(server.url) as client:
            runs = [begin(client, "hang")]
            upstream.send_signal(signal.SIGSTOP)
            runs.append(begin(client, "slow"))
            for run in runs:
                ended = end_of(client, run.thread_id, run.id)
                assert (ended.status, ended.last_error) == ("expired", None)
                client.beta.threads.messages.create(run.thread_id, role="user", content="free")
    finally:
        upstream.send_signal(signal.SIGCONT)
        upstream.terminate()
        upstream.wait(30)
        if upstream.stdout is not None:
            upstream.stdout.close()
