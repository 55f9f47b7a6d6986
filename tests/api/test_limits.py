"""What is sent upstream when a thread is long or a run has caps, and what is counted when nobody else does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from perdure.models.scripted import Script, ScriptedServer
from tests.api.scenes import WEATHER
from tests.server import Client, running_server, upstream_of

RULES: dict[str, Any] = {
    "rules": [
        {"when": "^weather$", "call": [{"name": "get_weather", "arguments": {"city": "Seoul"}}]},
        {"when": "^no numbers$", "say": "Nobody counts me.", "usage": None},
        {"when": "", "role": "tool", "say": "It is fine."},
    ],
    "otherwise": {"say": "one two three four five six", "usage": {"prompt_tokens": 200, "completion_tokens": 6}},
}


@pytest.fixture(scope="module")
def upstream() -> ScriptedServer:
    return ScriptedServer(msgspec.convert(RULES, Script))


@pytest.fixture(scope="module")
def url(upstream: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("limits") / "data"
    windows = {"small-*": 600}
    with (
        upstream_of(upstream) as upstream_url,
        running_server(data, upstream_url=upstream_url, builtin_model="none", context_tokens=windows) as base_url,
    ):
        yield base_url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as one:
        yield one


def long_thread(client: Client, count: int = 400) -> str:
    messages: Any = [
        {"role": "user" if n % 2 == 0 else "assistant", "content": f"message number {n} of a long thread"}
        for n in range(count - 1)
    ]
    return client.beta.threads.create(messages=[*messages, {"role": "user", "content": "the last question"}]).id


def sent(upstream: ScriptedServer) -> list[dict[str, Any]]:
    """The chat messages of the newest request."""
    messages: list[dict[str, Any]] = json.loads(json.dumps(upstream.requests[-1].body))["messages"]
    print(f"sent upstream: {len(messages)} messages, {messages[0]} ... {messages[1]} ... {messages[-1]}")  # noqa: T201  # shown by -rP
    return messages


def run_on(client: Client, thread_id: str, model: str = "any", **options: Any) -> Any:
    assistant = client.beta.assistants.create(model=model, instructions="Be brief.")
    return client.beta.threads.runs.create_and_poll(thread_id=thread_id, assistant_id=assistant.id, **options)


def test_without_limits_the_whole_thread_is_shown(client: Client, upstream: ScriptedServer) -> None:
    run_on(client, long_thread(client))
    assert len(sent(upstream)) == 401


def test_the_last_messages_are_shown(client: Client, upstream: ScriptedServer) -> None:
    strategy: Any = {"type": "last_messages", "last_messages": 10}
    run = run_on(client, long_thread(client), truncation_strategy=strategy)
    assert run.status == "completed"
    messages = sent(upstream)
    assert [message["content"] for message in messages[:2]] == ["Be brief.", "message number 390 of a long thread"]
    assert len(messages) == 11


def test_a_prompt_cap_drops_the_oldest(client: Client, upstream: ScriptedServer) -> None:
    run = run_on(client, long_thread(client), max_prompt_tokens=300)
    assert run.status == "completed"
    messages = sent(upstream)
    assert messages[0]["content"] == "Be brief."
    assert messages[-1]["content"] == "the last question"
    assert 10 < len(messages) < 40
    numbers = [int(message["content"].split()[2]) for message in messages[1:-1]]
    assert numbers == list(range(numbers[0], 399)), "what is shown has no holes"


def test_the_models_window_drops_the_oldest(client: Client, upstream: ScriptedServer) -> None:
    assert run_on(client, long_thread(client), model="small-one").status == "completed"
    messages = sent(upstream)
    assert messages[0]["content"] == "Be brief."
    assert messages[-1]["content"] == "the last question"
    assert 10 < len(messages) < 60


def test_what_can_not_be_dropped_and_does_not_fit_fails_with_numbers(client: Client) -> None:
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "words and words " * 400}])
    run = run_on(client, thread.id, model="small-one")
    assert run.status == "failed"
    assert run.last_error.code == "invalid_prompt"
    assert "600" in run.last_error.message


def test_a_cap_too_small_for_the_question_ends_incomplete(client: Client, upstream: ScriptedServer) -> None:
    before = len(upstream.requests)
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "words and words " * 400}])
    assistant = client.beta.assistants.create(model="any", instructions="Be brief.")
    with client.beta.threads.runs.stream(
        thread_id=thread.id, assistant_id=assistant.id, max_prompt_tokens=256
    ) as stream:
        events = [event.event for event in stream]
        run = stream.get_final_run()
    assert events[-1] == "thread.run.incomplete"
    assert run.incomplete_details is not None
    assert run.incomplete_details.reason == "max_prompt_tokens"
    assert len(upstream.requests) == before, "the model is not asked"


def test_caps_count_over_all_calls_of_a_run(client: Client, upstream: ScriptedServer) -> None:
    assistant = client.beta.assistants.create(model="any", instructions="Be brief.", tools=[WEATHER])
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "weather"}])
    run: Any = client.beta.threads.runs.create_and_poll(
        thread_id=thread.id, assistant_id=assistant.id, max_completion_tokens=100
    )
    assert run.status == "requires_action"
    assert upstream.requests[-1].body["max_completion_tokens"] == 100
    call = run.required_action.submit_tool_outputs.tool_calls[0]
    done = client.beta.threads.runs.submit_tool_outputs_and_poll(
        run_id=run.id, thread_id=thread.id, tool_outputs=[{"tool_call_id": call.id, "output": "fine"}]
    )
    assert done.status == "completed"
    steps = client.beta.threads.runs.steps.list(run.id, thread_id=thread.id, order="asc").data
    first = steps[0].usage
    assert first is not None
    assert upstream.requests[-1].body["max_completion_tokens"] == 100 - first.completion_tokens
    assert done.usage is not None
    assert done.usage.total_tokens == sum(step.usage.total_tokens for step in steps if step.usage)


def test_a_completion_cap_ends_incomplete(client: Client) -> None:
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "talk"}])
    run = run_on(client, thread.id, max_completion_tokens=3)
    assert run.status == "incomplete"
    assert run.incomplete_details.reason == "max_completion_tokens"
    answer = client.beta.threads.messages.list(thread.id, run_id=run.id).data[0]
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_tokens"


def test_tokens_are_counted_where_the_upstream_does_not(client: Client) -> None:
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "no numbers"}])
    usage = run_on(client, thread.id).usage
    assert usage is not None
    assert usage.completion_tokens == 4  # `Nobody counts me.` in o200k_base
    assert usage.prompt_tokens > 10
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
