"""The run and the bodies that make, change and feed one."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from perdure.wire.kinds import (
    Body,
    Instructions,
    LastError,
    Metadata,
    ModelName,
    Object,
    ReasoningEffort,
    Temperature,
    TokenCap,
    TopP,
    Usage,
    WhenBusy,
)
from perdure.wire.messages import NewMessages
from perdure.wire.threads import CreateThread
from perdure.wire.tools import ResponseFormat, Tool, ToolChoice, ToolResources, Tools

RunStatus = Literal[
    "queued",
    "in_progress",
    "requires_action",
    "cancelling",
    "cancelled",
    "failed",
    "completed",
    "incomplete",
    "expired",
]


class FunctionCall(Object, kw_only=True):
    """A function and its arguments, JSON text written by the model."""

    name: str
    arguments: str


class RequiredCall(Object, kw_only=True):
    """A call that waits for its output."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class RequiredCalls(Object, kw_only=True):
    """All calls that wait."""

    tool_calls: list[RequiredCall]


class RequiredAction(Object, kw_only=True):
    """What the program must do before the run goes on."""

    type: Literal["submit_tool_outputs"] = "submit_tool_outputs"
    submit_tool_outputs: RequiredCalls


class TruncationStrategy(Body, kw_only=True):
    """How much of the thread the model sees."""

    type: Literal["auto", "last_messages"] = "auto"
    last_messages: Annotated[int, Meta(ge=1)] | None = None


class IncompleteRun(Object, kw_only=True):
    """Which cap ended the run."""

    reason: Literal["max_completion_tokens", "max_prompt_tokens"]


class Run(Object, kw_only=True):
    """A run, keys in the recorded order.

    `tool_resources` and `reasoning_effort` are sent though the spec lacks them. Without instructions the hosted server
    sent null where the spec, and the official client's strict mode, want a string: here it is empty.
    """

    id: str
    object: Literal["thread.run"] = "thread.run"
    created_at: int
    assistant_id: str
    thread_id: str
    status: RunStatus
    started_at: int | None = None
    expires_at: int | None
    cancelled_at: int | None = None
    failed_at: int | None = None
    completed_at: int | None = None
    required_action: RequiredAction | None = None
    last_error: LastError | None = None
    model: str
    instructions: str
    tools: list[Tool]
    tool_resources: ToolResources
    metadata: Metadata
    temperature: float
    top_p: float
    reasoning_effort: ReasoningEffort | None
    max_completion_tokens: int | None
    max_prompt_tokens: int | None
    truncation_strategy: TruncationStrategy
    incomplete_details: IncompleteRun | None = None
    usage: Usage | None = None
    response_format: ResponseFormat
    tool_choice: ToolChoice
    parallel_tool_calls: bool


class RunOptions(Body, kw_only=True):
    """What a run may override. Null or absent: the assistant's value, or the default."""

    assistant_id: str
    model: ModelName | None = None
    instructions: Instructions | None = None
    tools: Tools | None = None
    metadata: Metadata | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stream: bool | None = None
    max_prompt_tokens: TokenCap | None = None
    max_completion_tokens: TokenCap | None = None
    truncation_strategy: TruncationStrategy | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: ReasoningEffort | None = None


class CreateRun(RunOptions, kw_only=True):
    """POST /threads/{id}/runs."""

    additional_instructions: Instructions | None = None
    additional_messages: NewMessages | None = None
    x_when_busy: WhenBusy | None = None


class CreateThreadAndRun(RunOptions, kw_only=True):
    """POST /threads/runs."""

    thread: CreateThread | None = None
    tool_resources: ToolResources | None = None


class RetryRun(Body, kw_only=True):
    """POST /threads/{id}/runs/{id}/retry, an extension; the body may be missing altogether."""

    stream: bool | None = None
    x_when_busy: WhenBusy | None = None


class ModifyRun(Body, kw_only=True):
    """POST /threads/{id}/runs/{id}."""

    metadata: Metadata | None | UnsetType = UNSET


class ToolOutput(Body, kw_only=True):
    """The output of one call."""

    tool_call_id: str | None = None
    output: str | None = None


class SubmitToolOutputs(Body, kw_only=True):
    """POST /threads/{id}/runs/{id}/submit_tool_outputs."""

    tool_outputs: list[ToolOutput]
    stream: bool | None = None


class Extra(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What the engine must know of an assistant or a run and the API does not show; a column beside the body."""

    given: list[str] = []
    """Parameters that somebody set. The object shows defaults for the others; the upstream is not sent them."""
    usage: Usage | None = None
    """Tokens of a run counted so far; the object shows them at the end."""
    step_usage: Usage | None = None
    """Tokens of the turn whose calls wait for outputs; they become the step's usage when it is completed."""
    instead_of: list[str] = []
    """The runs that this one is another try of."""
    include: list[str] = []
    """What the run's stream shows beyond the usual: the values of `include[]` at its creation."""
