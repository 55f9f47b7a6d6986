"""What an upstream's `/chat/completions` sends, turned into model pieces.

Rules. Every dialect known to us is read: a whole answer in place of a stream, call ids that are missing or used
twice, indexes that are missing or all 0. What can not be read is a `RunFailure`, never a guess.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.ids import Ids
from perdure.models.base import (
    Finished,
    FinishReason,
    ModelPiece,
    ModelRequest,
    ModelUsage,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
)
from perdure.models.sse_lines import EVENT_BYTES, EventLines, EventTooLongError
from perdure.models.upstream_failures import UpstreamAddress, broke_off, error_of, reported, unreadable

_BLANK = b" \t\r\n\xef\xbb\xbf"
_FINISHES: dict[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: Any = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct):
    index: int | None = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    object: Any = None
    message: Any = None
    code: Any = None


_DECODER = msgspec.json.Decoder(_Chunk)


class _OpenCall(msgspec.Struct):
    """A tool call that is being received. Its first piece waits for the name."""

    index: int
    upstream_id: str | None
    id: str
    name: str | None = None
    waiting: str = ""
    begun: bool = False


class CallReader:
    """Puts the pieces of tool calls in order: one index per call, from 0, and one id of its own."""

    def __init__(self, taken: set[str], ids: Ids) -> None:
        self._taken = taken
        self._ids = ids
        self._calls: list[_OpenCall] = []
        self._by_index: dict[int, _OpenCall] = {}

    @property
    def any(self) -> bool:
        """Whether there was a call."""
        return bool(self._calls)

    def read(self, piece: _Call) -> ToolCallDelta | None:
        """Take one piece of a call; None while its name is missing."""
        function = piece.function or _Function()
        call = self._find(piece, function.name)
        call.name = call.name or function.name or None
        call.waiting += _text_of_arguments(function.arguments)
        if call.name is None or (call.begun and not call.waiting):
            return None
        return self._flush(call)

    def end(self) -> list[ToolCallDelta]:
        """Return the calls that never got a name."""
        return [self._flush(call) for call in self._calls if not call.begun]

    def _flush(self, call: _OpenCall) -> ToolCallDelta:
        arguments, call.waiting = call.waiting, ""
        if call.begun:
            return ToolCallDelta(call.index, None, None, arguments)
        call.begun = True
        return ToolCallDelta(call.index, call.id, call.name or "", arguments)

    def _find(self, piece: _Call, name: str | None) -> _OpenCall:
        """Which call a piece belongs to.

        Without an index the id decides, then the name: a name begins a call. Some servers send index 0 for every call,
        each with its id and name; others make up a new id for every piece of one call, but give the name once.
        """
        if piece.index is not None:
            found = self._by_index.get(piece.index)
            another = bool(found and name and piece.id and piece.id != found.upstream_id)
        elif piece.id:
            found = next((one for one in self._calls if one.upstream_id == piece.id), None)
            another = False
        else:
            found = self._calls[-1] if self._calls else None
            another = bool(name)
        return self._begin(piece) if found is None or another else found

    def _begin(self, piece: _Call) -> _OpenCall:
        fresh = piece.id if piece.id and piece.id not in self._taken else self._ids.new("call")
        self._taken.add(fresh)
        call = _OpenCall(len(self._calls), piece.id, fresh)
        self._calls.append(call)
        self._by_index[call.index if piece.index is None else piece.index] = call
        return call


class AnswerReader:
    """Bytes of one answer in, pieces out. `complete` is True once nothing more is to come."""

    def __init__(self, address: UpstreamAddress, request: ModelRequest, ids: Ids, key: str | None) -> None:
        self.complete = False
        self.finished = False
        self._address = address
        self._key = key
        self._calls = CallReader(_call_ids(request), ids)
        self._usage: ModelUsage | None = None
        self._events = EventLines()
        self._whole: bytearray | None = None
        self._begun = False

    def feed(self, data: bytes) -> list[ModelPiece]:
        """Take bytes as they come. Raises RunFailure for what can not be read, and for errors in the stream."""
        if not self._begun:
            data = data.lstrip(_BLANK)
            if not data:
                return []
            self._begun = True
            if data.startswith((b"{", b"[", b"<")):  # never the beginning of an event stream
                self._whole = bytearray()
        try:
            if self._whole is not None:
                self._add_to_whole(data)
                return []
            events = self._events.feed(data)
        except EventTooLongError:
            raise unreadable(self._address, data, self._key) from None
        return [piece for event in events for piece in self._read_event(event)]

    def end(self) -> list[ModelPiece]:
        """Return what is left, the usage last. Raises RunFailure when the answer has no end."""
        pieces: list[ModelPiece] = []
        if self._whole is not None:
            pieces += self._read_chunk(bytes(self._whole))
            pieces += self._finish("stop")
        elif not self.complete and (event := self._events.end()) is not None:
            try:
                msgspec.json.decode(event)
            except msgspec.DecodeError:
                event = event if event.strip() == b"[DONE]" else b""
            pieces += self._read_event(event)
        if not self.finished:
            raise broke_off(self._address)
        return [*pieces, self._usage] if self._usage is not None else pieces

    def _add_to_whole(self, data: bytes) -> None:
        if self._whole is None or len(self._whole) + len(data) > EVENT_BYTES:
            raise EventTooLongError
        self._whole += data

    def _read_event(self, event: bytes) -> list[ModelPiece]:
        event = event.strip()
        if self.complete or not event:
            return []
        if event == b"[DONE]":
            self.complete = True
            return self._finish("stop")
        return self._read_chunk(event)

    def _read_chunk(self, body: bytes) -> list[ModelPiece]:
        try:
            chunk = _DECODER.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise unreadable(self._address, body, self._key) from None
        said = chunk.error or ({"message": chunk.message, "code": chunk.code} if chunk.object == "error" else None)
        if said:
            raise reported(self._address, error_of({"error": said}), self._key)
        if chunk.usage is not None:
            self._usage = _usage(chunk.usage) or self._usage
        pieces: list[ModelPiece] = []
        for choice in chunk.choices or ():
            if not choice.index:
                pieces += self._read_choice(choice)
        if self._whole is not None and chunk.choices is None:
            raise unreadable(self._address, body, self._key)
        return pieces

    def _read_choice(self, choice: _Choice) -> list[ModelPiece]:
        delta = choice.delta or _whole_delta(choice.message)
        pieces: list[ModelPiece] = []
        if text := _text_of_content(delta.content):
            pieces.append(TextDelta(text))
        if delta.refusal:
            pieces.append(RefusalDelta(delta.refusal))
        calls = delta.tool_calls or ([_Call(index=0, function=delta.function_call)] if delta.function_call else [])
        pieces += [piece for call in calls if (piece := self._calls.read(call)) is not None]
        if choice.finish_reason:
            pieces += self._finish(choice.finish_reason)
        return pieces

    def _finish(self, reason: str) -> list[ModelPiece]:
        """End the answer once. Some servers say `stop` after tool calls; the calls count."""
        if self.finished:
            return []
        self.finished = True
        kind = _FINISHES.get(reason, "stop")
        return [*self._calls.end(), Finished("tool_calls" if kind == "stop" and self._calls.any else kind)]


def _call_ids(request: ModelRequest) -> set[str]:
    """Return the ids already used: a server that counts from `call_0` in every turn must not give one twice."""
    return {call["id"] for message in request.messages for call in message.get("tool_calls") or () if "id" in call}


def _whole_delta(message: _Delta | None) -> _Delta:
    """Return a whole message as one delta: its calls have no index, their place gives it."""
    whole = message or _Delta()
    for place, call in enumerate(whole.tool_calls or ()):
        call.index = place
    return whole


def _text_of_content(content: Any) -> str:
    if isinstance(content, list):  # parts, as Mistral sends them; thinking is left out
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _text_of_arguments(arguments: Any) -> str:
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()


def _usage(usage: _Usage) -> ModelUsage | None:
    if usage.prompt_tokens is None and usage.completion_tokens is None:
        return None
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return ModelUsage(
        usage.prompt_tokens or 0,
        usage.completion_tokens or 0,
        (prompt and prompt.cached_tokens) or 0,
        (completion and completion.reasoning_tokens) or 0,
    )
