from __future__ import annotations

import json
from typing import Any

import pytest

from perdure.models.base import ModelRequest
from perdure.models.envelope import (
    CALLS_AT_ONCE,
    ROUNDS_IN_A_ROW,
    TEXT_CHARACTERS,
    Call,
    Envelope,
    EnvelopeReader,
    envelope_of,
    plain_messages,
)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Look at the sky",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "City"},
                "unit": {"type": "string", "enum": ["c", "f"]},
                "days": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["place"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def _request(**fields: Any) -> ModelRequest:
    return ModelRequest(**{"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields})


def _envelope(**fields: Any) -> Envelope:
    envelope = envelope_of(_request(**fields))
    assert envelope is not None
    return envelope


def _call(number: str, name: str = "clock", arguments: str = "{}") -> dict[str, Any]:
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": [CLOCK], "tool_choice": "none"}])
def test_without_a_call_to_make_there_is_no_envelope(fields: dict[str, Any]) -> None:
    assert envelope_of(_request(**fields)) is None


def test_auto_offers_calls_and_a_reply() -> None:
    calls, reply = _envelope(tools=[WEATHER, CLOCK]).schema["oneOf"]
    names = [one["properties"]["name"] for one in calls["properties"]["tool_calls"]["items"]["anyOf"]]
    assert names == [{"const": "get_weather"}, {"const": "clock"}]
    assert calls["properties"]["tool_calls"]["maxItems"] == CALLS_AT_ONCE
    assert reply["properties"]["reply"]["maxLength"] == TEXT_CHARACTERS


def test_required_leaves_only_calls() -> None:
    schema = _envelope(tools=[CLOCK], tool_choice="required").schema
    assert list(schema["properties"]) == ["tool_calls"]


def test_a_named_function_is_the_only_one_and_called_once() -> None:
    choice = {"type": "function", "function": {"name": "clock"}}
    asked = _envelope(tools=[WEATHER, CLOCK], tool_choice=choice).schema["properties"]["tool_calls"]
    assert asked["items"]["properties"]["name"] == {"const": "clock"}
    assert asked["maxItems"] == 1


def test_without_parallel_calls_there_is_one() -> None:
    schema = _envelope(tools=[CLOCK], parallel_tool_calls=False).schema
    assert schema["oneOf"][0]["properties"]["tool_calls"]["maxItems"] == 1


def test_texts_and_lists_are_bounded_and_enums_left_alone() -> None:
    asked = _envelope(tools=[WEATHER], tool_choice="required").schema["properties"]["tool_calls"]
    arguments = asked["items"]["properties"]["arguments"]["properties"]
    assert arguments["place"]["maxLength"] == TEXT_CHARACTERS
    assert arguments["unit"] == {"type": "string", "enum": ["c", "f"]}
    assert arguments["days"]["maxItems"] > 0


def test_a_property_named_like_a_keyword_is_still_a_property() -> None:
    parameters = {"type": "object", "properties": {"type": {"type": "string"}, "enum": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    asked = _envelope(tools=[tool], tool_choice="required").schema["properties"]["tool_calls"]
    arguments = asked["items"]["properties"]["arguments"]["properties"]
    assert arguments["type"] == arguments["enum"] == {"type": "string", "maxLength": TEXT_CHARACTERS}


def test_definitions_move_to_the_root_and_do_not_collide() -> None:
    tools = [
        {
            "type": "function",
            "function": {
                "name": name,
                "parameters": {
                    "type": "object",
                    "properties": {"at": {"$ref": "#/$defs/Point"}},
                    "$defs": {"Point": {"type": kind}},
                },
            },
        }
        for name, kind in (("a", "string"), ("b", "integer"))
    ]
    schema = _envelope(tools=tools).schema
    assert schema["$defs"]["0.Point"] == {"type": "string", "maxLength": TEXT_CHARACTERS}
    assert schema["$defs"]["1.Point"] == {"type": "integer"}
    calls = schema["oneOf"][0]["properties"]["tool_calls"]["items"]["anyOf"]
    references = [one["properties"]["arguments"]["properties"]["at"]["$ref"] for one in calls]
    assert references == ["#/$defs/0.Point", "#/$defs/1.Point"]
    assert "$defs" not in calls[0]["properties"]["arguments"]


def test_signatures_stand_in_the_system_message() -> None:
    envelope = _envelope(tools=[WEATHER, CLOCK])
    messages = plain_messages([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}], envelope)
    assert [message["role"] for message in messages] == ["system", "user"]
    system = messages[0]["content"]
    assert system.startswith("Be kind.\n\n")
    assert '- get_weather(place: string, unit?: "c" | "f", days?: list of integer): Look at the sky' in system
    assert "  place: City" in system
    assert "- clock()" in system


def test_many_rounds_of_calls_leave_only_the_reply() -> None:
    round_ = [
        {"role": "assistant", "tool_calls": [_call("1")]},
        {"role": "tool", "tool_call_id": "1", "content": "now"},
    ]
    messages = [{"role": "user", "content": "Hi"}, *round_ * ROUNDS_IN_A_ROW]
    assert list(_envelope(tools=[CLOCK], messages=messages).schema["properties"]) == ["reply"]
    messages.append({"role": "user", "content": "Again"})
    assert "oneOf" in _envelope(tools=[CLOCK], messages=messages).schema


def test_calls_and_results_become_plain_turns() -> None:
    messages = plain_messages(
        [
            {"role": "user", "content": [{"type": "text", "text": "What time?"}, {"type": "image_url"}]},
            {"role": "assistant", "content": None, "tool_calls": [_call("1", arguments='{"zone": "UTC"}')]},
            {"role": "tool", "tool_call_id": "1", "content": "noon"},
            {"role": "user", "content": "Well?"},
        ],
        None,
    )
    assert messages == [
        {"role": "user", "content": "What time?\n(image_url: can not be shown)"},
        {"role": "assistant", "content": '{"tool_calls": [{"name": "clock", "arguments": {"zone": "UTC"}}]}'},
        {"role": "user", "content": "Result of clock: noon\n\nWell?"},
    ]


def test_the_callers_messages_are_left_alone() -> None:
    mine = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert plain_messages(mine, None) == [{"role": "user", "content": "a\n\nb"}]
    assert mine == [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize(
    "reply", ["Hello", 'quo"te \\ back', "line\nline\t", "\u00e9\ud55c\U0001f600!", "", "\\u0041", "}{"]
)
def test_a_reply_comes_out_whole_however_it_is_cut(reply: str, step: int) -> None:
    for written in (json.dumps({"reply": reply}), ' {\n "reply" : ' + json.dumps(reply, ensure_ascii=False) + "}"):
        reader = EnvelopeReader()
        pieces = [reader.feed(written[start : start + step]) for start in range(0, len(written), step)]
        assert "".join(pieces) == reply
        assert reader.calls() == []


def test_a_reply_comes_as_it_is_written() -> None:
    reader = EnvelopeReader()
    assert [reader.feed(text) for text in ('{"reply": "He', "llo", " you", '"}')] == ["He", "llo", " you", ""]


@pytest.mark.parametrize("half", ["\\ud83d", "\\ude00", "\\ud83d\\u0041", "\\ud83d\\n"])
def test_half_a_surrogate_pair_is_replaced(half: str) -> None:
    reader = EnvelopeReader()
    reply = "".join(reader.feed(character) for character in '{"reply": "a' + half + 'z"}')
    assert reply.startswith("a\ufffd")
    assert reply.endswith("z")
    reply.encode()


def test_calls_come_at_the_end_each_once() -> None:
    asked = {"name": "clock", "arguments": {"zone": "caf\u00e9"}}
    reader = EnvelopeReader()
    assert reader.feed(json.dumps({"tool_calls": [asked, asked]})) == ""
    assert reader.calls() == [Call("clock", '{"zone": "caf\u00e9"}')]


def test_of_calls_that_were_cut_off_the_whole_ones_count() -> None:
    reader = EnvelopeReader()
    reader.feed('{"tool_calls" : [ {"name": "clock", "arguments": {"a": [{}]}}, {"name": "clo')
    assert reader.calls() == [Call("clock", '{"a": [{}]}')]


@pytest.mark.parametrize("written", ["", '{"tool_calls": [', '{"tool_calls": [{"name": "clo'])
def test_without_a_whole_call_there_is_none(written: str) -> None:
    reader = EnvelopeReader()
    reader.feed(written)
    with pytest.raises(ValueError, match=r"call|Unterminated"):
        reader.calls()
