"""A run's event log as a stream, an extension: from its beginning or from where a reader left off, to the run's end."""

from __future__ import annotations

import re

from starlette.responses import Response

from perdure.api.call import Call
from perdure.api.sse import EventStream, NothingLeft
from perdure.errors import InvalidRequest
from perdure.store.db import Operation
from perdure.store.event_log import is_any_left
from perdure.store.threads import get_thread_body
from perdure.wire.events import LAST_EVENTS

LAST_EVENT_HEADER = "last-event-id"


async def follow_run_events(call: Call[None]) -> Response:
    """GET /threads/{thread_id}/runs/{run_id}/events; `Last-Event-ID` is the `id` of the last event that was seen.

    Unlike the stream of a run's creation it goes on after `thread.run.requires_action`.
    """
    context, run_id, after = call.context, call.ids["run_id"], _seen(call)
    left = await context.database.read(_look_of_project, run_id, call.ids["thread_id"], call.project_id, after)
    if not left:
        return NothingLeft()
    return EventStream(context.feeds, run_id, after, context.settings.keepalive_seconds, LAST_EVENTS)


def _look_of_project(run_id: str, thread_id: str, project_id: str, after: int) -> Operation[bool]:
    yield from get_thread_body(thread_id, project_id)
    return (yield from is_any_left(run_id, thread_id, after))


def _seen(call: Call[None]) -> int:
    given = call.headers.get(LAST_EVENT_HEADER, "").strip() or "0"
    if re.fullmatch("[0-9]{1,18}", given) is None:
        raise InvalidRequest(
            f"Invalid 'Last-Event-ID': '{given}'. Expected the id of an event of this run, a number.",
            param="Last-Event-ID",
            code="invalid_value",
        )
    return int(given)
