"""Runs, plain and streamed, through the official client."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from openai.types.beta.threads import Run

from tests.api.scenes import (
    PLAIN_EVENTS,
    WEATHER,
    ask,
    asked,
    collapsed,
    hanging,
    outputs_for,
    reached,
    refused,
    settled,
    text_of,
    write_script,
)
from tests.server import Client, running_server

RUN_KEYS = [
    *("id", "object", "created_at", "assistant_id", "thread_id", "status", "started_at", "expires_at", "cancelled_at"),
    *("failed_at", "completed_at", "required_action", "last_error", "model", "instructions", "tools"),
    *("tool_resources", "metadata", "temperature", "top_p", "reasoning_effort", "max_completion_tokens"),
    *("max_prompt_tokens", "truncation_strategy", "incomplete_details", "usage", "response_format", "tool_choice"),
    "parallel_tool_calls",
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    with running_server(folder / "data", script=write_script(folder), shutdown_grace_seconds=0) as base_url:
        yield base_url


# -- creation


def test_the_first_answer_of_a_run_is_queued(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o", instructions="Be brief.")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
    run = client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id)
    assert (run.status, run.started_at, run.usage) == ("queued", None, None)
    assert run.expires_at == run.created_at + 600


def test_defaults_are_filled_in_and_keys_stand_in_the_recorded_order(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
    raw = client.beta.threads.runs.with_raw_response.create(thread.id, assistant_id=assistant.id)
    shown = raw.http_response.json()
    assert list(shown) == RUN_KEYS
    expected = {
        "status": "queued",
        "model": "gpt-4o",
        "instructions": "",
        "tools": [],
        "tool_resources": {},
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "reasoning_effort": None,
        "max_completion_tokens": None,
        "max_prompt_tokens": None,
        "truncation_strategy": {"type": "auto", "last_messages": None},
        "response_format": "auto",
        "tool_choice": "auto",
        "parallel_tool_calls": True,
    }
    assert {name: shown[name] for name in expected} == expected


def test_a_run_copies_the_assistant_and_overrides_win(client: Client) -> None:
    assistant = client.beta.assistants.create(
        model="gpt-4o", instructions="Old.", tools=[WEATHER], temperature=0.2, metadata={"of": "assistant"}
    )
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
    create = client.beta.threads.runs.create
    copied = settled(client, create(thread.id, assistant_id=assistant.id))
    client.beta.assistants.update(assistant.id, instructions="New.", model="other", tools=[])
    kept = client.beta.threads.runs.retrieve(copied.id, thread_id=thread.id)
    assert (kept.model, kept.instructions, kept.temperature, kept.metadata) == ("gpt-4o", "Old.", 0.2, {})
    assert [tool.type for tool in kept.tools] == ["function"]
    choice: Any = {"type": "function", "function": {"name": "f"}}
    given: dict[str, Any] = {
        "model": "gpt-4-1106-preview",
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "temperature": 0.0,
        "top_p": 0.1,
        "metadata": {"a": "b"},
        "max_prompt_tokens": 256,
        "max_completion_tokens": 300,
        "truncation_strategy": {"type": "last_messages", "last_messages": 2},
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "response_format": {"type": "json_object"},
        "reasoning_effort": "high",
    }
    run = create(
        thread.id, assistant_id=assistant.id, instructions="Mine.", additional_instructions="And more.", **given
    )
    shown = run.to_dict()
    full = {"name": "f", "parameters": {"type": "object", "properties": {}}, "strict": False}
    given["tools"] = [{"type": "function", "function": full}]
    assert {name: shown[name] for name in given} == given
    assert shown["instructions"] == "Mine.\n\nAnd more."
    assert settled(client, run).status == "completed"


def test_every_null_falls_back_to_the_assistant(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o", instructions="Mine.", tools=[WEATHER], top_p=0.4)
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
    names = (
        *("model", "instructions", "additional_instructions", "additional_messages", "tools", "metadata"),
        *("temperature", "top_p", "stream", "max_prompt_tokens", "max_completion_tokens", "truncation_strategy"),
        *("tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort"),
    )
    nulls: dict[str, Any] = dict.fromkeys(names)
    run = client.beta.threads.runs.create(thread.id, assistant_id=assistant.id, **nulls)
    assert (run.model, run.instructions, run.top_p, len(run.tools)) == ("gpt-4o", "Mine.", 0.4, 1)
    assert (run.tool_choice, run.parallel_tool_calls, run.temperature) == ("auto", True, 1.0)
    settled(client, run)
    elsewhere = {"additional_instructions", "additional_messages", "reasoning_effort"}
    both: dict[str, Any] = {**dict.fromkeys(set(names) - elsewhere), "thread": None, "tool_resources": None}
    created = client.beta.threads.create_and_run(assistant_id=assistant.id, **both)
    assert (created.instructions, created.status) == ("Mine.", "queued")


def test_additional_messages_join_the_thread_first(client: Client) -> None:
    run = asked(client, "hello", additional_messages=[{"role": "user", "content": "rather this"}])
    texts = [text_of(one) for one in client.beta.threads.messages.list(run.thread_id, order="asc")]
    assert texts == ["hello", "rather this", "You said: rather this"]


def test_a_run_needs_something_to_run_on(client: Client) -> None:
    bare = client.beta.assistants.create(model="gpt-4o")
    thread = client.beta.threads.create()
    nothing = (
        400,
        "Run creation requires a Thread with a user message or an assistant with instructions.",
        None,
        "invalid_thread",
    )
    runs = client.beta.threads.runs
    assert refused(runs.create, thread.id, assistant_id=bare.id) == nothing
    assert refused(client.beta.threads.create_and_run, assistant_id=bare.id) == nothing
    assert runs.list(thread.id).data == []
    run = runs.create(thread.id, assistant_id=bare.id, instructions="Say hello.")
    assert settled(client, run).status == "completed"


def test_refused_bodies(client: Client) -> None:
    thread = client.beta.threads.create()
    create: Any = client.beta.threads.runs.create
    missing = "Missing required parameter: 'assistant_id'."
    raw = refused(client.post, f"/threads/{thread.id}/runs", cast_to=object, body={})
    assert raw == (400, missing, "assistant_id", "missing_required_parameter")
    assert refused(create, thread.id, assistant_id="asst_none").message == "No assistant found with id 'asst_none'."
    assert refused(create, thread.id, assistant_id="x") == (
        400,
        "Invalid 'assistant_id': 'x'. Expected an ID that begins with 'asst'.",
        "assistant_id",
        "invalid_value",
    )
    assert refused(create, "thread_none", assistant_id="asst_none").message == "No thread found with id 'thread_none'."
    for name, value, where in (
        ("tools", [{"type": "retrieval"}], "tools[0].type"),
        ("tool_choice", "sometimes", "tool_choice"),
        ("tool_choice", {"type": "function"}, "tool_choice.function"),
        ("temperature", 2.5, "temperature"),
        ("truncation_strategy", {"type": "last_messages", "last_messages": 0}, "truncation_strategy.last_messages"),
        ("additional_messages", [{"role": "user"}], "additional_messages[0].content"),
        ("response_format", {"type": "xml"}, "response_format.type"),
        ("metadata", {"a": 1}, "metadata.a"),
    ):
        refusal = refused(create, thread.id, assistant_id="asst_1", **{name: value})
        assert (refusal.status, refusal.param) == (400, where)


# -- the end of a run, and what is stored then


def test_a_completed_run_shows_its_end_and_its_usage(client: Client) -> None:
    run = asked(client, "hello")
    assert run.status == "completed"
    assert run.completed_at is not None
    assert run.started_at is not None
    assert run.created_at <= run.started_at <= run.completed_at
    assert (run.expires_at, run.failed_at, run.cancelled_at, run.last_error) == (None, None, None, None)
    raw = client.beta.threads.runs.with_raw_response.retrieve(run.id, thread_id=run.thread_id).http_response.json()
    usage = raw["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    assert usage["prompt_token_details"] == {"cached_tokens": 0}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}
    newest = client.beta.threads.messages.list(run.thread_id).data[0]
    assert (newest.role, newest.run_id, newest.assistant_id) == ("assistant", run.id, run.assistant_id)
    assert (newest.status, text_of(newest)) == ("completed", "You said: hello")


def test_create_and_poll_and_create_and_run_poll(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "a"}])
    run = client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)
    both: Any = {"messages": [{"role": "user", "content": "b"}], "metadata": {"k": "v"}}
    other = client.beta.threads.create_and_run_poll(assistant_id=assistant.id, thread=both, metadata={"of": "run"})
    assert (run.status, other.status, other.metadata) == ("completed", "completed", {"of": "run"})
    assert client.beta.threads.retrieve(other.thread_id).metadata == {"k": "v"}
    assert text_of(client.beta.threads.messages.list(other.thread_id).data[0]) == "You said: b"


def test_three_threads_at_once(client: Client) -> None:
    runs = [ask(client, f"question {number}") for number in range(3)]
    assert [settled(client, run).status for run in runs] == ["completed"] * 3
    answers = [text_of(client.beta.threads.messages.list(run.thread_id).data[0]) for run in runs]
    assert answers == [f"You said: question {number}" for number in range(3)]


def test_a_refusal_of_the_model_is_a_part_of_its_own(client: Client) -> None:
    run = asked(client, "refuse")
    message = client.beta.threads.messages.list(run.thread_id).data[0]
    assert [part.to_dict() for part in message.content] == [{"type": "refusal", "refusal": "I would rather not."}]


def test_a_silent_model_leaves_an_empty_message(client: Client) -> None:
    run = asked(client, "silence")
    message = client.beta.threads.messages.list(run.thread_id).data[0]
    assert (run.status, message.role, text_of(message)) == ("completed", "assistant", "")


def test_a_token_cap_makes_the_run_incomplete(client: Client) -> None:
    run = asked(client, "a b c d e f g", max_completion_tokens=3)
    assert (run.status, run.incomplete_details and run.incomplete_details.reason) == (
        "incomplete",
        "max_completion_tokens",
    )
    message = client.beta.threads.messages.list(run.thread_id).data[0]
    assert message.incomplete_details is not None
    assert (message.status, message.incomplete_details.reason) == ("incomplete", "max_tokens")
    assert text_of(message) == "You said: a"


@pytest.mark.parametrize(("question", "code"), [("break", "server_error"), ("busy", "rate_limit_exceeded")])
def test_a_failed_run_says_why_and_frees_its_thread(client: Client, question: str, code: str) -> None:
    run = asked(client, question)
    assert (run.status, run.last_error and run.last_error.code) == ("failed", code)
    assert run.failed_at is not None
    assert (run.expires_at, run.completed_at) == (None, None)
    messages = client.beta.threads.messages.list(run.thread_id, order="asc").data[1:]
    reasons = [one.incomplete_details and one.incomplete_details.reason for one in messages]
    assert reasons == (["run_failed"] if question == "break" else [])
    client.beta.threads.messages.create(run.thread_id, role="user", content="better")
    again = client.beta.threads.runs.create(run.thread_id, assistant_id=run.assistant_id)
    assert settled(client, again).status == "completed"


# -- lists and changes


def test_runs_of_a_thread_page_newest_first(client: Client) -> None:
    first = asked(client, "hello")
    ids = [first.id]
    for _ in range(3):
        run = client.beta.threads.runs.create(first.thread_id, assistant_id=first.assistant_id)
        ids.append(settled(client, run).id)
    runs = client.beta.threads.runs
    assert [one.id for one in runs.list(first.thread_id)] == ids[::-1]
    assert [one.id for one in runs.list(first.thread_id, order="asc", limit=2)] == ids
    newest = runs.list(first.thread_id, limit=1)
    assert ([one.id for one in newest.data], newest.has_more) == (ids[-1:], True)
    assert runs.list(first.thread_id, limit=4).has_more is False
    assert [one.id for one in runs.list(first.thread_id, order="asc", before=ids[2]).data] == ids[:2]


def test_metadata_changes_once_the_run_has_ended(client: Client) -> None:
    run = asked(client, "weather", metadata={"a": "1"})
    update = client.beta.threads.runs.update
    busy = "Cannot update run with status 'requires_action'."
    assert refused(update, run.id, thread_id=run.thread_id, metadata={}) == (400, busy, None, None)
    client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    ended = settled(client, run)
    assert update(run.id, thread_id=run.thread_id) == ended
    changed = update(run.id, thread_id=run.thread_id, metadata={"b": "2"})
    assert changed.to_dict() == {**ended.to_dict(), "metadata": {"b": "2"}}
    assert update(run.id, thread_id=run.thread_id, metadata=None).metadata == {}


def test_wrong_and_unknown_ids(client: Client) -> None:
    run = asked(client, "hello")
    other = client.beta.threads.create()
    runs: Any = client.beta.threads.runs
    outputs: dict[str, Any] = {"tool_outputs": []}
    for call, given in (
        (runs.retrieve, {}),
        (runs.update, {}),
        (runs.cancel, {}),
        (runs.submit_tool_outputs, outputs),
        (runs.steps.list, {}),
    ):
        unknown = (404, "No run found with id 'run_none'.", None, None)
        elsewhere = (404, f"No run found with id '{run.id}'.", None, None)
        wrong = (400, "Invalid 'run_id': 'x'. Expected an ID that begins with 'run'.", "run_id", "invalid_value")
        assert refused(call, "run_none", thread_id=run.thread_id, **given) == unknown
        assert refused(call, run.id, thread_id=other.id, **given) == elsewhere
        assert refused(call, "x", thread_id=run.thread_id, **given) == wrong


# -- the thread's lock


def test_an_active_run_locks_its_thread(client: Client) -> None:
    run = asked(client, "weather")
    message = client.beta.threads.messages.list(run.thread_id).data[0]
    assert refused(client.beta.threads.messages.create, run.thread_id, role="user", content="x") == (
        400,
        f"Can't add messages to {run.thread_id} while a run {run.id} is active.",
        None,
        None,
    )
    assert refused(client.beta.threads.runs.create, run.thread_id, assistant_id=run.assistant_id) == (
        400,
        f"Thread {run.thread_id} already has an active run {run.id}.",
        None,
        None,
    )
    extra: Any = {"additional_messages": [{"role": "user", "content": "x"}], "stream": True}
    refusal = refused(client.beta.threads.runs.create, run.thread_id, assistant_id=run.assistant_id, **extra)
    assert "already has an active run" in refusal.message
    assert len(client.beta.threads.messages.list(run.thread_id).data) == 1
    client.beta.threads.messages.update(message.id, thread_id=run.thread_id, metadata={"a": "b"})
    client.beta.threads.update(run.thread_id, metadata={"c": "d"})
    client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    reached(client, run, "cancelled")
    client.beta.threads.messages.create(run.thread_id, role="user", content="free")


def test_of_many_runs_at_once_one_gets_the_thread(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o", tools=[WEATHER])
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "weather"}])

    def begin(_: int) -> str:
        try:
            return client.beta.threads.runs.create(thread.id, assistant_id=assistant.id).id
        except openai.BadRequestError as error:
            return error.message

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(begin, range(8)))
    (run,) = client.beta.threads.runs.list(thread.id).data
    refusals = [answer for answer in answers if answer != run.id]
    assert len(refusals) == 7
    assert all(f"Thread {thread.id} already has an active run {run.id}." in one for one in refusals)


def test_of_many_outputs_at_once_one_is_taken(client: Client) -> None:
    run = asked(client, "weather")
    outputs = outputs_for(run, "sunny")

    def submit(_: int) -> int:
        answer: Any = httpx2.post(
            f"{client.base_url}threads/{run.thread_id}/runs/{run.id}/submit_tool_outputs",
            json={"tool_outputs": outputs},
            headers={"authorization": "Bearer k"},
        )
        return int(answer.status_code)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(submit, range(4))) == [200, 400, 400, 400]
    assert settled(client, run).status == "completed"
    answers = client.beta.threads.messages.list(run.thread_id, run_id=run.id).data
    assert [text_of(one) for one in answers] == ["It is sunny."]


# -- cancelling


def test_cancel_while_a_program_is_waited_for(client: Client) -> None:
    run = asked(client, "weather")
    assert client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id).status == "cancelling"
    ended = settled(client, run)
    assert (ended.status, ended.required_action, ended.expires_at) == ("cancelled", None, None)
    assert ended.cancelled_at is not None
    (step,) = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id).data
    assert step.status == "cancelled"
    assert step.cancelled_at is not None
    assert_ended(client, run, "cancelled")


def test_cancel_while_the_model_speaks(client: Client) -> None:
    run = hanging(client)
    assert run.status == "in_progress"
    half = client.beta.threads.messages.list(run.thread_id).data[0]
    assert (half.status, half.run_id) == ("in_progress", run.id)
    assert refused(client.beta.threads.messages.delete, half.id, thread_id=run.thread_id).status == 400
    assert client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id).status == "cancelling"
    reached(client, run, "cancelled")
    message = client.beta.threads.messages.list(run.thread_id).data[0]
    assert message.incomplete_details is not None
    assert (message.status, message.incomplete_details.reason) == ("incomplete", "run_cancelled")
    assert (text_of(message), message.incomplete_at is None) == ("one two", False)
    assert_ended(client, run, "cancelled")


def test_the_stream_of_a_cancelled_run(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "hang"}])
    names = []
    with client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id, stream=True) as stream:
        for event in stream:
            names.append(event.event)
            if names.count("thread.message.delta") == 2 and names[-1] == "thread.message.delta":
                newest = client.beta.threads.runs.list(thread.id, limit=1).data[0]
                client.beta.threads.runs.cancel(newest.id, thread_id=thread.id)
    assert collapsed(names) == [
        *PLAIN_EVENTS[:8],
        *("thread.run.step.cancelled", "thread.message.incomplete", "thread.run.cancelling", "thread.run.cancelled"),
    ]


def test_cancel_where_it_is_too_late(client: Client) -> None:
    for question, status in (("hello", "completed"), ("break", "failed")):
        assert_ended(client, asked(client, question), status)


def test_a_thread_may_be_deleted_under_its_run(client: Client) -> None:
    run = hanging(client)
    assert client.beta.threads.delete(run.thread_id).deleted
    refusal = refused(client.beta.threads.runs.retrieve, run.id, thread_id=run.thread_id)
    assert refusal.message == f"No thread found with id '{run.thread_id}'."
    assert asked(client, "hello").status == "completed"


def assert_ended(client: Client, run: Run, status: str) -> None:
    """An ended run refuses all that only an active one can do, and its thread is free."""
    runs: Any = client.beta.threads.runs
    assert refused(runs.cancel, run.id, thread_id=run.thread_id) == (
        400,
        f"Cannot cancel run with status '{status}'.",
        None,
        None,
    )
    assert refused(runs.submit_tool_outputs, run.id, thread_id=run.thread_id, tool_outputs=[]) == (
        400,
        f'Runs in status "{status}" do not accept tool outputs.',
        None,
        None,
    )
    client.beta.threads.messages.create(run.thread_id, role="user", content="free")


# -- a crowded server, and one with little patience


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server with one place for runs."""
    folder = tmp_path_factory.mktemp("crowded")
    settings: dict[str, Any] = {"script": write_script(folder), "concurrency": 1, "shutdown_grace_seconds": 0}
    with running_server(folder / "data", **settings) as base_url, Client(base_url) as client:
        yield client


