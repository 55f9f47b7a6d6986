"""Upstreams over real HTTP: what is sent, what is read, and that closing closes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from perdure.errors import RunFailure
from perdure.models.base import (
    Finished,
    ModelPiece,
    ModelUsage,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
)
from perdure.models.chat_completions import ChatCompletionsModel
from perdure.models.scripted import ScriptedServer, serving
from tests.raw_upstream import (
    KEY,
    PlayedClock,
    RawUpstream,
    asking,
    client,
    delta,
    events,
    gathered,
    listening,
    read,
    refusal,
    response,
    scripted,
    until,
)

TOOLS = [{"type": "function", "function": {"name": "get_weather"}}]


# What is sent


def test_only_what_is_set_is_sent() -> None:
    async def use(app: ScriptedServer, model: ChatCompletionsModel) -> None:
        pieces = await gathered(model, asking("안녕"))
        assert "".join(piece.text for piece in pieces if isinstance(piece, TextDelta)) == "You said: 안녕"
        await gathered(model, asking(parallel_tool_calls=True, tool_choice="auto"))
        full = asking(tools=TOOLS, parallel_tool_calls=False, temperature=0.0, top_p=0.5, max_completion_tokens=9)
        await gathered(model, full)
        bare = {"model": "some-model", "stream": True, "stream_options": {"include_usage": True}}
        first, second, third = (received.body for received in app.requests)
        assert first == {**bare, "messages": [{"role": "user", "content": "안녕"}]}
        assert second == {**bare, "messages": [{"role": "user", "content": "hi"}]}
        settings = {"parallel_tool_calls": False, "temperature": 0.0, "top_p": 0.5, "max_completion_tokens": 9}
        assert third == {**second, **settings, "tools": TOOLS}
        assert app.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert app.requests[0].path == "/v1/chat/completions"

    scripted({}, use)


def test_a_query_in_the_url_stays_behind_the_path() -> None:
    async def run() -> None:
        upstream = RawUpstream(events(delta("stop", content="x")))
        async with listening(upstream) as url, client(f"{url}?api-version=7") as model:
            await gathered(model, asking())
        assert upstream.heads[0].startswith("post /v1/chat/completions?api-version=7 ")

    asyncio.run(run())


@pytest.mark.parametrize("status", [400, 422])
def test_stream_options_are_left_out_once_they_are_refused(status: int) -> None:
    async def run() -> None:
        upstream = RawUpstream(refusal(status, "Unknown field: stream_options"), events(delta("stop", content="x")))
        clock = PlayedClock()
        async with listening(upstream) as url, client(url, clock) as model:
            for _ in range(2):
                assert await gathered(model, asking()) == [TextDelta("x"), Finished("stop")]
        assert ["stream_options" in body for body in upstream.bodies] == [True, False, False]
        assert clock.slept == []

    asyncio.run(run())


def test_the_old_name_of_the_limit_is_used_once_the_new_one_is_refused() -> None:
    async def run() -> None:
        detail = [{"loc": ["body", "max_completion_tokens"], "msg": "Extra inputs are not permitted"}]
        refused = response(json.dumps({"detail": detail}).encode(), status=400)
        upstream = RawUpstream(refused, events(delta("stop", content="x")))
        async with listening(upstream) as url, client(url) as model:
            for _ in range(2):
                await gathered(model, asking(max_completion_tokens=7))
        sent = [(body.get("max_completion_tokens"), body.get("max_tokens")) for body in upstream.bodies]
        assert sent == [(7, None), (None, 7), (None, 7)]

    asyncio.run(run())


def test_a_limit_that_is_too_large_is_a_failure_and_nothing_is_learnt() -> None:
    answer = refusal(400, "max_completion_tokens is too large: 900000", param="max_completion_tokens")
    with pytest.raises(RunFailure, match="too large"):
        read(answer, request=asking(max_completion_tokens=900_000))


# What is read


def test_the_scripted_model_over_http_gives_what_it_gives_in_the_process() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 4, "cached_tokens": 3, "reasoning_tokens": 2}
    calls = [{"name": "get_weather", "arguments": {"city": "서울"}}, {"name": "f", "arguments": "{}"}]
    script = {
        "rules": [
            {"when": "call", "say": "wait ", "call": calls, "usage": usage},
            {"when": "refuse", "refuse": "I can not.", "usage": None},
        ]
    }

    async def use(_: ScriptedServer, model: ChatCompletionsModel) -> None:
        pieces = await gathered(model, asking("call", tools=TOOLS))
        assert pieces[-2:] == [Finished("tool_calls"), ModelUsage(10, 4, 3, 2)]
        got = [piece for piece in pieces if isinstance(piece, ToolCallDelta)]
        texts = ["".join(piece.arguments for piece in got if piece.index == index) for index in (0, 1)]
        assert texts == ['{"city":"서울"}', "{}"]
        assert [piece.name for piece in got if piece.name] == ["get_weather", "f"]
        refused = await gathered(model, asking("refuse"))
        assert "".join(piece.text for piece in refused if isinstance(piece, RefusalDelta)) == "I can not."
        assert refused[-1] == Finished("stop")
        assert await model.list_models() == ["scripted"]

    scripted(script, use)


def test_a_stream_may_be_cut_anywhere() -> None:
    whole = events(delta(content="안녕"), delta(content=" 하세요 🙂"), delta("stop"))
    head, _, body = whole.partition(b"\r\n\r\n")
    parts = [head + b"\r\n\r\n", *(body[at : at + 1] for at in range(len(body)))]
    assert read(parts) == [TextDelta("안녕"), TextDelta(" 하세요 🙂"), Finished("stop")]


def test_a_whole_answer_in_place_of_a_stream_is_read() -> None:
    calls = [{"id": "call_a", "type": "function", "function": {"name": name, "arguments": "{}"}} for name in "fg"]
    message = {"role": "assistant", "content": "hello", "tool_calls": calls}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 1}}
    whole = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": usage}
    assert read(response(json.dumps(whole).encode())) == [
        TextDelta("hello"),
        ToolCallDelta(0, "call_a", "f", "{}"),
        ToolCallDelta(1, "call_made1", "g", "{}"),
        Finished("tool_calls"),
        ModelUsage(3, 2, 0, 1),
    ]


def test_what_comes_after_done_is_not_waited_for() -> None:
    async def run() -> None:
        upstream = RawUpstream([events(delta("stop", content="a"))], slow=True)
        async with listening(upstream) as url, client(url, silence=60) as model:
            assert await gathered(model, asking()) == [TextDelta("a"), Finished("stop")]
            await asyncio.wait_for(upstream.hung_up.wait(), 5)

    asyncio.run(run())


def test_a_connection_is_used_again() -> None:
    async def run() -> None:
        ports = set()
        app = ScriptedServer(key=KEY)

        async def noted(scope: dict[str, Any], receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                ports.add(scope["client"][1])
            await app(scope, receive, send)

        async with serving(noted) as url, client(url) as model:  # type: ignore[arg-type] # any ASGI callable does
            for _ in range(3):
                await gathered(model, asking())
        assert len(app.requests) == 3
        assert len(ports) == 1

    asyncio.run(run())


# Closing


@pytest.mark.parametrize("after", [1, 2])
def test_closing_the_stream_closes_the_connection(after: int) -> None:
    async def use(app: ScriptedServer, model: ChatCompletionsModel) -> None:
        stream: AsyncGenerator[ModelPiece, None] = model.stream(asking())
        async with aclosing(stream):
            for _ in range(after):
                await anext(stream)
        async with asyncio.timeout(5):
            await until(lambda: app.requests[0].closed_early)

    scripted({"otherwise": {"say": "a b c", "hang_after": 2}}, use)


def test_a_cancelled_reader_closes_the_connection_too() -> None:
    async def use(app: ScriptedServer, model: ChatCompletionsModel) -> None:
        reading = asyncio.ensure_future(gathered(model, asking()))
        async with asyncio.timeout(5):
            await until(lambda: bool(app.requests))
            await asyncio.sleep(0.02)
            reading.cancel()
            await asyncio.wait({reading})
            await until(lambda: app.requests[0].closed_early)

    scripted({"otherwise": {"say": "a b c", "hang_after": 2}}, use)


# The list of models


def listed(answer: bytes) -> list[str]:
    async def run() -> list[str]:
        async with listening(RawUpstream(answer)) as url, client(url) as model:
            names: list[str] = await model.list_models()
            return names

    return asyncio.run(run())


def test_the_list_is_read_in_two_shapes() -> None:
    assert listed(response(b'{"object":"list","data":[{"id":"a"},{"id":"b"},{}]}')) == ["a", "b"]
    assert listed(response(b'[{"id":"a"}]')) == ["a"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refusal(401, "Who?"), "Check PERDURE_UPSTREAM_KEY"),
        (refusal(404, "Where?"), "does not list its models (status 404): Where? Check PERDURE_UPSTREAM_URL"),
        (response(b"<html>"), "not a list of models"),
        (response(b'{"data": 1}'), "not a list of models"),
        (b"", "broke off"),
    ],
)
def test_a_list_that_fails_says_why(answer: bytes, said: str) -> None:
    with pytest.raises(RunFailure) as caught:
        listed(answer)
    assert said in caught.value.message
