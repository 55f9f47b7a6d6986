"""A run that fails says why, and what to check: each way in which an upstream fails, polled and streamed.

`pytest -s` prints each `last_error`.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types.beta.threads import Run

from perdure.models.scripted import Script, ScriptedServer
from tests.api.scenes import PLAIN_EVENTS, WEATHER, collapsed, outputs_for, settled, text_of
from tests.api.test_whole_run import KEY, Stage, show
from tests.server import Client, running_server, upstream_of

WRONG = "sk-not-the-upstreams-key-123456"
NO_VISION = "Invalid content type. image_url is only supported by certain models."
SOON = 0.01
"""What an upstream asks its clients to wait before they try again."""


def failing(when: str, status: int, message: str, **more: Any) -> dict[str, Any]:
    return {"when": when, "fail": {"status": status, "message": message, "retry_after": SOON, **more}, "say": "There."}


SCRIPT: dict[str, Any] = {
    "models": ["gpt-4o"],
    "rules": [
        failing("^no such model$", 404, "The model `gpt-9` does not exist."),
        failing("^busy$", 429, "Slow down."),
        failing("^ill$", 500, "Out of memory."),
        failing("^busy for a moment$", 429, "Slow down.", times=2),
        failing("^ill for a moment$", 500, "Out of memory.", times=2),
        failing("^look at this$", 400, NO_VISION),
        {"when": "^break$", "say": "one two three four five", "break_after": 3},
        {"when": "^silence$", "say": "one two three", "hang_after": 2},
        {"when": "^never$", "say": "one two three", "hang_after": 0},
        {"when": "^half a call$", "call": [{"name": "get_weather", "arguments": '{"city": "Se'}]},
        {"when": "^no object$", "call": [{"name": "get_weather", "arguments": '["Seoul"]'}]},
        {"when": "^broken call$", "call": [{"name": "get_weather", "arguments": {"city": "Seoul"}}], "break_after": 2},
        {"when": "^unknown$", "call": [{"name": "launch", "arguments": {}}]},
        {
            "when": "^think aloud$",
            "say": "Let me see.",
            "call": [{"name": "get_weather", "arguments": {"city": "Seoul"}}],
        },
        {**failing("^sunny$", 500, "Out of memory."), "role": "tool"},
    ],
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A server over an upstream that works, the same with a wrong key, and one that is not there."""
    upstream = ScriptedServer(msgspec.convert(SCRIPT, Script), key=KEY)
    with socket.socket() as closed, upstream_of(upstream) as address:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refused
        upstreams = {
            "locked": {"url": address, "key": WRONG},
            "gone": {"url": f"http://127.0.0.1:{closed.getsockname()[1]}/v1"},
        }
        settings: dict[str, Any] = {
            "builtin_model": "none",
            "upstream_url": address,
            "upstream_key": KEY,
            "upstreams": upstreams,
            "upstream_silence_seconds": 0.5,
            "shutdown_grace_seconds": 0,
        }
        data = tmp_path_factory.mktemp("failures") / "data"
        with running_server(data, **settings) as url, Client(url) as client:
            yield Stage(client, upstream, url)


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A question, and how its run fails."""

    question: str
    code: str = "server_error"
    says: tuple[str, ...]
    model: str = "gpt-4o"
    calls: int = 1
    """How often the upstream is asked."""
    steps: tuple[str, ...] = ()
    text: str | None = None
    """What of a message there was."""


UPSTREAM = "upstream 'default' (http://127.0.0.1:"
FAILURES = {
    "401": Failure(
        question="hello",
        model="locked/gpt-4o",
        says=(
            "upstream 'locked' (http://127.0.0.1:",
            "did not accept the key",
            "Check PERDURE_UPSTREAMS, 'locked', key",
        ),
    ),
    "404": Failure(
        question="no such model",
        model="gpt-9",
        says=(UPSTREAM, "does not know model 'gpt-9'", "PERDURE_MODEL_MAP", "PERDURE_UPSTREAM_URL"),
    ),
    "429": Failure(
        question="busy", code="rate_limit_exceeded", calls=3, says=(UPSTREAM, "limits its rate", "429", "Slow down.")
    ),
    "500": Failure(question="ill", calls=3, says=(UPSTREAM, "status 500: Out of memory.", "Look into its log")),
    "refused connection": Failure(
        question="hello",
        model="gone/gpt-4o",
        calls=0,
        says=("upstream 'gone' can not be reached at http://127.0.0.1:", "Check PERDURE_UPSTREAMS, 'gone', url"),
    ),
    "broken stream": Failure(
        question="break",
        says=(UPSTREAM, "broke off its answer", "Look into its log"),
        steps=("message_creation",),
        text="one two three",
    ),
    "broken call": Failure(
        question="broken call",
        says=(UPSTREAM, "broke off its answer", "Look into its log"),
        steps=("tool_calls",),
    ),
    "cut arguments": Failure(
        question="half a call", says=("'get_weather'", "malformed arguments", '{"city": "Se'), steps=("tool_calls",)
    ),
    "arguments that are no object": Failure(
        question="no object", says=("'get_weather'", "malformed arguments", '["Seoul"]'), steps=("tool_calls",)
    ),
    "unknown function": Failure(question="unknown", says=("'launch'", "none of the run's functions")),
    "silence": Failure(
        question="silence",
        says=(UPSTREAM, "sent nothing for 0.5 seconds", "PERDURE_UPSTREAM_SILENCE_SECONDS"),
        steps=("message_creation",),
        text="one two",
    ),
    "silence from the start": Failure(
        question="never", says=(UPSTREAM, "sent nothing for 0.5 seconds", "PERDURE_UPSTREAM_SILENCE_SECONDS")
    ),
    "no vision": Failure(
        question="look at this",
        code="invalid_prompt",
        says=(UPSTREAM, "refused the request for model 'gpt-4o'", "status 400", NO_VISION),
    ),
}


def prepared(stage: Stage, failure: Failure) -> dict[str, Any]:
    """Make an assistant, and a thread with an image; return what the run is created with."""
    stage.upstream.requests.clear()
    assistant = stage.client.beta.assistants.create(model=failure.model, tools=[WEATHER])
    content: Any = failure.question
    if failure.question == "look at this":
        image = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
        content = [{"type": "text", "text": failure.question}, image]
    thread = stage.client.beta.threads.create(messages=[{"role": "user", "content": content}])
    return {"thread_id": thread.id, "assistant_id": assistant.id}


def assert_it_says_why(stage: Stage, failure: Failure, run: Run) -> None:
    assert run.last_error is not None
    show(f"{failure.question!r}: {run.last_error.code}", run.last_error.message)
    assert run.last_error.code == failure.code
    for words in failure.says:
        assert words in run.last_error.message
    assert KEY not in run.last_error.message
    assert WRONG not in run.last_error.message
    assert (run.status, run.failed_at is None) == ("failed", False)
    assert (run.expires_at, run.completed_at, run.cancelled_at, run.required_action) == (None, None, None, None)
    assert len(stage.asked) == failure.calls


def assert_what_was_written_stays(stage: Stage, failure: Failure, run: Run) -> None:
    client = stage.client
    steps = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc").data
    assert tuple(step.type for step in steps) == failure.steps
    for step in steps:
        assert (step.status, step.failed_at is None) == ("failed", False)
        assert step.last_error is not None
        assert run.last_error is not None
        assert (step.last_error.code, step.last_error.message) == (
            "rate_limit_exceeded" if failure.code == "rate_limit_exceeded" else "server_error",
            run.last_error.message,
        )
    messages = client.beta.threads.messages.list(run.thread_id, run_id=run.id).data
    assert [text_of(one) for one in messages] == ([] if failure.text is None else [failure.text])
    for message in messages:
        assert message.incomplete_details is not None
        assert (message.status, message.incomplete_details.reason) == ("incomplete", "run_failed")


def assert_the_thread_is_free(stage: Stage, run: Run) -> None:
    client = stage.client
    client.beta.threads.messages.create(run.thread_id, role="user", content="better")
    again = client.beta.threads.runs.create(run.thread_id, assistant_id=run.assistant_id, model="gpt-4o")
    assert settled(client, again).status == "completed"
    assert text_of(client.beta.threads.messages.list(run.thread_id).data[0]) == "You said: better"


@pytest.mark.parametrize("name", FAILURES)
def test_a_polled_run_that_fails(stage: Stage, name: str) -> None:
    failure = FAILURES[name]
    run = settled(stage.client, stage.client.beta.threads.runs.create(**prepared(stage, failure)))
    assert_it_says_why(stage, failure, run)
    assert_what_was_written_stays(stage, failure, run)
    assert_the_thread_is_free(stage, run)


@pytest.mark.parametrize("name", FAILURES)
def test_a_streamed_run_that_fails(stage: Stage, name: str) -> None:
    """The failure is an event of the run and never an `error`; `done` follows, and the run shown is the run stored."""
    failure = FAILURES[name]
    given = prepared(stage, failure)
    raw = stage.client.beta.threads.runs.with_raw_response.create(**given, stream=True)
    lines = [line for line in raw.http_response.iter_lines() if line and not line.startswith((":", "id:"))]
    frames = [(name.removeprefix("event: "), data.removeprefix("data: ")) for name, data in pairs(lines)]
    assert frames[-1] == ("done", "[DONE]")
    expected = PLAIN_EVENTS[:3]
    if "message_creation" in failure.steps:
        expected = [*PLAIN_EVENTS[:8], "thread.run.step.failed", "thread.message.incomplete"]
    elif "tool_calls" in failure.steps:
        expected = [*PLAIN_EVENTS[:5], "thread.run.step.delta", "thread.run.step.failed"]
    assert collapsed(event for event, _ in frames) == [*expected, "thread.run.failed", "done"]
    run = stage.client.beta.threads.runs.list(given["thread_id"]).data[0]
    assert run.to_dict() == json.loads(frames[-2][1])
    assert_it_says_why(stage, failure, run)
    assert_what_was_written_stays(stage, failure, run)
    assert_the_thread_is_free(stage, run)


def pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    return zip(lines[::2], lines[1::2], strict=True)


def test_the_stream_helper_hears_of_a_failure(stage: Stage) -> None:
    given = prepared(stage, FAILURES["broken stream"])
    with stage.client.beta.threads.runs.stream(**given) as stream:
        stream.until_done()
        run, [message], [step] = stream.get_final_run(), stream.get_final_messages(), stream.get_final_run_steps()
    assert (run.status, message.status, text_of(message)) == ("failed", "incomplete", "one two three")
    assert step.type == "message_creation"


@pytest.mark.parametrize("question", ["busy for a moment", "ill for a moment"])
def test_what_passes_is_tried_again_and_nobody_notices(data: Path, question: str) -> None:
    upstream = ScriptedServer(msgspec.convert(SCRIPT, Script))
    with (
        upstream_of(upstream) as address,
        running_server(data, builtin_model="none", upstream_url=address) as url,
        Client(url) as client,
    ):
        stage = Stage(client, upstream, url)
        events = stage.streamed(question)
        assert collapsed(event.event for event in events) == PLAIN_EVENTS
        assert text_of(stage.newest(events[-1].data)) == "There."
        assert len(stage.asked) == 3
        assert all(one.body == stage.asked[0].body for one in stage.asked)


def test_what_was_done_before_a_failure_stays(stage: Stage) -> None:
    """The message and the calls of the first turn are kept when the second one fails; both turns' calls are counted."""
    run = stage.run("think aloud", tools=[WEATHER])
    submit: Any = {"run_id": run.id, "thread_id": run.thread_id, "tool_outputs": outputs_for(run, "sunny")}
    with stage.client.beta.threads.runs.submit_tool_outputs_stream(**submit) as stream:
        names = [event.event for event in stream]
        ended = stream.get_final_run()
    assert names == [
        *("thread.run.step.completed", "thread.run.queued", "thread.run.in_progress", "thread.run.failed"),
    ]
    assert ended.last_error is not None
    assert "Out of memory." in ended.last_error.message
    assert len(stage.asked) == 4
    steps = stage.client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc").data
    assert [(step.type, step.status) for step in steps] == [
        ("message_creation", "completed"),
        ("tool_calls", "completed"),
    ]
    shown: Any = steps[1].step_details.to_dict()
    assert shown["tool_calls"][0]["function"]["output"] == "sunny"
    messages = stage.client.beta.threads.messages.list(run.thread_id, run_id=run.id).data
    assert [(text_of(one), one.status) for one in messages] == [("Let me see.", "completed")]
    assert ended.usage is not None
    assert steps[1].usage is not None
    assert ended.usage.total_tokens == steps[1].usage.total_tokens
    assert_the_thread_is_free(stage, ended)
