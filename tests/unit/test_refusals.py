"""A body that does not fit is refused in the hosted server's words."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from perdure.errors import InvalidRequest
from perdure.wire.assistants import CreateAssistant, ModifyAssistant
from perdure.wire.messages import CreateMessage
from perdure.wire.refusals import NOT_JSON, decode_body
from perdure.wire.runs import CreateRun, CreateThreadAndRun, SubmitToolOutputs
from perdure.wire.search import SearchRequest
from perdure.wire.threads import CreateThread
from perdure.wire.vector_stores import CreateFileBatch

M = {"model": "m"}

CASES: list[tuple[type, Any, str, str | None, str | None]] = [
    (
        ModifyAssistant,
        {"metadata": {"modified": True}},
        "Invalid type for 'metadata.modified': expected a string, but got a boolean instead.",
        "metadata.modified",
        "invalid_type",
    ),
    (
        CreateAssistant,
        {},
        "Missing required parameter: 'model'.",
        "model",
        "missing_required_parameter",
    ),
    (CreateRun, {}, "Missing required parameter: 'assistant_id'.", "assistant_id", "missing_required_parameter"),
    (CreateThread, {"x": 1}, "Unknown parameter: 'x'.", "x", "unknown_parameter"),
    (
        CreateFileBatch,
        {"file_ids": []},
        "Invalid 'file_ids': empty array. Expected an array with minimum length 1, but got an empty array instead.",
        "file_ids",
        "empty_array",
    ),
    (
        SearchRequest,
        {"query": []},
        "Invalid 'query': empty array. Expected an array with minimum length 1, but got an empty array instead.",
        "query",
        "empty_array",
    ),
    (
        CreateAssistant,
        {**M, "tools": [{"type": "function", "function": {"name": "f", "colour": 1}}]},
        "Unknown parameter: 'tools[0].function.colour'.",
        "tools[0].function.colour",
        "unknown_parameter",
    ),
    (
        CreateAssistant,
        {**M, "tools": [{"type": "retrieval"}]},
        "Invalid value: 'retrieval'. Supported values are: 'code_interpreter', 'function', and 'file_search'.",
        "tools[0].type",
        "invalid_value",
    ),
    (
        CreateAssistant,
        {**M, "instructions": "x" * 300_000},
        (
            "Invalid 'instructions': string too long. Expected a string with maximum length 256000, "
            "but got a string with length 300000 instead."
        ),
        "instructions",
        "string_above_max_length",
    ),
    (
        CreateAssistant,
        {**M, "metadata": {str(i): "v" for i in range(17)}},
        (
            "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, "
            "but got an object with 17 properties instead."
        ),
        "metadata",
        "object_above_max_properties",
    ),
    (
        CreateAssistant,
        {**M, "metadata": {"k": "v" * 513}},
        (
            "Invalid 'metadata.k': string too long. Expected a string with maximum length 512, "
            "but got a string with length 513 instead."
        ),
        "metadata.k",
        "string_above_max_length",
    ),
    (
        CreateAssistant,
        {**M, "metadata": {"k" * 65: "v"}},
        (
            f"Invalid property name in 'metadata': '{'k' * 32}...' is too long. Expected a property name with maximum "
            "length 64, but got a property name with length 65 instead."
        ),
        "metadata",
        "property_name_above_max_length",
    ),
    (
        CreateAssistant,
        {**M, "temperature": 3},
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead.",
        "temperature",
        "decimal_above_max_value",
    ),
    (
        CreateAssistant,
        {**M, "temperature": "hot"},
        "Invalid type for 'temperature': expected a decimal, but got a string instead.",
        "temperature",
        "invalid_type",
    ),
    (
        CreateRun,
        {"assistant_id": "asst_1", "max_prompt_tokens": 0},
        "Invalid 'max_prompt_tokens': integer below minimum value. Expected a value >= 1, but got 0 instead.",
        "max_prompt_tokens",
        "integer_below_min_value",
    ),
    (
        CreateRun,
        {"assistant_id": "asst_1", "stream": "yes"},
        "Invalid type for 'stream': expected a boolean, but got a string instead.",
        "stream",
        "invalid_type",
    ),
    (
        CreateMessage,
        {"role": "system", "content": "x"},
        "Invalid value: 'system'. Supported values are: 'assistant' and 'user'.",
        "role",
        "invalid_value",
    ),
    (
        CreateMessage,
        {"role": "user", "content": 5},
        "Invalid type for 'content': expected one of a string or array of objects, but got an integer instead.",
        "content",
        "invalid_type",
    ),
    (
        CreateMessage,
        {"role": "user", "content": [{"type": "text", "text": {"value": "x"}}]},
        "Invalid type for 'content[0].text': expected a string, but got an object instead.",
        "content[0].text",
        "invalid_type",
    ),
    (
        CreateThreadAndRun,
        {"assistant_id": "a", "thread": {"messages": [{"role": "user"}]}},
        "Missing required parameter: 'thread.messages[0].content'.",
        "thread.messages[0].content",
        "missing_required_parameter",
    ),
    (
        CreateAssistant,
        {**M, "tools": [{"function": {"name": "f"}}]},
        "Missing required parameter: 'tools[0].type'.",
        "tools[0].type",
        "missing_required_parameter",
    ),
    (
        CreateAssistant,
        {**M, "tools": [{"type": "function", "function": {"name": "no spaces"}}]},
        (
            "Invalid 'tools[0].function.name': string does not match pattern. Expected a string that matches the "
            "pattern '^[a-zA-Z0-9_-]+$'."
        ),
        "tools[0].function.name",
        "invalid_value",
    ),
    (
        CreateAssistant,
        {**M, "tools": [{"type": "code_interpreter"}] * 129},
        (
            "Invalid 'tools': array too long. Expected an array with maximum length 128, "
            "but got an array with length 129 instead."
        ),
        "tools",
        "array_above_max_length",
    ),
    (
        CreateAssistant,
        {"model": None},
        "Invalid type for 'model': expected a string, but got null instead.",
        "model",
        "invalid_type",
    ),
    (
        CreateAssistant,
        {"model": ""},
        "Invalid 'model': empty string. Expected a string with minimum length 1, but got an empty string instead.",
        "model",
        "empty_string",
    ),
    (
        CreateAssistant,
        [],
        "Invalid type for the request body: expected an object, but got an array instead.",
        None,
        "invalid_type",
    ),
    (
        SubmitToolOutputs,
        {"tool_outputs": [{"tool_call_id": "call_1", "output": {"a": 1}}]},
        "Invalid type for 'tool_outputs[0].output': expected a string, but got an object instead.",
        "tool_outputs[0].output",
        "invalid_type",
    ),
]


@pytest.mark.parametrize(("wanted", "body", "message", "param", "code"), CASES, ids=[case[2][:60] for case in CASES])
def test_refusal(wanted: type, body: Any, message: str, param: str | None, code: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_body(msgspec.json.Decoder(wanted), json.dumps(body).encode())
    assert (caught.value.message, caught.value.param, caught.value.code) == (message, param, code)


@pytest.mark.parametrize("body", [b"{", b'{"model": "\xff"}', b"nonsense", b'{"model": NaN}', b'{"model":"\\ud800"}'])
def test_what_is_not_json(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_body(msgspec.json.Decoder(CreateAssistant), body)
    assert caught.value.message == NOT_JSON


def test_deep_nesting_is_refused() -> None:
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    body = b'{"model":"m","tools":[{"type":"function","function":{"name":"f","parameters":' + deep + b"}}]}"
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        decode_body(msgspec.json.Decoder(CreateAssistant), body)


def test_a_newline_at_the_end_of_a_name_is_refused() -> None:
    body = {**M, "tools": [{"type": "function", "function": {"name": "f\n"}}]}
    with pytest.raises(InvalidRequest, match="does not match pattern"):
        decode_body(msgspec.json.Decoder(CreateAssistant), json.dumps(body).encode())


def test_no_body_counts_as_an_empty_object() -> None:
    assert decode_body(msgspec.json.Decoder(CreateThread), b"") == CreateThread()


def test_nulls_are_taken_everywhere() -> None:
    body = {name: None for name in CreateRun.__struct_fields__ if name != "assistant_id"}
    given = decode_body(msgspec.json.Decoder(CreateRun), json.dumps({**body, "assistant_id": "asst_1"}).encode())
    assert given == CreateRun(assistant_id="asst_1")