def test_a_queued_run_locks_waits_and_runs_in_its_turn(crowded: Client) -> None:
    first = hanging(crowded)
    second = ask(crowded, "hello")
    runs = crowded.beta.threads.runs
    assert runs.retrieve(second.id, thread_id=second.thread_id).status == "queued"
    assert refused(runs.submit_tool_outputs, second.id, thread_id=second.thread_id, tool_outputs=[]).message == (
        'Runs in status "queued" do not accept tool outputs.'
    )
    assert refused(runs.update, second.id, thread_id=second.thread_id).message == (
        "Cannot update run with status 'queued'."
    )
    assert refused(runs.submit_tool_outputs, first.id, thread_id=first.thread_id, tool_outputs=[]).message == (
        'Runs in status "in_progress" do not accept tool outputs.'
    )
    runs.cancel(first.id, thread_id=first.thread_id)
    assert settled(crowded, second).status == "completed"


def test_a_queued_run_can_be_cancelled(crowded: Client) -> None:
    first = hanging(crowded)
    second = ask(crowded, "hello")
    runs = crowded.beta.threads.runs
    assert runs.cancel(second.id, thread_id=second.thread_id).status == "cancelling"
    assert refused(runs.cancel, second.id, thread_id=second.thread_id).message in {
        "Cannot cancel run with status 'cancelling'.",
        "Cannot cancel run with status 'cancelled'.",
    }
    runs.cancel(first.id, thread_id=first.thread_id)
    ended = reached(crowded, second, "cancelled")
    assert (ended.started_at, ended.usage) == (None, None)


