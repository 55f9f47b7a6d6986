"""Stream events: their names, the two deltas, and how an event of the log looks.

An event's sequence number is `attempt * ATTEMPT_STRIDE + n`. Deltas reach live readers before they are committed, so an
attempt that died may have shown numbers that the log never got; the next attempt starts above them all.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from perdure.wire.kinds import Object
from perdure.wire.runs import RunStatus

ATTEMPT_STRIDE = 1_000_000_000

EventName = Literal[
    "thread.created",
    "thread.run.created",
    "thread.run.queued",
    "thread.run.in_progress",
    "thread.run.requires_action",
    "thread.run.completed",
    "thread.run.incomplete",
    "thread.run.failed",
    "thread.run.cancelling",
    "thread.run.cancelled",
    "thread.run.expired",
    "thread.run.step.created",
    "thread.run.step.in_progress",
    "thread.run.step.delta",
    "thread.run.step.completed",
    "thread.run.step.failed",
    "thread.run.step.cancelled",
    "thread.run.step.expired",
    "thread.message.created",
    "thread.message.in_progress",
    "thread.message.delta",
    "thread.message.completed",
    "thread.message.incomplete",
]

END_EVENTS: frozenset[str] = frozenset(
    {
        "thread.run.requires_action",
        "thread.run.completed",
        "thread.run.incomplete",
        "thread.run.failed",
        "thread.run.cancelled",
        "thread.run.expired",
    }
)
"""A stream of the hosted API ends after one of these."""

LAST_EVENTS: frozenset[str] = END_EVENTS - {"thread.run.requires_action"}
"""A run's log ends with one of these."""

RUN_EVENTS: dict[RunStatus, EventName] = {
    "queued": "thread.run.queued",
    "in_progress": "thread.run.in_progress",
    "requires_action": "thread.run.requires_action",
    "cancelling": "thread.run.cancelling",
    "cancelled": "thread.run.cancelled",
    "failed": "thread.run.failed",
    "completed": "thread.run.completed",
    "incomplete": "thread.run.incomplete",
    "expired": "thread.run.expired",
}


class LogEvent(msgspec.Struct, array_like=True, frozen=True):
    """One event of a run's log: number, name, and the JSON that goes out."""

    sequence: int
    name: str
    data: msgspec.Raw


class MessageDeltaBody(Object, kw_only=True):
    """What a message delta adds."""

    content: list[dict[str, Any]]


class MessageDelta(Object, kw_only=True):
    """data of `thread.message.delta`."""

    id: str
    object: Literal["thread.message.delta"] = "thread.message.delta"
    delta: MessageDeltaBody


class StepDeltaBody(Object, kw_only=True):
    """What a step delta adds."""

    step_details: dict[str, Any]


class StepDelta(Object, kw_only=True):
    """data of `thread.run.step.delta`."""

    id: str
    object: Literal["thread.run.step.delta"] = "thread.run.step.delta"
    delta: StepDeltaBody
