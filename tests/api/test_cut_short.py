"""Runs that end in the middle of a function call: what was written and counted stays, with the right reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from perdure.models.scripted import Script, ScriptedServer
from tests.api.scenes import SEOUL, WEATHER
from tests.server import Client, running_server, upstream_of

BROKEN = {"name": "get_weather", "arguments": '{"city": "Se'}
USED = {"prompt_tokens": 11, "completion_tokens": 7}
RULES: dict[str, Any] = {
    "rules": [
        {"when": "^cut$", "call": [SEOUL], "finish": "length", "usage": USED},
        {"when": "^filtered$", "call": [SEOUL], "finish": "content_filter", "usage": USED},
        {"when": "^malformed$", "call": [BROKEN], "usage": USED},
        {"when": "^hang$", "call": [SEOUL], "hang_after": 3},
    ],
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("cut") / "data"
    with (
        upstream_of(ScriptedServer(msgspec.convert(RULES, Script))) as upstream_url,
        running_server(data, upstream_url=upstream_url, builtin_model="none") as base_url,
    ):
        yield base_url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as one:
        yield one


def begin(client: Client, text: str, **options: Any) -> Any:
    assistant = client.beta.assistants.create(model="scripted", tools=[WEATHER])
    thread: Any = {"messages": [{"role": "user", "content": text}]}
    return client.beta.threads.create_and_run_poll(assistant_id=assistant.id, thread=thread, **options)


def only_call(client: Client, run: Any) -> Any:
    step: Any = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id).data[0]
    return step.status, step.step_details.tool_calls[0].function


def test_a_cap_reached_in_a_call_ends_incomplete(client: Client) -> None:
    run = begin(client, "cut", max_completion_tokens=100)
    assert (run.status, run.incomplete_details.reason) == ("incomplete", "max_completion_tokens")
    assert run.usage.total_tokens == 18
    status, function = only_call(client, run)
    assert (status, function.name) == ("failed", "get_weather")


def test_a_filter_in_a_call_is_the_prompts_fault(client: Client) -> None:
    run = begin(client, "filtered")
    assert (run.status, run.last_error.code) == ("failed", "invalid_prompt")
    assert "content filter" in run.last_error.message


def test_malformed_arguments_fail_with_what_was_counted_and_written(client: Client) -> None:
    run = begin(client, "malformed")
    assert (run.status, run.usage.total_tokens) == ("failed", 18)
    assert "malformed arguments" in run.last_error.message
    assert only_call(client, run) == ("failed", only_call(client, run)[1])
    assert only_call(client, run)[1].arguments == BROKEN["arguments"]


def test_a_cancel_in_a_call_keeps_what_was_shown_of_it(client: Client) -> None:
    assistant = client.beta.assistants.create(model="scripted", tools=[WEATHER])
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "hang"}])
    arguments = ""
    with client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id, stream=True) as stream:
        for event in stream:
            if event.event == "thread.run.created":
                run_id = event.data.id
            if event.event == "thread.run.step.delta":
                details: Any = event.data.delta.step_details
                arguments += details.tool_calls[0].function.arguments
                if arguments:
                    client.beta.threads.runs.cancel(run_id, thread_id=thread.id)
                    break
        ended = [event.event for event in stream][-2:]
    assert ended == ["thread.run.cancelling", "thread.run.cancelled"]
    run = client.beta.threads.runs.retrieve(run_id, thread_id=thread.id)
    status, function = only_call(client, run)
    assert status == "cancelled"
    assert function.name == "get_weather"
    assert function.arguments.startswith(arguments)


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        ({"type": "function", "function": {"name": "nope"}}, "nope"),
        ({"type": "file_search"}, "file_search"),
        ({"type": "code_interpreter"}, "code_interpreter"),
    ],
)
def test_a_choice_that_the_run_does_not_have_is_refused(client: Client, choice: Any, named: str) -> None:
    assistant = client.beta.assistants.create(model="scripted", tools=[WEATHER])
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError) as caught:
        client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id, tool_choice=choice)
    assert caught.value.param == "tool_choice"
    assert named in caught.value.message


def test_a_tool_that_the_model_can_not_have_can_not_be_forced(tmp_path: Path) -> None:
    with (
        upstream_of(ScriptedServer()) as upstream_url,
        running_server(tmp_path, upstream_url=upstream_url, builtin_model="none", toolless_models="*") as base_url,
        Client(base_url) as client,
    ):
        run = begin(client, "hi", tools=[{"type": "code_interpreter"}], tool_choice={"type": "code_interpreter"})
        assert run.status == "failed"
        assert "code_interpreter" in run.last_error.message
