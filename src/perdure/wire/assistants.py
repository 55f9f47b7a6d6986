"""The assistant and the bodies that make and change one."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from perdure.wire.kinds import (
    Body,
    Description,
    Instructions,
    Metadata,
    ModelName,
    Name,
    Object,
    ReasoningEffort,
    Temperature,
    TopP,
)
from perdure.wire.tools import ResponseFormat, Tool, ToolResources, Tools


class Assistant(Object, kw_only=True):
    """An assistant, keys in the recorded order. `reasoning_effort` is sent though the spec's object lacks it."""

    id: str
    object: Literal["assistant"] = "assistant"
    created_at: int
    name: str | None
    description: str | None
    model: str
    instructions: str | None
    tools: list[Tool]
    top_p: float
    temperature: float
    reasoning_effort: ReasoningEffort | None
    tool_resources: ToolResources
    metadata: Metadata
    response_format: ResponseFormat


class CreateAssistant(Body, kw_only=True):
    """POST /assistants."""

    model: ModelName
    name: Name | None = None
    description: Description | None = None
    instructions: Instructions | None = None
    reasoning_effort: ReasoningEffort | None = None
    tools: Tools | None = None
    tool_resources: ToolResources | None = None
    metadata: Metadata | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    response_format: ResponseFormat | None = None


class ModifyAssistant(Body, kw_only=True):
    """POST /assistants/{id}. Absent keeps, null sets back to the default."""

    model: ModelName | UnsetType = UNSET
    name: Name | None | UnsetType = UNSET
    description: Description | None | UnsetType = UNSET
    instructions: Instructions | None | UnsetType = UNSET
    reasoning_effort: ReasoningEffort | None | UnsetType = UNSET
    tools: Tools | None | UnsetType = UNSET
    tool_resources: ToolResources | None | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET
    temperature: Temperature | None | UnsetType = UNSET
    top_p: TopP | None | UnsetType = UNSET
    response_format: ResponseFormat | None | UnsetType = UNSET
