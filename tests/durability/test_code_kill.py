"""kill -9 of the server while code runs: nothing of it is left, nothing runs twice unseen, and the model is told."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from pathlib import Path
from typing import Any

import pytest

from tests.durability.load import check_free, end_of, poll, restarted, text_of
from tests.sandboxes import until_gone
from tests.server import Client, ServerProcess


def script_of(mark: str) -> dict[str, Any]:
    """Code that leaves a child with a mark behind, says that it has begun, and then takes its time."""
    slow = (
        "import subprocess, time\nopen('/mnt/data/here', 'w').write('x')\n"
        f"subprocess.Popen(['sleep', '{mark}'], start_new_session=True)\nprint('begun', flush=True)\ntime.sleep(30)"
    )
    return {
        "rules": [
            {"when": "^slow code$", "call": [{"name": "code_interpreter", "arguments": {"code": slow}}]},
            {"when": "interrupted", "role": "tool", "say": "I was told: {output}"},
            {
                "when": "^look$",
                "call": [{"name": "code_interpreter", "arguments": {"code": "import os; os.listdir()"}}],
            },
            {"when": "", "role": "tool", "say": "{output}"},
        ],
        "otherwise": {"say": "You said: {question} a b c d e f"},
    }


def calls_of(client: Client, run: Any) -> list[Any]:
    steps = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc").data
    details: list[Any] = [step.step_details.to_dict() for step in steps if step.type == "tool_calls"]
    return [call["code_interpreter"] for one in details for call in one["tool_calls"]]


@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_code_that_a_kill_broke_off_is_gone_and_told_of(tmp_path: Path, kind: str) -> None:
    mark = str(100_000_000 + secrets.randbelow(900_000_000))
    script = tmp_path / "script.json"
    script.write_text(json.dumps(script_of(mark)))
    settings: dict[str, Any] = {"script": script, "code_sandbox": kind, "poll_hold_seconds": 0}
    server = ServerProcess(tmp_path / "data", **settings)
    with Client(server.url) as client:
        coder = client.beta.assistants.create(model="gpt-4o", tools=[{"type": "code_interpreter"}])
        runs = []
        for _ in range(3):
            thread = client.beta.threads.create(messages=[{"role": "user", "content": "slow code"}])
            runs.append(client.beta.threads.runs.create(thread.id, assistant_id=coder.id))
        events = [f"/threads/{run.thread_id}/runs/{run.id}/events" for run in runs]
        poll(lambda: all(begun(client, path) for path in events), "the code to begin")
        time.sleep(0.5)  # deltas are shown before they are committed: here they shall be
        server.kill()
    assert asyncio.run(until_gone(mark)) == []
    again = restarted(server, tmp_path / "data", **settings)
    try:
        with Client(again.url) as client:
            for run in runs:
                ended = end_of(client, run.thread_id, run.id)
                assert ended.status == "completed"
                answer = text_of(client.beta.threads.messages.list(run.thread_id, run_id=run.id).data[0])
                assert answer.startswith("I was told: begun\nThe call was interrupted")
                [code] = calls_of(client, run)
                assert code["outputs"] == [{"type": "logs", "logs": "begun\n"}], "it ran once"
                client.beta.threads.messages.create(run.thread_id, role="user", content="look")
                look = client.beta.threads.runs.create(run.thread_id, assistant_id=coder.id)
                assert end_of(client, run.thread_id, look.id).status == "completed"
                told = text_of(client.beta.threads.messages.list(run.thread_id, run_id=look.id).data[0])
                assert told.startswith("[]\n"), "the new session is empty"
                assert "The session of this code is gone" in told
                assert "the server was restarted" in told
                check_free(client, run.thread_id)
    finally:
        again.stop()
    assert asyncio.run(until_gone(mark)) == []
    assert not list((tmp_path / "data" / "sandbox" / "live").glob("*.json"))


def begun(client: Client, path: str) -> bool:
    """Say whether a run's log has the first output of its code; the log is read from its start and left again."""
    with client._client.stream("GET", f"{client.base_url}{path.lstrip('/')}", headers=client.auth_headers) as stream:
        for line in stream.iter_lines():
            if '"logs":"begun' in line:
                return True
            if line.startswith("event: thread.run.completed"):
                return False
    return False
