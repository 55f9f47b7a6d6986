"""What the model is shown."""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.domain.transcript import offered_tools, transcript
from perdure.wire.messages import Message
from perdure.wire.runs import Run
from perdure.wire.steps import RunStep


def chat_of(run: Run, messages: list[Message], steps: list[RunStep]) -> list[dict[str, Any]]:
    """The three parts in one list."""
    return [shown for part in transcript(run, messages, steps) for shown in part]


def run(**fields: Any) -> Run:
    given = {
        "id": "run_now",
        "created_at": 1,
        "assistant_id": "asst_1",
        "thread_id": "thread_1",
        "status": "in_progress",
        "expires_at": 2,
        "model": "m",
        "instructions": "Be brief.",
        "tools": [],
        "tool_resources": {},
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "reasoning_effort": None,
        "max_completion_tokens": None,
        "max_prompt_tokens": None,
        "truncation_strategy": {"type": "auto"},
        "response_format": "auto",
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        **fields,
    }
    return msgspec.convert(given, Run)


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": {"value": value, "annotations": []}}


def message(name: str, *parts: dict[str, Any], **fields: Any) -> Message:
    given = {
        "id": f"msg_{name}",
        "created_at": 1,
        "assistant_id": None,
        "thread_id": "thread_1",
        "run_id": None,
        "status": "completed",
        "incomplete_details": None,
        "incomplete_at": None,
        "completed_at": 1,
        "role": "user",
        "content": list(parts) or [text(name)],
        "attachments": [],
        "metadata": {},
        **fields,
    }
    return msgspec.convert(given, Message)


def own(name: str, **fields: Any) -> Message:
    return message(name, role="assistant", **{"run_id": "run_now", **fields})


def step(details: dict[str, Any], status: str = "completed") -> RunStep:
    given = {
        "id": "step_1",
        "created_at": 1,
        "run_id": "run_now",
        "assistant_id": "asst_1",
        "thread_id": "thread_1",
        "type": details["type"],
        "status": status,
        "expires_at": None,
        "step_details": details,
    }
    return msgspec.convert(given, RunStep)


def wrote(name: str, status: str = "completed") -> RunStep:
    return step({"type": "message_creation", "message_creation": {"message_id": f"msg_{name}"}}, status)


def called(*calls: tuple[str, str | None], status: str = "completed") -> RunStep:
    shown = [
        {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}", "output": output}}
        for call_id, output in calls
    ]
    return step({"type": "tool_calls", "tool_calls": shown}, status)


def contents(chat: list[dict[str, Any]]) -> list[Any]:
    return [one["content"] for one in chat]


def test_instructions_come_first_then_the_thread_in_its_order() -> None:
    thread = [message("one"), own("two", run_id="run_before"), message("three")]
    assert chat_of(run(), thread, []) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    assert contents(chat_of(run(instructions=""), thread, [])) == ["one", "two", "three"]


def test_calls_stand_where_the_run_made_them_each_followed_by_its_output() -> None:
    messages = [message("question"), own("first"), own("last")]
    steps = [wrote("first"), called(("call_1", "sunny"), ("call_2", None)), wrote("last")]
    chat = chat_of(run(), messages, steps)
    assert [one["role"] for one in chat] == ["system", "user", "assistant", "assistant", "tool", "tool", "assistant"]
    function = {"name": "f", "arguments": "{}"}
    assert chat[3] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": function},
            {"id": "call_2", "type": "function", "function": function},
        ],
    }
    assert chat[4:6] == [
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "call_2", "content": ""},
    ]


def test_what_the_run_has_not_finished_is_not_shown() -> None:
    messages = [message("question"), own("half", status="incomplete")]
    steps = [wrote("half", "failed"), called(("call_1", None), status="cancelled")]
    assert contents(chat_of(run(), messages, steps)) == ["Be brief.", "question"]


def test_a_deleted_message_of_the_run_is_left_out() -> None:
    assert contents(chat_of(run(), [message("question")], [wrote("gone")])) == ["Be brief.", "question"]


def test_a_false_start_of_an_earlier_run_is_not_shown_but_a_last_word_is() -> None:
    false_start = own("false start", run_id="run_a", status="incomplete")
    begun_anew = own("begun anew", run_id="run_a")
    broken_off = own("broken off", run_id="run_b", status="incomplete")
    thread = [message("one"), false_start, begun_anew, message("two"), broken_off]
    assert contents(chat_of(run(instructions=""), thread, [])) == ["one", "begun anew", "two", "broken off"]


def test_another_try_does_not_see_what_the_first_wrote_and_replaces_it_for_later_runs() -> None:
    failed = own("half", run_id="run_a", status="incomplete")
    thread = [message("one"), failed]
    assert contents(chat_of(run(), thread, [])) == ["Be brief.", "one", "half"]
    tried = transcript(run(), thread, [], ["run_a"])
    assert contents([one for part in tried for one in part]) == ["Be brief.", "one"]
    assert contents(chat_of(run(), [*thread, own("whole", run_id="run_b")], [])) == ["Be brief.", "one", "whole"]


def test_an_answer_cut_at_a_token_cap_is_shown_with_its_continuation() -> None:
    cut = own("first half", run_id="run_a", status="incomplete", incomplete_details={"reason": "max_tokens"})
    thread = [message("one"), cut, own("second half", run_id="run_b")]
    assert contents(chat_of(run(), thread, [])) == ["Be brief.", "one", "first half", "second half"]


def test_truncation_counts_the_threads_messages_and_spares_instructions_and_the_run() -> None:
    strategy = {"type": "last_messages", "last_messages": 2}
    thread = [message("one"), message("two"), message("three"), own("mine")]
    chat = chat_of(run(truncation_strategy=strategy), thread, [wrote("mine")])
    assert contents(chat) == ["Be brief.", "two", "three", "mine"]


def test_parts() -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}}
    refusal = {"type": "refusal", "refusal": "No."}
    thread = [
        message("a", text("one"), text("two")),
        message("b", text("look"), picture),
        own("c", run_id="run_before", content=[refusal]),
        own("d", run_id="run_before", content=[]),
    ]
    assert contents(chat_of(run(instructions=""), thread, [])) == [
        "one\ntwo",
        [{"type": "text", "text": "look"}, picture],
        "No.",
    ]


def test_functions_are_shown_as_chat_completions_has_them() -> None:
    schema = {"type": "object", "properties": {}}
    tools: list[dict[str, Any]] = [
        {"type": "function", "function": {"name": "f", "description": "Does.", "parameters": schema, "strict": True}},
        {"type": "code_interpreter"},
        {"type": "function", "function": {"name": "g", "parameters": schema, "strict": False}},
    ]
    assert offered_tools(run(tools=tools)) == [
        {"type": "function", "function": {"name": "f", "description": "Does.", "parameters": schema, "strict": True}},
        {"type": "function", "function": {"name": "g", "parameters": schema}},
    ]
