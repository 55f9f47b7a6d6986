"""A turn: one model request and what became of it.

`run_turn` ends when the run has left the worker's hands, by answering or by asking for tool outputs; or when built-in
tools have done what the model asked of them, and another turn follows; or by raising: `Stopped` (cancelled, expired,
drained, lease lost), `RunFailure`, `LeaseLost`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Literal, TypeVar

import msgspec

from perdure.domain.builtin_tools import ToolKind, queries_of, tool_names
from perdure.domain.citations import links_in
from perdure.domain.lifecycle import add_usage
from perdure.engine.call_recorder import CallRecorder
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
from perdure.tools.toolbox import FoundRoom, Toolbox
from perdure.wire.kinds import CompletionTokensDetails, PromptTokenDetails, Usage
from perdure.wire.runs import Extra, Run
from perdure.wire.steps import CodeInterpreterStepCall, FileSearchStepCall, FunctionStepCall

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
        try:
            self.check()
        except Stopped:
            work.close()  # it was never begun
            raise
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


class Task(msgspec.Struct):
    """What a turn is about: the run, the model and its question, the tools, and what tells how much they may find.

    `room` counts tokens: it is asked where a search is made, and nowhere else.
    """

    run: Run
    project_id: str
    extra: Extra
    model: Model
    request: ModelRequest
    toolbox: Toolbox
    room: Callable[[], FoundRoom]


class Turn(msgspec.Struct):
    """What one model request has brought so far."""

    calls: CallRecorder
    names: dict[str, ToolKind]
    usage: Usage | None = None
    reason: FinishReason = "stop"
    said: list[str] = []


async def run_turn(recorder: Recorder, task: Task, stop: Stop) -> Extra | None:
    """Ask the model, record what it says, do what it asks of built-in tools.

    Returns what was counted if another turn follows; None if the run has ended, or waits for the program.
    """
    request, run = task.request, task.run
    if request.max_completion_tokens is not None and request.max_completion_tokens <= 0:
        await recorder.end_incomplete("max_completion_tokens", task.extra)
        return None
    turn = Turn(CallRecorder(recorder), tool_names(run))
    async with aclosing(stop.listen(task.model, request)) as pieces:
        async for piece in pieces:
            await _take(recorder, turn, piece, task)
    if turn.usage is None:
        turn.usage = _counted(task.model, request, turn)
    counted = msgspec.structs.replace(task.extra, usage=add_usage(task.extra.usage, turn.usage))
    recorder.note(counted)
    if turn.calls.calls:
        return await _end_with_calls(recorder, turn, counted, task, stop)
    await _link_files(recorder, task, stop)
    if turn.reason == "length":
        await recorder.finish(turn.usage, counted, cut="max_tokens")
    elif turn.reason == "content_filter":
        await recorder.finish(turn.usage, counted, cut="content_filter", failure=_filtered())
    else:
        await recorder.finish(turn.usage, counted)
    return None


async def _end_with_calls(recorder: Recorder, turn: Turn, counted: Extra, task: Task, stop: Stop) -> Extra | None:
    """Do what built-in tools were asked for, then let the program answer the functions, if there are any."""
    if turn.reason == "length":
        cut = RunFailure("The model was cut short in the middle of a call: max_completion_tokens was reached.")
        await recorder.wind_up("incomplete", failure=cut)
        return None
    if turn.reason == "content_filter":
        raise _filtered()
    _refuse_malformed(turn.calls, task.request.model)
    await recorder.end_message(_no_tokens())  # text behind the calls
    builtin = [index for index, call in enumerate(turn.calls.calls) if not isinstance(call, FunctionStepCall)]
    await turn.calls.asked(commit=bool(builtin))
    for index in builtin:
        stop.check()
        await _do(turn.calls, index, task, stop)
    if len(builtin) == len(turn.calls.calls):
        await turn.calls.complete(turn.usage, counted)
        return counted
    counted.step_usage = turn.usage
    await turn.calls.require_action(counted)
    return None


async def _do(calls: CallRecorder, index: int, task: Task, stop: Stop) -> None:
    """Do what one call asks of a built-in tool."""
    call = calls.calls[index]
    if isinstance(call, FileSearchStepCall):
        queries = queries_of(calls.arguments(index))
        search = task.toolbox.file_search
        assert search is not None  # noqa: S101  # a tool that is not there is not offered, and no other name is taken
        calls.found(index, await stop.wait_for(search.search(task.run, task.project_id, queries, task.room())))
    elif isinstance(call, CodeInterpreterStepCall):
        interpreter = task.toolbox.code_interpreter
        assert interpreter is not None  # noqa: S101  # the same
        running = await calls.begin_running(index)
        await stop.wait_for(
            interpreter.run_code(task.run, task.project_id, running, lambda output: calls.put_out(index, output))
        )


async def _link_files(recorder: Recorder, task: Task, stop: Stop) -> None:
    """Give the files that the answer links to out of the code interpreter, and say where they are linked."""
    interpreter = task.toolbox.code_interpreter
    links = links_in(recorder.written()) if interpreter is not None else []
    if interpreter is not None and links:
        recorder.annotate(await stop.wait_for(interpreter.annotations_of(task.run, task.project_id, links)))


async def find_for_question(recorder: Recorder, task: Task, question: str, stop: Stop) -> None:
    """Make a search with the user's words, for a model that does not search by itself; a step shows it."""
    search = task.toolbox.file_search
    assert search is not None  # noqa: S101  # the caller has looked
    calls = CallRecorder(recorder)
    await calls.begin_search(None, search.ranking(task.run))
    calls.found(0, await stop.wait_for(search.search(task.run, task.project_id, [question], task.room())))
    await calls.complete(_no_tokens(), task.extra)


