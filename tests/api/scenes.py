"""Scenes that several tests play: a script for the model, short ways to a run, and how a refusal looks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from openai.types.beta.threads import Message, Run

from tests.server import Client

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

SEOUL = {"name": "get_weather", "arguments": {"city": "Seoul"}}
PARIS = {"name": "get_weather", "arguments": {"city": "Paris"}}

SCRIPT: dict[str, Any] = {
    "rules": [
        {"when": "^weather$", "call": [SEOUL]},
        {"when": "^two cities$", "call": [SEOUL, PARIS]},
        {"when": "^think aloud$", "say": "Let me see.", "call": [SEOUL]},
        {"when": "^hang$", "say": "one two three", "hang_after": 2},
        {"when": "^break$", "say": "one two three", "break_after": 2},
        {"when": "^busy$", "fail": {"status": 429, "message": "Slow down."}},
        {"when": "^refuse$", "refuse": "I would rather not."},
        {"when": "^silence$", "say": ""},
        {"when": "again", "role": "tool", "call": [PARIS]},
        {"when": "", "role": "tool", "say": "It is {output}."},
    ],
    "otherwise": {"say": "You said: {question}"},
}

PLAIN_EVENTS = [
    "thread.run.created",
    "thread.run.queued",
    "thread.run.in_progress",
    "thread.run.step.created",
    "thread.run.step.in_progress",
    "thread.message.created",
    "thread.message.in_progress",
    "thread.message.delta",
    "thread.message.completed",
    "thread.run.step.completed",
    "thread.run.completed",
]


def write_script(folder: Path, script: dict[str, Any] | None = None) -> Path:
    path = folder / "script.json"
    path.write_text(json.dumps(script or SCRIPT), encoding="utf-8")
    return path


class Refusal(NamedTuple):
    """What a client sees of a refused call."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None


def refused(call: Callable[..., object], *args: Any, **named: Any) -> Refusal:
    """Make a call that must be refused, in the error shape."""
    with pytest.raises(openai.APIStatusError) as caught:
        call(*args, **named)
    error = caught.value
    assert error.request_id is not None
    shown = error.response.json()["error"]
    assert set(shown) == {"message", "type", "param", "code"}
    assert shown["type"] == "invalid_request_error"
    return Refusal(error.status_code, shown["message"], shown["param"], shown["code"])


def ask(client: Client, question: str, **options: Any) -> Run:
    """Begin a run on a new thread."""
    assistant = client.beta.assistants.create(model="gpt-4o", tools=[WEATHER])
    thread = client.beta.threads.create(messages=[{"role": "user", "content": question}])
    run: Run = client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id, **options)
    return run


def asked(client: Client, question: str, **options: Any) -> Run:
    """Begin a run on a new thread and wait until it pauses or ends."""
    return settled(client, ask(client, question, **options))


def settled(client: Client, run: Run) -> Run:
    return client.beta.threads.runs.poll(run.id, thread_id=run.thread_id, poll_interval_ms=20)


def reached(client: Client, run: Run, status: str) -> Run:
    """Wait until a run has that status; twenty seconds are for a busy machine."""
    deadline = time.monotonic() + 20
    while True:
        seen = client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
        if seen.status == status:
            return seen
        assert time.monotonic() < deadline, f"the run is {seen.status}, not {status}"
        time.sleep(0.02)


def hanging(client: Client, **options: Any) -> Run:
    """Begin a run and return it when its model hangs in the middle of a message."""
    assistant = client.beta.assistants.create(model="gpt-4o")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "hang"}])
    stream = client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id, stream=True, **options)
    deltas = 0
    with stream:
        for event in stream:
            deltas += event.event == "thread.message.delta"
            if deltas == 2:
                break
    return client.beta.threads.runs.list(thread.id).data[0]


def collapsed(names: Iterable[str]) -> list[str]:
    """Leave out repetitions: one delta stands for many."""
    seen: list[str] = []
    for name in names:
        if not seen or seen[-1] != name:
            seen.append(name)
    return seen


def text_of(message: Message) -> str:
    part = message.content[0]
    assert part.type == "text"
    return part.text.value


def outputs_for(run: Run, *outputs: str) -> Any:
    """Pair the outputs with the calls that wait."""
    assert run.required_action is not None
    calls = run.required_action.submit_tool_outputs.tool_calls
    return [{"tool_call_id": call.id, "output": output} for call, output in zip(calls, outputs, strict=True)]
