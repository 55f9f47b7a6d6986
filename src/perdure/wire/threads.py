"""The thread and the bodies that make and change one."""

from __future__ import annotations

from typing import Literal

import msgspec
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


Comparison = Literal[">", ">=", "<", "<="]


class ThreadFilters(msgspec.Struct, frozen=True, kw_only=True):
    """Which threads a list shows: those with all of the metadata, created within all of the times (Unix seconds)."""

    metadata: tuple[tuple[str, str], ...] = ()
    created_at: tuple[tuple[Comparison, int], ...] = ()


class CreateThread(Body, kw_only=True):
    """POST /threads; the body may be missing altogether."""

    messages: NewMessages | None = None
    tool_resources: ToolResources | None = None
    metadata: Metadata | None = None


class ForkThread(Body, kw_only=True):
    """POST /threads/{id}/fork, an extension; the body may be missing altogether.

    The new thread has the messages up to and with `message_id`, all if it is absent, and the old thread's metadata
    unless it is given its own.
    """

    message_id: str | None = None
    metadata: Metadata | None = None


class ModifyThread(Body, kw_only=True):
    """POST /threads/{id}."""

    tool_resources: ToolResources | None | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET
