"""What the model is shown: instructions, the thread, and what this run has done so far.

Rules. The thread's messages stand in their order; the run's own come from its finished steps, so that a tool call is
always followed by its outputs. A half-written message is not shown when the answer was begun anew, by the same run or
by another try of it. Code that was broken off is shown with a word on it, since it may have done something; a search
that was broken off is simply made again. Nothing here counts tokens.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from perdure.domain.builtin_tools import (
    ToolKind,
    builtin_tools,
    given_passages,
    name_of,
    search_arguments,
    search_numbers,
    searches_of,
    told_of_code,
    told_of_search,
)
from perdure.wire.messages import ContentPart, ImageFilePart, ImageUrlPart, Message, RefusalPart, TextPart
from perdure.wire.runs import Run
from perdure.wire.steps import (
    CodeInterpreterStepCall,
    FileSearchStepCall,
    FunctionStepCall,
    ImageOutput,
    MessageCreation,
    RunStep,
    StepCall,
    ToolCalls,
)
from perdure.wire.tools import FunctionTool

ChatMessage = dict[str, Any]

FILE_SCHEME = "perdure-file:"
"""The address of an image that is a file here; its bytes take its place before the model is asked."""


class Transcript(NamedTuple):
    """Chat messages for the next turn, oldest first, in three parts of which only the middle one may be cut."""

    instructions: list[ChatMessage]
    thread: list[ChatMessage]
    own: list[ChatMessage]
    """What this run has said, called and been answered."""


def transcript(
    run: Run,
    messages: list[Message],
    steps: list[RunStep],
    instead_of: Collection[str] = (),
    *,
    found_is_given: bool = False,
) -> Transcript:
    """Return chat messages for the next turn.

    `messages` are the thread's, oldest first; `steps` are the run's, oldest first; `instead_of` are the runs that this
    one is another try of: it does not see what they wrote. `found_is_given`: the model does not search by itself, what
    was found for it stands in its instructions.
    """
    own = {message.id: message for message in messages if message.run_id == run.id}
    others = {run.id, *instead_of}
    thread = [message for message in messages if message.run_id not in others]
    shown_steps = _ShownSteps(run, own, search_numbers(steps), found_is_given=found_is_given)
    return Transcript(
        _instructions(run, steps, found_is_given=found_is_given),
        [shown for message in _truncated(run, _without_false_starts(thread)) if (shown := _shown(message))],
        [shown for step in steps for shown in shown_steps.of(step)],
    )


def _instructions(run: Run, steps: list[RunStep], *, found_is_given: bool) -> list[ChatMessage]:
    parts = [run.instructions] if run.instructions else []
    if found_is_given:
        numbers = search_numbers(steps)
        parts += [given_passages(call.file_search, numbers[call.id]) for call in searches_of(steps)]
    return [{"role": "system", "content": "\n\n".join(parts)}] if parts else []


def offered_tools(run: Run, kinds: Collection[ToolKind] = (), files: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return what the model may call, in the shape of chat completions: functions, and built-in tools of `kinds`."""
    return [*_function_tools(run), *builtin_tools(run, list(kinds), files)]


def _function_tools(run: Run) -> list[dict[str, Any]]:
    """Return the run's functions; `strict` only where it was asked for."""
    shown = []
    for tool in run.tools:
        if isinstance(tool, FunctionTool):
            given = tool.function
            function: dict[str, Any] = {"name": given.name}
            if given.description:
                function["description"] = given.description
            function["parameters"] = given.parameters
            if given.strict:
                function["strict"] = True
            shown.append({"type": "function", "function": function})
    return shown


def _without_false_starts(messages: list[Message]) -> list[Message]:
    """Leave out an incomplete message that the assistant's next one, with nothing asked between, stands in for."""
    kept: list[Message] = []
    for message in messages:
        if kept and _stands_in(message, kept[-1]):
            kept.pop()
        kept.append(message)
    return kept


def _stands_in(message: Message, before: Message) -> bool:
    """Say whether an answer replaces the one before; one that was cut at a token cap may be gone on with instead."""
    if before.status != "incomplete" or not before.role == message.role == "assistant":
        return False
    cut = before.incomplete_details is not None and before.incomplete_details.reason == "max_tokens"
    return not cut or before.run_id == message.run_id is not None


