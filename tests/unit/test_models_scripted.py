"""The scripted model answers what its script says, and a script that is wrong is refused in one line."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.errors import OperatorError, RunFailure
from perdure.models.base import (
    Finished,
    ModelPiece,
    ModelRequest,
    ModelUsage,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
)
from perdure.models.script import split_words
from perdure.models.scripted import Script, ScriptedModel, load_script


class PlayedClock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> float:
        return 1000.0 + sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def script(*rules: dict[str, Any], otherwise: dict[str, Any] | None = None) -> Script:
    written: dict[str, Any] = {"rules": list(rules)}
    if otherwise is not None:
        written["otherwise"] = otherwise
    return msgspec.convert(written, Script)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def ask(model: ScriptedModel, *messages: dict[str, Any], limit: int | None = None) -> list[ModelPiece]:
    async def gather() -> list[ModelPiece]:
        request = ModelRequest(model="scripted", messages=list(messages), max_completion_tokens=limit)
        return [piece async for piece in model.stream(request)]

    return asyncio.run(gather())


def text_of(pieces: list[ModelPiece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, TextDelta))


def test_without_a_script_the_question_is_repeated() -> None:
    pieces = ask(ScriptedModel(), user("one"), {"role": "assistant", "content": "two"}, user("세 번째 question"))
    assert text_of(pieces) == "You said: 세 번째 question"
    assert pieces[-2] == Finished("stop")
    assert pieces[-1] == ModelUsage(prompt_tokens=8, completion_tokens=5)


def test_parts_of_a_message_are_read_together() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    content = [{"type": "text", "text": "look "}, image, {"type": "text", "text": "here"}]
    assert text_of(ask(ScriptedModel(), user(content))) == "You said: look here"


@pytest.mark.parametrize("text", ["", " ", "a  b\n\n c ", "안녕 하세요", "x" * 40, "\n끝\n"])
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(split_words(text)) == text


def test_the_first_rule_that_applies_wins_and_its_role_counts() -> None:
    model = ScriptedModel(
        script(
            {"when": "weather", "call": [{"name": "get_weather", "arguments": {"city": "서울"}}]},
            {"when": "weather", "say": "never"},
            {"when": ".", "role": "tool", "say": "It is {output}."},
        )
    )
    pieces = ask(model, user("the weather?"))
    calls = [piece for piece in pieces if isinstance(piece, ToolCallDelta)]
    assert "".join(piece.arguments for piece in calls) == '{"city":"서울"}'
    assert calls[0].name == "get_weather"
    assert calls[0].id is not None
    assert len(calls[0].id.removeprefix("call_")) == 24
    assert {(piece.id, piece.name) for piece in calls[1:]} == {(None, None)}
    assert pieces[-2] == Finished("tool_calls")
    output = {"role": "tool", "tool_call_id": calls[0].id, "content": "sunny weather"}
    assert text_of(ask(model, user("the weather?"), output)) == "It is sunny weather."


def test_arguments_that_are_text_go_out_unchanged() -> None:
    pieces = ask(ScriptedModel(script(otherwise={"call": [{"name": "f", "arguments": '{"broken'}]})), user("x"))
    assert "".join(piece.arguments for piece in pieces if isinstance(piece, ToolCallDelta)) == '{"broken'


def test_refusal_pieces_and_overrides() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": 3, "reasoning_tokens": 4}
    model = ScriptedModel(
        script(
            {"when": "refuse", "refuse": "I can not."},
            {"when": "pieces", "pieces": ["a", "", "b"], "finish": "content_filter", "usage": usage},
            {"when": "legacy", "call": [{"name": "f"}], "finish": "function_call", "usage": None},
        )
    )
    assert ask(model, user("refuse"))[:3] == [RefusalDelta("I"), RefusalDelta(" can"), RefusalDelta(" not.")]
    expected = [TextDelta("a"), TextDelta(""), TextDelta("b"), Finished("content_filter"), ModelUsage(1, 2, 3, 4)]
    assert ask(model, user("pieces")) == expected
    assert ask(model, user("legacy"))[-1] == Finished("tool_calls")


def test_a_limit_cuts_the_answer() -> None:
    pieces = ask(ScriptedModel(), user("a b c d"), limit=3)
    assert text_of(pieces) == "You said: a"
    assert pieces[-2:] == [Finished("length"), ModelUsage(5, 3)]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        ({"status": 429}, "rate_limit_exceeded"),
        ({"status": 500}, "server_error"),
        ({"status": 400, "code": "context_length_exceeded"}, "invalid_prompt"),
    ],
)
def test_a_failure_is_a_run_failure(failure: dict[str, Any], code: str) -> None:
    with pytest.raises(RunFailure) as caught:
        ask(ScriptedModel(script(otherwise={"fail": {**failure, "message": "Too much."}})), user("x"))
    assert caught.value.code == code
    assert "Too much." in caught.value.message


def test_a_failure_with_times_is_used_up() -> None:
    model = ScriptedModel(script(otherwise={"fail": {"status": 503, "times": 2}, "say": "there"}))
    for _ in range(2):
        with pytest.raises(RunFailure):
            ask(model, user("x"))
    assert text_of(ask(model, user("x"))) == "there"
    assert len(model.requests) == 3


def test_a_break_is_a_run_failure_after_its_pieces() -> None:
    async def gather() -> None:
        model = ScriptedModel(script(otherwise={"say": "a b c", "break_after": 2}))
        stream = model.stream(ModelRequest(model="scripted", messages=[user("x")]))
        assert [await anext(stream), await anext(stream)] == [TextDelta("a"), TextDelta(" b")]
        with pytest.raises(RunFailure, match="broke off"):
            await anext(stream)

    asyncio.run(gather())


def test_silence_lasts_until_somebody_stops_waiting() -> None:
    async def gather() -> None:
        model = ScriptedModel(script(otherwise={"say": "a b", "hang_after": 1}))
        stream = model.stream(ModelRequest(model="scripted", messages=[user("x")]))
        assert await anext(stream) == TextDelta("a")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.02)

    asyncio.run(gather())


def test_delays_are_slept_on_the_clock() -> None:
    clock = PlayedClock()
    ask(
        ScriptedModel(script(otherwise={"say": "a b c", "first_delay_seconds": 9, "delay_seconds": 2}), clock),
        user("x"),
    )
    assert clock.slept == [9, 2, 2]


def test_a_script_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    path.write_text('{"rules": [{"when": "^hi", "say": "hello"}], "models": ["small"]}', encoding="utf-8")
    model = ScriptedModel(load_script(path))
    assert text_of(ask(model, user("hi there"))) == "hello"
    assert asyncio.run(model.list_models()) == ["small"]
    asyncio.run(model.close())


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{", "truncated"),
        ('{"rule": []}', "rule"),
        ('{"rules": [{"when": "(", "say": "x"}]}', "regular expression"),
        ('{"rules": [{"say": "x"}]}', "when"),
        ('{"otherwise": {"say": "x", "refuse": "y"}}', "only one"),
        ('{"otherwise": {"fail": {"status": 200}}}', "status"),
        ('"\xff"', "script"),
    ],
)
def test_a_wrong_script_is_refused_in_one_line(tmp_path: Path, written: str, said: str) -> None:
    path = tmp_path / "script.json"
    path.write_bytes(written.encode("latin-1"))
    with pytest.raises(OperatorError) as caught:
        load_script(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_script_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="can not be read"):
        load_script(tmp_path / "none.json")
