"""The run step."""

from __future__ import annotations

from typing import Any, Literal

from perdure.wire.kinds import LastError, Metadata, Object, Usage

StepStatus = Literal["in_progress", "cancelled", "failed", "completed", "expired"]


class FunctionCallOutput(Object, kw_only=True):
    """A function call with its output, null until it is submitted."""

    name: str
    arguments: str
    output: str | None = None


class FunctionStepCall(Object, tag_field="type", tag="function", kw_only=True):
    """One function call of a step."""

    id: str
    function: FunctionCallOutput


class CodeInterpreterStepCall(Object, tag_field="type", tag="code_interpreter", kw_only=True):
    """One call of the code interpreter."""

    id: str
    code_interpreter: dict[str, Any]


class FileSearchStepCall(Object, tag_field="type", tag="file_search", kw_only=True):
    """One call of file search."""

    id: str
    file_search: dict[str, Any]


StepCall = FunctionStepCall | CodeInterpreterStepCall | FileSearchStepCall


class CreatedMessage(Object, kw_only=True):
    """The message that a step writes."""

    message_id: str


class MessageCreation(Object, tag_field="type", tag="message_creation", kw_only=True):
    """The step writes a message."""

    message_creation: CreatedMessage


class ToolCalls(Object, tag_field="type", tag="tool_calls", kw_only=True):
    """The step calls tools."""

    tool_calls: list[StepCall]


class RunStep(Object, kw_only=True):
    """A run step. Recordings have `expires_at`, the spec `expired_at` and `metadata`: all three are sent."""

    id: str
    object: Literal["thread.run.step"] = "thread.run.step"
    created_at: int
    run_id: str
    assistant_id: str
    thread_id: str
    type: Literal["message_creation", "tool_calls"]
    status: StepStatus
    cancelled_at: int | None = None
    completed_at: int | None = None
    expires_at: int | None
    expired_at: int | None = None
    failed_at: int | None = None
    last_error: LastError | None = None
    step_details: MessageCreation | ToolCalls
    usage: Usage | None = None
    metadata: Metadata = {}
