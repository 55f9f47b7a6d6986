"""Streams of runs, and runs that call functions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AssistantEventHandler, AsyncOpenAI

from tests.api.scenes import (
    PLAIN_EVENTS,
    WEATHER,
    asked,
    collapsed,
    outputs_for,
    reached,
    refused,
    settled,
    text_of,
    write_script,
)
from tests.server import Client, running_server


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    with running_server(folder / "data", script=write_script(folder), shutdown_grace_seconds=0) as base_url:
        yield base_url


# -- streams


def test_a_plain_answer_is_streamed_in_the_recorded_order(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "안녕 하세요"}])
    with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        events = [event.event for event in stream]
        messages = stream.get_final_messages()
    assert collapsed(events) == PLAIN_EVENTS
    assert messages[0].content[0].to_dict()["text"] == {"annotations": [], "value": "You said: 안녕 하세요"}


def test_what_a_stream_shows_is_what_is_stored(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
    events: dict[str, Any] = {}
    deltas: list[Any] = []
    with client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id, stream=True) as stream:
        for event in stream:
            events[event.event] = event.data
            if event.event == "thread.message.delta":
                deltas.append(event.data.to_dict()["delta"])
    first = events["thread.run.created"]
    assert (first, first.status) == (events["thread.run.queued"], "queued")
    assert events["thread.run.in_progress"].started_at is not None
    created = events["thread.message.created"]
    assert (created.status, created.content, created.attachments) == ("in_progress", [], [])
    step = events["thread.run.step.created"]
    assert (step.usage, step.step_details.message_creation.message_id) == (None, created.id)
    texts = [delta["content"][0]["text"] for delta in deltas]
    assert "".join(text["value"] for text in texts) == "You said: hello"
    assert [sorted(text) for text in texts] == [["annotations", "value"], *[["value"]] * (len(texts) - 1)]
    completed = events["thread.run.completed"]
    runs = client.beta.threads.runs
    assert runs.retrieve(completed.id, thread_id=thread.id) == completed
    assert runs.steps.list(completed.id, thread_id=thread.id).data == [events["thread.run.step.completed"]]
    assert client.beta.threads.messages.list(thread.id).data[0] == events["thread.message.completed"]


def test_thread_and_run_are_streamed_with_the_thread_first(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o")
    new: Any = {"messages": [{"role": "user", "content": "hello"}], "metadata": {"a": "b"}}
    with client.beta.threads.create_and_run(assistant_id=assistant.id, thread=new, stream=True) as stream:
        events = list(stream)
    assert collapsed(event.event for event in events) == ["thread.created", *PLAIN_EVENTS]
    assert events[0].event == "thread.created"
    assert events[0].data == client.beta.threads.retrieve(events[0].data.id)


class Listener(AssistantEventHandler):
    """Writes down which of its hooks were called."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def on_message_created(self, message: Any) -> None:
        del message
        self.heard.append("message created")

    def on_text_created(self, text: Any) -> None:
        del text
        self.heard.append("text created")

    def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        del snapshot
        self.heard.append(f"text {delta.value}")

    def on_text_done(self, text: Any) -> None:
        self.heard.append(f"text done: {text.value}")

    def on_message_done(self, message: Any) -> None:
        self.heard.append(f"message {message.status}")

    def on_end(self) -> None:
        self.heard.append("end")


def test_the_event_handler_hears_all(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o")
    thread: Any = {"messages": [{"role": "user", "content": "hello"}]}
    listener = Listener()
    with client.beta.threads.create_and_run_stream(
        assistant_id=assistant.id, thread=thread, event_handler=listener
    ) as stream:
        stream.until_done()
        assert [step.type for step in stream.get_final_run_steps()] == ["message_creation"]
        assert stream.get_final_run().status == "completed"
    assert listener.heard == [
        *("message created", "text created", "text You", "text  said:", "text  hello"),
        *("text done: You said: hello", "message completed", "end"),
    ]


def test_the_stream_of_a_run_that_breaks(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "break"}])
    with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        names = collapsed(event.event for event in stream)
        final = stream.get_final_run()
    assert names[-4:] == [
        *("thread.message.delta", "thread.run.step.failed", "thread.message.incomplete", "thread.run.failed")
    ]
    assert final.status == "failed"


