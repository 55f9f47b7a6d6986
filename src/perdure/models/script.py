"""The scripted model's script: its shape in JSON, and what it answers.

Rule: the same script and the same messages give the same pieces. Only the ids of tool calls differ, and a failure with
`times` is used up. A script looks like this:

    {"rules": [{"when": "weather", "call": [{"name": "get_weather", "arguments": {"city": "Seoul"}}]},
               {"when": ".", "role": "tool", "say": "It is {output}."}],
     "otherwise": {"say": "You said: {question}"}}
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from perdure.errors import OperatorError
from perdure.ids import Clock, Ids
from perdure.models.base import (
    ChatMessage,
    Finished,
    FinishReason,
    ModelPiece,
    ModelUsage,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
)

_WORD = re.compile(r"\s*\S{1,16}|\s+")
_JSON_PIECE = re.compile(r"\w{1,16}|\W+")

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class ScriptedCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool call. Arguments that are a string go out unchanged, so that they can be broken JSON too."""

    name: str
    arguments: dict[str, Any] | str = msgspec.field(default_factory=dict)

    @property
    def text(self) -> str:
        """The arguments as the model writes them."""
        return self.arguments if isinstance(self.arguments, str) else msgspec.json.encode(self.arguments).decode()


class ScriptedFailure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An HTTP-like failure before the first piece; with `times`, only the first n times."""

    status: Annotated[int, msgspec.Meta(ge=400, le=599)]
    message: str = "The script says so."
    code: str | None = None
    retry_after: Seconds | None = None
    times: Annotated[int, msgspec.Meta(ge=1)] | None = None


class Action(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is answered. In `say`, `{question}` is the last user message and `{output}` the last tool output.

    A piece is a word with the whitespace before it (at most 16 characters of it), or a bit of a call's arguments.
    `usage` null gives none.
    """

    say: str | None = None
    pieces: list[str] | None = None
    refuse: str | None = None
    call: list[ScriptedCall] = []
    fail: ScriptedFailure | None = None
    first_delay_seconds: Seconds = 0.0
    delay_seconds: Seconds = 0.0
    break_after: Count | None = None
    hang_after: Count | None = None
    finish: FinishReason | Literal["function_call"] | None = None
    usage: ModelUsage | msgspec.UnsetType | None = msgspec.UNSET

    def __post_init__(self) -> None:
        """Refuse an action that says two things."""
        if sum(one is not None for one in (self.say, self.pieces, self.refuse)) > 1:
            raise ValueError("give only one of `say`, `pieces` and `refuse`")


class Rule(Action, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An action for when the last message of a user or tool has that role and `when` is found in it."""

    when: str
    role: Literal["user", "tool"] = "user"

    def __post_init__(self) -> None:
        """Refuse a pattern that does not compile."""
        super().__post_init__()
        try:
            re.compile(self.when)
        except re.error as error:
            raise ValueError(f"`when` is not a regular expression: {error}") from None


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rules, tried in order, and what is done when none applies. `models` are the names it goes by."""

    rules: list[Rule] = []
    otherwise: Action = Action(say="You said: {question}")
    models: list[str] = msgspec.field(default_factory=lambda: ["scripted"])


def load_script(path: Path) -> Script:
    """Read a script from a JSON file. Raises OperatorError with one line."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Script)
    except OSError as error:
        raise OperatorError(f"script {path} can not be read: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # a wrong shape is a DecodeError too
        raise OperatorError(f"script {path} is wrong: {error}") from None


class BreakOffError(Exception):
    """The script breaks off the stream here."""


class Answer(msgspec.Struct, frozen=True):
    """One answer, worked out: a failure, or pieces with their end."""

    action: Action
    failure: ScriptedFailure | None
    pieces: list[ModelPiece]
    finish: str
    usage: ModelUsage | None


class Player:
    """Works out answers. Remembers how often each rule has failed."""

    def __init__(self, script: Script, ids: Ids) -> None:
        self.script = script
        self._ids = ids
        self._failures: Counter[int] = Counter()

    def answer(self, messages: list[ChatMessage], limit: int | None) -> Answer:
        """Answer the messages with at most `limit` pieces."""
        place, action = self._choose(messages)
        if self._fails(place, action):
            return Answer(action, action.fail, [], "stop", None)
        pieces = list(self._pieces(action, messages))
        finish = action.finish or ("tool_calls" if action.call else "stop")
        if limit is not None and limit < len(pieces):
            pieces, finish = pieces[:limit], "length"
        usage = action.usage
        if usage is msgspec.UNSET:
            usage = ModelUsage(sum(_count_words(one) for one in messages), len(pieces))
        return Answer(action, None, pieces, finish, usage)

    def _choose(self, messages: list[ChatMessage]) -> tuple[int, Action]:
        last = next((one for one in reversed(messages) if one.get("role") in {"user", "tool"}), None)
        if last is not None:
            text = text_of(last)
            for place, rule in enumerate(self.script.rules):
                if rule.role == last["role"] and re.search(rule.when, text):
                    return place, rule
        return -1, self.script.otherwise

    def _fails(self, place: int, action: Action) -> bool:
        if action.fail is None:
            return False
        self._failures[place] += 1
        return action.fail.times is None or self._failures[place] <= action.fail.times

    def _pieces(self, action: Action, messages: list[ChatMessage]) -> Iterator[ModelPiece]:
        if action.refuse is not None:
            yield from (RefusalDelta(one) for one in split_words(action.refuse))
        yield from (TextDelta(one) for one in _texts(action, messages))
        for index, call in enumerate(action.call):
            yield ToolCallDelta(index, self._ids.new("call"), call.name, "")
            yield from (ToolCallDelta(index, None, None, one) for one in _JSON_PIECE.findall(call.text))


def split_words(text: str) -> list[str]:
    """Cut a text into pieces that give it back exactly when joined."""
    return _WORD.findall(text)


def text_of(message: ChatMessage) -> str:
    """Return a message's text; of an array of parts, the text parts joined."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _texts(action: Action, messages: list[ChatMessage]) -> list[str]:
    if action.pieces is not None:
        return action.pieces
    if action.say is None:
        return []

    def last(role: str) -> str:
        return next((text_of(one) for one in reversed(messages) if one.get("role") == role), "")

    values = {"{question}": "user", "{output}": "tool"}
    return split_words(re.sub(r"\{(question|output)\}", lambda found: last(values[found[0]]), action.say))


def _count_words(message: ChatMessage) -> int:
    return len(split_words(text_of(message))) + 1  # one for the role


async def play(answer: Answer, clock: Clock) -> AsyncGenerator[ModelPiece, None]:
    """Give the pieces in their time, then `Finished` and the usage. Raises BreakOffError where the script says so."""
    action = answer.action
    for number, piece in enumerate(answer.pieces):
        await _reach(action, number)
        delay = action.delay_seconds if number else action.first_delay_seconds
        await (clock.sleep(delay) if delay else asyncio.sleep(0))
        yield piece
    await _reach(action, len(answer.pieces))
    yield Finished("tool_calls" if answer.finish == "function_call" else answer.finish)  # type: ignore[arg-type] # narrowed by Action
    if answer.usage is not None:
        yield answer.usage


async def _reach(action: Action, number: int) -> None:
    if action.break_after == number:
        raise BreakOffError
    if action.hang_after == number:
        await asyncio.Event().wait()
