"""What upstreams send is read in every dialect, and what can not be read is a failure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perdure.errors import RunFailure
from perdure.models import sse_lines
from perdure.models.base import Finished, ModelPiece, ModelRequest, ModelUsage, TextDelta, ToolCallDelta
from perdure.models.chat_pieces import AnswerReader
from perdure.models.upstream_failures import UpstreamAddress


class CountedIds:
    """Identifiers that can be foretold."""

    def __init__(self) -> None:
        self.count = 0

    def new(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}_made{self.count}"


def read(body: bytes, *before: dict[str, Any], at_once: int | None = None) -> list[ModelPiece]:
    """What comes out of an answer's body, given so many bytes at once."""
    request = ModelRequest(model="some-model", messages=list(before))
    answer = AnswerReader(UpstreamAddress("default", "http://here/v1"), request, CountedIds(), None)
    step = at_once or max(1, len(body))
    pieces = [piece for at in range(0, len(body), step) for piece in answer.feed(body[at : at + step])]
    return [*pieces, *answer.end()]


def events(*chunks: Any, end: str = "data: [DONE]\n\n") -> bytes:
    lines = "".join(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks)
    return (lines + end).encode()


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def call(*pieces: dict[str, Any]) -> dict[str, Any]:
    return delta(tool_calls=list(pieces))


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 10_000])
def test_every_spelling_of_an_event_stream_is_read(at_once: int) -> None:
    body = (
        "\ufeff: waiting\r\n\r\nevent: message\r\nid: 1\r\n"
        'data:{"choices":[{"delta":{"content":"a"}}]}\r\n\r\n'
        'data: {"choices":[{"index":0,\ndata: "delta":{"content":"b"}}]}\n\n'
        'data: {"choices":[],"usage":null}\n\n'
        'data: {"choices":[{"index":1,"delta":{"content":"another choice"}}]}\n\n'
        'data: {"choices":[{"delta":{"role":"assistant","content":null,"reasoning_content":"hm"}}]}\n\n'
        'data: {"choices":[{"delta":{"content":[{"type":"thinking"},{"type":"text","text":"c"}]}}]}\n\n'
        'data: {"choices":[{"delta":{},"finish_reason":"max_tokens"}],"usage":{"prompt_tokens":1}}\n\n'
        'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":null,"prompt_tokens_details":null}}\n'
    )
    expected = [TextDelta("a"), TextDelta("b"), TextDelta("c"), Finished("length"), ModelUsage(5, 0)]
    assert read(body.encode(), at_once=at_once) == expected


