"""The thread and the bodies that make and change one."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from perdure.wire.kinds import Body, Metadata, Object
from perdure.wire.messages import NewMessages
from perdure.wire.tools import ToolResources


class Thread(Object, kw_only=True):
    """A thread, keys in the recorded order."""

    id: str
    object: Literal["thread"] = "thread"
    created_at: int
    metadata: Metadata
    tool_resources: ToolResources


class CreateThread(Body, kw_only=True):
    """POST /threads; the body may be missing altogether."""

    messages: NewMessages | None = None
    tool_resources: ToolResources | None = None
    metadata: Metadata | None = None


class ModifyThread(Body, kw_only=True):
    """POST /threads/{id}."""

    tool_resources: ToolResources | None | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET
