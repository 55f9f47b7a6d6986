"""Run steps: retrieve and list."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.scenes import asked, outputs_for, refused, write_script
from tests.server import Client, running_server

STEP_KEYS = {
    *("id", "object", "created_at", "run_id", "assistant_id", "thread_id", "type", "status", "cancelled_at"),
    *("completed_at", "expires_at", "expired_at", "failed_at", "last_error", "step_details", "usage", "metadata"),
}
RESULTS: Any = "step_details.tool_calls[*].file_search.results[*].content"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("steps")
    with running_server(folder / "data", script=write_script(folder)) as base_url:
        yield base_url


def test_the_step_of_a_plain_answer(client: Client) -> None:
    run = asked(client, "hello")
    (message,) = client.beta.threads.messages.list(run.thread_id, run_id=run.id).data
    raw = client.beta.threads.runs.steps.with_raw_response.list(run.id, thread_id=run.thread_id).http_response.json()
    (step,) = raw["data"]
    assert set(step) == STEP_KEYS
    assert re.fullmatch("step_[A-Za-z0-9]{24}", step["id"])
    expected = {
        "object": "thread.run.step",
        "run_id": run.id,
        "assistant_id": run.assistant_id,
        "thread_id": run.thread_id,
        "type": "message_creation",
        "status": "completed",
        "cancelled_at": None,
        "expires_at": None,
        "expired_at": None,
        "failed_at": None,
        "last_error": None,
        "step_details": {"type": "message_creation", "message_creation": {"message_id": message.id}},
        "metadata": {},
    }
    assert {name: step[name] for name in expected} == expected
    assert step["completed_at"] >= step["created_at"]
    assert run.usage is not None
    assert step["usage"] == run.usage.to_dict()


def test_an_open_tool_step_shows_its_calls_without_outputs(client: Client) -> None:
    run = asked(client, "weather")
    (step,) = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id).data
    shown: Any = step.to_dict()
    assert (shown["status"], shown["usage"], shown["completed_at"]) == ("in_progress", None, None)
    assert shown["expires_at"] == run.expires_at
    function = {"name": "get_weather", "arguments": '{"city":"Seoul"}', "output": None}
    call_id = outputs_for(run, "")[0]["tool_call_id"]
    assert shown["step_details"] == {
        "type": "tool_calls",
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


def test_pages_retrieval_and_includes(client: Client) -> None:
    run = asked(client, "weather")
    submit = client.beta.threads.runs.submit_tool_outputs_and_poll
    for output in ("again", "again", "fine"):
        run = submit(run_id=run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, output))
    steps = client.beta.threads.runs.steps
    named: dict[str, Any] = {"thread_id": run.thread_id}
    whole = steps.list(run.id, **named, order="asc").data
    assert [step.type for step in whole] == ["tool_calls"] * 3 + ["message_creation"]
    assert list(steps.list(run.id, **named, order="asc", limit=1, include=[RESULTS])) == whole
    assert list(steps.list(run.id, **named)) == whole[::-1]
    assert steps.list(run.id, **named, limit=4).has_more is False
    assert steps.list(run.id, **named, limit=3).has_more is True
    assert steps.list(run.id, **named, order="asc", after=whole[0].id, before=whole[3].id).data == whole[1:3]
    assert [steps.retrieve(step.id, run_id=run.id, **named, include=[RESULTS]) for step in whole] == whole


def test_wrong_and_unknown_ids(client: Client) -> None:
    run, other = asked(client, "hello"), asked(client, "hello")
    (step,) = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id).data
    retrieve: Any = client.beta.threads.runs.steps.retrieve
    assert refused(retrieve, "step_123", run_id=run.id, thread_id=run.thread_id) == (
        404,
        "No run step found with id 'step_123'.",
        None,
        None,
    )
    assert refused(retrieve, step.id, run_id=other.id, thread_id=other.thread_id).status == 404
    assert refused(retrieve, step.id, run_id=run.id, thread_id=other.thread_id).message == (
        f"No run found with id '{run.id}'."
    )
    assert refused(retrieve, "x", run_id=run.id, thread_id=run.thread_id) == (
        400,
        "Invalid 'step_id': 'x'. Expected an ID that begins with 'step'.",
        "step_id",
        "invalid_value",
    )
