"""The recorder: turns a model's pieces into messages, steps and event-log rows.

Rules. Deltas are shown to live readers at once and committed in small batches behind them; everything else is shown
after its commit only. Writes of one run never overlap, and are never broken off: a stop waits for the one under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from perdure.domain.lifecycle import move_step
from perdure.engine.live import Pen
from perdure.errors import RunFailure
from perdure.ids import Clock, Ids
from perdure.store.db import Database
from perdure.store.endings import wind_up
from perdure.store.event_log import Draft
from perdure.store.runs import Change, Claim, Written, append_deltas, record_change
from perdure.wire.events import EventName, LogEvent, MessageDelta, MessageDeltaBody, StepDelta, StepDeltaBody
from perdure.wire.kinds import Usage
from perdure.wire.messages import (
    ContentPart,
    IncompleteMessage,
    IncompleteReason,
    Message,
    RefusalPart,
    TextPart,
    TextValue,
)
from perdure.wire.runs import Extra, FunctionCall, IncompleteRun, RequiredAction, RequiredCall, RequiredCalls, RunStatus
from perdure.wire.steps import (
    CreatedMessage,
    FunctionCallOutput,
    FunctionStepCall,
    MessageCreation,
    RunStep,
    StepCall,
    ToolCalls,
)

FLUSH_SECONDS = 0.05
_encode = msgspec.json.Encoder().encode


class OpenMessage(msgspec.Struct):
    """The message being written, with its step."""

    step: RunStep
    message: Message
    text: list[str] = []
    refusal: list[str] = []


class OpenCalls(msgspec.Struct):
    """The tool calls being written, with their step. Arguments are kept in pieces."""

    step: RunStep
    calls: list[FunctionStepCall] = []
    arguments: list[list[str]] = []


class Recorder:
    """Writes what one attempt does to one run. Any method may raise LeaseLost.

    `let_in` hears of a run that waited for this one to end.
    """

    def __init__(
        self, database: Database, pen: Pen, clock: Clock, ids: Ids, claim: Claim, let_in: Callable[[str], None]
    ) -> None:
        self._database = database
        self._let_in = let_in
        self._pen = pen
        self._clock = clock
        self._ids = ids
        self._hold = claim.hold
        self._run = claim.row.run
        self._last = claim.row.last_event
        self._pending: list[LogEvent] = []
        self._flushing: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self._flush_failure: BaseException | None = None
        self._extra: Extra | None = None
        self._message: OpenMessage | None = None
        self._calls: OpenCalls | None = None

    # -- deltas: shown at once, committed behind

    def _delta(self, name: EventName, data: Any) -> None:
        self._check_flushed()
        self._last += 1
        event = LogEvent(self._last, name, msgspec.Raw(_encode(data)))
        self._pending.append(event)
        self._pen.show([event])
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().create_task(self._flush_soon())

    async def _flush_soon(self) -> None:
        await self._clock.sleep(FLUSH_SECONDS)
        async with self._writing:
            self._flushing = None
            events, self._pending = self._pending, []
            if not events or self._flush_failure is not None:  # behind a gap nothing may be written
                return
            try:
                await self._database.run(append_deltas, self._hold, events)
            except Exception as failure:  # noqa: BLE001  # handed to the run's own flow, which knows what to do
                self._flush_failure = failure
                return
            self._pen.commit(events[-1].sequence, [])

    # -- changes: committed, then shown

    async def _record(self, change: Change) -> None:
        async with self._writing:
            self._check_flushed()
            now = int(self._clock.now())
            self._shown(await self._database.run(record_change, self._hold, self._pending, change, now))

    def note(self, extra: Extra) -> None:
        """Remember what was counted: it counts also if the run ends badly."""
        self._extra = extra

    async def wind_up(self, to: RunStatus, *, failure: RunFailure | None = None) -> None:
        """End the run as cancelled, expired, failed or cut short in a call, or put it back into the queue."""
        async with self._writing:
            self._check_flushed()
            now = int(self._clock.now())
            self._shown(
                await self._database.run(
                    wind_up, self._hold, self._pending, to, now, failure=failure, extra=self._extra
                )
            )

    def _check_flushed(self) -> None:
        """Raise what a flush failed with: what it left may be in the log or not, so this attempt writes no more."""
        if self._flush_failure is not None:
            raise self._flush_failure

    def _shown(self, written: Written) -> None:
        """Take note of a commit. Until then pending deltas stay: readers have seen them, the next write needs them."""
        self._pending = []
        self._last = written.events[-1].sequence if written.events else self._last
        self._pen.commit(self._last, written.events)
        if written.let_in is not None:
            self._let_in(written.let_in)

    async def close(self) -> None:
        """Wait for the flush that may still be under way."""
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.wait({self._flushing})
        async with self._writing:
            pass

    # -- a message

    async def text(self, piece: str) -> None:
        """Add characters to the message; the first ones begin it."""
        open_message = self._message or await self._begin_message()
        part: dict[str, Any] = {"value": piece}
        if not open_message.text:
            part["annotations"] = []
        open_message.text.append(piece)
        self._message_delta(open_message, {"index": 0, "type": "text", "text": part})

    async def refusal(self, piece: str) -> None:
        """Add characters to a refusal; it is the message's only part, or stands behind the text."""
        open_message = self._message or await self._begin_message()
        open_message.refusal.append(piece)
        index = 1 if open_message.text else 0
        self._message_delta(open_message, {"index": index, "type": "refusal", "refusal": piece})

    def _message_delta(self, open_message: OpenMessage, part: dict[str, Any]) -> None:
        body = MessageDelta(id=open_message.message.id, delta=MessageDeltaBody(content=[part]))
        self._delta("thread.message.delta", body)

    async def _begin_message(self) -> OpenMessage:
        now = int(self._clock.now())
        message = Message(
            id=self._ids.new("msg"),
            created_at=now,
            assistant_id=self._run.assistant_id,
            thread_id=self._run.thread_id,
            run_id=self._run.id,
            status="in_progress",
            incomplete_details=None,
            incomplete_at=None,
            completed_at=None,
            role="assistant",
            content=[],
            attachments=[],
            metadata={},
        )
        details = MessageCreation(message_creation=CreatedMessage(message_id=message.id))
        step = self._new_step(now, details)
        drafts: list[Draft] = [
            ("thread.run.step.created", step),
            ("thread.run.step.in_progress", step),
            ("thread.message.created", message),
            ("thread.message.in_progress", message),
        ]
        await self._record(Change(new_steps=[step], new_messages=[message], drafts=drafts))
        self._message = OpenMessage(step=step, message=message)
        return self._message

    def _new_step(self, now: int, details: MessageCreation | ToolCalls) -> RunStep:
        return RunStep(
            id=self._ids.new("step"),
            created_at=now,
            run_id=self._run.id,
            assistant_id=self._run.assistant_id,
            thread_id=self._run.thread_id,
            type="message_creation" if isinstance(details, MessageCreation) else "tool_calls",
            status="in_progress",
            expires_at=self._run.expires_at,
            step_details=details,
        )

    async def end_message(self, usage: Usage | None) -> None:
        """Complete the message; the run goes on (a tool call follows)."""
        if self._message is not None:
            await self._record(self._closed_message(usage, None))

    async def finish(
        self,
        usage: Usage | None,
        extra: Extra,
        *,
        cut: IncompleteReason | None = None,
        failure: RunFailure | None = None,
    ) -> None:
        """Complete the message and end the run, both `incomplete` if the model was cut short.

        A model that said nothing leaves an empty message: clients read the newest message as the answer.
        """
        if self._message is None:
            await self._begin_message()
        change = self._closed_message(usage, cut)
        change.to = "failed" if failure else "incomplete" if cut else "completed"
        change.usage = extra.usage
        change.extra = extra
        change.failure = failure
        change.incomplete = IncompleteRun(reason="max_completion_tokens") if change.to == "incomplete" else None
        await self._record(change)

    async def end_incomplete(self, reason: Literal["max_completion_tokens", "max_prompt_tokens"], extra: Extra) -> None:
        """End the run because a cap leaves no room for another model call; there is nothing to say in a message."""
        await self._record(
            Change(to="incomplete", incomplete=IncompleteRun(reason=reason), usage=extra.usage, extra=extra)
        )

    def _closed_message(self, usage: Usage | None, cut: IncompleteReason | None) -> Change:
        now = int(self._clock.now())
        assert self._message is not None  # noqa: S101  # the callers have seen to it
        open_message, self._message = self._message, None
        parts: list[ContentPart] = []
        if open_message.text or not open_message.refusal:
            parts.append(TextPart(text=TextValue(value="".join(open_message.text), annotations=[])))
        if open_message.refusal:
            parts.append(RefusalPart(refusal="".join(open_message.refusal)))
        message = msgspec.structs.replace(
            open_message.message,
            content=parts,
            status="incomplete" if cut else "completed",
            incomplete_details=IncompleteMessage(reason=cut) if cut else None,
            incomplete_at=now if cut else None,
            completed_at=None if cut else now,
        )
        step = move_step(open_message.step, "completed", now, usage=usage)
        drafts: list[Draft] = [
            ("thread.message.incomplete" if cut else "thread.message.completed", message),
            ("thread.run.step.completed", step),
        ]
        return Change(messages=[message], steps=[step], drafts=drafts)

    # -- tool calls

    async def call(self, index: int, call_id: str | None, name: str | None, arguments: str) -> None:
        """Add to a function call; the first piece of the first call begins the step. Calls come in order of index."""
        if self._calls is None:
            await self._begin_calls()
        calls = self._calls
        assert calls is not None  # noqa: S101  # just begun
        shown: dict[str, Any] = {"index": index, "type": "function"}
        if index == len(calls.calls):
            new = FunctionStepCall(
                id=call_id or self._ids.new("call"), function=FunctionCallOutput(name=name or "", arguments="")
            )
            calls.calls.append(new)
            calls.arguments.append([])
            # Recorded: id and name once, with empty arguments; the arguments follow in deltas of their own.
            first = {"name": new.function.name, "arguments": "", "output": None}
            self._call_delta(calls, {"index": index, "id": new.id, "type": "function", "function": first})
        if arguments:
            calls.arguments[index].append(arguments)
            self._call_delta(calls, {**shown, "function": {"arguments": arguments}})

    def _call_delta(self, calls: OpenCalls, call: dict[str, Any]) -> None:
        details = {"type": "tool_calls", "tool_calls": [call]}
        self._delta("thread.run.step.delta", StepDelta(id=calls.step.id, delta=StepDeltaBody(step_details=details)))

    async def _begin_calls(self) -> None:
        step = self._new_step(int(self._clock.now()), ToolCalls(tool_calls=[]))
        drafts: list[Draft] = [("thread.run.step.created", step), ("thread.run.step.in_progress", step)]
        await self._record(Change(new_steps=[step], drafts=drafts))
        self._calls = OpenCalls(step=step)

    async def require_action(self, extra: Extra) -> None:
        """Let the program answer the calls: the step stays open and nobody holds the run."""
        calls = self._calls
        assert calls is not None  # noqa: S101  # a turn that ends in calls has begun them
        done: list[StepCall] = []
        for index, (call, arguments) in enumerate(zip(calls.calls, calls.arguments, strict=True)):
            if not any(arguments):  # a function without parameters: programs read the arguments as JSON
                await self.call(index, None, None, "{}")
            call.function.arguments = "".join(arguments)
            done.append(call)
        required = [
            RequiredCall(id=call.id, function=FunctionCall(name=call.function.name, arguments=call.function.arguments))
            for call in calls.calls
        ]
        step = msgspec.structs.replace(calls.step, step_details=ToolCalls(tool_calls=done))
        action = RequiredAction(submit_tool_outputs=RequiredCalls(tool_calls=required))
        self._calls = None
        await self._record(Change(steps=[step], to="requires_action", required_action=action, extra=extra))
