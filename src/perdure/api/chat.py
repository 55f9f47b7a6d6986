"""Chat completions and completions, served by the built-in model.

Rules. Until the first piece a failure is an HTTP status; after it, an `error` in the stream. What can not be done is
refused, not passed over; only what merely tunes an answer (`seed`, penalties, `user`, `store`) is taken and left out.
A completion is the answer of a chat model to its prompt: there is no base model here that would go on writing it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, to_builtins
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from perdure.api.call import Context, answer
from perdure.api.failures import error_body
from perdure.errors import ApiError, InvalidRequest, RunFailure
from perdure.models.base import (
    Finished,
    Model,
    ModelPiece,
    ModelRequest,
    ModelUsage,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
)
from perdure.wire.kinds import Temperature, TokenCap, TopP
from perdure.wire.refusals import decode_body
from perdure.wire.tools import ChooseFunction, FormatText, FunctionTool, ResponseFormat

COMPLETION_TOKENS = 16
"""The hosted default of `max_tokens` in completions."""

_OVER_CONTEXT = re.compile(r"has (\d+) tokens and the built-in model '.*' takes (\d+)")


class ModelFailed(ApiError):
    """500: the model did not answer."""

    status = 500
    type = "server_error"


class TooManyRequests(ApiError):
    """429: the model limits its rate."""

    status = 429
    type = "requests"


class Text(msgspec.Struct, tag_field="type", tag="text"):
    """A part of a message."""

    text: str


class Refused(msgspec.Struct, tag_field="type", tag="refusal"):
    """A part of an assistant's message that was refused."""

    refusal: str


class CalledFunction(msgspec.Struct):
    """Name and arguments, as JSON text, of a call."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, tag_field="type", tag="function"):
    """A call in an assistant's message."""

    id: str
    function: CalledFunction


class ChatMessage(msgspec.Struct, kw_only=True):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Text | Refused] | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    def shown(self) -> dict[str, Any]:
        """Return the message as the model port takes it."""
        parts = self.content
        if isinstance(parts, list):
            parts = "\n".join(part.text if isinstance(part, Text) else part.refusal for part in parts)
        message: dict[str, Any] = {"role": self.role, "content": self.refusal if parts is None else parts}
        if self.tool_calls:
            message["tool_calls"] = to_builtins(self.tool_calls)
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class StreamOptions(msgspec.Struct):
    """What a stream tells beside its pieces."""

    include_usage: bool | None = None


class Options(msgspec.Struct, kw_only=True):
    """What chat completions and completions have in common. Fields of type Any are only looked at to be refused.

    `model` is not among them: it was read before, where the request was sent here.
    """

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_tokens: TokenCap | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    n: int | None = None
    logprobs: Any = None
    logit_bias: Any = None


class CreateChatCompletion(Options, kw_only=True):
    """The body of POST /chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: TokenCap | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChooseFunction | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    web_search_options: Any = None


class CreateCompletion(Options, kw_only=True):
    """The body of POST /completions."""

    prompt: str | Annotated[list[Any], Meta(max_length=128)]
    suffix: Any = None
    echo: Any = None
    best_of: int | None = None


_chat_decoder = msgspec.json.Decoder(CreateChatCompletion)
_completion_decoder = msgspec.json.Decoder(CreateCompletion)
_encode = msgspec.json.Encoder().encode


async def create_chat_completion(context: Context, model: Model, name: str, body: bytes) -> Response:
    """POST /chat/completions. `name` is what the model goes by. Raises ApiError."""
    asked = decode_body(_chat_decoder, body)
    _refuse_what_no_model_here_does(asked)
    if not asked.messages:
        raise empty_array("messages")
    request = ModelRequest(
        model=name,
        messages=[message.shown() for message in asked.messages],
        tools=[to_builtins(tool) for tool in asked.tools] if asked.tools else None,
        tool_choice=to_builtins(asked.tool_choice),
        parallel_tool_calls=asked.parallel_tool_calls,
        response_format=_format(asked.response_format),
        temperature=asked.temperature,
        top_p=asked.top_p,
        reasoning_effort=asked.reasoning_effort,
        max_completion_tokens=asked.max_completion_tokens or asked.max_tokens,
    )
    pieces = _begun(model, request, asked.stop)
    if not asked.stream:
        return answer(await _whole_chat(_head(context, "chatcmpl", "chat.completion", name), pieces))
    head = _head(context, "chatcmpl", "chat.completion.chunk", name)
    return await ChunkStream.begin(_chat_chunks(pieces), head, asked.stream_options)


async def create_completion(context: Context, model: Model, name: str, body: bytes) -> Response:
    """POST /completions. Raises ApiError."""
    asked = decode_body(_completion_decoder, body)
    _refuse_what_no_model_here_does(asked)
    head = _head(context, "cmpl", "text_completion", name)
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if not prompts:
        raise empty_array("prompt")
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidRequest("The built-in model takes no token arrays: send 'prompt' as text.", param="prompt")
    answers = [
        _begun(
            model,
            ModelRequest(
                model=name,
                messages=[{"role": "user", "content": prompt}],
                temperature=asked.temperature,
                top_p=asked.top_p,
                max_completion_tokens=asked.max_tokens or COMPLETION_TOKENS,
            ),
            asked.stop,
        )
        for prompt in prompts
    ]
    chunks = _text_chunks(answers)
    if asked.stream:
        return await ChunkStream.begin(chunks, head, asked.stream_options)
    return answer(await _whole_text(head, chunks, len(prompts)))


class ChunkStream(Response):
    """Chunks as server-sent events, ended by `[DONE]`."""

    media_type = "text/event-stream"

    def __init__(
        self, chunks: AsyncGenerator[dict[str, Any], None], first: dict[str, Any], head: dict[str, Any], *, usage: bool
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chunks, self._first, self._head, self._usage = chunks, first, head, usage

    @classmethod
    async def begin(
        cls, chunks: AsyncGenerator[dict[str, Any], None], head: dict[str, Any], options: StreamOptions | None
    ) -> ChunkStream:
        """Wait for the first chunk. Raises ApiError in its place."""
        first = await anext(chunks)
        return cls(chunks, first, head, usage=bool(options and options.include_usage))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send every chunk when it is there."""
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with aclosing(self._chunks) as chunks:
                await self._send(self._first, send)
                async for chunk in chunks:
                    await self._send(chunk, send)
        except ApiError as failure:
            await _send_data(send, {"error": error_body(failure)})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def _send(self, chunk: dict[str, Any], send: Send) -> None:
        """Send a chunk; with `include_usage` every chunk has a usage, null in all but the last."""
        if self._usage:
            await _send_data(send, {**self._head, "usage": None, **chunk})
        elif chunk["choices"]:
            await _send_data(send, {**self._head, **chunk})