def _truncated(run: Run, messages: list[Message]) -> list[Message]:
    wanted = run.truncation_strategy.last_messages
    if run.truncation_strategy.type == "last_messages" and wanted:
        return messages[-wanted:]
    return messages


def _shown(message: Message) -> ChatMessage | None:
    """Return a message as chat completions have it. Only a user's may hold images there."""
    if not message.content:
        return None
    if message.role == "assistant" or all(isinstance(part, TextPart | RefusalPart) for part in message.content):
        return {"role": message.role, "content": "\n".join(_plain(part) for part in message.content)}
    return {"role": message.role, "content": [_shown_part(part) for part in message.content]}


def _plain(part: ContentPart) -> str:
    if isinstance(part, TextPart):
        return part.text.value
    if isinstance(part, RefusalPart):
        return part.refusal
    return f"[A figure was shown: {part.image_file.file_id}]" if isinstance(part, ImageFilePart) else "[An image]"


def _shown_part(part: ContentPart) -> dict[str, Any]:
    if isinstance(part, ImageUrlPart):
        return {"type": "image_url", "image_url": {"url": part.image_url.url, "detail": part.image_url.detail}}
    if isinstance(part, ImageFilePart):
        detail = part.image_file.detail or "auto"
        return {"type": "image_url", "image_url": {"url": f"{FILE_SCHEME}{part.image_file.file_id}", "detail": detail}}
    return {"type": "text", "text": _plain(part)}


class _ShownSteps:
    """Shows steps as the messages that a model has seen of them."""

    def __init__(self, run: Run, own: dict[str, Message], numbers: dict[str, int], *, found_is_given: bool) -> None:
        self._own = own
        self._numbers = numbers
        self._found_is_given = found_is_given
        self._search = name_of(run, "file_search") or "file_search"
        self._code = name_of(run, "code_interpreter") or "code_interpreter"

    def of(self, step: RunStep) -> list[ChatMessage]:
        """Return the messages of a step; none if there is nothing to show of it."""
        if isinstance(step.step_details, MessageCreation):
            message = self._own.get(step.step_details.message_creation.message_id)
            shown = _shown(message) if message and step.status == "completed" else None
            return [shown] if shown else []
        calls = [call for call in step.step_details.tool_calls if self._counts(step, call)]
        if not calls:
            return []
        return [
            {"role": "assistant", "content": None, "tool_calls": [self._call(call) for call in calls]},
            *({"role": "tool", "tool_call_id": call.id, "content": self._told(call)} for call in calls),
        ]

    def _counts(self, step: RunStep, call: StepCall) -> bool:
        if isinstance(call, FileSearchStepCall) and self._found_is_given:
            return False
        if step.status == "completed":
            return True
        return isinstance(call, CodeInterpreterStepCall) and call.code_interpreter.x_state in {"began", "ended"}

    def _call(self, call: StepCall) -> dict[str, Any]:
        if isinstance(call, FunctionStepCall):
            name, arguments = call.function.name, call.function.arguments
        elif isinstance(call, CodeInterpreterStepCall):
            name, arguments = self._code, json.dumps({"code": call.code_interpreter.input}, ensure_ascii=False)
        else:
            name, arguments = self._search, search_arguments(call.file_search)
        return {"id": call.id, "type": "function", "function": {"name": name, "arguments": arguments}}

    def _told(self, call: StepCall) -> str:
        if isinstance(call, FunctionStepCall):
            return call.function.output or ""
        if isinstance(call, CodeInterpreterStepCall):
            return told_of_code(call.code_interpreter)
        return told_of_search(call.file_search, self._numbers[call.id])


def undelivered_images(steps: list[RunStep]) -> list[str]:
    """Return the file ids of figures that no message of the run shows yet, oldest first."""
    images: list[str] = []
    for step in steps:
        if isinstance(step.step_details, ToolCalls):
            images += [
                output.image.file_id
                for call in step.step_details.tool_calls
                if isinstance(call, CodeInterpreterStepCall)
                for output in call.code_interpreter.outputs
                if isinstance(output, ImageOutput)
            ]
        elif step.status == "completed":
            images = []
    return images