def test_a_client_that_hangs_up_stops_nothing(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
    with client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id, stream=True) as stream:
        first = next(iter(stream))
    assert first.event == "thread.run.created"
    assert reached(client, first.data, "completed").usage is not None
    assert text_of(client.beta.threads.messages.list(thread.id).data[0]) == "You said: hello"


def test_the_asynchronous_client_streams_and_hangs_up(url: str) -> None:
    async def inside() -> tuple[list[str], str]:
        async with AsyncOpenAI(base_url=url, api_key="k", max_retries=0, _strict_response_validation=True) as client:
            assistant = await client.beta.assistants.create(model="gpt-4o")
            thread = await client.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
            named: dict[str, Any] = {"thread_id": thread.id, "assistant_id": assistant.id}
            async with client.beta.threads.runs.stream(**named) as stream:
                names = [event.event async for event in stream]
            opened = await client.beta.threads.runs.create(**named, stream=True)
            async with opened:
                async for event in opened:
                    if event.event == "thread.run.created":
                        break
            newest = (await client.beta.threads.runs.list(thread.id, limit=1)).data[0]
            ended = await client.beta.threads.runs.poll(newest.id, thread_id=thread.id)
            return names, ended.status

    names, status = asyncio.run(inside())
    assert collapsed(names) == PLAIN_EVENTS
    assert status == "completed"


def test_a_refused_stream_is_a_plain_refusal(client: Client) -> None:
    thread = client.beta.threads.create()
    with pytest.raises(openai.NotFoundError, match="No assistant found with id 'asst_none'"):
        client.beta.threads.runs.create(thread_id=thread.id, assistant_id="asst_none", stream=True)


# -- function calls


def test_a_function_call_and_its_output(client: Client) -> None:
    run = asked(client, "weather")
    assert (run.status, run.usage) == ("requires_action", None)
    assert run.expires_at == run.created_at + 600
    assert run.required_action is not None
    (call,) = run.required_action.submit_tool_outputs.tool_calls
    assert call.id.startswith("call_")
    assert call.function.to_dict() == {"name": "get_weather", "arguments": '{"city":"Seoul"}'}
    answered = client.beta.threads.runs.submit_tool_outputs(
        run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, "sunny")
    )
    assert (answered.status, answered.required_action, answered.expires_at) == ("queued", None, run.expires_at)
    assert answered.started_at == run.started_at
    ended = settled(client, run)
    assert (ended.status, ended.required_action) == ("completed", None)
    assert text_of(client.beta.threads.messages.list(run.thread_id).data[0]) == "It is sunny."


def test_parallel_calls_share_a_step_and_are_answered_together_in_any_order(client: Client) -> None:
    run = asked(client, "two cities")
    outputs = outputs_for(run, "sunny", "wet")
    ids = [one["tool_call_id"] for one in outputs]
    submit = client.beta.threads.runs.submit_tool_outputs
    for wrong in ([], outputs[:1], [*outputs, outputs[0]], [outputs[0], outputs[0]]):
        got = [one["tool_call_id"] for one in wrong]
        text = f"Expected tool outputs for call_ids {ids}, got {got}"
        assert refused(submit, run.id, thread_id=run.thread_id, tool_outputs=wrong) == (400, text, None, None)
    assert reached(client, run, "requires_action").required_action == run.required_action
    ended = client.beta.threads.runs.submit_tool_outputs_and_poll(
        run_id=run.id, thread_id=run.thread_id, tool_outputs=outputs[::-1]
    )
    assert ended.status == "completed"
    steps = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc").data
    assert [step.type for step in steps] == ["tool_calls", "message_creation"]
    shown: Any = steps[0].step_details.to_dict()
    assert [call["function"]["output"] for call in shown["tool_calls"]] == ["sunny", "wet"]
    assert [call["id"] for call in shown["tool_calls"]] == ids


def test_calls_may_follow_calls_and_usage_adds_up(client: Client) -> None:
    run = asked(client, "weather")
    submit = client.beta.threads.runs.submit_tool_outputs_and_poll
    second = submit(run_id=run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, "ask again"))
    assert second.status == "requires_action"
    assert outputs_for(second, "x") != outputs_for(run, "x")
    ended = submit(run_id=run.id, thread_id=run.thread_id, tool_outputs=outputs_for(second, "fine"))
    steps = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc").data
    assert [step.type for step in steps] == ["tool_calls", "tool_calls", "message_creation"]
    assert ended.usage is not None
    assert ended.usage.total_tokens == sum(step.usage.total_tokens for step in steps if step.usage)


