"""A turn: one model request and what became of it.

`run_turn` goes on until the run has left the worker's hands, by answering, by asking for tool outputs, or by raising:
`Stopped` (cancelled, expired, drained, lease lost), `RunFailure`, `LeaseLost`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

import msgspec

from perdure.domain.lifecycle import add_usage
from perdure.domain.transcript import function_tools, transcript
from perdure.engine.recorder import Recorder
from perdure.errors import RunFailure
from perdure.models.base import (
    Finished,
    FinishReason,
    Model,
    ModelPiece,
    ModelRequest,
    ModelUsage,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
)
from perdure.store.db import Operation
from perdure.store.messages import list_all_messages
from perdure.store.steps import list_all_steps
from perdure.wire.kinds import CompletionTokensDetails, PromptTokenDetails, Usage
from perdure.wire.messages import Message
from perdure.wire.runs import Extra, Run
from perdure.wire.steps import RunStep
from perdure.wire.tools import FormatText

log = logging.getLogger("perdure.engine")

CLOSE_SECONDS = 5.0
"""How long a model may take to close its stream."""

StopReason = Literal["cancelled", "expired", "drained", "lost"]


class Stopped(Exception):
    """The turn was told to stop."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason: StopReason = reason


class Stop:
    """Tells a turn to stop: at once while it listens to a model, else before its next step. The first reason counts."""

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self._inbox: asyncio.Queue[ModelPiece | BaseException | None] | None = None

    def fire(self, reason: StopReason) -> None:
        """Stop."""
        if self.reason is None:
            self.reason = reason
            if self._inbox is not None:
                self._inbox.put_nowait(None)

    def check(self) -> None:
        """Raise Stopped if it was fired."""
        if self.reason is not None:
            raise Stopped(self.reason)

    async def listen(self, model: Model, request: ModelRequest) -> AsyncGenerator[ModelPiece, None]:
        """Yield the model's pieces. Raises Stopped at once when fired; leaving early closes the model's stream."""
        inbox: asyncio.Queue[ModelPiece | BaseException | None] = asyncio.Queue()
        self._inbox = inbox
        pump = asyncio.get_running_loop().create_task(_pump(model, request, inbox))
        try:
            while True:
                self.check()
                piece = await inbox.get()
                self.check()
                if piece is None:
                    return
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self._inbox = None
            pump.cancel()
            _, late = await asyncio.wait({pump}, timeout=CLOSE_SECONDS)
            if late:
                log.warning("a model did not close its stream within %g seconds; it is left behind", CLOSE_SECONDS)


async def _pump(model: Model, request: ModelRequest, inbox: asyncio.Queue[ModelPiece | BaseException | None]) -> None:
    try:
        async with aclosing(model.stream(request)) as stream:
            async for piece in stream:
                inbox.put_nowait(piece)
    except asyncio.CancelledError:
        # The listener has left, or the model broke off by itself: then somebody listens, and must not wait for ever.
        inbox.put_nowait(RunFailure("The model broke off its answer."))
        raise
    except Exception as failure:  # noqa: BLE001  # handed to the listener, which raises it
        inbox.put_nowait(failure)
    else:
        inbox.put_nowait(None)


class Turn(msgspec.Struct):
    """What one model request has brought so far."""

    usage: Usage | None = None
    reason: FinishReason = "stop"
    calls: int = 0


def read_history(run: Run) -> Operation[tuple[list[Message], list[RunStep]]]:
    """Read what the transcript is made of."""
    newest = run.truncation_strategy.last_messages if run.truncation_strategy.type == "last_messages" else None
    steps = yield from list_all_steps(run.id)
    # The run's own messages are among the newest: one a step at most.
    messages = yield from list_all_messages(run.thread_id, None if newest is None else newest + len(steps))
    return messages, steps


def model_request(run: Run, extra: Extra, model: str, messages: list[Message], steps: list[RunStep]) -> ModelRequest:
    """Return the next turn's question; what nobody set is left out, the upstream has its own defaults.

    A forced tool choice holds for the first turn only, else the run would never end.
    """
    tools = function_tools(run)
    first = not any(step.type == "tool_calls" and step.status == "completed" for step in steps)
    choice = None if run.tool_choice == "auto" or not (first or run.tool_choice == "none") else run.tool_choice
    answer_format = (
        None if run.response_format == "auto" or isinstance(run.response_format, FormatText) else run.response_format
    )
    left = run.max_completion_tokens
    if left is not None and extra.usage is not None:
        left -= extra.usage.completion_tokens
    return ModelRequest(
        model=model,
        messages=transcript(run, messages, steps),
        tools=tools or None,
        tool_choice=_plain(choice) if tools else None,
        parallel_tool_calls=run.parallel_tool_calls if tools and "parallel_tool_calls" in extra.given else None,
        response_format=_plain(answer_format),
        temperature=run.temperature if "temperature" in extra.given else None,
        top_p=run.top_p if "top_p" in extra.given else None,
        reasoning_effort=run.reasoning_effort,
        max_completion_tokens=left,
    )


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


async def run_turn(recorder: Recorder, run: Run, extra: Extra, model: Model, request: ModelRequest, stop: Stop) -> None:
    """Ask the model, record what it says, and end the run or let the program answer its calls."""
    if request.max_completion_tokens is not None and request.max_completion_tokens <= 0:
        await recorder.finish(None, extra, cut="max_tokens")
        return
    turn = Turn()
    known = {tool.function.name for tool in run.tools if hasattr(tool, "function")}
    async with aclosing(stop.listen(model, request)) as pieces:
        async for piece in pieces:
            await _take(recorder, turn, piece, known)
    counted = Extra(given=extra.given, usage=add_usage(extra.usage, turn.usage))
    if turn.calls and turn.reason not in {"length", "content_filter"}:
        counted.step_usage = turn.usage
        await recorder.end_message(None)  # text behind the calls
        await recorder.require_action(counted)
    elif turn.calls:
        raise RunFailure("The model was cut short in the middle of a tool call. Allow it more tokens.")
    elif turn.reason == "length":
        await recorder.finish(turn.usage, counted, cut="max_tokens")
    elif turn.reason == "content_filter":
        failure = RunFailure("The model's content filter stopped the answer.", code="invalid_prompt")
        await recorder.finish(turn.usage, counted, cut="content_filter", failure=failure)
    else:
        await recorder.finish(turn.usage, counted)


async def _take(recorder: Recorder, turn: Turn, piece: ModelPiece, known: set[str]) -> None:
    if isinstance(piece, TextDelta):
        if piece.text:
            await recorder.text(piece.text)
    elif isinstance(piece, RefusalDelta):
        if piece.text:
            await recorder.refusal(piece.text)
    elif isinstance(piece, ToolCallDelta):
        if piece.name is not None and piece.name not in known:
            raise RunFailure(f"The model called '{piece.name}', which is none of the run's functions.")
        if not turn.calls:
            await recorder.end_message(None)
        turn.calls = max(turn.calls, piece.index + 1)
        await recorder.call(piece.index, piece.id, piece.name, piece.arguments)
    elif isinstance(piece, ModelUsage):
        turn.usage = Usage(
            prompt_tokens=piece.prompt_tokens,
            completion_tokens=piece.completion_tokens,
            total_tokens=piece.prompt_tokens + piece.completion_tokens,
            prompt_token_details=PromptTokenDetails(cached_tokens=piece.cached_tokens),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=piece.reasoning_tokens),
        )
    elif isinstance(piece, Finished):
        turn.reason = piece.reason