CALL_STREAMS: dict[str, tuple[list[dict[str, Any]], list[ToolCallDelta]]] = {
    "id repeated in every piece": (
        [
            call({"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x'}}),
            call({"index": 0, "id": "a", "function": {"name": "f", "arguments": '":1}'}}),
        ],
        [ToolCallDelta(0, "a", "f", '{"x'), ToolCallDelta(0, None, None, '":1}')],
    ),
    "a new id in every piece, the name once": (
        [
            call({"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}),
            call({"index": 0, "id": "b", "function": {"arguments": "{}"}}),
        ],
        [ToolCallDelta(0, "a", "f", ""), ToolCallDelta(0, None, None, "{}")],
    ),
    "no id, no index, whole calls": (
        [
            call({"function": {"name": "f", "arguments": "{}"}}),
            call({"function": {"name": "g", "arguments": {"x": 1}}}),
        ],
        [ToolCallDelta(0, "call_made1", "f", "{}"), ToolCallDelta(1, "call_made2", "g", '{"x":1}')],
    ),
    "index 0 for every call": (
        [
            call({"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}),
            call({"index": 0, "id": "b", "function": {"name": "f", "arguments": "{}"}}),
        ],
        [ToolCallDelta(0, "a", "f", "{}"), ToolCallDelta(1, "b", "f", "{}")],
    ),
    "no index, the id decides": (
        [
            call({"id": "a", "function": {"name": "f", "arguments": "{"}}),
            call({"id": "b", "function": {"name": "g", "arguments": "[]"}}),
            call({"id": "a", "function": {"arguments": "}"}}),
            call({"function": {"arguments": " "}}),
        ],
        [
            ToolCallDelta(0, "a", "f", "{"),
            ToolCallDelta(1, "b", "g", "[]"),
            ToolCallDelta(0, None, None, "}"),
            ToolCallDelta(1, None, None, " "),
        ],
    ),
    "indexes from 1, interleaved, the name late": (
        [
            call({"index": 1, "id": "a"}, {"index": 2, "id": "b", "function": {"name": "g"}}),
            call({"index": 1, "function": {"arguments": "{}"}}, {"index": 2, "function": {"arguments": "[]"}}),
            call({"index": 1, "function": {"name": "f"}}),
        ],
        [ToolCallDelta(1, "b", "g", ""), ToolCallDelta(1, None, None, "[]"), ToolCallDelta(0, "a", "f", "{}")],
    ),
    "one id for two calls": (
        [
            call({"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}),
            call({"index": 1, "id": "a", "function": {"name": "g", "arguments": "{}"}}),
        ],
        [ToolCallDelta(0, "a", "f", "{}"), ToolCallDelta(1, "call_made1", "g", "{}")],
    ),
    "an id of an earlier turn": (
        [call({"index": 0, "id": "used", "function": {"name": "f", "arguments": "{}"}})],
        [ToolCallDelta(0, "call_made1", "f", "{}")],
    ),
    "a call that never gets a name": (
        [call({"index": 0, "id": "a", "function": {"arguments": "{}"}})],
        [ToolCallDelta(0, "a", "", "{}")],
    ),
    "the legacy spelling": (
        [delta(function_call={"name": "f", "arguments": "{"}), delta(function_call={"arguments": "}"})],
        [ToolCallDelta(0, "call_made1", "f", "{"), ToolCallDelta(0, None, None, "}")],
    ),
}


@pytest.mark.parametrize("finish", ["tool_calls", "function_call", "stop"])
@pytest.mark.parametrize("spelling", CALL_STREAMS)
def test_tool_calls_are_read_in_every_spelling(spelling: str, finish: str) -> None:
    chunks, expected = CALL_STREAMS[spelling]
    before = {"role": "assistant", "content": None, "tool_calls": [{"id": "used", "type": "function"}]}
    pieces = read(events(*chunks, delta(finish)), before)
    assert pieces == [*expected, Finished("tool_calls")]


@pytest.mark.parametrize("end", ["data: [DONE]\n\n", "data: [DONE]"])
def test_done_ends_an_answer_without_a_finish_reason(end: str) -> None:
    assert read(events(delta(content="a"), end=end)) == [TextDelta("a"), Finished("stop")]


@pytest.mark.parametrize("end", ["", "data: {", 'data: {"choices":[{"delta":{"con'])
def test_a_stream_without_an_end_broke_off(end: str) -> None:
    with pytest.raises(RunFailure, match="broke off its answer"):
        read(events(delta(content="a"), end=end))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"error": {"message": "Oh.", "code": 500}}, "server_error"),
        ({"error": {"message": "Oh.", "code": 429}}, "rate_limit_exceeded"),
        ({"error": {"message": "Oh.", "code": "rate_limit_exceeded"}}, "rate_limit_exceeded"),
        ({"error": {"message": "Oh.", "code": "context_length_exceeded"}}, "invalid_prompt"),
        ({"error": "Oh."}, "server_error"),
        ({"object": "error", "message": "Oh.", "code": 500}, "server_error"),
    ],
)
def test_an_error_inside_the_stream_is_quoted(error: dict[str, Any], code: str) -> None:
    for body in (events(delta(content="a"), error), json.dumps(error).encode()):
        with pytest.raises(RunFailure, match=r"reported an error in its answer: Oh\.") as caught:
            read(body)
        assert caught.value.code == code


def test_an_event_without_an_end_does_not_fill_the_memory() -> None:
    for start in (b"data: ", b"{"):
        with pytest.raises(RunFailure, match="not a chat completion"):
            read(start + b"x" * sse_lines.EVENT_BYTES)


def test_what_is_sent_after_the_end_is_passed_over() -> None:
    after = 'data: [DONE]\n\ndata: {"choices":[{"delta":{"content":"late"}}]}\n\ndata: oops\n\n'
    assert read(events(delta("stop", content="a"), delta("length"), end=after)) == [TextDelta("a"), Finished("stop")]
