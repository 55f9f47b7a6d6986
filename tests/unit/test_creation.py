"""New objects out of bodies, and changed ones."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from perdure.domain.creation import (
    changed_assistant,
    changed_message,
    changed_thread,
    new_assistant,
    new_message,
    new_run,
    new_thread,
)
from perdure.errors import InvalidRequest
from perdure.wire.assistants import Assistant, CreateAssistant, ModifyAssistant
from perdure.wire.messages import CreateMessage, ModifyMessage
from perdure.wire.runs import CreateRun, Extra, Run
from perdure.wire.threads import CreateThread, ModifyThread


def assistant(**fields: Any) -> tuple[Assistant, Extra]:
    return new_assistant(msgspec.convert({"model": "m", **fields}, CreateAssistant), "asst_1", 100)


def modified(old: tuple[Assistant, Extra], **fields: Any) -> tuple[Assistant, Extra]:
    return changed_assistant(*old, msgspec.convert(fields, ModifyAssistant))


def run(of: tuple[Assistant, Extra], additional: str | None = None, **fields: Any) -> tuple[Run, Extra]:
    options = msgspec.convert({"assistant_id": "asst_1", **fields}, CreateRun)
    return new_run(
        options,
        *of,
        run_id="run_1",
        thread_id="thread_1",
        now=200,
        expiry_seconds=600,
        additional_instructions=additional,
    )


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({}, []),
        ({"temperature": None, "top_p": None}, []),
        ({"temperature": 1.0}, ["temperature"]),
        ({"top_p": 0.0, "temperature": 0.0}, ["temperature", "top_p"]),
    ],
)
def test_what_was_really_set_is_remembered(fields: dict[str, Any], given: list[str]) -> None:
    assert assistant(**fields)[1].given == given


def test_modify_remembers_and_forgets() -> None:
    old = assistant(temperature=0.5)
    assert modified(old, name="x")[1].given == ["temperature"]
    assert modified(old, top_p=0.1)[1].given == ["temperature", "top_p"]
    cleared, extra = modified(old, temperature=None)
    assert (cleared.temperature, extra.given) == (1.0, [])
    assert old[0].temperature == 0.5


def test_zero_is_a_value() -> None:
    made = assistant(temperature=0, top_p=0)
    assert (made[0].temperature, made[0].top_p) == (0.0, 0.0)
    started, extra = run(assistant(temperature=0.5), temperature=0)
    assert (started.temperature, extra.given) == (0.0, ["temperature"])


def test_an_empty_override_is_a_value_too() -> None:
    of = assistant(instructions="Mine.", tools=[{"type": "code_interpreter"}])
    started, _ = run(of, instructions="", tools=[])
    assert (started.instructions, started.tools) == ("", [])


@pytest.mark.parametrize(
    ("own", "override", "additional", "expected"),
    [
        (None, None, None, ""),
        ("A.", None, None, "A."),
        ("A.", "B.", None, "B."),
        ("A.", None, "C.", "A.\n\nC."),
        ("A.", "B.", "C.", "B.\n\nC."),
        (None, None, "C.", "C."),
        ("A.", None, "", "A."),
    ],
)
def test_instructions(own: str | None, override: str | None, additional: str | None, expected: str) -> None:
    assert run(assistant(instructions=own), additional, instructions=override)[0].instructions == expected


def test_a_run_is_a_snapshot() -> None:
    of = assistant(metadata={"of": "assistant"}, response_format={"type": "json_object"}, reasoning_effort="low")
    started, _ = run(of)
    assert (started.status, started.created_at, started.expires_at) == ("queued", 200, 800)
    assert (started.metadata, started.response_format) == ({}, of[0].response_format)
    assert (started.reasoning_effort, started.model) == ("low", "m")


@pytest.mark.parametrize(("given", "shown"), [(None, True), (True, True), (False, False)])
def test_parallel_tool_calls(given: bool | None, shown: bool) -> None:
    started, extra = run(assistant(), parallel_tool_calls=given)
    assert started.parallel_tool_calls is shown
    assert ("parallel_tool_calls" in extra.given) is (given is not None)


def test_absent_keeps_null_clears() -> None:
    thread = new_thread(msgspec.convert({"metadata": {"a": "1"}}, CreateThread), "thread_1", 1)
    assert changed_thread(thread, ModifyThread()) == thread
    assert changed_thread(thread, ModifyThread(metadata=None)).metadata == {}
    assert changed_thread(thread, ModifyThread(metadata={"b": "2"})).metadata == {"b": "2"}
    message = new_message(CreateMessage(role="user", content="x", metadata={"a": "1"}), "thread_1", "msg_1", 1)
    assert changed_message(message, ModifyMessage()) == message
    assert changed_message(message, ModifyMessage(metadata=None)).metadata == {}


def test_code_interpreter_brings_its_list_of_files() -> None:
    made, _ = assistant(tools=[{"type": "code_interpreter"}])
    assert msgspec.to_builtins(made.tool_resources) == {"code_interpreter": {"file_ids": []}}
    assert msgspec.to_builtins(assistant()[0].tool_resources) == {}


@pytest.mark.parametrize("content", ["", []])
def test_an_empty_message_is_refused_where_it_stands(content: Any) -> None:
    body = CreateMessage(role="user", content=content)
    with pytest.raises(InvalidRequest) as caught:
        new_message(body, "thread_1", "msg_1", 1, "thread.messages[2]")
    assert caught.value.param == "thread.messages[2].content"