def test_a_queued_run_is_cancelled_although_no_place_is_free(crowded: Client) -> None:
    first = hanging(crowded)
    second = ask(crowded, "hello")
    runs = crowded.beta.threads.runs
    try:
        runs.cancel(second.id, thread_id=second.thread_id)
        reached(crowded, second, "cancelled")
    finally:
        runs.cancel(first.id, thread_id=first.thread_id)
        reached(crowded, first, "cancelled")


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server whose runs expire after three seconds."""
    folder = tmp_path_factory.mktemp("impatient")
    settings: dict[str, Any] = {"script": write_script(folder), "run_expiry_seconds": 3, "shutdown_grace_seconds": 0}
    with running_server(folder / "data", **settings) as base_url, Client(base_url) as client:
        yield client


def test_runs_expire(impatient: Client) -> None:
    speaking = hanging(impatient)
    waiting = asked(impatient, "weather")
    assert waiting.expires_at == waiting.created_at + 3
    for run in (speaking, waiting):
        ended = reached(impatient, run, "expired")
        assert (ended.expires_at, ended.required_action, ended.last_error) == (None, None, None)
        (step,) = impatient.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id).data
        assert step.status == "expired"
        assert step.expired_at is not None
        assert_ended(impatient, run, "expired")
    message = impatient.beta.threads.messages.list(speaking.thread_id, run_id=speaking.id).data[0]
    assert message.incomplete_details is not None
    assert message.incomplete_details.reason == "run_expired"


def test_the_stream_of_a_run_that_expires(impatient: Client) -> None:
    assistant = impatient.beta.assistants.create(model="gpt-4o")
    thread = impatient.beta.threads.create(messages=[{"role": "user", "content": "hang"}])
    with impatient.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        names = collapsed(event.event for event in stream)
    assert names[-3:] == ["thread.run.step.expired", "thread.message.incomplete", "thread.run.expired"]
