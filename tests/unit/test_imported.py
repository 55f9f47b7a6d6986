"""Lines of an import: what the hosted API left out is filled in, what was active is ended, what is wrong is named."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from perdure.domain.imported import BadLine, Item, Unknown, in_order, read_line
from perdure.wire.assistants import Assistant
from perdure.wire.exports import ExportEnd, ExportHead
from perdure.wire.messages import Message
from perdure.wire.runs import Run
from perdure.wire.steps import RunStep

MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "object": "thread.message",
    "created_at": 1700000000,
    "thread_id": "thread_1",
    "role": "user",
    "content": [{"type": "text", "text": {"value": "안녕", "annotations": []}}],
}
RUN: dict[str, Any] = {
    "id": "run_1",
    "object": "thread.run",
    "created_at": 1700000000,
    "assistant_id": "asst_1",
    "thread_id": "thread_1",
    "status": "completed",
    "model": "gpt-4o",
    "instructions": None,
    "tools": [{"type": "file_search", "file_search": {"ranking_options": {"ranker": "auto", "score_threshold": 0}}}],
    "temperature": None,
    "truncation_strategy": None,
    "response_format": None,
    "tool_choice": None,
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}
STEP: dict[str, Any] = {
    "id": "step_1",
    "object": "thread.run.step",
    "created_at": 1700000000,
    "run_id": "run_1",
    "assistant_id": "asst_1",
    "thread_id": "thread_1",
    "type": "tool_calls",
    "status": "in_progress",
    "step_details": {
        "type": "tool_calls",
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
}


def read(given: dict[str, Any], **changes: Any) -> Item:
    found = read_line(1, json.dumps({**given, **changes}).encode())
    assert isinstance(found, Item)
    return found


def thing_of(given: dict[str, Any], **changes: Any) -> Any:
    return read(given, **changes).thing


def test_a_hosted_message_gets_what_the_hosted_api_left_out() -> None:
    message = thing_of(MESSAGE, attachments=None, metadata=None, file_ids=[])
    assert isinstance(message, Message)
    assert (message.status, message.completed_at, message.attachments, message.metadata) == (
        "completed",
        1700000000,
        [],
        {},
    )
    assert (message.run_id, message.assistant_id, message.incomplete_details) == (None, None, None)


def test_a_hosted_run_gets_defaults_for_nulls() -> None:
    run = thing_of(RUN)
    assert isinstance(run, Run)
    assert (run.instructions, run.temperature, run.top_p, run.tool_choice) == ("", 1.0, 1.0, "auto")
    assert run.usage is not None
    assert run.usage.prompt_token_details.cached_tokens == 0
    assert run.parallel_tool_calls is True


def test_sampling_that_was_set_is_guessed_from_what_is_not_at_its_default() -> None:
    assistant: dict[str, Any] = {"id": "asst_1", "object": "assistant", "created_at": 1, "model": "gpt-4o"}
    assert read(assistant).extra.given == []
    item = read(assistant, temperature=0.2, top_p=1.0)
    assert isinstance(item.thing, Assistant)
    assert item.extra.given == ["temperature"]
    beside = {"project": "one", "extra": {"given": ["top_p"]}}
    assert read(assistant, temperature=0.2, x_perdure=beside).extra.given == ["top_p"]
    assert read(assistant, x_perdure={"project": "one"}).project == "one"


def test_what_was_active_is_ended_and_each_time_alike() -> None:
    for status in ("queued", "in_progress", "requires_action"):
        run = thing_of(RUN, status=status, expires_at=1700000600)
        assert (run.status, run.expires_at, run.required_action) == ("expired", None, None)
        assert "does not take runs up" in run.last_error.message
        assert run == thing_of(RUN, status=status, expires_at=1700000600)
    assert thing_of(RUN, status="cancelling").status == "cancelled"
    step = thing_of(STEP)
    assert isinstance(step, RunStep)
    assert (step.status, step.expired_at, step.metadata) == ("expired", 1700000000, {})
    message = thing_of(MESSAGE, status="in_progress", content=[])
    assert (message.status, message.incomplete_details.reason) == ("incomplete", "run_expired")


def test_an_ended_object_is_kept_as_it_is() -> None:
    for given in (RUN, {**STEP, "status": "completed"}, {**MESSAGE, "status": "incomplete"}):
        first = read(given)
        again = read(json.loads(msgspec.json.encode(first.thing)), x_perdure={"project": "default"})
        assert again.thing == first.thing


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "it is no JSON"),
        ("[]", "a JSON object with a key `object` is wanted"),
        ("{}", "a JSON object with a key `object` is wanted"),
        ({**MESSAGE, "content": None}, "missing required field `content`"),
        ({**MESSAGE, "role": "system"}, r"Invalid enum value 'system' - at `\$.role`"),
        ({**MESSAGE, "id": "run_1"}, "does not begin with 'msg_'"),
        ({**MESSAGE, "id": "msg_a b"}, "is no id"),
        ({**MESSAGE, "thread_id": "thread_\0"}, "is no id"),
        ({**MESSAGE, "created_at": 2**60}, "no time in Unix seconds"),
        ({**MESSAGE, "x_perdure": {}}, "missing required field `project`"),
        ({**MESSAGE, "x_perdure": {"project": ""}}, "is no name"),
        ({"object": "perdure.export", "version": 2, "perdure_version": "9", "created_at": 1}, "use a newer one"),
    ],
)
def test_a_wrong_line_says_what_is_wrong(line: Any, why: str) -> None:
    text = line if isinstance(line, str) else json.dumps(line)
    with pytest.raises(BadLine, match=why):
        read_line(1, text.encode())


def test_other_lines_are_told_apart() -> None:
    assert read_line(1, b'{"object": "upload", "id": "upload_1"}') == Unknown("upload")
    head = b'{"object": "perdure.export", "version": 1, "perdure_version": "0.1.0", "created_at": 1}'
    assert isinstance(read_line(1, head), ExportHead)
    assert read_line(9, b'{"object": "perdure.export.end", "objects": 3}') == ExportEnd(objects=3)


def test_a_list_that_is_newest_first_is_turned_around() -> None:
    old, middle, new = (read(MESSAGE, id=f"msg_{n}", created_at=n) for n in (1, 2, 3))
    assert in_order([new, middle, old]) == [old, middle, new]
    assert in_order([old, middle, new]) == [old, middle, new]
    assert in_order([middle, middle]) == [middle, middle]
