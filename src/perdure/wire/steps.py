"""The run step.

Fields that begin with `x_`, and the text of found passages, are kept with a step and go out only where `include[]` asks
for the text (`shown_step`): programs of the hosted API never saw them.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from perdure.wire.kinds import LastError, Metadata, Object, Usage

FOUND_TEXT = "step_details.tool_calls[*].file_search.results[*].content"
"""The value of `include[]` that asks for the text of what file search found."""

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


class LogsOutput(Object, tag_field="type", tag="logs", kw_only=True):
    """What the code printed: standard output and error, the last expression's value, a traceback."""

    logs: str


class ImageId(Object, kw_only=True):
    """A file that is an image."""

    file_id: str


class ImageOutput(Object, tag_field="type", tag="image", kw_only=True):
    """A figure that the code drew."""

    image: ImageId


CodeOutput = LogsOutput | ImageOutput


class CodeInterpreterCall(Object, kw_only=True):
    """The code, and what came out of it.

    `x_state`: the code was handed to the interpreter, or has come to its end there. `x_words`: what the model was told
    beside the outputs.
    """

    input: str
    outputs: list[CodeOutput]
    x_state: Literal["began", "ended"] | UnsetType = UNSET
    x_words: str | UnsetType = UNSET


class CodeInterpreterStepCall(Object, tag_field="type", tag="code_interpreter", kw_only=True):
    """One call of the code interpreter."""

    id: str
    code_interpreter: CodeInterpreterCall


class FoundText(Object, kw_only=True):
    """A passage."""

    type: Literal["text"] = "text"
    text: str


class FoundFile(Object, kw_only=True):
    """One result of file search: a passage of a file. `score` lies in 0 to 1; `x_page` counts from 1."""

    file_id: str
    file_name: str
    score: float
    attributes: dict[str, str | float | bool] = {}
    content: list[FoundText] | UnsetType = UNSET
    x_page: int | UnsetType = UNSET


class StepRanking(Object, kw_only=True):
    """How the results were ranked."""

    ranker: str
    score_threshold: float


class FileSearchCall(Object, kw_only=True):
    """How file search ranked and what it found. `x_queries`: what was searched for, `x_words`: what else it said."""

    ranking_options: StepRanking
    results: list[FoundFile]
    x_queries: list[str] | UnsetType = UNSET
    x_words: str | UnsetType = UNSET


class FileSearchStepCall(Object, tag_field="type", tag="file_search", kw_only=True):
    """One call of file search."""

    id: str
    file_search: FileSearchCall


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


def shown_step(step: RunStep, *, found_text: bool) -> RunStep:
    """Return a step as it goes out; the text of found passages, and all `x_` fields, only where it is asked for."""
    if found_text or not isinstance(step.step_details, ToolCalls):
        return step
    calls = [_shown_call(call) for call in step.step_details.tool_calls]
    return msgspec.structs.replace(step, step_details=ToolCalls(tool_calls=calls))


def _shown_call(call: StepCall) -> StepCall:
    if isinstance(call, CodeInterpreterStepCall):
        code = CodeInterpreterCall(input=call.code_interpreter.input, outputs=call.code_interpreter.outputs)
        return CodeInterpreterStepCall(id=call.id, code_interpreter=code)
    if isinstance(call, FileSearchStepCall):
        search = call.file_search
        results = [msgspec.structs.replace(found, content=UNSET, x_page=UNSET) for found in search.results]
        return FileSearchStepCall(
            id=call.id, file_search=FileSearchCall(ranking_options=search.ranking_options, results=results)
        )
    return call
