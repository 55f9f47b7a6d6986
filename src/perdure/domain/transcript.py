"""What the model is shown: instructions, the thread, and what this run has done so far.

Rules. The thread's messages stand in their order; the run's own come from its finished steps, so that a tool call is
always followed by its outputs. A half-written message is not shown when the answer was begun anew, by the same run or
by another try of it. Nothing here counts tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from perdure.wire.messages import ContentPart, ImageUrlPart, Message, RefusalPart, TextPart
from perdure.wire.runs import Run
from perdure.wire.steps import FunctionStepCall, MessageCreation, RunStep, StepCall
from perdure.wire.tools import FunctionTool

ChatMessage = dict[str, Any]


class Transcript(NamedTuple):
    """Chat messages for the next turn, oldest first, in three parts of which only the middle one may be cut."""

    instructions: list[ChatMessage]
    thread: list[ChatMessage]
    own: list[ChatMessage]
    """What this run has said, called and been answered."""


def transcript(run: Run, messages: list[Message], steps: list[RunStep], instead_of: Collection[str] = ()) -> Transcript:
    """Return chat messages for the next turn.

    `messages` are the thread's, oldest first; `steps` are the run's, oldest first; `instead_of` are the runs that this
    one is another try of: it does not see what they wrote.
    """
    own = {message.id: message for message in messages if message.run_id == run.id}
    others = {run.id, *instead_of}
    thread = [message for message in messages if message.run_id not in others]
    return Transcript(
        [{"role": "system", "content": run.instructions}] if run.instructions else [],
        [shown for message in _truncated(run, _without_false_starts(thread)) if (shown := _shown(message))],
        [shown for step in steps if step.status == "completed" for shown in _shown_step(step, own)],
    )


def function_tools(run: Run) -> list[dict[str, Any]]:
    """Return the run's functions in the shape of chat completions; `strict` only where it was asked for."""
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
    if not message.content:
        return None
    if all(isinstance(part, TextPart | RefusalPart) for part in message.content):
        return {"role": message.role, "content": "\n".join(_plain(part) for part in message.content)}
    return {"role": message.role, "content": [_shown_part(part) for part in message.content]}


def _plain(part: ContentPart) -> str:
    if isinstance(part, TextPart):
        return part.text.value
    return part.refusal if isinstance(part, RefusalPart) else ""


def _shown_part(part: ContentPart) -> dict[str, Any]:
    if isinstance(part, ImageUrlPart):
        return {"type": "image_url", "image_url": {"url": part.image_url.url, "detail": part.image_url.detail}}
    return {"type": "text", "text": _plain(part)}


def _shown_step(step: RunStep, own: dict[str, Message]) -> list[ChatMessage]:
    if isinstance(step.step_details, MessageCreation):
        message = own.get(step.step_details.message_creation.message_id)
        shown = _shown(message) if message else None
        return [shown] if shown else []
    calls = [call for call in step.step_details.tool_calls if isinstance(call, FunctionStepCall)]
    if not calls:
        return []
    return [
        {"role": "assistant", "content": None, "tool_calls": [_shown_call(call) for call in calls]},
        *({"role": "tool", "tool_call_id": call.id, "content": call.function.output or ""} for call in calls),
    ]


def _shown_call(call: StepCall) -> dict[str, Any]:
    assert isinstance(call, FunctionStepCall)  # noqa: S101  # the caller chose them
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": call.function.arguments},
    }
