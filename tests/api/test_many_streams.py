"""Many streams at once: none waits for another one to end, and everybody else is served meanwhile."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from tests.api.scenes import asked, outputs_for, settled, write_script
from tests.postgres_server import postgres_server
from tests.server import Client, server_process

STREAMS = 300


def test_hundreds_of_streams_wait_and_the_server_answers(tmp_path: Path) -> None:
    with server_process(tmp_path / "data", script=write_script(tmp_path)) as server, Client(server.url) as client:
        run = asked(client, "weather")
        parts = urlsplit(server.url)
        path = f"{parts.path}/threads/{run.thread_id}/runs/{run.id}/events"
        request = f"GET {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer k\r\n\r\n".encode()
        with ExitStack() as stack:
            streams = [
                stack.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=20))
                for _ in range(STREAMS)
            ]
            for stream in streams:
                stream.sendall(request)
            assert all(_read_to(stream, b"thread.run.requires_action") for stream in streams)
            client.beta.threads.runs.submit_tool_outputs(
                run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, "rain")
            )
            assert settled(client, run).status == "completed"
            assert all(_read_to(stream, b"event: done") for stream in streams)


def _read_to(stream: socket.socket, mark: bytes) -> bool:
    seen = b""
    while mark not in seen:
        piece = stream.recv(65536)
        if not piece:
            return False
        seen += piece
    return True


def test_streams_of_one_server_see_what_another_one_writes(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"otherwise": {"pieces": ["one ", "two ", "three"], "delay_seconds": 0.5}}))
    with postgres_server() as database_url:
        settings = {"database_url": database_url, "script": script}
        with (
            server_process(tmp_path / "one", **settings) as one,
            server_process(tmp_path / "two", **settings) as two,
            Client(one.url) as first,
            Client(two.url) as second,
        ):
            assistant = first.beta.assistants.create(model="gpt-4o")
            thread = first.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
            run = first.beta.threads.runs.create(thread.id, assistant_id=assistant.id)
            path = f"/threads/{thread.id}/runs/{run.id}/events"
            text = second.get(path, cast_to=httpx2.Response).text
            assert text.index("thread.message.created") < text.index("thread.run.completed") < text.index("event: done")
