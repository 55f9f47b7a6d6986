"""A turn: one model request and what became of it.

`run_turn` goes on until the run has left the worker's hands, by answering, by asking for tool outputs, or by raising:
`Stopped` (cancelled, expired, drained, lease lost), `RunFailure`, `LeaseLost`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, Literal, TypeVar

import msgspec

from perdure.domain.lifecycle import add_usage
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
from perdure.wire.kinds import CompletionTokensDetails, PromptTokenDetails, Usage
from perdure.wire.runs import Extra, Run
from perdure.wire.tools import FunctionTool

T = TypeVar("T")

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
        self._fired: asyncio.Event | None = None
        self._inbox: asyncio.Queue[ModelPiece | BaseException | None] | None = None

    def fire(self, reason: StopReason) -> None:
        """Stop."""
        if self.reason is None:
            self.reason = reason
            if self._fired is not None:
                self._fired.set()
            if self._inbox is not None:
                self._inbox.put_nowait(None)

    async def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the work returns, or break it off and raise Stopped when fired."""
        self.check()
        fired = self._fired = asyncio.Event()
        doing = asyncio.get_running_loop().create_task(work)
        waiting = asyncio.get_running_loop().create_task(fired.wait())
        try:
            await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
            self.check()
            return await doing
        finally:
            self._fired = None
            for one in (doing, waiting):
                one.cancel()
            await asyncio.wait({doing, waiting})

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


class MadeCall(msgspec.Struct):
    """A function call as the model made it, its arguments in pieces."""

    name: str
    arguments: list[str] = []


class Turn(msgspec.Struct):
    """What one model request has brought so far."""

    usage: Usage | None = None
    reason: FinishReason = "stop"
    said: list[str] = []
    calls: list[MadeCall] = []


async def run_turn(recorder: Recorder, run: Run, extra: Extra, model: Model, request: ModelRequest, stop: Stop) -> None:
    """Ask the model, record what it says, and end the run or let the program answer its calls."""
    if request.max_completion_tokens is not None and request.max_completion_tokens <= 0:
        await recorder.end_incomplete("max_completion_tokens", extra)
        return
    turn = Turn()
    known = {tool.function.name for tool in run.tools if isinstance(tool, FunctionTool)}
    async with aclosing(stop.listen(model, request)) as pieces:
        async for piece in pieces:
            await _take(recorder, turn, piece, known, request.model)
    if turn.usage is None:
        turn.usage = _counted(model, request, turn)
    counted = msgspec.structs.replace(extra, usage=add_usage(extra.usage, turn.usage))
    recorder.note(counted)
    if turn.calls:
        await _end_with_calls(recorder, turn, counted, request.model)
    elif turn.reason == "length":
        await recorder.finish(turn.usage, counted, cut="max_tokens")
    elif turn.reason == "content_filter":
        await recorder.finish(turn.usage, counted, cut="content_filter", failure=_filtered())
    else:
        await recorder.finish(turn.usage, counted)


async def _end_with_calls(recorder: Recorder, turn: Turn, counted: Extra, model: str) -> None:
    """Let the program answer the calls, unless the model was cut short in the middle of one."""
    if turn.reason == "length":
        cut = RunFailure("The model was cut short in the middle of a call: max_completion_tokens was reached.")
        await recorder.wind_up("incomplete", failure=cut)
        return
    if turn.reason == "content_filter":
        raise _filtered()
    _refuse_malformed(turn.calls, model)
    counted.step_usage = turn.usage
    await recorder.end_message(None)  # text behind the calls
    await recorder.require_action(counted)


def _filtered() -> RunFailure:
    return RunFailure("The model's content filter stopped the answer.", code="invalid_prompt")


def _refuse_malformed(calls: list[MadeCall], model: str) -> None:
    """Raise RunFailure for arguments that no program could read."""
    for call in calls:
        text = "".join(call.arguments)
        try:
            value = msgspec.json.decode(text or "{}")
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise RunFailure(
                f"The model '{model}' called '{call.name}' with malformed arguments, which are no JSON object: "
                f"{text[:200]!r}. Ask again, set `strict` on the function, or take a model that is better at calling "
                "functions."
            )


def _counted(model: Model, request: ModelRequest, turn: Turn) -> Usage:
    """Count what the model did not: an estimate by a tokenizer of our own."""
    counter = model.capacity(request.model).counter
    said = "".join([*turn.said, *(text for call in turn.calls for text in (call.name, *call.arguments))])
    return usage_of(ModelUsage(counter.count_request(request), counter.count_text(said)))


def usage_of(counted: ModelUsage) -> Usage:
    """Return one model call's tokens as the API shows them."""
    return Usage(
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        total_tokens=counted.prompt_tokens + counted.completion_tokens,
        prompt_token_details=PromptTokenDetails(cached_tokens=counted.cached_tokens),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=counted.reasoning_tokens),
    )


async def _take(recorder: Recorder, turn: Turn, piece: ModelPiece, known: set[str], model: str) -> None:
    if isinstance(piece, TextDelta | RefusalDelta):
        if piece.text:
            turn.said.append(piece.text)
            await (recorder.text if isinstance(piece, TextDelta) else recorder.refusal)(piece.text)
    elif isinstance(piece, ToolCallDelta):
        if piece.name is not None and piece.name not in known:
            raise RunFailure(
                f"The model '{model}' called '{piece.name}', which is none of the run's functions. Ask again, or take "
                "a model that is better at calling functions."
            )
        await _take_call(recorder, turn, piece)
    elif isinstance(piece, ModelUsage):
        turn.usage = usage_of(piece)
    elif isinstance(piece, Finished):
        turn.reason = piece.reason


async def _take_call(recorder: Recorder, turn: Turn, piece: ToolCallDelta) -> None:
    if not turn.calls:
        await recorder.end_message(None)
    if piece.index == len(turn.calls):
        turn.calls.append(MadeCall(piece.name or ""))
    turn.calls[piece.index].arguments.append(piece.arguments)
    await recorder.call(piece.index, piece.id, piece.name, piece.arguments)