async def _send_data(send: Send, value: dict[str, Any]) -> None:
    await send({"type": "http.response.body", "body": b"data: " + _encode(value) + b"\n\n", "more_body": True})


def _head(context: Context, prefix: str, kind: str, name: str) -> dict[str, Any]:
    number = context.ids.new(prefix).replace("_", "-")
    return {
        "id": number,
        "object": kind,
        "created": int(context.clock.now()),
        "model": name,
        "system_fingerprint": None,
    }


def _refuse_what_no_model_here_does(asked: CreateChatCompletion | CreateCompletion) -> None:
    if asked.n not in {None, 1}:
        raise InvalidRequest("The built-in model gives one choice: leave 'n' out and ask again.", param="n")
    if isinstance(asked, CreateCompletion) and asked.best_of not in {None, 1}:
        raise InvalidRequest("The built-in model gives one choice: leave 'best_of' out.", param="best_of")
    names = ("logprobs", "logit_bias", "suffix", "echo", "functions", "function_call", "audio", "web_search_options")
    for name in names:
        given = getattr(asked, name, None)
        if given or (given == 0 and given is not False):  # `logprobs: 0` of a completion asks for them
            instead = "use 'tools'" if name.startswith("function") else "leave it out, or set PERDURE_UPSTREAM_URL"
            raise InvalidRequest(
                f"The built-in model does not support '{name}': {instead}.", param=name, code="unsupported_parameter"
            )


def empty_array(name: str) -> InvalidRequest:
    """Return the refusal of a list in which there is nothing."""
    return InvalidRequest(
        f"Invalid '{name}': empty array. Expected an array with minimum length 1, but got an empty array instead.",
        param=name,
        code="empty_array",
    )


def _format(given: ResponseFormat | None) -> dict[str, Any] | None:
    if given is None or isinstance(given, str | FormatText):
        return None
    shape: dict[str, Any] = to_builtins(given)
    return shape


async def _begun(model: Model, request: ModelRequest, stop: str | list[str] | None) -> AsyncGenerator[ModelPiece, None]:
    """Ask the model; what it raises becomes an ApiError. A stop sequence ends the answer, uncounted."""
    until = _UntilStop([stop] if isinstance(stop, str) else [one for one in stop or [] if one])
    try:
        async with aclosing(model.stream(request)) as pieces:
            async for piece in pieces:
                if isinstance(piece, TextDelta) and until.stops:
                    if text := until.feed(piece.text):
                        yield TextDelta(text)
                    if until.hit:
                        yield Finished("stop")
                        return
                    continue
                if until.held:
                    yield TextDelta(until.let_go())
                yield piece
    except RunFailure as failure:
        raise _as_api_error(failure) from None


