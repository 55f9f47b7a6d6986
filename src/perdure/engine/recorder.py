"""The recorder: turns a model's pieces into messages, steps and event-log rows.

Rules. Deltas are shown to live readers at once and committed in small batches behind them; everything else is shown
after its commit only. Writes of one run never overlap, and are never broken off: a stop waits for the one under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from perdure.domain.citations import CitationReader, Cited, Sources, citation, citation_in_delta
from perdure.domain.lifecycle import move_step
from perdure.engine.live import Pen
from perdure.errors import RunFailure
from perdure.ids import Clock, Ids
from perdure.store.db import Database
from perdure.store.endings import wind_up
from perdure.store.event_log import Draft
from perdure.store.runs import Change, Claim, Written, append_deltas, record_change
from perdure.wire.events import EventName, LogEvent, MessageDelta, MessageDeltaBody
from perdure.wire.kinds import Usage
from perdure.wire.messages import (
    ContentPart,
    ImageFile,
    ImageFilePart,
    IncompleteMessage,
    IncompleteReason,
    Message,
    RefusalPart,
    TextPart,
    TextValue,
)
from perdure.wire.runs import Extra, IncompleteRun, RequiredAction, RunStatus
from perdure.wire.steps import FOUND_TEXT, CreatedMessage, MessageCreation, RunStep, ToolCalls, shown_step

FLUSH_SECONDS = 0.05
_encode = msgspec.json.Encoder().encode


class OpenMessage(msgspec.Struct):
    """The message being written, with its step. `images` stand before the text."""

    step: RunStep
    message: Message
    citations: CitationReader
    images: list[str] = []
    text: list[str] = []
    length: int = 0
    annotations: list[dict[str, Any]] = []
    refusal: list[str] = []


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
        self._sources: Sources = {}
        self._images: list[str] = []
        self._found_text = FOUND_TEXT in claim.row.extra.include

    # -- deltas: shown at once, committed behind

    @property
    def ids(self) -> Ids:
        """Where fresh ids come from."""
        return self._ids

    def now(self) -> int:
        """Return Unix time in whole seconds."""
        return int(self._clock.now())

    def delta(self, name: EventName, data: Any) -> None:
        """Show a delta at once; it is committed soon after, together with others."""
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

    async def record(self, change: Change) -> None:
        """Write what was done; readers see it once it is committed."""
        async with self._writing:
            self._check_flushed()
            now = int(self._clock.now())
            self._shown(await self._database.run(record_change, self._hold, self._pending, change, now))

    def outgoing(self, step: RunStep) -> RunStep:
        """Return a step as the run's stream shows it."""
        return shown_step(step, found_text=self._found_text)

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

    def prepare(self, sources: Sources, images: list[str]) -> None:
        """Say what the next message may cite, and which figures stand before its text."""
        self._sources, self._images = sources, images

    async def text(self, piece: str) -> None:
        """Add characters to the message; the first ones begin it. Markers of passages become citations."""
        open_message = self._message or await self._begin_message()
        for part in open_message.citations.feed(piece):
            self._add(open_message, part)

    def _add(self, open_message: OpenMessage, part: str | Cited) -> None:
        shown: dict[str, Any] = {"value": part.text if isinstance(part, Cited) else part}
        if isinstance(part, Cited):
            annotation = citation(part, open_message.length)
            shown["annotations"] = [citation_in_delta(annotation, len(open_message.annotations))]
            open_message.annotations.append(annotation)
        elif not open_message.text:
            shown["annotations"] = []
        open_message.text.append(shown["value"])
        open_message.length += len(shown["value"])
        self._message_delta(open_message, {"index": len(open_message.images), "type": "text", "text": shown})

    async def refusal(self, piece: str) -> None:
        """Add characters to a refusal; it stands behind what there is of text and figures."""
        open_message = self._message or await self._begin_message()
        open_message.refusal.append(piece)
        index = len(open_message.images) + (1 if open_message.text else 0)
        self._message_delta(open_message, {"index": index, "type": "refusal", "refusal": piece})

    def written(self) -> str:
        """Return the text of the message so far, all of it shown."""
        if self._message is None:
            return ""
        for part in self._message.citations.end():
            self._add(self._message, part)
        return "".join(self._message.text)

    def annotate(self, annotations: list[dict[str, Any]]) -> None:
        """Add annotations to the text that is already shown."""
        open_message = self._message
        if open_message is None or not annotations:
            return
        first = len(open_message.annotations)
        shown = [citation_in_delta(one, first + place) for place, one in enumerate(annotations)]
        open_message.annotations += annotations
        part = {"index": len(open_message.images), "type": "text", "text": {"annotations": shown}}
        self._message_delta(open_message, part)

    def _message_delta(self, open_message: OpenMessage, part: dict[str, Any]) -> None:
        body = MessageDelta(id=open_message.message.id, delta=MessageDeltaBody(content=[part]))
        self.delta("thread.message.delta", body)

    async def _begin_message(self) -> OpenMessage:
        now = self.now()
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
        step = self.new_step(details)
        drafts: list[Draft] = [
            ("thread.run.step.created", step),
            ("thread.run.step.in_progress", step),
            ("thread.message.created", message),
            ("thread.message.in_progress", message),
        ]
        await self.record(Change(new_steps=[step], new_messages=[message], drafts=drafts))
        images, self._images = self._images, []
        self._message = OpenMessage(step=step, message=message, citations=CitationReader(self._sources), images=images)
        for index, file_id in enumerate(images):
            self._message_delta(
                self._message, {"index": index, "type": "image_file", "image_file": {"file_id": file_id}}
            )
        return self._message

    def new_step(self, details: MessageCreation | ToolCalls) -> RunStep:
        """Return a step that begins now."""
        return RunStep(
            id=self._ids.new("step"),
            created_at=self.now(),
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
            await self.record(self._closed_message(usage, None))

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
        await self.record(change)

    async def end_incomplete(self, reason: Literal["max_completion_tokens", "max_prompt_tokens"], extra: Extra) -> None:
        """End the run because a cap leaves no room for another model call; there is nothing to say in a message."""
        await self.record(
            Change(to="incomplete", incomplete=IncompleteRun(reason=reason), usage=extra.usage, extra=extra)
        )

    def _closed_message(self, usage: Usage | None, cut: IncompleteReason | None) -> Change:
        now = self.now()
        text = self.written()  # first: it may show what was held back
        assert self._message is not None  # noqa: S101  # the callers have seen to it
        open_message, self._message = self._message, None
        parts: list[ContentPart] = [
            ImageFilePart(image_file=ImageFile(file_id=file_id)) for file_id in open_message.images
        ]
        if open_message.text or not (open_message.refusal or open_message.images):
            parts.append(TextPart(text=TextValue(value=text, annotations=open_message.annotations)))
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

    # -- a step of tool calls, which `CallRecorder` fills in

    async def begin_step(self, step: RunStep) -> None:
        """Begin a step."""
        drafts: list[Draft] = [("thread.run.step.created", step), ("thread.run.step.in_progress", step)]
        await self.record(Change(new_steps=[step], drafts=drafts))

    async def keep_step(self, step: RunStep) -> None:
        """Commit what a step has so far. Nothing is shown of it."""
        await self.record(Change(steps=[step]))

    async def end_step(self, step: RunStep, extra: Extra) -> None:
        """Complete a step; the run goes on."""
        drafts: list[Draft] = [("thread.run.step.completed", self.outgoing(step))]
        await self.record(Change(steps=[step], drafts=drafts, extra=extra))

    async def require_action(self, step: RunStep, action: RequiredAction, extra: Extra) -> None:
        """Commit a step that waits for outputs; it stays open, and nobody holds the run."""
        await self.record(Change(steps=[step], to="requires_action", required_action=action, extra=extra))