def _filtered() -> RunFailure:
    return RunFailure("The model's content filter stopped the answer.", code="invalid_prompt")


def _refuse_malformed(calls: CallRecorder, model: str) -> None:
    """Raise RunFailure for functions' arguments that no program could read; built-in tools make the best of theirs."""
    for index, call in enumerate(calls.calls):
        if not isinstance(call, FunctionStepCall):
            continue
        text = calls.arguments(index)
        try:
            value = msgspec.json.decode(text or "{}")
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise RunFailure(
                f"The model '{model}' called '{call.function.name}' with malformed arguments, which are no JSON "
                f"object: {text[:200]!r}. Ask again, set `strict` on the function, or take a model that is better at "
                "calling functions."
            )


def _counted(model: Model, request: ModelRequest, turn: Turn) -> Usage:
    """Count what the model did not: an estimate by a tokenizer of our own."""
    counter = model.capacity(request.model).counter
    called = [turn.calls.arguments(index) for index in range(len(turn.calls.calls))]
    names = [call.function.name for call in turn.calls.calls if isinstance(call, FunctionStepCall)]
    said = "".join([*turn.said, *names, *called])
    return usage_of(ModelUsage(counter.count_request(request), counter.count_text(said)))


def _no_tokens() -> Usage:
    """Return the usage of a completed step whose tokens another step counts: clients read a number on each of them."""
    return usage_of(ModelUsage(0, 0))


def usage_of(counted: ModelUsage) -> Usage:
    """Return one model call's tokens as the API shows them."""
    return Usage(
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        total_tokens=counted.prompt_tokens + counted.completion_tokens,
        prompt_token_details=PromptTokenDetails(cached_tokens=counted.cached_tokens),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=counted.reasoning_tokens),
    )


async def _take(recorder: Recorder, turn: Turn, piece: ModelPiece, task: Task) -> None:
    if isinstance(piece, TextDelta | RefusalDelta):
        if piece.text:
            turn.said.append(piece.text)
            await (recorder.text if isinstance(piece, TextDelta) else recorder.refusal)(piece.text)
    elif isinstance(piece, ToolCallDelta):
        await _take_call(recorder, turn, piece, task)
    elif isinstance(piece, ModelUsage):
        turn.usage = usage_of(piece)
    elif isinstance(piece, Finished):
        turn.reason = piece.reason


async def _take_call(recorder: Recorder, turn: Turn, piece: ToolCallDelta, task: Task) -> None:
    if not turn.calls.calls:
        await recorder.end_message(_no_tokens())
    if piece.index == len(turn.calls.calls):
        await _begin_call(turn, piece, task)
    turn.calls.argue(piece.index, piece.arguments)


async def _begin_call(turn: Turn, piece: ToolCallDelta, task: Task) -> None:
    """Begin the call that the model has begun. Raises RunFailure if the run has no such tool."""
    kind = turn.names.get(piece.name or "")
    search = task.toolbox.file_search
    if kind == "function":
        await turn.calls.begin_function(piece.id, piece.name or "")
    elif kind == "code_interpreter" and task.toolbox.code_interpreter is not None:
        await turn.calls.begin_code(piece.id)
    elif kind == "file_search" and search is not None:
        await turn.calls.begin_search(piece.id, search.ranking(task.run))
    else:
        raise RunFailure(
            f"The model '{task.request.model}' called '{piece.name}', which is none of the run's functions. Ask again, "
            "or take a model that is better at calling functions."
        )