class _UntilStop:
    """Lets text through up to a stop sequence; what may be the beginning of one is held until the next piece."""

    def __init__(self, stops: list[str]) -> None:
        self.stops = stops
        self.held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """Return what can be shown by now."""
        text = self.held + text
        ends = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if ends:
            self.hit, self.held = True, ""
            return text[: min(ends)]
        longest = max((_overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - longest :]
        return text[: len(text) - longest]

    def let_go(self) -> str:
        """Return what was held: it was no stop sequence."""
        text, self.held = self.held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def _as_api_error(failure: RunFailure) -> ApiError:
    over = _OVER_CONTEXT.search(failure.message)
    if over:
        return InvalidRequest(
            f"This model's maximum context length is {over[2]} tokens. However, your messages resulted in {over[1]} "
            "tokens. Please reduce the length of the messages, or raise PERDURE_BUILTIN_CONTEXT_TOKENS.",
            param="messages",
            code="context_length_exceeded",
        )
    if failure.code == "invalid_prompt":
        about_length = "context" in failure.message.lower()
        return InvalidRequest(failure.message, code="context_length_exceeded" if about_length else None)
    if failure.code == "rate_limit_exceeded":
        return TooManyRequests(failure.message, code="rate_limit_exceeded")
    return ModelFailed(failure.message)


async def _whole_chat(head: dict[str, Any], pieces: AsyncGenerator[ModelPiece, None]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    finish, usage = "stop", None
    async with aclosing(pieces):
        async for piece in pieces:
            match piece:
                case TextDelta(text):
                    message["content"] = (message["content"] or "") + text
                case RefusalDelta(text):
                    message["refusal"] = (message["refusal"] or "") + text
                case ToolCallDelta():
                    _add_call(message.setdefault("tool_calls", []), piece)
                case Finished(reason):
                    finish = reason
                case ModelUsage():
                    usage = _usage(piece)
    if len(message) == len(("role", "content", "refusal")) and message["refusal"] is None:
        message["content"] = message["content"] or ""
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {**head, "choices": [choice], **({"usage": usage} if usage else {})}


def _add_call(calls: list[dict[str, Any]], piece: ToolCallDelta) -> None:
    if piece.id is not None:
        function = {"name": piece.name, "arguments": piece.arguments}
        calls.append({"id": piece.id, "type": "function", "function": function})
    else:
        calls[piece.index]["function"]["arguments"] += piece.arguments


async def _chat_chunks(pieces: AsyncGenerator[ModelPiece, None]) -> AsyncGenerator[dict[str, Any], None]:
    begun = False
    async with aclosing(pieces):
        async for piece in pieces:
            if not begun:
                begun = True
                content = None if isinstance(piece, ToolCallDelta | RefusalDelta) else ""
                yield _chunk({"role": "assistant", "content": content, "refusal": None})
            match piece:
                case TextDelta(text):
                    yield _chunk({"content": text})
                case RefusalDelta(text):
                    yield _chunk({"refusal": text})
                case ToolCallDelta():
                    yield _chunk({"tool_calls": [_call_delta(piece)]})
                case Finished(reason):
                    yield _chunk({}, reason)
                case ModelUsage():
                    yield {"choices": [], "usage": _usage(piece)}


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}


def _call_delta(piece: ToolCallDelta) -> dict[str, Any]:
    if piece.id is None:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}


async def _text_chunks(answers: list[AsyncGenerator[ModelPiece, None]]) -> AsyncGenerator[dict[str, Any], None]:
    """Give the answers one after the other, then the usage of all if each was counted."""
    counted: list[ModelUsage] = []
    for index, pieces in enumerate(answers):
        async with aclosing(pieces):
            async for piece in pieces:
                match piece:
                    case TextDelta(text) | RefusalDelta(text):
                        yield _text_chunk(index, text)
                    case Finished(reason):
                        yield _text_chunk(index, "", "length" if reason == "length" else "stop")
                    case ModelUsage():
                        counted.append(piece)
                    case ToolCallDelta():
                        pass  # no tools were given
    if len(counted) == len(answers):
        yield {"choices": [], "usage": _usage(*counted)}


def _text_chunk(index: int, text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"text": text, "index": index, "logprobs": None, "finish_reason": finish}]}


async def _whole_text(head: dict[str, Any], chunks: AsyncIterator[dict[str, Any]], count: int) -> dict[str, Any]:
    choices = [_text_chunk(index, "", "stop")["choices"][0] for index in range(count)]
    usage: dict[str, Any] = {}
    async for chunk in chunks:
        for piece in chunk["choices"]:
            choice = choices[piece["index"]]
            choice["text"] += piece["text"]
            choice["finish_reason"] = piece["finish_reason"] or choice["finish_reason"]
        usage = {"usage": chunk["usage"]} if "usage" in chunk else usage
    return {**head, "choices": choices, **usage}


def _usage(*counted: ModelUsage) -> dict[str, Any]:
    prompt = sum(one.prompt_tokens for one in counted)
    completion = sum(one.completion_tokens for one in counted)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in counted), "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": sum(one.reasoning_tokens for one in counted),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