def test_a_message_may_come_before_a_call(client: Client) -> None:
    run = asked(client, "think aloud")
    assert run.status == "requires_action"
    texts = [text_of(one) for one in client.beta.threads.messages.list(run.thread_id, run_id=run.id)]
    assert texts == ["Let me see."]
    steps = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc").data
    assert [(step.type, step.status) for step in steps] == [
        ("message_creation", "completed"),
        ("tool_calls", "in_progress"),
    ]
    submit = client.beta.threads.runs.submit_tool_outputs_and_poll
    ended = submit(run_id=run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, "sunny"))
    steps = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc").data
    counted = [step.usage.total_tokens for step in steps if step.usage is not None]
    assert len(counted) == len(steps), "every completed step has a number"
    assert counted[0] == 0, "the step of the calls counts the model's words before them too"
    assert ended.usage is not None
    assert ended.usage.total_tokens == sum(counted)


def test_an_output_may_be_missing_or_null(client: Client) -> None:
    for output in ({}, {"output": None}):
        run = asked(client, "weather")
        given: Any = [{"tool_call_id": outputs_for(run, "")[0]["tool_call_id"], **output}]
        submit = client.beta.threads.runs.submit_tool_outputs_and_poll
        assert submit(run_id=run.id, thread_id=run.thread_id, tool_outputs=given).status == "completed"


def test_outputs_are_only_taken_when_they_are_waited_for(client: Client) -> None:
    run = asked(client, "weather")
    submit = client.beta.threads.runs.submit_tool_outputs
    outputs = outputs_for(run, "sunny")
    submit(run.id, thread_id=run.thread_id, tool_outputs=outputs)
    settled(client, run)
    for stream in (False, True):
        options: Any = {"thread_id": run.thread_id, "tool_outputs": outputs, "stream": stream}
        text = 'Runs in status "completed" do not accept tool outputs.'
        assert refused(submit, run.id, **options) == (400, text, None, None)


def test_the_two_streams_of_a_function_call(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o", tools=[WEATHER])
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "two cities"}])
    with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        events = list(stream)
        run = stream.get_final_run()
        (snapshot,) = stream.get_final_run_steps()
    assert collapsed(event.event for event in events) == [
        *PLAIN_EVENTS[:5],
        *("thread.run.step.delta", "thread.run.requires_action"),
    ]
    deltas: list[Any] = [one.data.to_dict() for one in events if one.event == "thread.run.step.delta"]
    calls = [delta["delta"]["step_details"]["tool_calls"][0] for delta in deltas]
    for index in (0, 1):
        mine = [call for call in calls if call["index"] == index]
        begin = {"name": "get_weather", "arguments": "", "output": None}
        assert mine[0] == {"index": index, "id": mine[0]["id"], "type": "function", "function": begin}
        assert all(set(call) == {"index", "type", "function"} for call in mine[1:])
    assert run.status == "requires_action"
    made: Any = snapshot.step_details.to_dict()
    required: Any = run.required_action and run.required_action.submit_tool_outputs.to_dict()
    assert [call["id"] for call in made["tool_calls"]] == [call["id"] for call in required["tool_calls"]]
    assert [call["function"]["arguments"] for call in made["tool_calls"]] == [
        call["function"]["arguments"] for call in required["tool_calls"]
    ]
    stored = client.beta.threads.runs.steps.list(run.id, thread_id=thread.id).data
    assert [(step.id, step.status) for step in stored] == [(snapshot.id, "in_progress")]
    with client.beta.threads.runs.submit_tool_outputs_stream(
        run_id=run.id, thread_id=thread.id, tool_outputs=outputs_for(run, "sunny", "wet")
    ) as stream:
        second: list[Any] = list(stream)
    assert collapsed(event.event for event in second) == [
        *("thread.run.step.completed", "thread.run.queued", "thread.run.in_progress"),
        *PLAIN_EVENTS[3:],
    ]
    step: Any = second[0].data.to_dict()
    assert (step["id"], step["status"]) == (snapshot.id, "completed")
    assert [call["function"]["output"] for call in step["step_details"]["tool_calls"]] == ["sunny", "wet"]
    assert step["usage"]["total_tokens"] > 0
    assert (second[1].data.started_at, second[1].data.status) == (run.started_at, "queued")
    assert second[-1].data.usage.total_tokens > step["usage"]["total_tokens"]
